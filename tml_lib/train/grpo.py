"""The outer loop on the model's own trajectories: GRPO with trl (RaML Eq. 8, Table 1 'on-policy
RL', Fig. 9, Eq. 21).

Each of P questions of a step gets a group of G samples o_i with rewards r_i. A sample's advantage
is A_i = (r_i - mean r) / (std r + 1e-4), with mean and sample standard deviation (G - 1 in the
denominator) over all G. A step goes against the gradient of

    L = -1/(P n) Σ_q Σ_{i kept} 1/|o_i| Σ_t min(ρ A_i, clip(ρ, 0.8, 1.2) A_i)
    with ρ = p_θ(o_it | q, o_i<t) / p_old(o_it | q, o_i<t),   p_old: the weights that sampled,

over n of the G (Fig. 9): a mean over a sample's tokens, then over the kept samples. It is trl's
loss_type='grpo', as Shao et al. (2024, arXiv 2402.03300) write it: the weight of a sample depends
neither on the others' lengths nor on how many others are kept. trl's default, 'dapo', divides by
the number of tokens of the whole step instead.

Why the loss stays near 0 while the model learns: samples serve for one step, so ρ = 1, nothing is
clipped, and the loss is minus a mean of advantages, which sum to 0 in a whole group. Its gradient,
-mean A_i ∇ log p_θ(o_i), is not 0. Look at `reward`.

The log's keys: reward (mean over all samples), reward_std (over all, not within groups),
frac_reward_zero_std (share of groups without variance, which teach nothing),
completions/mean_length (tokens, end token included), completions/clipped_ratio (share of samples
cut off), clip_ratio/region_mean (share of tokens whose ρ is clipped), entropy and, where beta > 0,
kl (nats per token, over kept samples), seconds_sampling, seconds_scoring (reward, reference model),
seconds_update (of the last step before the entry; the others are means over the entry's steps).

Deviations from the paper (prompt 1024, response 16384, temperature 1, group 16, batch 1024, lr
1e-6, 1 epoch): 2 questions a step, samples of 128 tokens and a constant rate of 3e-4, for models a
ten-thousandth of the size; any reward, where theirs is Eq. 21; a sample that is cut off is scored
as it stands; no KL term unless asked for; questions in the order given.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset
from trl import GRPOConfig

from tml_lib import checks
from tml_lib.lm.adapters import copy_to_train, without_patches
from tml_lib.lm.answers import token_ids
from tml_lib.lm.context import check_context
from tml_lib.lm.models import LanguageModel, check_tokenizer
from tml_lib.lm.pretrained import quiet
from tml_lib.records import Question
from tml_lib.train.grpo_trainer import RewardError, Trainer
from tml_lib.train.runs import OuterRun, fit, opened, per_process, seal, shared_arguments
from tml_lib.train.settings import TrainSettings, real, whole

OPTIMISER = "adamw_torch"
LARGEST_NORM = 1.0  # of a step's gradient; 0: no limit
CLIP = 0.2  # the ratio counts within 1 - CLIP .. 1 + CLIP


@dataclass(frozen=True, kw_only=True)
class GRPOSettings(TrainSettings):
    """What `grpo` needs to be told."""

    prompts: int = whole(1, 10**6, default=2)  # questions of a step, of all processes together
    group: int = whole(2, 10**6, default=16)  # G, samples of a question; an advantage compares them
    update: int = whole(0, 10**6, default=0)  # n, samples of a group in the gradient; 0: all
    beta: float = real(low=0.0, default=0.0)  # weight of the KL divergence from lm, per token
    temperature: float = real(above=0.0, default=1.0)  # at 0 all samples would be the same
    most_tokens: int = whole(1, 10**6, default=128)  # of a sample
    accumulate: int = whole(1, 10**6, default=1)  # passes that share a step's samples
    log_every: int = whole(1, 10**9, default=1)

    def __post_init__(self):
        super().__post_init__()
        if self.update > self.group:
            raise ValueError(
                f"update={self.update} samples cannot be kept of a group of {self.group}: give"
                f" 1..{self.group}, or 0 for all"
            )

    @property
    def kept(self) -> int:
        """Samples of a group that the gradient is of."""
        return self.update or self.group

    def identity(self) -> dict:
        return super().identity() | {"update": self.kept}


def grpo(
    lm: LanguageModel,
    questions: Sequence[Question],
    reward: Callable[[str, str], float],
    folder: Path,
    settings: GRPOSettings,
    *,
    on_log: Callable[[list[dict]], None] | None = None,
) -> OuterRun:
    """Train a copy of lm on its own samples, `group` for each of `prompts` questions a step (see
    the module's docstring).

    questions: only text, answer and id are read; they come in the order given and, where fewer than
    steps * prompts, again in new orders.
    reward: (sampled text, question's answer) -> number. folder, on_log, processes: as in `sft.sft`;
    the same call resumes and ends in the same bits (a reward is known by its name only). Raises
    ValueError for settings that do not go together, a prompt that with most_tokens is longer than
    the context, and a folder of another run; RewardError, with a checkpoint of the steps before,
    where a reward fails. Warns after `grpo_trainer.FLAT_STEPS` steps in which no group's rewards
    differed.
    """
    check_tokenizer(without_patches(lm))
    if not questions:
        raise ValueError("0 questions: there is nothing to sample for; give at least 1")
    prompts_each = per_process("prompts", settings.prompts)
    _check_passes(settings, prompts_each)
    asked = _in_turn(questions, settings.steps * settings.prompts, settings.seed)
    rows = [_row(lm, question, settings.most_tokens) for question in asked]
    folder, began = checks.path(folder=folder), time.perf_counter()
    arguments = _arguments(lm, folder, settings, prompts_each)
    identity = settings.identity() | {"reward": getattr(reward, "__name__", type(reward).__name__)}
    texts = [(row["prompt"], row["answer"]) for row in rows]
    with opened(folder, lm, identity, texts, arguments) as newest:
        trainer = Trainer(
            copy_to_train(lm, settings.lora_rank, settings.seed),
            lm,
            reward,
            kept=settings.kept,
            beta=settings.beta,
            args=arguments,
            train_dataset=Dataset.from_list(rows),
        )
        with _quietly(), _checkpoint_on_reward_error(trainer, folder):
            return fit(trainer, lm, newest, folder=folder, began=began, name="grpo", on_log=on_log)


@contextlib.contextmanager
def _quietly():
    """Without the loading bars of transformers, and without a warning that trl gives every step."""
    with quiet(), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning
        )
        yield


@contextlib.contextmanager
def _checkpoint_on_reward_error(trainer: Trainer, folder: Path):
    """Where a reward fails, the steps that are done are kept as a checkpoint."""
    try:
        yield
    except RewardError:
        step = trainer.state.global_step
        checkpoint = folder / f"checkpoint-{step}"
        # processes write a checkpoint together, and the others may not have failed
        if step and not checkpoint.exists() and trainer.accelerator.num_processes == 1:
            trainer._save_checkpoint(trainer.model, None)
            seal(checkpoint)
        raise


def _check_passes(settings: GRPOSettings, prompts_each: int) -> None:
    """Raise ValueError where the passes of a step cannot have equally many samples.

    Every pass takes an equal part of the samples that are drawn (P G) and of those that are kept
    (P n), so `accumulate` must divide both. trl would silently drop the rest.
    """
    drawn, kept = prompts_each * settings.group, prompts_each * settings.kept
    count = math.gcd(drawn, kept)
    if count % settings.accumulate:
        raise ValueError(
            f"accumulate={settings.accumulate} passes cannot share the samples evenly: give a"
            f" divisor of {count}"
        )


def _in_turn(questions: Sequence[Question], count: int, seed: int) -> Iterable[Question]:
    """`count` questions: all in the order given, then all again in another order, and so on."""
    n = len(questions)
    orders = (
        np.random.default_rng([seed, again]).permutation(n) if again else range(n)
        for again in itertools.count()
    )
    return (questions[k] for k in itertools.islice(itertools.chain.from_iterable(orders), count))


def _row(lm: LanguageModel, question: Question, most_tokens: int) -> dict[str, str]:
    """A question as trl wants it. Raises ValueError where its prompt leaves too little of the
    context.
    """
    prompt = lm.prompt(question.text)
    length = len(token_ids(lm.tokenizer, prompt))
    what = f"question {question.id!r} ({length} tokens) with most_tokens={most_tokens} takes"
    step = "lower most_tokens, or leave the question out"
    check_context(lm.model, length + most_tokens, what, step)
    return {"prompt": prompt, "answer": question.answer, "name": question.id}


def _arguments(
    lm: LanguageModel, folder: Path, settings: GRPOSettings, prompts_each: int
) -> GRPOConfig:
    """trl's arguments: those that all trainers share, and those of GRPO."""
    return GRPOConfig(
        **shared_arguments(lm, folder, settings),
        # a step's samples are drawn at once, and trained on in `accumulate` passes: all on-policy
        num_generations=settings.group,
        max_completion_length=settings.most_tokens,
        temperature=settings.temperature,
        per_device_train_batch_size=prompts_each * settings.group // settings.accumulate,
        gradient_accumulation_steps=settings.accumulate,
        shuffle_dataset=False,
        # the loss
        loss_type="grpo",
        scale_rewards="group",
        epsilon=CLIP,
        beta=0.0,  # set by `Trainer` after trl's constructor, which would load a reference model
        disable_dropout=True,  # the model that samples is the model that is trained
        # the optimiser
        optim=OPTIMISER,
        lr_scheduler_type="constant",
        max_grad_norm=LARGEST_NORM,
    )
