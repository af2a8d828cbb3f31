"""Meta-gradients: the generic and the fast path against an explicit float64 loop, a hand derivation
and finite differences; any module and loss; errors; learning.
"""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from tml_lib.data import toy
from tml_lib.meta import maml, maml_mlp
from tml_lib.meta.maml_mlp import Layer
from tml_lib.records import TaskBatch

LR = 0.02


def batch(n=4, shots=5, seed=0, dtype=torch.float64):
    return toy.sinusoids(n, shots, torch.Generator().manual_seed(seed)).to(dtype=dtype)


def network(seed=0, dtype=torch.float64, sizes=(1, 8, 6, 1)):
    return maml_mlp.new_mlp(sizes, seed, dtype=dtype)


def relative(found, wanted):
    """Largest difference of a layer's weight or bias, relative to its length."""
    pairs = zip(flat(found), flat(wanted), strict=True)
    return max(float((a.double() - b.double()).norm() / b.double().norm()) for a, b in pairs)


def flat(theta):
    return [part for layer in theta for part in layer]


def explicit_loop(theta, tasks, inner_lr, steps, *, first_order=False, last_only=False):
    """One task after another, torch differentiating everything: nothing shared with the library."""
    theta = [part.double().clone().requires_grad_() for part in flat(theta)]
    total = 0.0
    for task in range(len(tasks)):
        sx, sy, qx, qy = (
            t[task].double()
            for t in (tasks.support_x, tasks.support_y, tasks.query_x, tasks.query_y)
        )

        def predict(parts, x):
            for layer in range(len(parts) // 2 - 1):
                x = (x @ parts[2 * layer] + parts[2 * layer + 1]).clamp(min=0)
            return x @ parts[-2] + parts[-1]

        adapted = theta
        for _ in range(steps):
            gradients = torch.autograd.grad(
                ((predict(adapted, sx) - sy) ** 2).mean(), adapted, create_graph=not first_order
            )
            moving = range(len(theta) - 2, len(theta)) if last_only else range(len(theta))
            adapted = [
                part - inner_lr * gradients[i] if i in moving else part
                for i, part in enumerate(adapted)
            ]
        total = total + ((predict(adapted, qx) - qy) ** 2).mean() / len(tasks)
    found = torch.autograd.grad(total, theta)
    return total.detach(), list(zip(found[::2], found[1::2], strict=True))


def generic(theta, tasks, **settings):
    """The generic path on the same network as a torch module, its result in layers."""
    model = maml_mlp.as_module(theta)
    loss, found = maml.meta_gradient(
        maml.task_loss(model), maml.parameters(model), tasks, **settings
    )
    return loss, maml_mlp.from_parameters(found)


PATHS = {"fast": maml_mlp.meta_gradient, "generic": generic}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("sizes", [(1, 40, 40, 1), (1, 1), (1, 7, 1)])
def test_both_paths_equal_the_explicit_float64_loop(path, steps, sizes):
    theta, tasks = network(sizes=sizes), batch(25 if sizes[1] == 40 else 4, 10)
    wanted_loss, wanted = explicit_loop(theta, tasks, LR, steps)
    loss, found = PATHS[path](theta, tasks, inner_lr=LR, steps=steps)
    assert float(loss) == pytest.approx(float(wanted_loss), rel=1e-12)
    assert relative(found, wanted) < 1e-12
    single = [Layer(*(part.float() for part in layer)) for layer in theta]
    assert (
        relative(
            PATHS[path](single, tasks.to(dtype=torch.float32), inner_lr=LR, steps=steps)[1], wanted
        )
        < 1e-6
    )


@pytest.mark.parametrize("steps", [1, 5])
def test_first_order_would_fail_that_comparison(steps):
    theta, tasks = network(sizes=(1, 40, 40, 1)), batch(25, 10)
    _, second = explicit_loop(theta, tasks, LR, steps)
    _, first = maml_mlp.meta_gradient(theta, tasks, inner_lr=LR, steps=steps, method="fomaml")
    assert relative(first, second) > 0.05  # 50,000 times the tolerance in single precision
    assert relative(first, explicit_loop(theta, tasks, LR, steps, first_order=True)[1]) < 1e-12


@pytest.mark.parametrize("method", maml.METHODS)
@pytest.mark.parametrize("steps", [1, 4])
def test_the_two_paths_agree_for_every_method(method, steps):
    theta, tasks = network(), batch()
    fast, slow = (
        path(theta, tasks, inner_lr=LR, steps=steps, method=method) for path in PATHS.values()
    )
    assert float(fast[0]) == pytest.approx(float(slow[0]), rel=1e-12)
    assert relative(fast[1], slow[1]) < 1e-12


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_anil_adapts_the_last_layer_only_and_trains_all(steps):
    theta, tasks = network(), batch()
    _, found = maml_mlp.meta_gradient(theta, tasks, inner_lr=LR, steps=steps, method="anil")
    assert relative(found, explicit_loop(theta, tasks, LR, steps, last_only=True)[1]) < 1e-12
    adapted = maml_mlp.adapt(theta, tasks, inner_lr=LR, steps=2, method="anil")[-1]
    moved = [
        not torch.equal(a, b.expand_as(a)) for a, b in zip(flat(adapted), flat(theta), strict=True)
    ]
    assert moved == [False] * 4 + [True] * 2


def test_joint_training_is_the_mean_loss_of_all_points():
    theta, tasks = network(), batch()
    x, y = (
        torch.cat([tasks.support_x, tasks.query_x], 1),
        torch.cat([tasks.support_y, tasks.query_y], 1),
    )
    own = [Layer(*(part.clone().requires_grad_() for part in layer)) for layer in theta]
    wanted = torch.autograd.grad(mse_loss(maml_mlp.forward(own, x), y), flat(own))
    wanted = list(zip(wanted[::2], wanted[1::2], strict=True))
    assert (
        relative(
            maml_mlp.meta_gradient(theta, tasks, inner_lr=LR, steps=5, method="joint")[1], wanted
        )
        < 1e-12
    )


def test_reptile_points_from_the_adapted_mean_back_to_theta():
    theta, tasks = network(), batch()
    x, y = (
        torch.cat([tasks.support_x, tasks.query_x], 1),
        torch.cat([tasks.support_y, tasks.query_y], 1),
    )
    whole = TaskBatch(x, y, tasks.query_x, tasks.query_y)
    adapted = maml_mlp.adapt(theta, whole, inner_lr=LR, steps=3)[-1]
    _, found = maml_mlp.meta_gradient(theta, tasks, inner_lr=LR, steps=3, method="reptile")
    wanted = [a - b.mean(0) for a, b in zip(flat(theta), flat(adapted), strict=True)]
    assert relative([flat(found)], [wanted]) < 1e-12


def test_hessian_product_equals_finite_differences_of_the_gradient():
    theta, tasks = maml_mlp.per_task(network(), 4), batch()
    draw = torch.Generator().manual_seed(3)
    v = [
        Layer(*(torch.randn(part.shape, generator=draw, dtype=part.dtype) for part in layer))
        for layer in theta
    ]
    x, y = tasks.support_x, tasks.support_y
    found = maml_mlp.hessian_product(maml_mlp.gradient(theta, x, y)[1], v)
    ahead, behind = (
        maml_mlp.gradient(maml_mlp.minus(theta, v, sign * 1e-6), x, y)[0] for sign in (-1, 1)
    )
    wanted = [(a - b) / 2e-6 for a, b in zip(flat(ahead), flat(behind), strict=True)]
    assert relative([flat(found)], [wanted]) < 1e-6


@pytest.mark.parametrize("method", maml.METHODS)
def test_both_paths_train_alike_and_adapt_alike(method):
    theta, settings = network(), {"inner_lr": LR, "steps": 2, "method": method}
    model = maml_mlp.as_module(theta)
    loss = maml.task_loss(model)

    def sample(draw):
        return toy.sinusoids(4, 5, draw).to(dtype=torch.float64)

    fast, losses = maml_mlp.meta_train(theta, sample, meta_steps=10, seed=1, **settings)
    slow, same = maml.meta_train(
        loss, maml.parameters(model), sample, meta_steps=10, seed=1, **settings
    )
    assert same == pytest.approx(losses, rel=1e-9)
    assert relative(maml_mlp.from_parameters(slow), fast) < 1e-9
    wanted = maml_mlp.adaptation_curve(fast, batch(), **settings)
    torch.testing.assert_close(maml.adaptation_curve(loss, slow, batch(), **settings), wanted)


@pytest.mark.parametrize("method", ["maml", "fomaml", "anil"])
@pytest.mark.parametrize("norm", [nn.GroupNorm(1, 5), nn.RMSNorm(5)])
def test_any_module_and_loss_agree_with_unrolled_autograd(method, norm):
    """A classifier with a norm, several outputs and cross-entropy, one task after another."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3, 6, 4, generator=draw, dtype=torch.float64)
    y = torch.randint(3, (3, 6, 1), generator=draw)
    tasks = TaskBatch(x[:, :3], y[:, :3], x[:, 3:], y[:, 3:])

    def classified(logits, y):
        return nn.functional.cross_entropy(logits, y[:, 0])

    parts = nn.Linear(4, 5), norm, nn.Tanh(), nn.Linear(5, 3)
    model = nn.Sequential(*parts).double()
    names, start = zip(*model.named_parameters(), strict=True)
    total = 0.0
    for k in range(3):
        theta = dict(zip(names, start, strict=True))
        for _ in range(2):
            out = torch.func.functional_call(model, theta, tasks.support_x[k])
            loss = classified(out, tasks.support_y[k])
            moving = [n for n in names if method != "anil" or n.startswith("3.")]
            steps = torch.autograd.grad(
                loss, [theta[n] for n in moving], create_graph=method != "fomaml"
            )
            theta |= {n: theta[n] - 0.5 * step for n, step in zip(moving, steps, strict=True)}
        out = torch.func.functional_call(model, theta, tasks.query_x[k])
        total = total + classified(out, tasks.query_y[k]) / 3
    wanted = torch.autograd.grad(total, start)
    loss = maml.task_loss(model, classified)
    value, found = maml.meta_gradient(
        loss, maml.parameters(model), tasks, inner_lr=0.5, steps=2, method=method
    )
    assert float(value) == pytest.approx(float(total.detach()), rel=1e-12)
    torch.testing.assert_close(list(found.values()), list(wanted), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("adapts", [["4.weight"], iter(["4.weight"]), [], None])
def test_the_inner_loop_moves_the_named_parameters_at_every_step(adapts):
    """Names may come from a generator; no names move nothing, and None moves all."""
    model, tasks = maml_mlp.as_module(network()), batch()
    theta = maml.parameters(model)
    moving = {"4.weight"} if adapts else set(theta) if adapts is None else set()
    points = maml.inner_loop(
        maml.task_loss(model),
        theta,
        tasks.support_x[0],
        tasks.support_y[0],
        inner_lr=LR,
        steps=3,
        adapts=adapts,
    )
    assert len(points) == 4
    for before, after in itertools.pairwise(points):
        assert {name for name in theta if not torch.equal(before[name], after[name])} == moving


def test_a_model_whose_second_derivatives_vmap_gets_wrong_is_refused():
    with pytest.raises(ValueError, match=r"LayerNorm.*nn\.GroupNorm"):
        maml.task_loss(nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5)))


def test_the_scalar_meta_gradient_by_hand():
    """L_s = (w a + u - b)^2 at u = 0: w' = w - lr 2a (w a - b), u' = -lr 2 (w a - b); L_q = (w' c +
    u' - e)^2.
    """
    w, a, b, c, e = 0.7, 1.5, -0.4, 0.9, 2.0
    adapted = w - LR * 2 * a * (w * a - b)
    bias = -LR * 2 * (w * a - b)  # the network's bias adapts as well
    residual = adapted * c + bias - e
    by_hand = 2 * residual * (c * (1 - 2 * LR * a**2) + (-2 * LR * a))
    one = [torch.tensor([[[float(t)]]], dtype=torch.float64) for t in (a, b, c, e)]
    theta = [Layer(torch.tensor([[w]], dtype=torch.float64), torch.zeros(1, 1).double())]
    for path in PATHS.values():
        _, (found,) = path(theta, TaskBatch(*one), inner_lr=LR, steps=1)
        assert float(found.weight) == pytest.approx(by_hand, rel=1e-12)


def test_the_adaptation_curve_is_the_query_loss_of_plain_sgd():
    theta, tasks = network(), batch()
    curve = maml_mlp.adaptation_curve(theta, tasks, inner_lr=LR, steps=4)
    assert curve.shape == (4, 5)
    for steps in range(5):
        wanted, _ = explicit_loop(theta, tasks, LR, steps)
        assert float(curve[:, steps].mean()) == pytest.approx(float(wanted), rel=1e-12)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": -1}, "steps=-1 is negative"),
        ({"inner_lr": math.nan}, "inner_lr=nan must be finite and positive"),
        ({"inner_lr": math.inf}, "inner_lr=inf"),
        ({"inner_lr": 0.0}, "inner_lr=0.0"),
        ({"method": "mamml"}, "method='mamml' is unknown: use one of maml"),
    ],
)
def test_bad_settings_are_named(path, settings, message):
    with pytest.raises(ValueError, match=message):
        PATHS[path](network(), batch(), **{"inner_lr": LR, "steps": 1, **settings})
    if "method" not in settings:
        with pytest.raises(ValueError, match=message):
            maml_mlp.adapt(network(), batch(), **{"inner_lr": LR, "steps": 1, **settings})


def test_the_fast_path_refuses_a_network_with_several_outputs():
    with pytest.raises(ValueError, match="the network has 2 outputs"):
        maml_mlp.meta_gradient(network(sizes=(1, 4, 2)), batch(), inner_lr=LR, steps=1)


@pytest.mark.parametrize("path", PATHS)
def test_divergence_names_the_inner_learning_rate(path):
    with pytest.raises(FloatingPointError, match=r"inner_lr=50\.0: the inner loop diverged"):
        PATHS[path](
            network(dtype=torch.float32), batch(dtype=torch.float32), inner_lr=50.0, steps=20
        )
    curve = maml_mlp.adaptation_curve(
        network(dtype=torch.float32), batch(dtype=torch.float32), inner_lr=50.0, steps=20
    )
    assert bool(curve[:, -1].isinf().any())
    assert bool((curve.isinf() | (curve < 1e38)).all()), (
        "a diverged task counts as infinite, not as the largest number"
    )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("settings", [{"method": "joint", "steps": 5}, {"steps": 0}])
def test_without_inner_steps_no_inner_loop_is_blamed(path, settings):
    theta = [Layer(*(part * math.nan for part in layer)) for layer in network()]
    with pytest.raises(FloatingPointError, match="is nan and no inner step was taken") as told:
        PATHS[path](theta, batch(), inner_lr=LR, **settings)
    assert "inner_lr" not in str(told.value)


@pytest.mark.parametrize("method", maml.METHODS)
def test_training_lowers_the_loss_that_it_trains(method):
    def sample(draw):
        return toy.sinusoids(10, 10, draw)

    theta = maml_mlp.new_mlp([1, 20, 20, 1], 0)
    kept = [part.clone() for part in flat(theta)]
    trained, losses = maml_mlp.meta_train(
        theta, sample, meta_steps=300, inner_lr=LR, steps=2, seed=0, method=method
    )
    assert all(torch.equal(a, b) for a, b in zip(flat(theta), kept, strict=True)), (
        "the start must not be changed"
    )
    assert sum(losses[-30:]) < sum(losses[:30])
    again, same = maml_mlp.meta_train(
        theta, sample, meta_steps=300, inner_lr=LR, steps=2, seed=0, method=method
    )
    assert same == losses
    assert all(torch.equal(a, b) for a, b in zip(flat(trained), flat(again), strict=True))


def test_a_meta_learned_start_adapts_better_than_a_jointly_trained_one():
    def sample(draw):
        return toy.sinusoids(25, 10, draw)

    unseen = toy.sinusoids(100, 10, torch.Generator().manual_seed(99), queries=50)
    ends = {}
    for method in ("maml", "joint"):
        theta, _ = maml_mlp.meta_train(
            maml_mlp.new_mlp([1, 40, 40, 1], 0),
            sample,
            meta_steps=400,
            inner_lr=LR,
            steps=5,
            seed=0,
            method=method,
        )
        ends[method] = maml_mlp.adaptation_curve(theta, unseen, inner_lr=LR, steps=5).mean(0)
    assert ends["maml"][5] < 0.4 * ends["maml"][0]
    assert ends["maml"][5] < 0.6 * ends["joint"][5]


def test_a_meta_gradient_that_overflows_stops_the_training(monkeypatch):
    real = maml_mlp.meta_gradient

    def overflowing(theta, tasks, **settings):
        loss, gradients = real(theta, tasks, **settings)
        return loss, [Layer(*(part * 1e30 for part in layer)) for layer in gradients]

    monkeypatch.setattr(maml_mlp, "meta_gradient", overflowing)
    start = network(dtype=torch.float32)
    with pytest.raises(FloatingPointError, match=r"norm is inf with inner_lr=0\.02"):
        maml_mlp.meta_train(
            start,
            lambda draw: batch(dtype=torch.float32),
            meta_steps=1,
            inner_lr=LR,
            steps=1,
            seed=0,
        )


def test_nothing_is_trained_in_no_steps():
    with pytest.raises(ValueError, match="meta_steps=0 trains nothing"):
        maml_mlp.meta_train(
            network(), lambda draw: batch(), meta_steps=0, inner_lr=LR, steps=1, seed=0
        )


def test_training_ends_within_its_schedule():
    def trained(**outer):
        return maml_mlp.meta_train(
            network(), lambda draw: batch(), inner_lr=LR, steps=1, seed=0, **outer
        )[1]

    assert trained(meta_steps=4, stop=2) == trained(meta_steps=4)[:2]
    for stop in (5, -1):
        with pytest.raises(ValueError, match=rf"stop={stop} lies outside .* meta_steps=4"):
            trained(meta_steps=4, stop=stop)
