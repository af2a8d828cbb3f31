"""Evidence checked by replay: records drawn at random, made again with today's code, and compared
with what is stored.

What can be made again of a study, and how, is said by `Replay`s (`studies/replays.py` has them
all). Tolerances stand in protocols.toml.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tml_lib.claims import ledger, rulebook

RECORD = "record"  # a record of the evidence is measured anew
# a training is begun anew, and its first losses or rewards are compared
FIRST_STEPS = "first steps"
# a record's values are computed anew from the measurements that are stored with them
ESTIMANDS = "estimands"
ROUNDING = 2e-5  # of the numbers in an evidence file

# test, or what else is compared -> stored and replayed value
Pairs = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Replay:
    """One way to make a record of a study again."""

    kind: str  # RECORD, FIRST_STEPS or ESTIMANDS
    # evidence -> the records that can be drawn; none where it cannot be replayed
    names: Callable[[dict], Sequence[str]]
    again: Callable[[dict, str], Pairs]  # evidence, record -> what is compared
    seconds: float  # about what one record takes on one core, of the smallest model that has them

    def cost(self, evidence: dict) -> float:
        """About the seconds that one record of this evidence takes on one core: `seconds`, or what
        a question took in the run, where a larger model made it.
        """
        asked = len(evidence.get("templates", ())) if self.kind == RECORD else 0
        return max(self.seconds, evidence["wall_seconds"] / asked) if asked else self.seconds


@dataclass(frozen=True)
class Check:
    """One number of a record beside its replay."""

    evidence: str  # file
    record: str
    kind: str
    test: str
    stored: float
    replayed: float
    tolerance: float

    @property
    def ok(self) -> bool:
        """Both are no number, or they differ by the tolerance at most."""
        if math.isnan(self.stored) or math.isnan(self.replayed):
            return math.isnan(self.stored) and math.isnan(self.replayed)
        return abs(self.stored - self.replayed) <= self.tolerance

    @property
    def row(self) -> dict:
        """As `verify --json` prints it; a number that does not exist is null."""
        numbers = {"stored": self.stored, "replayed": self.replayed}
        numbers = {key: None if math.isnan(value) else value for key, value in numbers.items()}
        return {
            "evidence": self.evidence,
            "record": self.record,
            "kind": self.kind,
            "test": self.test,
            **numbers,
            "tolerance": self.tolerance,
            "ok": self.ok,
        }


def tolerance(evidence: dict, kind: str, test: str, stored: float) -> float:
    """How far a test's replay may lie from its stored value, in its unit (protocols.toml)."""
    rules = rulebook.protocols()[evidence["study"]]
    if kind == ESTIMANDS:
        return ROUNDING
    if kind == FIRST_STEPS and test.startswith("mean reward"):
        return rules["reward_tolerance"]
    if kind == FIRST_STEPS:
        return rules["loss_tolerance"] * max(abs(stored), 1.0)
    usual = rules["tolerance"]
    if evidence["settings"].get("dtype") == "bfloat16":
        usual = rules.get("half_tolerance", usual)
    return rules.get("tolerances", {}).get(test, usual) + ROUNDING


def verify(
    path: Path,
    replays: Sequence[Replay],
    *,
    records: int = 1,
    seed: int = 0,
    within: float = math.inf,
    record: str = "",
) -> Iterator[Check]:
    """Draw `records` records for each way of replay that takes at most `within` seconds, and
    compare number by number. record: the name of the only one to replay, in place of a draw; no
    check where the evidence has no such record.
    """
    evidence = ledger.read_evidence(path)
    for replay in replays:
        names = list(replay.names(evidence)) if replay.cost(evidence) <= within else []
        draw = random.Random(f"{seed}/{Path(path).name}/{replay.kind}")
        drawn = draw.sample(names, min(records, len(names)))
        for name in [name for name in names if name == record] if record else drawn:
            for test, (stored, replayed) in replay.again(evidence, name).items():
                limit = tolerance(evidence, replay.kind, test, stored)
                yield Check(Path(path).name, name, replay.kind, test, stored, replayed, limit)


def records_of(path: Path, replays: Sequence[Replay], *, within: float = math.inf) -> list[str]:
    """The names of all records that `verify` can replay of an evidence file."""
    evidence = ledger.read_evidence(path)
    names = [name for r in replays if r.cost(evidence) <= within for name in r.names(evidence)]
    return list(dict.fromkeys(names))


def to_text(checks: Sequence[Check]) -> str:
    """A line per record: how many numbers agree, and the one that lies farthest from its replay."""
    lines = [
        f"{'evidence':26}{'record':16}{'replay':13}{'agree':>10}  farthest: stored, replayed,"
        " difference, tolerance"
    ]
    for key in dict.fromkeys((c.evidence, c.record, c.kind) for c in checks):
        group = [c for c in checks if (c.evidence, c.record, c.kind) == key]
        apart = [
            0.0 if math.isnan(c.stored - c.replayed) else abs(c.stored - c.replayed) / c.tolerance
            for c in group
        ]
        far = next((c for c in group if not c.ok), group[apart.index(max(apart))])
        start = (
            f"{key[0]:26}{key[1]:16}{key[2]:13}{f'{sum(c.ok for c in group)} of {len(group)}':>10}"
        )
        numbers = (
            f"{far.stored:.5g}, {far.replayed:.5g}, {abs(far.stored - far.replayed):.2g},"
            f" {far.tolerance:.2g}"
        )
        lines.append(f"{start}  {far.test}: {numbers}{'' if far.ok else '  DIFFERS'}")
    return "\n".join(lines)
