"""Figures of L̂ along trajectories, and of what its tokens do to it."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from tml_lib.claims.stats import bootstrap_interval, on_grid, smooth
from tml_lib.lessons import names
from tml_lib.records import ProbeCurve

NLL_LABEL = "answer NLL L̂ (nats per token)"
FEWEST = 8  # questions: the mean of fewer is drawn without a band
_PER_LINE = 88  # letters of `token_heat`


def curve(
    ax: Axes,
    curve: ProbeCurve,
    *,
    kind: str = "gold",
    label: str | None = None,
    smoothing: float | None = None,
) -> Axes:
    """L̂ against the number of trajectory tokens read, with a mark where the answer is first
    stated.

    smoothing: also draw the exponential moving average that the paper's notebook plots, in which a
    new value has this weight (0.01 there).
    """
    style = names.style(names.CONDITIONS, kind)
    ax.plot(
        curve.positions,
        curve.answer_nll,
        lw=1.6,
        **(style.line | ({"label": label} if label else {})),
    )
    if smoothing is not None:
        smoothed = smooth(curve.answer_nll, smoothing)
        ax.plot(
            curve.positions,
            smoothed,
            color=names.GREY,
            lw=2.5,
            label=f"moving average, new values weigh {smoothing:g}",
        )
    if curve.stated_at is not None:
        ax.axvline(curve.stated_at, color=style.colour, lw=0.9, ls=(0, (1, 2)))
        ax.annotate(
            "answer stated →",
            (curve.stated_at, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center" if curve.stated_at < 0.85 * curve.length else "right",
            va="bottom",
            fontsize=8,
            color=style.colour,
        )
    ax.set(xlabel="trajectory tokens in context, i", ylabel=NLL_LABEL)
    ax.autoscale(axis="y")  # also for curves that were drawn before, here or on an axis shared
    ax.set_ylim(bottom=0)
    return ax


def token_heat(curve: ProbeCurve) -> Figure:
    """The trajectory's text, each token coloured by ΔL̂_i = L̂_i - L̂_{i-1}: blue lowers the
    answer's NLL, red raises it.

    Needs a curve probed after every token; raises ValueError otherwise. A figure, so that it shows
    wherever images do.
    """
    if len(curve.positions) != curve.length + 1:
        raise ValueError(
            f"the curve has {len(curve.positions)} of {curve.length + 1} positions: probe with"
            " stride=1"
        )
    steps = np.diff(curve.answer_nll)
    places, line, column = [], 0, 0
    for token in curve.tokens:
        shown = token.replace("\n", "⏎")
        if column + len(shown) > _PER_LINE:
            line, column = line + 1, 0
        places.append((line, column, shown))
        column += len(shown)
        if "\n" in token:
            line, column = line + 1, 0
    lines = places[-1][0] + 1
    figure, ax = plt.subplots(figsize=(7, 0.55 + 0.24 * lines), layout="constrained")
    scale = Normalize(-(span := max(float(np.quantile(np.abs(steps), 0.97)), 1e-6)), span)
    colours = plt.get_cmap("RdBu_r")
    for (row, start, shown), change in zip(places, steps, strict=True):
        colour = colours(scale(change))
        ax.add_patch(Rectangle((start, row), max(len(shown), 1), 0.92, color=colour, lw=0))
        dark = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] < 0.5
        # one letter a cell: fixed width whatever font is at hand
        for offset, letter in enumerate(shown):
            style = {"fontsize": 7, "family": "monospace", "color": "white" if dark else "black"}
            ax.text(start + offset + 0.5, row + 0.48, letter, ha="center", va="center", **style)
    ax.set(xlim=(0, _PER_LINE), ylim=(lines, 0))
    ax.axis("off")
    bar = figure.colorbar(
        ScalarMappable(scale, colours),
        ax=ax,
        orientation="horizontal",
        fraction=0.12,
        aspect=60,
        pad=0.01,
    )
    bar.set_label(
        "ΔL̂ at this token (nats per token); colours saturate at the 97th percentile", fontsize=8
    )
    bar.ax.tick_params(labelsize=7)
    return figure


def bands(ax: Axes, groups: dict[str, list[ProbeCurve]], *, points: int = 41) -> Axes:
    """Mean L̂ over questions against the fraction of the trajectory read, with 95 % bootstrap
    bands (from `FEWEST` questions on), by condition; one without curves is left out.
    """
    grid = np.linspace(0, 1, points)
    for kind, curves in groups.items():
        if not curves:
            continue
        table = np.array([_read_off(c, grid) for c in curves])
        _band(ax, grid, table, names.style(names.CONDITIONS, kind))
    ax.set(xlabel="fraction of the trajectory read", ylabel=NLL_LABEL, xlim=(0, 1), ylim=(0, None))
    ax.legend(fontsize=8, loc="lower left")
    return ax


def bands_alone(groups: dict[str, list[ProbeCurve]]) -> Figure:
    """`bands` in a figure of its own."""
    figure, ax = plt.subplots(figsize=(7, 3.8), layout="constrained")
    bands(ax, groups)
    return figure


def differences(
    ax: Axes, pairs: dict[str, list[tuple[ProbeCurve, ProbeCurve]]], *, points: int = 41
) -> Axes:
    """Mean paired difference of L̂, first minus second curve, against the fraction read, with 95 %
    bootstrap bands.

    Pairing by question takes out how hard the questions are, so that smaller effects show than in
    `bands`.
    """
    grid = np.linspace(0, 1, points)
    for kind, both in pairs.items():
        if not both:
            continue
        table = np.array(
            [_read_off(first, grid) - _read_off(second, grid) for first, second in both]
        )
        style = names.style(names.CONDITIONS, kind)
        _band(ax, grid, table, style.called(f"gold minus {style.short}"))
    ax.axhline(0, **names.REFERENCE)
    ax.set(
        xlabel="fraction of the part before the statement",
        ylabel="difference of L̂ (nats per token)",
        xlim=(0, 1),
    )
    ax.text(
        0.01,
        0.02,
        "below 0: gold makes the answer likelier",
        transform=ax.transAxes,
        fontsize=8,
        color=names.DARK,
    )
    ax.legend(
        fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.01), borderaxespad=0, frameon=False
    )
    return ax


def _band(ax: Axes, grid: np.ndarray, table: np.ndarray, style: names.Style) -> None:
    """The mean over rows of a (questions, grid) table with its interval, resampling questions; few
    rows have none.
    """
    line = style.called(f"{style.name} (n = {len(table)})").line
    ax.plot(grid, table.mean(0), lw=1.8, marker=style.marker, ms=4, markevery=8, **line)
    if len(table) < FEWEST:
        return
    intervals = [bootstrap_interval(column, seed=0, n_resamples=999) for column in table.T]
    low, high = [i.low for i in intervals], [i.high for i in intervals]
    ax.fill_between(grid, low, high, color=style.colour, alpha=0.15, lw=0)


def _read_off(curve: ProbeCurve, grid: np.ndarray) -> np.ndarray:
    return on_grid(curve.positions, curve.answer_nll, curve.length, grid)


def token_path(axes: list[Axes], curves: dict[str, dict[str, np.ndarray]]) -> None:
    """Two panels over the tokens of equally long trajectories: L̂ after, and the step's cosine at,
    each token, by kind.

    curves: kind -> {'answer_nll': (seeds, n + 1), 'cosine': (seeds, n)}; thin lines are seeds,
    thick ones their mean.
    """
    for ax, (name, label) in zip(
        axes, (("answer_nll", NLL_LABEL), ("cosine", "cosine of the step with -∇L")), strict=True
    ):
        for kind, held in curves.items():
            style = names.style(names.CONDITIONS, kind)
            table = np.asarray(held[name], dtype=float)
            places = np.arange(table.shape[1]) + (name == "cosine")
            for row in table:
                ax.plot(places, row, color=style.colour, lw=0.5, alpha=0.4)
            ax.plot(places, table.mean(0), lw=1.8, **style.line)
        ax.set(xlabel="trajectory tokens read, i", ylabel=label)
        ax.label_outer()
        ax.axhline(0, zorder=0, **names.REFERENCE)


def relative_changes(ax: Axes, rows: list[list], marks: tuple[str, ...]) -> Axes:
    """|ΔL̂|/L̂ of every token against L̂ before it, both logarithmic; tokens of the classes in
    `marks` stand out.

    rows: [class, L̂ before, L̂ after] per token, nats per token.
    """
    floor = 1e-5  # what is smaller is drawn here
    other = names.Style("all other tokens", names.GREY)
    groups = {other: [row for row in rows if row[0] not in marks]}
    groups |= {
        names.style(names.CLASSES, mark): [row for row in rows if row[0] == mark] for mark in marks
    }
    for style, kept in groups.items():
        if not kept:
            continue
        before, after = (np.maximum(np.array([row[k] for row in kept]), floor) for k in (1, 2))
        change = np.maximum(np.abs(after - before) / before, floor)
        size = 6 if style is other else 26
        ax.scatter(
            before,
            change,
            s=size,
            color=style.colour,
            label=f"{style.name} (n = {len(kept)})",
            lw=0,
            alpha=0.7,
        )
    ax.set(
        xscale="log", yscale="log", xlabel="L̂ before the token (nats per token)", ylabel="|ΔL̂| / L̂"
    )
    ax.axhline(1, zorder=0, **names.DOTTED)
    note = {"fontsize": 7, "color": names.DARK, "va": "bottom", "xytext": (3, 5)}
    place = {"xycoords": ax.get_yaxis_transform(), "textcoords": "offset points"}
    ax.annotate("ratio 1: a fall of L̂ to zero", (0, 1), **place, **note)
    ax.legend(fontsize=8, loc="lower left")
    return ax
