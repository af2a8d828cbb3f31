"""Rows of tokens that are read and continued together, each as if it were alone.

From the fastest way to the slowest: left-padded in one batch, in batches of one length from the
model's state, in such batches anew at each token, and row by row. The first that is exact for the
model is taken. It is checked at first use, on random rows (`obstacle`) and on a real batch
(`fault`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Protocol

import torch

from tml_lib.lm.caches import roomy_cache
from tml_lib.lm.exactness import (
    STATES,
    UNSUITED,
    NotSuited,
    check_ids,
    keeps_rows,
    near,
    remembered,
    setting,
    silenced,
)
from tml_lib.lm.placed import device_of


class Reader(Protocol):
    """Rows in the middle of being read: B prompts, then a token for each at every call."""

    def read(self, tokens: torch.Tensor | None) -> torch.Tensor:
        """(B, vocabulary) logits of what comes next; tokens: (B,), None at the first call."""

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with some rows only; rows: (B,) bool."""


class Padded:
    """Prompts of any lengths, padded on the left; equal ones are read once."""

    def __init__(self, model: torch.nn.Module, prompts: Sequence[tuple[int, ...]], filler: int):
        device, width = device_of(model), max(map(len, prompts))
        places = {prompt: k for k, prompt in enumerate(dict.fromkeys(prompts))}
        ids = [[filler] * (width - len(row)) + list(row) for row in places]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in places]
        self.model, self.mask = model, torch.tensor(mask, device=device)
        self.ids = torch.tensor(ids, device=device)
        self.positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        self.cache = roomy_cache(model.config)
        self.of = None  # which prompt each row has, where some are equal
        if len(places) < len(prompts):
            self.of = torch.tensor([places[prompt] for prompt in prompts], device=device)

    def read(self, tokens: torch.Tensor | None) -> torch.Tensor:
        if tokens is not None:
            self.ids, self.positions = tokens[:, None], self.positions[:, -1:] + 1
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        logits = self.model(
            input_ids=self.ids,
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
            **_last(self.model),
        ).logits[:, -1]
        if tokens is None and self.of is not None:
            self.cache.batch_select_indices(self.of)
            logits, self.mask, self.positions = (
                part[self.of] for part in (logits, self.mask, self.positions)
            )
        return logits

    def keep(self, rows: torch.Tensor) -> None:
        self.cache.batch_select_indices(rows.nonzero().flatten())
        self.positions, self.mask = self.positions[rows], self.mask[rows]


class Alike:
    """Prompts of one length, without padding.

    cached: read on from the model's state; it is made anew where rows leave, and where the text
    grows beyond `renew` tokens. placed: with position ids.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        prompts: Sequence[tuple[int, ...]],
        filler: int,
        *,
        cached: bool,
        placed: bool = False,
        renew: int | None = None,
    ):
        self.model, self.cached, self.placed, self.renew = model, cached, placed, renew
        self.ids = torch.tensor(prompts, device=device_of(model))
        self.state: dict[str, object] = {}

    def read(self, tokens: torch.Tensor | None) -> torch.Tensor:
        if tokens is not None:
            self.ids = torch.cat([self.ids, tokens[:, None]], 1)
        if self.renew is not None and self.ids.shape[1] == self.renew + 1:
            self.state = {}
        piece = self.ids[:, -1:] if self.state else self.ids
        end = self.ids.shape[1]
        places = torch.arange(end - piece.shape[1], end, device=piece.device)
        where = {"position_ids": places.expand_as(piece)} if self.placed else {}
        output = self.model(
            input_ids=piece, use_cache=self.cached, **where, **self.state, **_last(self.model)
        )
        if self.cached:
            self.state = {n: v for n in STATES if (v := getattr(output, n, None)) is not None}
            if not self.state:
                raise ValueError("the model returns neither a cache nor a recurrent state")
        return output.logits[:, -1]

    def keep(self, rows: torch.Tensor) -> None:
        self.ids, self.state = self.ids[rows], {}


def _last(model: torch.nn.Module) -> dict[str, int]:
    """What asks for the last row's logits alone, where the model can."""
    return {"logits_to_keep": 1} if keeps_rows(model) else {}


@dataclass(frozen=True)
class Way:
    """One way of reading rows together."""

    words: str
    reader: Callable[..., Reader]  # (model, prompts, filler)
    alike: bool = True  # rows of one length only
    single: bool = False  # one row only

    def split(self, rows: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
        """Rows that are read together; rows and their lengths, shortest first."""
        if self.single:
            yield from ([row] for row in rows)
        elif self.alike:
            for _, group in groupby(rows, key=lambda row: lengths[row]):
                yield list(group)
        else:
            yield list(rows)


PADDED = Way("padded on the left", Padded, alike=False)
NAIVE = Way("one by one, anew at each token", partial(Alike, cached=False), single=True)
WAYS = (
    PADDED,
    Way("in groups of one length", partial(Alike, cached=True, placed=True)),
    Way("in groups of one length", partial(Alike, cached=True)),
    Way("in groups of one length, anew at each token", partial(Alike, cached=False)),
    NAIVE,
)


def obstacle(model: torch.nn.Module, way: Way) -> str | None:
    """Why rows that are read in that way change one another, or None: checked on two random rows
    and four tokens, once per model, way and setting.
    """
    if way is NAIVE:
        return None
    known, key = remembered(model), (setting(model), way)
    if key not in known:
        try:
            with silenced():
                off = _largest_error(model, way)
                most = near(model)
            known[key] = None if off <= most else _changed(way, off)
        except (*UNSUITED, NotSuited) as error:
            first = next(iter(str(error).splitlines()), "")
            known[key] = f"{way.words}, they fail ({type(error).__name__}: {first[:100]})"
    return known[key]


@torch.inference_mode()
def _largest_error(model: torch.nn.Module, way: Way) -> float:
    """How far the predictions of two random rows are from those of each row alone, in nats."""
    ids = check_ids(model, 24)
    prompts = [ids[:7], ids[7:14] if way.alike else ids[7:10]]
    tokens = ids[14:18], ids[18:22]
    reader = way.reader(model, [tuple(p) for p in prompts], ids[22])
    device, errors = device_of(model), []
    rows = [0, 1]
    for step in range(5):
        given = torch.tensor([tokens[row][step - 1] for row in rows], device=device)
        logits = reader.read(given if step else None)
        errors += [
            distance(model, [*prompts[row], *tokens[row][:step]], logits[k])
            for k, row in enumerate(rows)
        ]
        if step == 2:  # the longer row leaves
            reader.keep(torch.tensor([False, True], device=device))
            rows = [1]
    return max(errors)


@torch.inference_mode()
def distance(model: torch.nn.Module, text: Sequence[int], logits: torch.Tensor) -> float:
    """Root mean square over the vocabulary of what logits differ by from the prediction after a
    text that is read alone and without a cache, in nats.
    """
    ids = torch.tensor([list(text)], device=logits.device)
    alone = model(input_ids=ids, use_cache=False, **_last(model)).logits[0, -1]
    change = logits.double().log_softmax(-1) - alone.double().log_softmax(-1)
    return float(change.pow(2).mean().sqrt())


def fault(
    model: torch.nn.Module, way: Way, text: Sequence[int], logits: torch.Tensor, *, width: int
) -> str | None:
    """Why what a real batch predicts after one of its rows is not what the row alone predicts, or
    None; checked once per model, way, setting and power of two of the batch's width in tokens.
    """
    if way is NAIVE:
        return None
    known, key = remembered(model), (setting(model), way, width.bit_length())
    if key not in known:
        off = distance(model, text, logits)
        known[key] = None if off <= near(model) else _changed(way, off)
    return known[key]


def _changed(way: Way, off: float) -> str:
    return f"{way.words}, they would change one another by {off:.2g} nats"
