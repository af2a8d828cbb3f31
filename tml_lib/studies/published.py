"""Claim C13 from published numbers: AIME24 accuracies of 32B models against the size of their
training data (RaML Fig. 4).

Deviations from the paper: it evaluated every model anew with one prompt and one sampling (Avg@32,
mG-Pass@32). Here stand the pass@1 or avg@k that each model's authors published, with prompts,
sampling and graders of their own, so that a difference of two models is also one of two
evaluations. mG-Pass@32 is published nowhere else and left out. Nothing is run: models are the
units, few, and not drawn at random. `published.toml` holds the numbers with their sources and says
how they were chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from tml_lib import files
from tml_lib.claims import ledger
from tml_lib.claims.replay import RECORD, Replay
from tml_lib.records import Arms

FILE = Path(ledger.__file__).parent / "published.toml"
GROUPS = ("base", "off-policy", "on-policy", "both")
AIME_QUESTIONS = 30


@dataclass(frozen=True)
class Published:
    """One model as its sources describe it; None or '' where they do not say."""

    name: str
    base: str  # the model that its training started from
    group: str  # one of GROUPS: whose trajectories it was trained on
    accuracy: float | None = None  # AIME24, share of 30 questions, 0..1
    missing: str = ""  # why there is no accuracy
    metric: str = ""  # in words
    runs: int | None = None  # answers per question that the accuracy averages
    source: str = ""  # https address of the text that holds `quote`
    quote: str = ""  # its words with the accuracy, at most 200 characters
    questions: int | None = None  # distinct training questions
    samples: int | None = None  # training trajectories, where only they are stated
    size_source: str = ""
    # the words with the number of questions or samples, at most 200 characters
    size_quote: str = ""
    assumed: str = ""  # why a size that no source states is taken as it is
    note: str = ""
    # accuracies (share) that other texts give, with source and what they are
    others: tuple[dict, ...] = ()


def models(path: Path = FILE) -> list[Published]:
    """All models of the file, in its order; ValueError names the entry, what is wrong with it and
    what to do.
    """
    known = {field.name for field in fields(Published)}
    found = []
    for k, entry in enumerate(files.table(path, files.COMMITTED, {"models": list})["models"]):
        name = entry.get("name", f"number {k + 1}")
        if odd := sorted(set(entry) - known):
            raise ValueError(
                f"{path}: model {name!r} has an unknown field {odd[0]!r}: use"
                f" {', '.join(sorted(known))}"
            )
        if lacking := [field for field in ("name", "base", "group") if not entry.get(field)]:
            raise ValueError(
                f"{path}: model {name!r} lacks {lacking[0]!r}: add it from the model's source"
            )
        found.append(Published(**entry | {"others": tuple(entry.get("others", ()))}))
        if problem := _problem(found[-1]):
            raise ValueError(f"{path}: model {name!r} {problem}")
        if found[-1].name in [m.name for m in found[:-1]]:
            raise ValueError(
                f"{path}: model {name!r} stands there twice: keep one entry, its other number goes"
                " into 'others'"
            )
    return found


def _problem(m: Published) -> str:
    """What is wrong with an entry and the next step, or ''."""
    if m.group not in GROUPS:
        return f"has group {m.group!r}: choose among {', '.join(GROUPS)}"
    if (m.accuracy is None) == (not m.missing):
        return "needs an accuracy or, in its place, the reason in 'missing': give one of the two"
    if not all(0 <= x <= 1 for x in (m.accuracy or 0, *(other["accuracy"] for other in m.others))):
        return "has an accuracy outside 0..1: write it as a share, 0.567 for 56.7 %"
    if m.accuracy is not None and not (m.metric and m.source and m.quote):
        return (
            "has an accuracy without its metric, source or quote: add what is lacking, or take the"
            " number out"
        )
    if (m.questions or m.samples) and not (m.size_source and m.size_quote):
        return (
            "has a size without its source and quote: add 'size_source' and 'size_quote', or take"
            " the size out"
        )
    if m.questions and m.samples:
        return "has both 'questions' and 'samples': keep the number of questions"
    if bad := [
        x
        for x in (m.source, m.size_source, *(o["source"] for o in m.others))
        if x and not x.startswith("https://")
    ]:
        return f"has the source {bad[0]!r}: give an https address"
    return (
        "has a quote over 200 characters: shorten it"
        if max(len(m.quote), len(m.size_quote)) > 200
        else ""
    )


def repeats(path: Path = FILE) -> list[dict]:
    """The same weights asked the 30 questions several times: name, by, source, and 'right', answers
    right in each run.
    """
    return files.table(path, files.COMMITTED, {"repeats": list})["repeats"]


def matched(found: Sequence[Published]) -> tuple[list[Published], list[Published]]:
    """Models trained by RL from the base alone whose number of questions is known, best first, and
    the models trained off-policy on no more questions than the best of them. Models of group 'both'
    or 'base' are in neither.
    """
    known = [m for m in found if m.accuracy is not None and m.questions is not None]
    on = sorted((m for m in known if m.group == "on-policy"), key=lambda m: -m.accuracy)
    if not on:
        raise ValueError(
            "no on-policy model has an accuracy and a number of questions: C13 has nothing to"
            " compare with"
        )
    return on, [m for m in known if m.group == "off-policy" and m.questions <= on[0].questions]


def estimands(found: Sequence[Published]) -> dict[str, Arms]:
    """The accuracies that every test of C13 compares, one pair per off-policy model; claims.toml
    words them.
    """
    on, off = matched(found)
    mean = math.fsum(m.accuracy for m in on) / len(on)
    groups = {
        g: [m.accuracy for m in found if m.group == g and m.accuracy is not None] for g in GROUPS
    }
    matching = [m.accuracy for m in off]
    compared = {
        "C13.over_best": (matching, on[0].accuracy),
        "C13.over_mean": (matching, mean),
        "C13.any_size_over_best": (groups["off-policy"], max(groups["on-policy"])),
    }
    return {test: Arms(*np.broadcast_arrays(*pair)) for test, pair in compared.items()}


def write_evidence(folder: Path, command: str, seconds: float) -> Path:
    """Write published.published.json: the values of C13, and the models for figures."""
    found = models()
    values = {test: [numbers] for test, numbers in estimands(found).items()}
    extra = {"models": [asdict(m) for m in found]}
    settings = {"command": command, "wall_seconds": seconds, "extra": extra}
    return ledger.write_evidence(
        folder, "published", "published", values, settings={"questions": AIME_QUESTIONS}, **settings
    )


def _again(evidence: dict, name: str) -> dict:
    found, stored = estimands(models()), evidence["values"]
    return {
        f"{test}, {k + 1}": (stored[test][0][k], x)
        for test, column in found.items()
        for k, x in enumerate(np.asarray(column).tolist())
    }


REPLAYS = (Replay(RECORD, lambda evidence: ["all models"], _again, 1),)
