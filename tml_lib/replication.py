"""The replication report: the ledger beside the paper's numbers, and where each of the paper's items is taken up.

Reads claims.toml, coverage.toml and evidence only; it computes nothing that a notebook or a study has not measured.
"""

from __future__ import annotations

import statistics
import tomllib
from dataclasses import dataclass
from pathlib import Path

import nbformat

from tml_lib import ledger, notebooks
from tml_lib.ledger import Row

SCALES = ("tiny", "small", "small-sft", "gpu", "published")
_NO_GPU = "no GPU run is stored"


@dataclass(frozen=True)
class Settled:
    """A claim's verdict at one scale, and the decisive test that settles it: of those with this verdict the least in favour."""

    claim: str
    scale: str
    verdict: str
    row: Row

    @property
    def margin(self) -> tuple[float, float, float]:
        """Low end, estimate and high end beyond the threshold on the claimed side, in smallest effects that matter.

        That is the threshold's own size, or, where it is 0, what other tests of the unit have.
        """
        rule = next(t for t in ledger.claims()[self.claim]["tests"] if t["name"] == self.row.test)
        unit = (1 if rule["side"] == "above" else -1) * (abs(rule["threshold"]) or smallest_effect(rule["unit"]))
        low, middle, high = ((x - rule["threshold"]) / unit for x in (self.row.low, self.row.estimate, self.row.high))
        return min(low, high), middle, max(low, high)


def smallest_effect(unit: str) -> float:
    """The smallest effect that matters in a unit: the median size of its decisive tests' thresholds that are not 0."""
    tests = [test for item in ledger.claims().values() for test in item["tests"] if test["decisive"]]
    sizes = [abs(test["threshold"]) for test in tests if test["unit"] == unit and test["threshold"]]
    if not sizes:
        raise ValueError(f"no decisive test has a threshold in {unit!r}: its margins have no measure; use the estimate itself")
    return statistics.median_low(sizes)


def settled(table: list[Row]) -> list[Settled]:
    """One entry per claim and scale of the table, in the order of `ledger.claims`."""
    found = []
    for (claim, scale, evidence), verdict in ledger.summary(table).items():
        rows = [row for row in table if (row.claim, row.scale, row.evidence) == (claim, scale, evidence) and row.decisive]
        alike = [row for row in rows if row.verdict == verdict] or rows
        found.append(min((Settled(claim, scale, verdict, row) for row in alike), key=lambda item: item.margin[1]))
    return found


def why_not(claim: str, scale: str) -> str:
    """Why a claim has no verdict at a scale: claims.toml's reason, or that its run is not stored; '' where none is asked."""
    item = ledger.claims()[claim]
    if scale == "published" or claim[0] != "C":
        return ""
    if scale == "gpu":
        return "" if "published" in item["scales"] else _NO_GPU
    if scale in item["scales"]:
        return "its run is not stored yet"
    return item.get("absent", {}).get(scale, "")


def overview(table: list[Row]) -> str:
    """Markdown, a line per claim: the paper's number, and verdict, estimate and interval of the settling test at each scale.

    Where several evidence files speak of one claim and scale, each has its say. Other scales than SCALES follow.
    """
    found: dict[tuple[str, str], list[Settled]] = {}
    for item in settled(table):
        found.setdefault((item.claim, item.scale), []).append(item)
    scales = [*SCALES, *sorted({scale for _, scale in found} - set(SCALES))]
    lines = [f"| claim | paper | {' | '.join(scales)} |", "|---" * (2 + len(scales)) + "|"]
    for claim, item in ledger.claims().items():
        cells = [_cell(found.get((claim, scale), []), why_not(claim, scale)) for scale in scales]
        lines.append(f"| **{claim}** {item['title']} | {item['paper']}: {item['reported']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(found: list[Settled], reason: str) -> str:
    if not found:
        return f"*{reason}*" if reason else "–"
    rows = [(item.verdict, item.row) for item in found]
    return "; ".join(f"**{v}** {r.test}: {r.estimate:.2f} [{r.low:.2f}, {r.high:.2f}] {r.unit}" for v, r in rows)


def details(table: list[Row]) -> str:
    """Markdown, a line per decisive test and scale: estimand, control, estimate with interval, n, verdict."""
    lines = ["| test | scale | estimand | control | estimate [95 % interval] | n | verdict |", "|---" * 7 + "|"]
    for row in table:
        if row.decisive:
            numbers = f"{row.estimate:.3f} [{row.low:.3f}, {row.high:.3f}] {row.unit}"
            count = f"{row.n_seeds} × {row.n_questions}" if row.n_seeds > 1 else f"{row.n_questions}"
            cells = (f"{row.claim}.{row.test}", row.scale, row.estimand, row.control, numbers, count, row.verdict)
            lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(lines)


# --- what of the paper is taken up where -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """A figure, table, algorithm or equation of the paper and where the kit takes it up."""

    id: str
    what: str
    how: str  # tested, shown, settings, not covered
    where: tuple[str, str] = ("", "")  # notebook, heading
    claims: tuple[str, ...] = ()
    note: str = ""


def coverage() -> list[Item]:
    """The items of coverage.toml; ValueError names one that is incomplete, or whose claim or heading does not exist."""
    text = (Path(__file__).parent / "coverage.toml").read_text(encoding="utf8")
    items = [Item(**{k: tuple(v) if isinstance(v, list) else v for k, v in i.items()}) for i in tomllib.loads(text)["items"]]
    known = {book.name: headings(book.path) for book in notebooks.discover()}
    for item in items:
        if item.how not in ("tested", "shown", "settings", "not covered"):
            raise ValueError(f"coverage.toml, {item.id}: how={item.how!r}; choose tested, shown, settings or not covered")
        if item.how == "not covered" and not item.note:
            raise ValueError(f"coverage.toml, {item.id}: not covered, and note does not say why")
        if item.how != "not covered" and item.where[1] not in known.get(item.where[0], ()):
            raise ValueError(f"coverage.toml, {item.id}: notebook {item.where[0]!r} has no heading {item.where[1]!r}")
        if missing := sorted(set(item.claims) - set(ledger.claims())):
            raise ValueError(f"coverage.toml, {item.id}: no claim {', '.join(missing)}; see claims.toml")
        if (item.how == "tested") != bool(item.claims):
            wrong = f"is {item.how} and names {', '.join(item.claims)}" if item.claims else "tested, and no claim is named"
            raise ValueError(f"coverage.toml, {item.id}: {wrong}; see claims.toml")
    return items


def headings(path: Path) -> set[str]:
    """The headings of a notebook's Markdown cells."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    lines = [line for cell in cells for line in cell.source.splitlines()]
    return {line.lstrip("#").strip() for line in lines if line.startswith("#")}


def coverage_table() -> str:
    """Markdown, a line per item of the paper: how and where it is taken up."""
    lines = ["| paper | what | how | where | note |", "|---|---|---|---|---|"]
    for item in coverage():
        how = item.how + (f": {', '.join(item.claims)}" if item.claims else "")
        name, heading = item.where
        said = heading.replace(r"$\hat L$", "L̂")  # an output on a web page has no formulas
        where = f"[{name[:2]}]({name}.ipynb), '{said}'" if name else "–"
        lines.append(f"| {item.id} | {item.what} | {how} | {where} | {item.note} |")
    return "\n".join(lines)
