"""Where each figure, table, algorithm and equation of the paper is taken up: coverage.toml, checked
against the notebooks.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tml_lib import files
from tml_lib.claims import rulebook
from tml_lib.lessons import notebooks

FILE = Path(rulebook.__file__).parent / "coverage.toml"


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
    """The items of coverage.toml; ValueError names one that is incomplete, or whose claim or
    heading does not exist.
    """
    items = [
        Item(**{k: tuple(v) if isinstance(v, list) else v for k, v in i.items()})
        for i in files.table(FILE, files.COMMITTED, {"items": list})["items"]
    ]
    known = {book.name: headings(book.path) for book in notebooks.discover()}
    for item in items:
        if item.how not in ("tested", "shown", "settings", "not covered"):
            raise ValueError(
                f"coverage.toml, {item.id}: how={item.how!r}; choose tested, shown, settings or not"
                " covered"
            )
        if item.how == "not covered" and not item.note:
            raise ValueError(f"coverage.toml, {item.id}: not covered, and note does not say why")
        if item.how != "not covered" and item.where[1] not in known.get(item.where[0], ()):
            raise ValueError(
                f"coverage.toml, {item.id}: notebook {item.where[0]!r} has no heading"
                f" {item.where[1]!r}"
            )
        if missing := sorted(set(item.claims) - set(rulebook.claims())):
            raise ValueError(
                f"coverage.toml, {item.id}: no claim {', '.join(missing)}; see claims.toml"
            )
        if (item.how == "tested") != bool(item.claims):
            wrong = (
                f"is {item.how} and names {', '.join(item.claims)}"
                if item.claims
                else "tested, and no claim is named"
            )
            raise ValueError(f"coverage.toml, {item.id}: {wrong}; see claims.toml")
    return items


def headings(path: Path) -> set[str]:
    """The headings of a notebook's Markdown cells."""
    cells = [
        cell for cell in files.notebook(path, files.COMMITTED).cells if cell.cell_type == "markdown"
    ]
    lines = [line for cell in cells for line in cell.source.splitlines()]
    return {line.lstrip("#").strip() for line in lines if line.startswith("#")}


def coverage_table() -> str:
    """Markdown, a line per item of the paper: how and where it is taken up."""
    lines = ["| paper | what | how | where | note |", "|---|---|---|---|---|"]
    for item in coverage():
        how = item.how + (f": {', '.join(item.claims)}" if item.claims else "")
        name, heading = item.where
        said = heading.replace(r"$\hat L$", "L̂")  # an output on a web page has no formulas
        where = f"[{name.partition('_')[0]}]({name}.ipynb), '{said}'" if name else "–"
        lines.append(f"| {item.id} | {item.what} | {how} | {where} | {item.note} |")
    return "\n".join(lines)
