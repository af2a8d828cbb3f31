"""The exercise of the notebook to try things in: its solution passes, known mistakes get their
hint.
"""

import math
import re

import nbformat
import pytest

from tml_lib.lessons import notebooks
from tml_lib.lessons.exercises import try_it


def test_the_solution_in_the_notebook_passes():
    (book,) = notebooks.select(["18"])
    text = "\n".join(cell.source for cell in nbformat.read(book.path, as_version=4).cells)
    (code,) = re.findall(r"```python\n(import math.*?)\nexercises\.", text, re.DOTALL)
    held = {}
    exec(code, held)
    assert try_it.check_times_likelier(held["solution"]) is True


@pytest.mark.parametrize(
    ("attempt", "said"),
    [
        (lambda r, w: math.exp(w[0] - r[0]), "compares the means"),
        (lambda r, w: math.exp(r[0] * r[1] - w[0] * w[1]), "the *wrong* one"),
        (lambda r, w: w[0] * w[1] - r[0] * r[1], "take exp"),
        (lambda r, w: math.exp(w[0] / w[1] - r[0] / r[1]), "do not divide"),
        (lambda r, w: 17.0, "the likelihood of an answer is"),
    ],
)
def test_known_mistakes_get_their_hint(attempt, said, capsys):
    assert try_it.check_times_likelier(attempt) is False
    assert said in capsys.readouterr().out


def test_none_attempted_says_so(capsys):
    assert try_it.check_times_likelier(None) is None
    assert "not attempted" in capsys.readouterr().out
