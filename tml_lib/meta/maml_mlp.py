"""MAML for fully connected ReLU networks, by hand: the same numbers as `maml`, several times
faster.

A network is a list of layers (weight, bias); networks adapted to B tasks carry a leading task axis.
By the chain rule the meta-gradient v_0 is a recursion back through the inner steps, in which H is
the Hessian of the support loss:

    v_K = grad L_query(theta_K)
    v_k = v_{k+1} - inner_lr * H(theta_k) v_{k+1},   k = K - 1, ..., 0

First-order MAML leaves the H terms out. H v is computed by forward-over-reverse differentiation,
written out for all tasks at once. Deviation from Finn et al. (2017), besides those of `maml`:
weights start uniform in ±1/sqrt(in).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import nn

from tml_lib.meta import maml
from tml_lib.records import TaskBatch


class Layer(NamedTuple):
    """One affine layer, x -> x @ weight + bias; a leading axis of tasks where it is adapted."""

    weight: torch.Tensor  # (in, out) or (B, in, out)
    bias: torch.Tensor  # (1, out) or (B, 1, out)


Theta = list[Layer]


# --- the network ----------------------------------------------------------------------------------


def new_mlp(sizes: Sequence[int], seed: int, *, dtype: torch.dtype = torch.float32) -> Theta:
    """A ReLU network of the given widths (input first), weights and biases uniform in
    ±1/sqrt(in).
    """
    draw = torch.Generator().manual_seed(seed)

    def uniform(rows: int, wide: int, out: int) -> torch.Tensor:
        return ((2 * torch.rand(rows, out, generator=draw) - 1) / math.sqrt(wide)).to(dtype)

    return [Layer(uniform(wide, wide, out), uniform(1, wide, out)) for wide, out in pairwise(sizes)]


def as_module(theta: Theta) -> nn.Sequential:
    """The same network as a torch module, to use with `maml`."""
    parts: list[nn.Module] = []
    for layer in theta:
        part = nn.Linear(*layer.weight.shape, dtype=layer.weight.dtype)
        with torch.no_grad():
            part.weight.copy_(layer.weight.T)
            part.bias.copy_(layer.bias[0])
        parts += [part, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def from_parameters(parameters: maml.Parameters) -> Theta:
    """Layers of the parameters, or of the gradients, that `as_module`'s network has."""
    parts = iter(parameters.values())  # weight, bias, weight, bias, ...
    return [Layer(weight.T, bias[None]) for weight, bias in zip(parts, parts, strict=True)]


def forward(theta: Theta, x: torch.Tensor) -> torch.Tensor:
    """The network's output: x (n, d) -> (n, 1); with a task axis on weights and x, (B, n, d) -> (B,
    n, 1).
    """
    for layer in theta[:-1]:
        x = torch.relu(_affine(x, layer))
    return _affine(x, theta[-1])


def _affine(x: torch.Tensor, layer: Layer) -> torch.Tensor:
    if layer.weight.dim() == 3:
        return torch.baddbmm(layer.bias, x, layer.weight)
    return x @ layer.weight + layer.bias


def query_losses(found: list[Theta], batch: TaskBatch) -> torch.Tensor:
    """Query loss of every task at every point of an inner loop, which may carry history:
    (B, steps + 1).
    """
    return torch.stack(
        [((forward(theta, batch.query_x) - batch.query_y) ** 2).mean((1, 2)) for theta in found], 1
    )


def per_task(theta: Theta, n: int) -> Theta:
    """The same network once per task: a leading axis of n, without copying."""
    return [Layer(*(part.expand(n, *part.shape) for part in layer)) for layer in theta]


# --- gradient and Hessian product -----------------------------------------------------------------


@dataclass(frozen=True)
class _Tape:
    """What backpropagation through one layer leaves behind, for Hessian products at the same
    point.
    """

    layer: Layer
    input: torch.Tensor  # (B, n, in)
    active: torch.Tensor | None  # where the ReLU before it lets through, (B, n, in) bool
    error: torch.Tensor  # dL/d(its output before the ReLU), (B, n, out)


def gradient(
    theta: Theta, x: torch.Tensor, y: torch.Tensor
) -> tuple[Theta, list[_Tape], torch.Tensor]:
    """Backpropagation by hand for B tasks: gradients of each task's mean squared error, tape of
    every layer, predictions (B, n, 1).
    """
    inputs, active, hidden = [x], [None], x
    for layer in theta[:-1]:
        hidden = torch.baddbmm(layer.bias, hidden, layer.weight).relu_()
        active.append(hidden > 0)
        inputs.append(hidden)
    predicted = torch.baddbmm(theta[-1].bias, hidden, theta[-1].weight)
    error = (predicted - y).mul_(2 / x.shape[1])
    found, tapes = [], []
    for layer, entered, passed in zip(theta[::-1], inputs[::-1], active[::-1], strict=True):
        tapes.append(_Tape(layer, entered, passed, error))
        found.append(Layer(torch.bmm(entered.mT, error), error.sum(1, keepdim=True)))
        if passed is not None:
            error = torch.bmm(error, layer.weight.mT).mul_(passed)
    return found[::-1], tapes[::-1], predicted


def hessian_product(tapes: list[_Tape], v: Theta) -> Theta:
    """H v for each task, H the Hessian of its mean squared error at the tapes' point (Pearlmutter
    1994): no matrix H is formed.

    Forward: how activations change along v. Backward: how the gradients do. A ReLU's own second
    derivative is 0.
    """
    changes: list[torch.Tensor | None] = []  # of each layer's input along v
    change = None
    for tape, along in zip(tapes, v, strict=True):
        if change is not None:
            change = change.mul_(tape.active)
        changes.append(change)
        output = torch.baddbmm(along.bias, tape.input, along.weight)
        change = output if change is None else output.baddbmm_(change, tape.layer.weight)
    change = change.mul_(2 / tapes[0].input.shape[1])  # of the error at the output
    product = []
    for tape, along, entered in zip(tapes[::-1], v[::-1], changes[::-1], strict=True):
        part = Layer(torch.bmm(tape.input.mT, change), change.sum(1, keepdim=True))
        product.append(part)
        if entered is not None:  # the data at the first layer do not change
            part.weight.baddbmm_(entered.mT, tape.error)
            change = torch.bmm(change, tape.layer.weight.mT)
            change = change.baddbmm_(tape.error, along.weight.mT).mul_(tape.active)
    return product[::-1]


# --- inner loop and meta-gradient -----------------------------------------------------------------


@torch.no_grad()
def meta_gradient(
    theta: Theta, batch: TaskBatch, *, inner_lr: float, steps: int, method: str = "maml"
) -> tuple[torch.Tensor, Theta]:
    """Mean query loss after the inner loop, and the meta-gradient, which the outer loop steps
    against, by the recursion above; methods and errors as `maml.meta_gradient`.

    Raises ValueError for a network with several outputs as well.
    """
    _check(theta, inner_lr, steps, method)
    steps = 0 if method == "joint" else steps
    x, y = maml.all_points(batch) if method == "reptile" else (batch.support_x, batch.support_y)
    if method == "joint":
        batch = TaskBatch(batch.support_x, batch.support_y, *maml.all_points(batch))
    adapted, passed = per_task(theta, len(batch)), []
    frozen = len(theta) - 1 if method == "anil" else 0  # layers that the inner loop leaves alone
    for _ in range(steps):
        found, tapes, _ = gradient(adapted, x, y)
        passed.append(tapes)
        adapted = adapted[:frozen] + minus(adapted[frozen:], found[frozen:], inner_lr)
    v, _, predicted = gradient(adapted, batch.query_x, batch.query_y)
    loss = ((predicted - batch.query_y) ** 2).mean()
    maml.check_finite(loss, inner_lr, steps)
    if method == "reptile":
        mean = [Layer(*(part.mean(0) for part in layer)) for layer in adapted]
        return loss, minus(theta, mean, 1)
    if method in ("maml", "anil"):
        for tapes in reversed(passed):
            still = [Layer(*map(torch.zeros_like, layer)) for layer in v[:frozen]]
            v = minus(v, hessian_product(tapes, still + v[frozen:]), inner_lr)
    return loss, [Layer(*(part.mean(0) for part in layer)) for layer in v]


def minus(theta: Theta, moves: Theta, rate: float) -> Theta:
    """theta - rate * moves, layer by layer."""
    return [
        Layer(*(torch.sub(part, step, alpha=rate) for part, step in zip(layer, move, strict=True)))
        for layer, move in zip(theta, moves, strict=True)
    ]


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
    found = [theta if theta[0].weight.dim() == 3 else per_task(theta, len(batch))]
    frozen = len(theta) - 1 if method == "anil" else 0
    for _ in range(steps):
        gradients, _, _ = gradient(found[-1], batch.support_x, batch.support_y)
        found.append(found[-1][:frozen] + minus(found[-1][frozen:], gradients[frozen:], inner_lr))
    return found


@torch.no_grad()
def adaptation_curve(
    theta: Theta, batch: TaskBatch, *, inner_lr: float, steps: int, method: str = "maml"
) -> torch.Tensor:
    """Query loss of every task after 0..steps inner steps, (B, steps + 1); infinite where the loop
    diverged.
    """
    found = adapt(theta, batch, inner_lr=inner_lr, steps=steps, method=method)
    return torch.nan_to_num(query_losses(found, batch), nan=math.inf, posinf=math.inf)


def meta_train(
    theta: Theta,
    sample: maml.Sampler,
    *,
    inner_lr: float,
    steps: int,
    method: str = "maml",
    **outer,
) -> tuple[Theta, list[float]]:
    """Train an initialisation on fresh task batches; returns it and the query loss at every
    meta-step.

    outer: settings of `maml.outer_loop` (meta_steps and seed; outer_lr, stop, progress). Errors as
    `meta_gradient` and `maml.outer_loop`.
    """

    def gradient_of(parts, batch):
        loss, layers = meta_gradient(
            _layers(parts), batch, inner_lr=inner_lr, steps=steps, method=method
        )
        return loss, [part for layer in layers for part in layer]

    _check(theta, inner_lr, steps, method)
    parts = [part for layer in theta for part in layer]
    trained, losses = maml.outer_loop(
        parts, gradient_of, sample, inner_lr=inner_lr, label=method, **outer
    )
    return _layers(trained), losses


def _layers(parts: list[torch.Tensor]) -> Theta:
    following = iter(parts)
    return [Layer(weight, bias) for weight, bias in zip(following, following, strict=True)]


def _check(theta: Theta, inner_lr: float, steps: int, method: str) -> None:
    outputs = theta[-1].weight.shape[-1]
    if outputs != 1:
        raise ValueError(
            f"the network has {outputs} outputs, but targets have one: end its widths in 1"
        )
    maml.check_settings(inner_lr, steps, method)
