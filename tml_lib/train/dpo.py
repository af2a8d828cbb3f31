"""The outer loop by preference: of two trajectories of one question the right one becomes likelier
than the wrong one.

Off-policy preference optimisation of RaML's Table 1, as DPO (Rafailov et al. 2023, arXiv
2305.18290) with trl's trainer. `runs` holds the folder of a run, which resumes after a kill;
`adapters` makes the copy that is trained. Deviations from the
paper: pairs are sampled from the kit's own small models, so rates are a hundred times trl's default
of 1e-6.
"""

from __future__ import annotations

import copy
import dataclasses
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from tml_lib import checks
from tml_lib.lm import sampling
from tml_lib.lm.adapters import copy_to_train, sharing, without_patches
from tml_lib.lm.answers import token_ids
from tml_lib.lm.context import check_context
from tml_lib.lm.models import LanguageModel, check_tokenizer
from tml_lib.records import Question
from tml_lib.train.runs import OuterRun, fit, in_given_order, opened, per_process, shared_arguments
from tml_lib.train.settings import TrainSettings, real, whole

# token ids of the prompt, the chosen and the rejected continuation
Pair = tuple[list[int], list[int], list[int]]

_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")  # Pair's parts, as trl names them


class _ByIds(DPOTrainer):
    """trl's trainer on token ids: its own preparation knows only texts, and would tokenise across
    the seam.
    """

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset


@dataclass(frozen=True, kw_only=True)
class DPOSettings(TrainSettings):
    """What `dpo` needs to be told."""

    batch: int = whole(1, 10**6, default=32)  # pairs of a step, of all processes together
    # weight of the log-ratio to the reference: the larger, the nearer the model stays to it
    beta: float = real(above=0.0, default=0.1)


def dpo(
    lm: LanguageModel,
    pairs: Sequence[Pair],
    folder: Path,
    settings: DPOSettings,
    *,
    on_log: Callable[[list[dict]], None] | None = None,
) -> OuterRun:
    """Prefer chosen to rejected continuations, step k on pairs k*batch..(k+1)*batch, with all
    weights or a LoRA adapter.

    Minimises the mean of -log sigma(beta * (D chosen - D rejected)), D y = log p(y|x) - log
    p_lm(y|x) summed over y's tokens (RaML Table 1; Rafailov et al. 2023, Eq. 7). lm is the
    reference and stays as it is; a copy is trained. pairs: steps * batch of them. log: beside the
    loss 'rewards/margins', beta * (D chosen - D rejected), in nats. folder, on_log, processes: as
    in `sft.sft`. Raises ValueError where pairs are too few, empty, of equal sides or longer than
    the context, where the folder belongs to another run, where batch is no multiple of the
    processes, and where the loss is not finite.
    """
    check_tokenizer(without_patches(lm))
    pairs = [tuple(map(list, pair)) for pair in pairs]
    _check(pairs, settings, lm)
    pairs_each = per_process("batch", settings.batch)
    folder, began = checks.path(folder=folder), time.perf_counter()
    arguments = DPOConfig(
        **shared_arguments(lm, folder, settings),
        **in_given_order(settings),
        beta=settings.beta,
        per_device_train_batch_size=pairs_each,
    )
    identity = {"method": "dpo"} | settings.identity()
    with opened(folder, lm, identity, pairs, arguments) as newest:
        trainer = _trainer(lm, pairs, settings, arguments)
        return fit(trainer, lm, newest, folder=folder, began=began, name="dpo", on_log=on_log)


def _check(pairs: list[Pair], settings: DPOSettings, lm: LanguageModel) -> None:
    """Raise ValueError for pairs that cannot be trained on, by number."""
    steps, batch = settings.steps, settings.batch
    if len(pairs) != steps * batch:
        raise ValueError(
            f"{len(pairs)} pairs for {steps} steps of {batch}: give steps * batch (`passes` repeats"
            " some)"
        )
    for k, (prompt, chosen, rejected) in enumerate(pairs):
        if not (prompt and chosen and rejected):
            raise ValueError(
                f"pair {k} has an empty prompt or continuation: all three need at least 1 token"
            )
        if chosen == rejected:
            raise ValueError(f"pair {k} prefers a continuation to itself: leave it out")
        longest = len(prompt) + max(len(chosen), len(rejected))
        step = "cut long trajectories, or leave them out"
        check_context(lm.model, longest, f"pair {k} takes", step)


def _trainer(
    lm: LanguageModel, pairs: list[Pair], settings: DPOSettings, arguments: DPOConfig
) -> DPOTrainer:
    """The trainer of a copy of lm, with lm's own weights as its reference; adapter or not, they
    take no memory twice.
    """
    own = _frozen(lm)
    return _ByIds(
        model=copy_to_train(own, settings.lora_rank, settings.seed),
        # without one the trainer looks for lm on disk or the hub, or keeps and saves a second
        # adapter
        ref_model=_frozen(lm).model,
        args=arguments,
        train_dataset=Dataset.from_list([dict(zip(_COLUMNS, pair, strict=True)) for pair in pairs]),
        processing_class=own.tokenizer,
    )


def _frozen(lm: LanguageModel) -> LanguageModel:
    """The same weights in the same memory, frozen, with a configuration and a tokenizer that the
    trainer may alter.
    """
    return dataclasses.replace(
        lm, model=sharing(lm.model).eval(), tokenizer=copy.deepcopy(lm.tokenizer)
    )


# --- pairs ----------------------------------------------------------------------------------------


def sampled_pairs(
    lm: LanguageModel,
    questions: Sequence[Question],
    graded: Callable[[str, str], bool],
    *,
    samples: int,
    seed: int,
    temperature: float = 1.0,
    max_new_tokens: int = 128,
    **settings,
) -> tuple[list[Pair], int, list[int]]:
    """Per question one right sample with one wrong one, drawn by the seed; how many questions had
    none; and how many samples were cut, of how many.

    graded: (text, answer) -> right or not. Only samples that ended count, and a pair's
    continuations hold their end token. A question's pair does not depend on the questions behind
    it. settings: passed to `sampling.sample`. Raises ValueError where no question has both a right
    and a wrong sample.
    """
    prompts = [lm.prompt(question.text) for question in questions]
    seeds = sampling.row_seeds(seed, samples * len(prompts))
    settings |= {"temperature": temperature, "max_new_tokens": max_new_tokens}
    written = sampling.sample(
        lm, [prompt for prompt in prompts for _ in range(samples)], seeds, **settings
    )
    texts = sampling.texts(lm, written)
    pairs: list[Pair] = []
    # questions without a right, a wrong, any finished sample
    missing = {"right": 0, "wrong": 0, "ended": 0}
    for k, question in enumerate(questions):
        found: dict[bool, list[tuple[int, ...]]] = {True: [], False: []}
        for place in range(k * samples, (k + 1) * samples):
            if not written[place].cut:
                found[bool(graded(texts[place], question.answer))].append(written[place].ids)
        if found[True] and found[False]:
            rng = random.Random(f"pairs/{seed}/{k}")
            prompt = token_ids(lm.tokenizer, prompts[k])
            pairs.append(
                (
                    prompt,
                    *(
                        [*rng.choice(found[side]), lm.tokenizer.eos_token_id]
                        for side in (True, False)
                    ),
                )
            )
        else:
            missing[
                "ended" if not any(found.values()) else "wrong" if found[True] else "right"
            ] += 1
    if not pairs:
        raise ValueError(_advice(len(questions), samples, missing))
    cut = [sum(one.cut for one in written), len(written)]
    return pairs, sum(missing.values()), cut


def _advice(questions: int, samples: int, missing: dict[str, int]) -> str:
    step = {
        "right": "ask easier questions, take more samples or start from a better model",
        "wrong": "ask harder questions, or take more samples at a higher temperature",
        "ended": "raise max_new_tokens",
    }[max(missing, key=missing.get)]
    return (
        f"none of {questions} questions has a right and a wrong one among {samples} samples"
        f" ({missing['right']} have no right one, {missing['wrong']} no wrong one,"
        f" {missing['ended']} none that ended): {step}"
    )


def passes(pairs: Sequence[Pair], count: int, seed: int = 0) -> list[Pair]:
    """`count` pairs: all of them in a random order, then all in another, and so on. Raises
    ValueError where there are none.
    """
    if not pairs:
        raise ValueError("0 pairs cannot be repeated: sample some with `sampled_pairs`")
    rng, drawn = random.Random(f"passes/{seed}"), []
    while len(drawn) < count:
        drawn += rng.sample(list(pairs), len(pairs))
    return drawn[:count]
