"""Figures of a loss landscape and of paths over it."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from tml_lib.lessons import names
from tml_lib.lessons.plots.curves import NLL_LABEL
from tml_lib.records import Landscape


def surface(
    ax: Axes, found: Landscape, *, ends: tuple[float, float] | None = None, unit: str = "u"
) -> Axes:
    """Mean L̂ over a landscape's questions as filled contours, with a scale; ends: of the scale,
    for panels that share one; losses above it look alike.
    """
    nll = found.nll.mean(-1).T  # contourf wants rows along the second coordinate
    low, high = (float(nll.min()), float(nll.max())) if ends is None else ends
    levels = np.linspace(low, max(high, low + 1e-6), 13)
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
    style = names.style(names.CONDITIONS, kind)
    ax.plot(points[:, 0], points[:, 1], color="white", lw=2.6)
    ax.plot(points[:, 0], points[:, 1], color=style.colour, lw=1.2, label=style.name)
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
