"""Figures that compare arms, methods and groups: lines over seeds, shares, intervals, layers."""

from __future__ import annotations

import textwrap

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tml_lib.claims.stats import bootstrap_interval
from tml_lib.lessons import names
from tml_lib.lessons.names import Group
from tml_lib.records import Interval


def seed_bands(
    ax: Axes, x, tables: dict[str, np.ndarray], of: Group | None = None, *, legend: bool = True
) -> Axes:
    """A line per key of a group and its (seeds, n) table against x (n,): mean over seeds, 95 %
    bootstrap band where there are several; one entry of the legend says how many seeds.

    of: the group of `names`; a single table may do without. Raises ValueError for a key that it
    lacks.
    """
    if of is None and len(tables) == 1:
        of = names.only(*tables)
    for key, table in tables.items():
        style, table = names.style(of or {}, key), np.asarray(table, dtype=float)
        ax.plot(x, table.mean(0), lw=1.8, **style.line)
        if len(table) > 1:
            found = [bootstrap_interval(column, seed=0, n_resamples=999) for column in table.T]
            low, high = [i.low for i in found], [i.high for i in found]
            ax.fill_between(x, low, high, color=style.colour, alpha=0.18, lw=0)
    counts = sorted({len(table) for table in tables.values()})
    note = "1 seed" if counts == [1] else f"95 % band, {' or '.join(map(str, counts))} seeds"
    if note not in ax.get_legend_handles_labels()[1]:
        ax.plot([], [], " ", label=note)
    if legend:
        ax.legend(fontsize=8)
    return ax


def intervals(ax: Axes, rows: dict[str, Interval], of: Group | None = None, *, xlabel: str) -> Axes:
    """One line per estimate with its interval, from top to bottom, beside 0.

    of: the group whose keys the rows have; without one the keys are printed, in one colour.
    """
    for y, (key, found) in enumerate(rows.items()):
        style = names.style(of or names.only(key), key)
        ax.plot([found.low, found.high], [y, y], color=style.colour, lw=2)
        ax.plot(found.estimate, y, style.marker, color=style.colour, ms=6)
    ax.axvline(0, zorder=0, **names.REFERENCE)
    labels = [names.style(of, key).name if of else key for key in rows]
    ax.set_yticks(range(len(rows)), labels, fontsize=8)
    ax.set(xlabel=xlabel, ylim=(len(rows) - 0.5, -0.5))
    return ax


def shares(
    ax: Axes,
    rows: dict[str, dict[str, Interval]],
    of: Group,
    *,
    ylabel: str,
    chance: float | None = None,
) -> Axes:
    """Shares in 0..1 as points with intervals: a place on the axis per outer key, a mark per key of
    the group.

    chance: a dotted line there. Raises ValueError for an inner key that `of` lacks.
    """
    shown = list(dict.fromkeys(key for inner in rows.values() for key in inner))
    for key in shown:
        style, label = names.style(of, key), names.style(of, key).name
        for x, inner in enumerate(rows.values()):
            if key not in inner:
                continue
            aside = list(inner).index(key) - (len(inner) - 1) / 2
            place, found = x + aside * 0.8 / len(shown), inner[key]
            ax.plot([place, place], [found.low, found.high], color=style.colour, lw=2)
            ax.plot(place, found.estimate, style.marker, color=style.colour, ms=6, label=label)
            label = None  # in the legend once
    if chance is not None:
        ax.axhline(chance, **names.DOTTED)
        at = {"ha": "right", "va": "bottom", "fontsize": 7, "color": names.DARK}
        ax.annotate("chance", (ax.get_xlim()[1], chance), **at)
    letters = max(96 // len(rows), 8)  # of a group's name in a line
    labels = [textwrap.fill(name, letters, replace_whitespace=False) for name in rows]
    ax.set_xticks(range(len(rows)), labels, fontsize=7 if len(rows) > 5 else 8)
    ax.set(ylabel=ylabel, ylim=(-0.03, 1.03))
    columns = 3 if any(len(names.style(of, key).name) > 16 for key in shown) else 4
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "frameon": False}
    ax.legend(fontsize=8, ncols=min(len(shown), columns), **place)
    return ax


def by_layer(tables: dict[str, np.ndarray], labels: list[str]) -> Figure:
    """A panel per quantity, its mean over questions by layer: tables of (questions, lines, layers),
    labels of the lines.

    Later lines are darker; the last one carries a 95 % bootstrap band over questions where there
    are several.
    """
    figure, axes = plt.subplots(
        1, len(tables), figsize=(7, 2.9), layout="constrained", squeeze=False
    )
    shades = plt.get_cmap("viridis_r")(np.linspace(0.95, 0.15, len(labels))[::-1])
    for ax, (name, table) in zip(axes[0], tables.items(), strict=True):
        layers = np.arange(table.shape[2])
        for k, label in enumerate(labels):
            ax.plot(layers, table[:, k].mean(0), color=shades[k], lw=1.6, label=label)
        if len(table) > 1:
            bands = [
                bootstrap_interval(column, seed=0, n_resamples=999) for column in table[:, -1].T
            ]
            ax.fill_between(
                layers,
                [i.low for i in bands],
                [i.high for i in bands],
                color=shades[-1],
                alpha=0.2,
                lw=0,
            )
        ax.set(xlabel="layer", ylabel=name, ylim=(0, None))
    figure.legend(
        *axes[0][0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(labels),
        fontsize=8,
    )
    return figure
