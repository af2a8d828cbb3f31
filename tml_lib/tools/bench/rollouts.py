"""The kit's sampler against transformers' `generate`."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch

from tml_lib.data import gsm, programs
from tml_lib.lm import models, sampling
from tml_lib.lm.answers import token_ids
from tml_lib.tools.bench.shared import figure_rows, seconds_of
from tml_lib.tools.plan_cpu import one_thread

BAR = 3  # how many times faster than row by row


@one_thread()
def rollouts_rows(*, rounds: int = 3, say: Callable[[str], None] = print) -> list[dict]:
    """The kit's sampler against transformers' `generate`, one thread; tokens a second.

    The tiny reasoner: batched against row by row, then both at 32 rows. SmolLM2: both at 32 rows.
    """
    lm = models.load("tiny", model=models.shipped("tiny-long"), device="cpu")
    prompts = [lm.prompt(q.text) for q in programs.questions(64, 0, "held_out")]
    found = _row_by_row(lm, prompts, rounds, say)
    small = models.load("small", device="cpu")
    texts = [small.prompt(question.text) for question in gsm.gsm_symbolic(32, 0)]
    for name, model, asked, most in (
        ("tiny-long", lm, prompts[:32], 128),
        ("SmolLM2-135M", small, texts, 32),
    ):
        ratios = [against_generate(model, asked, turn=turn, most=most)[0] for turn in range(rounds)]
        say(f"rollouts, {name}, 32 rows: {median(ratios):.2f} times generate")
        what = f"rollouts: tokens a second against generate, {name}"
        setting = f"{name}, T = 0.6, up to {most} tokens, 32 rows in one batch, one thread, float32"
        found += figure_rows([(what, ratios, "×", "")], setting)
    return found


def _row_by_row(
    lm: models.LanguageModel, prompts: list[str], rounds: int, say: Callable[[str], None]
) -> list[dict]:
    """256 rows in batches against `generate` row by row; what is cut is not counted."""
    ratios, rates = [], []
    for turn in range(rounds):

        def batched(turn=turn) -> int:
            seeds = range(1000 * turn, 1000 * turn + 256)
            found = sampling.sample(lm, prompts * 4, seeds, temperature=0.6)
            return sum(len(one.ids) for one in found if not one.cut)

        def one_by_one(turn=turn) -> int:
            settings = {"temperature": 0.6, "most": 128}
            rows = [generated_lengths(lm, [prompt], turn, **settings) for prompt in prompts[:16]]
            return sum(length for (length,) in rows if length < 128)

        theirs, ours = _rate(one_by_one), _rate(batched)
        ratios.append(ours / theirs)
        rates.append(ours)
        say(f"rollouts, round {turn + 1}/{rounds}: {ratios[-1]:.1f} times generate row by row")
    setting = (
        "tiny-long, T = 0.6, up to 128 tokens, 256 rows of 64 prompts against 16 one by one,"
        " one thread, float32"
    )
    figures = [
        ("rollouts: tokens a second against generate row by row", ratios, "×", f"≥ {BAR}"),
        ("rollouts: tokens a second", rates, "1/s", ""),
    ]
    return figure_rows(figures, setting)


def against_generate(
    lm: models.LanguageModel, prompts: list[str], *, turn: int, most: int
) -> tuple[float, float]:
    """Tokens a second of the kit's sampler by those of `generate`, over one batch of prompts, and
    the sampler's alone.
    """

    def ours() -> int:
        seeds = range(1000 * turn, 1000 * turn + len(prompts))
        found = sampling.sample(lm, prompts, seeds, temperature=0.6, max_new_tokens=most)
        return sum(len(one.ids) for one in found)

    theirs = _rate(lambda: sum(generated_lengths(lm, prompts, turn, temperature=0.6, most=most)))
    rate = _rate(ours)
    return rate / theirs, rate


def _rate(write: Callable[[], int]) -> float:
    """Tokens a second of a call that returns how many it wrote."""
    written: list[int] = []
    seconds = seconds_of(lambda: written.append(write()))
    return written[0] / seconds


@torch.inference_mode()
def generated_lengths(
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
