"""What the update study measures on a case: whether its updates are exact, their sizes, their steps
beside the gradient, and the losses under them.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from dataclasses import fields

import numpy as np
import torch

from tml_lib.lm.answers import Suffix
from tml_lib.lm.blocks import wide_tail
from tml_lib.lm.models import widen_norms
from tml_lib.measure.implicit import gradient_update, logit_error, update_from_ids
from tml_lib.measure.layer_updates import Update, cosine
from tml_lib.measure.parameter_paths import (
    LINE_SEARCH,
    LastLayer,
    ParameterPath,
    PathSteps,
    last_layer,
    path_from_ids,
    path_steps,
    updated_loss,
)
from tml_lib.measure.probe import naive_nll
from tml_lib.studies import engine
from tml_lib.studies.update_cases import Case

# of gradient steps in the transfer test, in the update's norm
STEP_LENGTHS = (1.0, 0.25, 0.0625, 0.015625, 0.00390625, 0.0)
FRACTIONS = (0.25, 0.5, 0.75, 1.0)  # of the trajectory, at which updates of all layers are made


def exactness(model, case: Case) -> dict[str, float]:
    """Largest logit error of the last layer's update, applied to the weights, and of all layers',
    as they are made in order: the latter only for a float64 model.

    The updated layer, and what follows it, compute in float64 whatever the model's dtype.
    """
    settings = (case.prompt, case.trajectories["gold"], case.suffix)
    with wide_tail(model):
        found = {"last": logit_error(model, update_from_ids(model, *settings), *settings)}
    if next(model.parameters()).dtype == torch.float64:
        found["all"] = update_from_ids(model, *settings, layers="all").logit_error
    return found


def wide_copy(model):
    """A float64 copy of a (small) model, its norms included."""
    wide = copy.deepcopy(model).double()
    widen_norms(wide)
    return wide


def measure(model, case: Case, *, stride: int, seed: int, layers: str = "all") -> dict:
    """Everything but exactness for one case, as JSON-ready numbers: steps by kind, sizes by layer,
    losses under updates.

    A step is that of one token; with a stride, every stride-th token's is measured, and NaN stands
    for what lies between. layers: 'last' leaves out the updates of all layers, each of which costs
    several passes.
    """
    targets = {"own": (case.prompt, case.suffix), **case.siblings}
    bases = {name: last_layer(model, *target) for name, target in targets.items()}
    steps, last = {}, {}
    for kind in case.trajectories:
        path = _path(model, case, kind, stride=stride, base=bases["own"])
        steps[kind] = _steps(model, case, kind, path=path, seed=seed)
        last[kind] = path.update(-1)

    def loss(update: Update, name: str) -> float:
        return updated_loss(model, bases[name], update)

    item = last["gold"].layers[0]
    record = {
        "id": case.id,
        "ends": case.ends,
        "answer_tokens": len(case.suffix.ids) - case.suffix.start,
        "steps": steps,
        "size": item.relative_norm,
        "rank": item.effective_rank,
        "by_kind": {
            k: [u.layers[0].relative_norm, u.layers[0].effective_rank] for k, u in last.items()
        },
        "content": 1 - cosine(last["gold"], last["foreign"]),
        "losses": {"last": _losses(model, case, last, "last", loss)},
    }
    if layers == "last":
        return record
    whole, record["by_layer"] = _by_layer(model, case)
    record["losses"]["all"] = _losses_of_all(model, case, whole, targets)
    return record


def _path(model, case: Case, kind: str, *, stride: int, base: LastLayer) -> ParameterPath:
    """The path before and after each token whose step is measured, and where comparisons end."""
    trajectory, end = case.trajectories[kind], case.ends[kind][1]
    length = len(trajectory)
    starts = range(0, length, stride)
    places = {*starts, *(start + 1 for start in starts), length, min(end, length)}
    if kind == "gold":
        places |= {gold for gold, _ in case.ends.values()}
    return path_from_ids(model, case.prompt, trajectory, case.suffix, sorted(places), without=base)


def _steps(model, case: Case, kind: str, *, path: ParameterPath, seed: int) -> dict:
    """Losses along a path, and its steps beside the gradient: of gold all `PathSteps`, of the
    others cosine and drop.
    """
    gold = kind == "gold"
    draw = int(hashlib.sha256(f"{seed}/{case.id}/{kind}".encode()).hexdigest()[:8], 16)
    found = path_steps(model, path, seed=draw, fractions=LINE_SEARCH if gold else ())
    names = [field.name for field in fields(PathSteps)] if gold else ["cosine", "drop"]
    single = np.diff(path.positions) == 1
    steps = {"positions": path.positions.tolist(), "answer_nll": _rounded(path.answer_nll)}
    return steps | {
        name: _rounded(np.where(single, getattr(found, name), np.nan)) for name in names
    }


def _by_layer(model, case: Case) -> tuple[Update, dict[str, list[list[float]]]]:
    """The update of all layers for the whole gold trajectory; sizes and effective ranks (fractions,
    layers) on the way.
    """
    gold = case.trajectories["gold"]
    found = []
    for fraction in FRACTIONS:
        prefix = gold[: round(fraction * len(gold))]
        found.append(update_from_ids(model, case.prompt, prefix, case.suffix, layers="all"))
    sizes = [_rounded([item.relative_norm for item in update.layers]) for update in found]
    ranks = [_rounded([item.effective_rank for item in update.layers]) for update in found]
    return found[-1], {"relative_norm": sizes, "effective_rank": ranks}


def _losses_of_all(
    model, case: Case, whole: Update, targets: dict[str, tuple[tuple[int, ...], Suffix]]
) -> dict[str, dict[str, float]]:
    """`_losses` under updates of all layers. whole: that of gold."""
    foreign = update_from_ids(
        model, case.prompt, case.trajectories["foreign"], case.suffix, layers="all"
    )

    def loss(update: Update, name: str) -> float:
        prompt, suffix = targets[name]
        with update.applied(model):
            return naive_nll(model, prompt, [], suffix, 0, few_logits=True)

    return _losses(model, case, {"gold": whole, "foreign": foreign}, "all", loss)


def _losses(
    model, case: Case, updates: dict[str, Update], layers: str, loss: Callable[[Update, str], float]
) -> dict[str, dict[str, float]]:
    """L of the question itself and its siblings, without their trajectories, under θ, the updates
    and gradient steps; `loss` gives one of them.

    Gradient steps go along -∇L of the question's own answer: one as long as gold's update, the best
    of STEP_LENGTHS for the question itself, and the shortest that makes its answer as likely as
    gold's update does (else the best).
    """

    def under(update: Update) -> dict[str, float]:
        return {name: loss(update, name) for name in ("own", *case.siblings)}

    found = {"theta": under(Update(()))}
    found |= {kind: under(update) for kind, update in updates.items()}
    gradient = gradient_update(model, case.prompt, case.suffix, layers=layers)
    gradient = gradient.scaled(updates["gold"].norm / gradient.norm)
    tried = {fraction: loss(gradient.scaled(fraction), "own") for fraction in STEP_LENGTHS}
    best = min(tried, key=tried.get)
    found["gradient"] = under(gradient)
    found["best_gradient"] = under(gradient.scaled(best)) | {"fraction": best}
    wanted = found["gold"]["own"]
    matched = _matched(tried, wanted, lambda length: loss(gradient.scaled(length), "own"))
    found["matched_gradient"] = under(gradient.scaled(matched)) | {"fraction": matched}
    return found


def _matched(tried: dict[float, float], wanted: float, loss: Callable[[float], float]) -> float:
    """The shortest gradient step that reaches a loss, to a few per cent in length; the best one
    tried where none does.
    """
    reaching = [fraction for fraction, value in tried.items() if value <= wanted]
    high = min(reaching, default=min(tried, key=tried.get))
    if not reaching or high == 0:
        return high
    low = max((fraction for fraction in tried if 0 < fraction < high), default=high / 4)
    for _ in range(5):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if loss(middle) <= wanted else (middle, high)
    return high


def _rounded(values) -> list[float]:
    """To four significant digits: the records are for figures and means."""
    return engine.rounded(values, 4)
