"""MAML for any module and any loss: inner loop, meta-gradient, outer loop (RaML §2.2,
Algorithm 1).

Parameters are a dictionary from names to tensors, theta = parameters(model); buffers, as those of
BatchNorm, stay the module's. The inner loop takes K gradient steps on a task's support set,

    theta_0 = theta,   theta_{k+1} = theta_k - inner_lr * grad L_support(theta_k),

and the meta-gradient is the gradient of L_query(theta_K) with respect to theta. Here torch
differentiates through the whole loop, for one task, and `vmap` does the same for many tasks.
`maml_mlp` computes the same for fully connected networks by hand, several times faster.

Deviations from Finn et al. (2017): meta-gradients are clipped to length 1 (without it, one steep
batch throws the start into a region from which the inner loop diverges), Adam's outer rate is
higher and falls along a half cosine, and training is far shorter. Reptile (Nichol et al. 2018) has
no query set: its inner loop is given support and query together. ANIL (Raghu et al. 2020) adapts
the last layer only, in the inner loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch.func import functional_call, grad, vmap
from torch.nn.functional import mse_loss
from tqdm import tqdm

from tml_lib.records import TaskBatch

Parameters = dict[str, torch.Tensor]
# (theta, x (K, d), y (K, 1)) -> (): the loss of one task's K points
Loss = Callable[[Parameters, torch.Tensor, torch.Tensor], torch.Tensor]
Sampler = Callable[[torch.Generator], TaskBatch]
# (theta, tasks) -> the loss of a meta-step (), and its gradient, one tensor per parameter
GradientOf = Callable[[list[torch.Tensor], TaskBatch], tuple[torch.Tensor, Sequence[torch.Tensor]]]
METHODS = ("maml", "fomaml", "reptile", "anil", "joint")


def parameters(model: torch.nn.Module) -> Parameters:
    """A copy of the module's parameters by name; training the copy leaves the module alone."""
    return {name: part.detach().clone() for name, part in model.named_parameters()}


def task_loss(model: torch.nn.Module, loss: Callable = mse_loss) -> Loss:
    """The loss of one task as a function of the parameters: (theta, x, y) -> loss(model(x), y).

    ValueError for a model with nn.LayerNorm: torch's vmap drops terms of its second derivative.
    """
    if any(isinstance(part, torch.nn.LayerNorm) for part in model.modules()):
        raise ValueError(
            "the model has LayerNorm, through which torch's vmap computes wrong second"
            " derivatives: use nn.RMSNorm, or nn.GroupNorm(1, width), which computes the same for"
            " inputs (points, width)"
        )
    return lambda theta, x, y: loss(functional_call(model, theta, (x,)), y)


def inner_loop(
    loss: Loss,
    theta: Parameters,
    x: torch.Tensor,
    y: torch.Tensor,
    *,
    inner_lr: float,
    steps: int,
    second_order: bool = True,
    adapts: Iterable[str] | None = None,
) -> list[Parameters]:
    """theta_0, ..., theta_K of one task: K + 1 dictionaries, the first of them theta itself.

    x (K, d), y (K, 1): the task's support points. second_order=False treats the gradients as
    constants (FOMAML). adapts: names of the parameters that move; None: all; []: none.
    """
    names = list(theta) if adapts is None else list(adapts)
    points = [theta]
    for _ in range(steps):
        current = points[-1]
        gradient = grad(loss)(current, x, y)  # with respect to `current`
        if not second_order:
            gradient = {name: part.detach() for name, part in gradient.items()}
        # theta_{k+1} = theta_k - inner_lr * grad L_support(theta_k)
        moved = {name: current[name] - inner_lr * gradient[name] for name in names}
        points.append(current | moved)
    return points


def meta_gradient(
    loss: Loss,
    theta: Parameters,
    batch: TaskBatch,
    *,
    inner_lr: float,
    steps: int,
    method: str = "maml",
) -> tuple[torch.Tensor, Parameters]:
    """Mean query loss after the inner loop, (), and the meta-gradient, which the outer loop steps
    against; neither carries history.

    method: 'maml' (second order), 'fomaml' (first order), 'anil' (only the last layer adapts),
    'joint' (no inner loop: the mean loss of support and query points of all tasks), 'reptile'
    (theta - mean of theta_K in the gradient's place; its inner loop is given support and query
    points, so its query loss is not held out). Raises ValueError for a negative number of steps,
    an inner_lr that is not finite and positive or an unknown method; FloatingPointError, naming
    inner_lr, where the inner loop diverges.
    """
    check_settings(inner_lr, steps, method)
    steps = 0 if method == "joint" else steps
    settings = _inner_settings(theta, inner_lr=inner_lr, steps=steps, method=method)
    if method == "joint":
        batch = TaskBatch(batch.support_x, batch.support_y, *all_points(batch))
    if method == "reptile":
        batch = TaskBatch(*all_points(batch), batch.query_x, batch.query_y)

    def query_loss(theta, support_x, support_y, query_x, query_y):
        adapted = inner_loop(loss, theta, support_x, support_y, **settings)[-1]
        return loss(adapted, query_x, query_y), adapted

    theta = {name: part.detach().requires_grad_() for name, part in theta.items()}
    losses, adapted = vmap(query_loss, (None, 0, 0, 0, 0))(theta, *_parts(batch))
    value = losses.mean()  # over the tasks
    check_finite(value.detach(), inner_lr, steps)
    if method == "reptile":
        gradients = [(part - adapted[name].mean(0)).detach() for name, part in theta.items()]
    else:
        gradients = torch.autograd.grad(value, list(theta.values()))
    return value.detach(), dict(zip(theta, gradients, strict=True))


def _inner_settings(theta: Parameters, *, inner_lr: float, steps: int, method: str) -> dict:
    """What `inner_loop` is called with for a method."""
    return {
        "inner_lr": inner_lr,
        "steps": steps,
        "second_order": method in ("maml", "anil"),
        "adapts": last_layer(theta) if method == "anil" else None,
    }


@torch.no_grad()
def adaptation_curve(
    loss: Loss,
    theta: Parameters,
    batch: TaskBatch,
    *,
    inner_lr: float,
    steps: int,
    method: str = "maml",
) -> torch.Tensor:
    """Query loss of every task after 0..steps inner steps, (B, steps + 1); infinite where the loop
    diverged.

    method: only 'anil' makes a difference. Raises ValueError as `meta_gradient` does.
    """
    check_settings(inner_lr, steps, method)
    settings = _inner_settings(theta, inner_lr=inner_lr, steps=steps, method=method)

    def curve(x, y, query_x, query_y):
        points = inner_loop(loss, theta, x, y, **settings)
        return torch.stack([loss(point, query_x, query_y) for point in points])

    return torch.nan_to_num(vmap(curve)(*_parts(batch)), nan=math.inf, posinf=math.inf)


def meta_train(
    loss: Loss,
    theta: Parameters,
    sample: Sampler,
    *,
    inner_lr: float,
    steps: int,
    method: str = "maml",
    **outer,
) -> tuple[Parameters, list[float]]:
    """Train an initialisation on fresh task batches; returns it and the query loss at every
    meta-step.

    outer: settings of `outer_loop` (meta_steps and seed; outer_lr, stop, progress). Errors as
    `meta_gradient` and `outer_loop`.
    """

    def gradient_of(parts, batch):
        named = dict(zip(theta, parts, strict=True))
        value, gradient = meta_gradient(
            loss, named, batch, inner_lr=inner_lr, steps=steps, method=method
        )
        return value, list(gradient.values())

    check_settings(inner_lr, steps, method)
    trained, losses = outer_loop(
        list(theta.values()), gradient_of, sample, inner_lr=inner_lr, label=method, **outer
    )
    return dict(zip(theta, trained, strict=True)), losses


def outer_loop(
    theta: list[torch.Tensor],
    gradient_of: GradientOf,
    sample: Sampler,
    *,
    meta_steps: int,
    seed: int,
    inner_lr: float,
    outer_lr: float = 0.016,
    stop: int | None = None,
    label: str = "maml",
    progress: bool = False,
) -> tuple[list[torch.Tensor], list[float]]:
    """Adam against the gradients on fresh task batches; returns the parameters and the loss of
    every meta-step.

    sample: generator -> TaskBatch, as `lambda g: toy.sinusoids(25, 10, g)`. outer_lr: 0.016 suits
    small tasks; on sinusoids some seeds diverge with it, and the study takes half. stop: end after
    this many steps of the schedule of meta_steps. inner_lr: named in errors. label: the progress
    bar's. Raises ValueError for meta_steps below 1 or a stop outside 0..meta_steps,
    FloatingPointError for a gradient that is not finite.
    """
    if meta_steps < 1:
        raise ValueError(f"meta_steps={meta_steps} trains nothing: take at least 1")
    stop = meta_steps if stop is None else stop
    if not 0 <= stop <= meta_steps:
        raise ValueError(
            f"stop={stop} lies outside the schedule of meta_steps={meta_steps}: give"
            f" 0..{meta_steps}"
        )
    # so that tasks are not drawn from the numbers that initialised a network of the same seed
    draw = torch.Generator().manual_seed(10**6 + seed)
    theta = [part.detach().clone() for part in theta]
    optimiser = torch.optim.Adam(theta, lr=outer_lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, meta_steps)
    losses = []
    for _ in tqdm(range(stop), desc=label, unit="meta-step", disable=not progress, leave=False):
        loss, gradients = gradient_of(theta, sample(draw))
        for part, gradient in zip(theta, gradients, strict=True):
            part.grad = gradient
        norm = float(torch.nn.utils.clip_grad_norm_(theta, 1.0))
        if not math.isfinite(norm):
            raise FloatingPointError(
                f"the meta-gradient's norm is {norm} with inner_lr={inner_lr}: take a smaller one"
            )
        optimiser.step()
        schedule.step()
        losses.append(float(loss))
    return [part.detach() for part in theta], losses


def last_layer(theta: Parameters) -> list[str]:
    """Names of the parameters of the module that comes last: those that ANIL adapts."""
    owner = list(theta)[-1].rpartition(".")[0]
    return [name for name in theta if name.rpartition(".")[0] == owner]


def all_points(batch: TaskBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """x (B, K + Q, d) and y (B, K + Q, 1) of the tasks' K support and Q query points together."""
    x = torch.cat([batch.support_x, batch.query_x], 1)
    y = torch.cat([batch.support_y, batch.query_y], 1)
    return x, y


def check_settings(inner_lr: float, steps: int, method: str) -> None:
    """ValueError for an unknown method, a negative number of steps and an impossible inner_lr."""
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown: use one of {', '.join(METHODS)}")
    if steps < 0:
        raise ValueError(f"steps={steps} is negative: an inner loop takes 0 or more steps")
    if not (math.isfinite(inner_lr) and inner_lr > 0):
        raise ValueError(
            f"inner_lr={inner_lr} must be finite and positive: 0.01 is usual for the sinusoids"
        )


def check_finite(loss: torch.Tensor, inner_lr: float, steps: int) -> None:
    """FloatingPointError for a loss that is not finite; it names inner_lr where there was an inner
    loop.
    """
    if math.isfinite(float(loss)):
        return
    if not steps:
        raise FloatingPointError(
            f"the query loss is {float(loss)} and no inner step was taken: the parameters or the"
            " data are not finite, or too large; check them, or take a smaller outer_lr"
        )
    raise FloatingPointError(
        f"the query loss is {float(loss)} after {steps} inner steps with inner_lr={inner_lr}:"
        " the inner loop diverged; take a smaller inner_lr or fewer steps"
    )


def _parts(batch: TaskBatch) -> tuple[torch.Tensor, ...]:
    return batch.support_x, batch.support_y, batch.query_x, batch.query_y
