"""The curves of L̂ that the trajectory study keeps, and the estimands of C1 and C2 that are read off
them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from tml_lib.claims.stats import trend
from tml_lib.records import ProbeCurve


def plain(curves: dict[str, ProbeCurve]) -> dict[str, dict]:
    """Curves as JSON, rounded to 1e-4 nats."""
    return {
        whose: {
            "positions": curve.positions.tolist(),
            "answer_nll": np.round(curve.answer_nll, 4).tolist(),
            "length": curve.length,
            "stated_at": curve.stated_at,
            "answer": curve.answer,
            **curve.meta,
        }
        for whose, curve in curves.items()
    }


def curve_of(record: dict, kind: str, whose: str = "right") -> ProbeCurve | None:
    """One curve of a study record, or None where the question has no such condition."""
    held = record["curves"].get(kind, {}).get(whose)
    if held is None:
        return None
    meta = {"shuffled_end": held["shuffled_end"]} if "shuffled_end" in held else {}
    numbers = np.array(held["positions"]), np.array(held["answer_nll"], dtype=float)
    return ProbeCurve(
        *numbers, held["length"], held["answer"], stated_at=held["stated_at"], meta=meta
    )


def by_condition(
    tables: Sequence[dict[str, dict]], kinds: Sequence[str]
) -> dict[str, list[ProbeCurve]]:
    """The curves of the right answer by kind, of the questions that have it. tables: the 'curves'
    of records, or of evidence. A corrupted text that states the right answer by chance is left out,
    as in the tests.
    """
    found = {kind: [curve_of({"curves": held}, kind) for held in tables] for kind in kinds}
    return {
        kind: [c for c in curves if c and (kind != "corrupted" or c.stated_at is None)]
        for kind, curves in found.items()
    }


def paired_before_statement(record: dict, kind: str) -> tuple[ProbeCurve, ProbeCurve] | None:
    """Curves of the right answer along gold and along another condition, both cut before any answer
    is stated.

    foreign: cut to as many tokens as gold; shuffled: both at the end of the shuffled steps;
    corrupted: where it first states its own wrong answer. None where the question lacks the
    condition.
    """
    gold, other = curve_of(record, "gold"), curve_of(record, kind)
    own = curve_of(record, kind, "own")
    # it states the right answer by chance
    if other is None or (own is not None and other.stated_at is not None):
        return None
    stated = gold.unstated
    if kind == "shuffled":
        ends = gold.meta["shuffled_end"], other.meta["shuffled_end"]
    elif own is not None:
        ends = stated, own.unstated
    else:
        ends = stated, min(stated, other.length)
    return _until(gold, ends[0]), _until(other, ends[1])


def before_last_step(record: dict) -> tuple[float, float]:
    """Fall of L̂ (nats per token) along gold until the step begins that states the answer, and this
    minus the fall over as many tokens of another question's text, read off between probed prefixes.

    It tells a model that only works out gold's last calculation from one that has come nearer
    before. NaN where gold has no steps to shuffle before that one.
    """
    gold, foreign = curve_of(record, "gold"), curve_of(record, "foreign")
    if "shuffled_end" not in gold.meta:
        return math.nan, math.nan
    end = gold.meta["shuffled_end"]
    fall = float(gold.answer_nll[0] - gold.at(end))
    beside = np.interp(min(end, foreign.length), foreign.positions, foreign.answer_nll)
    return fall, fall - float(foreign.answer_nll[0] - beside)


def rises_beside_foreign(record: dict, kind: str) -> tuple[float, float]:
    """Rise of L̂ (nats per token) along a wrong text, and over as many tokens of another question's
    text; where one is longer, the rest of it is left out. Read off between probed prefixes.

    It tells a rise that comes from what the text says from one that any text brings. kind: sampled
    or corrupted. NaN where the question lacks one of both, or the text states the right answer.
    """
    wrong, foreign = curve_of(record, kind), curve_of(record, "foreign")
    if wrong is None or foreign is None or wrong.stated_at is not None:
        return math.nan, math.nan
    end = min(wrong.length, foreign.length)
    first, other = (
        float(np.interp(end, c.positions, c.answer_nll) - c.answer_nll[0]) for c in (wrong, foreign)
    )
    return first, other


def estimands(record: dict, stride: int) -> dict[str, float]:
    """The estimands of C1 and C2 for one question, NaN where its conditions lack (claims.toml says
    what each one is).
    """
    values = _along_right(record, stride) | _along_wrong(record, stride)
    return {name: float(number) for name, number in values.items()}


def _along_right(record: dict, stride: int) -> dict[str, float]:
    """C1: gold and the own right trajectory, beside their controls."""
    gold, foreign, copying = (curve_of(record, kind) for kind in ("gold", "foreign", "copying"))
    shuffled, own_right = curve_of(record, "shuffled"), curve_of(record, "own_right")
    along, along_own = alone(gold, stride), alone(own_right, stride)
    values = {
        "C1.trend": along["trend"],
        "C1.trend_unstated": along["trend_unstated"],
        "C1.trend_over_foreign": math.nan,
        "C1.fall": gold.fall,
        "C1.unstated": along["unstated"],
        "C1.content": math.nan,
        "C1.order": math.nan,
        "C1.copying": gold.fall - copying.fall if copying else math.nan,
        "C1.own_trend": along_own["trend"],
        "C1.own_trend_unstated": along_own["trend_unstated"],
        "C1.own_unstated": along_own["unstated"],
        "C1.own_content": fall_beside(own_right, curve_of(record, "foreign_own")),
    }
    if foreign is not None:
        end = gold.unstated
        drift = _trend(_until(foreign, end), stride)
        foreign_fall = foreign.answer_nll[0] - foreign.at(min(end, foreign.length))
        values["C1.trend_over_foreign"] = along["trend_unstated"] - drift
        values["C1.content"] = along["unstated"] - foreign_fall
    if shuffled is not None:
        in_order, in_disorder = gold.meta["shuffled_end"], shuffled.meta["shuffled_end"]
        values["C1.order"] = shuffled.at(in_disorder) - gold.at(in_order)
    return values


def _along_wrong(record: dict, stride: int) -> dict[str, float]:
    """C2: the wrong sample and corrupted gold, beside right trajectories."""
    gold, sampled, corrupted = (curve_of(record, kind) for kind in ("gold", "sampled", "corrupted"))
    values = {
        "C2.sampled_trend": _trend(sampled, stride),
        "C2.corrupted_trend": math.nan,
        "C2.corrupted_over_foreign": math.nan,
        "C2.sampled_fall": sampled.fall if sampled else math.nan,
        "C2.corrupted_fall": math.nan,
        "C2.contrast": math.nan,
        "C2.own_answer": math.nan,
        "C2.pair": fall_beside(curve_of(record, "own_right"), sampled),
    }
    # it never states the right answer, not even by chance
    if corrupted is not None and corrupted.stated_at is None:
        own, down = curve_of(record, "corrupted", "own"), _trend(corrupted, stride)
        corrupted_fall = corrupted.answer_nll[0] - corrupted.at(own.unstated)
        values["C2.corrupted_trend"] = down
        values["C2.corrupted_over_foreign"] = down - _trend(curve_of(record, "foreign"), stride)
        values["C2.corrupted_fall"] = corrupted.fall
        values["C2.contrast"] = alone(gold, stride)["unstated"] - corrupted_fall
        values["C2.own_answer"] = own.fall
    return values


def alone(curve: ProbeCurve | None, stride: int) -> dict[str, float]:
    """Trend (tau) and fall (nats) of one curve, whole and before the answer is stated; NaN without
    a curve.
    """
    if curve is None:
        return dict.fromkeys(("trend", "trend_unstated", "fall", "unstated"), math.nan)
    end = curve.unstated
    return {
        "trend": _trend(curve, stride),
        "trend_unstated": _trend(_until(curve, end), stride),
        "fall": curve.fall,
        "unstated": float(curve.answer_nll[0] - curve.at(end)),
    }


def fall_beside(curve: ProbeCurve | None, other: ProbeCurve | None) -> float:
    """Fall of L̂ before a curve states the answer, minus the fall over as many tokens of another
    curve after the same prompt (all of it where it is shorter); NaN where one is missing.
    """
    if curve is None or other is None:
        return math.nan
    end = curve.unstated
    return float(other.at(min(end, other.length)) - curve.at(end))


def _until(curve: ProbeCurve, end: int) -> ProbeCurve:
    keep = curve.positions <= end
    return ProbeCurve(curve.positions[keep], curve.answer_nll[keep], end, curve.answer)


def _trend(curve: ProbeCurve | None, stride: int) -> float:
    """Kendall's tau over every stride-th prefix and the last."""
    if curve is None:
        return math.nan
    regular = (curve.positions % stride == 0) | (curve.positions == curve.length)
    return trend(curve.answer_nll[regular])
