"""The picture of the three findings: each test with its estimate, interval and verdict in words."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tml_lib.claims import ledger
from tml_lib.claims.ledger import Row
from tml_lib.lessons import findings, names
from tml_lib.lessons.plots.drawing import at_left


def three_findings(table: list[Row]) -> Figure:
    """A panel per finding; everything in it is said in words beside it."""
    shown = [findings.rows(finding, table) for finding in findings.FINDINGS]
    whole = {key[:2]: verdict for key, verdict in ledger.summary(table).items()}
    figure, axes = plt.subplots(
        len(shown),
        1,
        figsize=(7, sum(0.85 + 0.3 * len(rows) for rows in shown)),
        height_ratios=[len(rows) + 0.6 for rows in shown],
        layout="constrained",
    )
    for ax, finding, rows in zip(axes, findings.FINDINGS, shown, strict=True):
        _panel(ax, finding, rows, whole)
    return figure


def _panel(
    ax: Axes, finding: findings.Finding, rows: list[tuple[str, Row]], whole: dict[tuple, str]
) -> None:
    """whole: the claims' verdicts, by claim and scale."""
    at = findings.threshold(finding)
    for y, (_, row) in enumerate(rows):
        compared = f"{row.claim}.{row.test}" in finding.compared
        _test(ax, y, row, compared, whole.get((row.claim, row.scale), row.verdict))
    ax.axvline(0, zorder=0, **names.REFERENCE)
    ax.axvline(at, zorder=0, **names.DASHED)
    note = {"xytext": (3, 1), "textcoords": "offset points", "fontsize": 7, "color": names.DARK}
    ax.annotate("smallest effect that matters", (at, -0.6), va="bottom", **note)
    edges = [0, at, *finding.reach, *(x for _, row in rows for x in (row.low, row.high))]
    low, room = min(edges), max(edges) - min(edges)
    right = 0.04 if finding.reach else 0.4  # room for words
    ax.set(xlim=(low - 0.04 * room, low + (1 + right) * room), ylim=(len(rows) - 0.4, -0.6))
    ax.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=7.5)
    ax.set_xlabel(finding.axis, fontsize=7.5)
    ax.tick_params(axis="x", labelsize=7.5)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    title = {"fontsize": 9.5, "weight": "bold", "color": names.VERDICTS[finding.verdict].colour}
    at_left(ax, finding.title, 1.0, (0, 14), va="bottom", **title)


def _test(ax: Axes, y: float, row: Row, compared: bool, whole: str) -> None:
    """A test's estimate and interval, and its verdict in words; whole: its claim's verdict, which
    is told where it is another.
    """
    verdict = names.style(names.VERDICTS, row.verdict)
    colour, marker = (names.GREY, "o") if compared else (verdict.colour, verdict.marker)
    ax.plot([row.low, row.high], [y, y], color=colour, lw=2.5, solid_capstyle="butt")
    ax.plot(row.estimate, y, marker, color=colour, ms=6.5)
    said = f"{row.estimate:.2f}".replace("-", "−") + ("" if compared else f", {verdict.name}")
    said += "" if compared or whole == row.verdict else f"\n(its claim: {whole})"
    style = {"va": "center", "fontsize": 8, "color": colour}
    style["bbox"] = {"fc": "white", "ec": "none", "pad": 0.5}
    ax.annotate(said, (row.high, y), (6, 0), textcoords="offset points", **style)
