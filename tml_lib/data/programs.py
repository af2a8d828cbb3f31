"""The tiny reasoner's questions: straight-line programs modulo 7, with many valid trajectories
each.

A program has independent *chains*: an input, then statements that each take the value before and
one literal. It asks for the last value of every chain, so one forward pass of a small model cannot
answer it, while a trajectory that executes the statements one by one can, in any order in which
operands come first. A question reads

    d=3 h=5
    c:= h*4
    a:= d+2
    ?a ?c

one of its trajectories ``a:= d+2 d=3 a=5 . c:= h*4 h=5 c=6 .``, and its answer ``a=5 c=6``. Words
stand between blanks, one token each. The number of statements of a chain, `steps`, is the
difficulty. Deviations from the paper: its questions are competition mathematics, its trajectories
samples of larger models; ours are made by rule, so that every style, every error and every split is
known by construction.
"""

from __future__ import annotations

import itertools
import random
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tml_lib import checks
from tml_lib.records import Question, Trajectory

MODULUS = 7
STEPS = 3  # statements of a chain at the default difficulty
CHAINS = 2
LETTERS = "abcdefghijklmnop"
LITERALS = range(2, MODULUS)
TRAINED = "+*"  # operators of the trained questions
OTHER = "-/"  # operators that only the base's one-step questions show
STYLES = ("plain", "short", "self_correcting", "exploring", "long", "summarised", "wrong")
REFLECTION_RATE = 0.15  # of each reflection at each step of a long trajectory


@dataclass(frozen=True)
class Statement:
    """name := operand operator literal."""

    name: str
    operand: str
    operator: str
    literal: int

    @property
    def words(self) -> list[str]:
        return [f"{self.name}:=", f"{self.operand}{self.operator}{self.literal}"]

    def apply(self, value: int) -> int:
        """The statement's value, given its operand's; '/' multiplies by the inverse modulo 7."""
        match self.operator:
            case "+":
                return (value + self.literal) % MODULUS
            case "-":
                return (value - self.literal) % MODULUS
            case "*":
                return value * self.literal % MODULUS
            case "/":
                return value * pow(self.literal, -1, MODULUS) % MODULUS
        raise ValueError(
            f"unknown operator {self.operator!r}: use one of {', '.join(TRAINED + OTHER)}"
        )


@dataclass(frozen=True)
class Program:
    """Inputs (letter, value), statements in the order in which they are written, and the letters
    asked for.
    """

    inputs: tuple[tuple[str, int], ...]
    statements: tuple[Statement, ...]
    asked: tuple[str, ...]
    other_surface: bool = False  # asked first, inputs last, and 'c<- h*4' for 'c:= h*4'

    @property
    def text(self) -> str:
        inputs = " ".join(f"{letter}={value}" for letter, value in self.inputs)
        asked = " ".join(f"?{letter}" for letter in self.asked)
        if self.other_surface:
            return "\n".join(
                [asked, *(f"{s.name}<- {s.words[1]}" for s in self.statements), inputs]
            )
        return "\n".join([inputs, *(" ".join(s.words) for s in self.statements), asked])

    def values(self) -> dict[str, int]:
        """Value of every letter that has one. Raises ValueError where a letter asked for has none:
        no valid trajectory.
        """
        known, waiting = dict(self.inputs), list(self.statements)
        while ready := [s for s in waiting if s.operand in known]:
            known |= {s.name: s.apply(known[s.operand]) for s in ready}
            waiting = [s for s in waiting if s.name not in known]
        for letter in self.asked:
            if letter not in known:
                raise ValueError(
                    f"the question has no valid trajectory: it asks for {letter!r}, which no order"
                    f" of its statements reaches (reached: {', '.join(known)}); give every operand"
                    " a value or a statement, without a circle"
                )
        return known

    def answer(self) -> str:
        values = self.values()
        return " ".join(f"{letter}={values[letter]}" for letter in self.asked)


def parse(text: str) -> Program:
    """The program that a question's text writes; ValueError names the word that does not belong."""
    inputs, statements, asked, parts = [], [], [], text.split()
    while parts:
        word, following = parts.pop(0), parts[0] if parts else ""
        if match := re.fullmatch(r"([a-p])=([0-6])", word):
            inputs.append((match[1], int(match[2])))
        elif match := re.fullmatch(r"\?([a-p])", word):
            asked.append(match[1])
        elif match := re.fullmatch(r"([a-p])(:=|<-) ([a-p])([-+*/])([2-6])", f"{word} {following}"):
            statements.append(Statement(match[1], match[3], match[4], int(match[5])))
            parts.pop(0)
        else:
            raise ValueError(
                f"{word!r} begins no part of a program: write 'a=3', 'b:= a+2' or 'b<- a+2', and"
                " '?b'"
            )
    return Program(tuple(inputs), tuple(statements), tuple(asked), "<-" in text)


# --- splits ---------------------------------------------------------------------------------------

# split: (statements of a chain beyond `steps`, operators, other surface, of the held-out share of
# programs)
SPLITS = {
    "train": (0, TRAINED, False, False),
    "held_out": (0, TRAINED, False, True),
    "harder": (1, TRAINED, False, True),
    "other_surface": (0, TRAINED, True, True),
    "other_operations": (0, OTHER, False, True),
}


def questions(n: int, seed: int = 0, split: str = "train", *, steps: int = STEPS) -> list[Question]:
    """n questions of a split, each with one plain gold trajectory; the first n of a seed are the
    same whatever n is.

    Whether a program, up to its letters and the order of its lines, may be trained on is a hash of
    it, so the splits are disjoint by construction. Raises ValueError where n < 1, for an unknown
    split, and where `steps` needs too many letters.
    """
    checks.whole(n=n, seed=seed, steps=steps)
    if n < 1:
        raise ValueError(f"n={n} questions make no set: ask for at least 1")
    made = []
    for k in range(n):
        rng = random.Random(f"{split}/{seed}/{k}")
        made.append(question(split_program(rng, split, steps), f"programs/{split}/{seed}/{k}", rng))
    return made


def split_program(rng: random.Random, split: str = "train", steps: int = STEPS) -> Program:
    """A random program of a split. Raises ValueError for an unknown split, and where `steps` needs
    too many letters.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    more, operators, other_surface, held_out = SPLITS[split]
    longest = len(LETTERS) // CHAINS - 1
    if not 1 <= steps + more <= longest:
        raise ValueError(
            f"steps={steps} in split {split!r} must give 1..{longest} statements a chain: there are"
            " 16 letters"
        )
    while True:
        program = draw(rng, steps + more, operators=operators, other_surface=other_surface)
        if is_held_out(program) == held_out:
            return program


def question(program: Program, name: str, rng: random.Random) -> Question:
    """The program as a question with its answer and a plain gold trajectory; its template is its
    sequence of operators.
    """
    gold = replace(trajectory(program, "plain", rng), kind="gold")
    template = "".join(s.operator for s in program.statements)
    return Question(name, program.text, program.answer(), template, (gold,))


def draw(
    rng: random.Random,
    steps: int,
    *,
    chains: int = CHAINS,
    operators: str = TRAINED,
    other_surface: bool = False,
) -> Program:
    """A random program of `chains` chains of `steps` statements each, written in random order; it
    asks for up to two ends.
    """
    letters = rng.sample(LETTERS, chains * (steps + 1))
    inputs, statements, ends = [], [], []
    for k in range(chains):
        names = letters[k * (steps + 1) : (k + 1) * (steps + 1)]
        inputs.append((names[0], rng.randrange(MODULUS)))
        for operand, letter in itertools.pairwise(names):
            statements.append(
                Statement(letter, operand, rng.choice(operators), rng.choice(LITERALS))
            )
        ends.append(names[-1])
    rng.shuffle(statements)
    return Program(
        tuple(inputs), tuple(statements), tuple(rng.sample(ends, min(2, chains))), other_surface
    )


def is_held_out(program: Program) -> bool:
    """Whether a program belongs to the fifth of all programs that is never trained on, whatever its
    letters and line order.
    """
    follows = {s.operand: s for s in program.statements}
    chains = []
    for letter, value in program.inputs:
        chain = [value]
        while letter in follows:
            step = follows[letter]
            chain.append((step.operator, step.literal))
            letter = step.name
        chains.append(repr(chain))
    return zlib.crc32("|".join(sorted(chains)).encode()) % 5 == 0


# --- trajectories ---------------------------------------------------------------------------------


def trajectory(program: Program, style: str, rng: random.Random) -> Trajectory:
    """A random trajectory of a style.

    plain: every statement recited, its operand's value, its own. short: every statement and its
        value, no more.
    self_correcting: plain with wrong values, each followed by 'Wait' and the right one. exploring:
    plain with statements begun too early ('c=?', then 'Alternatively'). long: plain with both, each
    at a rate of REFLECTION_RATE a step.
    summarised: short without the values asked for. wrong: plain with one wrong value, used from
    there on. ValueError for an unknown style, and for an exploring trajectory where nothing can be
    begun too early.
    """
    if style not in STYLES:
        raise ValueError(f"unknown trajectory style {style!r}: choose one of {', '.join(STYLES)}")
    program.values()  # says what is amiss where there is no valid order
    order = _order(program, rng)
    if style in ("short", "summarised"):
        values = program.values()
        kept = [s for s in order if style == "short" or s.name not in program.asked]
        text = " ".join(" ".join([*s.words, f"{s.name}={values[s.name]}"]) for s in kept)
        stated = program.answer() if style == "short" else None
        return Trajectory(text, style, stated, True if style == "short" else None)
    early = _waiting(program, order)
    wrong_at = rng.randrange(len(order)) if style == "wrong" else None
    places = [k for k in range(len(order)) if early[k] or style != "exploring"]
    if not places:
        raise ValueError(
            "no statement of this program waits for a value, so none can be begun too early: take"
            " more steps"
        )
    forced = rng.choice(places)  # a reflecting trajectory reflects at least once
    known, parts, first_error = dict(program.inputs), [], None
    for k, statement in enumerate(order):
        waits = {
            "self_correcting": k == forced or rng.random() < 0.2,
            "long": rng.random() < REFLECTION_RATE,
        }
        explores = {
            "exploring": k == forced or rng.random() < 0.2,
            "long": rng.random() < REFLECTION_RATE,
        }
        if explores.get(style, False) and early[k]:
            begun = rng.choice(early[k])
            parts.append([*begun.words, f"{begun.operand}=?", "Alternatively"])
        value = statement.apply(known[statement.operand])
        other = (value + rng.randrange(1, MODULUS)) % MODULUS
        words = [*statement.words, f"{statement.operand}={known[statement.operand]}"]
        if waits.get(style, False):
            words += [f"{statement.name}={other}", "Wait"]
        if k == wrong_at:
            value = other
            first_error = len(" ".join(word for part in [*parts, words] for word in part)) + 1
        parts.append([*words, f"{statement.name}={value}", "."])
        known[statement.name] = value
    stated = " ".join(f"{letter}={known[letter]}" for letter in program.asked)
    return Trajectory(
        " ".join(w for p in parts for w in p),
        style,
        stated,
        stated == program.answer(),
        first_error,
    )


def _order(program: Program, rng: random.Random) -> list[Statement]:
    """A random order of the statements in which every operand comes first."""
    known, waiting, order = {letter for letter, _ in program.inputs}, list(program.statements), []
    while ready := [s for s in waiting if s.operand in known]:
        order.append(rng.choice(ready))
        waiting.remove(order[-1])
        known.add(order[-1].name)
    return order


def _waiting(program: Program, order: list[Statement]) -> list[list[Statement]]:
    """Before each step of an order, the statements whose operand has no value yet."""
    known, found = {letter for letter, _ in program.inputs}, []
    for statement in order:
        found.append([s for s in program.statements if s.operand not in known])
        known.add(statement.name)
    return found


def trajectories(program: Program, count: int, style: str, seed: int = 0) -> list[Trajectory]:
    """`count` distinct trajectories of a style. Raises ValueError where a thousand draws per
    trajectory find no more.
    """
    rng, found = random.Random(f"{seed}/{program.text}/{style}"), {}
    for _ in range(1000 * count):
        drawn = trajectory(program, style, rng)
        found.setdefault(drawn.text, drawn)
        if len(found) == count:
            return list(found.values())
    raise ValueError(
        f"only {len(found)} distinct {style!r} trajectories were found where {count} were asked"
        " for: take more steps, or 'long'"
    )


# --- words ----------------------------------------------------------------------------------------


def words() -> Iterator[str]:
    """Every word that questions, trajectories and answers are made of, in the order of their token
    ids.
    """
    yield from (".", "Wait", "Alternatively")
    for letter in LETTERS:
        yield from (f"{letter}:=", f"{letter}<-", f"?{letter}", f"{letter}=?")
        yield from (f"{letter}={value}" for value in range(MODULUS))
        yield from (
            f"{letter}{operator}{literal}" for operator in TRAINED + OTHER for literal in LITERALS
        )
