"""The outer loop on the model's own trajectories: GRPO with trl (RaML Eq. 8, Table 1 'on-policy
RL', Fig. 9, Eq. 21).

Each of P questions of a step gets a group of G samples o_i with rewards r_i. A sample's advantage
is A_i = (r_i - mean r) / (std r + 1e-4), the standard deviation with G - 1 below, both over all G.
A step follows the gradient of

    L = -1/(P n) Σ_q Σ_{i kept} 1/|o_i| Σ_t min(ρ A_i, clip(ρ, 0.8, 1.2) A_i),   ρ = p_θ(o_it | ...)
    / p_old(o_it | ...)

over n of the G (Fig. 9): a mean over a sample's tokens, then over the kept samples. It is trl's
loss_type='grpo', as Shao et al. (2024, arXiv 2402.03300) write it: what a sample weighs depends
neither on the others' lengths nor on how many are kept beside it. trl's default, 'dapo', divides by
the number of tokens of the whole step instead.

Why the loss stays near 0 while the model learns: samples serve for one step, so ρ = 1, nothing is
clipped, and the loss is minus a mean of advantages, which sum to 0 in a whole group. Its gradient,
-mean A_i ∇ log p_θ(o_i), is not 0. Look at `reward`.

The log's keys: reward (mean over all samples), reward_std (over all, not within groups),
frac_reward_zero_std (share of groups without variance, which teach nothing),
completions/mean_length (tokens, end token included), completions/clipped_ratio (share of samples
cut off), clip_ratio/region_mean (share of tokens whose ρ is clipped), entropy and, where beta > 0,
kl (nats per token, over kept samples), seconds_sampling, seconds_scoring (reward, reference model),
seconds_update (of the last step).

Deviations from the paper (prompt 1024, response 16384, temperature 1, group 16, batch 1024, lr
1e-6, 1 epoch): 2 questions a step, samples of 128 tokens and a constant rate of 3e-4, for models a
ten-thousandth of the size; any reward, where theirs is Eq. 21; a sample that is cut off is scored
as it stands; no KL term unless asked for; questions in the order given.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import add_fused_lm_head, split_tensor_dict

from tml_lib.data import tiny
from tml_lib.lm import sampling
from tml_lib.lm.adapters import copy_to_train, merged, sharing, without_patches
from tml_lib.lm.answers import chat_prompt, token_ids
from tml_lib.lm.models import LanguageModel, check_tokenizer, quiet
from tml_lib.records import Question
from tml_lib.train.runs import Follow, OuterRun, claim, finished, newest_whole

OPTIMISER = "adamw_torch"
LARGEST_NORM = 1.0  # of a step's gradient; 0: no limit
FLAT_STEPS = 10  # successive steps without any variance of rewards, after which there is a warning
FLAT = (
    "for {} steps no group's rewards differed (mean {:.3g}), so nothing is learnt; try easier"
    " questions or larger groups"
)


class RewardError(ValueError):
    """A reward raised, or is not finite."""


def grpo(
    lm: LanguageModel,
    questions: Sequence[Question],
    reward: Callable[[str, str], float],
    folder: Path,
    *,
    steps: int,
    prompts: int = 2,
    group: int = 16,
    update: int = 0,
    peak_lr: float = 3e-4,
    beta: float = 0.0,
    temperature: float = 1.0,
    most_tokens: int = 128,
    accumulate: int = 1,
    lora_rank: int = 0,
    save_every: int = 0,
    log_every: int = 1,
    seed: int = 0,
    on_log: Callable[[list[dict]], None] | None = None,
) -> OuterRun:
    """Train a copy of lm on its own samples, `group` for each of `prompts` questions a step (see
    above).

    questions: come in the order given and, where fewer than steps * prompts, again in new orders.
    reward: (sampled text, question's answer) -> number. update: n, the samples of a group that the
    gradient is of, drawn anew each step; 0: all.
    beta: weight of the KL divergence from lm, per token. accumulate: passes that share a step's
        samples, to save memory.
    folder, on_log: as in `sft.sft`; the same call goes on and ends in the same bits (a reward is
    known by its name only). Raises ValueError for settings out of range, a prompt that with
    most_tokens is longer than the context, and a folder of another run; RewardError, with a
    checkpoint of the steps before, where a reward fails. Warns after ten flat steps.
    """
    check_tokenizer(without_patches(lm))
    given = {
        "steps": steps,
        "prompts": prompts,
        "group": group,
        "update": update or group,
        "peak_lr": peak_lr,
        "beta": beta,
    }
    given |= {
        "temperature": temperature,
        "most_tokens": most_tokens,
        "accumulate": accumulate,
        "lora_rank": lora_rank,
    }
    # processes, as `accelerate launch` and torchrun set it
    world = int(os.environ.get("WORLD_SIZE", 1))
    _check(given, questions, world)
    rows = [
        _row(lm, question, most_tokens) for question in _in_turn(questions, steps * prompts, seed)
    ]
    folder, began = Path(folder), time.perf_counter()
    pace = {
        "save_strategy": "steps" if save_every else "no",
        "save_steps": save_every or steps,
        "logging_steps": log_every,
    }
    arguments = _arguments(lm, given, world, output_dir=str(folder), seed=seed, **pace)
    with arguments.main_process_first():
        known = {"seed": seed, "reward": getattr(reward, "__name__", type(reward).__name__)}
        claim(folder, lm, given | known, [(row["prompt"], row["answer"]) for row in rows])
        newest = newest_whole(folder)
    model = copy_to_train(lm, lora_rank, seed)
    if not lora_rank:  # settings of its own, for trl writes into them
        model.config, model.generation_config = map(
            copy.deepcopy, (lm.model.config, lm.model.generation_config)
        )
    trainer = Trainer(
        model,
        lm,
        reward,
        given["update"],
        beta,
        args=arguments,
        train_dataset=Dataset.from_list(rows),
    )
    trainer.add_callback(Follow(on_log))
    with quiet(), warnings.catch_warnings():
        # trl's, every step
        warnings.filterwarnings(
            "ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning
        )
        try:
            trainer.train(resume_from_checkpoint=newest)
        except RewardError:
            if (step := trainer.state.global_step) and not (folder / f"checkpoint-{step}").exists():
                trainer._save_checkpoint(trainer.model, None)
            raise
    for part in (model, model.get_base_model() if lora_rank else model):
        for name in ("forward", "_original_forward"):  # what trl and accelerate have put around it
            part.__dict__.pop(name, None)
    trained, log = (
        sum(p.numel() for p in model.parameters() if p.requires_grad),
        trainer.state.log_history,
    )
    done = finished(model, lm, folder) if trainer.is_world_process_zero() else merged(model, lm)
    return OuterRun(
        replace(done, name=f"{lm.name}+grpo"), log, time.perf_counter() - began, trained, folder
    )


def _check(given: dict, questions: Sequence[Question], world: int) -> None:
    """Raise ValueError for settings that cannot be trained with, by name."""
    if not questions:
        raise ValueError("0 questions: there is nothing to sample for; give at least 1")
    for name in ("steps", "prompts", "most_tokens", "accumulate"):
        if given[name] < 1:
            raise ValueError(f"{name}={given[name]} leaves nothing to train on: give at least 1")
    group, update = given["group"], given["update"]
    if group < 2:
        raise ValueError(
            f"group={group}: an advantage compares the samples of a question, so give at least 2"
        )
    if not 0 < update <= group:
        raise ValueError(
            f"update={update} samples cannot be kept of a group of {group}: give 1..{group}, or 0"
            " for all"
        )
    if given["temperature"] <= 0 or given["beta"] < 0:
        pair = f"temperature={given['temperature']}, beta={given['beta']}"
        raise ValueError(
            f"{pair}: samples differ only at a temperature above 0, and a KL term's weight is 0 or"
            " more"
        )
    if given["prompts"] % world:
        raise ValueError(
            f"prompts={given['prompts']} for {world} processes: give a multiple, for each takes"
            " whole groups"
        )
    # trl would drop the rest
    if (count := given["prompts"] // world * math.gcd(group, update)) % given["accumulate"]:
        raise ValueError(
            f"accumulate={given['accumulate']} passes cannot share the samples evenly: give a"
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
    prompt, context = (
        chat_prompt(lm.tokenizer, question.text),
        lm.model.config.max_position_embeddings,
    )
    length = len(token_ids(lm.tokenizer, prompt))
    if length + most_tokens > context:
        sizes = (
            f"{length} tokens, which with most_tokens={most_tokens} exceed the context of {context}"
        )
        raise ValueError(
            f"question {question.id!r} has {sizes}: lower most_tokens, or leave the question out"
        )
    return {"prompt": prompt, "answer": question.answer, "name": question.id}


def _arguments(lm: LanguageModel, given: dict, world: int, **more) -> GRPOConfig:
    sizes = {
        "max_steps": given["steps"],
        "num_generations": given["group"],
        "max_completion_length": given["most_tokens"],
    }
    sizes["per_device_train_batch_size"] = (
        given["prompts"] * given["group"] // world // given["accumulate"]
    )
    # and as many steps per generation: all is on-policy
    sizes["gradient_accumulation_steps"] = given["accumulate"]
    rate = {
        "learning_rate": given["peak_lr"],
        "lr_scheduler_type": "constant",
        "max_grad_norm": LARGEST_NORM,
    }
    rate |= {
        "optim": OPTIMISER,
        "adam_beta1": tiny.BETAS[0],
        "adam_beta2": tiny.BETAS[1],
        "weight_decay": 0.0,
    }
    loss = {
        "loss_type": "grpo",
        "scale_rewards": "group",
        "epsilon": 0.2,
        "beta": 0.0,
        "temperature": given["temperature"],
    }
    plain = {
        "shuffle_dataset": False,
        "activation_checkpointing": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    plain |= {
        "logging_nan_inf_filter": False,
        "save_total_limit": 2,
        "use_cpu": lm.device.type == "cpu",
    }
    # what samples is what is trained
    plain |= {"bf16": lm.model.dtype == torch.bfloat16, "disable_dropout": True}
    return GRPOConfig(**sizes, **rate, **loss, **plain, **more)


class Trainer(GRPOTrainer):
    """trl's trainer, the kit's sampler; all it draws hangs on (seed, step, row) alone, so that a
    resumed run draws the same.
    """

    def __init__(
        self, model, lm: LanguageModel, reward: Callable, update: int, beta: float, **given
    ):
        self._asked, self._update, self._flat, self._ready = reward, update, 0, 0.0
        tokenizer = copy.deepcopy(lm.tokenizer)  # trl may give it a padding token
        super().__init__(model, [self.reward], processing_class=tokenizer, **given)
        self.remove_callback(PrinterCallback)
        # only now: the constructor would load a reference model by its name, or copy the adapter
        self.beta = beta
        if beta and not hasattr(model, "peft_config"):  # an adapter is switched off instead
            self.ref_model = sharing(lm.model)
            add_fused_lm_head(self.ref_model, temperature=self.temperature)

    def _prepare_inputs(self, batch):
        """trl's less the shuffle, whose order hangs on the past of a global generator; a mean over
        rows needs none.
        """
        passes = self.args.steps_per_generation
        if self._step % passes == 0 or self._buffered_inputs is None:
            self._buffered_inputs = split_tensor_dict(
                self._generate_and_score_completions(batch), passes
            )
        return self._buffered_inputs[self._step % passes]

    def _tokenize_prompts(self, prompts):
        """Without special tokens: the chat template has written them."""
        return [token_ids(self.processing_class, prompt) for prompt in prompts], None, {}

    def _generate_single_turn(self, prompt_ids, *_, **__):
        began, first = time.perf_counter(), self.accelerator.process_index * len(prompt_ids)
        seeds = [
            [self.args.seed, self.state.global_step, first + row] for row in range(len(prompt_ids))
        ]
        model, settings = (
            self.accelerator.unwrap_model(self.model),
            {"temperature": self.temperature},
        )
        settings |= {"max_new_tokens": self.max_completion_length, "batch_size": len(prompt_ids)}
        found = sampling.sample_ids(model, prompt_ids, seeds, self.eos_token_ids, **settings)
        self._metrics["train"]["seconds_sampling"].append(time.perf_counter() - began)
        return [[*one.ids] if one.cut else [*one.ids, one.end] for one in found], None

    def reward(self, prompts, completions, completion_ids, *, answer, name, **_) -> list[float]:
        """Rewards of texts as `sampling` decodes them: without the end token, but with
        every other.
        """
        ids = [row[:-1] if row[-1] in self.eos_token_ids else row for row in completion_ids]
        return [
            self._rewarded(*one)
            for one in zip(self.processing_class.batch_decode(ids), answer, name, strict=True)
        ]

    def _rewarded(self, text: str, answer: str, name: str) -> float:
        done = self.state.global_step
        where = (
            f"at step {done + 1}, question {name!r}, text {text[:60]!r}: mend it; the same call"
            f" goes on after step {done}"
        )
        try:
            value = float(self._asked(text, answer))
        except Exception as error:
            raise RewardError(
                f"the reward raised {type(error).__name__} ({error}) {where}"
            ) from error
        if not math.isfinite(value):
            raise RewardError(f"the reward is {value} {where}")
        return value

    def _generate_and_score_completions(self, inputs):
        began, metrics = time.perf_counter(), self._metrics["train"]
        output = super()._generate_and_score_completions(inputs)
        # where rewards are equal r - mean r is rounding, which
        grouped = output["advantages"].view(-1, self.num_generations)
        # over 1e-4 and under Adam would make a whole step
        flat = (grouped == grouped[:, :1]).all(1, keepdim=True)
        output["advantages"] = grouped.masked_fill(flat, 0).flatten()
        metrics["frac_reward_zero_std"][-1] = share = float(
            self.accelerator.gather(flat.float()).mean()
        )
        self._flat = self._flat + 1 if share == 1 else min(self._flat, 0)
        if self._flat == FLAT_STEPS:
            self._flat = -math.inf  # once
            warnings.warn(FLAT.format(FLAT_STEPS, metrics["reward"][-1]), stacklevel=2)
        output = output if self._update == self.num_generations else self._kept(output)
        self._ready = time.perf_counter()
        metrics["seconds_scoring"].append(self._ready - began - metrics["seconds_sampling"][-1])
        return output

    def _kept(self, output: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`update` random rows of each group, whose advantages have been taken over all rows."""
        group, rows = self.num_generations, len(output["advantages"])
        seed, first = (
            [self.args.seed, self.state.global_step],
            self.accelerator.process_index * rows,
        )
        orders = {
            row: np.random.default_rng([*seed, first + row, 1]).permutation(group)
            for row in range(0, rows, group)
        }
        keep = [
            row + int(k) for row, order in orders.items() for k in sorted(order[: self._update])
        ]
        output = {key: value[keep] if value.ndim else value for key, value in output.items()}
        # the longest sample may be among those left out
        width = int(output["completion_mask"].sum(1).max())
        for key in {"completion_ids", "completion_mask", "ref_per_token_logps"} & set(output):
            output[key] = output[key][:, :width]
        output["num_items_in_batch"] = self.accelerator.gather(
            output["completion_mask"].sum()
        ).sum()
        return output

    def _get_per_token_logps_and_entropies(self, model, *given, **settings):
        """trl's, with positions that do not count the padding: those of sampling, which matters
        where they are absolute.
        """

        def placed(*, attention_mask, **rest):
            return model(
                attention_mask=attention_mask,
                position_ids=(attention_mask.cumsum(1) - 1).clamp(min=0),
                **rest,
            )

        return super()._get_per_token_logps_and_entropies(placed, *given, **settings)

    def log(self, logs, start_time=None):
        if "loss" in logs:  # a step is done, and its loss has been read off the device
            self._metrics["train"]["seconds_update"].append(time.perf_counter() - self._ready)
        super().log(logs, start_time)
