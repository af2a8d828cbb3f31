"""RaML's one-layer transformer: what is exact is exact to 1e-12, what is printed is not."""

from dataclasses import replace

import pytest
import torch

from tml_lib.measure import one_layer
from tml_lib.measure.one_layer import (
    ffn_update,
    gradient_step_weights,
    linear_attention,
    printed_update,
    random_layer,
    random_tokens,
    rank_one,
    value_update,
    with_trajectory,
    without_trajectory,
)

SIZES = [(16, 10, 1), (16, 40, 1), (16, 10, 7), (8, 1, 3)]  # d, |l|, |t|
each_size = pytest.mark.parametrize(("d", "length", "steps"), SIZES)


def largest(x):
    return float(x.abs().max())


def setting(d, length, steps, **kind):
    return (
        random_layer(d, 2 * d, seed=0, **kind),
        random_tokens(length, d, seed=1),
        random_tokens(steps, d, seed=2),
    )


def test_the_layer_is_equation_5_by_hand():
    theta, E_l, _ = setting(4, 3, 1)
    scores = [float((E_l[-1] @ theta.W_q) @ (E_l[j] @ theta.W_k)) for j in range(3)]
    weights = torch.tensor(scores, dtype=torch.float64).exp()
    mixed = sum(w * E_l[j] for j, w in enumerate(weights / weights.sum())) @ theta.W_v
    out = torch.nn.functional.gelu(mixed @ theta.W_1 + theta.b_1) @ theta.W_2 + theta.b_2
    assert largest(without_trajectory(theta, E_l) - out) < 1e-12


@each_size
def test_value_side_rank_one(d, length, steps):
    theta, E_l, E_t = setting(d, length, steps)
    new = value_update(theta, E_l, E_t)
    wanted = with_trajectory(theta, E_l, E_t)
    assert largest(without_trajectory(theta, E_l) - wanted) > 0.01
    assert largest(without_trajectory(new, E_l) - wanted) < 1e-12
    assert torch.linalg.matrix_rank(new.W_v - theta.W_v, rtol=1e-10) == 1
    assert new.W_1 is theta.W_1


@each_size
@pytest.mark.parametrize("residual", [False, True])
def test_ffn_side_rank_one_with_and_without_residual_stream(d, length, steps, residual):
    theta, E_l, E_t = setting(d, length, steps, residual=residual)
    new = ffn_update(theta, E_l, E_t)
    assert largest(without_trajectory(new, E_l) - with_trajectory(theta, E_l, E_t)) < 1e-12
    assert torch.linalg.matrix_rank(new.W_1 - theta.W_1, rtol=1e-10) == 1
    assert (new.b_2 is theta.b_2) is not residual


def test_value_side_cannot_carry_a_residual_stream():
    with pytest.raises(ValueError, match="use ffn_update"):
        value_update(*setting(8, 5, 1, residual=True))


@pytest.mark.parametrize("length", [1, 10, 24, 40])
def test_the_printed_update_is_stopped_by_the_softmax(length):
    """d = 16: without the softmax it is exact as soon as the token lies in the span of the others;
    with it, never.
    """
    theta, E_l, E_t = setting(16, length, 1)
    errors = {}
    for linear in (False, True):
        layer = replace(theta, linear=linear)
        wanted = with_trajectory(layer, E_l, E_t)
        errors[linear] = largest(
            without_trajectory(printed_update(layer, E_l, E_t), E_l) - wanted
        ) / largest(wanted)
    assert errors[False] > 1e-2
    assert (errors[True] < 1e-10) is (length >= 24)


def test_the_query_alone_ignores_the_token():
    theta, E_l, E_t = setting(16, 10, 1)
    new = one_layer.query_update(theta, E_l, E_t)
    assert largest(E_l[-1] @ new.W_q - E_t[0] @ theta.W_q) < 1e-12
    assert largest(without_trajectory(new, E_l) - theta(E_t[0], E_l)) < 1e-12


def test_the_printed_P_points_the_wrong_way():
    theta, E_l, E_t = setting(16, 10, 1)
    q, t = E_l[-1], E_t[0]
    printed = torch.outer(t, q) / (t @ t)  # E_t P = E_l[-1]
    turned = torch.outer(q, t) / (q @ q)  # E_l[-1] P = E_t
    assert largest(t @ printed - q) < 1e-12
    assert largest(q @ printed @ theta.W_q - t @ theta.W_q) > 0.1
    assert largest(q @ turned @ theta.W_q - t @ theta.W_q) < 1e-12


def test_equation_19_does_not_conform():
    E_l = random_tokens(10, 16, seed=1)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        # E_l† is d × |l|, Mᵀ is (|l|+1) × |l|
        torch.linalg.pinv(E_l) @ random_tokens(11, 10, seed=2)


def test_rank_one_is_the_smallest_update():
    x, target = random_tokens(2, 12, seed=3)
    W = random_tokens(12, 12, seed=4)
    delta = rank_one(x, W, target)
    assert largest(x @ (W + delta) - target) < 1e-12
    noise = random_tokens(12, 12, seed=6)
    other = delta + noise - torch.outer(x, x @ noise) / (x @ x)
    assert largest(x @ (W + other) - target) < 1e-12
    assert delta.norm() < other.norm()
    with pytest.raises(ValueError, match="x = 0"):
        rank_one(torch.zeros(12, dtype=torch.float64), W, target)


@pytest.mark.parametrize(("n", "d_x", "inner_lr"), [(1, 1, 1.0), (12, 4, 0.3), (5, 8, -0.1)])
def test_linear_attention_makes_one_explicit_gradient_step(n, d_x, inner_lr):
    X, w_true, x = (
        random_tokens(n, d_x, seed=1),
        random_tokens(1, d_x, seed=2)[0],
        random_tokens(1, d_x, seed=3)[0],
    )
    y = X @ w_true
    w = torch.zeros(d_x, dtype=torch.float64, requires_grad=True)
    loss = ((X @ w - y) ** 2).sum() / (2 * n)
    stepped = w - inner_lr * torch.autograd.grad(loss, w)[0]
    tokens = torch.cat([torch.cat([X, y[:, None]], 1), torch.cat([x, torch.zeros(1)])[None]])
    out = linear_attention(tokens, *gradient_step_weights(n, d_x, inner_lr))
    assert float(out[-1, -1]) == pytest.approx(float(stepped.detach() @ x), abs=1e-12)
    assert torch.equal(out[-1, :-1], x)


def test_draws_are_by_seed():
    assert torch.equal(random_tokens(3, 4, seed=1), random_tokens(3, 4, seed=1))
    assert not torch.equal(random_tokens(3, 4, seed=1), random_tokens(3, 4, seed=2))
    assert one_layer.random_layer(4, 8, seed=0).W_1.dtype == torch.float64


def test_relative_errors_separate_the_softmax_from_the_fit():
    found = one_layer.relative_errors([4, 24], 5, 8, seed=0)
    assert {name: table.shape for name, table in found.items()} == dict.fromkeys(found, (5, 2))
    assert (found["value-side rank one"] < 1e-12).all()
    assert (found["fit of the token"][:, 0] > 1e-3).all()
    assert (found["fit of the token"][:, 1] < 1e-10).all()
    assert (found["printed, no softmax"][:, 1] < 1e-10).all()
    assert (found["printed, softmax"] > 1e-4).all()
