"""Does a trajectory carry from one model to another? (T1, the kit's own question)

One model has written; another reads, and its answer's loss is probed along what was written. The
writer's texts come from its own evidence (`material` or `trajectories`). Ballon et al. (arXiv
2601.23163) probe across models; the controls here are those of C1 and C2.
"""

from __future__ import annotations

import dataclasses
import math

from tml_lib.studies import engine, probed_curves, trajectories

# own_right, sampled and foreign_own are here the writer's
KINDS = ("gold", "own_right", "sampled", "foreign_own")


def estimands(record: dict) -> dict[str, float]:
    """The estimands of T1 for one question, NaN where its conditions lack (claims.toml says what
    each one is).
    """
    gold, right, wrong, foreign = (probed_curves.curve_of(record, kind) for kind in KINDS)
    fall, of_gold = (
        math.nan if curve is None else float(curve.answer_nll[0] - curve.at(curve.unstated))
        for curve in (right, gold)
    )
    return {
        "T1.unstated": fall,
        "T1.content": probed_curves.fall_beside(right, foreign),
        "T1.over_gold": fall - of_gold,
        "T1.wrong": math.nan if wrong is None else wrong.fall,
        "T1.pair": probed_curves.fall_beside(right, wrong),
    }


def _again(evidence: dict, place: int) -> dict[str, float]:
    return estimands(trajectories.record_again(evidence, place))


STUDY = dataclasses.replace(
    trajectories.STUDY,
    name="transfer",
    values=engine.by_question(lambda record, settings: estimands(record)),
    replays=(engine.question_again(_again, 40),),
)
