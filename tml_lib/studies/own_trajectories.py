"""Own trajectories: what a model writes itself to a question, right and wrong.

They are sampled here, taken from the samples that come with a set, or read back from evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from tml_lib.data import gsm
from tml_lib.lm import sampling
from tml_lib.lm.answers import extract, grade
from tml_lib.lm.models import LanguageModel
from tml_lib.records import Question, Trajectory
from tml_lib.studies import engine

MOST_TOKENS = 200  # of a sample


@dataclass(frozen=True)
class Own:
    """What a model wrote to a question: the first right and the first wrong of its samples."""

    right: Trajectory | None = None
    wrong: Trajectory | None = None
    samples: int = 0
    cut: int = 0  # of them, how many had not ended at the greatest number of tokens
    foreign: Trajectory | None = None  # what it wrote rightly to another question


def own_samples(
    lm: LanguageModel,
    questions: Sequence[Question],
    *,
    seed: int,
    tries: int = 4,
    max_tokens: int = MOST_TOKENS,
    progress: bool = False,
    **settings,
) -> list[Own]:
    """Per question what the model writes in `tries` samples of at most `max_tokens` tokens.

    Right is a sample that is graded so; wrong is one that states an answer, a wrong one, and never
    the right value. A sample that was cut is neither, and is counted. settings: passed to
    `sampling.sample`, in place of temperature 0.7 and top-k 50 (the paper's, Table 5).
    """
    prompts = [lm.prompt(q.text) for q in questions for _ in range(tries)]
    settings = {"temperature": 0.7, "top_k": 50, "batch_size": 32} | settings
    settings |= {"max_new_tokens": max_tokens, "progress": progress}
    written = sampling.sample(lm, prompts, sampling.row_seeds(seed, len(prompts)), **settings)
    texts = [text.strip() for text in sampling.texts(lm, written, whole=True)]
    found = []
    for k, question in enumerate(questions):
        here = slice(k * tries, (k + 1) * tries)
        cut = sum(one.cut for one in written[here])
        own = first_own(lm, texts[here], question)
        found.append(replace(own, samples=tries, cut=cut))
    return found


def first_own(lm: LanguageModel, texts: Iterable[str], question: Question) -> Own:
    """The first right and the first wrong of texts that a model wrote to the end."""
    found = [one for text in texts if (one := _own(lm, text, question))]
    right = next((one for one in found if one.correct), None)
    return Own(right, next((one for one in found if not one.correct), None))


def _own(lm: LanguageModel, text: str, question: Question) -> Trajectory | None:
    """A sample as a right or a wrong trajectory; None where it is neither."""
    stated, thoughts = extract(text) if text else None, lm.thoughts(text)
    if stated is None or not thoughts:
        return None
    if grade(text, question.answer):
        return Trajectory(thoughts, "own_right", stated, True)
    if gsm.first_mention(text, question.answer) is not None:
        return None
    return Trajectory(thoughts, "sampled", stated, False)


def given_samples(question: Question) -> Own:
    """The first right and the first wrong of the samples that come with a question of a set."""
    found = [t for t in question.trajectories if t.kind == "sampled"]
    right = next((replace(t, kind="own_right") for t in found if t.correct), None)
    return Own(right, next((t for t in found if t.correct is False), None))


def samples_of(record: dict, questions: Sequence[Question]) -> list[Own]:
    """What the model of an evidence file of this study wrote to its questions, for another model to
    read. ValueError where it keeps no texts, or was made for other questions.
    """
    texts = [record.get(kind) for kind in ("own_right", "sampled")]
    if None in texts or len(texts[0]) != len(questions):
        raise ValueError(
            f"this evidence of {record['settings'].get('model')!r} keeps no sampled texts for these"
            " questions: make it again with `python -m tml_lib study trajectories`"
        )
    engine.check_asked(record, questions)
    counts = record.get("cut", [(0, 0)] * len(questions))
    return [
        Own(
            right and Trajectory(right, "own_right", question.answer, True),
            wrong and Trajectory(wrong, "sampled", extract(wrong), False),
            samples=samples,
            cut=cut,
        )
        for question, right, wrong, (cut, samples) in zip(questions, *texts, counts, strict=True)
    ]


def with_foreign(questions: Sequence[Question], found: Sequence[Own]) -> list[Own]:
    """Each with the right sample of the next question that has one, in which its own answer is not
    stated; after the last question comes the first.
    """
    whole = []
    for k, (question, own) in enumerate(zip(questions, found, strict=True)):
        later = [one.right for one in (*found[k + 1 :], *found[:k]) if one.right]
        free = (t for t in later if gsm.first_mention(t.text, question.answer) is None)
        whole.append(replace(own, foreign=next(free, None)))
    return whole
