"""The reward of on-policy training, R(y', y) of RaML Eq. 21, for texts of any model and for the
tiny reasoner's.

A reward looks at a sampled text up to its end token, without it; a text that was cut off is scored
as it stands. Deviations from the paper, which does not say what 'the format' is: it is the kit's
own, one box at the end of the text; and the tiny reasoner must write the whole answer template, to
the letter.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from tml_lib import checks
from tml_lib.data import program_grading
from tml_lib.lm import answers
from tml_lib.lm.answers import ANSWER_TEMPLATE

BOX = "\\boxed"
# what ends a formula, bold print or a sentence
_CLOSING = re.compile(r"(?:\s|\$|\\\)|\\\]|\*|\.)*")


def eq21(answer_right: bool, format_right: bool) -> float:
    """R(y', y) of RaML Eq. 21: 1 right in the right format, 0 wrong in it, -0.5 right in another,
    -1 wrong in another.
    """
    if format_right:
        return 1.0 if answer_right else 0.0
    return -0.5 if answer_right else -1.0


def text_reward(
    text: str, answer: str, *, grade: Callable[[str, str], bool] = answers.grade
) -> float:
    """RaML Eq. 21 for a text that ends in a box, its answer compared by `answers.grade`.

    Right answer: `answers.grade`, which reads the last whole box and, where there is none, the
        number that the text ends in. Right
    format: `boxed_at_the_end`. grade: (text, answer) -> right or not, such as
    `Grader(seconds).grade`; the default gives up after 5 seconds, counts what it cannot parse as
    wrong, and works from any thread. Raises TypeError for a text or answer that is no string.
    """
    checks.texts(text=text, answer=answer)
    return eq21(grade(text, answer), boxed_at_the_end(text))


def boxed_at_the_end(text: str) -> bool:
    """Whether '\\boxed' stands in the text once, has its braces closed around something, and is the
    last thing in it.

    Behind its closing brace may stand blanks and what ends a formula, bold print or a sentence:
    '$', '\\)', '\\]', '*', '.'.
    """
    checks.texts(text=text)
    box = re.search(r"\\boxed\s*\{", text)
    if box is None or text.count(BOX) != 1:
        return False
    start = box.end() - 1
    depth = 0
    for brace in re.finditer(r"[{}]", text[start:]):
        depth += 1 if brace.group() == "{" else -1
        if depth == 0:
            inside = text[start + 1 : start + brace.start()]
            return (
                bool(inside.strip()) and _CLOSING.fullmatch(text, start + brace.end()) is not None
            )
    return False


def program_reward(text: str, answer: str) -> float:
    """RaML Eq. 21 for the tiny reasoner, its answer compared word by word.

    Right format: `in_template`. Right answer: with a box in the text `program_grading.graded`, the
    words of the last box up to its first '}'; without one the text's last words, a closing '.' or
    '}' aside.
    """
    checks.texts(text=text, answer=answer)
    right = program_grading.graded(text, answer) if BOX + "{" in text else _ends_in(text, answer)
    return eq21(right, in_template(text))


def in_template(text: str) -> bool:
    """Whether a text ends in the answer template, at least one word and '}', and has no other
    template, box or brace.

    Blanks behind the '}' do not count. What stands before the template is the trajectory, of any
    form, and may be empty.
    """
    checks.texts(text=text)
    before, found, rest = text.partition(ANSWER_TEMPLATE)
    words, closed, after = rest.partition("}")
    heading = ANSWER_TEMPLATE.split("\\")[0].strip()
    alone = not any(mark in before + words for mark in (BOX, heading, "{", "}"))
    return bool(found and closed and words.strip()) and alone and not after.strip()


def _ends_in(text: str, answer: str) -> bool:
    """Whether the last words of a text are the answer's."""
    words, wanted = text.replace("}", " } ").split(), answer.split()
    while words and words[-1] in (".", "}"):
        words.pop()
    return bool(wanted) and words[-len(wanted) :] == wanted
