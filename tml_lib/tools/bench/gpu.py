"""What the kit's work costs on a GPU: the probe, sampling and a LoRA step, with random weights.

Speed and memory do not depend on what a model has learnt, so nothing is downloaded: the shapes are
those of the models' config.json, which `plan.toml` holds with their addresses. Every share is of
the card's own matrix rate, measured in the same run.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tml_lib import runtime
from tml_lib.data import tiny
from tml_lib.lm import sampling
from tml_lib.lm.answers import Suffix
from tml_lib.lm.models import LanguageModel
from tml_lib.measure.probe import naive_nll, prefix_nll
from tml_lib.tools.plan_formulas import forward_flops
from tml_lib.tools.plan_shapes import Shape, shape

PROMPT, SUFFIX, ANSWER = 200, 13, 3  # tokens, as plan's stages assume
SPARE = 0.8  # of a card's memory, which weights and work must fit into


@dataclass(frozen=True, kw_only=True)
class Load:
    """How much is measured; lengths and counts in tokens and rows."""

    shapes: tuple[Shape, ...]
    dtype: torch.dtype = torch.bfloat16
    lengths: tuple[int, ...] = (1024, 8192)  # of probed trajectories
    places: int = 4  # prefixes at which the naive loop is timed
    side: int = 8192  # of the matrices whose product gives the card's rate
    rows: int = 64  # sampled side by side
    written: int = 256  # tokens of a sample
    batch: int = 4  # rows of a LoRA step
    row: int = 1024  # tokens of each
    lora_rank: int = 16
    steps: int = 4  # of LoRA; the first warms up


def load() -> Load:
    """The sizes that a claim's reduced and whole plans take, in bfloat16."""
    return Load(shapes=(shape("Qwen2.5-1.5B"), shape("Qwen2.5-7B")))


def rows(
    *,
    rounds: int = 3,
    say: Callable[[str], None] = print,
    device: str = "cuda",
    given: Load | None = None,
) -> list[dict]:
    """Rows of name, value, unit, bar, setting; medians over rounds. given: another load.

    A model that does not fit on the card is left out, and said so. Raises ValueError where there is
    no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "device='cuda': torch finds no GPU here, and this benchmark measures one; run `python"
            " -m tml_lib bench gpu --json` on a machine that has one, with a torch built for CUDA,"
            " or choose another benchmark"
        )
    on, given, found = torch.device(device), given or load(), []
    rate = _matrix_rate(on, given, rounds)
    size = f"matrices of {given.side} × {given.side}"
    found.append(_row("rate of matrix products", rate / 1e12, "TFLOP/s", _setting(on, given, size)))
    for one in given.shapes:
        needed, there = 1.2 * one.parameters * given.dtype.itemsize, _memory(on)
        if needed > SPARE * there:
            say(f"{one.name} is left out: it takes {needed / 1e9:.0f} of {there / 1e9:.0f} GB")
            continue
        lm = random_decoder(one, on, given)
        for length in given.lengths:
            say(f"{one.name}: probe at |t| = {length}")
            found += _probed(lm, one, given, length, rate, rounds)
        say(f"{one.name}: sampling")
        found += _sampled(lm, one, given, rounds)
        say(f"{one.name}: LoRA")
        found += _trained(lm, one, given)
        del lm
        runtime.free_memory()
    return found


def random_decoder(one: Shape, device: torch.device, given: Load) -> LanguageModel:
    """A Qwen2 of a shape with random weights, made on the device; its tokenizer is the tiny
    reasoner's, as only token ids are read.
    """
    config = AutoConfig.for_model(
        "qwen2",
        hidden_size=one.width,
        num_hidden_layers=one.layers,
        num_attention_heads=one.heads,
        num_key_value_heads=one.kv_heads,
        intermediate_size=one.ffn,
        vocab_size=one.vocabulary,
        tie_word_embeddings=one.tied,
        max_position_embeddings=32768,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=given.dtype)
    return LanguageModel(model.eval(), tiny.tokenizer(), one.name)


# --- what is measured -----------------------------------------------------------------------------


def _probed(
    lm: LanguageModel, one: Shape, given: Load, length: int, rate: float, rounds: int
) -> list[dict]:
    """L̂ at every prefix in packed passes, against the naive loop at a few places, scaled to all."""
    ids = _ids(one, PROMPT + length + SUFFIX)
    prompt, trajectory = ids[:PROMPT], ids[PROMPT : PROMPT + length]
    suffix = Suffix(tuple(ids[PROMPT + length :]), SUFFIX - ANSWER, "")
    prefixes, on = length + 1, lm.device
    places = [(2 * k + 1) * length // (2 * given.places) for k in range(given.places)]

    def packed() -> None:
        # `way` insists: a slower way would be measured as if it were the packed one
        prefix_nll(lm.model, prompt, trajectory, [suffix], range(prefixes), way="packed")

    packed()  # warms up, and checks that packing is exact
    _reset(on)
    ratios, seconds = [], []
    for _ in range(rounds):
        seconds.append(_time(on, packed))
        naive = _time(
            on, lambda: [naive_nll(lm.model, prompt, trajectory, suffix, i) for i in places]
        )
        ratios.append(naive / given.places * prefixes / seconds[-1])
    tokens = PROMPT + length + prefixes * (SUFFIX - 1)
    linear = forward_flops(one, tokens, 0, prefixes * ANSWER)
    took = median(seconds)
    setting = _setting(on, given, f"{lm.name}, random weights, |t| = {length}, every prefix")
    return [
        _row("probe, speed against the naive loop", median(ratios), "×", setting),
        _row("probe, tokens read a second", tokens / took, "tokens/s", setting),
        _row("probe, time for all prefixes", took, "s", setting),
        _row("probe, share of the matrix rate", 100 * linear / took / rate, "%", setting),
        _row("probe, peak memory", _peak(on), "GB", setting),
    ]


def _sampled(lm: LanguageModel, one: Shape, given: Load, rounds: int) -> list[dict]:
    """Tokens a second of samples at temperature 1 side by side, from prompts that all differ."""
    prompts = np.reshape(_ids(one, PROMPT * given.rows), (given.rows, PROMPT)).tolist()
    rates, on = [], lm.device

    def write(seed: int, most: int = given.written) -> int:
        seeds = range(seed, seed + given.rows)
        how = {"max_new_tokens": most, "batch_size": given.rows}
        found = sampling.sample_ids(lm.model, prompts, seeds, [lm.model.config.eos_token_id], **how)
        return sum(len(sample.ids) for sample in found)

    write(0, 2)  # warms up, and checks that rows may be read together
    _reset(on)
    for turn in range(rounds):
        written: list[int] = []
        took = _time(on, lambda turn=turn, written=written: written.append(write(turn + 1)))
        rates.append(written[0] / took)
    size = f"{lm.name}, random weights, {given.rows} rows of up to {given.written} tokens"
    setting = _setting(on, given, size)
    return [
        _row("sampling, tokens a second", median(rates), "tokens/s", setting),
        _row("sampling, peak memory", _peak(on), "GB", setting),
    ]


def _trained(lm: LanguageModel, one: Shape, given: Load) -> list[dict]:
    """A step of `sft.sft` with an adapter on every linear layer; median without the first."""
    from tml_lib.train import sft

    ids = np.reshape(_ids(one, given.steps * given.batch * given.row), (-1, given.row)).tolist()
    settings = sft.SFTSettings(
        steps=given.steps, batch=given.batch, peak_lr=1e-5, lora_rank=given.lora_rank, log_every=1
    )
    ends, on = [], lm.device
    _reset(on)
    with tempfile.TemporaryDirectory() as folder:
        sft.sft(
            lm,
            [(row, PROMPT) for row in ids],
            Path(folder) / "run",
            settings,
            on_log=lambda log: ends.append(time.perf_counter()),
        )
    steps = np.diff(ends)[: given.steps - 1]  # the log's last entry is no step
    size = f"{given.batch} rows of {given.row} tokens, rank {given.lora_rank}"
    setting = _setting(on, given, f"{lm.name}, random weights, {size}")
    return [
        _row("LoRA, time of a step", float(median(steps)), "s", setting),
        _row("LoRA, peak memory", _peak(on), "GB", setting),
    ]


def _matrix_rate(on: torch.device, given: Load, rounds: int) -> float:
    """Operations a second of a large matrix product; the best of the rounds, each of 20."""
    left, right = (torch.randn(given.side, given.side, device=on).to(given.dtype) for _ in range(2))

    def multiply() -> None:
        for _ in range(20):
            left @ right

    multiply()
    return 20 * 2 * given.side**3 / min(_time(on, multiply) for _ in range(rounds))


# --- the device -----------------------------------------------------------------------------------


def _time(on: torch.device, call: Callable[[], object]) -> float:
    """Seconds until the device is done."""
    _wait(on)
    began = time.perf_counter()
    call()
    _wait(on)
    return time.perf_counter() - began


def _wait(on: torch.device) -> None:
    if on.type == "cuda":
        torch.cuda.synchronize(on)


def _memory(on: torch.device) -> int:
    """Bytes that the device has."""
    import psutil

    if on.type == "cuda":
        return torch.cuda.get_device_properties(on).total_memory
    return psutil.virtual_memory().total


def _reset(on: torch.device) -> None:
    if on.type == "cuda":
        torch.cuda.reset_peak_memory_stats(on)


def _peak(on: torch.device) -> float:
    """GB taken at most since `_reset`, weights included; on a processor what is taken now."""
    import psutil

    if on.type == "cuda":
        return torch.cuda.max_memory_allocated(on) / 1e9
    return psutil.Process().memory_info().rss / 1e9


# --- rows -----------------------------------------------------------------------------------------


def _ids(one: Shape, count: int) -> list[int]:
    """Random token ids that are none of the special ones."""
    draw = torch.Generator().manual_seed(0)
    return torch.randint(3, one.vocabulary, (count,), generator=draw).tolist()


def _setting(on: torch.device, given: Load, what: str) -> str:
    card = torch.cuda.get_device_name(on) if on.type == "cuda" else "processor"
    return f"{card}, {what}, {str(given.dtype).removeprefix('torch.')}"


def _row(name: str, value: float, unit: str, setting: str) -> dict:
    named = {"name": f"gpu: {name}", "value": float(f"{value:.4g}"), "unit": unit}
    return named | {"bar": "", "setting": setting}
