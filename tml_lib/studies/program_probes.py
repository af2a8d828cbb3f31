"""The probe study of the tiny reasoner: L̂ along right, wrong and unrelated trajectories, five
reasoners (C1, C2, C3, C6).

A seed trains its own reasoner (`reasoners`) and asks it its own held-out questions. Every condition
is as long as the gold trajectory, by construction: six statements of five words. Two things are
easier to say here than for text: where the answer is first stated (the first of its two words), and
what another question's trajectory shares with this one (nothing: its letters are renamed to ones
that this question does not use).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tml_lib.claims.stats import changepoint, trend
from tml_lib.data import gsm, program_grading, programs
from tml_lib.data.programs import Program
from tml_lib.lm import sampling
from tml_lib.lm.answers import ANSWER_TEMPLATE
from tml_lib.lm.models import LanguageModel
from tml_lib.measure import token_roles
from tml_lib.measure.probe import probe
from tml_lib.records import Arms, Question
from tml_lib.studies import reasoners, supervised

QUESTIONS = 300
TRIES = 8  # samples at T = 1 per question, among which a right and a wrong one are looked for
STEP_WORDS = 5  # of a plain trajectory's step: 'c:= h*4 h=5 c=6 .'
NEAR = 0.1  # nats per token: as good as where L̂ ends


# --- trajectories ---------------------------------------------------------------------------------


def steps_of(words: Sequence[str]) -> list[list[str]]:
    """A plain trajectory's words, step by step."""
    return [list(words[k : k + STEP_WORDS]) for k in range(0, len(words), STEP_WORDS)]


def stated(words: Sequence[str], answer: str) -> int | None:
    """How many words stand before the first that is a word of the answer; None where
    there is none.
    """
    own = set(answer.split())
    return next((k for k, word in enumerate(words) if word in own), None)


def corrupted(program: Program, words: Sequence[str], rng: random.Random) -> tuple[list[str], int]:
    """Gold with one wrong value, used from there on, and the number of words before it. One chain's
    result is wrong then.
    """
    statements, known = {s.name: s for s in program.statements}, dict(program.inputs)
    steps, made = steps_of(words), []
    at = rng.randrange(len(steps))
    for k, step in enumerate(steps):
        statement = statements[step[0][0]]
        value = statement.apply(known[statement.operand])
        if k == at:
            value = (value + rng.randrange(1, programs.MODULUS)) % programs.MODULUS
        made += [
            *statement.words,
            f"{statement.operand}={known[statement.operand]}",
            f"{statement.name}={value}",
            ".",
        ]
        known[statement.name] = value
    return made, STEP_WORDS * at + 3


def own_answer(program: Program, words: Sequence[str]) -> str:
    """The answer that a whole plain trajectory states, right or wrong."""
    values = {word[0]: word for word in words if word[1:2] == "=" and word[2:].isdigit()}
    return " ".join(values[letter] for letter in program.asked)


def shuffled(words: Sequence[str], answer: str, rng: random.Random) -> tuple[list[str], int]:
    """Gold with the steps before the one that first states an answer in another order, and the
    number of their words.
    """
    steps, free = steps_of(words), stated(words, answer) // STEP_WORDS
    order = list(range(free))
    while free > 1 and order == sorted(order):
        rng.shuffle(order)
    return [
        word for k in [*order, *range(free, len(steps))] for word in steps[k]
    ], STEP_WORDS * free


def renamed(words: Sequence[str], avoid: Program, rng: random.Random) -> list[str]:
    """Words with their letters mapped, one to one, to letters that the other program does
    not use.
    """
    used = {letter for letter, _ in avoid.inputs} | {s.name for s in avoid.statements}
    free = [letter for letter in programs.LETTERS if letter not in used]
    own = sorted({letter for word in words for letter in _letters(word)})
    new = dict(zip(own, rng.sample(free, len(own)), strict=True))
    return ["".join(new.get(c, c) if c in _letters(word) else c for c in word) for word in words]


def _letters(word: str) -> str:
    return (
        "".join(c for c in word if c in programs.LETTERS)
        if word not in token_roles.REFLECTIONS
        else ""
    )


def conditions(question: Question, other: Question, rng: random.Random) -> dict[str, list[str]]:
    """Trajectories of one question by rule, all equally long; the model's own samples come beside
    them.

    foreign: the other question's, with letters that this one does not use. copying: the same,
    ending in the answer's words.
    """
    program, gold = programs.parse(question.text), gsm.gold(question).text.split()
    foreign = renamed(gsm.gold(other).text.split(), program, rng)
    return {
        "gold": gold,
        "corrupted": corrupted(program, gold, rng)[0],
        "foreign": foreign,
        "shuffled": shuffled(gold, question.answer, rng)[0],
        "copying": [*foreign[: -len(question.answer.split())], *question.answer.split()],
    }


def own_samples(
    lm: LanguageModel, questions: Sequence[Question], seed: int
) -> tuple[list[dict[str, list[str]]], list[int]]:
    """Per question the words of the first right and the first wrong sample among TRIES at T = 1,
    where there are such; and how many samples were cut, of how many.
    """
    prompts = [lm.prompt(question.text) for question in questions for _ in range(TRIES)]
    seeds = sampling.row_seeds([seed, 1], len(prompts))
    settings = {"temperature": 1.0, "max_new_tokens": supervised.MOST_TOKENS, "batch_size": 512}
    found: list[dict[str, list[str]]] = [{} for _ in questions]
    written = sampling.sample(lm, prompts, seeds, **settings)
    for k, text in enumerate(sampling.texts(lm, written, whole=True)):
        words = text.partition(ANSWER_TEMPLATE.strip())[0].split()
        if words:
            right = program_grading.graded(text, questions[k // TRIES].answer)
            found[k // TRIES].setdefault("own_right" if right else "own_wrong", words)
    return found, [sum(one.cut for one in written), len(written)]


# --- probing --------------------------------------------------------------------------------------


def curve(lm: LanguageModel, question: Question, words: Sequence[str], *answers: str) -> np.ndarray:
    """L̂ of the question's answer, and of further ones, after every word: (len(words) + 1,), or a
    row for each answer.
    """
    prompt = lm.prompt(question.text)
    found = probe(lm, prompt, " ".join(words), [question.answer, *answers])
    table = np.array([one.answer_nll for one in found])
    return table if answers else table[0]


def trajectory_values(
    lm: LanguageModel, question: Question, found: dict[str, list[str]]
) -> tuple[dict, dict]:
    """The values of C1 and C2 for one question, and its curves by condition."""
    program = programs.parse(question.text)
    end = stated(found["gold"], question.answer)
    free = STEP_WORDS * (end // STEP_WORDS)
    error = next(
        k for k, (a, b) in enumerate(zip(found["gold"], found["corrupted"], strict=True)) if a != b
    )
    wrong = own_answer(program, found["corrupted"])
    curves = {
        kind: curve(lm, question, words) for kind, words in found.items() if kind != "corrupted"
    }
    spoilt = next(
        k
        for k, (a, b) in enumerate(zip(question.answer.split(), wrong.split(), strict=True))
        if a != b
    )
    first = question.answer.split()[0]
    curves["corrupted"], own, of_first = curve(lm, question, found["corrupted"], wrong, first)
    # L̂ is the mean over both words
    of_spoilt = of_first if spoilt == 0 else 2 * curves["corrupted"] - of_first
    gold, bad, foreign = curves["gold"], curves["corrupted"], curves["foreign"]
    unstated, tau = gold[0] - gold[end], {kind: trend(c) for kind, c in curves.items()}
    values = {
        "C1.trend": tau["gold"],
        "C1.trend_unstated": trend(gold[: end + 1]),
        "C1.trend_over_foreign": trend(gold[: end + 1]) - trend(foreign[: end + 1]),
        "C1.fall": gold[0] - gold[-1],
        "C1.unstated": unstated,
        "C1.content": unstated - (foreign[0] - foreign[end]),
        "C1.order": curves["shuffled"][free] - gold[free] if free > STEP_WORDS else math.nan,
        "C1.copying": (gold[0] - gold[-1]) - (curves["copying"][0] - curves["copying"][-1]),
        "C1.area": float(np.mean(gold - gold[-1]) / (gold[0] - gold[-1])),
        "C1.share_unstated": unstated / (gold[0] - gold[-1]),
        "C1.below_chance": math.log(programs.MODULUS) - gold[end],
        "C1.changepoint": (changepoint(gold) - end) / (len(gold) - 1),
        "C1.own_trend": tau.get("own_right", math.nan),
        "C1.own_trend_unstated": math.nan,
        "C1.own_unstated": math.nan,
        "C2.sampled_trend": tau.get("own_wrong", math.nan),
        "C2.corrupted_trend": tau["corrupted"],
        "C2.corrupted_over_foreign": tau["corrupted"] - tau["foreign"],
        "C2.sampled_fall": (
            curves["own_wrong"][0] - curves["own_wrong"][-1] if "own_wrong" in curves else math.nan
        ),
        "C2.corrupted_fall": bad[0] - bad[-1],
        "C2.contrast": unstated - (bad[0] - bad[end]),
        "C2.own_answer": own[0] - own[-1],
        "C2.after_error": bad[-1] - bad[error],
        "C2.after_error_over_gold": (bad[-1] - bad[error]) - (gold[-1] - gold[error]),
        "C2.spoilt_word": of_spoilt[-1] - of_spoilt[error],
    }
    if "own_right" in found:
        first_stated = stated(found["own_right"], question.answer)  # None for a lucky guess
        before = curves["own_right"][
            : len(found["own_right"]) + 1 if first_stated is None else first_stated + 1
        ]
        values |= {
            "C1.own_trend_unstated": trend(before),
            "C1.own_unstated": before[0] - before[-1],
        }
    return {name: float(number) for name, number in values.items()}, curves


# --- C3 -------------------------------------------------------------------------------------------


def cut_values(
    lm: LanguageModel, questions: Sequence[Question], foreign: Sequence[list[str]]
) -> tuple[dict, dict]:
    """The values of C3 per question, and for the figure: share right and mean L̂ when thinking is
    cut after k steps.

    The model's own greedy trajectory is cut after its k-th full stop and it is made to answer; k =
    0 is no-thinking, and `len` of the longest the whole. foreign: as many words of another
    question, as a control.
    """
    prompts = [lm.prompt(question.text) for question in questions]
    settings = {"temperature": 0, "max_new_tokens": supervised.MOST_TOKENS, "batch_size": 512}
    written = sampling.sample(lm, prompts, [0] * len(prompts), **settings)
    texts = [
        text.partition(ANSWER_TEMPLATE.strip())[0].split()
        for text in sampling.texts(lm, written, whole=True)
    ]
    stops = [[0, *(k + 1 for k, word in enumerate(words) if word == ".")] for words in texts]
    most = programs.CHAINS * programs.STEPS
    cuts = [
        [words[: ends[min(k, len(ends) - 1)]] for words, ends in zip(texts, stops, strict=True)]
        for k in range(most)
    ]
    right = np.array([forced(lm, questions, cut) for cut in [*cuts, texts, foreign]], dtype=float)
    curves = [
        curve(lm, question, words) if words else None
        for question, words in zip(questions, texts, strict=True)
    ]
    values = {
        "C3.optimum": Arms(right[most], right[0]),
        "C3.loss": np.array([math.nan if c is None else c[0] - c[-1] for c in curves]),
        "C3.sooner": np.array([math.nan if c is None else settled(c) for c in curves]),
        "C3.half": Arms(right[most // 2], right[0]),
        "C3.last": Arms(right[most], right[most - 1]),
        "C3.foreign": Arms(right[most + 1], right[0]),
    }
    kept = [(c, ends) for c, ends in zip(curves, stops, strict=True) if c is not None]
    nll = [
        float(np.mean([c[ends[min(k, len(ends) - 1)]] for c, ends in kept])) for k in range(most)
    ]
    nll.append(float(np.mean([c[-1] for c, _ in kept])))
    tokens = [float(np.mean([len(cut) for cut in group])) for group in [*cuts, texts]]
    shown = {"right": right[: most + 1].mean(1).tolist(), "nll": nll, "tokens": tokens}
    return values, shown | {"cut": [sum(one.cut for one in written), len(written)]}


def forced(
    lm: LanguageModel, questions: Sequence[Question], thoughts: Sequence[Sequence[str]]
) -> list[bool]:
    """Whether the model answers rightly when made to answer after these words."""
    prompts = [
        lm.prompt(question.text) + " ".join(words) + ANSWER_TEMPLATE
        for question, words in zip(questions, thoughts, strict=True)
    ]
    written = sampling.sample(
        lm, prompts, [0] * len(prompts), temperature=0, max_new_tokens=8, batch_size=512
    )
    texts = [ANSWER_TEMPLATE + text for text in sampling.texts(lm, written, whole=True)]
    return [
        program_grading.graded(text, question.answer)
        for text, question in zip(texts, questions, strict=True)
    ]


def settled(nll: np.ndarray, positions: np.ndarray | None = None) -> float:
    """Fraction of a trajectory after which L̂ stays within NEAR of its end.

    positions: the number of tokens before each value; None for values after every token.
    """
    where = np.arange(len(nll)) if positions is None else positions
    far = np.flatnonzero(np.abs(nll - nll[-1]) > NEAR)
    return float(where[far[-1] + 1] / where[-1]) if len(far) else 0.0


# --- the study ------------------------------------------------------------------------------------


def probe_record(seed: int, folder: Path, *, questions: int, steps: int = reasoners.STEPS) -> dict:
    """One seed: 'values', test -> one number per question; 'curves', condition -> mean L̂ after
    each word (those of gold's length); 'cuts', see `cut_values`; 'classes', word class -> mean of
    |ΔL̂|, ΔL̂ and |ΔL̂|/L̂, and their number.
    """
    lm = reasoners.reasoner(seed, folder, steps=steps)
    asked = programs.questions(questions, seed, "held_out")
    (samples, cut_samples), rows = own_samples(lm, asked, seed), []
    curves, foreign, tokens = {}, [], []
    for k, question in enumerate(asked):
        rng = random.Random(f"conditions/{seed}/{k}")
        found = conditions(question, asked[(k + 1) % len(asked)], rng) | samples[k]
        values, drawn = trajectory_values(lm, question, found)
        reflecting = token_roles.reflecting(question, seed)
        by_token, table = token_roles.role_values(
            lm, question, reflecting, token_roles.program_pieces
        )
        rows.append(values | by_token)
        foreign.append(found["foreign"])
        tokens += table
        for kind, nll in drawn.items():
            if len(nll) == len(found["gold"]) + 1:
                curves.setdefault(kind, []).append(nll)
    cut, cuts = cut_values(lm, asked, foreign)
    values = {name: [row[name] for row in rows] for name in rows[0]} | {
        name: column.tolist() for name, column in cut.items()
    }
    means = {kind: np.mean(table, 0).round(4).tolist() for kind, table in curves.items()}
    return {
        "values": values,
        "curves": means,
        "cuts": cuts,
        "classes": token_roles.by_class(tokens),
        "cut": cut_samples,
    }


STUDY = reasoners.of_reasoners("probes", probe_record, QUESTIONS)
