"""Rows of the paper's question sets as questions, and questions as rows of the same columns.

A reader makes a question of a row, an id and a seed: the set's own solution becomes a 'gold'
trajectory, what a model wrote becomes 'sampled' ones. A writer makes rows of a gsm_symbolic
question and its place. `hub.SETS` says which set has which.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from math import isfinite

from tml_lib.data import gsm, gsm_variants
from tml_lib.lm.thinking import divide
from tml_lib.records import Question, Trajectory

LETTERS = "ABCD"  # of the options of a multiple-choice question
# columns of the wrong options
WRONG_ANSWERS = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


# --- rows to questions ----------------------------------------------------------------------------


def _text(row: Mapping, column: str, name: str) -> str:
    """A column's text; an answer loses the dollars around it, for the answer template is
    mathematics already.
    """
    value = row[column]
    number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    if not (number or isinstance(value, str)) or not str(value).strip():
        raise ValueError(
            f"{name} has {value!r} in column {column!r}, which is no text: leave this row out of"
            " the set"
        )
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a column with one 2.5 in it turns 3 into 3.0
    text = str(value).strip()
    return text.strip("$").strip() if column == "answer" and text[0] == text[-1] == "$" else text


def solved_reader(text: str) -> Callable[[Mapping, str, int], Question]:
    """A reader of rows with the question in column `text`, the answer in 'answer' and, where there
    is one, a 'solution'.
    """

    def read(row: Mapping, name: str, seed: int) -> Question:
        answer = _text(row, "answer", name)
        gold = (
            (Trajectory(_text(row, "solution", name), "gold", answer, True),)
            if row.get("solution")
            else ()
        )
        return Question(name, _text(row, text, name), answer, name, gold)

    return read


def is_level_5(row: Mapping) -> bool:
    """Whether a row is of level 5, written as 5, 5.0, '5' or 'Level 5'; 'Level ?' is of none."""
    level = row["level"]
    found = str(level).strip().lower().removeprefix("level").strip().removesuffix(".0")
    if not re.fullmatch(r"\d+|\?", found):  # of 'None', 'True', '[5]', 'nan' too
        raise ValueError(
            f"{level!r} in column 'level' is no level, such as 5 or 'Level 5': leave this row out"
            " of the set"
        )
    return found == "5"


def read_rollouts(row: Mapping, name: str, seed: int) -> Question:
    """A row of generations with labels, 1 for right: the thinking of each, where it is marked, else
    all that was written.
    """
    written, labels, answer = row["generations"], row["labels"], _text(row, "answer", name)
    for column, found, kind in (("generations", written, str), ("labels", labels, int | float)):
        if not isinstance(found, Sequence) or isinstance(found, str):
            raise ValueError(
                f"{name} has {found!r} in column {column!r}, which is no list: leave this row out"
                " of the set"
            )
        if strange := [one for one in found if not isinstance(one, kind)]:
            raise ValueError(
                f"{name} has {strange[0]!r} in a list of column {column!r}: leave this row out of"
                " the set"
            )
    if len(written) != len(labels) or not set(labels) <= {0, 1}:
        raise ValueError(
            f"{name} has {len(written)} generations and the labels {list(labels)[:8]}: each needs"
            " its own, 0 or 1; leave this row out of the set"
        )
    pairs = [(divide(text)[0], bool(label)) for text, label in zip(written, labels, strict=True)]
    found = tuple(
        Trajectory(text, "sampled", answer if right else None, right)
        for text, right in pairs
        if text
    )
    return Question(name, _text(row, "problem", name), answer, name, found)


def read_choice(row: Mapping, name: str, seed: int) -> Question:
    """A multiple-choice row: options in an order of the seed, the right one's letter as answer;
    `answers.grade` grades it.
    """
    options = [_text(row, column, name) for column in ("Correct Answer", *WRONG_ANSWERS)]
    order = random.Random(f"{name}/{seed}").sample(range(4), 4)
    lines = [f"{letter}) {options[k]}" for letter, k in zip(LETTERS, order, strict=True)]
    ask = "Put nothing but the letter of the right option in the box."
    text = "\n".join([_text(row, "Question", name), "", *lines, "", ask])
    return Question(name, text, LETTERS[order.index(0)], name)


# --- questions to rows of the same schema ---------------------------------------------------------


def _wrong(question: Question) -> Trajectory:
    answer = f"{gsm.value(question.answer) + 1}"
    return gsm_variants.corrupt(question) or Trajectory(
        f"I guess that it is {answer}.", "corrupted", answer, False
    )


def rollout_writer(begin: str, end: str) -> Callable[[Question, int], list[dict]]:
    """A writer of rows with two generations, from the gold trajectory and a wrong one: the
    trajectory between `begin` and `end`, then its answer in a box.
    """

    def rows(question: Question, k: int) -> list[dict]:
        both = [gsm.gold(question), _wrong(question)]
        written = [f"{begin}{t.text}{end}The answer is \\boxed{{{t.answer}}}." for t in both]
        row = {
            "problem": question.text,
            "answer": question.answer,
            "generations": written,
            "labels": [1, 0],
        }
        return [row]

    return rows


def aime_rows(question: Question, k: int) -> list[dict]:
    """The question with its gold trajectory as solution, in AIME 2024's columns."""
    text = {
        "problem": question.text,
        "solution": gsm.gold(question).text,
        "answer": question.answer,
    }
    return [{"id": k, **text, "url": "", "year": "2024"}]


def math_rows(question: Question, k: int) -> list[dict]:
    """The question at level 5, and again at a lower level, which is not read."""
    text = {
        "problem": question.text,
        "solution": gsm.gold(question).text,
        "answer": question.answer,
    }
    return [
        {**text, "subject": "Prealgebra", "level": level, "unique_id": f"{k}/{level}"}
        for level in (k % 4 + 1, 5)
    ]


def live_rows(question: Question, k: int) -> list[dict]:
    """The question in LiveMathBench's columns, its answer between dollars."""
    return [
        {
            "question": question.text,
            "answer": f"${question.answer}$",
            "question_type": "problem-solving",
        }
    ]


def choice_rows(question: Question, k: int) -> list[dict]:
    """The question in GPQA's columns, the three numbers above its answer as wrong options."""
    wrong = {
        column: str(gsm.value(question.answer) + j) for j, column in enumerate(WRONG_ANSWERS, 1)
    }
    return [{"Question": question.text, "Correct Answer": question.answer, **wrong}]
