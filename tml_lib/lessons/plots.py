"""Figures: records in, matplotlib Axes or Figure out; the only module that imports matplotlib.

Colours are Okabe and Ito's, told apart by readers with any colour vision; every figure is legible
at 7 inches wide.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.transforms import Bbox, ScaledTranslation

from tml_lib.claims.ledger import Row, rules, wanted
from tml_lib.claims.report import Settled
from tml_lib.claims.stats import bootstrap_interval, on_grid, smooth
from tml_lib.records import Interval, Landscape, ProbeCurve

COLOURS = {
    "gold": "#0072B2",
    "corrupted": "#D55E00",
    "sampled": "#CC79A7",
    "foreign": "#000000",
    "shuffled": "#009E73",
    "copying": "#E69F00",
}
LABELS = {
    "gold": "gold",
    "corrupted": "wrong: gold with one value corrupted",
    "sampled": "wrong: the model's own sample",
    "foreign": "control: another question's trajectory",
    "shuffled": "control: gold steps shuffled",
    "copying": "control: unrelated text ending in the answer",
}
STEP_LABELS = {  # of the mean cosines in a summary of the update study
    "whole": "gold, whole",
    "gold": "gold, before the statement",
    "foreign": "another question's",
    "shuffled": "shuffled",
    "corrupted": "corrupted",
    "random": "random steps",
    "protected": "gold, prompt untouched",
}
TRANSFER_LABELS = {
    "gold": "gold",
    "foreign": "another's",
    "shuffled": "shuffled",
    "corrupted": "corrupted",
    "gradient": "gradient, as long",
    "matched_gradient": "gradient, same effect",
}
VERDICT_COLOURS = {"holds": "#009E73", "contradicted": "#D55E00"}
_DASHES = {
    "gold": "-",
    "corrupted": "--",
    "sampled": ":",
    "foreign": "-.",
    "shuffled": "--",
    "copying": ":",
}
NLL_LABEL = "answer NLL L̂ (nats per token)"


def curve(
    ax: Axes,
    curve: ProbeCurve,
    *,
    kind: str = "gold",
    label: str | None = None,
    alpha: float | None = None,
) -> Axes:
    """L̂ against the number of trajectory tokens read, with a mark where the answer is first
    stated.

    alpha: also draw the exponential moving average that the paper's notebook plots (0.01 there).
    """
    ax.plot(
        curve.positions,
        curve.answer_nll,
        color=COLOURS[kind],
        ls=_DASHES[kind],
        lw=1.6,
        label=label or LABELS[kind],
    )
    if alpha is not None:
        smoothed = smooth(curve.answer_nll, alpha)
        ax.plot(
            curve.positions, smoothed, color="0.55", lw=2.5, label=f"moving average, α = {alpha:g}"
        )
    if curve.stated_at is not None:
        ax.axvline(curve.stated_at, color=COLOURS[kind], lw=0.9, ls=(0, (1, 2)))
        ax.annotate(
            "answer first stated",
            (curve.stated_at, ax.get_ylim()[1]),
            xytext=(-4, -4),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=8,
            color=COLOURS[kind],
        )
    ax.set(xlabel="trajectory tokens in context, i", ylabel=NLL_LABEL, ylim=(0, None))
    return ax


def token_heat(curve: ProbeCurve, *, per_line: int = 88) -> Figure:
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
        if column + len(shown) > per_line:
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
    ax.set(xlim=(0, per_line), ylim=(lines, 0))
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


def bands(
    ax: Axes, groups: dict[str, list[ProbeCurve]], *, seed: int = 0, points: int = 41
) -> Axes:
    """Mean L̂ over questions against the fraction of the trajectory read, with 95 % bootstrap
    bands, by condition.
    """
    grid = np.linspace(0, 1, points)
    for kind, curves in groups.items():
        table = np.array([_read_off(c, grid) for c in curves])
        _band(ax, grid, table, kind, LABELS[kind], seed)
    ax.set(xlabel="fraction of the trajectory read", ylabel=NLL_LABEL, xlim=(0, 1), ylim=(0, None))
    ax.legend(fontsize=8, loc="lower left")
    return ax


def differences(
    ax: Axes,
    pairs: dict[str, list[tuple[ProbeCurve, ProbeCurve]]],
    *,
    seed: int = 0,
    points: int = 41,
) -> Axes:
    """Mean paired difference of L̂, first minus second curve, against the fraction read, with 95 %
    bootstrap bands.

    Pairing by question takes out how hard the questions are, so that smaller effects show than in
    `bands`.
    """
    grid = np.linspace(0, 1, points)
    for kind, both in pairs.items():
        table = np.array(
            [_read_off(first, grid) - _read_off(second, grid) for first, second in both]
        )
        _band(
            ax,
            grid,
            table,
            kind,
            f"gold minus {LABELS[kind].removeprefix('control: ').removeprefix('wrong: ')}",
            seed,
        )
    ax.axhline(0, color="0.6", lw=0.8)
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
        color="0.3",
    )
    ax.legend(
        fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.01), borderaxespad=0, frameon=False
    )
    return ax


def _band(ax: Axes, grid: np.ndarray, table: np.ndarray, kind: str, label: str, seed: int) -> None:
    """The mean over rows of a (questions, grid) table with its interval, resampling questions."""
    intervals = [bootstrap_interval(column, seed=seed, n_resamples=999) for column in table.T]
    style = {"color": COLOURS[kind], "ls": _DASHES[kind], "label": f"{label} (n = {len(table)})"}
    ax.plot(grid, [i.estimate for i in intervals], lw=1.8, **style)
    low, high = [i.low for i in intervals], [i.high for i in intervals]
    ax.fill_between(grid, low, high, color=COLOURS[kind], alpha=0.15, lw=0)


def _read_off(curve: ProbeCurve, grid: np.ndarray) -> np.ndarray:
    return on_grid(curve.positions, curve.answer_nll, curve.length, grid)


def seed_bands(ax: Axes, x, tables: dict[str, np.ndarray], *, legend: bool = True) -> Axes:
    """A line per named (seeds, n) table against x (n,): mean over seeds, 95 % bootstrap band where
    there are several.
    """
    for (name, table), colour, dash in zip(
        tables.items(), cycle(COLOURS.values()), cycle(_DASHES.values()), strict=False
    ):
        table = np.asarray(table, dtype=float)
        label = f"{name} ({len(table)} seed{'s' if len(table) > 1 else ''})"
        ax.plot(x, table.mean(0), color=colour, ls=dash, lw=1.8, label=label)
        if len(table) > 1:
            found = [bootstrap_interval(column, seed=0, n_resamples=999) for column in table.T]
            ax.fill_between(
                x, [i.low for i in found], [i.high for i in found], color=colour, alpha=0.18, lw=0
            )
    if legend:
        ax.legend(fontsize=8)
    return ax


def forest(table: list[Row]) -> Figure:
    """Each test's estimate with its interval beside the threshold that its rule names; a panel per
    unit and size.
    """
    panels: dict[tuple[str, bool], list[Row]] = {}  # effects beyond 1 get a panel of their own
    for row in table:
        panels.setdefault((row.unit, abs(row.estimate) > 1), []).append(row)
    units, counts = list(panels), [len(rows) for rows in panels.values()]
    size = (7, 0.8 * len(units) + 0.5 * len(table))
    figure, axes = plt.subplots(
        len(units), 1, figsize=size, height_ratios=counts, layout="constrained", squeeze=False
    )
    tests = rules()
    for ax, ((unit, _), rows) in zip(axes[:, 0], panels.items(), strict=True):
        for y, row in enumerate(rows):
            rule, colour = tests[row.claim, row.test], VERDICT_COLOURS.get(row.verdict, "0.35")
            ax.plot([row.low, row.high], [y, y], color=colour, lw=2)
            ax.plot(row.estimate, y, "o" if row.decisive else "D", color=colour, ms=6)
            arrow = "▶" if rule["side"] == "above" else "◀"
            ax.text(
                rule["threshold"],
                y,
                arrow,
                ha="left" if arrow == "▶" else "right",
                va="center",
                fontsize=8,
                color="0.4",
            )
            ax.plot([rule["threshold"]] * 2, [y - 0.35, y + 0.35], color="0.4", lw=1)
        names = [
            f"{_named(row, tests, width=48)}\nclaimed {wanted(tests[row.claim, row.test])}:"
            f" {row.verdict}"
            for row in rows
        ]
        ax.set_yticks(range(len(rows)), names, fontsize=7)
        ax.set(xlabel=unit, ylim=(len(rows) - 0.4, -0.6))
        ax.axvline(0, color="0.8", lw=0.8, zorder=0)
    note = (
        "Estimate and 95 % interval; circles decide, diamonds explain; tick with arrow: threshold"
        " and side claimed"
    )
    figure.suptitle(note, fontsize=9)
    return figure


def _named(row: Row, tests: dict[tuple[str, str], dict], *, width: int) -> str:
    """A test's label with its code, in lines of at most `width` characters."""
    label = tests[row.claim, row.test]["label"]
    return textwrap.fill(
        f"{label} ({row.claim} {row.test}, {row.scale})", width, break_on_hyphens=False
    )


def verdicts(found: list[Settled]) -> Figure:
    """Every claim's settling test at each scale, in smallest effects that matter beyond its
    threshold (0: the threshold).

    The axis is linear between -1 and 1 and logarithmic outside.
    """
    tests = rules()
    names = [_named(item.row, tests, width=56) for item in found]
    lines = sum(name.count("\n") + 1 for name in names)
    height = 0.6 + 0.15 * max(lines, 1.4 * len(found))
    figure, ax = plt.subplots(figsize=(7, height), layout="constrained")
    for y, item in enumerate(found):
        low, middle, high = item.margin
        colour = VERDICT_COLOURS.get(item.verdict, "0.35")
        ax.plot([low, high], [y, y], color=colour, lw=2)
        ax.plot(
            middle,
            y,
            {"holds": "o", "contradicted": "X"}.get(item.verdict, "D"),
            color=colour,
            ms=5,
        )
    ax.set_xscale("symlog", linthresh=1)
    ax.axvline(0, color="0.4", lw=1)
    ax.set_yticks(range(len(found)), names, fontsize=7)
    ax.set(
        xlabel="beyond the threshold, in smallest effects that matter",
        ylim=(len(found) - 0.5, -0.5),
    )
    for name, marker in {"holds": "o", "inconclusive": "D", "contradicted": "X"}.items():
        ax.plot([], [], marker, color=VERDICT_COLOURS.get(name, "0.35"), ms=5, label=name)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
    return figure


def intervals(
    ax: Axes, rows: dict[str, Interval], *, xlabel: str, colours: dict[str, str] | None = None
) -> Axes:
    """One line per named estimate with its interval, from top to bottom, beside 0. colours: by
    name, blue otherwise.
    """
    for y, (name, found) in enumerate(rows.items()):
        colour = (colours or {}).get(name, COLOURS["gold"])
        ax.plot([found.low, found.high], [y, y], color=colour, lw=2)
        ax.plot(found.estimate, y, "o", color=colour, ms=6)
    ax.axvline(0, color="0.6", lw=0.8, zorder=0)
    ax.set_yticks(range(len(rows)), list(rows), fontsize=8)
    ax.set(xlabel=xlabel, ylim=(len(rows) - 0.5, -0.5))
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
        loc="outside upper center",
        ncols=len(labels),
        fontsize=8,
    )
    return figure


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
            table = np.asarray(held[name], dtype=float)
            places = np.arange(table.shape[1]) + (name == "cosine")
            for row in table:
                ax.plot(places, row, color=COLOURS[kind], lw=0.5, alpha=0.4)
            ax.plot(
                places,
                table.mean(0),
                color=COLOURS[kind],
                ls=_DASHES[kind],
                lw=1.8,
                label=LABELS[kind],
            )
        ax.set(xlabel="trajectory tokens read, i", ylabel=label)
        ax.label_outer()
        ax.axhline(0, color="0.6", lw=0.8, zorder=0)


def idea() -> Figure:
    """The analogy as a picture: MAML's two loops beside a question, its trajectory and its answer
    (RaML Fig. 1, §2).
    """
    figure, axes = plt.subplots(2, 1, figsize=(7, 3.6), layout="constrained")
    lanes = (
        (
            "Meta-learning (MAML): few gradient steps adapt θ to a task",
            ["task", "θ", "θ'₁", "θ'₂", "query loss"],
        ),
        (
            "RaML: reading a trajectory acts like such steps",
            ["question", "θ", "θ'₁", "θ'₂", "answer NLL L̂"],
        ),
    )
    steps = (("−η∇L(support)", "−η∇L(support)"), ("token t₁", "token t₂"))
    loops = (
        "outer loop: change θ so that the adapted θ' solves the query",
        "outer loop: train θ through the trajectory",
    )
    for ax, (title, boxes), arrows, loop, colour in zip(
        axes, lanes, steps, loops, ("#E69F00", "#0072B2"), strict=True
    ):
        for k, text in enumerate(boxes):
            x = 2.1 * k
            ax.add_patch(
                FancyBboxPatch(
                    (x, 0.6), 1.3, 0.6, boxstyle="round,pad=0.06", fc="white", ec=colour, lw=1.6
                )
            )
            ax.text(x + 0.65, 0.9, text, ha="center", va="center", fontsize=9)
            if k < len(boxes) - 1:
                ax.add_patch(
                    FancyArrowPatch(
                        (x + 1.38, 0.9),
                        (x + 2.03, 0.9),
                        arrowstyle="->",
                        mutation_scale=10,
                        color="0.3",
                    )
                )
            if 1 <= k <= 2:
                ax.text(x + 1.7, 1.36, arrows[k - 1], ha="center", fontsize=8, color="0.25")
        back = FancyArrowPatch(
            (9.0, 0.5),
            (2.8, 0.5),
            connectionstyle="arc3,rad=-0.12",
            arrowstyle="->",
            mutation_scale=12,
            color=colour,
        )
        ax.add_patch(back)
        ax.text(5.9, -0.22, loop, ha="center", fontsize=8.5, color="0.15")
        ax.set(xlim=(-0.2, 9.9), ylim=(-0.4, 1.65))
        ax.set_title(title, fontsize=10, loc="left")
        ax.axis("off")
    return figure


# --- the outer loop -------------------------------------------------------------------------------


def training(log: list[dict], figure: Figure | None = None) -> Figure:
    """Loss and share of learnt tokens that the model would choose, against the outer step, from
    trl's log history.
    """
    figure = figure or plt.figure(figsize=(7, 2.6), layout="constrained")
    figure.clear()
    axes = figure.subplots(1, 2)
    kept = [entry for entry in log if "loss" in entry]
    steps = [entry["step"] for entry in kept]
    axes[0].plot(steps, [entry["loss"] for entry in kept], "o-", ms=3, color=COLOURS["gold"])
    axes[0].set(xlabel="outer step", ylabel="loss (nats per learnt token)", ylim=(0, None))
    axes[1].plot(
        steps,
        [entry["mean_token_accuracy"] for entry in kept],
        "o-",
        ms=3,
        color=COLOURS["corrupted"],
    )
    axes[1].set(xlabel="outer step", ylabel="learnt tokens guessed right", ylim=(0, 1))
    return figure


def live_training() -> Callable[[list[dict]], None]:
    """A function that redraws `training` in place as the log grows; the last picture stays in the
    notebook.
    """
    return _live(training, 2.6)


def live_rewards() -> Callable[[list[dict]], None]:
    """The same with `rewards`, at most once in two seconds and at the end: drawing takes as long as
    a step of a tiny model.
    """
    return _live(rewards, 4, every=2.0)


def _live(
    draw: Callable[[list[dict], Figure], Figure], height: float, every: float = 0.0
) -> Callable[[list[dict]], None]:
    figure, handle, due = plt.figure(figsize=(7, height), layout="constrained"), None, 0.0

    def show(log: list[dict]) -> None:
        nonlocal handle, due
        if time.monotonic() < due and "train_runtime" not in log[-1]:
            return
        draw(log, figure)
        due = time.monotonic() + every
        handle = (
            display(figure, display_id=True) if handle is None else handle.update(figure) or handle
        )

    plt.close(figure)  # or the cell would show it once more
    return show


def shares(
    ax: Axes, rows: dict[str, dict[str, Interval]], *, ylabel: str, chance: float | None = None
) -> Axes:
    """Shares in 0..1 as points with intervals: a group per outer key, a colour per inner key.
    chance: a dotted line there.
    """
    names = list(dict.fromkeys(name for group in rows.values() for name in group))
    palette = dict(zip(names, cycle(list(COLOURS.values())), strict=False))
    for k, name in enumerate(names):
        for x, group in enumerate(rows.values()):
            if name in group:
                found, place = (
                    group[name],
                    x + (list(group).index(name) - (len(group) - 1) / 2) * 0.8 / len(names),
                )
                ax.plot([place, place], [found.low, found.high], color=palette[name], lw=2)
                label = (
                    name if x == next(i for i, g in enumerate(rows.values()) if name in g) else None
                )
                ax.plot(
                    place, found.estimate, "os^Dvp"[k % 6], color=palette[name], ms=6, label=label
                )
    if chance is not None:
        ax.axhline(chance, color="0.5", lw=0.9, ls=":")
        ax.annotate(
            "chance", (ax.get_xlim()[1], chance), ha="right", va="bottom", fontsize=7, color="0.4"
        )
    ax.set_xticks(range(len(rows)), list(rows), fontsize=8)
    ax.set(ylabel=ylabel, ylim=(-0.03, 1.03))
    ax.legend(
        fontsize=8,
        ncols=min(len(names), 4),
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        frameon=False,
    )
    return ax


def surface(ax: Axes, found: Landscape, *, top: float | None = None, unit: str = "α") -> Axes:
    """Mean L̂ over a landscape's questions as filled contours, with a scale; top: losses above it
    look alike.
    """
    nll = found.nll.mean(-1).T  # contourf wants rows along the second coordinate
    high = float(nll.max() if top is None else min(top, nll.max()))
    levels = np.linspace(float(nll.min()), max(high, float(nll.min()) + 1e-6), 13)
    shown = ax.contourf(found.first, found.second, nll, levels=levels, cmap="cividis", extend="max")
    ax.figure.colorbar(shown, ax=ax, fraction=0.05, pad=0.02, format="%.2g").set_label(
        NLL_LABEL, fontsize=8
    )
    ax.set(xlabel=f"first direction, {unit}₁", ylabel=f"second direction, {unit}₂")
    return ax


def path_on(
    ax: Axes, points: np.ndarray, *, stated_at: int | None = None, kind: str = "gold"
) -> Axes:
    """A path's points (n, 2) over a surface, from the circle to the star; a square where the answer
    is first stated.
    """
    ax.plot(points[:, 0], points[:, 1], color="white", lw=2.6)
    ax.plot(points[:, 0], points[:, 1], color=COLOURS[kind], lw=1.2, label=LABELS[kind])
    marks = [("o", 0, "nothing read")] + (
        [("s", stated_at, "before the statement")] if stated_at is not None else []
    )
    for mark, place, label in [*marks, ("*", len(points) - 1, "all read")]:
        ax.plot(
            *points[place],
            mark,
            color="white",
            mec="black",
            ms=11 if mark == "*" else 7,
            label=label,
        )
    return ax


def relative_changes(ax: Axes, rows: list[list], marks: tuple[str, ...]) -> Axes:
    """|ΔL̂|/L̂ of every token against L̂ before it, both logarithmic; tokens of the classes in
    `marks` stand out.

    rows: [class, L̂ before, L̂ after] per token, nats per token.
    """
    floor = 1e-5  # what is smaller is drawn here
    groups = {"all other tokens": [row for row in rows if row[0] not in marks]}
    groups |= {name: [row for row in rows if row[0] == name] for name in marks}
    for (name, kept), colour in zip(
        groups.items(), cycle(["0.6", *list(COLOURS.values())[1:]]), strict=False
    ):
        if not kept:
            continue
        before, after = (np.maximum(np.array([row[k] for row in kept]), floor) for k in (1, 2))
        change = np.maximum(np.abs(after - before) / before, floor)
        size = 6 if colour == "0.6" else 26
        ax.scatter(
            before, change, s=size, color=colour, label=f"{name} (n = {len(kept)})", lw=0, alpha=0.7
        )
    ax.set(
        xscale="log", yscale="log", xlabel="L̂ before the token (nats per token)", ylabel="|ΔL̂| / L̂"
    )
    ax.legend(fontsize=8, loc="lower left")
    return ax


def rewards(log: list[dict], figure: Figure | None = None) -> Figure:
    """GRPO's reward, share of groups without variance, length of samples and entropy, against the
    step, from trl's log.

    Points are steps, each on questions of its own; the thick line is their exponential moving
    average, α = 0.3.
    """
    figure = figure or plt.figure(figsize=(7, 4), layout="constrained")
    figure.clear()
    kept = [entry for entry in log if "reward" in entry]
    steps = [entry["step"] for entry in kept]
    panels = {
        "reward": ("mean reward", "gold", (None, 1.05)),
        "frac_reward_zero_std": ("groups without variance\n(share)", "corrupted", (-0.03, 1.03)),
        "completions/mean_length": ("length of a sample\n(tokens)", "shuffled", (0, None)),
        "entropy": ("entropy\n(nats per token)", "sampled", (0, None)),
    }
    for ax, (key, (label, kind, limits)) in zip(
        figure.subplots(2, 2, sharex=True).flat, panels.items(), strict=True
    ):
        values = [float(entry[key]) for entry in kept]
        ax.plot(steps, values, "o", ms=3, alpha=0.5, color=COLOURS[kind])
        if values:
            ax.plot(steps, smooth(values, 0.3), lw=2, color=COLOURS[kind])
        ax.set(ylim=limits)
        ax.set_ylabel(label, fontsize=9)
    for ax in figure.axes[2:]:
        ax.set(xlabel="outer step")
    return figure


def published_models(ax: Axes, models: list[dict]) -> Axes:
    """AIME24 accuracy against training questions, a mark per model by whose trajectories it learnt;
    base models are lines.

    models: records of published.published.json, an accuracy each or None (not drawn). Hollow: only
    trajectories, or nothing, is stated. Thin lines reach to the accuracies that other texts give.
    """
    styles = {
        "off-policy": ("gold", "o"),
        "on-policy": ("corrupted", "s"),
        "both": ("sampled", "^"),
    }
    unknown, places, boxes = 8e6, {}, []
    ax.set(xscale="log", xlim=(250, 2e7), ylim=(0, 0.85), ylabel="AIME24 accuracy (share)")
    ax.set_xlabel("training questions (hollow: trajectories, where questions are not stated)")
    ax.set_xticks(
        [1e3, 1e4, 1e5, 1e6, unknown],
        ["1,000", "10,000", "100,000", "1,000,000", "neither\nstated"],
    )
    ax.minorticks_off()
    for kind, (colour, marker) in styles.items():
        ax.plot(
            [],
            [],
            marker,
            color=COLOURS[colour],
            label=f"{kind}: own and others'" if kind == "both" else kind,
        )
    ax.legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
    sizes = [m["questions"] or m["samples"] for m in models]
    for m in sorted((m for m in models if m["accuracy"] is not None), key=lambda m: -m["accuracy"]):
        if m["group"] == "base":
            ax.axhline(m["accuracy"], color="0.6", lw=0.9, ls="--")
            places[m["name"]] = (270, m["accuracy"], "0.35")
            continue
        colour, marker = COLOURS[styles[m["group"]][0]], styles[m["group"]][1]
        x = m["questions"] or m["samples"] or unknown
        span = [m["accuracy"], *(other["accuracy"] for other in m["others"])]
        beside = ScaledTranslation(_aside(x, sizes, boxes) * 3.5 / 72, 0, ax.figure.dpi_scale_trans)
        boxes.append((x, min(span), max(span)))
        ax.plot(
            [x, x], boxes[-1][1:], color=colour, lw=1, alpha=0.6, transform=ax.transData + beside
        )
        ax.plot(
            x, m["accuracy"], marker, color=colour, mfc=colour if m["questions"] else "white", ms=6
        )
        places[m["name"]] = (x, m["accuracy"], colour)
    _names_apart(ax, places, boxes)
    return ax


def _aside(x: float, sizes: list, drawn: list[tuple[float, float, float]]) -> int:
    """The side of its mark on which a line is drawn: 0 on it; of models that share a size the first
    -1, left, the others 1.
    """
    if sizes.count(x) < 2:
        return 0
    return 1 if any(x == other for other, *_ in drawn) else -1


def _names_apart(
    ax: Axes, places: dict[str, tuple[float, float, str]], lines: list[tuple[float, float, float]]
) -> None:
    """Write names beside their points (x, y, colour) where they cover no other name, point or line
    (x, low, high).
    """
    ax.figure.draw_without_rendering()  # the layout moves the axes
    spots = [
        (7, 0, "left", "center"),
        (-7, 0, "right", "center"),
        (5, 6, "left", "bottom"),
        (-5, 6, "right", "bottom"),
    ]
    spots += [
        (5, -6, "left", "top"),
        (-5, -6, "right", "top"),
        (0, 9, "center", "bottom"),
        (0, -9, "center", "top"),
    ]
    taken = [ax.transData.transform([(x, low), (x, high)]) for x, low, high in lines]
    taken = [Bbox(ends).padded(4) for ends in taken]
    for name, (x, y, colour) in places.items():
        choice = spots if colour != "0.35" else [(0, 2, "left", "bottom")]
        for dx, dy, ha, va in choice:
            style = {
                "textcoords": "offset points",
                "ha": ha,
                "va": va,
                "fontsize": 7,
                "color": colour,
            }
            text = ax.annotate(name, (x, y), xytext=(dx, dy), **style)
            box = text.get_window_extent()
            inside = ax.bbox.x0 < box.x0 and box.x1 < ax.bbox.x1
            if (inside and not any(box.overlaps(other) for other in taken)) or (
                dx,
                dy,
                ha,
                va,
            ) == choice[-1]:
                break
            text.remove()
        taken.append(box)
