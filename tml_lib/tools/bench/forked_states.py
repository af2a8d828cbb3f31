"""The probe from forked states against the naive loop, on a hybrid of linear and full attention."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from tml_lib.lm import models
from tml_lib.lm.answers import Suffix
from tml_lib.measure.forked import forked_nll
from tml_lib.measure.naive import Request
from tml_lib.measure.probe import prefix_nll
from tml_lib.tools.bench.shared import (
    Text,
    figure_rows,
    for_all_prefixes,
    naive_seconds,
    places,
    seconds_of,
)
from tml_lib.tools.plan_cpu import one_thread

# a hybrid of linear and full attention as large as SmolLM2, which only forked states suit, and its
# bar at so many tokens
HYBRID = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 24,
    "vocab_size": 49152,
    "head_dim": 64,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "linear_num_value_heads": 8,
    "linear_num_key_heads": 8,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "tie_word_embeddings": True,
}
LENGTH, BAR = 512, 5


@one_thread()
def forked_rows(*, rounds: int = 3, say: Callable[[str], None] = print) -> list[dict]:
    """The probe from forked states against the naive loop on a random hybrid (Qwen3.5's
    architecture) as large as SmolLM2, one thread, float32.

    Both are timed at the same places that stratify 0..|t| (four a round) and scaled to |t| + 1
    prefixes: the naive loop at one prefix each, forked states at a run of eight, and at a run of
    none to take away what leads up to it; the one read of the whole text is added.
    """
    model, text = models.random_model("qwen3_5_text", **HYBRID), _random_text()
    # warm-up, and the check that forked states are exact
    prompt, trajectory, suffix = text
    prefix_nll(model, prompt, trajectory, [suffix], [0, LENGTH], way="forked")
    ratios, seconds = [], []
    for turn in range(rounds):
        at = [min(i, LENGTH - 8) for i in places(turn, rounds, LENGTH)]
        naive = for_all_prefixes([naive_seconds(model, text, i) for i in at], LENGTH)
        seconds.append(_forked_for_all(model, text, at))
        ratios.append(naive / seconds[-1])
        say(f"forked, |t| = {LENGTH}, round {turn + 1}/{rounds}: {ratios[-1]:.1f} times naive")
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    setting = f"random Qwen3.5 of {millions:.0f} M, {text.words}, one thread, float32"
    figures = [
        ("forked: speed against the naive loop", ratios, "×", f"≥ {BAR}"),
        ("forked: time for all prefixes", seconds, "s", ""),
    ]
    return figure_rows(figures, setting)


def _random_text() -> Text:
    """A prompt of 101 random tokens, a trajectory and a suffix of 13."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, HYBRID["vocab_size"], (101 + LENGTH + 13,), generator=draw).tolist()
    suffix = Suffix(tuple(ids[101 + LENGTH :]), 11, "")
    return Text(ids[:101], ids[101 : 101 + LENGTH], suffix)


def _forked_for_all(model: torch.nn.Module, text: Text, at: list[int]) -> float:
    """Seconds of forked states for all prefixes, from runs of eight at four places."""

    def forked(positions: list[int]) -> float:
        prompt, trajectory, suffix = text
        request = Request(prompt, trajectory, [suffix], np.array(positions))
        with torch.inference_mode():
            return seconds_of(lambda: forked_nll(model, request))

    runs = sum(forked(list(range(i, i + 9))) - forked([i]) for i in at)
    return forked([LENGTH]) + runs / 32 * LENGTH
