"""Figures of a training from trl's log history, drawn at its end or while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable

import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib.figure import Figure

from tml_lib.claims.stats import smooth
from tml_lib.lessons import names


def training(log: list[dict], figure: Figure | None = None) -> Figure:
    """Loss and share of learnt tokens that the model would choose, against the outer step, from
    trl's log history.
    """
    figure = figure or plt.figure(figsize=(7, 2.6), layout="constrained")
    figure.clear()
    axes = figure.subplots(1, 2)
    kept = [entry for entry in log if "loss" in entry]
    steps = [entry["step"] for entry in kept]
    axes[0].plot(steps, [entry["loss"] for entry in kept], "o-", ms=3, color=names.BLUE)
    axes[0].set(xlabel="outer step", ylabel="loss (nats per learnt token)", ylim=(0, None))
    axes[1].plot(
        steps, [entry["mean_token_accuracy"] for entry in kept], "o-", ms=3, color=names.VERMILION
    )
    axes[1].set(xlabel="outer step", ylabel="learnt tokens guessed right", ylim=(0, 1))
    return figure


def live_training() -> Callable[[list[dict]], None]:
    """A function that redraws `training` in place as the log grows; the last picture stays in the
    notebook.
    """
    return _live(training, 2.6)


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
        "reward": ("mean reward", names.BLUE, (None, 1.05)),
        "frac_reward_zero_std": (
            "groups without variance\n(share)",
            names.VERMILION,
            (-0.03, 1.03),
        ),
        "completions/mean_length": ("length of a sample\n(tokens)", names.GREEN, (0, None)),
        "entropy": ("entropy\n(nats per token)", names.PURPLE, (0, None)),
    }
    for ax, (key, (label, colour, limits)) in zip(
        figure.subplots(2, 2, sharex=True).flat, panels.items(), strict=True
    ):
        values = [float(entry[key]) for entry in kept]
        ax.plot(steps, values, "o", ms=3, alpha=0.5, color=colour)
        if values:
            ax.plot(steps, smooth(values, 0.3), lw=2, color=colour)
        ax.set(ylim=limits)
        ax.set_ylabel(label, fontsize=9)
    for ax in figure.axes[2:]:
        ax.set(xlabel="outer step")
    return figure


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
