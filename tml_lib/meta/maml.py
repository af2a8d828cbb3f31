"""MAML: the inner loop, second-order and first-order meta-gradients, Reptile, ANIL (RaML §2.2,
Algorithm 1).

A network is a list of tensors theta = [W_1, b_1, ..., W_L, b_L], W: (in, out), b: (1, out);
networks adapted to B tasks carry a leading task axis. The inner loop takes K gradient steps on each
task's support set,

    theta_0 = theta,   theta_{k+1} = theta_k - inner_lr * grad L_support(theta_k),

and the meta-gradient is that of the query loss L(theta_K) with respect to theta. By the chain rule
it is a recursion back through the steps, in which H is the Hessian of the support loss:

    v_K = grad L_query(theta_K),   v_k = v_{k+1} - inner_lr * H(theta_k) v_{k+1},   meta-gradient =
    v_0.

First-order MAML leaves the H terms out. There are two paths with the same results: a readable one,
in which torch differentiates through the loop for one task and `vmap` does so for many, and a fast
one, which is the recursion above with H v by forward-over-reverse differentiation, written out for
all tasks at once.

Deviations from Finn et al. (2017): meta-gradients are clipped to length 1 (without it, one steep
batch throws the start into a region from which the inner loop diverges), Adam's outer rate is
higher and falls along a half cosine, weights start uniform in ±1/sqrt(in), and training is far
shorter. Reptile (Nichol et al. 2018) has no query set: its inner loop is given support and query
together. ANIL (Raghu et al. 2020) adapts the last layer only, in the inner loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from tqdm import tqdm

from tml_lib.records import TaskBatch

Theta = list[torch.Tensor]
METHODS = ("maml", "fomaml", "reptile", "anil", "joint")
Sampler = Callable[[torch.Generator], TaskBatch]


# --- the network ----------------------------------------------------------------------------------


def new_mlp(sizes: Sequence[int], seed: int, *, dtype: torch.dtype = torch.float32) -> Theta:
    """A ReLU network of the given widths (input first), weights and biases uniform in
    ±1/sqrt(in).
    """
    draw = torch.Generator().manual_seed(seed)
    theta = []
    for wide, out in pairwise(sizes):
        theta += [
            (2 * torch.rand(rows, out, generator=draw) - 1) / math.sqrt(wide) for rows in (wide, 1)
        ]
    return [part.to(dtype) for part in theta]


def forward(theta: Theta, x: torch.Tensor) -> torch.Tensor:
    """The network's output: x (n, d) -> (n, 1); with a task axis on weights and x, (B, n, d) -> (B,
    n, 1).
    """
    for W, b in zip(theta[:-2:2], theta[1:-2:2], strict=True):
        x = torch.relu(_affine(x, W, b))
    return _affine(x, theta[-2], theta[-1])


def _affine(x: torch.Tensor, W: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.baddbmm(b, x, W) if W.dim() == 3 else x @ W + b


def mse(theta: Theta, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean squared error of one network on one task."""
    return ((forward(theta, x) - y) ** 2).mean()


def per_task(theta: Theta, n: int) -> Theta:
    """The same network once per task: a leading axis of n, without copying."""
    return [part.expand(n, *part.shape) for part in theta]


# --- the readable path ----------------------------------------------------------------------------


def meta_gradient_readable(
    theta: Theta, batch: TaskBatch, *, inner_lr: float, steps: int, method: str = "maml"
) -> tuple[torch.Tensor, Theta]:
    """Mean query loss after the inner loop, and its gradient with respect to theta: torch
    differentiates the whole loop.

    Arguments, returns and errors as `meta_gradient`; Reptile, which has no query loss to
    differentiate, is a ValueError.
    """
    _check(theta, inner_lr, steps, method)
    batch = all_points(batch) if method == "joint" else batch
    if method == "reptile":
        raise ValueError(
            "method='reptile' has no meta-gradient to differentiate: use `meta_gradient`"
        )
    theta = [part.detach().requires_grad_() for part in theta]

    def query_loss(support_x, support_y, query_x, query_y):
        adapted = theta
        for _ in range(0 if method == "joint" else steps):
            slopes = torch.func.grad(mse)(adapted, support_x, support_y)
            if method == "fomaml":
                slopes = [slope.detach() for slope in slopes]
            moves = [inner_lr * slope for slope in slopes]
            if method == "anil":
                moves[:-2] = [torch.zeros_like(move) for move in moves[:-2]]
            adapted = [part - move for part, move in zip(adapted, moves, strict=True)]
        return mse(adapted, query_x, query_y)

    loss = torch.vmap(query_loss)(
        batch.support_x, batch.support_y, batch.query_x, batch.query_y
    ).mean()
    _check_finite(loss.detach(), inner_lr, steps)
    return loss.detach(), list(torch.autograd.grad(loss, theta))


# --- the fast path --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tape:
    """What backpropagation through one evaluation leaves behind, for Hessian products at the same
    point.
    """

    inputs: list[torch.Tensor]  # of each layer, (B, n, in)
    # of each hidden layer, (B, n, out) bool: where the ReLU lets through
    active: list[torch.Tensor]
    errors: list[torch.Tensor]  # dL/d(output before the ReLU) of each layer, (B, n, out)


def gradient(theta: Theta, x: torch.Tensor, y: torch.Tensor) -> tuple[Theta, _Tape, torch.Tensor]:
    """Backpropagation by hand for B tasks: gradients of each task's mean squared error, tape,
    predictions (B, n, 1).
    """
    inputs, active, hidden = [x], [], x
    for W, b in zip(theta[:-2:2], theta[1:-2:2], strict=True):
        hidden = torch.baddbmm(b, hidden, W).relu_()
        active.append(hidden > 0)
        inputs.append(hidden)
    predicted = torch.baddbmm(theta[-1], hidden, theta[-2])
    error = (predicted - y).mul_(2 / x.shape[1])
    slopes: Theta = [torch.empty(0)] * len(theta)
    errors = [error] * len(inputs)
    for layer in range(len(inputs) - 1, -1, -1):
        errors[layer] = error
        slopes[2 * layer] = torch.bmm(inputs[layer].mT, error)
        slopes[2 * layer + 1] = error.sum(1, keepdim=True)
        if layer:
            error = torch.bmm(error, theta[2 * layer].mT).mul_(active[layer - 1])
    return slopes, _Tape(inputs, active, errors), predicted


def hessian_product(theta: Theta, tape: _Tape, v: Theta) -> Theta:
    """H v for each task, H the Hessian of its mean squared error at theta (Pearlmutter 1994): no
    matrix H is formed.

    Forward: how activations change along v. Backward: how the gradients do. A ReLU's own second
    derivative is 0.
    """
    n, last = tape.inputs[0].shape[1], len(tape.inputs) - 1
    # of each layer's inputs along v; those of x do not change
    changes: list[torch.Tensor | None] = [None] * (last + 1)
    for layer in range(last + 1):
        change = torch.baddbmm(v[2 * layer + 1], tape.inputs[layer], v[2 * layer])
        if layer:
            change = change.baddbmm_(changes[layer], theta[2 * layer])
        if layer < last:
            changes[layer + 1] = change.mul_(tape.active[layer])
    change = change.mul_(2 / n)  # of the error at the output
    product: Theta = [torch.empty(0)] * len(theta)
    for layer in range(last, -1, -1):
        product[2 * layer] = torch.bmm(tape.inputs[layer].mT, change)
        product[2 * layer + 1] = change.sum(1, keepdim=True)
        if layer:
            product[2 * layer].baddbmm_(changes[layer].mT, tape.errors[layer])
            change = torch.bmm(change, theta[2 * layer].mT).baddbmm_(
                tape.errors[layer], v[2 * layer].mT
            )
            change.mul_(tape.active[layer - 1])
    return product


@torch.no_grad()
def meta_gradient(
    theta: Theta, batch: TaskBatch, *, inner_lr: float, steps: int, method: str = "maml"
) -> tuple[torch.Tensor, Theta]:
    """Mean query loss after the inner loop, and the direction in which the outer loop descends, by
    the recursion above.

    method: 'maml' (second order), 'fomaml' (H v left out), 'anil' (only the last layer adapts),
    'joint' (no inner loop: the mean loss of support and query points of all tasks), 'reptile'
    (theta - mean of theta_K; the inner loop takes in support and query, so that its query loss is
    no held-out one). Raises ValueError for a negative number of steps, an inner_lr that is not
    finite and positive, an unknown method or a network with several outputs; FloatingPointError,
    naming inner_lr, where the loop diverges.
    """
    _check(theta, inner_lr, steps, method)
    steps = 0 if method == "joint" else steps
    batch = all_points(batch) if method == "joint" else batch
    x, y = batch.support_x, batch.support_y
    if method == "reptile":
        both = all_points(batch)
        x, y = both.query_x, both.query_y
    adapted, passed = per_task(theta, len(batch)), []
    frozen = len(theta) - 2 if method == "anil" else 0
    for _ in range(steps):
        slopes, tape, _ = gradient(adapted, x, y)
        passed.append((adapted, tape))
        adapted = adapted[:frozen] + _minus(adapted[frozen:], slopes[frozen:], inner_lr)
    v, _, predicted = gradient(adapted, batch.query_x, batch.query_y)
    loss = ((predicted - batch.query_y) ** 2).mean()
    _check_finite(loss, inner_lr, steps)
    if method == "reptile":
        return loss, [part - moved.mean(0) for part, moved in zip(theta, adapted, strict=True)]
    if method in ("maml", "anil"):
        for before, tape in reversed(passed):
            through = [torch.zeros_like(part) for part in v[:frozen]] + v[frozen:]
            v = _minus(v, hessian_product(before, tape, through), inner_lr)
    return loss, [part.mean(0) for part in v]


def all_points(batch: TaskBatch) -> TaskBatch:
    """The same tasks, with the support points among the query points as well."""
    x, y = (
        torch.cat([batch.support_x, batch.query_x], 1),
        torch.cat([batch.support_y, batch.query_y], 1),
    )
    return TaskBatch(batch.support_x, batch.support_y, x, y)


def _minus(parts: Theta, moves: Theta, rate: float) -> Theta:
    return [torch.sub(part, move, alpha=rate) for part, move in zip(parts, moves, strict=True)]


@torch.no_grad()
def adapt(
    theta: Theta, batch: TaskBatch, *, inner_lr: float, steps: int, method: str = "maml"
) -> list[Theta]:
    """The inner loop on the support sets: networks after 0, 1, ..., `steps` steps, each with a
    leading task axis.

    theta: one network for all tasks, or one per task. method: only 'anil' makes a difference.
    Diverging is allowed here: figures show it.
    """
    _check(theta, inner_lr, steps, method)
    found = [theta if theta[0].dim() == 3 else per_task(theta, len(batch))]
    frozen = len(theta) - 2 if method == "anil" else 0
    for _ in range(steps):
        slopes, _, _ = gradient(found[-1], batch.support_x, batch.support_y)
        found.append(found[-1][:frozen] + _minus(found[-1][frozen:], slopes[frozen:], inner_lr))
    return found


@torch.no_grad()
def adaptation_curve(
    theta: Theta, batch: TaskBatch, *, inner_lr: float, steps: int, method: str = "maml"
) -> torch.Tensor:
    """Query loss of every task after 0..steps inner steps, (B, steps + 1); infinite where the loop
    diverged.
    """
    found = adapt(theta, batch, inner_lr=inner_lr, steps=steps, method=method)
    losses = [
        ((forward(parts, batch.query_x) - batch.query_y) ** 2).mean((1, 2)) for parts in found
    ]
    return torch.nan_to_num(torch.stack(losses, 1), nan=math.inf, posinf=math.inf)


def _check(theta: Theta, inner_lr: float, steps: int, method: str) -> None:
    if theta[-1].shape[-1] != 1:
        raise ValueError(
            f"the network has {theta[-1].shape[-1]} outputs, but targets have one: end its widths"
            " in 1"
        )
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown: use one of {', '.join(METHODS)}")
    if steps < 0:
        raise ValueError(f"steps={steps} is negative: an inner loop takes 0 or more steps")
    if not (math.isfinite(inner_lr) and inner_lr > 0):
        raise ValueError(
            f"inner_lr={inner_lr} must be finite and positive: 0.01 is usual for the sinusoids"
        )


def _check_finite(loss: torch.Tensor, inner_lr: float, steps: int) -> None:
    if not math.isfinite(float(loss)):
        raise FloatingPointError(
            f"the query loss is {float(loss)} after {steps} inner steps with inner_lr={inner_lr}:"
            " the inner loop diverged; take a smaller inner_lr or fewer steps"
        )


# --- the outer loop -------------------------------------------------------------------------------


def meta_train(
    theta: Theta,
    sample: Sampler,
    *,
    meta_steps: int,
    inner_lr: float,
    steps: int,
    seed: int,
    method: str = "maml",
    outer_lr: float = 0.016,
    stop: int | None = None,
    progress: bool = False,
) -> tuple[Theta, list[float]]:
    """Train an initialisation by Adam on fresh task batches; returns it and the query loss at every
    meta-step.

    sample: generator -> TaskBatch, as `lambda g: toy.sinusoids(25, 10, g)`. outer_lr: 0.016 suits
    small tasks; on sinusoids some seeds diverge with it, and `meta_study` takes half. Errors as
    `meta_gradient`.
    """
    if meta_steps < 1:
        raise ValueError(f"meta_steps={meta_steps} trains nothing: take at least 1")
    _check(theta, inner_lr, steps, method)
    # apart from the stream of a network with the same seed
    draw = torch.Generator().manual_seed(10**6 + seed)
    theta = [part.clone() for part in theta]
    optimiser = torch.optim.Adam(theta, lr=outer_lr)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, meta_steps)
    losses = []
    for _ in tqdm(
        range(meta_steps if stop is None else stop),
        desc=method,
        unit="meta-step",
        disable=not progress,
        leave=False,
    ):
        loss, slopes = meta_gradient(
            theta, sample(draw), inner_lr=inner_lr, steps=steps, method=method
        )
        for part, slope in zip(theta, slopes, strict=True):
            part.grad = slope
        length = torch.nn.utils.clip_grad_norm_(theta, 1.0)
        if not math.isfinite(float(length)):
            raise FloatingPointError(
                f"the meta-gradient's length is {float(length)} with inner_lr={inner_lr}: take a"
                " smaller one"
            )
        optimiser.step()
        rate.step()
        losses.append(float(loss))
    return [part.detach() for part in theta], losses
