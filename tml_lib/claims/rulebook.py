"""The rules, written before the run: the claims with their tests (`claims.toml`), the version and
tolerances of every study (`protocols.toml`), and the verdict that follows from an interval.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from tml_lib import files
from tml_lib.records import Interval

ENOUGH = {"questions": 64, "seeds": 1}  # for a verdict at a scale that claims.toml does not name
_KINDS = "CMGT"  # the paper's claims; the kit's own on meta-learning, written descent, transfer


def claims() -> dict[str, dict]:
    """The claims of `claims.toml`, by id: the paper's by number, then the kit's own."""
    return copy.deepcopy(_parsed(Path(__file__).parent / "claims.toml"))


def chosen(names: Sequence[str]) -> dict[str, dict]:
    """The claims that are named; none: all. ValueError for an unknown one."""
    known = claims()
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown claim {unknown[0]!r}: choose among {', '.join(known)}")
    return {name: item for name, item in known.items() if not names or name in names}


@functools.cache
def _rules_file(path: Path) -> dict:
    return files.table(path, files.COMMITTED)


def least_accuracy() -> float:
    """A comparison of accuracies counts only where the low end of the better arm's interval is at
    least this share of right answers; below it the verdict is 'floor'.
    """
    return _rules_file(Path(__file__).parent / "claims.toml")["floor"]


def compares_accuracies(test: str) -> bool:
    """Whether a test ('C3.optimum') compares shares of right answers, Pass@k or mG-Pass@k of two
    arms, as claims.toml lists them.
    """
    return test in _rules_file(Path(__file__).parent / "claims.toml")["accuracies"]


@functools.cache
def _parsed(path: Path) -> dict[str, dict]:
    held = _rules_file(path)
    found = {key: item for key, item in held.items() if isinstance(item, dict)}
    return {claim: found[claim] for claim in sorted(found, key=_order)}


def _order(claim: str) -> tuple[int, int, str]:
    """Claims by kind, then by number, then by letter. ValueError for an id of another form."""
    parts = re.fullmatch(rf"([{_KINDS}])(\d+)([a-z]*)", claim)
    if parts is None:
        raise ValueError(
            f"claim {claim!r} in claims.toml: an id is a letter of {_KINDS}, a number and, if need"
            " be, a small letter, as in C4a"
        )
    return _KINDS.index(parts[1]), int(parts[2]), parts[3]


def all_tests(known: dict[str, dict]) -> list[tuple[str, dict]]:
    """The tests of some claims, each with its claim, in their order."""
    return [(claim, test) for claim, item in known.items() for test in item["tests"]]


def rules() -> dict[tuple[str, str], dict]:
    """Every test of `claims.toml`, by claim and name."""
    return {(claim, test["name"]): test for claim, test in all_tests(claims())}


def label(test: str) -> str:
    """What a test is called, with its claim: 'C1.fall' -> 'fall of L̂ … (C1)'."""
    claim, _, name = test.partition(".")
    return f"{rules()[claim, name]['label']} ({claim})"


def wanted(test: dict) -> str:
    """What a test's rule asks for, with side and unit: 'above 0.05 share'."""
    return f"{test['side']} {test['threshold']:g} {test['unit']}"


def rules_hash(names: list[str]) -> str:
    """Hash of the rules of the named tests ('C1.trend', ...): 16 hexadecimal digits. A label is
    wording and not covered.
    """
    known = {f"{claim}.{test['name']}": test for claim, test in all_tests(claims())}
    if missing := sorted(set(names) - set(known)):
        raise ValueError(
            f"test {missing[0]!r} has no rule: write it into claims.toml before running it"
        )
    covered = {
        name: {key: x for key, x in known[name].items() if key != "label"} for name in sorted(names)
    }
    return hashlib.sha256(json.dumps(covered, sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def protocols() -> dict[str, dict]:
    """Version and tolerances of every study, by name (`protocols.toml`)."""
    return files.table(Path(__file__).parent / "protocols.toml", files.COMMITTED)


def protocol(study: str) -> str:
    """What a study measures, as evidence names it: 'trajectories/1'. ValueError for a study without
    a version.
    """
    if study not in protocols():
        raise ValueError(
            f"study {study!r} has no protocol: give it a version and a tolerance in"
            " claims/protocols.toml"
        )
    return f"{study}/{protocols()[study]['version']}"


def is_current(record: dict) -> bool:
    """Whether a record was made under the rules and with the measurement of today."""
    try:
        same = record["protocol"] == protocol(record["study"])
        return same and record["rules_hash"] == rules_hash(list(record["values"]))
    except ValueError:  # a study or a rule that the evidence names is gone
        return False


def verdict(interval: Interval, side: str, threshold: float) -> str:
    """Holds, contradicted or inconclusive: where the interval lies with respect to the threshold
    (see claims.toml).
    """
    low, high = interval.low - threshold, interval.high - threshold
    if side == "below":
        low, high = -high, -low
    elif side != "above":
        raise ValueError(f"side={side!r} must be 'above' or 'below'")
    return "holds" if low > 0 else "contradicted" if high < 0 else "inconclusive"
