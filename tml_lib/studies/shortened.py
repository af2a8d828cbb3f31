"""Shortened trajectories at any preset: what notebook 11 shows live (C10, RaML §4.3).

For programs the ways are those of `efficiency`. For text the model's own sample is shortened:
*withheld* is what stands before the sentence that states its result (the right answer's, where it
boxes none), and the *summary* of that is the model's own, cut likewise before the result. Beside it
stand as many words of the beginning, at random, and of another question's summary. Text has no
*pruned* way: what a class of its words is worth was not learnt.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tml_lib.data import gsm, programs
from tml_lib.lm import models, sampling
from tml_lib.lm.answers import ANSWER_TEMPLATE, chat_prompt, extract, grade
from tml_lib.lm.models import LanguageModel
from tml_lib.records import Question
from tml_lib.studies import efficiency, lora, trajectories
from tml_lib.studies.program_probes import renamed
from tml_lib.studies.roles import MOST_TOKENS, forced

TEMPERATURE = 0.6
ASK = (
    "Here is a question and the beginning of its solution. Summarise the beginning in one or two"
    " sentences, with the numbers that it has found, for someone who will finish it. Do not state"
    " the final result.\n\nQuestion: {question}\n\nBeginning: {text}"
)


@dataclass(frozen=True, eq=False)
class Shortened:
    """Questions, and per question its trajectory in each way, by name, as text."""

    lm: LanguageModel
    questions: list[Question]
    ways: list[dict[str, str]]
    programs: bool

    def right(self, way: str) -> list[bool]:
        """Per question whether the model comes to the right answer from there; after 'full' and
        'at_once' it must answer.
        """
        texts, at_once = [found[way] for found in self.ways], way in ("full", "at_once")
        if self.programs:
            words = [text.split() for text in texts]
            return efficiency.finished(self.lm, self.questions, words, at_once=at_once)[0]
        if at_once:
            return forced(self.lm, self.questions, texts)
        prompts = [
            chat_prompt(self.lm.tokenizer, q.text) + text
            for q, text in zip(self.questions, texts, strict=True)
        ]
        endings = _written(self.lm, prompts, 0, temperature=0, max_new_tokens=MOST_TOKENS)
        whole = [text + ending for text, ending in zip(texts, endings, strict=True)]
        return [
            grade(text, question.answer)
            for text, question in zip(whole, self.questions, strict=True)
        ]


def material(
    preset: str,
    *,
    model: str = "",
    adapter: str = "",
    data: str = "",
    n: int,
    seed: int,
    worth: dict[str, float],
) -> Shortened:
    """A preset's model, n questions and their trajectories in every way. worth: of word classes,
    for programs.

    data: a set of the paper in place of gsm_symbolic, as `trajectories.chosen_questions` reads it.
    Raises ValueError for n < 2 (the other question's summary needs another question), or data given
    for programs.
    """
    trajectories.check_data(data, preset)
    if n < 2:
        raise ValueError(
            f"n={n} questions leave no other question to compare with: ask for at least 2"
        )
    lm = lora.load(preset, model=model, adapter=adapter)
    if models.preset(preset).task == "programs":
        asked = programs.questions(n, seed, "held_out")
        found = efficiency.own_trajectories(lm, asked, seed, 1)
        return Shortened(
            lm, asked, [_program_ways(asked, found, k, worth, seed) for k in range(n)], True
        )
    asked = trajectories.chosen_questions(data, n, seed)
    return Shortened(lm, asked, text_ways(lm, asked, seed), False)


def _program_ways(
    asked: Sequence[Question], found: Sequence[list[str]], k: int, worth: dict, seed: int
) -> dict[str, str]:
    rng, j = random.Random(f"shortened/{seed}/{k}"), (k + 1) % len(asked)
    other = efficiency.summary(found[j], efficiency.asked_letters(asked[j]))
    other = renamed(other, programs.parse(asked[k].text), rng)
    ways = efficiency.shortened(found[k], asked[k], other, worth, rng)
    return {name: " ".join(words) for name, words in ways.items()}


def text_ways(lm: LanguageModel, asked: Sequence[Question], seed: int) -> list[dict[str, str]]:
    """Per question the model's own sample in every way."""
    prompts = [chat_prompt(lm.tokenizer, question.text) for question in asked]
    written = _written(lm, prompts, seed, temperature=TEMPERATURE, max_new_tokens=MOST_TOKENS)
    full = [text.partition(ANSWER_TEMPLATE.strip())[0].strip() for text in written]
    results = [extract(text) or question.answer for text, question in zip(full, asked, strict=True)]
    withheld = [before_result(text, result) for text, result in zip(full, results, strict=True)]
    requests = [
        chat_prompt(lm.tokenizer, ASK.format(question=q.text, text=text), "")
        for q, text in zip(asked, withheld, strict=True)
    ]
    written = _written(lm, requests, seed, temperature=0, max_new_tokens=MOST_TOKENS // 2)
    short = [
        before_result(text.strip(), result) for text, result in zip(written, results, strict=True)
    ]
    return [
        _same_length(
            full[k],
            withheld[k],
            short[k],
            short[(k + 1) % len(asked)],
            random.Random(f"{seed}/{k}"),
        )
        for k in range(len(asked))
    ]


def _written(lm: LanguageModel, prompts: Sequence[str], seed: int, **settings) -> list[str]:
    """What the model writes after each prompt, cut where it does not end."""
    seeds = sampling.row_seeds(seed, len(prompts))
    return sampling.texts(lm, sampling.sample(lm, prompts, seeds, batch_size=32, **settings))


def before_result(text: str, result: str) -> str:
    """The sentences and lines before the first that states the result; all of them where
    none does.
    """
    at = gsm.first_mention(text, result)
    if at is None:
        return text
    ends = [m.end() for m in re.finditer(r"[.!?]\s|\n", text[:at])]
    return text[: ends[-1]].rstrip() if ends else ""


def _same_length(
    full: str, withheld: str, summary: str, other: str, rng: random.Random
) -> dict[str, str]:
    """The ways, the last three with as many words as the summary where there are so many."""
    words = withheld.split()
    count = min(len(summary.split()), len(words))
    return {
        "full": full,
        "withheld": withheld,
        "summary": summary,
        "begun": " ".join(words[:count]),
        "random": " ".join(words[k] for k in sorted(rng.sample(range(len(words)), count))),
        "foreign": " ".join(other.split()[:count]),
        "at_once": "",
    }
