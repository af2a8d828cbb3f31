"""The parameter path in one packed pass against one update per prefix."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from tml_lib.lm import models
from tml_lib.measure.implicit import update_from_ids
from tml_lib.measure.parameter_paths import path_from_ids
from tml_lib.tools.bench.shared import (
    Text,
    figure_rows,
    for_all_prefixes,
    gold_text,
    naive_seconds,
    places,
    seconds_of,
)
from tml_lib.tools.plan_cpu import one_thread

# trajectory tokens of the parameter path; how many times faster than update by update
LENGTH, BAR = 64, 10


class _Round(NamedTuple):
    """One round: seconds for all prefixes, in one pass, by one update and by one forward each."""

    packed: float
    updates: float
    forwards: float


@one_thread()
def path_rows(*, rounds: int = 3, say: Callable[[str], None] = print) -> list[dict]:
    """The parameter path in one packed pass against one update per prefix, SmolLM2, one thread,
    float32.

    The updates from scratch are timed at positions that stratify 0..|t| (four a round) and scaled
    to |t| + 1 prefixes.
    """
    lm = models.load("small", device="cpu")
    text = gold_text(lm, LENGTH)
    # warm-up, and the checks of the model's first use
    path_from_ids(lm.model, *text, [0, LENGTH])
    taken: list[_Round] = []
    for turn in range(rounds):
        one = _round(lm.model, text, places(turn, rounds, LENGTH))
        taken.append(one)
        say(
            f"path, |t| = {LENGTH}, round {turn + 1}/{rounds}: {one.updates / one.packed:.1f}"
            " times one update per prefix"
        )
    setting = f"SmolLM2-135M, {text.words}, last layer, one thread, float32"
    ratios = [one.updates / one.packed for one in taken]
    forward_ratios = [one.forwards / one.packed for one in taken]
    figures = [
        ("path: speed against one update per prefix", ratios, "×", f"≥ {BAR}"),
        ("path: speed against one forward per prefix, all else done once", forward_ratios, "×", ""),
        ("path: time for all prefixes", [one.packed for one in taken], "s", ""),
    ]
    return figure_rows(figures, setting)


def _round(model: torch.nn.Module, text: Text, at: list[int]) -> _Round:
    """One round; updates and forwards at four places."""
    prompt, trajectory, suffix = text
    packed = seconds_of(lambda: path_from_ids(model, *text, range(LENGTH + 1)).right(protect=True))
    updates = [
        seconds_of(lambda i=i: update_from_ids(model, prompt, trajectory[:i], suffix)) for i in at
    ]
    forwards = [naive_seconds(model, text, i, few_logits=True) for i in at]
    return _Round(packed, for_all_prefixes(updates, LENGTH), for_all_prefixes(forwards, LENGTH))
