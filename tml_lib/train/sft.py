"""The outer loop with trl and peft: min over theta of the loss after the trajectory (RaML Eq. 8,
Table 1).

`sft` maximises the likelihood of trajectory and answer given the question. Deviations from the
paper: batch 64 and rates around 1e-3 instead of 256 and 1e-5, for models a ten-thousandth of the
size; a constant rate that falls to zero over the last 30 % of the steps; the rows come in the order
given, so that arms of a comparison see the same questions at the same step. trl's checkpoints hold
the optimiser's state in torch's own format, which is read back without running any code in it.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from huggingface_hub import constants
from trl import SFTConfig, SFTTrainer

from tml_lib import checks
from tml_lib.data.gsm import gold
from tml_lib.data.tiny import Row
from tml_lib.lm.adapters import copy_to_train, without_patches
from tml_lib.lm.answers import encode, token_ids
from tml_lib.lm.blocks import find_blocks, widened
from tml_lib.lm.context import check_context
from tml_lib.lm.models import LanguageModel, check_tokenizer
from tml_lib.records import Question
from tml_lib.train.runs import OuterRun, fit, in_given_order, opened, per_process, shared_arguments
from tml_lib.train.settings import TrainSettings, whole

# trl reports its use to its makers; the kit makes no request
constants.HF_HUB_DISABLE_TELEMETRY = True


@dataclass(frozen=True, kw_only=True)
class SFTSettings(TrainSettings):
    """What `sft` needs to be told."""

    batch: int = whole(1, 10**6, default=64)  # rows of a step, of all processes together


def sft(
    lm: LanguageModel,
    rows: Sequence[Row],
    folder: Path,
    settings: SFTSettings,
    *,
    on_log: Callable[[list[dict]], None] | None = None,
) -> OuterRun:
    """Fine-tune on rows, step k on rows k*batch..(k+1)*batch, with all weights (lora_rank=0) or a
    LoRA adapter.

    rows: steps * batch of (token ids, index of the first learnt token). Trains a copy: lm stays as
    it is. folder: receives the result and, every `save_every` steps, a checkpoint; the same call
    with the same folder resumes from the newest whole one and ends in the same bits. on_log: called
    with the log history whenever it grows. Under `accelerate launch` the processes share a step's
    rows, and what comes out is the run of one process up to rounding. Raises ValueError where rows
    are too few, too long or without a learnt token, where the folder belongs to another run or the
    tokenizer to another model, where batch is no multiple of the processes, and where the loss is
    not finite.
    """
    check_tokenizer(without_patches(lm))
    _check(rows, settings, lm)
    rows_each = per_process("batch", settings.batch)
    folder, began = checks.path(folder=folder), time.perf_counter()
    arguments = SFTConfig(
        **shared_arguments(lm, folder, settings),
        **in_given_order(settings),
        per_device_train_batch_size=rows_each,
        # on a GPU the log's last entry has the peak memory
        skip_memory_metrics=lm.device.type == "cpu",
    )
    with opened(folder, lm, settings.identity(), rows, arguments) as newest:
        data = Dataset.from_list(
            [{"input_ids": ids, "labels": [-100] * start + ids[start:]} for ids, start in rows]
        )
        trainer = SFTTrainer(
            model=copy_to_train(lm, settings.lora_rank, settings.seed),
            args=arguments,
            train_dataset=data,
            processing_class=copy.deepcopy(lm.tokenizer),  # trl may give it a padding token
        )
        return fit(trainer, lm, newest, folder=folder, began=began, name="sft", on_log=on_log)


def _check(rows: Sequence[Row], settings: SFTSettings, lm: LanguageModel) -> None:
    """Raise ValueError for rows that cannot be trained on, by number."""
    steps, batch = settings.steps, settings.batch
    if len(rows) != steps * batch:
        raise ValueError(f"{len(rows)} rows for {steps} steps of {batch}: give steps * batch")
    for k, (ids, start) in enumerate(rows):
        step = "cut long trajectories, or leave them out"
        check_context(lm.model, len(ids), f"row {k} takes", step)
        # the first token of a row is never predicted
        if not 0 <= start < len(ids) or len(ids) < 2:
            raise ValueError(
                f"row {k} has no learnt token ({len(ids)} tokens, learnt from index {start} on):"
                " leave it out, or let the index be less than its length"
            )


def answer_gradient(
    lm: LanguageModel, prompt: str, trajectory: str, answer: str, *, through: bool = True
) -> torch.Tensor:
    """The gradient of the answer's loss after a trajectory (RaML Eq. 8) over the weights of the
    model's blocks, flat.

    through=False holds the trajectory's keys and values fixed, as first-order MAML holds its inner
    steps: what is left flows through the question's and the answer's own positions. The difference
    is what flows through the trajectory.
    """
    encoded = encode(lm.tokenizer, prompt, trajectory, [answer])
    suffix, start = encoded.suffixes[0], len(encoded.prompt)
    weights = [p for block in find_blocks(lm.model)[0] for p in block.parameters()]
    before = torch.tensor([[*encoded.prompt, *encoded.trajectory]], device=lm.device)
    ids = torch.tensor([suffix.ids], device=lm.device)
    with torch.enable_grad():
        cache = lm.model(input_ids=before, use_cache=True).past_key_values
        for layer in () if through else cache.layers:
            for name in ("keys", "values"):
                held = getattr(layer, name)
                setattr(
                    layer, name, torch.cat([held[:, :, :start], held[:, :, start:].detach()], 2)
                )
        logits = lm.model(input_ids=ids, past_key_values=cache).logits[0, suffix.start - 1 : -1]
        loss = torch.nn.functional.cross_entropy(widened(logits), ids[0, suffix.start :])
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])


def question_rows(
    lm: LanguageModel,
    questions: Sequence[Question],
    *,
    trajectories: bool = True,
    texts: Sequence[str] | None = None,
) -> list[Row]:
    """Each question with its gold trajectory and its answer in the kit's template, as rows for
    `sft`; any tokenizer.

    trajectories: without them a row holds the question and its answer. texts: a trajectory for each
    question, in place of the gold ones. The answer ends with '}' and
    the model's end token. Raises ValueError where a seam between the parts is no token boundary,
    LookupError for a question without a gold trajectory.
    """
    closing = [*token_ids(lm.tokenizer, "}", begins=False), lm.tokenizer.eos_token_id]
    if texts is None:
        texts = [gold(question).text if trajectories else "" for question in questions]
    rows = []
    for question, text in zip(questions, texts, strict=True):
        prompt = lm.prompt(question.text)
        encoded = encode(lm.tokenizer, prompt, text, [question.answer])
        learnt = [*encoded.trajectory, *encoded.suffixes[0].ids, *closing]
        rows.append(([*encoded.prompt, *learnt], len(encoded.prompt)))
    return rows
