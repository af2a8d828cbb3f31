"""Preset `medium`: its packed probe against the naive loop, its bfloat16 against float32, and its
sampling against `generate`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from tml_lib import runtime
from tml_lib.data import gsm
from tml_lib.lm import models, presets
from tml_lib.tools.bench.rollouts import against_generate
from tml_lib.tools.bench.shared import (
    figure_rows,
    for_all_prefixes,
    gold_text,
    naive_seconds,
    packed_seconds,
    places,
    seconds_of,
)
from tml_lib.tools.plan_cpu import one_thread

# at so many tokens: times the naive loop; bfloat16 times float32, on a processor with AMX
LENGTH, BAR, HALF_BAR = 256, 25, 3
ROWS, TOKENS, SAMPLING_BAR = 32, 256, 1.5


class _Round(NamedTuple):
    """One round: the text in words, seconds for all its prefixes in bfloat16, those of the naive
    loop, how many times float32's speed.
    """

    text: str
    packed: float
    naive: float
    gain: float


@one_thread()
def medium_rows(*, rounds: int = 3, say: Callable[[str], None] = print) -> list[dict]:
    """The packed probe of preset `medium` against the naive loop in the same dtype, and its
    bfloat16 against float32, and its sampling against `generate`; one thread. No rows where its
    weights are not fetched.

    The naive loop is timed at four positions a round, the dtypes at the last quarter's prefixes.
    Sampling takes minutes, and so one round.
    """
    weights = presets.PRESETS["medium"].model
    try:
        models.fetched_folder(weights, torch.bfloat16)
    except FileNotFoundError as reason:
        say(f"medium is skipped: {reason}")
        return []
    taken: list[_Round] = []
    for turn in range(rounds):
        one = _round(turn, rounds)
        taken.append(one)
        say(
            f"medium, {one.text}, round {turn + 1}/{rounds}: {one.naive / one.packed:.1f} times"
            f" the naive loop, {one.gain:.1f} times float32"
        )
    sampled = _sampling_rows(say)
    units = runtime.hardware_dtype(torch.device("cpu"))[1]
    half_bar = f"≥ {HALF_BAR}" if "amx" in units else ""
    ratios = [one.naive / one.packed for one in taken]
    figures = [
        ("medium: speed against the naive loop", ratios, "×", f"≥ {BAR}"),
        ("medium: time for all prefixes", [one.packed for one in taken], "s", ""),
        ("medium: bfloat16 by float32", [one.gain for one in taken], "×", half_bar),
    ]
    setting = f"{weights}, {taken[-1].text}, one thread, bfloat16; {units}"
    return [*figure_rows(figures, setting), *sampled]


def _round(turn: int, rounds: int) -> _Round:
    """One round, on a model loaded for it."""
    lm = models.load("medium", device="cpu", dtype="bfloat16")
    text = gold_text(lm, LENGTH)
    length = len(text.trajectory)
    packed_seconds(lm.model, text, [0, length])  # warm-up, and the checks of the model's first use
    whole = packed_seconds(lm.model, text, range(length + 1))
    naive = [naive_seconds(lm.model, text, i) for i in places(turn, rounds, length)]
    late = range(length * 3 // 4, length + 1)
    half = packed_seconds(lm.model, text, late)
    lm.model.float()
    packed_seconds(lm.model, text, [0, length])
    gain = packed_seconds(lm.model, text, late) / half
    return _Round(text.words, whole, for_all_prefixes(naive, length), gain)


def _sampling_rows(say: Callable[[str], None]) -> list[dict]:
    """Eight samples of each of four questions, by the kit and by `generate`: tokens a second, and
    their share of what the processor's rate of matrix products allows.
    """
    lm = models.load("medium", device="cpu", dtype="bfloat16")
    prompts = [lm.prompt(q.text) for q in gsm.gsm_symbolic(ROWS // 8, 0) for _ in range(8)]
    allowed = _allowed_rate(lm)
    ratio, rate = against_generate(lm, prompts, turn=0, most=TOKENS)
    say(f"medium, sampling: {rate:.1f} tokens a second, {ratio:.2f} times generate")
    setting = (
        f"{lm.name}, {ROWS} rows of {ROWS // 8} questions, T = 0.6, up to {TOKENS} tokens, one"
        " thread, bfloat16; the rate is that of one product with as many rows"
    )
    figures = [
        ("medium: tokens a second against generate", [ratio], "×", f"≥ {SAMPLING_BAR}"),
        ("medium: tokens a second", [rate], "1/s", ""),
        ("medium: sampling, share of the matrix rate", [100 * rate / allowed], "%", ""),
    ]
    return figure_rows(figures, setting)


def _allowed_rate(lm: models.LanguageModel) -> float:
    """Tokens a second that the processor's rate of matrix products allows, side by side."""
    linear = sum(p.numel() for name, p in lm.model.named_parameters() if "embed" not in name)
    size = lm.model.config
    a = torch.ones(ROWS, size.hidden_size, dtype=torch.bfloat16)
    b = torch.ones(size.hidden_size, size.intermediate_size, dtype=torch.bfloat16)
    seconds = min(seconds_of(lambda: a @ b) for _ in range(20))
    return a.numel() * b.shape[1] / seconds / linear
