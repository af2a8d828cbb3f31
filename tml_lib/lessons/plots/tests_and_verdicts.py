"""Figures of the ledger: tests beside their thresholds, and how one of them is decided."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tml_lib.claims import rulebook
from tml_lib.claims.ledger import Row
from tml_lib.lessons import names
from tml_lib.lessons.plots.drawing import at_left


def forest(table: list[Row]) -> Figure:
    """Each decisive test's estimate with its interval beside the threshold that its rule names; a
    panel per claim, unit and size of effect, under the claim's title. Where no test is decisive,
    all are drawn; one without a value never is.
    """
    table = [row for row in table if row.has_value]
    given, table = table, [row for row in table if row.decisive] or table
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
        ax.locator_params(axis="x", nbins=6)  # more labels than this run together
        ax.axvline(0, zorder=0, **names.REFERENCE)
        if claim in titled:
            continue
        titled.add(claim)
        title = f"{rulebook.claims()[claim]['title']} ({claim})"
        at_left(ax, textwrap.fill(title, 92), 1.0, (0, 5), va="bottom", weight="bold", fontsize=8)
    said = "Estimate and 95 % interval. Tick with arrow: threshold and side claimed."
    if left := len(given) - len(table):
        said += f" Decisive tests; {left} more explain."
    figure.suptitle(said, fontsize=7.5, color=names.DARK)
    return figure


def _test(ax: Axes, y: float, row: Row) -> None:
    """A test's estimate and interval in the colour of its verdict, and its threshold."""
    rule, style = rulebook.rules()[row.claim, row.test], names.style(names.VERDICTS, row.verdict)
    ax.plot([row.low, row.high], [y, y], color=style.colour, lw=2)
    ax.plot(row.estimate, y, "o" if row.decisive else "D", color=style.colour, ms=6)
    above, at = rule["side"] == "above", rule["threshold"]
    arrow = {"ha": "left" if above else "right", "va": "center", "fontsize": 8}
    ax.text(at, y, "▶" if above else "◀", color=names.DARK, **arrow)
    ax.plot([at, at], [y - 0.35, y + 0.35], color=names.DARK, lw=1)


def _words(row: Row) -> str:
    """A test's label, then its threshold in its own unit, its verdict, scale and code."""
    rule = rulebook.rules()[row.claim, row.test]
    label = textwrap.fill(rule["label"], 52, break_on_hyphens=False)
    return f"{label}\nclaimed {rulebook.wanted(rule)}: {row.verdict} ({row.scale}, {row.test})"


def decision(ax: Axes, values: Sequence[float], row: Row) -> None:
    """How one test is decided: its values, a bar per range of them; below, their mean with its
    interval; and the threshold. values: one per question, NaN where the test does not apply.
    """
    rule, style = rulebook.rules()[row.claim, row.test], names.style(names.VERDICTS, row.verdict)
    counts, *_ = ax.hist(np.array(values, dtype=float), 40, color=names.LIGHT)
    top = max(counts)
    y, at = -0.22 * top, rule["threshold"]
    ax.plot([row.low, row.high], [y, y], color=style.colour, lw=2.5)
    ax.plot(row.estimate, y, style.marker, color=style.colour, ms=6.5)
    said = f"mean {row.estimate:.2f} [{row.low:.2f}, {row.high:.2f}]: {style.name}"
    beside = {"textcoords": "offset points", "xytext": (8, 0), "va": "center", "fontsize": 8}
    ax.annotate(said, (row.high, y), color=style.colour, **beside)
    ax.axvline(at, color=names.DARK, lw=1)
    arrow = "claimed →" if rule["side"] == "above" else "← claimed"
    near = {"textcoords": "offset points", "xytext": (4, 1), "va": "bottom", "fontsize": 8}
    ax.annotate(f"threshold {at:g}, {arrow}", (at, top), color=names.DARK, **near)
    ax.set(
        xlabel=f"{rule['label']}\n({rule['unit']})",
        ylabel="questions",
        ylim=(-0.4 * top, 1.2 * top),
    )
    ax.set_yticks([tick for tick in ax.get_yticks() if 0 <= tick <= top])
