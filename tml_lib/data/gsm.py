"""gsm_symbolic: questions with verified answers and gold trajectories.

A question's numbers and the steps of its gold trajectory are read here too. `gsm_variants` makes
wrong and control trajectories from the gold one. Deviations from the paper: its trajectories are
sampled from QwQ-32B and Qwen3-32B; ours are the task's gold solutions, with seeded alterations, and
(through `lm.sampling`) samples of the model under study.
"""

from __future__ import annotations

import ast
import random
import re
from dataclasses import dataclass
from fractions import Fraction

from tml_lib import checks
from tml_lib.lm import notation
from tml_lib.lm.grading import options
from tml_lib.records import Question, Trajectory

_DIGITS = r"\d+(?:,\d{3})*(?:\.\d+)?"
NUMBER = re.compile(rf"(?<![\w.]){_DIGITS}(?!\w|[.,]\d)")
_EQUALS = re.compile(rf"=\s*[$£€]?\s*({_DIGITS})")
# what stands behind the '=' of a step, unless it is itself an expression
_RESULT = re.compile(
    rf"\s*[$£€]?(?P<sign>-)?[$£€]?(?P<value>{_DIGITS})(?:/(?P<under>[1-9]\d*))?\s*(?P<percent>%)?"
    r"(?!\s*[-+*/×÷(]\s*[\d(]|\s+x\s|\d|\w*\s*[-+*/×÷]\s*\d)"
)
_ROUNDING = Fraction(1, 10**9)  # the golden texts are written by floating point
_ASKED = "Give the result as your final answer. Do not include units."  # reasoning-gym's own words
_REDRAWN = 10**6  # from one draw of a place to the next


def gsm_symbolic(n: int, seed: int = 0) -> list[Question]:
    """n grade-school word problems of reasoning-gym's `gsm_symbolic`, each with its gold
    trajectory.

    The first n of a seed are the same whatever n is. About three in a hundred have a false step in
    their gold trajectory, or come to a negative number: such a one is left out, and its template
    is drawn again in its place. `left_out` counts them. Raises ValueError where n < 1.
    """
    return [draws[-1] for draws in _draws(n, seed)]


def left_out(n: int, seed: int = 0) -> dict[str, str]:
    """What `gsm_symbolic(n, seed)` left out: id -> the false step or negative number."""
    passed = [question for draws in _draws(n, seed) for question in draws[:-1]]
    return {question.id: fault(gold(question).text) for question in passed}


def _draws(n: int, seed: int) -> list[list[Question]]:
    """Per place, the questions drawn until one has no fault."""
    checks.whole(n=n, seed=seed)
    if n < 1:
        raise ValueError(f"n={n} questions make no set: ask for at least 1")
    import reasoning_gym

    data = reasoning_gym.create_dataset("gsm_symbolic", size=n, seed=seed)
    places = []
    for place, template in enumerate(data.task_indices):
        draws = []
        while not draws or fault(gold(draws[-1]).text):
            number = place + _REDRAWN * len(draws)
            # what `data[place]` calls, for the first draw
            entry = data.generators[template](random.Random(seed + number), 1.0)
            draws.append(_question(entry, f"gsm_symbolic/{seed}/{number}", str(template)))
        places.append(draws)
    return places


def _question(entry: dict, name: str, template: str) -> Question:
    *steps, stated = entry["metadata"]["answer_cot"].split("\n")
    if not stated.startswith("####"):
        raise ValueError(f"{name} has no '####' line: the format of reasoning-gym changed")
    # a few templates indent or leave lines empty
    text = "\n".join(step.strip() for step in steps if step.strip())
    gold = Trajectory(text, "gold", entry["answer"], True)
    return Question(name, f"{entry['question']} {_ASKED}", entry["answer"], template, (gold,))


def fault(text: str) -> str:
    """The first step 'expression = value' of a gold trajectory whose arithmetic is false, or that
    comes to a negative number; '' where there is none. What cannot be read as arithmetic, such as
    an equation in x, is passed over.
    """
    for match in re.finditer("=", text):
        begin = _line_start(text, match.start())
        right = re.match(_RESULT, text[match.end() :])
        if right is None or re.search(r"\d[a-z](?![a-z])", text[begin : match.start()]):
            continue
        shown = text[begin : match.end() + right.end()].strip()
        if right["sign"]:
            return shown
        wanted = Fraction(right["value"].replace(",", "")) / int(right["under"] or 1)
        values = [
            _computed(text[start : match.start()])
            for start in _expression_starts(text, begin, match.start())
        ]
        values = [found for found in values if found is not None]
        scale = 100 if right["percent"] else 1
        near = (abs(found - wanted / k) < _ROUNDING for found in values for k in (1, scale))
        if values and not any(near):
            return shown
    return ""


def _computed(expression: str) -> Fraction | None:
    """The value of a gold trajectory's expression, with its own ways of writing: 'x' between
    words, '2(3+4)', and '10÷1/2', which is 10÷(1/2).
    """
    expression = re.sub(r"\s[x×]\s", " * ", expression)
    expression = re.sub(r"(?<=\d)\(", "*(", expression)
    return evaluate(re.sub(r"÷(.*)$", r"/(\1)", expression))


def value(number: str) -> Fraction:
    """The number that a decimal string with optional thousands separators stands for."""
    return Fraction(number.replace(",", ""))


def first_mention(text: str, answer: str) -> int | None:
    """Character offset where the answer is first written in the text; None if never.

    A number is found by value, in any way of writing it (1,234.0 and $1{,}234$ are 1234); a single
    letter from A to J only as an option that the text answers with; anything else letter by
    letter, but not inside a longer word or number.
    """
    wanted = notation.number(answer)
    if wanted is not None:
        values = {wanted.value, wanted.value * wanted.scale}
        return next((m.start for m in notation.mentions(text) if m.value in values), None)
    if re.fullmatch("[A-J]", answer):
        return next((at for at, letter in options(text) if letter == answer), None)
    begins = r"(?<!\w)" if re.match(r"\w", answer) else ""
    ends = r"(?!\w|\.\d)" if re.search(r"\w$", answer) else ""
    found = re.search(begins + re.escape(answer) + ends, text) if answer else None
    return None if found is None else found.start()


def gold(question: Question) -> Trajectory:
    """The question's gold trajectory; LookupError where it has none."""
    for trajectory in question.trajectories:
        if trajectory.kind == "gold":
            return trajectory
    raise LookupError(
        f"question {question.id} carries no gold trajectory: use gsm_symbolic, or take a set with"
        " right trajectories (`hub.right_as_gold`)"
    )


# --- equations ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Equation:
    """One checked step 'expression = value' of a trajectory; offsets are characters of the whole
    text.
    """

    start: int  # of the expression
    equals: int  # of the '='
    value_start: int
    value_end: int
    value: Fraction


def equations(text: str) -> list[Equation]:
    """The steps of a trajectory whose arithmetic is right as written; units, currency and words are
    read over.
    """
    found = []
    for match in _EQUALS.finditer(text):
        for start in _expression_starts(text, _line_start(text, match.start()), match.start()):
            if evaluate(text[start : match.start()]) == value(match.group(1)):
                found.append(
                    Equation(
                        start, match.start(), match.start(1), match.end(1), value(match.group(1))
                    )
                )
                break
    return found


def _line_start(text: str, end: int) -> int:
    """Where the part of a sentence begins that ends at an '='."""
    marks = ((text.rfind(mark, 0, end), len(mark)) for mark in ("\n", ". ", ", ", ": ", "="))
    return max(at + width if at >= 0 else 0 for at, width in marks)


def _expression_starts(text: str, start: int, end: int) -> list[int]:
    """Where the expression before '=' may begin: at each number and opening bracket, the longest
    reading first.
    """
    return [start + m.start() for m in re.finditer(r"\(|\d[\d,.]*", text[start:end])]


def evaluate(expression: str) -> Fraction | None:
    """Value of an arithmetic expression with words, units and currency in it; None where it is not
    arithmetic.
    """
    # 'miles/hour'
    cleaned = re.sub(r"/\s*[A-Za-z]+|[A-Za-z]+/[A-Za-z]+", " ", expression.replace(",", ""))
    cleaned = re.sub(r"(?<=\d)\s*[x×]\s*(?=[\d($£€])", "*", cleaned)
    cleaned = re.sub(r"[A-Za-z$£€']+", " ", cleaned)
    cleaned = re.sub(r"(\d+(?:\.\d+)?)\s*%", r"(\1/100)", cleaned)
    if not re.search(r"[-+*/]", cleaned) or re.search(r"\*\*|//", cleaned):
        return None
    try:
        return _fold(ast.parse(cleaned.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None


def _fold(node: ast.AST) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return Fraction(str(node.value))
    if isinstance(node, ast.BinOp):
        left, right = _fold(node.left), _fold(node.right)
        match node.op:
            case ast.Add():
                return left + right
            case ast.Sub():
                return left - right
            case ast.Mult():
                return left * right
            case ast.Div():
                return left / right
    raise ValueError(f"{ast.dump(node)} is no arithmetic")
