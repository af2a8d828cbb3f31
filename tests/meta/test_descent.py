"""The decoder that writes gradient descent: its supervision is right, its branches are separate,
the probe agrees.
"""

import math

import numpy as np
import pytest
import torch

from tml_lib.measure import parameter_paths, probe
from tml_lib.meta import descent, maml_mlp
from tml_lib.records import TaskBatch


def drawn(n=6, seed=0, **shift):
    return descent.draw_tasks(n, torch.Generator().manual_seed(seed), queries=3, **shift)


@pytest.fixture(scope="module")
def trained():
    return descent.train("writer", 0, train_steps=200, batch_size=32)


def test_the_supervision_is_gradient_descent_on_the_support_loss():
    batch, w_0 = drawn()
    found = descent.gradient_descent(batch, w_0, 3)
    for task in range(len(batch)):
        w = w_0[task].clone().requires_grad_()
        for step in range(3):
            loss = ((batch.support_x[task] @ w - batch.support_y[task, :, 0]) ** 2).mean() / 2
            (gradient,) = torch.autograd.grad(loss, w)
            w = (w - descent.INNER_LR * gradient).detach().requires_grad_()
            torch.testing.assert_close(found[task, step + 1], w.detach(), rtol=1e-5, atol=1e-6)


def test_it_is_the_inner_loop_of_maml_on_mirrored_tasks():
    """(x, y) and (-x, -y) leave a linear model's bias at 0, and half the rate undoes the square's
    factor 2.
    """
    batch, w_0 = drawn()
    parts = (batch.support_x, batch.support_y, batch.query_x, batch.query_y)
    mirrored = TaskBatch(*(torch.cat([p, -p], 1) for p in parts))
    start = [maml_mlp.Layer(w_0[:, :, None], torch.zeros(len(batch), 1, 1))]
    found = maml_mlp.adapt(start, mirrored, inner_lr=descent.INNER_LR / 2, steps=4)
    explicit = descent.gradient_descent(batch, w_0, 4)
    for step, (layer,) in enumerate(found):
        torch.testing.assert_close(layer.weight[:, :, 0], explicit[:, step], rtol=1e-5, atol=1e-5)
        assert float(layer.bias.abs().max()) < 1e-5


def test_query_loss_and_explicit_nll_by_hand():
    batch, _ = drawn(2)
    w = torch.tensor([[[0.5, -1.0]], [[0.0, 0.0]]])
    predicted = (batch.query_x * w).sum(2)
    torch.testing.assert_close(
        descent.query_loss(batch, w)[:, 0], ((predicted - batch.query_y[:, :, 0]) ** 2).mean(1)
    )
    wanted = []
    for task in range(2):
        nll = 0.0
        for mean, y in zip(
            predicted[task].tolist(), batch.query_y[task, :, 0].tolist(), strict=True
        ):
            centre = float(descent.BINS[int(descent.bin_of(torch.tensor(y)))])
            edges = [
                (e - mean) / descent.READOUT_WIDTH / math.sqrt(2)
                for e in (centre - 0.125, centre + 0.125)
            ]
            nll -= math.log(max((math.erf(edges[1]) - math.erf(edges[0])) / 2, 1e-12))
        wanted.append(nll / 3)
    assert descent.explicit_nll(batch, w)[:, 0].tolist() == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize("condition", [1.0, 100.0])
def test_gradient_descent_converges_on_every_task(condition):
    batch, w_0 = descent.draw_tasks(300, torch.Generator().manual_seed(1), condition=condition)
    assert len(batch) == len(w_0) == 300
    A = batch.support_x.mT @ batch.support_x / descent.SHOTS
    assert float(torch.linalg.matrix_norm(A, 2).max()) * descent.INNER_LR < 2
    end = descent.gradient_descent(batch, w_0, 20_000)[:, -1]
    assert float(descent.support_gradient(batch, end).norm(dim=1).max()) < 1e-3


def test_the_late_arm_is_asked_for_the_answer_once(monkeypatch):
    """Its loss must not depend on what the model answers after earlier iterates."""
    batch, w_0 = drawn()
    model = descent.Writer(0)
    real = model.forward

    def tampered(settings, iterates, kinds=descent.KINDS):
        written, logits = real(settings, iterates, kinds)
        return written, torch.cat(
            [torch.cat([logits[:, :-1, :1], 3 * logits[:, :-1, 1:]], 2), logits[:, -1:]], 1
        )

    def loss(arm):
        with torch.no_grad():
            return float(descent._loss(model, arm, batch, w_0))

    before = {arm: loss(arm) for arm in ("writer", "late")}
    monkeypatch.setattr(model, "forward", tampered)
    assert loss("late") == pytest.approx(before["late"])
    assert loss("writer") != pytest.approx(before["writer"])


def test_bins_cover_the_line_and_the_readout_is_a_distribution():
    y = torch.tensor([-100.0, -6.0, -5.9, 0.0, 0.12, 0.13, 6.0, 100.0])
    assert descent.bin_of(y).tolist() == [0, 0, 0, 24, 24, 25, 48, 48]
    found = descent.readout_distribution(torch.tensor([-100.0, 0.1, 3.0, 100.0]))
    torch.testing.assert_close(found.sum(-1), torch.ones(4), rtol=0, atol=1e-5)
    assert found.argmax(-1).tolist() == [0, 24, 36, 48]


def test_a_query_sees_what_was_written_before_it_and_no_other_query(trained):
    model, _ = trained
    batch, w_0 = drawn()
    iterates = descent.gradient_descent(batch, w_0, 4)
    with torch.no_grad():
        following, logits = model(batch, iterates)
        for k in range(5):  # the same question in a sequence of its own
            few, alone = model(batch, iterates[:, : k + 1])
            torch.testing.assert_close(alone[:, k], logits[:, k], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(few[:, k], following[:, k], rtol=1e-4, atol=1e-4)
        one = TaskBatch(
            batch.support_x, batch.support_y, batch.query_x[:, 1:2], batch.query_y[:, 1:2]
        )
        for place, kind in enumerate(descent.KINDS):
            _, single = model(one, iterates, (kind,))
            torch.testing.assert_close(
                single[:, :, 0, 0], logits[:, :, place, 1], rtol=1e-4, atol=1e-4
            )


def test_writing_feeds_back_what_was_written(trained):
    model, _ = trained
    batch, w_0 = drawn()
    written = descent.write(model, batch, w_0, 5)
    assert torch.equal(written[:, 0], w_0)
    with torch.no_grad():
        following, _ = model(batch, written[:, :-1], ())
    torch.testing.assert_close(following, written[:, 1:], rtol=1e-4, atol=1e-4)


def test_training_learns_to_step_and_is_repeatable(trained):
    model, losses = trained
    batch, w_0 = drawn(200, seed=5)
    explicit = descent.gradient_descent(batch, w_0, descent.STEPS)
    untrained = descent.Writer(0)
    errors = [
        float((descent.write(m, batch, w_0, 6)[:, -1] - explicit[:, -1]).square().sum(1).mean())
        for m in (model, untrained)
    ]
    assert errors[0] < 0.3 * errors[1]
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    assert descent.train("writer", 0, train_steps=200, batch_size=32)[1] == losses


@pytest.mark.parametrize("arm", descent.ARMS)
def test_every_arm_trains(arm):
    _, losses = descent.train(arm, 1, train_steps=40, batch_size=16)
    assert sum(losses[-10:]) < sum(losses[:10])


@pytest.mark.parametrize("kind", descent.KINDS)
def test_the_kits_probe_reads_the_same_losses(trained, kind):
    model, _ = trained
    batch, w_0 = drawn()
    written = descent.write(model, batch, w_0, 4)
    for index in range(3):
        asked = descent.as_causal_lm(model, batch, written, index)
        own = probe.prefix_nll(
            asked.lm, asked.prompt, asked.trajectory, [asked.suffixes[kind]], range(5)
        )
        one = TaskBatch(
            *(part[index : index + 1] for part in (batch.support_x, batch.support_y)),
            *(part[index : index + 1, :1] for part in (batch.query_x, batch.query_y)),
        )
        wanted = descent.answer_nll(model, one, written[index : index + 1])[kind][0]
        np.testing.assert_allclose(own[0], wanted.numpy(), rtol=1e-4, atol=1e-4)
        path = parameter_paths.path_from_ids(
            asked.lm, asked.prompt, asked.trajectory, asked.suffixes[kind], range(5)
        )
        np.testing.assert_allclose(path.answer_nll, own[0], rtol=1e-4, atol=1e-4)


def test_making_a_causal_lm_leaves_the_model_and_the_random_state_alone(trained):
    model, _ = trained
    batch, w_0 = drawn()
    kept = {name: part.clone() for name, part in model.state_dict().items()}
    torch.manual_seed(3)
    before = torch.get_rng_state()
    asked = descent.as_causal_lm(model, batch, w_0[:, None], 0)
    assert asked.trajectory == []
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(part, kept[name]) for name, part in model.state_dict().items())
    assert model.body.config.vocab_size == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b, w: descent.gradient_descent(b, w, -1), "steps=-1 is negative"),
        (
            lambda b, w: descent.gradient_descent(b, w, 2, inner_lr=math.nan),
            "inner_lr=nan must be finite and positive",
        ),
        (lambda b, w: descent.write(descent.Writer(0), b, w, -2), "steps=-2 is negative"),
        (lambda b, w: descent.Writer(0)(b, w[:, None], ("guess",)), "kind='guess' is no question"),
        (
            lambda b, w: descent.train("righter", 0, train_steps=1),
            "arm='righter' is unknown: train one of writer",
        ),
        (lambda b, w: descent.train("writer", 0, train_steps=0), "train_steps=0 trains nothing"),
    ],
)
def test_bad_settings_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(*drawn())
