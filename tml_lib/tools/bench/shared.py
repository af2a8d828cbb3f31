"""What the benchmarks share: rows of figures, seconds of a call, the texts and places at which they
are taken, and the machine's rate of matrix products.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

import torch

from tml_lib.data import gsm
from tml_lib.lm import models
from tml_lib.lm.answers import ANSWER_TEMPLATE, Suffix, encode
from tml_lib.measure.probe import naive_nll, prefix_nll


class Text(NamedTuple):
    """What is probed, as token ids."""

    prompt: Sequence[int]
    trajectory: Sequence[int]
    suffix: Suffix

    @property
    def words(self) -> str:
        """Its lengths, as a setting names them."""
        prompt, suffix = len(self.prompt), len(self.suffix.ids)
        return f"|t| = {len(self.trajectory)}, prompt {prompt}, suffix {suffix}"


def figure_rows(figures: list[tuple], setting: str) -> list[dict]:
    """Medians over rounds as rows of name, value, unit, bar, setting."""
    return [
        {
            "name": what,
            "value": round(median(values), 2),
            "unit": unit,
            "bar": limit,
            "setting": setting,
        }
        for what, values, unit, limit in figures
    ]


def gold_text(lm: models.LanguageModel, length: int) -> Text:
    """A prompt, gold trajectories joined until they have `length` tokens, and a suffix with a
    two-token answer.
    """
    questions = gsm.gsm_symbolic(64, seed=0)
    prompt = lm.prompt(questions[0].text)
    joined = "\n".join(gsm.gold(q).text for q in questions)
    encoded = encode(lm.tokenizer, prompt, joined, ["42"], ANSWER_TEMPLATE)
    return Text(encoded.prompt, encoded.trajectory[:length], encoded.suffixes[0])


def places(turn: int, rounds: int, length: int) -> list[int]:
    """Four positions that stratify 0..length; every other quarter is sampled as late, so that
    rounds agree.
    """
    early = (turn + 0.5) / rounds  # of its quarter
    return [int((k + (early if k % 2 else 1 - early)) * length / 4) for k in range(4)]


def for_all_prefixes(seconds: list[float], length: int) -> float:
    """Seconds at four places, scaled to all length + 1 prefixes."""
    return sum(seconds) / 4 * (length + 1)


# --- instruments ----------------------------------------------------------------------------------


def seconds_of(call: Callable[[], object]) -> float:
    """Seconds of wall time that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def packed_seconds(model: torch.nn.Module, text: Text, positions: Sequence[int]) -> float:
    """Seconds of the packed probe at some prefixes of a text."""
    prompt, trajectory, suffix = text
    return seconds_of(lambda: prefix_nll(model, prompt, trajectory, [suffix], positions))


def naive_seconds(
    model: torch.nn.Module, text: Text, position: int, *, few_logits: bool = False
) -> float:
    """Seconds of the naive loop at one prefix of a text; few_logits: with the head at needed rows
    only.
    """
    return seconds_of(lambda: naive_nll(model, *text, position, few_logits=few_logits))


def linear_flops(model: torch.nn.Module, call: Callable[[], object]) -> float:
    """Floating-point operations of all linear layers during a call."""
    total = 0

    def count(module, inputs, output):
        nonlocal total
        total += 2 * output.numel() * module.in_features

    hooks = [
        m.register_forward_hook(count) for m in model.modules() if isinstance(m, torch.nn.Linear)
    ]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return float(total)


def sgemm_rate(seconds: float = 0.5) -> float:
    """Floating-point operations a second of a matrix product of the probe's usual shape, one
    thread, float32.
    """
    left, right = torch.randn(256, 576), torch.randn(576, 1536)
    left @ right
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        left @ right
        count += 1
    return count * 2 * 256 * 576 * 1536 / (time.perf_counter() - began)
