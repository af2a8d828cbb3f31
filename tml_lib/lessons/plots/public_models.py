"""The figure of published models: accuracy against training questions."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from tml_lib.lessons import names

APART = 1.09  # the factor by which marks of one size are set aside


def published_models(ax: Axes, models: list[dict]) -> Axes:
    """AIME24 accuracy against training questions, a mark per model by whose trajectories it learnt;
    base models are lines.

    models: records of published.published.json, an accuracy each or None (not drawn). Hollow: only
    trajectories, or nothing, is stated. Thin lines reach to other published accuracies. Models
    that share a size stand a little apart.
    """
    unknown, places, boxes, used = 8e6, {}, [], set()
    ax.set(xscale="log", xlim=(250, 2e7), ylim=(0, 0.85), ylabel="AIME24 accuracy (share)")
    ax.set_xlabel("training questions (hollow: trajectories, where questions are not stated)")
    ax.set_xticks(
        [1e3, 1e4, 1e5, 1e6, unknown],
        ["1,000", "10,000", "100,000", "1,000,000", "neither\nstated"],
    )
    ax.minorticks_off()
    for style in names.SOURCES.values():
        ax.plot([], [], style.marker, color=style.colour, label=style.name)
    ax.plot([], [], color=names.DARK, lw=1, alpha=0.6, label="thin line: other published numbers")
    ax.legend(fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1), frameon=False)
    sizes = [m["questions"] or m["samples"] for m in models]
    for m in sorted((m for m in models if m["accuracy"] is not None), key=lambda m: -m["accuracy"]):
        if m["group"] == "base":
            ax.axhline(m["accuracy"], **names.DASHED)
            places[m["name"]] = (270, m["accuracy"], names.DARK)
            continue
        style = names.style(names.SOURCES, m["group"])
        colour, marker = style.colour, style.marker
        x = m["questions"] or m["samples"] or unknown
        span = [m["accuracy"], *(other["accuracy"] for other in m["others"])]
        if sizes.count(x) > 1:  # the first goes left, the others right
            x, used = (x * APART if x in used else x / APART), used | {x}
        boxes.append((x, min(span), max(span)))
        ax.plot([x, x], boxes[-1][1:], color=colour, lw=1, alpha=0.6)
        ax.plot(
            x, m["accuracy"], marker, color=colour, mfc=colour if m["questions"] else "white", ms=6
        )
        places[m["name"]] = (x, m["accuracy"], colour)
    _names_apart(ax, places, boxes)
    return ax


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
        choice = spots if colour != names.DARK else [(0, 2, "left", "bottom")]
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
