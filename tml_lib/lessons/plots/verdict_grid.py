"""The ledger as a grid: claims in words by chapter of the argument, a column per scale."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, field

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from tml_lib.claims import report, rulebook
from tml_lib.claims.report import Settled
from tml_lib.lessons import names

# in inches
WIDTH = 7.0
HEAD = 0.8  # above the rows
CELL = 0.8  # a scale's column
CHAPTER = 0.3  # height of its title
TITLE, TEST = 0.125, 0.105  # height of a line
GAP = 0.06  # between claims


@dataclass
class _Line:
    """A test that settles a claim somewhere: its words in lines, and the cells beside it."""

    words: str
    cells: list[Settled] = field(default_factory=list)

    @property
    def height(self) -> float:
        return TEST * (self.words.count("\n") + 1) + 0.04


@dataclass
class _Claim:
    """A row of the grid: the claim in words, and the tests that settle it."""

    name: str
    title: str
    lines: list[_Line]

    @property
    def height(self) -> float:
        return TITLE * (self.title.count("\n") + 1) + sum(line.height for line in self.lines) + GAP


def verdicts(found: list[Settled]) -> Figure:
    """The grid of verdicts. A tile has the colour and symbol of its verdict, the estimate and its
    interval; it stands beside the test that settles the claim there, whose threshold is named.
    """
    present = {item.scale for item in found}
    scales = [scale for scale in names.SCALES if scale in present]
    scales += sorted(present - set(scales))
    left = {scale: WIDTH - CELL * (len(scales) - k) for k, scale in enumerate(scales)}
    chapters = _chapters(found, min(left.values()))
    height = sum(CHAPTER + sum(claim.height for claim in claims) for _, claims in chapters)
    figure = plt.figure(figsize=(WIDTH, height + HEAD))
    ax = figure.add_axes((0.01, 0.002, 0.98, height / (height + HEAD)))
    ax.set(xlim=(0, WIDTH), ylim=(height, 0))
    ax.axis("off")
    _heads(ax, left, found)
    y = 0.0
    for chapter, claims in chapters:
        y += CHAPTER
        ax.text(0, y - 0.07, chapter, va="bottom", fontsize=9, weight="bold", color=names.BLUE)
        ax.plot([0, WIDTH], [y - 0.04] * 2, color=names.BLUE, lw=0.8)
        for claim in claims:
            _row(ax, y, claim, left)
            y += claim.height
    return figure


def _chapters(found: list[Settled], width: float) -> list[tuple[str, list[_Claim]]]:
    """The chapters of the argument that have verdicts, with their claims; words in lines of so many
    inches.
    """
    known, chapters = rulebook.claims(), []
    for chapter, members in report.CHAPTERS.items():
        claims = []
        for name in members:
            own = [item for item in found if item.claim == name]
            title = textwrap.fill(f"{known[name]['title']} ({name})", int(17 * width))
            claims += [_Claim(name, title, _lines(own, width))] if own else []
        chapters += [(chapter, claims)] if claims else []
    return chapters


def _lines(own: list[Settled], width: float) -> list[_Line]:
    """The tests that settle a claim, each with its cells; a second file of the same scale has a
    line of its own.
    """
    lines: dict[tuple[str, int], _Line] = {}
    for item in own:
        rule = rulebook.rules()[item.claim, item.row.test]
        sign = ">" if rule["side"] == "above" else "<"
        claimed = f"claimed {sign} {rule['threshold']:g} {rule['unit']}".replace("-", "−", 1)
        parts = (rule["label"], claimed)
        words = [textwrap.fill(part, int(18.5 * width), break_on_hyphens=False) for part in parts]
        alike = [other for other in own if other.scale == item.scale]
        key = item.row.test, alike.index(item)
        lines.setdefault(key, _Line("\n".join(words))).cells.append(item)
    return list(lines.values())


def _row(ax: Axes, y: float, claim: _Claim, left: dict[str, float]) -> None:
    """A claim's words, and its tiles from the row's top to its foot."""
    top, foot = y, y + claim.height - GAP
    ax.text(0, y + 0.01, claim.title, va="top", fontsize=7.5, linespacing=1.1)
    y += TITLE * (claim.title.count("\n") + 1)
    cells = [item for line in claim.lines for item in line.cells]
    for line in claim.lines:
        middle = y + line.height / 2
        words = {"va": "center", "fontsize": 6.5, "color": names.DARK, "linespacing": 1.1}
        ax.text(0.08, middle, line.words, **words)
        for item in line.cells:
            several = [other.scale for other in cells].count(item.scale) > 1
            ends = (y, y + line.height) if several else (top, foot)
            at = (top + foot) / 2 if len(claim.lines) == 1 else middle
            _tile(ax, left[item.scale], ends, at, item)
        y += line.height
    for scale in set(left) - {item.scale for item in cells}:
        absent = {"ha": "center", "va": "center", "fontsize": 6, "color": names.GREY}
        ax.text(left[scale] + CELL / 2, (top + foot) / 2, _absent(claim.name, scale), **absent)


def _absent(claim: str, scale: str) -> str:
    return "no run yet" if report.why_not(claim, scale) == report.NOT_STORED else "–"


def _tile(ax: Axes, x: float, ends: tuple[float, float], y: float, item: Settled) -> None:
    """A verdict's colour and symbol with the estimate and its interval."""
    style, row = names.style(names.VERDICTS, item.verdict), item.row
    top, foot = ends
    shape = {"boxstyle": "round,pad=0,rounding_size=0.04", "ec": "none", "alpha": 0.16}
    corner, size = (x + 0.03, top), (CELL - 0.06, foot - top)
    ax.add_patch(FancyBboxPatch(corner, *size, fc=style.colour, **shape))
    ax.plot(x + 0.11, y - 0.05, style.marker, color=style.colour, ms=5.5)
    middle, *interval = (_written(n) for n in (row.estimate, row.low, row.high))
    ax.text(x + 0.19, y - 0.05, middle, va="center", fontsize=6.5, weight="bold")
    ax.text(x + 0.06, y + 0.06, f"[{', '.join(interval)}]", va="center", fontsize=6)


def _written(number: float) -> str:
    """A number in four characters or so; none is a negative zero."""
    text = f"{number:.1f}" if abs(number) >= 10 else f"{number:.2f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def _heads(ax: Axes, left: dict[str, float], found: list[Settled]) -> None:
    """Names of the scales over their columns, and the meaning of the symbols."""
    for scale, x in left.items():
        name = names.SCALES[scale].name if scale in names.SCALES else scale
        head, _, what = name.partition(": ")
        what = re.sub(r"(\d) ([MB])\b", "\\1\u00a0\\2", what)  # a number stays with its unit
        ax.text(x + 0.05, -0.05, textwrap.fill(what, 13), va="bottom", fontsize=6.5)
        ax.text(x + 0.05, -0.37, head, va="bottom", fontsize=7.5, weight="bold")
    ax.plot([0, WIDTH], [0, 0], clip_on=False, **names.REFERENCE)
    seen = {item.verdict for item in found}
    shown = [style for verdict, style in names.VERDICTS.items() if verdict in seen]
    for k, style in enumerate(shown):
        x, y = 0.07 + 1.1 * (k % 2), -0.42 + 0.15 * (k // 2)
        ax.plot(x, y, style.marker, color=style.colour, ms=5.5, clip_on=False)
        ax.text(x + 0.1, y, style.name, va="center", fontsize=7.5, color=style.colour)
    note = "Estimate and 95 % interval of the\ntest that settles the claim. –: not asked"
    ax.text(0, -0.53, note, va="bottom", fontsize=6.5, color=names.DARK, linespacing=1.1)
