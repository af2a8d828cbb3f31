"""Trajectories made from the gold one of a gsm_symbolic question: wrong ones, those that reflect,
and controls.

A wrong or control trajectory says by its `kind` what it is. One that reflects is held beside what
it is compared with (`Reflecting`).
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from fractions import Fraction

from tml_lib.data.gsm import NUMBER, Equation, equations, evaluate, first_mention, gold, value
from tml_lib.records import Question, Trajectory

# days, months, percent: a text may use them for what they are
_CONSTANTS = {7, 10, 12, 24, 30, 52, 60, 100, 365, 1000}


# --- wrong trajectories by construction -----------------------------------------------------------


def corrupt(question: Question, seed: int = 0) -> Trajectory | None:
    """The gold trajectory with one intermediate value wrong, used consistently from there on; None
    where impossible.

    Exactly one step's arithmetic is false (its offset is `first_error`); each later step is right
    given that value, and the answer stated at the end differs from the true one. Values that also
    stand in the question are left alone, so that every later use is a use of the altered result.
    """
    text = gold(question).text
    steps = equations(text)
    if not steps or len(steps) != text.count("=") or steps[-1].value != value(question.answer):
        return None  # a step that cannot be checked, or an answer that no step states
    settings = {value(m.group()) for m in NUMBER.finditer(question.text)}
    rng = random.Random(f"{seed}/{question.id}")
    candidates = [k for k in range(len(steps) - 1) if steps[k].value not in settings | _CONSTANTS]
    rng.shuffle(candidates)
    for k in candidates:
        deltas = [d for d in range(-9, 10) if d and steps[k].value + d > 0]
        rng.shuffle(deltas)
        for delta in deltas:
            altered = _propagate(text, steps, k, steps[k].value + delta, settings)
            if altered is None:
                continue
            stated = equations(altered)[-1].value
            if stated != value(question.answer):
                return Trajectory(
                    altered, "corrupted", _like(stated, "0"), False, steps[k].value_start
                )
    return None


def _propagate(
    text: str, steps: list[Equation], k: int, wrong: Fraction, settings: set[Fraction]
) -> str | None:
    """Rewrite the text from step k's result on; None where a value is ambiguous, negative or loses
    its whole number.
    """
    changed = {steps[k].value: wrong}
    earlier = {value(m.group()) for m in NUMBER.finditer(text[: steps[k].value_start])}
    if steps[k].value in earlier or wrong in settings | earlier:
        return None
    results = {step.value_start: step for step in steps[k + 1 :]}
    out, done = text[: steps[k].value_start], steps[k].value_start
    # offset in the text -> offset in the rewritten text, for the expressions' beginnings
    starts: dict[int, int] = {}
    for match in NUMBER.finditer(text, done):
        out += text[done : match.start()]
        done = match.end()
        starts[match.start()] = len(out)
        old = value(match.group())
        step = results.get(match.start())
        if step is not None:
            new = _reevaluate(out, text, step, starts)
            if new is None or new <= 0 or (old.denominator == 1) != (new.denominator == 1):
                return None
            if new != old and (old in settings | earlier or changed.get(old, new) != new):
                return None  # a later use of `old` could mean either value
            if new != old:
                changed[old] = new
        else:
            new = changed.get(old, old)
        out += match.group() if new == old else _like(new, match.group())
    out += text[done:]
    # a wrong value with decimals has never served: stored evidence depends on the choice
    stated = wrong.denominator == 1 and first_mention(out, str(wrong)) is not None
    return out if stated and len(equations(out)) == len(steps) - 1 else None


def _reevaluate(out: str, text: str, step: Equation, starts: dict[int, int]) -> Fraction | None:
    """The value of a later step's expression, read from the rewritten text."""
    first = next(
        (m.start() for m in NUMBER.finditer(text, step.start) if m.start() in starts), None
    )
    if first is None or first >= step.value_start:
        return step.value  # the expression lies before the altered value: unchanged
    begin = starts[first] - (first - step.start)
    return evaluate(out[begin : out.rindex("=")])


def _like(number: Fraction, model: str) -> str:
    """Write a number the way `model` is written: decimals kept, thousands separated where the model
    separates them.
    """
    if number.denominator == 1:
        whole = f"{int(number):,}" if "," in model else str(int(number))
        return whole + (".0" if model.endswith(".0") else "")
    return f"{float(number):.10g}"


# --- trajectories that reflect --------------------------------------------------------------------


@dataclass(frozen=True)
class Reflecting:
    """A trajectory with one reflection by rule, and what the reflection is compared with. Offsets
    are characters of `text`.
    """

    text: str
    # the reflection: 'Wait' behind a slip, 'Alternatively' behind a step that is given up
    mark: str
    at: int  # where the mark begins
    instead: str  # the text before the mark, with something else in its place
    slip: int = 0  # where the wrong value begins; 0: there is none
    repaired: int = 0  # where the right value behind the mark ends
    needless: str = ""  # up to there, with the right value in place of the slip


def reflecting(question: Question, seed: int = 0) -> list[Reflecting] | None:
    """The gold trajectory twice: with a slip that 'Wait' takes back, and with a step begun too
    early and given up.

    In place of the mark `instead` has 'So'. None where no step's arithmetic can be checked, or no
    later step begins with words.
    """
    text, rng = gold(question).text, random.Random(f"reflecting/{seed}/{question.id}")
    steps, lines = equations(text), text.split("\n")
    openings = {k: re.match(r"[^\d$£€]*", lines[k]).group().strip() for k in range(1, len(lines))}
    openings = {k: opening for k, opening in openings.items() if len(opening.split()) > 1}
    if not steps or not openings:
        return None
    step, k = rng.choice(steps), rng.choice(sorted(openings))
    before, right = text[: step.value_start], text[step.value_start : step.value_end]
    known = {value(m.group()) for m in NUMBER.finditer(f"{question.text} {question.answer}")}
    wrong = next(
        step.value + d for d in rng.sample(range(1, 30), 29) if step.value + d not in known
    )
    slip = f"{before}{_like(wrong, right)}. "
    wait = Reflecting(
        f"{slip}Wait, {right}{text[step.value_end :]}",
        "Wait",
        len(slip),
        f"{slip}So",
        len(before),
        len(f"{slip}Wait, {right}"),
        f"{before}{right}. Wait, {right}",
    )
    begun = "\n".join([*lines[: k - 1], f"{openings[k]}? "])
    mark = "Alternatively"
    return [
        wait,
        Reflecting(
            "\n".join([f"{begun}{mark}, {lines[k - 1]}", *lines[k:]]),
            mark,
            len(begun),
            f"{begun}So",
        ),
    ]


# --- control trajectories (paper's confounds) -----------------------------------------------------


def shuffle_steps(question: Question, seed: int = 0) -> Trajectory | None:
    """The gold steps before the one that states the answer, in another order; the rest stays. None
    below two such steps.

    The context at the end of the shuffled part holds the same sentences as gold's, so only their
    order differs.
    """
    text = gold(question).text
    mention = first_mention(text, question.answer)
    steps = text.split("\n")
    free = text[: len(text) if mention is None else mention].count("\n")
    if free < 2 or len(set(steps[:free])) < 2:
        return None
    rng = random.Random(f"{seed}/{question.id}")
    order = steps[:free]
    while order == steps[:free]:
        rng.shuffle(order)
    return Trajectory("\n".join(order + steps[free:]), "shuffled", question.answer, None)


def foreign(question: Question, others: list[Question], seed: int = 0) -> Trajectory:
    """Another question's gold trajectories (other templates), long enough to be cut to any length
    of this one's.

    Only texts that never state this question's answer serve. Raises LookupError where there are
    none.
    """
    rng = random.Random(f"{seed}/{question.id}")
    pool = [o for o in others if o.template != question.template]
    pool = [o for o in pool if first_mention(gold(o).text, question.answer) is None]
    if not pool:
        raise LookupError(
            f"no other question's trajectory avoids the answer {question.answer!r}: give more"
            " questions"
        )
    rng.shuffle(pool)
    text, wanted = "", len(gold(question).text) * 2
    for other in pool:
        text = f"{text}\n{gold(other).text}" if text else gold(other).text
        if len(text) >= wanted:
            break
    return Trajectory(text, "foreign", None, None)
