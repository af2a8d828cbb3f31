"""The cases of the update study: a question, its trajectories and two siblings, in token ids.

So the same measurements run on gsm_symbolic with an LLM and on chains with a tiny decoder.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass

from tml_lib.data import gsm, toy
from tml_lib.lm.answers import Encoded, Suffix, encode
from tml_lib.lm.models import LanguageModel
from tml_lib.records import Question, Trajectory
from tml_lib.studies import trajectories
from tml_lib.studies.own_trajectories import Own

_POOL = 600  # questions among which siblings are looked for


@dataclass(frozen=True)
class Case:
    """One question in token ids: its trajectories, where each stops being comparable, and two
    siblings.
    """

    id: str
    template: str
    prompt: tuple[int, ...]
    suffix: Suffix
    # by kind: gold, foreign and, where they exist, shuffled and corrupted
    trajectories: dict[str, tuple[int, ...]]
    # kind -> tokens of gold and of that kind before any answer is stated
    ends: dict[str, tuple[int, int]]
    # 'same' and 'other' template -> prompt and suffix
    siblings: dict[str, tuple[tuple[int, ...], Suffix]]


def gsm_case(lm: LanguageModel, question: Question, others: list[Question], seed: int) -> Case:
    """A gsm_symbolic question as a case, with the controls of the trajectory study. LookupError
    where it has no sibling.
    """
    prompt, answer = lm.prompt(question.text), question.answer
    conditions = trajectories.build_conditions(lm, question, others, Own(), seed)
    conditions.pop("copying")
    wrong = conditions.get("corrupted")
    if wrong is not None and gsm.first_mention(wrong.text, answer) is not None:
        del conditions["corrupted"]  # it states the right answer by chance
    encoded = {
        kind: encode(lm.tokenizer, prompt, t.text, [answer]) for kind, t in conditions.items()
    }
    siblings = {}
    for name in ("same", "other"):
        found = _sibling(question, name == "same", seed)
        side = encode(lm.tokenizer, lm.prompt(found.text), "", [found.answer])
        siblings[name] = (side.prompt, side.suffixes[0])
    return Case(
        question.id,
        question.template,
        encoded["gold"].prompt,
        encoded["gold"].suffixes[0],
        {kind: item.trajectory for kind, item in encoded.items()},
        _ends(question, conditions, encoded),
        siblings,
    )


def _ends(
    question: Question, conditions: dict[str, Trajectory], encoded: dict[str, Encoded]
) -> dict[str, tuple[int, int]]:
    """By kind, the tokens of gold and of that kind before any answer is stated."""

    def before(kind: str, stated: str) -> int:
        offset = gsm.first_mention(conditions[kind].text, stated)
        return (
            len(encoded[kind].trajectory) if offset is None else encoded[kind].tokens_before(offset)
        )

    gold = before("gold", question.answer)
    ends = {"gold": (gold, gold), "foreign": (gold, min(gold, len(encoded["foreign"].trajectory)))}
    if "shuffled" in conditions:
        free = trajectories.free_end(question)
        ends["shuffled"] = tuple(encoded[kind].tokens_before(free) for kind in ("gold", "shuffled"))
    if "corrupted" in conditions:
        ends["corrupted"] = (gold, before("corrupted", conditions["corrupted"].answer))
    return ends


def _sibling(question: Question, same: bool, seed: int) -> Question:
    """A question of another seed with the same (or another) template and another answer, which does
    not stand in it.
    """
    pool = [q for q in _pool(_POOL, seed + 1000) if (q.template == question.template) == same]
    pool = [q for q in pool if gsm.first_mention(q.text, q.answer) is None]
    pool = [q for q in pool if gsm.value(q.answer) != gsm.value(question.answer)]
    if not pool:
        raise LookupError(
            f"no sibling of {question.id} (template {question.template}) among {_POOL} questions:"
            " enlarge _POOL"
        )
    return random.Random(f"{seed}/{question.id}/{same}").choice(pool)


@functools.cache
def _pool(n: int, seed: int) -> list[Question]:
    return gsm.gsm_symbolic(n, seed)


def toy_case(question: Question, seed: int) -> Case:
    """A chain as a case."""
    pair = {
        name: toy.sibling(question, seed, same_template=name == "same")
        for name in ("same", "other")
    }
    made = toy.altered_trajectories(question, seed, avoid=pair["same"].answer)
    stated = toy.TERMS * toy.STEP_TOKENS - 2  # the last value's two digits state the answer
    ends = dict.fromkeys(made, (stated, stated)) | {
        "shuffled": ((toy.TERMS - 1) * toy.STEP_TOKENS,) * 2
    }
    return Case(
        question.id,
        question.template,
        tuple(toy.prompt_ids(question)),
        toy.suffix(question.answer),
        {kind: tuple(toy.encode(t.text)) for kind, t in made.items()},
        ends,
        {name: (tuple(toy.prompt_ids(q)), toy.suffix(q.answer)) for name, q in pair.items()},
    )
