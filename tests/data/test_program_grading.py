"""Grading of what was written to a program: the answer, and the first fault of a trajectory."""

import random

import pytest

from tml_lib.data import program_grading, programs


@pytest.fixture(scope="module")
def asked():
    return programs.questions(150, 3, "held_out")


def test_grading_is_exact_and_takes_the_last_box():
    assert program_grading.graded("c=1 \n\n**Final Answer**\n\\boxed{ a=1 b=2 } <end>", "a=1 b=2")
    assert program_grading.graded("\\boxed{a=3 b=2} \\boxed{a=1 b=2}", "a=1 b=2")
    for text in (
        "a=1 b=2",
        "\\boxed{b=2 a=1}",
        "\\boxed{a=1}",
        "\\boxed{a=1 b=2 c=3}",
        "\\boxed{a=1 b=2} \\boxed{}",
        "",
    ):
        assert not program_grading.graded(text, "a=1 b=2")


# --- faults ---------------------------------------------------------------------------------------

TWO_STEPS = "a=1\nb:= a+2\nc:= b*2\n?c"
END = " \n\n**Final Answer**\n\\boxed{ c=6 }"


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        ("b:= a+2 a=1 b=3 . c:= b*2 b=3 c=6 .", "none"),
        ("b:= a+2 a=1 b=5 Wait b=3 . c:= b*2 b=3 c=6 .", "none"),
        ("c:= b*2 b=? Alternatively b:= a+2 a=1 b=3 . c:= b*2 b=3 c=6 .", "none"),
        ("b:= a+2 b=3 c:= b*2 c=6", "none"),
        ("b:= a+2 a=1 b=5 . c:= b*2 b=5 c=3 .", "value"),
        ("b:= a+3 a=1 b=3 .", "recital"),
        ("d:= a+2 a=1", "recital"),
        ("b:= a+2 a=2 b=4 .", "operand"),
        ("c:= b*2 b=3 c=6 .", "too early"),
        ("c:= b*2 c=6", "too early"),
        ("b:= a+2 a=? Alternatively", "too early"),
        ("b:= a+2 a=1 b=3 .", "incomplete"),
        ("", "incomplete"),
        ("a=1 b=3", "garbled"),
        ("b:= a+2 a=1 f=3 .", "garbled"),
    ],
)
def test_the_first_fault_of_a_trajectory_is_found(written, kind):
    assert program_grading.fault(programs.parse(TWO_STEPS), written + END) == kind


def test_an_answer_that_was_not_computed_is_a_fault_of_its_own():
    written = "b:= a+2 a=1 b=3 . c:= b*2 b=3 c=6 ."
    for end in (END.replace("c=6", "c=5"), END.partition("\\boxed")[0], ""):
        assert program_grading.fault(programs.parse(TWO_STEPS), written + end) == "answer"


@pytest.mark.parametrize(
    "style", ["plain", "short", "self_correcting", "exploring", "long", "wrong"]
)
def test_faults_are_found_in_wrong_trajectories_and_in_no_others(asked, style):
    for seed, question in enumerate(asked):
        written = programs.trajectory(programs.parse(question.text), style, random.Random(seed))
        end = f" \\boxed{{ {written.answer} }}"
        assert program_grading.fault(programs.parse(question.text), written.text + end) == (
            "value" if style == "wrong" else "none"
        )
