"""Second-order meta-gradients, by both of the kit's paths, against the package `higher`."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable

import torch

from tml_lib.data import toy
from tml_lib.meta import maml, maml_mlp
from tml_lib.records import TaskBatch
from tml_lib.tools.bench.shared import figure_rows, seconds_of
from tml_lib.tools.plan_cpu import one_thread

# inner steps -> how many times faster than higher: readable path (`maml`), fast path (`maml_mlp`)
BARS = {1: (12, 25), 5: (8, 18)}
META_STEPS = 3000  # of a full training run


@one_thread()
def maml_rows(*, rounds: int = 5, say: Callable[[str], None] = print) -> list[dict]:
    """Second-order meta-gradients of both paths against `higher`, and a training run; one thread,
    float32.

    Sinusoids, a 2 × 40 network, 10 shots, 25 tasks a meta-step, gradients only; medians over rounds
    of the ratio in a round.
    """
    if importlib.util.find_spec("higher") is None:
        raise LookupError(
            "the maml benchmark compares with the package `higher`: pip install higher==0.2.1"
        )
    theta, rows = maml_mlp.new_mlp([1, 40, 40, 1], 0), []
    for steps in BARS:
        rows += _against_higher(theta, steps, rounds=rounds, say=say)
    say("a training run")
    return [*rows, *_training_rows(theta)]


def _against_higher(
    theta: maml_mlp.Theta, steps: int, *, rounds: int, say: Callable[[str], None]
) -> list[dict]:
    """Both paths against `higher` at so many inner steps."""
    batch = toy.sinusoids(25, 10, torch.Generator().manual_seed(0))
    readable, fast, rates = [], [], []
    for turn in range(rounds):
        seconds = _round(theta, batch, steps)
        readable.append(seconds["higher"] / seconds["readable"])
        fast.append(seconds["higher"] / seconds["fast"])
        rates.append(1 / seconds["fast"])
        say(
            f"maml, inner steps: {steps}, round {turn + 1}/{rounds}: fast {fast[-1]:.1f} times"
            " higher"
        )
    setting = (
        f"sinusoids, 2 × 40, 10 shots, 25 tasks (higher: one by one), inner steps: {steps},"
        " one thread, float32"
    )
    readable_bar, fast_bar = BARS[steps]
    figures = [
        ("maml: readable path, speed against higher", readable, "×", f"≥ {readable_bar}"),
        ("maml: fast path, speed against higher", fast, "×", f"≥ {fast_bar}"),
        ("maml: fast path, meta-gradients a second", rates, "1/s", ""),
    ]
    return figure_rows(figures, setting)


def _round(theta: maml_mlp.Theta, batch: TaskBatch, steps: int) -> dict[str, float]:
    """Seconds of one meta-gradient by each of the three ways, in turns."""
    model = maml_mlp.as_module(theta)
    generic = functools.partial(maml.meta_gradient, maml.task_loss(model))

    def mean(way: Callable, parameters, repeats: int) -> float:
        def call():
            return way(parameters, batch, inner_lr=0.01, steps=steps)

        call()  # warm-up
        return seconds_of(lambda: [call() for _ in range(repeats)]) / repeats

    return {
        "higher": mean(higher_gradient, model, 2),
        "readable": mean(generic, maml.parameters(model), 20),
        "fast": mean(maml_mlp.meta_gradient, theta, 20),
    }


def higher_gradient(
    net: torch.nn.Module, batch: TaskBatch, *, inner_lr: float, steps: int
) -> list[torch.Tensor]:
    """The meta-gradient as `higher`'s documentation computes it: one differentiable copy and inner
    loop per task.
    """
    import higher

    net.zero_grad()
    optimiser = torch.optim.SGD(net.parameters(), lr=inner_lr)
    for task in range(len(batch)):
        sx, sy, qx, qy = (
            t[task] for t in (batch.support_x, batch.support_y, batch.query_x, batch.query_y)
        )
        with higher.innerloop_ctx(net, optimiser, copy_initial_weights=False) as (copy, inner):
            for _ in range(steps):
                inner.step(((copy(sx) - sy) ** 2).mean())
            (((copy(qx) - qy) ** 2).mean() / len(batch)).backward()
    return [p.grad for p in net.parameters()]


def _training_rows(theta: maml_mlp.Theta) -> list[dict]:
    """A full training run on the fast path: its seconds, and the loss before and after adapting to
    unseen tasks.
    """
    trained: list = []

    def train():
        settings = {"meta_steps": META_STEPS, "inner_lr": 0.02, "steps": 5, "outer_lr": 0.008}
        found = maml_mlp.meta_train(theta, lambda g: toy.sinusoids(25, 10, g), seed=0, **settings)
        trained.append(found[0])

    seconds = seconds_of(train)
    unseen = toy.sinusoids(600, 10, torch.Generator().manual_seed(1), queries=100)
    curve = maml_mlp.adaptation_curve(trained[0], unseen, inner_lr=0.02, steps=5).mean(0).tolist()
    setting = f"{META_STEPS} meta-steps of 5 inner steps, Adam, one thread; 600 unseen tasks"
    figures = [
        ("maml: a full training run", [seconds], "s", "≤ 40"),
        ("maml: query loss before adapting", curve[:1], "squared error", ""),
        ("maml: query loss after 5 inner steps", curve[-1:], "squared error", ""),
    ]
    return figure_rows(figures, setting)
