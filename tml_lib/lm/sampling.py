"""Sample trajectories from a model in batches (RaML Tables 5 and 7 name the paper's settings)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from tqdm import tqdm
from transformers import DynamicCache

from tml_lib.lm.answers import chat_prompt
from tml_lib.lm.models import LanguageModel
from tml_lib.records import Question


@torch.inference_mode()
def sample(
    lm: LanguageModel,
    prompts: list[str],
    *,
    seed: int,
    temperature: float = 0.7,
    top_k: int = 50,
    top_p: float = 1.0,
    max_new_tokens: int = 200,
    batch_size: int = 16,
    progress: bool = False,
) -> list[str | None]:
    """One sampled continuation per prompt, None where it did not end within `max_new_tokens`.

    The defaults are the paper's rollout settings (Table 5) but for the length. Prompts are left-padded in batches; the
    same seed, prompts and batch size give the same texts on one machine. temperature=0 decodes greedily.
    """
    tokenizer = lm.tokenizer
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    ends = lm.model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    draw = {"do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": top_p}
    texts: list[str | None] = []
    starts = range(0, len(prompts), batch_size)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in tqdm(starts, desc="sampling", unit="batch", disable=not progress, leave=False):
            ids = [tokenizer(p, add_special_tokens=False)["input_ids"] for p in prompts[start : start + batch_size]]
            width = max(map(len, ids))
            padded = torch.tensor([[pad] * (width - len(row)) + row for row in ids], device=lm.device)
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ids], device=lm.device)
            out = lm.model.generate(
                input_ids=padded,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                pad_token_id=pad,
                repetition_penalty=1.0,  # whatever the model's own generation settings say
                **(draw if temperature > 0 else {"do_sample": False}),
            )
            for row in out[:, width:].tolist():
                end = next((place for place, token in enumerate(row) if token in ends), None)
                texts.append(None if end is None else tokenizer.decode(row[:end]).strip())
    return texts


# --- many samples ----------------------------------------------------------------------------------------------------


@torch.inference_mode()
def continuations(
    lm: LanguageModel,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    max_new_tokens: int = 128,
    batch_size: int = 256,
    progress: bool = False,
) -> list[tuple[int, ...] | None]:
    """One continuation per prompt as token ids without the end token, None where it did not end in time.

    A row's tokens depend on its prompt and its own seed alone, not on the rows beside it (up to rounding): token by token the
    inverse of the row's distribution function is taken at the next number of its own generator. temperature=0 decodes
    greedily; top_k=0 and top_p=1 leave the distribution whole. Rows that have ended leave the batch.
    Raises ValueError for settings out of range, an empty prompt, or as many seeds as prompts are not given.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts need as many seeds, got {len(seeds)}: give each row its own")
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1 or max_new_tokens < 1:
        given = f"temperature={temperature}, top_k={top_k}, top_p={top_p}, max_new_tokens={max_new_tokens}"
        raise ValueError(f"{given}: give a temperature and top_k of at least 0, top_p in (0, 1], and at least 1 token")
    encoded = [lm.tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    if [] in encoded:
        raise ValueError(f"prompt {encoded.index([])} tokenises to nothing: a continuation needs something to continue")
    order = sorted(range(len(prompts)), key=lambda k: len(encoded[k]))  # rows of like length side by side: less padding
    found: dict[int, tuple[int, ...] | None] = {}
    starts = range(0, len(order), batch_size)
    for start in tqdm(starts, desc="sampling", unit="batch", disable=not progress, leave=False):
        rows = order[start : start + batch_size]
        uniform = np.stack([np.random.default_rng(seeds[k]).random(max_new_tokens) for k in rows])
        batch = _continue([encoded[k] for k in rows], lm, torch.from_numpy(uniform), temperature, top_k, top_p)
        found |= dict(zip(rows, batch, strict=True))
    return [found[k] for k in range(len(prompts))]


def _continue(
    prompts: list[list[int]], lm: LanguageModel, uniform: torch.Tensor, temperature: float, top_k: int, top_p: float
) -> list[tuple[int, ...] | None]:
    """Continue left-padded prompts together. uniform: (B, most tokens) in [0, 1)."""
    ends = torch.tensor(sorted(_end_ids(lm)), device=lm.device)
    width = max(map(len, prompts))
    ids = torch.tensor([[int(ends[0])] * (width - len(row)) + row for row in prompts], device=lm.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=lm.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    uniform, cache = uniform.to(lm.device), DynamicCache(config=lm.model.config)
    written = torch.zeros(uniform.shape, dtype=torch.long, device=lm.device)
    lengths = torch.full((len(prompts),), -1, device=lm.device)  # -1: has not ended
    alive = torch.arange(len(prompts), device=lm.device)  # places of the rows still in the batch
    for step in range(uniform.shape[1]):
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "past_key_values": cache}
        logits = lm.model(**given, use_cache=True, logits_to_keep=1).logits[:, -1].float()
        token = _choose(logits, uniform[alive, step], temperature, top_k, top_p)
        written[alive, step] = token
        lengths[alive[torch.isin(token, ends) & (lengths[alive] < 0)]] = step
        running = lengths[alive] < 0
        if not running.any():
            break
        ids, positions = token[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        if int(running.sum()) < 0.8 * len(alive):  # dropping rows copies the cache, so it waits for a fifth of them
            cache.batch_select_indices(running.nonzero().flatten())
            alive, ids, positions, mask = alive[running], ids[running], positions[running], mask[running]
    rows = zip(written.tolist(), lengths.tolist(), strict=True)
    return [tuple(row[:length]) if length >= 0 else None for row, length in rows]


def _choose(logits: torch.Tensor, uniform: torch.Tensor, temperature: float, top_k: int, top_p: float) -> torch.Tensor:
    """Per row the token at which the filtered distribution's running sum passes the row's number; (B, V), (B,) -> (B,)."""
    if temperature == 0:
        return logits.argmax(-1)
    chances = (logits / temperature).softmax(-1)
    if top_k or top_p < 1:
        ordered, where = chances.sort(-1, descending=True)
        outside = ordered.cumsum(-1) - ordered >= top_p  # the likeliest token always stays
        if top_k:
            outside[:, top_k:] = True
        chances = chances.scatter(-1, where, ordered.masked_fill(outside, 0))
    running = chances.double().cumsum(-1)
    passed = running > uniform[:, None] * running[:, -1:]
    return passed.int().argmax(-1)


def _end_ids(lm: LanguageModel) -> set[int]:
    ends = lm.model.generation_config.eos_token_id
    return {lm.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}


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
    """How many of a question's samples are right, (Q,); mean number of tokens of the samples that ended; share that did.

    graded: (text, answer) -> right or not. begin: words put into the model's mouth; the answer template makes it answer at
    once ('no-thinking'). settings: passed to `continuations`; with temperature=0 one sample says all.
    """
    prompts = [chat_prompt(lm.tokenizer, question.text) + begin for question in questions for _ in range(samples)]
    seeds = np.random.SeedSequence(seed).generate_state(len(prompts), np.uint64).tolist()
    written = continuations(lm, prompts, seeds, **settings)
    texts = lm.tokenizer.batch_decode([ids or () for ids in written])
    right = [
        ids is not None and graded(begin + text, questions[k // samples].answer)
        for k, (ids, text) in enumerate(zip(written, texts, strict=True))
    ]
    lengths = [len(ids) for ids in written if ids is not None]
    tokens = float(np.mean(lengths)) if lengths else float("nan")
    return np.reshape(right, (-1, samples)).sum(1).tolist(), tokens, len(lengths) / len(written)


@torch.inference_mode()
def completions(
    lm: LanguageModel,
    prompts: Sequence[str],
    *,
    seed: int,
    temperature: float = 0.7,
    max_new_tokens: int = 160,
    batch_size: int = 32,
    begin: str = "",
) -> list[str]:
    """What the model writes after each prompt, cut after `max_new_tokens` where it has not ended by then; '' for nothing.

    begin: words put into the model's mouth. temperature=0 decodes greedily. Samples depend on the batch size.
    """
    tokenizer, texts = lm.tokenizer, []
    draw = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature > 0 else {"do_sample": False}
    pad = min(_end_ids(lm))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(prompts), batch_size):
            rows = [tokenizer(p + begin, add_special_tokens=False)["input_ids"] for p in prompts[start : start + batch_size]]
            width = max(map(len, rows))
            ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows], device=lm.device)
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=lm.device)
            given = {"attention_mask": mask, "max_new_tokens": max_new_tokens, "pad_token_id": pad, "repetition_penalty": 1.0}
            for row in lm.model.generate(ids, **given, **draw)[:, width:].tolist():
                end = next((k for k, token in enumerate(row) if token in _end_ids(lm)), len(row))
                texts.append(tokenizer.decode(row[:end]))
    return texts
