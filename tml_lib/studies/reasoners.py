"""Studies of one tiny reasoner per seed: its training, kept in the study's folder, and what such
studies share.

A seed's reasoner is `tiny-base` after as many steps of SFT as the shipped `tiny-long`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tml_lib.data.tiny import Row
from tml_lib.lm import models, pretrained
from tml_lib.lm.models import LanguageModel
from tml_lib.studies import engine, supervised
from tml_lib.studies.engine import Study

STEPS = 1500  # of a seed's SFT


def reasoner(seed: int, folder: Path, *, steps: int = STEPS) -> LanguageModel:
    """The reasoner of a seed, after SFT on long trajectories; trained once, then kept in the
    folder.
    """
    return kept(f"reasoner-{seed}", folder, supervised.arm_rows(seed, "long"), steps)


def kept(name: str, folder: Path, rows: Callable[[int], list[Row]], steps: int) -> LanguageModel:
    """tiny-base after `steps` steps on the rows; the folder keeps it."""
    place = Path(folder) / f"{name}-{steps}-{supervised.checkpoint_digest()[:8]}"
    if not place.is_dir():
        lm, _ = supervised.tuned(models.load("tiny", device="cpu"), rows, steps, progress=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=place.parent))
        with pretrained.quiet():
            lm.model.save_pretrained(temporary)
            lm.tokenizer.save_pretrained(temporary)
        try:
            os.replace(temporary, place)
        except OSError:  # another process finished first: either copy will do
            shutil.rmtree(temporary)
    return models.load("tiny", model=str(place), device="cpu")


def first_losses(
    seed: int, rows: Callable[[int], Callable[[int], list[Row]]] | None = None
) -> list[float]:
    """The losses of the first steps of a seed's reasoner, for replays. rows: seed -> its training
    rows (default: long).
    """
    made = supervised.arm_rows(seed, "long") if rows is None else rows(seed)
    base = models.load("tiny", device="cpu")
    return supervised.tuned(base, made, STEPS, stop=engine.FIRST)[1]


def made_values(records: Sequence[dict], settings: dict) -> engine.Values:
    """Values that each seed's record holds already."""
    return engine.by_seed(lambda record: record["values"])(records, settings)


def kept_parts(records: Sequence[dict]) -> dict:
    """What evidence holds of a study of several seeds beside the values that its records hold."""
    parts = [{name: x for name, x in record.items() if name != "values"} for record in records]
    return {"nested": True, "records": parts}


def of_reasoners(
    name: str, record: Callable, questions: int, rows: Callable | None = None
) -> Study:
    """A study of one tiny reasoner per seed, trained on rows(seed) (default: long trajectories)."""

    def losses(seed: int) -> list[float]:
        return first_losses(seed, rows)

    return Study(
        name,
        record,
        made_values,
        kept_parts,
        settings={"questions": questions, "steps": STEPS},
        said=lambda: {"base_sha256": supervised.checkpoint_digest()},
        first_losses=losses,
        replays=(engine.losses_again(losses, 15),),
    )
