"""Benchmarks: every figure is a ratio, or is taken, in one run in which the things compared take
turns (A B A B).
"""

from __future__ import annotations

import functools
import importlib.util
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from unittest import mock

import numpy as np
import torch

from tml_lib import runtime
from tml_lib.data import gsm, programs, toy
from tml_lib.lm import models, presets, sampling
from tml_lib.lm.answers import ANSWER_TEMPLATE, Suffix, encode, token_ids
from tml_lib.measure import landscape
from tml_lib.measure.forked import forked_nll
from tml_lib.measure.implicit import update_from_ids
from tml_lib.measure.naive import Request
from tml_lib.measure.parameter_paths import path_from_ids
from tml_lib.measure.probe import naive_nll, prefix_nll
from tml_lib.meta import maml, maml_mlp
from tml_lib.tools import bench_gpu, plan_cpu
from tml_lib.tools.plan_cpu import one_thread

# trajectory tokens -> bar: how many times faster than the naive loop
LENGTHS = {128: 10, 512: 30, 1024: 52, 4096: 150}
# longer trajectories are probed in four runs of so many prefixes, and the seconds scaled to all
WHOLE, RUN = 1024, 160
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
FORKED_LENGTH, FORKED_BAR = 512, 5
NAIVE_TIME = "probe: time of the naive loop for all prefixes"
TINY_BAR = 30  # the tiny model's bar at 512 tokens
MEMORY_LENGTH, MEMORY_BAR = 4096, 300  # trajectory tokens; MiB above the model
# `medium` at so many tokens: times the naive loop; bfloat16 times float32, on a processor with AMX
MEDIUM_LENGTH, MEDIUM_BAR, HALF_BAR = 256, 25, 3
MEDIUM_ROWS, MEDIUM_TOKENS, SAMPLING_BAR = 32, 256, 1.5
# inner steps -> how many times faster than higher: readable path (`maml`), fast path (`maml_mlp`)
MAML_BARS = {1: (12, 25), 5: (8, 18)}
ROLLOUTS_BAR, SFT_BAR = 3, 2
GRPO_BAR = 1  # seconds
# SmolLM2, tiny-long: how many times faster than in place, one question at a time
LANDSCAPE_BARS = (1.6, 2.5)
MAML_TRAINING = 3000  # meta-steps of a full training run
# trajectory tokens of the parameter path; how many times faster than update by update
PATH_LENGTH, PATH_BAR = 64, 10


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
        rows += _compare("SmolLM2-135M", lm.model, *_text(lm, length), bar, rounds, say)
    rows += _growth(rows, list(lengths))
    # a third of SmolLM2 in every width, its head size kept
    size = {
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "vocab_size": 1024,
        "head_dim": 64,
    }
    tiny = models.random_model("llama", **size, num_attention_heads=3, num_key_value_heads=1)
    ids = torch.randint(3, 1024, (78 + 512,), generator=torch.Generator().manual_seed(0)).tolist()
    suffix = encode(lm.tokenizer, "", "", ["42"]).suffixes[0]
    small = type(suffix)(tuple(i % 1024 for i in suffix.ids), suffix.start, suffix.answer)
    millions = sum(p.numel() for p in tiny.parameters()) / 1e6
    rows += _compare(
        f"Llama of {millions:.1f} M", tiny, ids[:78], ids[78:], small, TINY_BAR, rounds, say
    )
    say(f"peak memory at {MEMORY_LENGTH} tokens, in a process of its own")
    done = subprocess.run(
        [sys.executable, "-m", "tml_lib.tools.bench"], capture_output=True, text=True, check=True
    )
    setting = f"SmolLM2-135M, |t| = {MEMORY_LENGTH}, its last {RUN} prefixes, one thread"
    memory = {
        "name": "probe: peak memory above the model",
        "value": round(json.loads(done.stdout)),
        "unit": "MiB",
    }
    return [*rows, {**memory, "bar": f"≤ {MEMORY_BAR}", "setting": setting}]


def _growth(rows: list[dict], lengths: list[int]) -> list[dict]:
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
            found += _rows([(name, [power], "", "")], setting)
    return found


@one_thread()
def medium_rows(*, rounds: int = 3, say: Callable[[str], None] = print) -> list[dict]:
    """The packed probe of preset `medium` against the naive loop in the same dtype, and its
    bfloat16 against float32, and its sampling against `generate`; one thread. No rows where its
    weights are not fetched.

    The naive loop is timed at four positions a round, the dtypes at the last quarter's prefixes.
    Sampling takes minutes, and so one round.
    """
    try:
        models.fetched_folder(presets.PRESETS["medium"].model, torch.bfloat16)
    except FileNotFoundError as reason:
        say(f"medium is skipped: {reason}")
        return []
    ratios, seconds, gains = [], [], []
    for turn in range(rounds):
        text, half, naive, gain = _medium_round(turn, rounds)
        seconds.append(half)
        ratios.append(naive / half)
        gains.append(gain)
        say(
            f"medium, {text}, round {turn + 1}/{rounds}: {ratios[-1]:.1f} times the naive"
            f" loop, {gain:.1f} times float32"
        )
    sampled = _medium_sampling(say)
    units = runtime.hardware_dtype(torch.device("cpu"))[1]
    setting = f"{presets.PRESETS['medium'].model}, {text}, one thread, bfloat16; {units}"
    figures = [
        ("medium: speed against the naive loop", ratios, "×", f"≥ {MEDIUM_BAR}"),
        ("medium: time for all prefixes", seconds, "s", ""),
        ("medium: bfloat16 by float32", gains, "×", f"≥ {HALF_BAR}" if "amx" in units else ""),
    ]
    return [*_rows(figures, setting), *sampled]


def _medium_sampling(say: Callable[[str], None]) -> list[dict]:
    """Eight samples of each of four questions, by the kit and by `generate`: tokens a second, and
    their share of what the processor's rate of matrix products allows.
    """
    lm = models.load("medium", device="cpu", dtype="bfloat16")
    rows = [lm.prompt(q.text) for q in gsm.gsm_symbolic(MEDIUM_ROWS // 8, 0) for _ in range(8)]
    linear = sum(p.numel() for name, p in lm.model.named_parameters() if "embed" not in name)
    size = lm.model.config
    a = torch.ones(MEDIUM_ROWS, size.hidden_size, dtype=torch.bfloat16)
    b = torch.ones(size.hidden_size, size.intermediate_size, dtype=torch.bfloat16)
    seconds = min(_time(lambda: a @ b) for _ in range(20))
    allowed = a.numel() * b.shape[1] / seconds / linear
    ratio, rate = _against_generate(lm, rows, 0, MEDIUM_TOKENS)
    say(f"medium, sampling: {rate:.1f} tokens a second, {ratio:.2f} times generate")
    setting = (
        f"{lm.name}, {MEDIUM_ROWS} rows of {MEDIUM_ROWS // 8} questions, T = 0.6, up to"
        f" {MEDIUM_TOKENS} tokens, one thread, bfloat16; the rate is that of one product with as"
        " many rows"
    )
    figures = [
        ("medium: tokens a second against generate", [ratio], "×", f"≥ {SAMPLING_BAR}"),
        ("medium: tokens a second", [rate], "1/s", ""),
        ("medium: sampling, share of the matrix rate", [100 * rate / allowed], "%", ""),
    ]
    return _rows(figures, setting)


def _medium_round(turn: int, rounds: int) -> tuple[str, float, float, float]:
    """(the text in words, seconds for all its prefixes in bfloat16, those of the naive loop, how
    many times float32's speed).
    """
    lm = models.load("medium", device="cpu", dtype="bfloat16")
    prompt, trajectory, suffix = _text(lm, MEDIUM_LENGTH)
    length = len(trajectory)

    def packed(positions) -> float:
        return _time(lambda: prefix_nll(lm.model, prompt, trajectory, [suffix], positions))

    packed([0, length])  # warm-up, and the checks of the model's first use
    whole = packed(range(length + 1))
    naive = sum(
        _time(lambda i=i: naive_nll(lm.model, prompt, trajectory, suffix, i))
        for i in _places(turn, rounds, length)
    )
    late = range(length * 3 // 4, length + 1)
    half = packed(late)
    lm.model.float()
    packed([0, length])
    words = f"|t| = {length}, prompt {len(prompt)}, suffix {len(suffix.ids)}"
    return words, whole, naive / 4 * (length + 1), packed(late) / half


@one_thread()
def forked_rows(*, rounds: int = 3, say: Callable[[str], None] = print) -> list[dict]:
    """The probe from forked states against the naive loop on a random hybrid (Qwen3.5's
    architecture) as large as SmolLM2, one thread, float32.

    Both are timed at the same places that stratify 0..|t| (four a round) and scaled to |t| + 1
    prefixes: the naive loop at one prefix each, forked states at a run of eight, and at a run of
    none to take away what leads up to it; the one read of the whole text is added.
    """
    model, length = models.random_model("qwen3_5_text", **HYBRID), FORKED_LENGTH
    vocabulary, draw = HYBRID["vocab_size"], torch.Generator().manual_seed(0)
    ids = torch.randint(3, vocabulary, (101 + length + 13,), generator=draw).tolist()
    prompt, trajectory = ids[:101], ids[101 : 101 + length]
    suffix = Suffix(tuple(ids[101 + length :]), 11, "")
    # warm-up, and the check that forked states are exact
    prefix_nll(model, prompt, trajectory, [suffix], [0, length], way="forked")

    def forked(positions: list[int]) -> float:
        request = Request(prompt, trajectory, [suffix], np.array(positions))
        with torch.inference_mode():
            return _time(lambda: forked_nll(model, request))

    def naive(position: int) -> float:
        return _time(lambda: naive_nll(model, prompt, trajectory, suffix, position))

    ratios, seconds = [], []
    for turn in range(rounds):
        places = [min(i, length - 8) for i in _places(turn, rounds, length)]
        full = sum(naive(i) for i in places)
        runs = sum(forked(list(range(i, i + 9))) - forked([i]) for i in places)
        whole = forked([length]) + runs / 32 * length
        ratios.append(full / 4 * (length + 1) / whole)
        seconds.append(whole)
        say(f"forked, |t| = {length}, round {turn + 1}/{rounds}: {ratios[-1]:.1f} times naive")
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    setting = (
        f"random Qwen3.5 of {millions:.0f} M, |t| = {length}, prompt 101, suffix 13, one thread,"
        " float32"
    )
    figures = [
        ("forked: speed against the naive loop", ratios, "×", f"≥ {FORKED_BAR}"),
        ("forked: time for all prefixes", seconds, "s", ""),
    ]
    return _rows(figures, setting)


@one_thread()
def path_rows(*, rounds: int = 3, say: Callable[[str], None] = print) -> list[dict]:
    """The parameter path in one packed pass against one update per prefix, SmolLM2, one thread,
    float32.

    The updates from scratch are timed at positions that stratify 0..|t| (four a round) and scaled
    to |t| + 1 prefixes.
    """
    lm = models.load("small", device="cpu")
    prompt, trajectory, suffix = _text(lm, PATH_LENGTH)
    arguments = lm.model, prompt, trajectory
    # warm-up, and the checks of the model's first use
    path_from_ids(*arguments, suffix, [0, PATH_LENGTH])
    ratios, forward_ratios, seconds = [], [], []
    for turn in range(rounds):
        packed = _time(
            lambda: path_from_ids(*arguments, suffix, range(PATH_LENGTH + 1)).right(protect=True)
        )
        places = _places(turn, rounds, PATH_LENGTH)
        scratch = [
            _time(lambda i=i: update_from_ids(lm.model, prompt, trajectory[:i], suffix))
            for i in places
        ]
        forward = [
            _time(lambda i=i: naive_nll(*arguments, suffix, i, few_logits=True)) for i in places
        ]
        ratios.append(sum(scratch) / 4 * (PATH_LENGTH + 1) / packed)
        forward_ratios.append(sum(forward) / 4 * (PATH_LENGTH + 1) / packed)
        seconds.append(packed)
        say(
            f"path, |t| = {PATH_LENGTH}, round {turn + 1}/{rounds}: {ratios[-1]:.1f} times one"
            " update per prefix"
        )
    setting = (
        f"SmolLM2-135M, |t| = {PATH_LENGTH}, prompt {len(prompt)}, suffix {len(suffix.ids)}, last"
        " layer, one thread, float32"
    )
    figures = [
        ("path: speed against one update per prefix", ratios, "×", f"≥ {PATH_BAR}"),
        ("path: speed against one forward per prefix, all else done once", forward_ratios, "×", ""),
        ("path: time for all prefixes", seconds, "s", ""),
    ]
    return _rows(figures, setting)


@one_thread()
def maml_rows(*, rounds: int = 5, say: Callable[[str], None] = print) -> list[dict]:
    """Second-order meta-gradients of both paths against `higher`, and a training run; one thread,
    float32.

    Sinusoids, a 2 × 40 network, 10 shots, 25 tasks a meta-step, gradients only; medians over rounds
    of the ratio in a round.
    """
    if importlib.util.find_spec("higher") is None:
        raise LookupError(
            "the maml benchmark compares with the package `higher`: pip install higher==0.2.1"
        )
    theta, rows = maml_mlp.new_mlp([1, 40, 40, 1], 0), []
    model = maml_mlp.as_module(theta)
    generic = functools.partial(maml.meta_gradient, maml.task_loss(model))
    batch = toy.sinusoids(25, 10, torch.Generator().manual_seed(0))
    for steps, (readable_bar, fast_bar) in MAML_BARS.items():
        ratios, rates = {"readable": [], "fast": []}, []
        for turn in range(rounds):
            seconds = {
                "higher": _mean_time(_higher_gradient, 2, model, batch, steps),
                "readable": _mean_time(generic, 20, maml.parameters(model), batch, steps),
                "fast": _mean_time(maml_mlp.meta_gradient, 20, theta, batch, steps),
            }
            for name, values in ratios.items():
                values.append(seconds["higher"] / seconds[name])
            rates.append(1 / seconds["fast"])
            say(
                f"maml, inner steps: {steps}, round {turn + 1}/{rounds}: fast"
                f" {ratios['fast'][-1]:.1f} times higher"
            )
        setting = (
            f"sinusoids, 2 × 40, 10 shots, 25 tasks (higher: one by one), inner steps: {steps},"
            " one thread, float32"
        )
        figures = [
            (
                "maml: readable path, speed against higher",
                ratios["readable"],
                "×",
                f"≥ {readable_bar}",
            ),
            ("maml: fast path, speed against higher", ratios["fast"], "×", f"≥ {fast_bar}"),
            ("maml: fast path, meta-gradients a second", rates, "1/s", ""),
        ]
        rows += _rows(figures, setting)
    say("a training run")
    trained: list = []
    seconds = _time(
        lambda: trained.append(
            maml_mlp.meta_train(
                theta,
                lambda g: toy.sinusoids(25, 10, g),
                meta_steps=MAML_TRAINING,
                inner_lr=0.02,
                steps=5,
                outer_lr=0.008,
                seed=0,
            )[0]
        )
    )
    unseen = toy.sinusoids(600, 10, torch.Generator().manual_seed(1), queries=100)
    curve = maml_mlp.adaptation_curve(trained[0], unseen, inner_lr=0.02, steps=5).mean(0).tolist()
    setting = f"{MAML_TRAINING} meta-steps of 5 inner steps, Adam, one thread; 600 unseen tasks"
    figures = [
        ("maml: a full training run", [seconds], "s", "≤ 40"),
        ("maml: query loss before adapting", curve[:1], "squared error", ""),
        ("maml: query loss after 5 inner steps", curve[-1:], "squared error", ""),
    ]
    return [*rows, *_rows(figures, setting)]


@one_thread()
def rollouts_rows(*, rounds: int = 3, say: Callable[[str], None] = print) -> list[dict]:
    """The kit's sampler against transformers' `generate`, one thread; tokens a second.

    The tiny reasoner: batched against row by row, then both at 32 rows. SmolLM2: both at 32 rows.
    """
    lm = models.load("tiny", model=models.shipped("tiny-long"), device="cpu")
    prompts = [lm.prompt(q.text) for q in programs.questions(64, 0, "held_out")]
    ratios, rates = [], []
    for turn in range(rounds):
        written: dict[str, int] = {}

        def batched(turn=turn, written=written):
            found = sampling.sample(
                lm, prompts * 4, range(1000 * turn, 1000 * turn + 256), temperature=0.6
            )
            written["batched"] = sum(len(one.ids) for one in found if not one.cut)

        def one_by_one(turn=turn, written=written):
            rows = [
                _generated(lm, [prompt], turn, temperature=0.6, most=128) for prompt in prompts[:16]
            ]
            written["one_by_one"] = sum(length for (length,) in rows if length < 128)

        rate = {way.__name__: (_time(way), written[way.__name__]) for way in (one_by_one, batched)}
        speed = {name: tokens / seconds for name, (seconds, tokens) in rate.items()}
        ratios.append(speed["batched"] / speed["one_by_one"])
        rates.append(speed["batched"])
        say(f"rollouts, round {turn + 1}/{rounds}: {ratios[-1]:.1f} times generate row by row")
    setting = (
        "tiny-long, T = 0.6, up to 128 tokens, 256 rows of 64 prompts against 16 one by one,"
        " one thread, float32"
    )
    figures = [
        ("rollouts: tokens a second against generate row by row", ratios, "×", f"≥ {ROLLOUTS_BAR}"),
        ("rollouts: tokens a second", rates, "1/s", ""),
    ]
    found = _rows(figures, setting)
    small = models.load("small", device="cpu")
    texts = [small.prompt(question.text) for question in gsm.gsm_symbolic(32, 0)]
    for name, model, asked, most in (
        ("tiny-long", lm, prompts[:32], 128),
        ("SmolLM2-135M", small, texts, 32),
    ):
        ratios = [_against_generate(model, asked, turn, most)[0] for turn in range(rounds)]
        say(f"rollouts, {name}, 32 rows: {median(ratios):.2f} times generate")
        setting = f"{name}, T = 0.6, up to {most} tokens, 32 rows in one batch, one thread, float32"
        found += _rows(
            [(f"rollouts: tokens a second against generate, {name}", ratios, "×", "")], setting
        )
    return found


def _against_generate(
    lm: models.LanguageModel, prompts: list[str], turn: int, most: int
) -> tuple[float, float]:
    """Tokens a second of the kit's sampler by those of `generate`, over one batch of prompts, and
    the sampler's alone.
    """
    written: dict[str, int] = {}
    seeds = range(1000 * turn, 1000 * turn + len(prompts))

    def ours():
        written["ours"] = sum(
            len(one.ids)
            for one in sampling.sample(lm, prompts, seeds, temperature=0.6, max_new_tokens=most)
        )

    def theirs():
        written["theirs"] = sum(_generated(lm, prompts, turn, temperature=0.6, most=most))

    seconds = {way.__name__: _time(way) for way in (theirs, ours)}
    ours, theirs = (written[name] / seconds[name] for name in ("ours", "theirs"))
    return ours / theirs, ours


@torch.inference_mode()
def _generated(
    lm: models.LanguageModel, prompts: list[str], seed: int, *, temperature: float, most: int
) -> list[int]:
    """Tokens that transformers' `generate` writes after each prompt, end token not counted; `most`
    where it did not end.
    """
    end = lm.tokenizer.eos_token_id
    rows = [token_ids(lm.tokenizer, prompt) for prompt in prompts]
    width = max(map(len, rows))
    ids = torch.tensor([[end] * (width - len(row)) + row for row in rows], device=lm.device)
    mask = torch.tensor(
        [[0] * (width - len(row)) + [1] * len(row) for row in rows], device=lm.device
    )
    draw = {
        "do_sample": True,
        "temperature": temperature,
        "top_k": 0,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        out = lm.model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=most,
            eos_token_id=end,
            pad_token_id=end,
            **draw,
        )
    return [row.index(end) if end in row else len(row) for row in out[:, width:].tolist()]


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
            by_trl = _time(lambda folder=folder: sft.sft(lm, rows, Path(folder) / "run", settings))
        plain = _time(lambda: supervised.tuned(lm, batches.__getitem__, 20))
        ratios.append(by_trl / plain)
        rates.append(plain / 20)
        say(f"sft, round {turn + 1}/{rounds}: trl takes {ratios[-1]:.2f} times the plain loop")
    setting = "tiny-base, 20 steps of 64 long rows, set-up included, one thread, float32"
    return _rows(
        [
            ("sft: time of trl's trainer by the plain loop's", ratios, "×", f"≤ {SFT_BAR}"),
            ("sft: plain step", rates, "s", ""),
        ],
        setting,
    )


@one_thread()
def grpo_rows(
    *, rounds: int = 3, steps: int = 12, say: Callable[[str], None] = print
) -> list[dict]:
    """A GRPO step of tiny-long by its parts, and trl's own sampler in place of the kit's; one
    thread, float32.
    """
    import trl

    from tml_lib.data import rewards
    from tml_lib.train import grpo

    lm, asked = (
        models.load("tiny", model=models.shipped("tiny-long"), device="cpu"),
        programs.questions(2 * steps),
    )

    def theirs(trainer, *arguments, **settings):
        began = time.perf_counter()
        found = trl.GRPOTrainer._generate_single_turn(trainer, *arguments, **settings)
        trainer._metrics["train"]["seconds_sampling"].append(time.perf_counter() - began)
        return found

    def step() -> dict[str, float]:  # medians of all steps but the first, which warms up
        with tempfile.TemporaryDirectory() as folder:
            settings = grpo.GRPOSettings(steps=steps, peak_lr=3e-4)
            run = grpo.grpo(lm, asked, rewards.program_reward, Path(folder), settings)
        rows = [row for row in run.log if "reward" in row][1:]
        return {
            part: median(row[f"seconds_{part}"] for row in rows)
            for part in ("sampling", "scoring", "update")
        }

    own, ratios = [], []
    for turn in range(rounds):
        own.append(step())
        with mock.patch.object(grpo.Trainer, "_generate_single_turn", theirs):
            ratios.append(step()["sampling"] / own[-1]["sampling"])
        say(f"grpo, round {turn + 1}/{rounds}: {sum(own[-1].values()):.2f} s a step")
    figures = [(f"grpo: {part}", [row[part] for row in own], "s", "") for part in own[0]]
    figures += [("grpo: a whole step", [sum(row.values()) for row in own], "s", f"≤ {GRPO_BAR}")]
    figures += [("grpo: time of trl's sampler by the kit's", ratios, "×", "")]
    return _rows(
        figures,
        "tiny-long, 2 questions × 16 samples of up to 128 tokens, full training, one thread,"
        " float32",
    )


@one_thread()
def landscape_rows(*, rounds: int = 3, say: Callable[[str], None] = print) -> list[dict]:
    """The landscape against adding and subtracting in place, one question at a time; also what is
    left of the weights after it.

    One thread; speed in float32, drift (share of weights that are not what they were) in float32
    and bfloat16, tiny-long.
    """
    rows, tiny = [], models.shipped("tiny-long")
    for name, lm, asked, bar in (
        (
            "SmolLM2-135M",
            models.load("small", device="cpu"),
            gsm.gsm_symbolic(4, 0),
            LANDSCAPE_BARS[0],
        ),
        (
            "tiny-long",
            models.load("tiny", model=tiny, device="cpu"),
            programs.questions(16, 0),
            LANDSCAPE_BARS[1],
        ),
    ):
        plane, grid, ratios = landscape.random_plane(lm.model, 0), landscape.axis(3), []
        held = [p.detach().clone() for p in lm.model.parameters()]
        for turn in range(rounds):
            in_place = _time(
                lambda arguments=(lm, asked, plane, grid): _landscape_in_place(*arguments)
            )
            with torch.no_grad():
                for p, before in zip(lm.model.parameters(), held, strict=True):
                    p.copy_(before)
            ours = _time(
                lambda arguments=(lm, asked, plane, grid, grid): landscape.landscape(*arguments)
            )
            ratios.append(in_place / ours)
            say(
                f"landscape, {name}, round {turn + 1}/{rounds}: {ratios[-1]:.2f} times in"
                " place, one question at a time"
            )
        setting = (
            f"{name}, {len(asked)} questions, 3 × 3 points, filter normalisation, one thread,"
            " float32"
        )
        rows += _rows(
            [(f"landscape: speed against in place, {name}", ratios, "×", f"≥ {bar}")], setting
        )
    setting = "tiny-long, 4 questions, 3 × 3 points, filter normalisation"
    for dtype in ("float32", "bfloat16"):
        lm = models.load("tiny", model=tiny, device="cpu", dtype=dtype)
        arguments = (
            lm,
            programs.questions(4, 0),
            landscape.random_plane(lm.model, 0),
            landscape.axis(3),
        )
        for way, call, bar in (
            (
                "ours",
                lambda arguments=arguments: landscape.landscape(*arguments, arguments[-1]),
                "0",
            ),
            ("in place", lambda arguments=arguments: _landscape_in_place(*arguments), ""),
        ):
            before = [p.detach().clone() for p in lm.model.parameters()]
            call()
            moved = sum(
                int((p != b).sum()) for p, b in zip(lm.model.parameters(), before, strict=True)
            )
            rows += _rows(
                [
                    (
                        f"landscape: weights changed by it, {way}, {dtype}",
                        [100 * moved / lm.parameters],
                        "%",
                        bar,
                    )
                ],
                setting,
            )
    return rows


@torch.inference_mode()
def _landscape_in_place(
    lm: models.LanguageModel, questions: list, plane: landscape.Plane, grid
) -> None:
    """As RaML's notebook goes about it: add the displacement to the weights, ask one question after
    another, subtract it.
    """
    weights = {name: p for name, p in lm.model.named_parameters() if name in plane.first}
    encoded = [encode(lm.tokenizer, lm.prompt(q.text), "", [q.answer]) for q in questions]
    for first in grid.tolist():
        for second in grid.tolist():
            for sign in (1, -1):
                for name, p in weights.items():
                    p.data.add_(sign * (first * plane.first[name] + second * plane.second[name]))
                if sign == 1:
                    for one in encoded:
                        naive_nll(lm.model, one.prompt, (), one.suffixes[0], 0)


def _mean_time(way: Callable, repeats: int, theta, batch, steps: int) -> float:
    """Seconds of one meta-gradient, after a warm-up."""
    way(theta, batch, inner_lr=0.01, steps=steps)
    return (
        _time(lambda: [way(theta, batch, inner_lr=0.01, steps=steps) for _ in range(repeats)])
        / repeats
    )


def _higher_gradient(net, batch, *, inner_lr: float, steps: int) -> list[torch.Tensor]:
    """The meta-gradient as `higher`'s documentation computes it: one differentiable copy and inner
    loop per task.
    """
    import higher

    net.zero_grad()
    optimiser = torch.optim.SGD(net.parameters(), lr=inner_lr)
    for task in range(len(batch)):
        sx, sy, qx, qy = (
            t[task] for t in (batch.support_x, batch.support_y, batch.query_x, batch.query_y)
        )
        with higher.innerloop_ctx(net, optimiser, copy_initial_weights=False) as (copy, inner):
            for _ in range(steps):
                inner.step(((copy(sx) - sy) ** 2).mean())
            (((copy(qx) - qy) ** 2).mean() / len(batch)).backward()
    return [p.grad for p in net.parameters()]


def _rows(figures: list[tuple], setting: str) -> list[dict]:
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


def _places(turn: int, rounds: int, length: int) -> list[int]:
    """Four positions that stratify 0..length; every other quarter is sampled as late, so that
    rounds agree.
    """
    early = (turn + 0.5) / rounds  # of its quarter
    return [int((k + (early if k % 2 else 1 - early)) * length / 4) for k in range(4)]


def _text(lm: models.LanguageModel, length: int) -> tuple:
    """A prompt, gold trajectories joined until they have `length` tokens, and a suffix with a
    two-token answer.
    """
    questions = gsm.gsm_symbolic(64, seed=0)
    prompt = lm.prompt(questions[0].text)
    joined = "\n".join(gsm.gold(q).text for q in questions)
    encoded = encode(lm.tokenizer, prompt, joined, ["42"], ANSWER_TEMPLATE)
    return encoded.prompt, encoded.trajectory[:length], encoded.suffixes[0]


def _compare(
    name: str, model, prompt, trajectory, suffix, bar: int, rounds: int, say
) -> list[dict]:
    length = len(trajectory)
    # warm-up, and the check that packing suits the model
    prefix_nll(model, prompt, trajectory[:8], [suffix], [0, 8])
    text = model, prompt, trajectory, [suffix]
    some = _positions(0, rounds, length)
    work = _linear_flops(model, lambda: prefix_nll(*text, some)) / len(some)
    ratios, few_ratios, shares, seconds, naive_seconds = [], [], [], [], []
    for turn in range(rounds):
        some = _positions(turn, rounds, length)
        packed = _time(lambda some=some: prefix_nll(*text, some))
        shares.append(work * len(some) / packed / _sgemm_rate())
        if len(some) <= length:  # what reads the text is done once, however many prefixes follow
            read = _time(lambda: prefix_nll(*text, [length]))
            packed = read + (packed - read) * (length + 1) / len(some)
        places = _places(turn, rounds, length)
        naive = [_time(lambda i=i: naive_nll(model, prompt, trajectory, suffix, i)) for i in places]
        few = [
            _time(lambda i=i: naive_nll(model, prompt, trajectory, suffix, i, few_logits=True))
            for i in places
        ]
        ratios.append(sum(naive) / 4 * (length + 1) / packed)
        few_ratios.append(sum(few) / 4 * (length + 1) / packed)
        seconds.append(packed)
        naive_seconds.append(sum(naive) / 4 * (length + 1))
        say(
            f"{name}, |t| = {length}, round {turn + 1}/{rounds}: {ratios[-1]:.1f} times the naive"
            " loop"
        )
    setting = (
        f"{name}, |t| = {length}, prompt {len(prompt)}, suffix {len(suffix.ids)}, one thread,"
        " float32"
    )
    figures = [
        ("probe: speed against the naive loop", ratios, "×", f"≥ {bar}"),
        ("probe: speed against the naive loop with the head at needed rows", few_ratios, "×", ""),
        (
            "probe: share of the machine's sgemm rate (linear layers)",
            [100 * s for s in shares],
            "%",
            "",
        ),
        ("probe: time for all prefixes", seconds, "s", ""),
        (NAIVE_TIME, naive_seconds, "s", ""),
    ]
    return _rows(figures, setting)


def _positions(turn: int, rounds: int, length: int) -> list[int]:
    """The prefixes that a round probes: all of a short text, else four runs that stratify it."""
    if length <= WHOLE:
        return list(range(length + 1))
    starts = [min(start, length + 1 - RUN) for start in _places(turn, rounds, length)]
    return sorted({start + k for start in starts for k in range(RUN)})


def _time(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _linear_flops(model, call: Callable[[], object]) -> float:
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


def _sgemm_rate(seconds: float = 0.5) -> float:
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


def _peak_above(call: Callable[[], object]) -> float:
    """Peak resident memory during a call above that before it, in MiB, sampled every 2 ms."""
    import psutil

    process, done = psutil.Process(), threading.Event()
    # else memory that was freed before and is still held would hide what the call takes
    runtime.free_memory()
    before = peak = process.memory_info().rss

    def watch():
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return (peak - before) / 2**20


def _memory_at(length: int) -> float:
    torch.set_num_threads(1)
    lm = models.load("small", device="cpu")
    prompt, trajectory, suffix = _text(lm, length)
    # weights are mapped from disk: touch them all before the baseline is taken
    with torch.inference_mode():
        lm.model(torch.tensor([prompt[:4]]))
    late = range(length + 1 - RUN, length + 1)  # memory grows with the text that was read
    return _peak_above(lambda: prefix_nll(lm.model, prompt, trajectory, [suffix], late))


BENCHMARKS = {
    "probe": probe_rows,
    "forked": forked_rows,
    "medium": medium_rows,
    "path": path_rows,
    "maml": maml_rows,
    "rollouts": rollouts_rows,
    "sft": sft_rows,
    "grpo": grpo_rows,
    "landscape": landscape_rows,
    "plan": plan_cpu.benchmark,
    "gpu": bench_gpu.rows,
}


if __name__ == "__main__":
    print(_memory_at(MEMORY_LENGTH))
