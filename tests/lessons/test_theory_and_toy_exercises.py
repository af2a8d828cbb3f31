"""Checkers of the exercises on theory, toy MAML and descent: right ones pass, each likely mistake
gets its hint.
"""

import numpy as np
import pytest
import torch

from tml_lib.lessons.exercises import (
    gradient_descent_written_out,
    theory,
    toy_maml,
    update_or_descent,
)


def rank_one(x, W, target):
    return np.outer(x, target - x @ W) / (x @ x)


def longer(M, D):
    """Exact, with a superfluous part."""
    return (np.linalg.pinv(M) @ D).T + np.ones((3, 7)) @ (np.eye(7) - np.linalg.pinv(M) @ M)


@pytest.mark.parametrize(
    ("check", "right", "wrong", "hint"),
    [
        (theory.check_rank_one, rank_one, lambda x, W, t: np.outer(x, t - x @ W), "times too long"),
        (
            theory.check_rank_one,
            rank_one,
            lambda x, W, t: np.outer(x, t - x @ W) / np.linalg.norm(x),
            "must be squared",
        ),
        (theory.check_rank_one, rank_one, lambda x, W, t: np.outer(x, t) / (x @ x), "minus x W"),
        (theory.check_rank_one, rank_one, lambda x, W, t: rank_one(x, W, t).T, "W's shape"),
        (theory.check_rank_one, rank_one, lambda x, W, t: 0 * W, "misses the target"),
        (
            theory.check_rank_one,
            rank_one,
            lambda x, W, t: np.eye(5, 3) * (t - x @ W) / x[:3],
            "of rank one does too",
        ),
        (
            theory.check_rank_one,
            rank_one,
            lambda x, W, t: np.outer(np.sign(x), t - x @ W) / abs(x).sum(),
            "longer than needed",
        ),
        (theory.check_rank_one, rank_one, lambda x, W, t: x @ t, "shapes do not fit"),
        (
            theory.check_static_update,
            lambda M, D: (np.linalg.pinv(M) @ D).T,
            lambda M, D: np.linalg.pinv(M) @ D,
            "turn it over",
        ),
        (
            theory.check_static_update,
            lambda M, D: (np.linalg.pinv(M) @ D).T,
            lambda M, D: D.T @ M,
            "misses D",
        ),
        (
            theory.check_static_update,
            lambda M, D: (np.linalg.pinv(M) @ D).T,
            longer,
            "not the smallest",
        ),
        (
            theory.check_static_update,
            lambda M, D: (np.linalg.pinv(M) @ D).T,
            lambda M, D: D,
            "must be d × d_ff",
        ),
        (
            theory.check_static_update,
            lambda M, D: (np.linalg.pinv(M) @ D).T,
            lambda M, D: M @ D,
            "shapes do not fit",
        ),
        (
            theory.check_attention_step,
            lambda X, y, x, lr: lr / len(X) * y @ X @ x,
            lambda X, y, x, lr: lr * y @ X @ x,
            "by n",
        ),
        (
            theory.check_attention_step,
            lambda X, y, x, lr: lr / len(X) * y @ X @ x,
            lambda X, y, x, lr: y @ X @ x / 2,
            "inner_lr",
        ),
        (
            theory.check_attention_step,
            lambda X, y, x, lr: lr / len(X) * y @ X @ x,
            lambda X, y, x, lr: -lr / 2 * y @ X @ x,
            "sign",
        ),
    ],
)
def test_the_theory_notebooks_checkers(check, right, wrong, hint, capsys):
    assert check(None) is None
    assert check(right) is True
    assert check(wrong) is False
    assert hint in capsys.readouterr().out


def loop(rate=1.0, restart=False, total=False):
    def attempt(w, x, y, inner_lr, steps):
        start = w
        for _ in range(steps):
            at = start if restart else w
            gradient = 2 * x * (at * x - y)
            w = w - rate * inner_lr * (gradient.sum() if total else gradient.mean())
        return w

    return attempt


@pytest.mark.parametrize(
    ("attempt", "right", "says"),
    [
        (None, None, "not attempted"),
        (loop(), True, "factor 2"),
        (loop(0.5), False, "the square's derivative has a factor 2"),
        (loop(-1), False, "against the gradient"),
        (loop(total=True), False, "a mean over the K points"),
        (loop(restart=True), False, "both steps use the gradient at w"),
        (lambda w, x, y, inner_lr, steps: loop()(w, x, y, inner_lr, 1), False, "that is one step"),
        (lambda *_: 7.0, False, "what is d/dw"),
    ],
)
def test_inner_loop_checker(attempt, right, says, capsys):
    assert toy_maml.check_inner_loop(attempt) is right
    assert says in capsys.readouterr().out


def meta(create_graph=True, require=True):
    def attempt(w, x, y, x_q, y_q, inner_lr):
        w = w.clone().requires_grad_(require)
        (gradient,) = torch.autograd.grad(((w * x - y) ** 2).mean(), w, create_graph=create_graph)
        return torch.autograd.grad(((((w - inner_lr * gradient) * x_q) - y_q) ** 2).mean(), w)[0]

    return attempt


@pytest.mark.parametrize(
    ("attempt", "right", "says"),
    [
        (None, None, "not attempted"),
        (meta(), True, "right"),
        (meta(create_graph=False), False, "*first-order* meta-gradient"),
        (meta(require=False), False, "w must require a gradient"),
        (lambda *_: 0.0, False, "chain rule"),
    ],
)
def test_meta_gradient_checker(attempt, right, says, capsys):
    assert toy_maml.check_meta_gradient(attempt) is right
    assert says in capsys.readouterr().out


def best_start(power=2, factor=2, outer=True):
    def attempt(c, m, inner_lr):
        weight = c**outer * (1 - factor * inner_lr * c) ** power
        return np.sum(weight * m) / np.sum(weight)

    return attempt


@pytest.mark.parametrize(
    ("attempt", "right", "says"),
    [
        (None, None, "not attempted"),
        (best_start(), True, "right"),
        (best_start(power=0), False, "before adapting"),
        (best_start(power=1), False, "square"),
        (best_start(factor=1), False, "2 c (w - m)"),
        (best_start(outer=False), False, "the factor c"),
        (lambda c, m, lr: c * m, False, "one number"),
        (lambda c, m, lr: 0.0, False, "the derivative"),
    ],
)
def test_best_start_checker(attempt, right, says, capsys):
    assert toy_maml.check_best_start(attempt) is right
    assert says in capsys.readouterr().out


def step_cosine(sign=-1, before=1.0, lengths=True, matrices=True):
    def attempt(D_before, D_after, H_a, g):
        D = D_after - before * D_before
        S, gradient = (np.linalg.pinv(H_a) @ D).T, g.T @ H_a
        if not matrices:
            S, gradient = D, g
        size = np.linalg.norm(S) * np.linalg.norm(gradient) if lengths else 1.0
        return sign * np.sum(S * gradient) / size

    return attempt


@pytest.mark.parametrize(
    ("attempt", "right", "says"),
    [
        (None, None, "not attempted"),
        (step_cosine(), True, "right"),
        (step_cosine(sign=1), False, "the sign"),
        (step_cosine(before=0.0), False, "its change since token i-1"),
        (step_cosine(lengths=False), False, "divide by both lengths"),
        (step_cosine(matrices=False), False, "made with H_a"),
        (lambda D_before, D_after, H_a, g: g, False, "one number"),
        (lambda D_before, D_after, H_a, g: 2.0, False, "check H_a"),
    ],
)
def test_step_cosine_checker(attempt, right, says, capsys):
    assert update_or_descent.check_step_cosine(attempt) is right
    assert says in capsys.readouterr().out


def descend(rate=1.0):
    def attempt(X, y, w_0, inner_lr, steps):
        rows = [w_0]
        for _ in range(steps):
            rows.append(rows[-1] - rate * inner_lr * X.T @ (X @ rows[-1] - y) / len(y))
        return np.array(rows)

    return attempt


@pytest.mark.parametrize(
    ("attempt", "right", "says"),
    [
        (None, None, "not attempted"),
        (descend(), True, "right"),
        (descend(2), False, "cancels the square's factor 2"),
        (descend(3), False, "divide by n"),
        (descend(-1), False, "not along"),
        (lambda *settings: descend()(*settings)[1:], False, "as rows, 4 × 2"),
        (lambda X, y, w_0, inner_lr, steps: X @ y, False, "the shapes do not fit"),
        (lambda *_: np.zeros((4, 2)), False, "compare w_1"),
    ],
)
def test_descent_checker(attempt, right, says, capsys):
    assert gradient_descent_written_out.check_descent(attempt) is right
    assert says in capsys.readouterr().out


@pytest.mark.parametrize(
    ("attempt", "right", "says"),
    [
        (None, None, "not attempted"),
        (
            lambda X, lr, d, m: np.linalg.matrix_power(np.eye(2) - lr * X.T @ X / len(X), m) @ d,
            True,
            "right",
        ),
        (lambda X, lr, d, m: (np.eye(2) - lr * X.T @ X / len(X)) @ d, False, "that is one step"),
        (lambda X, lr, d, m: d, False, "changes distances"),
        (lambda X, lr, d, m: 0 * d, False, "Subtract the two lines"),
    ],
)
def test_displacement_checker(attempt, right, says, capsys):
    assert gradient_descent_written_out.check_displacement(attempt) is right
    assert says in capsys.readouterr().out
