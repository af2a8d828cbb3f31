"""The efficiency study of the tiny reasoner: what is left of a trajectory's worth in a few of its
words? (C10, RaML §4.3)

The model samples its own trajectories; each is then shortened in several ways, and from there the
model writes on, within a budget that suffices for the last statement of each chain and the answer.
The *summary* keeps every finished statement and its value, without the values asked for. Beside it
stand, with as many words each: the trajectory's beginning, random words of it, another question's
summary, and words *pruned* by what their class contributes, learnt on other questions of the
trained split: how many answers are lost when the class is left out. No shortened trajectory holds a
statement that is asked for.

A model that has met no summaries cannot read them, so a seed's reasoner learns on both: three
quarters long trajectories, one quarter summaries followed by the last statements. Deviations from
the paper: a rule writes the summaries, not a larger model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tml_lib.data import program_grading, programs, tiny
from tml_lib.data.programs import Program
from tml_lib.data.tiny import Row
from tml_lib.lm import sampling
from tml_lib.lm.answers import ANSWER_TEMPLATE
from tml_lib.lm.models import LanguageModel
from tml_lib.measure.token_roles import word_class
from tml_lib.records import Arms, Question
from tml_lib.studies import reasoners, supervised
from tml_lib.studies.program_probes import STEP_WORDS, renamed

SHARE = 0.25  # of training rows that begin with a summary
SAMPLES = 8
TEMPERATURE = 0.6
QUESTIONS = 200
LEARNT_FROM = 200  # questions from which contributions are learnt
# tokens that may follow: the chains' last statements, then template, two words, '}' and the end
ROOM = 2 * STEP_WORDS + 6
MODES = ("full", "withheld", "summary", "pruned", "begun", "random", "foreign", "at_once")
BUDGETS = range(0, 65, 4)  # words after which the whole trajectory is cut and the answer forced


def mixed_rows(seed: int) -> Callable[[int], list[Row]]:
    """Step -> its batch: questions of 1..STEPS statements a chain, a quarter of them with a summary
    and the last statements.
    """

    def rows(step: int) -> list[Row]:
        return [one(random.Random(f"mixed/{seed}/{step}/{k}")) for k in range(supervised.BATCH)]

    def one(rng: random.Random) -> Row:
        program = programs.split_program(rng, "train", rng.randint(1, programs.STEPS))
        if rng.random() < SHARE:
            return tiny.row(program.text, compact(program, rng), program.answer())
        return tiny.sft_row(program, programs.trajectory(program, "long", rng).text.split(), rng)

    return rows


def compact(program: Program, rng: random.Random) -> list[str]:
    """A summary by rule, then the statements asked for, written out."""
    words, values = programs.trajectory(program, "summarised", rng).text.split(), program.values()
    last = [s for s in program.statements if s.name in program.asked]
    for s in rng.sample(last, len(last)):
        words += [*s.words, f"{s.operand}={values[s.operand]}", f"{s.name}={values[s.name]}", "."]
    return words


# --- shortening -----------------------------------------------------------------------------------


def asked_letters(question: Question) -> set[str]:
    return {word[0] for word in question.answer.split()}


def withheld(words: Sequence[str], asked: set[str]) -> list[int]:
    """Places of the words outside the statements asked for: these and their values are left to
    whoever writes on.
    """
    kept, current = [], ""
    for k, word in enumerate(words):
        if word.endswith(":="):
            current = word[0]
        if current not in asked:
            kept.append(k)
    return kept


def summary(words: Sequence[str], asked: set[str]) -> list[str]:
    """'c:= h*4 c=6' for each finished statement whose value is not asked for; a corrected value
    counts, a slip does not.
    """
    kept: dict[str, list[str]] = {}
    begun: list[str] = []
    for k, word in enumerate(words):
        if word.endswith(":="):
            begun = [word, *words[k + 1 : k + 2]]
        elif (
            begun
            and word[0] == begun[0][0]
            and word[1:2] == "="
            and words[k + 1 : k + 2] != ["Wait"]
        ):
            kept[word[0]] = [*begun, word]
    return [word for letter, step in kept.items() if letter not in asked for word in step]


def pruned(
    words: Sequence[str], places: Sequence[int], count: int, worth: dict[str, float], answer: str
) -> list[str]:
    """The `count` words of the classes that are worth most, later ones first within a class, in
    their order.
    """
    ranked = sorted(places, key=lambda k: (-worth.get(word_class(words, k, answer), 0.0), -k))
    return [words[k] for k in sorted(ranked[:count])]


def shortened(
    words: list[str],
    question: Question,
    other: list[str],
    worth: dict[str, float],
    rng: random.Random,
) -> dict:
    """The trajectory in every mode; other: another question's summary, with letters that this
    question does not use.
    """
    asked = asked_letters(question)
    places, short = withheld(words, asked), summary(words, asked)
    count = min(len(short), len(places))
    return {
        "full": words,
        "withheld": [words[k] for k in places],
        "summary": short,
        "pruned": pruned(words, places, count, worth, question.answer),
        "begun": [words[k] for k in places[:count]],
        "random": [words[k] for k in sorted(rng.sample(places, count))],
        "foreign": other[:count],
        "at_once": [],
    }


# --- measuring ------------------------------------------------------------------------------------


def own_trajectories(
    lm: LanguageModel, questions: Sequence[Question], seed: int, samples: int = SAMPLES
) -> tuple[list[list[str]], list[bool]]:
    """Words of `samples` trajectories per question, question by question, empty where one was cut;
    and which were.
    """
    prompts = [lm.prompt(question.text) for question in questions for _ in range(samples)]
    settings = {
        "temperature": TEMPERATURE,
        "max_new_tokens": supervised.MOST_TOKENS,
        "batch_size": 512,
    }
    written = sampling.sample(lm, prompts, sampling.row_seeds([seed, 2], len(prompts)), **settings)
    words = [
        text.partition(ANSWER_TEMPLATE.strip())[0].split()
        for text in sampling.texts(lm, written, whole=True)
    ]
    return words, [one.cut for one in written]


def finished(
    lm: LanguageModel,
    questions: Sequence[Question],
    begun: Sequence[Sequence[str]],
    *,
    at_once: bool = False,
) -> tuple[list[bool], list[int]]:
    """Whether the answer is right that the model comes to within ROOM tokens, and the words of
    trajectory in all.

    at_once: it must answer without writing on.
    """
    ending = ANSWER_TEMPLATE if at_once else ""
    prompts = [
        lm.prompt(q.text) + " ".join(words) + ending
        for q, words in zip(questions, begun, strict=True)
    ]
    settings = {"temperature": 0, "max_new_tokens": ROOM, "batch_size": 512}
    written = sampling.sample(lm, prompts, [0] * len(prompts), **settings)
    right, counts = [], []
    for one, end, question, words in zip(
        written, sampling.texts(lm, written), questions, begun, strict=True
    ):
        text = ending + end
        right.append(not one.cut and program_grading.graded(text, question.answer))
        counts.append(
            len(words)
            + (ROOM if one.cut else len(text.partition(ANSWER_TEMPLATE.strip())[0].split()))
        )
    return right, counts


def contributions(
    lm: LanguageModel, questions: Sequence[Question], trajectories: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Per word class, the share of right answers that is lost when all its words are left out, per
    word left out.
    """
    kept = [[(words[k], word_class(words, k, q.answer)) for k in withheld(words, asked_letters(q))]
            for q, words in zip(questions, trajectories, strict=True)]  # fmt: skip
    whole = np.mean(finished(lm, questions, [[word for word, _ in row] for row in kept])[0])
    found = {}
    for name in sorted({own for row in kept for _, own in row}):
        left = [[word for word, own in row if own != name] for row in kept]
        lost = whole - np.mean(finished(lm, questions, left)[0])
        found[name] = round(
            float(
                lost / np.mean([len(row) - len(less) for row, less in zip(kept, left, strict=True)])
            ),
            5,
        )
    return found


def efficiency_record(
    seed: int, folder: Path, *, questions: int, steps: int = reasoners.STEPS
) -> dict:
    """One seed: 'values', test of C10 -> one number per question; 'modes' -> share right, Pass@8,
    words; 'worth' by class.
    """
    lm = reasoners.kept(f"mixed-{seed}", folder, mixed_rows(seed), steps)
    learnt = programs.questions(LEARNT_FROM, seed + 5000, "train")
    worth = contributions(lm, learnt, own_trajectories(lm, learnt, seed, 1)[0])
    asked = programs.questions(questions, seed, "held_out")
    found, cut = own_trajectories(lm, asked, seed)
    more = {"worth": worth, "cut": [sum(cut), len(cut)]}
    return measured(lm, asked, found, worth, seed) | more


def measured(
    lm: LanguageModel,
    asked: Sequence[Question],
    found: list[list[str]],
    worth: dict[str, float],
    seed: int,
) -> dict:
    """The values of C10; per mode the share right, Pass@8 and mean words of trajectory; the share
    right by words of budget.

    found: words as `own_trajectories` gives them.
    """
    repeated, rows = [question for question in asked for _ in range(SAMPLES)], []
    for k, (words, question) in enumerate(zip(found, repeated, strict=True)):
        rng, j = random.Random(f"efficiency/{seed}/{k}"), (k + SAMPLES) % len(found)
        other = renamed(
            summary(found[j], asked_letters(repeated[j])), programs.parse(question.text), rng
        )
        rows.append(shortened(words, question, other, worth, rng))
    right, words = {}, {}
    for mode in MODES:
        got = finished(
            lm, repeated, [row[mode] for row in rows], at_once=mode in ("full", "at_once")
        )
        right[mode], words[mode] = (
            np.reshape(column, (len(asked), SAMPLES)).astype(float) for column in got
        )
    cuts = {
        str(n): round(
            float(np.mean(finished(lm, repeated, [w[:n] for w in found], at_once=True)[0])), 4
        )
        for n in BUDGETS
    }
    return summed(right, words) | {"budget": cuts}


def summed(right: dict[str, np.ndarray], words: dict[str, np.ndarray]) -> dict:
    """The values of C10 by question, accuracies where it compares them, and per mode the share
    right, Pass@k and mean words.

    right, words: mode -> (Q, k), per sample whether it is right and its words of trajectory. What
    is said of pruned trajectories is left out where that mode is missing, and what is said of
    Pass@8 where there are not 8 samples.
    """
    mean, passed = (
        {mode: table(held) for mode, held in right.items()}
        for table in (lambda t: t.mean(1), lambda t: t.max(1))
    )
    values = {
        "C10.kept": Arms(mean["summary"], (mean["full"] + mean["at_once"]) / 2),
        "C10.saved": 1 - words["summary"].mean(1) / np.maximum(words["full"].mean(1), 1),
        "C10.over_full": Arms(mean["summary"], mean["full"]),
        "C10.over_begun": Arms(mean["summary"], mean["begun"]),
        "C10.over_random": Arms(mean["summary"], mean["random"]),
        "C10.over_foreign": Arms(mean["summary"], mean["foreign"]),
    }
    if right["summary"].shape[1] == SAMPLES:
        arms = passed["summary"], (passed["full"] + passed["at_once"]) / 2
        values["C10.kept_pass"] = Arms(*arms)
    if "pruned" in mean:
        values["C10.pruned_over_summary"] = Arms(mean["pruned"], mean["summary"])
        values["C10.pruned_over_random"] = Arms(mean["pruned"], mean["random"])
    tables = {"right": mean, "pass": passed, "words": words}
    modes = {
        mode: {name: round(float(table[mode].mean()), 4) for name, table in tables.items()}
        for mode in right
    }
    return {"values": values, "modes": modes}


STUDY = reasoners.of_reasoners("efficiency", efficiency_record, QUESTIONS, mixed_rows)
