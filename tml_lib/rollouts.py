"""Sample trajectories from a model in batches (RaML Tables 5 and 7 name the paper's settings)."""

from __future__ import annotations

import torch
from tqdm import tqdm

from tml_lib.answers import chat_prompt, extract, grade
from tml_lib.models import LanguageModel
from tml_lib.records import Question, Trajectory
from tml_lib.tasks import first_mention


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


def wrong_samples(
    lm: LanguageModel, questions: list[Question], *, seed: int, tries: int = 4, progress: bool = False, **settings
) -> list[Trajectory | None]:
    """Per question, the first of `tries` samples that states an answer, a wrong one, and never the right value.

    None where no sample qualifies. settings: passed to `sample`.
    """
    prompts = [chat_prompt(lm.tokenizer, q.text) for q in questions for _ in range(tries)]
    texts = sample(lm, prompts, seed=seed, progress=progress, **settings)
    found: list[Trajectory | None] = []
    for k, question in enumerate(questions):
        chosen = None
        for text in texts[k * tries : (k + 1) * tries]:
            stated = extract(text) if text else None
            if stated is None or grade(text, question.answer) or first_mention(text, question.answer) is not None:
                continue
            chosen = Trajectory(text, "sampled", stated, False)
            break
        found.append(chosen)
    return found
