"""Sample from a model in batches whose rows do not depend on one another (RaML Tables 5 and 7 name
the paper's settings).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from tml_lib.lm import batches
from tml_lib.lm.answers import token_ids
from tml_lib.lm.exactness import SlowerWay, contiguous_head, evaluating, longrope_limit, remembered
from tml_lib.lm.models import LanguageModel
from tml_lib.lm.placed import device_of
from tml_lib.records import Question


@dataclass(frozen=True)
class Sampled:
    """What was written after a prompt: token ids without the end token, and the end token, None
    where none came in time.
    """

    ids: tuple[int, ...]
    end: int | None

    @property
    def cut(self) -> bool:
        """Whether it had not ended when the number of tokens was reached."""
        return self.end is None


def sample(lm: LanguageModel, prompts: Sequence[str], seeds: Sequence, **settings) -> list[Sampled]:
    """`sample_ids` for prompts as text, up to the tokenizer's end token or one of the model's own
    generation settings.
    """
    ends = lm.model.generation_config.eos_token_id
    ends = {lm.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    encoded = [token_ids(lm.tokenizer, prompt) for prompt in prompts]
    return sample_ids(lm.model, encoded, seeds, sorted(ends), **settings)


@torch.inference_mode()
def sample_ids(
    model,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int] | Sequence[Sequence[int]],
    ends: Sequence[int],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    max_new_tokens: int = 128,
    batch_size: int = 256,
    progress: bool = False,
) -> list[Sampled]:
    """One continuation per prompt of token ids, up to the first of the tokens `ends` or
    `max_new_tokens` tokens; without such tokens, as many for every row.

    A row's tokens depend on its prompt and its own seed alone, not on the rows beside it (up to
    rounding): token by token the inverse of the row's distribution function is taken at the next
    number of its own generator. temperature=0 decodes greedily; top_k=0 and top_p=1 leave the
    distribution whole. Equal prompts of a batch are read once; rows that have ended leave it.
    Where rows of different lengths would change one another, which is checked, rows of one length
    are read together, or each alone; a `SlowerWay` warning says so once.
    seeds: one a row, as `np.random.default_rng` takes it. batch_size: rows. Raises ValueError for
    settings out of range, an empty prompt, or as many seeds as prompts are not given.
    """
    if len(prompts) != len(seeds):
        raise ValueError(
            f"{len(prompts)} prompts need as many seeds, got {len(seeds)}: give each row its own"
        )
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1 or max_new_tokens < 1:
        settings = (
            f"temperature={temperature}, top_k={top_k}, top_p={top_p},"
            f" max_new_tokens={max_new_tokens}"
        )
        raise ValueError(
            f"{settings}: give a temperature and top_k of at least 0, top_p in (0, 1], and at least"
            " 1 token"
        )
    keys = [tuple(prompt) for prompt in prompts]
    if () in keys:
        raise ValueError(
            f"prompt {keys.index(())} tokenises to nothing: a continuation needs something to"
            " continue"
        )
    place = {key: k for k, key in enumerate(dict.fromkeys(keys))}
    # less padding, equal prompts together
    order = sorted(range(len(keys)), key=lambda k: (len(keys[k]), place[keys[k]]))
    draw = _Draw(tuple(ends), temperature, top_k, top_p)
    found: dict[int, Sampled] = {}
    starts = range(0, len(order), batch_size)
    for start in tqdm(starts, desc="sampling", unit="batch", disable=not progress, leave=False):
        rows = order[start : start + batch_size]
        uniform = torch.from_numpy(
            np.stack([np.random.default_rng(seeds[k]).random(max_new_tokens) for k in rows])
        )
        batch = _Batch([keys[k] for k in rows], uniform)
        with evaluating(model), contiguous_head(model):
            for part, ways, renew in _sides(model, batch):
                written = _written(model, batch.some(part), draw, ways, renew)
                found |= {rows[k]: one for k, one in zip(part, written, strict=True)}
    return [found[k] for k in range(len(keys))]


@dataclass(frozen=True)
class _Draw:
    """How a token is chosen, and which end a row."""

    ends: tuple[int, ...]
    temperature: float
    top_k: int
    top_p: float


@dataclass(frozen=True)
class _Batch:
    """B prompts, shortest first, and (B, most tokens) numbers in [0, 1) that choose tokens."""

    prompts: list[tuple[int, ...]]
    uniform: torch.Tensor

    def some(self, rows: Sequence[int]) -> _Batch:
        return _Batch([self.prompts[k] for k in rows], self.uniform[rows])


def _sides(model, batch: _Batch) -> Iterator[tuple[list[int], tuple, int | None]]:
    """(rows, ways to read them, length after which they are read anew): all at once, but for a
    model whose rotary angles change at a length (longrope), which rows reach at different times.
    """
    limit, most = longrope_limit(model.config), batch.uniform.shape[1]
    parts: dict[str, list[int]] = {"below": [], "across": [], "beyond": []}
    for k, prompt in enumerate(batch.prompts):
        across = "below" if limit is None or len(prompt) + most <= limit else "across"
        parts["beyond" if limit is not None and len(prompt) > limit else across].append(k)
    for side, rows in parts.items():
        if rows:
            across = side == "across"
            yield rows, batches.WAYS[across:], limit if across else None


def _written(
    model,
    batch: _Batch,
    draw: _Draw,
    ways: tuple[batches.Way, ...],
    renew: int | None,
    reason: str | None = None,
) -> list[Sampled]:
    """What a batch's rows are continued with, in the first of the ways that is exact; reason: why
    the ways before these are not.
    """
    way, *rest = ways
    if fault := batches.obstacle(model, way):
        return _written(model, batch, draw, tuple(rest), renew, reason or fault)
    if reason:
        _announce(model, way, reason)
    lengths, found = [len(prompt) for prompt in batch.prompts], []
    for rows in way.split(range(len(lengths)), lengths):
        part = batch.some(rows)
        written, fault = _continue(model, part, draw, way, renew)
        if fault:
            written = _written(model, part, draw, tuple(rest), renew, fault)
        found += written
    return found


def _announce(model, way: batches.Way, reason: str) -> None:
    """Warn once per model and way that its rows are not read in the fastest one, and why."""
    known, key = remembered(model), ("announced", way.words)
    if key not in known:
        known[key] = None
        warnings.warn(
            f"{type(model).__name__} continues its prompts {way.words}, which is slower: {reason}."
            " What is written is the same as for each prompt alone.",
            SlowerWay,
            stacklevel=5,
        )


def _continue(
    model, batch: _Batch, draw: _Draw, way: batches.Way, renew: int | None
) -> tuple[list[Sampled], str | None]:
    """Rows continued together, and why they are not what each alone would be, or None."""
    device, prompts = device_of(model), batch.prompts
    uniform = batch.uniform.to(device)
    stops = torch.tensor(draw.ends, dtype=torch.long, device=device)
    filler = draw.ends[0] if draw.ends else 0  # padding is masked
    reader = way.reader(model, prompts, filler, **({"renew": renew} if renew else {}))
    written = torch.zeros(uniform.shape, dtype=torch.long, device=device)
    lengths = torch.full((len(prompts),), -1, device=device)  # -1: has not ended
    alive = torch.arange(len(prompts), device=device)  # places of the rows still in the batch
    token = None
    for step in range(uniform.shape[1]):
        logits = reader.read(token).float()
        token = _choose(logits, uniform[alive, step], draw)
        written[alive, step] = token
        lengths[alive[torch.isin(token, stops) & (lengths[alive] < 0)]] = step
        first, running = int(alive[0]), lengths[alive] < 0
        if not running.any():
            break
        # dropping rows copies the cache, so it waits for a fifth of them
        if int(running.sum()) < 0.8 * len(alive):
            reader.keep(running)
            alive, token = alive[running], token[running]
    rows = zip(written.tolist(), lengths.tolist(), strict=True)
    found = [
        Sampled(tuple(row[:n]), row[n]) if n >= 0 else Sampled(tuple(row), None) for row, n in rows
    ]
    # the shortest row, which has the most padding, at the last token
    text, width = [*prompts[first], *written[first, :step].tolist()], len(prompts[-1]) + step
    return found, batches.fault(model, way, text, logits[0], width=width)


def _choose(logits: torch.Tensor, uniform: torch.Tensor, draw: _Draw) -> torch.Tensor:
    """Per row the token at which the filtered distribution's running sum passes the row's number;
    (B, V), (B,) -> (B,).
    """
    if draw.temperature == 0:
        return logits.argmax(-1)
    chances = (logits / draw.temperature).softmax(-1)
    where = torch.arange(chances.shape[-1], device=chances.device).expand_as(chances)
    if draw.top_k or draw.top_p < 1:
        ordered, where = chances.topk(min(draw.top_k or chances.shape[-1], chances.shape[-1]))
        outside = ordered.cumsum(-1) - ordered >= draw.top_p  # the likeliest token always stays
        most = int((~outside).sum(-1).max())
        where, order = where[:, :most].sort(-1)  # the sum runs over tokens by number
        chances = ordered.masked_fill(outside, 0).gather(-1, order)
    running = chances.double().cumsum(-1)
    passed = running > uniform[:, None] * running[:, -1:]
    return where.gather(-1, passed.int().argmax(-1, keepdim=True))[:, 0]


def row_seeds(seed: int | Sequence[int], n: int) -> list[int]:
    """A seed for each of n rows, drawn from one; the first few do not depend on n."""
    return np.random.SeedSequence(seed).generate_state(n, np.uint64).tolist()


def texts(lm: LanguageModel, samples: Sequence[Sampled], *, whole: bool = False) -> list[str]:
    """What was written, cut or not, as text. whole: '' in place of a sample that was cut."""
    return lm.tokenizer.batch_decode([() if whole and one.cut else one.ids for one in samples])


def right_counts(
    lm: LanguageModel,
    questions: Sequence[Question],
    graded: Callable[[str, str], bool],
    *,
    samples: int,
    seed: int,
    begin: str = "",
    **settings,
) -> tuple[list[int], float, float]:
    """How many of a question's samples are right, (Q,); mean number of tokens of the samples that
    ended; share that did.

    graded: (text, answer) -> right or not. begin: words put into the model's mouth; the answer
    template makes it answer at once ('no-thinking'). settings: passed to `sample`; with
    temperature=0 one sample says all.
    """
    prompts = [lm.prompt(question.text) + begin for question in questions for _ in range(samples)]
    written = sample(lm, prompts, row_seeds(seed, len(prompts)), **settings)
    right = [
        not one.cut and graded(begin + text, questions[k // samples].answer)
        for k, (one, text) in enumerate(zip(written, texts(lm, written), strict=True))
    ]
    lengths = [len(one.ids) for one in written if not one.cut]
    tokens = float(np.mean(lengths)) if lengths else float("nan")
    return np.reshape(right, (-1, samples)).sum(1).tolist(), tokens, len(lengths) / len(written)
