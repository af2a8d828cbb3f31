"""Optimisers as functions of the gradients so far: SGD, Adam, and one that is learned through the
unrolled inner loop.

RaML reads an LLM that writes its own trajectory as a *learned optimiser* (§2.2): not the rule of
descent is given, but a network that proposes each move. Here it is small enough to look at: a
network of one hidden layer, the same for every parameter ('coordinate-wise', Andrychowicz et al.
2016), is fed with a parameter's gradient, two running means of it, its running size, the parameter
and the time, and returns the parameter's move. It is trained so that the query loss along the
unrolled loop is small.

Deviations from Andrychowicz et al.: a feed-forward network with running means in place of an LSTM;
its output is added to a normalised momentum step, so that training starts from a working optimiser;
the loss is that of query points. As there,
gradients are inputs: the outer loop does not differentiate through them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from tqdm import tqdm

from tml_lib.meta.maml import Sampler
from tml_lib.meta.maml_mlp import Layer, Theta, gradient, query_losses
from tml_lib.records import TaskBatch

# (gradient (B, P), parameters (B, P), step from 0, state of earlier steps) -> (move (B, P), state)
Rule = Callable[[torch.Tensor, torch.Tensor, int, dict], tuple[torch.Tensor, dict]]


def sgd(lr: float) -> Rule:
    """Plain gradient descent."""
    return lambda gradient, theta, step, state: (-lr * gradient, state)


def adam(lr: float) -> Rule:
    """Adam (Kingma & Ba 2015), with bias correction, with the betas of its authors."""
    betas = (0.9, 0.999)

    def rule(gradient, theta, step, state):
        m = betas[0] * state.get("m", 0) + (1 - betas[0]) * gradient
        v = betas[1] * state.get("v", 0) + (1 - betas[1]) * gradient**2
        mean, square = m / (1 - betas[0] ** (step + 1)), v / (1 - betas[1] ** (step + 1))
        return -lr * mean / (square.sqrt() + 1e-8), {"m": m, "v": v}

    return rule


class LearnedOptimiser(nn.Module):
    """A coordinate-wise rule with weights to be trained; itself a `Rule`. decays: of the running
    means of the gradient.
    """

    decays = (0.5, 0.9)

    def __init__(self, seed: int, *, width: int = 32, lr: float = 0.02):
        super().__init__()
        self.lr = lr
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.net = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 2))
        nn.init.zeros_(self.net[2].weight)
        nn.init.zeros_(self.net[2].bias)

    def forward(self, gradient, theta, step, state):
        means = [d * state.get(d, 0) + (1 - d) * gradient for d in self.decays]
        v = 0.9 * state.get("v", 0) + 0.1 * gradient**2
        corrected = [m / (1 - d ** (step + 1)) for m, d in zip(means, self.decays, strict=True)]
        size = (v / (1 - 0.9 ** (step + 1))).sqrt() + 1e-8
        time = torch.full_like(gradient, step / 10)
        features = [gradient / size, *(m / size for m in corrected), size.log() / 5, theta, time]
        direction, log_scale = self.net(torch.stack(features, -1)).unbind(-1)
        move = -self.lr * log_scale.exp() * (corrected[0] / size + direction)
        return move, {**dict(zip(self.decays, means, strict=True)), "v": v}


def unroll(rule: Rule, theta: Theta, batch: TaskBatch, steps: int) -> list[Theta]:
    """Networks after 0..steps moves of a rule on the support losses; theta: one network per task,
    layers with a leading task axis.

    Moves may carry autograd history, the gradients that the rule is fed do not. ValueError for a
    negative number of steps.
    """
    if steps < 0:
        raise ValueError(f"steps={steps} is negative: an inner loop takes 0 or more steps")
    found, flat, state = [theta], _flat(theta), {}
    for step in range(steps):
        with torch.no_grad():
            gradients, _, _ = gradient(found[-1], batch.support_x, batch.support_y)
        move, state = rule(_flat(gradients), flat.detach(), step, state)
        flat = flat + move
        found.append(_shaped(flat, theta))
    return found


def _flat(theta: Theta) -> torch.Tensor:
    return torch.cat([part.flatten(1) for layer in theta for part in layer], 1)


def _shaped(flat: torch.Tensor, like: Theta) -> Theta:
    pieces = iter(flat.split([part[0].numel() for layer in like for part in layer], 1))
    return [Layer(*(next(pieces).view(part.shape) for part in layer)) for layer in like]


def train_optimiser(
    new_network: Callable[[int], Theta],
    sample: Sampler,
    *,
    meta_steps: int,
    steps: int,
    seed: int,
    outer_lr: float = 3e-3,
    progress: bool = False,
) -> tuple[LearnedOptimiser, list[float]]:
    """Train a learned optimiser on fresh networks and tasks; returns it and the mean query loss
    along the loop, by meta-step.

    new_network: seed -> a fresh network. FloatingPointError where the loss stops being finite.
    """
    if meta_steps < 1 or steps < 1:
        raise ValueError(
            f"meta_steps={meta_steps}, steps={steps}: both must be at least 1, or nothing is"
            " trained"
        )
    draw = torch.Generator().manual_seed(10**6 + seed)
    rule = LearnedOptimiser(seed)
    optimiser = torch.optim.Adam(rule.parameters(), lr=outer_lr)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, meta_steps)
    losses = []
    for _ in tqdm(
        range(meta_steps),
        desc="learned optimiser",
        unit="meta-step",
        disable=not progress,
        leave=False,
    ):
        batch = sample(draw)
        loss = query_losses(
            unroll(rule, fresh_networks(new_network, len(batch), draw), batch, steps)[1:], batch
        ).mean()
        if not math.isfinite(value := float(loss.detach())):
            raise FloatingPointError(
                f"the unrolled loss became {value} with outer_lr={outer_lr}: take a smaller one"
            )
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(rule.parameters(), 1.0)
        optimiser.step()
        rate.step()
        losses.append(value)
    return rule, losses


def fresh_networks(new_network: Callable[[int], Theta], n: int, draw: torch.Generator) -> Theta:
    """n networks of seeds drawn from the generator, stacked along a task axis."""
    networks = [new_network(seed) for seed in torch.randint(2**31, (n,), generator=draw).tolist()]
    return [
        Layer(*(torch.stack(parts) for parts in zip(*layers, strict=True)))
        for layers in zip(*networks, strict=True)
    ]
