"""The study behind the explaining tests of C4t and C9t: do their results hang on the learning rate,
the seed, the number of tokens, or the kit's template?

The trainings are those of `rejection` with one of these changed, on the same questions. They are
asked its held-out questions of other templates, greedily. The model's own samples give their answer
in a box, and the arm 'own' learns to give it once more, in the kit's template, as the other arms
do; 'as_written' learns the samples alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tml_lib.claims.replay import FIRST_STEPS, Pairs, Replay
from tml_lib.lm.models import LanguageModel
from tml_lib.records import Arms, Question
from tml_lib.studies import engine, lora, rejection
from tml_lib.studies.engine import Study


@dataclass(frozen=True)
class Training:
    """An arm of `rejection`, and what is changed."""

    arm: str
    changed: str  # in words
    seed: int = 0  # of the rows' order, and of the adapter's start
    rate: float = 1  # times the study's learning rate
    longer: bool = False  # as many learnt tokens as the arm 'own', not as many steps


TRAININGS = {
    "gold_tenth": Training("gold", "a tenth of the rate", rate=1 / 10),
    "own_tenth": Training("own", "a tenth of the rate", rate=1 / 10),
    "gold_1": Training("gold", "seed 1", seed=1),
    "own_1": Training("own", "seed 1", seed=1),
    "gold_1_tokens": Training("gold", "seed 1, equal tokens", seed=1, longer=True),
    "as_written_1": Training("as_written", "seed 1", seed=1),
    "as_written_tenth": Training("as_written", "a tenth of the rate", rate=1 / 10),
}
ARMS = ("base", *TRAININGS)


def equal_steps(
    lm: LanguageModel, cases: Sequence[tuple[Question, str]], steps: int, seed: int
) -> int:
    """The steps in which gold trajectories have as many learnt tokens as own ones in `steps`."""
    count = steps * rejection.BATCH
    own, gold = (
        sum(rejection.learnt(rejection.arm_rows(lm, arm, cases, count, seed)))
        for arm in ("own", "gold")
    )
    return round(steps * own / gold)


def record(
    name: str,
    folder: Path,
    *,
    lm: LanguageModel,
    cases: Sequence[tuple[Question, str]],
    steps: int,
    questions: int,
    seed: int,
    max_tokens: int,
) -> dict:
    """Train (the adapter stays in folder/name), then ask the held-out questions of that seed."""
    losses, tokens = [], []
    if name != "base":
        how = TRAININGS[name]
        if how.longer:
            steps = equal_steps(lm, cases, steps, how.seed)
        rows = rejection.arm_rows(lm, how.arm, cases, steps * rejection.BATCH, how.seed)
        tokens = rejection.learnt(rows)
        place, peak_lr = Path(folder) / name, lora.PEAK_LR * how.rate
        lm, losses = rejection.trained(lm, rows, place, steps, how.seed, peak_lr)
    asked = rejection.held_out(questions, seed)[:questions]
    greedy = rejection.measured(lm, asked, seed, max_tokens, samples=1, temperature=0)
    return {"arm": name, "greedy": greedy, "losses": losses, "learnt": sum(tokens)}


def estimands(records: Sequence[dict]) -> dict[str, Arms]:
    """The values of the explaining tests, by question."""
    right = {one["arm"]: np.array(one["greedy"]["right"], dtype=float) for one in records}
    return {
        "C4t.other_seed": Arms(right["own_1"], right["gold_1"]),
        "C4t.equal_tokens": Arms(right["own_1"], right["gold_1_tokens"]),
        "C4t.tenth": Arms(right["own_tenth"], right["gold_tenth"]),
        "C4t.gold_tenth": Arms(right["gold_tenth"], right["base"]),
        "C4t.as_written": Arms(right["as_written_1"], right["gold_1"]),
        "C9t.within_seed": Arms(right["own_1"], right["base"]),
        "C9t.within_tenth": Arms(right["own_tenth"], right["base"]),
        "C9t.within_as_written": Arms(right["as_written_1"], right["base"]),
        "C9t.within_as_written_tenth": Arms(right["as_written_tenth"], right["base"]),
    }


# --- the study ------------------------------------------------------------------------------------


_values = engine.by_seed(estimands)


def _first_step(evidence: dict, name: str) -> Pairs:
    how = TRAININGS[name]
    return rejection.first_step(evidence, name, how.arm, how.seed)


def _names(evidence: dict) -> list[str]:
    return list(TRAININGS) if engine.questions_of(evidence) else []


STUDY = Study(
    "rates",
    record,
    lambda records, settings: _values([records], settings),
    lambda records: {"records": records},
    replays=(
        Replay(FIRST_STEPS, _names, _first_step, 120),
        engine.values_again(lambda evidence: _values([evidence["records"]], {})),
    ),
)


def make_evidence(
    lm: LanguageModel,
    written: Path,
    folder: Path,
    *,
    n: int,
    seed: int,
    max_tokens: int,
    scale: str,
    command: str,
    steps: int = rejection.STEPS,
) -> Path:
    """Write rates.<scale>.json of n held-out questions; the folder keeps finished trainings.
    written: evidence of `material`.
    """
    cases, asked = rejection.shown(lm, written), rejection.held_out(n, seed)[:n]
    how = {"steps": steps, "questions": n, "seed": seed, "max_tokens": max_tokens}
    made = STUDY.run(ARMS, folder, progress=True, inputs={"lm": lm, "cases": cases}, **how)
    said = {"batch": rejection.BATCH, "peak_lr": lora.PEAK_LR, "lora_rank": lora.LORA_RANK}
    kept = rejection.shown_again(written, cases) | {"command": command, "scale": scale}
    return STUDY.write_asked(made, lm, asked, folder, settings=said, **kept)
