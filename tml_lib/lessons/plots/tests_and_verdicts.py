"""Figures of the ledger: tests beside their thresholds, and the page of all verdicts."""

from __future__ import annotations

import textwrap

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tml_lib.claims import ledger, report
from tml_lib.claims.ledger import Row
from tml_lib.claims.report import Settled
from tml_lib.lessons import names
from tml_lib.lessons.plots.drawing import at_left

# of the page of verdicts, in inches
WIDTH = 7.0
HEAD = 0.75  # above its rows
CELL = 0.85  # a scale's column
INDENT = 0.1  # of tests, under their claim


def forest(table: list[Row]) -> Figure:
    """Each test's estimate with its interval beside the threshold that its rule names; a panel per
    claim, unit and size of effect, under the claim's title.
    """
    panels: dict[tuple[str, str, bool], list[Row]] = {}  # effects beyond 1 get one of their own
    for row in table:
        panels.setdefault((row.claim, row.unit, abs(row.estimate) > 1), []).append(row)
    counts = [len(rows) for rows in panels.values()]
    figure, axes = plt.subplots(
        len(panels),
        1,
        figsize=(7, 0.3 + 0.85 * len(panels) + 0.48 * len(table)),
        height_ratios=[count + 0.2 for count in counts],
        layout="constrained",
        squeeze=False,
    )
    titled = set()
    for ax, ((claim, unit, _), rows) in zip(axes[:, 0], panels.items(), strict=True):
        for y, row in enumerate(rows):
            _test(ax, y, row)
        ax.set_yticks(range(len(rows)), [_words(row) for row in rows], fontsize=7.5)
        ax.set(xlabel=unit, ylim=(len(rows) - 0.4, -0.6))
        ax.axvline(0, zorder=0, **names.REFERENCE)
        if claim in titled:
            continue
        titled.add(claim)
        title = f"{ledger.claims()[claim]['title']} ({claim})"
        at_left(ax, textwrap.fill(title, 92), 1.0, (0, 5), va="bottom", weight="bold", fontsize=8)
    figure.suptitle(
        "Estimate and 95 % interval. Circle: decisive test; diamond: it explains. Tick with arrow:"
        " threshold and side claimed.",
        fontsize=7.5,
        color=names.DARK,
    )
    return figure


def _test(ax: Axes, y: float, row: Row) -> None:
    """A test's estimate and interval in the colour of its verdict, and its threshold."""
    rule, style = ledger.rules()[row.claim, row.test], names.style(names.VERDICTS, row.verdict)
    ax.plot([row.low, row.high], [y, y], color=style.colour, lw=2)
    ax.plot(row.estimate, y, "o" if row.decisive else "D", color=style.colour, ms=6)
    above, at = rule["side"] == "above", rule["threshold"]
    arrow = {"ha": "left" if above else "right", "va": "center", "fontsize": 8}
    ax.text(at, y, "▶" if above else "◀", color=names.DARK, **arrow)
    ax.plot([at, at], [y - 0.35, y + 0.35], color=names.DARK, lw=1)


def _words(row: Row) -> str:
    """A test's label, then its threshold in its own unit, its verdict, scale and code."""
    rule = ledger.rules()[row.claim, row.test]
    label = textwrap.fill(rule["label"], 52, break_on_hyphens=False)
    return f"{label}\nclaimed {ledger.wanted(rule)}: {row.verdict} ({row.scale}, {row.test})"


def verdicts(found: list[Settled]) -> Figure:
    """The page of verdicts: claims in words by chapter of the argument, a column per scale.

    Under each claim stand the tests that settle it, with the threshold; in a cell the verdict's
    symbol, the estimate and its interval, in the test's unit.
    """
    present = {item.scale for item in found}
    scales = [scale for scale in names.SCALES if scale in present]
    scales += sorted(present - set(scales))
    left = {scale: WIDTH - CELL * (len(scales) - k) for k, scale in enumerate(scales)}
    rows = [
        (kind, _wrapped(kind, text, min(left.values())), cells)
        for kind, text, cells in _page(found)
    ]
    height = sum(_height(kind, text) for kind, text, _ in rows)
    figure = plt.figure(figsize=(WIDTH, height + HEAD))
    ax = figure.add_axes((0.01, 0.005, 0.98, height / (height + HEAD)))
    ax.set(xlim=(0, WIDTH), ylim=(height, 0))
    ax.axis("off")
    _heads(ax, left)
    y = 0.0
    for kind, text, cells in rows:
        _row(ax, y, kind, text)
        y += _height(kind, text)
        for item in cells:
            _cell(ax, left[item.scale], y - _height(kind, text) / 2, item)
    return figure


def _page(found: list[Settled]) -> list[tuple[str, str, list[Settled]]]:
    """The page's rows from top to bottom: (kind, text, cells), kind chapter, claim or test."""
    tests, claims, lines = ledger.rules(), ledger.claims(), []
    for chapter, members in report.CHAPTERS.items():
        if not any(item.claim in members for item in found):
            continue
        lines.append(("chapter", chapter, []))
        for claim in members:
            own = [item for item in found if item.claim == claim]
            lines += [("claim", f"{claims[claim]['title']} ({claim})", [])] if own else []
            rows: dict[tuple[str, int], list[Settled]] = {}
            for item in own:
                alike = [other for other in own if other.scale == item.scale]
                rows.setdefault((item.row.test, alike.index(item)), []).append(item)
            for (test, _), cells in rows.items():
                rule = tests[claim, test]
                sign = ">" if rule["side"] == "above" else "<"
                claimed = f"claimed {sign} {rule['threshold']:g} {rule['unit']}".replace(
                    "-", "−", 1
                )
                lines.append(("test", f"{rule['label']}\n{claimed}", cells))
    return lines


def _wrapped(kind: str, text: str, width: float) -> str:
    """In lines of so many inches; chapters and claims may reach over the cells, which are empty."""
    letters = {"chapter": 80, "claim": 105, "test": int(20 * (width - INDENT))}[kind]
    parts = [textwrap.fill(part, letters, break_on_hyphens=False) for part in text.split("\n")]
    return "\n".join(parts)


def _height(kind: str, text: str) -> float:
    """Inches of a row."""
    line, space = {"chapter": (0.15, 0.12), "claim": (0.12, 0.045), "test": (0.1, 0.035)}[kind]
    return line * (text.count("\n") + 1) + space


def _row(ax: Axes, y: float, kind: str, text: str) -> None:
    size = _height(kind, text)
    if kind == "test":
        middle = {"va": "center", "fontsize": 6.5, "color": names.DARK, "linespacing": 1.1}
        ax.text(INDENT, y + size / 2, text, **middle)
        return
    style = {"fontsize": 9, "weight": "bold", "color": names.BLUE}
    if kind == "claim":
        style = {"fontsize": 7.5, "color": names.BLACK, "linespacing": 1.1}
    else:
        ax.plot([0, WIDTH], [y + size - 0.01] * 2, color=names.BLUE, lw=0.8)
    # at the foot of its space, next to what it heads
    ax.text(0, y + size - 0.025, text, va="bottom", **style)


def _cell(ax: Axes, x: float, y: float, item: Settled) -> None:
    """A verdict's symbol, and beside it the estimate with its interval."""
    style, row = names.style(names.VERDICTS, item.verdict), item.row
    ax.plot(x + 0.07, y, style.marker, color=style.colour, ms=5.5)
    digits = 1 if abs(row.estimate) >= 10 else 2
    middle, low, high = (f"{x:.{digits}f}" for x in (row.estimate, row.low, row.high))
    text = f"{middle}\n[{low}, {high}]".replace("-", "−")
    ax.text(x + 0.15, y, text, va="center", fontsize=6, color=style.colour, linespacing=1.05)


def _heads(ax: Axes, left: dict[str, float]) -> None:
    """Names of the scales over their columns, and the meaning of the symbols."""
    bottom = ax.get_ylim()[0]
    for scale, x in left.items():
        name = names.SCALES[scale].name if scale in names.SCALES else scale
        head, _, what = name.partition(": ")
        ax.text(x, -0.05, textwrap.fill(what, 15), va="bottom", fontsize=6.5)
        ax.text(x, -0.37, head, va="bottom", fontsize=7.5, weight="bold")
        ax.plot([x - 0.04] * 2, [0, bottom], color=names.LIGHT, lw=0.6, zorder=0)
    ax.plot([0, WIDTH], [0, 0], clip_on=False, **names.REFERENCE)
    shown = [names.VERDICTS[name] for name in ("holds", "contradicted", "inconclusive", "floor")]
    for k, style in enumerate(shown):
        x, y = 0.07 + 1.2 * (k % 2), -0.28 + 0.17 * (k // 2)
        ax.plot(x, y, style.marker, color=style.colour, ms=5.5, clip_on=False)
        ax.text(x + 0.1, y, style.name, va="center", fontsize=7.5, color=style.colour)
    note = "Estimate [95 % interval] of the test that settles the claim"
    ax.text(0, -0.45, note, va="bottom", fontsize=6.5, color=names.DARK)
