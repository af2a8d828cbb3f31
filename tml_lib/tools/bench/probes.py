"""The packed probe against the naive loop, and the memory that it takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from tml_lib.lm import models
from tml_lib.lm.answers import encode
from tml_lib.tools.bench.shared import (
    Text,
    figure_rows,
    for_all_prefixes,
    gold_text,
    linear_flops,
    naive_seconds,
    packed_seconds,
    places,
    sgemm_rate,
)
from tml_lib.tools.plan_cpu import one_thread

# trajectory tokens -> bar: how many times faster than the naive loop
LENGTHS = {128: 10, 512: 30, 1024: 52, 4096: 150}
# longer trajectories are probed in four runs of so many prefixes, and the seconds scaled to all
WHOLE, RUN = 1024, 160
NAIVE_TIME = "probe: time of the naive loop for all prefixes"
TINY_BAR = 30  # the tiny model's bar at 512 tokens
MEMORY_LENGTH, MEMORY_BAR = 4096, 300  # trajectory tokens; MiB above the model


class _Round(NamedTuple):
    """One round: seconds for all prefixes, and a share of the machine's sgemm rate."""

    packed: float
    naive: float
    naive_few: float  # the naive loop with the head at needed rows
    share: float


@one_thread()
def probe_rows(
    *, rounds: int = 3, lengths: dict[int, int] | None = None, say: Callable[[str], None] = print
) -> list[dict]:
    """The packed probe against the naive loop, one thread, float32: rows of name, value, unit, bar,
    setting.

    The naive loop is timed at positions that stratify 0..|t| (four a round) and scaled to |t| + 1
    prefixes. Values are medians over rounds of the ratio within a round. Seconds grow as |t| to a
    power, fitted over the lengths.
    """
    lm = models.load("small", device="cpu")
    rows, lengths = [], LENGTHS if lengths is None else lengths
    for length, bar in lengths.items():
        text = gold_text(lm, length)
        rows += compared("SmolLM2-135M", lm.model, text, bar=bar, rounds=rounds, say=say)
    rows += growth(rows, list(lengths))
    tiny, text = _tiny(lm)
    name = f"Llama of {sum(p.numel() for p in tiny.parameters()) / 1e6:.1f} M"
    rows += compared(name, tiny, text, bar=TINY_BAR, rounds=rounds, say=say)
    say(f"peak memory at {MEMORY_LENGTH} tokens, in a process of its own")
    return [*rows, memory_row()]


def compared(
    name: str,
    model: torch.nn.Module,
    text: Text,
    *,
    bar: int,
    rounds: int,
    say: Callable[[str], None],
) -> list[dict]:
    """The packed probe of one model and text against the naive loop: rows of name, value, unit,
    bar, setting.
    """
    length = len(text.trajectory)
    # warm-up, and the check that packing suits the model
    packed_seconds(model, text._replace(trajectory=text.trajectory[:8]), [0, 8])
    some = positions(0, rounds, length)
    work = linear_flops(model, lambda: packed_seconds(model, text, some)) / len(some)
    taken: list[_Round] = []
    for turn in range(rounds):
        taken.append(_round(model, text, work, turn=turn, rounds=rounds))
        say(
            f"{name}, |t| = {length}, round {turn + 1}/{rounds}:"
            f" {taken[-1].naive / taken[-1].packed:.1f} times the naive loop"
        )
    ratios = [one.naive / one.packed for one in taken]
    few_ratios = [one.naive_few / one.packed for one in taken]
    shares = [100 * one.share for one in taken]
    figures = [
        ("probe: speed against the naive loop", ratios, "×", f"≥ {bar}"),
        ("probe: speed against the naive loop with the head at needed rows", few_ratios, "×", ""),
        ("probe: share of the machine's sgemm rate (linear layers)", shares, "%", ""),
        ("probe: time for all prefixes", [one.packed for one in taken], "s", ""),
        (NAIVE_TIME, [one.naive for one in taken], "s", ""),
    ]
    return figure_rows(figures, f"{name}, {text.words}, one thread, float32")


def _round(model: torch.nn.Module, text: Text, work: float, *, turn: int, rounds: int) -> _Round:
    """One round of `compared`; work: operations of linear layers a prefix."""
    length = len(text.trajectory)
    some = positions(turn, rounds, length)
    packed = packed_seconds(model, text, some)
    share = work * len(some) / packed / sgemm_rate()
    if len(some) <= length:  # what reads the text is done once, however many prefixes follow
        read = packed_seconds(model, text, [length])
        packed = read + (packed - read) * (length + 1) / len(some)
    at = places(turn, rounds, length)
    naive = [naive_seconds(model, text, i) for i in at]
    few = [naive_seconds(model, text, i, few_logits=True) for i in at]
    return _Round(packed, for_all_prefixes(naive, length), for_all_prefixes(few, length), share)


def positions(turn: int, rounds: int, length: int) -> list[int]:
    """The prefixes that a round probes: all of a short text, else four runs that stratify it."""
    if length <= WHOLE:
        return list(range(length + 1))
    starts = [min(start, length + 1 - RUN) for start in places(turn, rounds, length)]
    return sorted({start + k for start in starts for k in range(RUN)})


def growth(rows: list[dict], lengths: list[int]) -> list[dict]:
    """The exponents of |t| in the seconds for all prefixes, packed and naive; none for one
    length.
    """
    found = []
    for name, unit in (("probe: time for all prefixes", ""), (NAIVE_TIME, " of the naive loop")):
        seconds = [row["value"] for row in rows if row["name"] == name]
        if len(lengths) > 1:
            power = float(np.polyfit(np.log(lengths), np.log(seconds), 1)[0])
            name = f"probe: exponent of |t| in the seconds{unit}"
            setting = f"SmolLM2-135M, |t| = {', '.join(map(str, lengths))}, one thread, float32"
            found += figure_rows([(name, [power], "", "")], setting)
    return found


def _tiny(lm: models.LanguageModel) -> tuple[torch.nn.Module, Text]:
    """A random Llama, a third of SmolLM2 in every width, its head size kept, and a random text of
    512 tokens.
    """
    size = {
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "vocab_size": 1024,
        "head_dim": 64,
    }
    model = models.random_model("llama", **size, num_attention_heads=3, num_key_value_heads=1)
    ids = torch.randint(3, 1024, (78 + 512,), generator=torch.Generator().manual_seed(0)).tolist()
    suffix = encode(lm.tokenizer, "", "", ["42"]).suffixes[0]
    small = type(suffix)(tuple(i % 1024 for i in suffix.ids), suffix.start, suffix.answer)
    return model, Text(ids[:78], ids[78:], small)


def memory_row() -> dict:
    """The peak memory that a process of its own measures."""
    done = subprocess.run(
        [sys.executable, "-m", "tml_lib.tools.bench.memory"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        "name": "probe: peak memory above the model",
        "value": round(json.loads(done.stdout)),
        "unit": "MiB",
        "bar": f"≤ {MEMORY_BAR}",
        "setting": f"SmolLM2-135M, |t| = {MEMORY_LENGTH}, its last {RUN} prefixes, one thread",
    }
