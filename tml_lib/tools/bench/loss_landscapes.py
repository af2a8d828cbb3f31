"""The landscape against adding and subtracting in place: speed, and what is left of the weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from tml_lib.data import gsm, programs
from tml_lib.lm import models
from tml_lib.lm.answers import encode
from tml_lib.measure import landscape
from tml_lib.measure.probe import naive_nll
from tml_lib.tools.bench.shared import figure_rows, seconds_of
from tml_lib.tools.plan_cpu import one_thread

# how many times faster than in place, one question at a time
BARS = {"SmolLM2-135M": 1.6, "tiny-long": 2.5}


@one_thread()
def landscape_rows(*, rounds: int = 3, say: Callable[[str], None] = print) -> list[dict]:
    """The landscape against adding and subtracting in place, one question at a time; also what is
    left of the weights after it.

    One thread; speed in float32, drift (share of weights that are not what they were) in float32
    and bfloat16, tiny-long.
    """
    small = models.load("small", device="cpu"), gsm.gsm_symbolic(4, 0)
    tiny = _tiny_long(), programs.questions(16, 0)
    rows = []
    for name, (lm, asked) in zip(BARS, (small, tiny), strict=True):
        rows += _speed_rows(name, lm, asked, rounds=rounds, say=say)
    return [*rows, *_drift_rows("float32"), *_drift_rows("bfloat16")]


def _tiny_long(**settings) -> models.LanguageModel:
    return models.load("tiny", model=models.shipped("tiny-long"), device="cpu", **settings)


def _speed_rows(
    name: str, lm: models.LanguageModel, asked: list, *, rounds: int, say: Callable[[str], None]
) -> list[dict]:
    """How many times faster than in place; each round begins at the same weights."""
    plane, grid, ratios = landscape.random_plane(lm.model, 0), landscape.axis(3), []
    held = _weights(lm)
    for turn in range(rounds):
        in_place = seconds_of(lambda: _in_place(lm, asked, plane, grid))
        with torch.no_grad():
            for p, before in zip(lm.model.parameters(), held, strict=True):
                p.copy_(before)
        ours = seconds_of(lambda: landscape.landscape(lm, asked, plane, grid, grid))
        ratios.append(in_place / ours)
        say(
            f"landscape, {name}, round {turn + 1}/{rounds}: {ratios[-1]:.2f} times in"
            " place, one question at a time"
        )
    setting = (
        f"{name}, {len(asked)} questions, 3 × 3 points, filter normalisation, one thread, float32"
    )
    what = f"landscape: speed against in place, {name}"
    return figure_rows([(what, ratios, "×", f"≥ {BARS[name]}")], setting)


def _drift_rows(dtype: str) -> list[dict]:
    """The share of tiny-long's weights that are not what they were, after ours and after in
    place.
    """
    lm, asked = _tiny_long(dtype=dtype), programs.questions(4, 0)
    plane, grid = landscape.random_plane(lm.model, 0), landscape.axis(3)
    ours = _changed(lm, lambda: landscape.landscape(lm, asked, plane, grid, grid))
    in_place = _changed(lm, lambda: _in_place(lm, asked, plane, grid))
    what = "landscape: weights changed by it"
    figures = [
        (f"{what}, ours, {dtype}", [ours], "%", "0"),
        (f"{what}, in place, {dtype}", [in_place], "%", ""),
    ]
    return figure_rows(figures, "tiny-long, 4 questions, 3 × 3 points, filter normalisation")


def _changed(lm: models.LanguageModel, call: Callable[[], object]) -> float:
    """Percent of the weights that a call changes."""
    before = _weights(lm)
    call()
    pairs = zip(lm.model.parameters(), before, strict=True)
    return 100 * sum(int((p != b).sum()) for p, b in pairs) / lm.parameters


def _weights(lm: models.LanguageModel) -> list[torch.Tensor]:
    return [p.detach().clone() for p in lm.model.parameters()]


@torch.inference_mode()
def _in_place(
    lm: models.LanguageModel, questions: list, plane: landscape.Plane, grid: np.ndarray
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
