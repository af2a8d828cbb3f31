"""trl's GRPO trainer with the kit's sampler, and all that the kit relies on inside trl.

What follows trl's own code and may change with its version; `tests/train/test_trl_internals.py`
has a test of each item, by its number:
 1. `_prepare_inputs(batch)` is called once for each pass; `_step` counts passes; what is drawn for
    a step is kept in `_buffered_inputs`, `args.steps_per_generation` parts of it.
 2. `_generate_and_score_completions(inputs)` returns a dict of tensors, a row for each sample, with
    `advantages`, `completion_ids`, `completion_mask` and the scalar `num_items_in_batch`.
 3. `_tokenize_prompts(prompts)` returns (ids, images, fields of other inputs).
 4. `_generate_single_turn(prompt_ids, ...)` returns (ids of samples, log-probabilities or None).
 5. `_get_per_token_logps_and_entropies(model, ...)` calls `model` with an `attention_mask`.
 6. A reward function is called with prompts, completions, completion_ids and the data's columns.
 7. loss_type='grpo' is a mean over rows of means over tokens, divided by the number of passes; it
    does not read `num_items_in_batch`, which the log alone needs.
 8. scale_rewards='group' divides by the standard deviation with G - 1 below, plus 1e-4.
 9. `_metrics['train']` maps a name to a list, `frac_reward_zero_std` and `reward` among them.
10. `beta`, `ref_model`, `temperature`, `num_generations`, `max_completion_length` and
    `eos_token_ids` are attributes that are read when a step is taken.
11. A group's rows lie together, and process k of K has the k-th of K equal parts of a step's rows.
12. `_save_checkpoint(model, trial)` writes `checkpoint-<step>`.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule
from trl import GRPOTrainer
from trl.models import prepare_fsdp
from trl.trainer.utils import add_fused_lm_head, split_tensor_dict

from tml_lib.lm import sampling
from tml_lib.lm.adapters import sharing
from tml_lib.lm.answers import token_ids
from tml_lib.lm.models import LanguageModel

FLAT_STEPS = 10  # successive steps without any variance of rewards, after which there is a warning
FLAT = (
    "for {} steps no group's rewards differed (mean {:.3g}), so nothing is learnt; try easier"
    " questions or larger groups"
)


class RewardError(ValueError):
    """A reward raised, or is not finite."""


@contextlib.contextmanager
def gathered(model: torch.nn.Module) -> Iterator[None]:
    """Weights that FSDP shards, whole on each process meanwhile: a sharded model is read by all
    processes at the same time, and their samples end after different numbers of tokens.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)


class Trainer(GRPOTrainer):
    """trl's trainer, the kit's sampler; all that it draws depends on (seed, step, row) alone, so
    that a resumed run draws the same.
    """

    def __init__(
        self, model, lm: LanguageModel, reward: Callable, *, kept: int, beta: float, **settings
    ):
        self._asked = reward
        self._update = kept  # samples of a group that the gradient is of
        self._flat_steps = 0  # in a row
        self._warned = False  # that they are many
        self._ready = 0.0  # when the last step's samples were scored
        tokenizer = copy.deepcopy(lm.tokenizer)  # trl may give it a padding token
        super().__init__(model, [self.reward], processing_class=tokenizer, **settings)
        # only now: the constructor would load a reference model by its name, or copy the adapter
        self.beta = beta
        if beta and not hasattr(model, "peft_config"):  # an adapter is switched off instead
            self.ref_model = sharing(lm.model)
            add_fused_lm_head(self.ref_model, temperature=self.temperature)
            if self.is_fsdp_enabled:
                self.ref_model = prepare_fsdp(self.ref_model, self.accelerator)

    # --- a step's samples -------------------------------------------------------------------------

    def _prepare_inputs(self, batch):
        """trl's without the shuffle, whose order depends on the past of a global generator; a mean
        over rows needs none.
        """
        passes = self.args.steps_per_generation
        if self._step % passes == 0 or self._buffered_inputs is None:
            scored = self._generate_and_score_completions(batch)
            self._buffered_inputs = split_tensor_dict(scored, passes)
        return self._buffered_inputs[self._step % passes]

    def _tokenize_prompts(self, prompts):
        """Without special tokens: the chat template has written them."""
        return [token_ids(self.processing_class, prompt) for prompt in prompts], None, {}

    def _first_row(self, rows: int) -> int:
        """The place that this process's first row has among the rows of all processes."""
        return self.accelerator.process_index * rows

    def _generate_single_turn(self, prompt_ids, *_, **__):
        """Samples by the kit's sampler, each from a seed of its own."""
        began, rows = time.perf_counter(), len(prompt_ids)
        first = self._first_row(rows)
        seeds = [[self.args.seed, self.state.global_step, first + row] for row in range(rows)]
        model = self.accelerator.unwrap_model(self.model)
        with gathered(model):
            samples = sampling.sample_ids(
                model,
                prompt_ids,
                seeds,
                self.eos_token_ids,
                temperature=self.temperature,
                max_new_tokens=self.max_completion_length,
                batch_size=rows,
            )
        self._metrics["train"]["seconds_sampling"].append(time.perf_counter() - began)
        return [[*one.ids] if one.cut else [*one.ids, one.end] for one in samples], None

    # --- rewards and advantages -------------------------------------------------------------------

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
            f"at step {done + 1}, question {name!r}, text {text[:60]!r}: fix it; the same call"
            f" resumes after step {done}"
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
        """trl's samples with their advantages, of which `kept` a group are trained on."""
        began, metrics = time.perf_counter(), self._metrics["train"]
        output = super()._generate_and_score_completions(inputs)
        output["advantages"], flat = self._without_rounding(output["advantages"])
        metrics["frac_reward_zero_std"][-1] = flat
        self._warn_if_flat(flat)
        if self._update < self.num_generations:
            output = self._kept(output)
        self._ready = time.perf_counter()
        metrics["seconds_scoring"].append(self._ready - began - metrics["seconds_sampling"][-1])
        return output

    def _without_rounding(self, advantages: torch.Tensor) -> tuple[torch.Tensor, float]:
        """Advantages that are 0 in groups of equal rewards, and the share of such groups.

        There r - mean r is a rounding error, which over 1e-4 and under Adam would make a whole
        step.
        """
        grouped = advantages.view(-1, self.num_generations)
        flat = (grouped == grouped[:, :1]).all(1, keepdim=True)
        share = float(self.accelerator.gather(flat.float()).mean())
        return grouped.masked_fill(flat, 0).flatten(), share

    def _warn_if_flat(self, share: float) -> None:
        """Warn once, after FLAT_STEPS steps in a row in which all groups were flat."""
        self._flat_steps = self._flat_steps + 1 if share == 1 else 0
        if self._flat_steps == FLAT_STEPS and not self._warned:
            self._warned = True
            mean = self._metrics["train"]["reward"][-1]
            warnings.warn(FLAT.format(FLAT_STEPS, mean), stacklevel=2)

    def _kept(self, output: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """`update` random rows of each group, whose advantages have been taken over all rows."""
        group, rows = self.num_generations, len(output["advantages"])
        kept = []
        for start in range(0, rows, group):
            place = self._first_row(rows) + start
            rng = np.random.default_rng([self.args.seed, self.state.global_step, place, 1])
            drawn = sorted(rng.permutation(group)[: self._update])
            kept += [start + int(k) for k in drawn]
        output = {key: value[kept] if value.ndim else value for key, value in output.items()}
        # the longest sample may be among those left out
        width = int(output["completion_mask"].sum(1).max())
        for key in {"completion_ids", "completion_mask", "ref_per_token_logps"} & set(output):
            output[key] = output[key][:, :width]
        tokens = self.accelerator.gather(output["completion_mask"].sum())
        output["num_items_in_batch"] = tokens.sum()
        return output

    # --- the update -------------------------------------------------------------------------------

    def _get_per_token_logps_and_entropies(self, model, *given, **settings):
        """trl's, with positions that do not count the padding: those of sampling, which matters
        where they are absolute.
        """

        def placed(*, attention_mask, **rest):
            positions = (attention_mask.cumsum(1) - 1).clamp(min=0)
            return model(attention_mask=attention_mask, position_ids=positions, **rest)

        return super()._get_per_token_logps_and_entropies(placed, *given, **settings)

    def log(self, logs, start_time=None):
        if "loss" in logs:  # a step is done, and its loss has been read off the device
            self._metrics["train"]["seconds_update"].append(time.perf_counter() - self._ready)
        super().log(logs, start_time)
