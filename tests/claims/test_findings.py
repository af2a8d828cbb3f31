"""What the stored evidence says, estimate by estimate: a change of code alone changes none of it.

Where evidence or rules are changed on purpose, `python tests/claims/test_findings.py` writes
findings.json anew, and the difference in git shows what changed.
"""

import json
import math
from pathlib import Path

import pytest

from tml_lib.claims import ledger
from tml_lib.lessons import notebooks

FILE = Path(__file__).parent / "findings.json"


def findings() -> list[list]:
    """Per test and scale: estimate and interval, rounded as evidence is, and the verdict."""
    rows = json.loads(ledger.to_json(ledger.rows([notebooks.stored_evidence()])))
    names = ("scale", "estimate", "low", "high", "verdict")
    return [[f"{row['claim']}.{row['test']}", *(row[name] for name in names)] for row in rows]


def test_every_estimate_interval_and_verdict_is_as_it_was():
    found, stored = findings(), json.loads(FILE.read_text(encoding="utf8"))
    assert [row[:2] for row in found] == [row[:2] for row in stored]
    for (*name, estimate, low, high, verdict), (*_, was, was_low, was_high, was_verdict) in zip(
        found, stored, strict=True
    ):
        numbers = [math.nan if x is None else x for x in (estimate, low, high)]
        assert numbers == pytest.approx(
            [math.nan if x is None else x for x in (was, was_low, was_high)], abs=2e-5, nan_ok=True
        ), name
        assert verdict == was_verdict, name


if __name__ == "__main__":
    FILE.write_text(
        "[\n" + ",\n".join(json.dumps(row) for row in findings()) + "\n]\n", encoding="utf8"
    )
