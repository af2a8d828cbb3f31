"""Checkers for the notebooks' exercises: each runs the learner's function on known cases and says what to look at.

A checker returns True for a right solution, False for a wrong one and None for one not attempted (None given).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch


def check_answer_nll(attempt: Callable | None) -> bool | None:
    """Exercise: answer_nll(log_probs, start) from the log-probabilities of all suffix tokens, (S,) nats -> float.

    Right is minus their mean from `start` on, the answer's own tokens (RaML Algorithm 3).
    """
    if attempt is None:
        return say("not attempted")
    log_probs = np.array([-9.0, -7.0, -1.0, -3.0])
    got = float(attempt(log_probs, 2))
    if np.isclose(got, 2.0):
        return say("right: only the answer's own tokens count, as a mean, with the sign turned", True)
    hints = {
        5.0: "that averages the template's tokens too; start at `start`",
        -2.0: "the sign: a *negative* log-likelihood is positive",
        4.0: "that is the sum; L̂ is a mean, so that long and short answers compare",
    }
    hint = next((text for wrong, text in hints.items() if np.isclose(got, wrong)), "compare with the definition of L̂ above")
    return say(f"not yet: for {log_probs.tolist()} and start=2 you return {got:g}, expected 2; {hint}", False)


def check_copied_share(attempt: Callable | None) -> bool | None:
    """Exercise: copied_share(nll, stated_at), the share of the whole fall that comes after the answer is stated.

    nll: (|t|+1,) L̂ after every prefix, nats per token. Right is (L̂_stated - L̂_end) / (L̂_0 - L̂_end).
    """
    if attempt is None:
        return say("not attempted")
    nll = np.array([4.0, 3.0, 3.5, 1.0, 0.0])
    got = float(attempt(nll, 2))
    if np.isclose(got, 0.875):
        return say("right: what falls after the statement can be copying, and here it is 7/8 of the whole", True)
    hints = {
        0.125: "that is the share *before* the statement",
        3.5: "that is the fall in nats; divide by the whole fall",
        0.75: "that starts one token late: `nll[stated_at]` is the last value before the statement",
    }
    hint = next((text for wrong, text in hints.items() if np.isclose(got, wrong)), "which two differences make the ratio?")
    return say(f"not yet: for {nll.tolist()} and stated_at=2 you return {got:g}, expected 0.875; {hint}", False)


def check_rank_one(attempt: Callable | None) -> bool | None:
    """Exercise: rank_one(x, W, target), the smallest ΔW with x (W + ΔW) = target; x: (m,), W: (m, n), target: (n,)."""
    if attempt is None:
        return say("not attempted")
    draw = np.random.default_rng(0)
    x, W, target = draw.normal(size=5), draw.normal(size=(5, 3)), draw.normal(size=3)
    try:
        got = np.asarray(attempt(x, W, target), dtype=float)
    except ValueError as error:
        return say(f"not yet: the shapes do not fit ({error}); x is a row of 5, W 5 × 3, target a row of 3", False)
    if got.shape != W.shape:
        return say(f"not yet: ΔW must have W's shape {W.shape}, yours has {got.shape}; an outer product makes it", False)
    reached = x @ (W + got)
    if not np.allclose(reached, target):
        size = float(x @ x)
        if np.allclose(x @ got / size, target - x @ W):
            hint = "the direction is right and it is ‖x‖² times too long"
        elif np.allclose(x @ got, target):
            hint = "x ΔW is the target itself; what is missing is only the target minus x W"
        else:
            hint = "multiply your ΔW from the left with x: what should come out?"
        return say(f"not yet: x (W + ΔW) misses the target by {np.abs(reached - target).max():.2g}; {hint}", False)
    if np.linalg.matrix_rank(got, tol=1e-9) > 1:
        return say("not yet: it reaches the target, but a smaller one of rank one does too", False)
    smallest = np.outer(x, target - x @ W) / (x @ x)
    if np.linalg.norm(got) > np.linalg.norm(smallest) * (1 + 1e-9):
        return say("not yet: it reaches the target, but longer than needed; which left vector is nearest to x?", False)
    return say("right: xᵀ(target - x W)/‖x‖² is exact, of rank one, and the smallest", True)


def check_static_update(attempt: Callable | None) -> bool | None:
    """Exercise: static_update(M, D), the smallest ΔW (d, d_ff) with M ΔWᵀ = D for all rows; M: (T, d_ff), D: (T, d)."""
    if attempt is None:
        return say("not attempted")
    draw = np.random.default_rng(1)
    M, D = draw.normal(size=(4, 7)), np.vstack([np.zeros((2, 3)), draw.normal(size=(2, 3))])
    try:
        got = np.asarray(attempt(M, D), dtype=float)
    except ValueError as error:
        return say(f"not yet: the shapes do not fit ({error}); M is 4 × 7, D 4 × 3", False)
    smallest = (np.linalg.pinv(M) @ D).T
    if got.shape == smallest.T.shape and np.allclose(got, smallest.T):
        return say("nearly: that is ΔWᵀ; turn it over", False)
    if got.shape != smallest.shape:
        return say(f"not yet: ΔW must be d × d_ff = {smallest.shape}, yours is {got.shape}", False)
    if not np.allclose(M @ got.T, D):
        return say(f"not yet: M ΔWᵀ misses D by {np.abs(M @ got.T - D).max():.2g}; the pseudo-inverse of M solves it", False)
    if np.linalg.norm(got) > np.linalg.norm(smallest) * (1 + 1e-9):
        return say("not yet: exact, but not the smallest; `pinv` gives the solution without superfluous parts", False)
    return say("right: Dᵀ(Mᵀ)†, exact on every row at once, its rank no larger than the rows that change", True)


def check_attention_step(attempt: Callable | None) -> bool | None:
    """Exercise: attention_step(X, y, x, inner_lr): the prediction w·x after one gradient step from w = 0, without any w.

    X: (n, d), y: (n,), x: (d,). The loss is 1/(2n) Σ_j (w·x_j - y_j)²; write it as a sum over examples, as attention does.
    """
    if attempt is None:
        return say("not attempted")
    X, y, x, inner_lr = np.array([[1.0, 0.0], [2.0, 1.0]]), np.array([1.0, -3.0]), np.array([1.0, 2.0]), 0.2
    got = float(attempt(X, y, x, inner_lr))
    if np.isclose(got, -1.1):
        return say("right: inner_lr/n Σ_j y_j (x_j·x): values y_j weighted by keys x_j against the query x", True)
    hints = {
        -2.2: "divide by n: the loss is a mean over examples",
        1.1: "the sign: a step goes against the gradient",
        -5.5: "the step has a length: multiply by inner_lr",
        -11.0: "the step has a length, inner_lr, and the loss is a mean over n examples",
    }
    hint = next((text for wrong, text in hints.items() if np.isclose(got, wrong)), "what is ∇L at w = 0?")
    return say(f"not yet: you return {got:g}, expected -1.1; {hint}", False)


def check_inner_loop(attempt: Callable | None) -> bool | None:
    """Exercise: inner_loop(w, x, y, inner_lr, steps): w after gradient steps on mean((w x - y)^2); x, y: (K,), w a number."""
    if attempt is None:
        return say("not attempted")
    x, y = np.array([1.0, 2.0, -1.0]), np.array([2.0, 3.0, 0.5])
    got = float(attempt(0.5, x, y, 0.1, 2))
    curvature, target = np.mean(x**2), np.mean(x * y)

    def after(rate, steps):
        w = 0.5
        for _ in range(steps):
            w -= rate * (curvature * w - target)
        return w

    if np.isclose(got, after(0.2, 2)):
        return say("right: each step starts where the last one ended, and the square brings a factor 2", True)
    hints = {
        after(0.1, 2): "the square's derivative has a factor 2",
        after(0.2, 1): "that is one step, or the second one started again from w",
        after(-0.2, 2): "the sign: a step goes against the gradient",
        after(0.6, 2): "the loss is a mean over the K points, not a sum",
        0.5 - 0.4 * (curvature * 0.5 - target): "both steps use the gradient at w; the second must use that at the moved w",
    }
    hint = next((text for wrong, text in hints.items() if np.isclose(got, wrong)), "what is d/dw of mean((w x - y)^2)?")
    return say(f"not yet: after 2 steps you are at {got:.4g}, expected {after(0.2, 2):.4g}; {hint}", False)


def check_meta_gradient(attempt: Callable | None) -> bool | None:
    """Exercise: meta_gradient(w, x, y, x_q, y_q, inner_lr), d/dw of mean((w' x_q - y_q)^2), w' = w after an inner step.

    The inner loss is mean((w x - y)^2). All arguments but inner_lr are float64 tensors, w of no dimension.
    """
    if attempt is None:
        return say("not attempted")
    x, y, x_q, y_q = (torch.tensor(v, dtype=torch.float64) for v in ([1.0, -2.0], [0.5, 1.0], [3.0, 1.0], [1.0, -1.0]))
    try:
        got = float(attempt(torch.tensor(0.7, dtype=torch.float64), x, y, x_q, y_q, 0.05))
    except RuntimeError as error:
        return say(f"not yet: torch stops with '{str(error).splitlines()[0]}'; w must require a gradient", False)
    w = 0.7 - 0.05 * 2 * float((x * (0.7 * x - y)).mean())
    first = 2 * float((x_q * (w * x_q - y_q)).mean())
    second = first * (1 - 2 * 0.05 * float((x**2).mean()))
    if np.isclose(got, second):
        return say("right: the inner gradient depends on w too, which is the factor 1 - 2 inner_lr mean(x²)", True)
    if np.isclose(got, first):
        hint = "somewhere the inner gradient counts as a constant: what must torch.autograd.grad keep to differentiate it?"
        return say(f"not yet: {got:.4g} is the *first-order* meta-gradient, expected {second:.4g}; {hint}", False)
    return say(
        f"not yet: you return {got:.4g}, expected {second:.4g}; write w' as a formula in w and use the chain rule", False
    )


def check_support_size(attempt: dict[int, float] | None, measured: dict[int, float]) -> bool | None:
    """Exercise: predict, by number of shots, the query loss after the inner loop as a share of the loss before it.

    Right where every prediction lies within a factor of 2 of what is measured.
    """
    if attempt is None:
        return say("not attempted")
    if missing := sorted(set(measured) - set(attempt)):
        return say(f"not yet: predict a share for every number of shots, {missing} are missing", False)
    for shots, share in measured.items():
        print(f"{shots:3d} shots: predicted {attempt[shots]:.2f}, measured {share:.2f}")
    off = max(measured, key=lambda shots: abs(np.log(max(attempt[shots], 1e-9) / measured[shots])))
    factor = float(np.exp(abs(np.log(max(attempt[off], 1e-9) / measured[off]))))
    if factor <= 2:
        return say(f"right: every share within a factor of 2 (worst: {factor:.1f}, at {off} shots)", True)
    return say(f"not yet: off by a factor of {factor:.1f} at {off} shots; how many numbers describe one sinusoid?", False)


def check_descent(attempt: Callable | None) -> bool | None:
    """Exercise: iterates(X, y, w_0, inner_lr, steps) -> (steps + 1, d), gradient descent on 1/(2n) Σ_j (w·x_j - y_j)²."""
    if attempt is None:
        return say("not attempted")
    X, y, w_0 = np.array([[1.0, 0.0], [0.5, 2.0], [-1.0, 1.0]]), np.array([1.0, -2.0, 0.5]), np.array([1.0, -1.0])
    try:
        got = np.asarray(attempt(X, y, w_0, 0.3, 3), dtype=float)
    except ValueError as error:
        return say(f"not yet: the shapes do not fit ({error}); X is 3 × 2, y has 3 entries, w_0 has 2", False)
    if got.shape != (4, 2):
        return say(f"not yet: return w_0, …, w_3 as rows, 4 × 2; yours is {got.shape}", False)

    def descend(rate):
        rows = [w_0]
        for _ in range(3):
            rows.append(rows[-1] - rate * X.T @ (X @ rows[-1] - y) / 3)
        return np.array(rows)

    if np.allclose(got, descend(0.3)):
        return say("right: w_{k+1} = w_k - inner_lr/n Xᵀ(X w_k - y)", True)
    hints = {
        0.6: "the half in the loss cancels the square's factor 2",
        0.9: "divide by n",
        -0.3: "against the gradient, not along",
    }
    hint = next((text for rate, text in hints.items() if np.allclose(got, descend(rate))), "compare w_1 with a step by hand")
    ends = got[-1].round(3).tolist(), descend(0.3)[-1].round(3).tolist()
    return say(f"not yet: your w_3 is {ends[0]}, expected {ends[1]}; {hint}", False)


def check_displacement(attempt: Callable | None) -> bool | None:
    """Exercise: displaced(X, inner_lr, delta, steps): how far w_{k+steps} moves where w_k is moved by delta; X: (n, d)."""
    if attempt is None:
        return say("not attempted")
    X, delta = np.array([[1.0, 0.0], [0.5, 2.0], [-1.0, 1.0]]), np.array([1.0, -0.5])
    got = np.asarray(attempt(X, 0.3, delta, 2), dtype=float)
    step = np.eye(2) - 0.3 * X.T @ X / 3
    wanted = step @ step @ delta
    if got.shape == wanted.shape and np.allclose(got, wanted):
        return say("right: (I - inner_lr A)^m δ with A = XᵀX/n; the data's y do not matter", True)
    hint = "what does one step do to two starts that differ by δ? Subtract the two lines"
    if got.shape == wanted.shape and np.allclose(got, step @ delta):
        hint = "that is one step; take as many as asked"
    elif got.shape == wanted.shape and np.allclose(got, delta):
        hint = "a gradient step changes distances: the gradients at the two points differ by A δ"
    return say(f"not yet: you return {got.round(3).tolist()}, expected {wanted.round(3).tolist()}; {hint}", False)


def say(message: str, result: bool | None = None) -> bool | None:
    """Print a checker's message and pass its verdict on."""
    print(message)
    return result
