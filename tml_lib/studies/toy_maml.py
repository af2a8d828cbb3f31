"""The study behind notebook 02: meta-learning on sinusoids.

Each seed is one record: everything is trained anew from it and measured on unseen tasks of its own.
Kept after every seed, so that an interrupted study resumes. Deviation from the paper: this is not
in it; it makes its table of analogies literal, in models where both sides can be computed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tml_lib.data import toy
from tml_lib.meta import maml, maml_mlp, optimisers
from tml_lib.records import TaskBatch
from tml_lib.studies import engine
from tml_lib.studies.engine import Study

SIZES = (1, 40, 40, 1)  # Finn et al. (2017), §5.1
META_BATCH = 25
SHOTS = 10
STEPS = 5  # inner steps of meta-training
# In training, chosen on seeds that are not measured: MAML did not train at 0.05, and FOMAML
# diverges at 0.02.
INNER_LR = 0.02
FOMAML_INNER_LR = 0.005
OUTER_LR = 0.008  # at 0.016 one of five seeds diverges
SHOTS_SWEPT = (1, 2, 5, 10, 20)
RATES_SWEPT = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16)
RATES_TUNED = (0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.01, 0.03)  # of SGD and Adam
OPTIMISER_STEPS = 10  # moves of the learned optimiser in training
OPTIMISER_BATCH = 8
UNSEEN = 256  # tasks that a seed is measured on
TUNING = 1024  # other tasks, on which learning rates of the rivals are chosen


def sample(draw: torch.Generator) -> TaskBatch:
    """A meta-batch of sinusoids, 10 shots."""
    return toy.sinusoids(META_BATCH, SHOTS, draw)


def new_network(seed: int) -> maml_mlp.Theta:
    """A fresh 2 × 40 network."""
    return maml_mlp.new_mlp(SIZES, seed)


def unseen_sinusoids(n: int, seed: int) -> TaskBatch:
    """n tasks with up to 20 shots and 100 query points, drawn apart from those of training."""
    return toy.sinusoids(
        n, max(SHOTS_SWEPT), torch.Generator().manual_seed(2 * 10**6 + seed), queries=100
    )


def sinusoid_record(seed: int, folder: Path, *, meta_steps: int, optimiser_steps: int) -> dict:
    """One seed of M1 and M2: starts by every method, a learned optimiser, and their query losses on
    unseen tasks.

    'at_five', 'at_ten', 'start', 'one_shot', 'blind': per-task losses; the rest are means over
    tasks for figures.
    """
    tasks, others = unseen_sinusoids(UNSEEN, seed), unseen_sinusoids(TUNING, seed + 5 * 10**5)
    record: dict = {"curves": {}, "at_five": {}, "seconds": {}, "rates": {}}
    starts = {}
    for method in maml.METHODS:
        began = time.perf_counter()
        starts[method], _ = _train(seed, method, meta_steps=meta_steps)
        record["seconds"][method] = time.perf_counter() - began
        rate = record["rates"][method] = best_rate(starts[method], others.with_shots(SHOTS), method)
        curve = inner_curve(starts[method], tasks.with_shots(SHOTS), rate, method)
        record["curves"][method], record["at_five"][method] = (
            engine.mean_rounded(curve),
            engine.rounded(curve[:, STEPS]),
        )
        if method == "joint":
            record["blind"] = engine.rounded(curve[:, 0])
        if method == "maml":
            record |= {"start": engine.rounded(curve[:, 0]), "at_ten": engine.rounded(curve[:, 10])}
    start = starts["maml"]
    swept = by_shots(start, tasks, others)
    record["by_shots"] = {shots: engine.mean_rounded(curve) for shots, (_, curve) in swept.items()}
    record["shot_rates"] = {shots: rate for shots, (rate, _) in swept.items()}
    record["harmed"] = {shots: harmed(start, tasks.with_shots(shots)) for shots in SHOTS_SWEPT}
    record["one_shot"] = engine.rounded(swept[1][1][:, STEPS])
    rates = {rate: inner_curve(start, tasks.with_shots(SHOTS), rate) for rate in RATES_SWEPT}
    record["by_rate"] = {
        rate: engine.mean_rounded(curve.nan_to_num(posinf=1e6).clamp(max=1e6))
        for rate, curve in rates.items()
    }
    return record | {
        "optimisers": optimiser_record(
            seed, tasks.with_shots(SHOTS), others.with_shots(SHOTS), optimiser_steps
        )
    }


def _train(
    seed: int, method: str, *, meta_steps: int, stop: int | None = None
) -> tuple[maml_mlp.Theta, list[float]]:
    """The start that a method finds with the study's settings, and its losses."""
    return maml_mlp.meta_train(
        new_network(seed),
        sample,
        meta_steps=meta_steps,
        inner_lr=FOMAML_INNER_LR if method == "fomaml" else INNER_LR,
        outer_lr=OUTER_LR,
        steps=STEPS,
        seed=seed,
        method=method,
        stop=stop,
    )


def inner_curve(
    start: maml_mlp.Theta, tasks: TaskBatch, inner_lr: float, method: str = "maml"
) -> torch.Tensor:
    """Query losses after 0..10 inner steps, (B, 11)."""
    return maml_mlp.adaptation_curve(start, tasks, inner_lr=inner_lr, steps=10, method=method)


def best_rate(start: maml_mlp.Theta, tasks: TaskBatch, method: str = "maml") -> float:
    """The swept inner_lr with the lowest query loss after 5 steps on tasks that are not
    measured.
    """
    return min(
        RATES_SWEPT,
        key=lambda rate: float(inner_curve(start, tasks, rate, method)[:, STEPS].mean()),
    )


def by_shots(
    start: maml_mlp.Theta, tasks: TaskBatch, others: TaskBatch
) -> dict[int, tuple[float, torch.Tensor]]:
    """For every number of shots the best inner_lr on other tasks, and the query losses along the
    inner loop with it.
    """
    found = {}
    for shots in SHOTS_SWEPT:
        rate = best_rate(start, others.with_shots(shots))
        found[shots] = rate, inner_curve(start, tasks.with_shots(shots), rate)
    return found


def harmed(start: maml_mlp.Theta, tasks: TaskBatch) -> float:
    """Share of tasks whose query loss is higher after 5 steps at the trained inner_lr than before
    them.
    """
    curve = inner_curve(start, tasks, INNER_LR)
    return float((curve[:, STEPS] > curve[:, 0]).float().mean())


def optimiser_record(seed: int, tasks: TaskBatch, others: TaskBatch, meta_steps: int) -> dict:
    """A learned optimiser beside SGD and Adam at their best rates: per-task losses after 10 steps,
    mean curves over 20.
    """
    rule, _ = optimisers.train_optimiser(
        new_network,
        lambda draw: toy.sinusoids(OPTIMISER_BATCH, SHOTS, draw),
        meta_steps=meta_steps,
        steps=OPTIMISER_STEPS,
        seed=seed,
    )
    draw = torch.Generator().manual_seed(3 * 10**6 + seed)
    networks, tuning = (
        optimisers.fresh_networks(new_network, len(some), draw) for some in (tasks, others)
    )
    rules, rates = {"learned": rule}, {}
    for name, make in (("sgd", optimisers.sgd), ("adam", optimisers.adam)):
        ends = {
            rate: rule_curve(make(rate), tuning, others, OPTIMISER_STEPS)[:, -1].mean()
            for rate in RATES_TUNED
        }
        rates[name] = min(RATES_TUNED, key=lambda rate, ends=ends: float(ends[rate]))
        rules[name] = make(rates[name])
    curves = {
        name: rule_curve(made, networks, tasks, 2 * OPTIMISER_STEPS) for name, made in rules.items()
    }
    curves["foreign"] = rule_curve(rule, networks, tasks.foreign_support(), 2 * OPTIMISER_STEPS)
    return {
        "rates": rates,
        "curves": {name: engine.mean_rounded(curve) for name, curve in curves.items()},
        "at_end": {
            name: engine.rounded(curve[:, OPTIMISER_STEPS]) for name, curve in curves.items()
        },
        "beyond": engine.rounded(curves["learned"][:, -1]),
    }


@torch.no_grad()
def rule_curve(
    rule: optimisers.Rule, networks: maml_mlp.Theta, tasks: TaskBatch, steps: int
) -> torch.Tensor:
    """Query losses along a rule's moves, (B, steps + 1); infinite where it diverged."""
    found = optimisers.query_losses(optimisers.unroll(rule, networks, tasks, steps), tasks)
    return found.nan_to_num(nan=float("inf"), posinf=float("inf"))


def sinusoid_estimands(record: dict) -> dict[str, np.ndarray]:
    """One seed's values of every test of M1 and M2, one number per task."""
    five, rules = record["at_five"], record["optimisers"]
    ours, learned = five["maml"], rules["at_end"]["learned"]
    pairs = {
        "M1.gain": (record["start"], ours),
        **{f"M1.over_{m}": (five[m], ours) for m in ("joint", "fomaml", "reptile", "anil")},
        "M1.beyond": (ours, record["at_ten"]),
        "M1.shots": (record["one_shot"], ours),
        "M2.over_sgd": (rules["at_end"]["sgd"], learned),
        "M2.over_adam": (rules["at_end"]["adam"], learned),
        "M2.beyond": (learned, rules["beyond"]),
        "M2.over_foreign": (rules["at_end"]["foreign"], learned),
        "M2.over_blind": (record["blind"], learned),
    }
    return {test: np.array(first) - np.array(second) for test, (first, second) in pairs.items()}


# --- the study ------------------------------------------------------------------------------------


def first_losses(seed: int, steps: int = engine.FIRST) -> list[float]:
    """The losses of the first steps of a seed's MAML, for replays."""
    return _train(seed, "maml", meta_steps=SINUSOIDS.settings["meta_steps"], stop=steps)[1]


def _kept(records: Sequence[dict]) -> dict:
    """The records without the losses of single tasks, which only the estimands need."""
    dropped = ("at_five", "start", "at_ten", "one_shot", "blind", "optimisers")
    found = [
        {name: part for name, part in record.items() if name not in dropped} for record in records
    ]
    for kept, record in zip(found, records, strict=True):
        kept["optimisers"] = {name: record["optimisers"][name] for name in ("rates", "curves")}
    return {"records": found}


SINUSOIDS = Study(
    "sinusoids",
    sinusoid_record,
    engine.by_seed(sinusoid_estimands),
    _kept,
    settings={"meta_steps": 3000, "optimiser_steps": 1500},
    first_losses=first_losses,
    replays=(engine.losses_again(first_losses, 15),),
)
