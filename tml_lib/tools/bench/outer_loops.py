"""Outer loops: trl's trainer against the plain loop (SFT), and a GRPO step by its parts."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from unittest import mock

from tml_lib.data import programs
from tml_lib.lm import models
from tml_lib.tools.bench.shared import figure_rows, seconds_of
from tml_lib.tools.plan_cpu import one_thread

SFT_BAR = 2  # times the plain loop
GRPO_BAR = 1  # seconds a step


@one_thread()
def sft_rows(*, rounds: int = 3, say: Callable[[str], None] = print) -> list[dict]:
    """trl's trainer against the plain loop on the same rows: wall time of 20 steps of 64 rows, one
    thread.
    """
    from tml_lib.studies import supervised
    from tml_lib.train import sft

    lm, ratios, rates = models.load("tiny", device="cpu"), [], []
    stream = supervised.arm_rows(0, "long")
    batches = [stream(step) for step in range(20)]
    rows = [row for batch in batches for row in batch]
    settings = sft.SFTSettings(steps=20, peak_lr=supervised.PEAK_LR)
    for turn in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            by_trl = seconds_of(lambda run=run: sft.sft(lm, rows, run, settings))
        plain = seconds_of(lambda: supervised.tuned(lm, batches.__getitem__, 20))
        ratios.append(by_trl / plain)
        rates.append(plain / 20)
        say(f"sft, round {turn + 1}/{rounds}: trl takes {ratios[-1]:.2f} times the plain loop")
    setting = "tiny-base, 20 steps of 64 long rows, set-up included, one thread, float32"
    figures = [
        ("sft: time of trl's trainer by the plain loop's", ratios, "×", f"≤ {SFT_BAR}"),
        ("sft: plain step", rates, "s", ""),
    ]
    return figure_rows(figures, setting)


@one_thread()
def grpo_rows(
    *, rounds: int = 3, steps: int = 12, say: Callable[[str], None] = print
) -> list[dict]:
    """A GRPO step of tiny-long by its parts, and trl's own sampler in place of the kit's; one
    thread, float32.
    """
    lm = models.load("tiny", model=models.shipped("tiny-long"), device="cpu")
    asked = programs.questions(2 * steps)
    own, ratios = [], []
    for turn in range(rounds):
        own.append(_grpo_step(lm, asked, steps))
        with _trls_sampler():
            ratios.append(_grpo_step(lm, asked, steps)["sampling"] / own[-1]["sampling"])
        say(f"grpo, round {turn + 1}/{rounds}: {sum(own[-1].values()):.2f} s a step")
    figures = [(f"grpo: {part}", [row[part] for row in own], "s", "") for part in own[0]]
    figures += [("grpo: a whole step", [sum(row.values()) for row in own], "s", f"≤ {GRPO_BAR}")]
    figures += [("grpo: time of trl's sampler by the kit's", ratios, "×", "")]
    return figure_rows(
        figures,
        "tiny-long, 2 questions × 16 samples of up to 128 tokens, full training, one thread,"
        " float32",
    )


def _grpo_step(lm: models.LanguageModel, asked: list, steps: int) -> dict[str, float]:
    """Seconds of a step's parts: medians of all steps but the first, which warms up."""
    from tml_lib.data import rewards
    from tml_lib.train import grpo

    with tempfile.TemporaryDirectory() as folder:
        settings = grpo.GRPOSettings(steps=steps, peak_lr=3e-4)
        run = grpo.grpo(lm, asked, rewards.program_reward, Path(folder), settings)
    rows = [row for row in run.log if "reward" in row][1:]
    return {
        part: median(row[f"seconds_{part}"] for row in rows)
        for part in ("sampling", "scoring", "update")
    }


def _trls_sampler():
    """Within it the kit's trainer samples as trl does, and keeps the seconds."""
    import trl

    from tml_lib.train import grpo

    def theirs(trainer, *arguments, **settings):
        began = time.perf_counter()
        found = trl.GRPOTrainer._generate_single_turn(trainer, *arguments, **settings)
        trainer._metrics["train"]["seconds_sampling"].append(time.perf_counter() - began)
        return found

    return mock.patch.object(grpo.Trainer, "_generate_single_turn", theirs)
