"""What notebook 12 works on: a preset's model, its questions and rewards, and what training costs
and takes there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tml_lib.data import program_grading, programs
from tml_lib.data.rewards import program_reward, text_reward
from tml_lib.lm import answers, models
from tml_lib.lm.models import LanguageModel
from tml_lib.records import Question
from tml_lib.studies import lora
from tml_lib.studies.rl import GROUP, questions

SHOWN = 256  # questions to train on
# questions of a GRPO step, pairs of a DPO step, samples that a pass trains on, rows that are
# sampled together; a pass's logits grow with the preset's max_tokens
BUDGETS = {
    "tiny": {"prompts": 4, "pairs": 32, "rows": 64, "batch": 512},
    "small": {"prompts": 1, "pairs": 1, "rows": 1, "batch": 64},
    "medium": {"prompts": 1, "pairs": 1, "rows": 1, "batch": 32},
    "gpu": {"prompts": 2, "pairs": 8, "rows": 1, "batch": 256},
}
PEAK_RATES = {  # of all weights, of an adapter: those for text models have not been tuned
    "programs": {"grpo": (3e-4, 3e-3), "dpo": (1e-4, 1e-3)},
    "gsm_symbolic": {"grpo": (1e-6, 1e-4), "dpo": (1e-6, 1e-4)},
}


@dataclass(frozen=True, eq=False)
class Material:
    """A model, questions to train on and others to ask, and what training costs and takes at a
    preset.
    """

    lm: LanguageModel
    trained: list[Question]
    held_out: list[Question]
    reward: Callable[[str, str], float]  # (text, answer) -> RaML Eq. 21
    graded: Callable[[str, str], bool]  # (text, answer) -> right or not
    prompts: int  # questions of a GRPO step
    pairs: int  # pairs of a DPO step
    rows: int  # samples that one pass of GRPO trains on, at most
    batch: int  # rows that are sampled together
    most_tokens: int  # of a sample
    rates: dict[str, tuple[float, float]]  # by method: for all weights, for an adapter

    def passes(self, update: int) -> int:
        """Passes that share a GRPO step's samples, `update` of each group, so that none takes more
        than `rows`.
        """
        parts = self.prompts * math.gcd(GROUP, update)
        return parts // math.gcd(parts, self.rows)

    def rate(self, method: str, lora_rank: int) -> float:
        """Peak learning rate of 'grpo' or 'dpo', of an adapter where there is a rank."""
        return self.rates[method][lora_rank > 0]


def material(
    preset: str, *, model: str = "", adapter: str = "", max_tokens: int = 0, n: int, seed: int
) -> Material:
    """A preset's model, SHOWN of its questions to train on and n held-out ones. `tiny` takes
    `tiny-short` unless told. max_tokens: of a sample, 0 for the preset's.

    The tiny reasoner's questions have 1..STEPS statements a chain, held-out ones in turn; of a
    text's held-out questions half are of other templates, and one asked there is not trained on.
    Raises ValueError for n < 1, and where an adapter is given for the tiny reasoner.
    """
    if n < 1:
        raise ValueError(
            f"n={n} questions cannot tell a model before from one after: ask for at least 1"
        )
    chosen = models.preset(preset)
    task, budget = chosen.task, BUDGETS[preset] | {"most_tokens": max_tokens or chosen.max_tokens}
    lm = lora.load(preset, model=model, adapter=adapter, reasoner="tiny-short")
    if task == "programs":
        shown = questions(SHOWN, seed)
        by_steps = [
            programs.questions(n, seed, "held_out", steps=steps)
            for steps in range(1, programs.STEPS + 1)
        ]
        asked = [by_steps[k % len(by_steps)][k // len(by_steps)] for k in range(n)]
        return Material(
            lm,
            shown,
            asked,
            program_reward,
            program_grading.graded,
            rates=PEAK_RATES[task],
            **budget,
        )
    asked = lora.held_out_questions(n, seed)
    texts = {question.text for question in asked}
    shown = [
        question for question in lora.training_questions(SHOWN, seed) if question.text not in texts
    ]
    return Material(lm, shown, asked, text_reward, answers.grade, rates=PEAK_RATES[task], **budget)
