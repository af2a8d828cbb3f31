"""The kit's one drawing: the analogy as a picture; frames around figures; figures as files."""

from __future__ import annotations

import contextlib
import io
import textwrap
from collections.abc import Iterator

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.transforms import blended_transform_factory

from tml_lib.lessons import names


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
    steps = (("−α∇L(support)", "−α∇L(support)"), ("token t₁", "token t₂"))
    loops = (
        "outer loop: change θ so that the adapted θ' solves the query",
        "outer loop: train θ through the trajectory",
    )
    for ax, (title, boxes), arrows, loop, colour in zip(
        axes, lanes, steps, loops, (names.ORANGE, names.BLUE), strict=True
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
                        color=names.DARK,
                    )
                )
            if 1 <= k <= 2:
                ax.text(x + 1.7, 1.36, arrows[k - 1], ha="center", fontsize=8, color=names.DARK)
        back = FancyArrowPatch(
            (9.0, 0.5),
            (2.8, 0.5),
            connectionstyle="arc3,rad=-0.12",
            arrowstyle="->",
            mutation_scale=12,
            color=colour,
        )
        ax.add_patch(back)
        ax.text(5.9, -0.22, loop, ha="center", fontsize=8.5, color=names.BLACK)
        ax.set(xlim=(-0.2, 9.9), ylim=(-0.4, 1.65))
        ax.set_title(title, fontsize=10, loc="left")
        ax.axis("off")
    return figure


@contextlib.contextmanager
def framed(title: str) -> Iterator[None]:
    """Every figure that the block makes gets a frame, and the title."""
    known = set(plt.get_fignums())
    yield
    for number in set(plt.get_fignums()) - known:
        figure = plt.figure(number)
        titled(figure, title)
        figure.patch.set_facecolor(names.PAPER)
        edge = {"fill": False, "lw": 3, "ec": names.GREY, "clip_on": False}
        figure.add_artist(Rectangle((0, 0), 1, 1, transform=figure.transFigure, **edge))


def titled(figure: Figure, title: str) -> None:
    """Put a title above the one that the figure has, in lines that are no wider than the figure. A
    line ends between two parts ('a · b') where it can.
    """
    held, width = figure.get_suptitle(), int(13 * figure.get_figwidth())
    parts = (p.replace(" ", "\xa0") if len(p) + 2 <= width else p for p in title.split(" · "))
    title = textwrap.fill("\xa0· ".join(parts), width, break_on_hyphens=False)
    title = title.replace("\xa0", " ")
    figure.suptitle(f"{title}\n{held}" if held else title, fontsize=8, color=names.DARK)


def at_left(ax: Axes, text: str, y: float, offset: tuple[float, float], **style) -> None:
    """Text from the figure's left edge, at a height of the axes and points away from there."""
    place = blended_transform_factory(ax.figure.transFigure, ax.transAxes)
    at = {"xycoords": place, "textcoords": "offset points", "xytext": offset, "ha": "left"}
    ax.annotate(text, (0.01, y), annotation_clip=False, **at, **style)


def png(figure: Figure, dpi: int = 130) -> bytes:
    """The figure as a PNG file; it is closed."""
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=dpi)
    plt.close(figure)
    return held.getvalue()
