"""This machine's processor as a device of the planner: its rates, measured here, and how well
predictions fit small runs on it.

Everything runs on one thread in float32 and is timed in processor time, which other processes
distort less than wall time.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

import psutil
import torch
from transformers import DynamicCache

from tml_lib.data import gsm, programs
from tml_lib.lm import adapters, models, sampling
from tml_lib.lm.answers import encode, token_ids
from tml_lib.measure.probe import prefix_nll
from tml_lib.tools.plan_formulas import Stage, predicted_seconds
from tml_lib.tools.plan_shapes import Device, Shape, shape


class Case(NamedTuple):
    """A small run of the benchmark and the stage that describes it."""

    name: str
    setting: str
    stage: Stage
    model: Shape
    call: Callable[[], object]


@contextlib.contextmanager
def one_thread():
    """One of torch's threads within; afterwards as many as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# --- rates ----------------------------------------------------------------------------------------


@functools.cache
def device() -> Device:
    """This machine's processor, measured at the first call."""
    return measured_device(calibrate())


def measured_device(rates: dict) -> Device:
    """The device that a calibration describes: float32, transformers' own loops, all of this
    machine's memory.
    """
    return Device(
        "cpu",
        flops=rates["gflops"] * 1e9,
        memory=psutil.virtual_memory().total,
        bandwidth=rates["bandwidth_gbs"] * 1e9,
        launch=rates["launch_us"] * 1e-6,
        train_launch=rates["train_launch_us"] * 1e-6,
        pass_launch=rates["pass_launch_us"] * 1e-6,
        number=4,
        value=rates["value_ns"] * 1e-9,
    )


@one_thread()
def calibrate() -> dict:
    """This machine's rates; 3 s.

    gflops: of a matrix product of a small model's size. bandwidth_gbs: of reading 128 MB. value_ns:
    per value that element-wise operations write to fresh memory. launch_us, train_launch_us: what a
    layer so narrow that it computes nothing takes in a decoded step and in a training step;
    pass_launch_us: a decoded step's own, beside its layers.
    """
    left, right, long = torch.randn(256, 576), torch.randn(576, 1536), torch.ones(2**25)
    several = [torch.randn(2**20) for _ in range(8)]
    written = 3 * 8 * 2**20  # silu, product and sum
    one, five = _launches(1), _launches(5)
    layer, trained = ((b - a) / 4 for a, b in zip(one, five, strict=True))
    return {
        "gflops": 2e-9 * 256 * 576 * 1536 / _processor_seconds(lambda: left @ right),
        "bandwidth_gbs": 4e-9 * len(long) / _processor_seconds(long.sum),
        "value_ns": (
            1e9
            * _processor_seconds(lambda: [torch.nn.functional.silu(v) * v + v for v in several])
            / written
        ),
        "launch_us": 1e6 * layer,
        "train_launch_us": 1e6 * trained,
        "pass_launch_us": 1e6 * (one[0] - layer),
    }


def _launches(layers: int) -> tuple[float, float]:
    """Seconds of a decoded step and of a training step of a model of width 16 on two tokens."""
    size = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 16,
    }
    model = models.random_model("llama", **size, num_hidden_layers=layers, vocab_size=32)
    optimiser, ids = torch.optim.AdamW(model.parameters()), torch.zeros(2, 2, dtype=torch.long)
    arguments = {
        "input_ids": ids[:, :1],
        "attention_mask": ids[:, :1] + 1,
        "position_ids": ids[:, :1],
        "use_cache": True,
    }

    @torch.inference_mode()
    def decode():
        model(**arguments, past_key_values=DynamicCache(config=model.config), logits_to_keep=1)

    def step():
        optimiser.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    return _processor_seconds(decode), _processor_seconds(step)


def _processor_seconds(call: Callable[[], object], least: float = 0.25) -> float:
    """Mean processor seconds of a call, after a warm-up, over at least `least` of them."""
    call()
    count, began = 0, time.process_time()
    while time.process_time() - began < least:
        call()
        count += 1
    return (time.process_time() - began) / count


# --- benchmark ------------------------------------------------------------------------------------


@one_thread()
def benchmark(rounds: int = 3, say: Callable[[str], None] = print) -> list[dict]:
    """Predicted by measured processor time of small runs on this machine: rows of name, value,
    unit, bar, setting.

    Each round calibrates anew and then runs every case once; values are medians over rounds of the
    ratio within a round.
    """
    cases = _cases()
    ratios: list[list[float]] = [[] for _ in cases]
    for turn in range(rounds):
        here = measured_device(calibrate())
        for case, found in zip(cases, ratios, strict=True):
            found.append(_ratio(case, here))
            say(
                f"plan, {case.name}, {case.setting}, round {turn + 1}/{rounds}: predicted by"
                f" measured {found[-1]:.2f}"
            )
    return [_row(case, median(found)) for case, found in zip(cases, ratios, strict=True)]


def _ratio(case: Case, here: Device) -> float:
    began = time.process_time()
    case.call()
    return predicted_seconds(case.stage, case.model, here) / (time.process_time() - began)


def _row(case: Case, ratio: float) -> dict:
    return {
        "name": f"plan: predicted by measured time, {case.name}",
        "value": round(ratio, 2),
        "unit": "×",
        "bar": "0.5 to 2",
        "setting": f"{case.setting}, one thread, float32",
    }


def _cases() -> list[Case]:
    """Each case is called once here, which warms up and tells lengths."""
    return [*_small_cases(), *_tiny_cases()]


def _small_cases() -> list[Case]:
    from tml_lib.data import tiny  # heavy, and no plan needs them
    from tml_lib.train import sft

    lm, model, asked = (
        models.load("small", device="cpu"),
        shape("SmolLM2-135M"),
        gsm.gsm_symbolic(16, 0),
    )
    prompts = [lm.prompt(q.text) for q in asked]
    rows, adapted = sft.question_rows(lm, asked[:4]), adapters.copy_to_train(lm, 4, 0)
    return [
        _probing(lm, model, prompts[0], "\n".join(gsm.gold(q).text for q in asked)),
        _sampling(lm, model, prompts, 32),
        _training(
            model,
            [rows],
            lambda: tiny.train(adapted, lambda _: rows, steps=1, peak_lr=1e-3),
            lora_rank=4,
        ),
    ]


def _tiny_cases() -> list[Case]:
    from tml_lib.studies import supervised

    lm, model = (
        models.load("tiny", model=models.shipped("tiny-long"), device="cpu"),
        shape("tiny-long"),
    )
    prompts = [lm.prompt(q.text) for q in programs.questions(256, 0, "held_out")]
    stream = supervised.arm_rows(0, "long")
    steps = [stream(k) for k in range(5)]
    return [
        _sampling(lm, model, prompts, 128),
        _training(model, steps, lambda: supervised.tuned(lm, steps.__getitem__, len(steps))),
    ]


def _probing(lm: models.LanguageModel, model: Shape, prompt: str, text: str) -> Case:
    """The first 64 tokens of a text probed after every prefix."""
    found = encode(lm.tokenizer, prompt, text, ["42"])
    suffix, arguments = (
        found.suffixes[0],
        (lm.model, found.prompt, found.trajectory[:64], found.suffixes, range(65)),
    )
    prefix_nll(*arguments)
    stage = Stage(
        "probe", 1, 1, 64, 64, len(found.prompt), len(suffix.ids), len(suffix.ids) - suffix.start
    )
    return Case(
        "probe",
        f"{model.name}, 64 tokens, all prefixes",
        stage,
        model,
        lambda: prefix_nll(*arguments),
    )


def _sampling(lm: models.LanguageModel, model: Shape, prompts: list[str], most: int) -> Case:
    """One batch sampled at temperature 1."""

    def call():
        return sampling.sample(lm, prompts, range(len(prompts)), max_new_tokens=most)

    tokens = [most if one.cut else len(one.ids) + 1 for one in call()]
    widest = max(len(token_ids(lm.tokenizer, prompt)) for prompt in prompts)
    stage = Stage("sample", len(prompts), 1, sum(tokens) / len(tokens), max(tokens), widest)
    return Case(
        "sampling", f"{model.name}, {len(prompts)} rows of up to {most} tokens", stage, model, call
    )


def _training(
    model: Shape, batches: list[list], call: Callable[[], object], *, lora_rank: int = 0
) -> Case:
    """A training step a batch of rows, padded to their longest."""
    call()
    side, width = (
        len(batches[0]),
        sum(max(len(ids) for ids, _ in rows) for rows in batches) / len(batches),
    )
    counts = {"rows": side, "batch": side, "lora_rank": lora_rank}
    stage = Stage("sft", side * len(batches), 1, width, prompt=0, suffix=0, **counts)
    what = f"LoRA of rank {lora_rank}" if lora_rank else "all weights"
    setting = f"{model.name}, {what}, {len(batches)} × {side} rows of {width:.0f} tokens"
    return Case("training", setting, stage, model, call)
