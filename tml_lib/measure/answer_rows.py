"""The loss of many answers in one pass each, every row as if it stood alone.

Rows are padded on the left, where that is exact for the model; else rows of one length share a
pass, or each has its own. It is checked at first use on the row with the most padding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch

from tml_lib.lm.answers import Suffix
from tml_lib.lm.blocks import widened
from tml_lib.lm.exactness import (
    UNSUITED,
    SlowerWay,
    contiguous_head,
    keeps_rows,
    longrope_limit,
    near,
    remembered,
    setting,
    silenced,
)
from tml_lib.lm.placed import device_of

Row = tuple[list[int], Suffix]  # what stands before the template, and template ⊕ answer


@dataclass(frozen=True)
class AnswerBatch:
    """B rows that end together."""

    places: list[int]  # (B,) which rows these are
    ids: torch.Tensor  # (B, W)
    scored: torch.Tensor  # (B, longest answer) 1 for a token of the row's answer
    mask: torch.Tensor | None  # (B, W) 0 for padding; None where there is none


def _batch(rows: Sequence[Row], places: list[int], device, *, padded: bool) -> AnswerBatch:
    some = [rows[k] for k in places]
    whole = [[*context, *suffix.ids] for context, suffix in some]
    width, counts = max(map(len, whole)), [len(suffix.ids) - suffix.start for _, suffix in some]
    ids = [[row[0]] * (width - len(row)) + row for row in whole]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in whole]
    scored = [[0] * (max(counts) - n) + [1] * n for n in counts]
    ids, mask, scored = (torch.tensor(part, device=device) for part in (ids, mask, scored))
    return AnswerBatch(places, ids, scored, mask if padded else None)


@torch.inference_mode()
def answer_nll(model: torch.nn.Module, batch: AnswerBatch) -> np.ndarray:
    """(B,) nats per token of each row's answer, the template left out."""
    count = batch.scored.shape[1]
    given = {"logits_to_keep": count + 1} if keeps_rows(model) else {}
    if batch.mask is not None:
        positions = (batch.mask.cumsum(1) - 1).clamp(min=0)
        given |= {"attention_mask": batch.mask, "position_ids": positions}
    with contiguous_head(model):
        logits = model(input_ids=batch.ids, use_cache=False, **given).logits[:, -count - 1 : -1]
    aims = batch.ids[:, -count:]
    losses = torch.nn.functional.cross_entropy(
        widened(logits).flatten(0, 1), aims.flatten(), reduction="none"
    ).view(aims.shape)
    return ((losses * batch.scored).sum(1) / batch.scored.sum(1)).double().cpu().numpy()


@dataclass(frozen=True)
class _Way:
    words: str
    split: Callable[[list[int], int], Iterator[list[int]]]  # (lengths, size) -> places
    padded: bool = False


def _in_order(lengths: list[int], size: int) -> Iterator[list[int]]:
    yield from (list(range(k, min(k + size, len(lengths)))) for k in range(0, len(lengths), size))


def _of_one_length(lengths: list[int], size: int) -> Iterator[list[int]]:
    order = sorted(range(len(lengths)), key=lambda k: lengths[k])
    for _, group in groupby(order, key=lambda k: lengths[k]):
        same = list(group)
        yield from (same[k : k + size] for k in range(0, len(same), size))


def _alone(lengths: list[int], size: int) -> Iterator[list[int]]:
    yield from ([k] for k in range(len(lengths)))


_ALONE = _Way("one by one", _alone)
_WAYS = (
    _Way("padded on the left", _in_order, padded=True),
    _Way("in groups of one length", _of_one_length),
    _ALONE,
)


def batched(model: torch.nn.Module, rows: Sequence[Row], size: int) -> list[AnswerBatch]:
    """Batches of at most `size` rows, in the fastest way that is exact for the model at its
    weights of now; a `SlowerWay` warning says once where that is not padding.

    Raises ValueError for a model that is not causal.
    """
    device, limit = device_of(model), longrope_limit(model.config)
    lengths = [len(context) + len(suffix.ids) for context, suffix in rows]
    # rotary angles of a pass follow its longest row
    sides = [[k for k, n in enumerate(lengths) if (limit or n) < n] if limit else []]
    sides.append([k for k in range(len(rows)) if k not in sides[0]])
    reasons = []
    for way in _WAYS:
        batches = [
            _batch(rows, [side[k] for k in part], device, padded=way.padded)
            for side in sides
            for part in way.split([lengths[k] for k in side], size)
        ]
        reason = None if way is _ALONE else _fault(model, way, rows, batches)
        if reason is None:
            _announce(model, way, reasons)
            return batches
        reasons.append(reason)
    raise AssertionError("rows that are read alone are what they are")


def _fault(
    model: torch.nn.Module, way: _Way, rows: Sequence[Row], batches: list[AnswerBatch]
) -> str | None:
    """Why rows that share a pass change one another, or None: the shortest row of the batch whose
    rows differ most in length is read alone too; once per way, setting and power of two of the
    width.
    """
    lengths = [len(context) + len(suffix.ids) for context, suffix in rows]

    def gap(batch: AnswerBatch) -> int:
        return batch.ids.shape[1] - min(lengths[k] for k in batch.places)

    worst = max(batches, key=lambda batch: (gap(batch), len(batch.places)))
    if len(worst.places) == 1:
        return None
    known = remembered(model)
    key = ("answers", setting(model), way.words, worst.ids.shape[1].bit_length())
    if key not in known:
        k = min(range(len(worst.places)), key=lambda k: lengths[worst.places[k]])
        alone = _batch(rows, [worst.places[k]], worst.ids.device, padded=False)
        most = near(model)
        try:
            with silenced():
                off = abs(float(answer_nll(model, worst)[k] - answer_nll(model, alone)[0]))
            words = f"{way.words}, they would change one another by {off:.2g} nats"
            known[key] = None if off <= most else words
        except UNSUITED as error:
            first = next(iter(str(error).splitlines()), "")
            known[key] = f"{way.words}, they fail ({type(error).__name__}: {first[:100]})"
    return known[key]


def _announce(model: torch.nn.Module, way: _Way, reasons: list[str]) -> None:
    known, key = remembered(model), ("answers announced", way.words)
    if reasons and key not in known:
        known[key] = None
        warnings.warn(
            f"{type(model).__name__} reads its answers {way.words}, which is slower: {reasons[0]}."
            " The values are exact.",
            SlowerWay,
            stacklevel=4,
        )
