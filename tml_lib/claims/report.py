"""The replication report: the ledger beside the paper's numbers.

Reads claims.toml and evidence only; it computes nothing that a notebook or a study has not
measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tml_lib.claims import ledger, rulebook
from tml_lib.claims.ledger import Row

SCALES = ("tiny", "small", "small-sft", "half", "medium", "medium-sft", "gpu", "published")
CHAPTERS = {  # of the argument, and the claims that belong to each
    "Does the loss of the answer fall along a trajectory?": ("C1", "C2", "T1", "C3", "C6", "C12"),
    "Is a trajectory a gradient step?": ("C11", "C11g", "C11t", "G1", "G2", "G3"),
    "Is training on trajectories an outer loop? SFT": (
        "C4a",
        "C4s",
        "C4t",
        "C7",
        "C9",
        "C9t",
        "C10",
    ),
    "Rewards and samples: GRPO": ("C4b", "C5", "C5s", "C8", "C13"),
    "Meta-learning itself": ("M1", "M2"),
}
_NO_GPU = "no GPU run is stored"
NOT_STORED = "its run is not stored yet"


@dataclass(frozen=True)
class Settled:
    """A claim's verdict at one scale, and the decisive test that settles it: of those with this
    verdict the least in favour.
    """

    claim: str
    scale: str
    verdict: str
    row: Row

    @property
    def margin(self) -> tuple[float, float, float]:
        """Low end, estimate and high end beyond the threshold on the claimed side, in smallest
        effects that matter.

        That is the threshold's own size, or, where it is 0, what other tests of the unit have.
        """
        rule = rulebook.rules()[self.claim, self.row.test]
        unit = (1 if rule["side"] == "above" else -1) * (
            abs(rule["threshold"]) or smallest_effect(rule["unit"])
        )
        low, middle, high = (
            (x - rule["threshold"]) / unit for x in (self.row.low, self.row.estimate, self.row.high)
        )
        return min(low, high), middle, max(low, high)


def smallest_effect(unit: str) -> float:
    """The smallest effect that matters in a unit: the median size of its decisive tests' thresholds
    that are not 0.
    """
    tests = [
        test for item in rulebook.claims().values() for test in item["tests"] if test["decisive"]
    ]
    sizes = [abs(test["threshold"]) for test in tests if test["unit"] == unit and test["threshold"]]
    if not sizes:
        raise ValueError(
            f"no decisive test has a threshold in {unit!r}: its margins have no measure; use the"
            " estimate itself"
        )
    return statistics.median_low(sizes)


def settled(table: list[Row]) -> list[Settled]:
    """One entry per claim and scale of the table, in the order of `rulebook.claims`."""
    found = []
    for (claim, scale, evidence), verdict in ledger.summary(table).items():
        rows = [
            row
            for row in table
            if (row.claim, row.scale, row.evidence) == (claim, scale, evidence) and row.decisive
        ]
        alike = [row for row in rows if row.verdict == verdict] or rows
        alike = [row for row in alike if row.has_value] or alike
        found.append(
            min(
                (Settled(claim, scale, verdict, row) for row in alike),
                key=lambda item: item.margin[1],
            )
        )
    return found


def why_not(claim: str, scale: str) -> str:
    """Why a claim has no verdict at a scale: claims.toml's reason, or that its run is not stored;
    '' where none is asked.
    """
    item = rulebook.claims()[claim]
    if scale == "published" or claim[0] != "C":
        return ""
    if scale == "gpu":
        return "" if "published" in item["scales"] else _NO_GPU
    if scale in item["scales"]:
        return NOT_STORED
    return item.get("absent", {}).get(scale, "")


def ordered(scales: Iterable[str]) -> list[str]:
    """Scales in the order of SCALES, each once; others follow by name."""
    known = {scale: k for k, scale in enumerate(SCALES)}
    return sorted(set(scales), key=lambda scale: (known.get(scale, len(SCALES)), scale))


def overview(table: list[Row]) -> str:
    """Markdown, a line per claim: the paper's number, and verdict, estimate and interval of the
    settling test at each scale.

    Claims without a verdict have no line, and scales without one no column. Where several evidence
    files speak of one claim and scale, each has its say.
    """
    found: dict[tuple[str, str], list[Settled]] = {}
    for item in settled(table):
        found.setdefault((item.claim, item.scale), []).append(item)
    scales = ordered({scale for _, scale in found})
    lines = [f"| claim | paper | {' | '.join(scales)} |", "|---" * (2 + len(scales)) + "|"]
    judged = {claim for claim, _ in found}
    for claim, item in rulebook.claims().items():
        if claim not in judged:
            continue
        cells = [_cell(found.get((claim, scale), []), why_not(claim, scale)) for scale in scales]
        lines.append(
            f"| {item['title']} ({claim}) | {item['paper']}: {item['reported']} |"
            f" {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def _cell(found: list[Settled], reason: str) -> str:
    if not found:
        return f"*{reason}*" if reason else "–"
    tests = rulebook.rules()
    return "; ".join(_settling(item, tests[item.claim, item.row.test]) for item in found)


def _settling(item: Settled, test: dict) -> str:
    row = item.row
    said = f"{test['label']} (`{row.test}`, claimed {test['side']} {test['threshold']:g})"
    return f"**{item.verdict}** {said}: {row.numbers(2)}{row.reason}".replace("|", "&#124;")


def details(table: list[Row]) -> str:
    """Markdown, a line per decisive test and scale: estimand, control, threshold, estimate with
    interval, n, verdict.
    """
    heads = "test | scale | estimand | control | claimed | estimate [95 % interval] | n | verdict"
    lines, tests = [f"| {heads} |", "|---" * 8 + "|"], rulebook.rules()
    for row in table:
        if row.decisive:
            test = tests[row.claim, row.test]
            cells = (
                f"{test['label']} ({row.claim}.{row.test})",
                row.scale,
                row.estimand,
                row.control,
                rulebook.wanted(test),
                row.numbers(3),
                row.count.replace("×", " × "),
                row.said,
            )
            lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(lines)


def floored(table: list[Row]) -> str:
    """Markdown, a line per claim and per test whose verdict the floor rule changed: scale, verdict
    before and now, and the accuracy of the test's better arm with the low end of its interval.
    """
    heads = "claim or test | scale | before | now | better arm [low end]"
    lines, known, tests = [f"| {heads} |", "|---" * 5 + "|"], rulebook.claims(), rulebook.rules()
    now = ledger.summary(table)
    was = ledger.summary([replace(row, verdict=row.before or row.verdict) for row in table])
    for (claim, scale, evidence), verdict in now.items():
        before = was[claim, scale, evidence]
        if verdict != before:
            lines.append(
                f"| **{known[claim]['title']} ({claim})** | {scale} | {before} | {verdict} | |"
            )
        for row in table:
            if row.before and (row.claim, row.scale, row.evidence) == (claim, scale, evidence):
                label = tests[claim, row.test]["label"].replace("|", "&#124;")
                name = f"{label} ({claim}.{row.test})" + ("" if row.decisive else ", beside")
                arm = f"{row.better:.3f} [{row.least}]"
                lines.append(f"| {name} | {scale} | {row.before} | {row.verdict} | {arm} |")
    return "\n".join(lines)
