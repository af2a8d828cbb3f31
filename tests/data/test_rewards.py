"""The reward of Eq. 21: every branch, for both kinds of text, and texts that a model should never
write but will.
"""

import threading
import time

import pytest

from tml_lib.data import program_grading, programs, rewards, tiny
from tml_lib.data.rewards import eq21, program_reward, text_reward
from tml_lib.lm.answers import ANSWER_TEMPLATE, Grader

ANSWER = "a=5 c=6"
FORMULA = ("so \\boxed{\\sqrt{25}}", "5")  # nothing but Math-Verify can grade it
STEPS = "a:= d+2 d=3 a=5 . c:= h*4 h=5 c=6 ."
FULL = f"{STEPS} {ANSWER_TEMPLATE} {ANSWER} }}"


@pytest.fixture(scope="module")
def grader():
    """A grader with a short limit, warmed up, so that hostile texts cost the tests little."""
    grader = Grader(seconds=0.6)
    grader.grade(*FORMULA)
    yield grader
    grader.close()


@pytest.mark.parametrize(
    ("answer_right", "format_right", "wanted"),
    [(True, True, 1), (False, True, 0), (True, False, -0.5), (False, False, -1)],
)
def test_the_four_values_of_equation_21(answer_right, format_right, wanted):
    assert eq21(answer_right, format_right) == wanted
    assert isinstance(eq21(answer_right, format_right), float)


def test_right_in_the_right_format_is_best_and_a_right_answer_never_costs():
    for format_right in (True, False):
        assert eq21(True, format_right) > eq21(False, format_right)
    # the paper's order: the format counts for more than the answer
    assert eq21(False, True) > eq21(True, False)


# --- texts ----------------------------------------------------------------------------------------

TEXTS = [
    ("so \\boxed{42}", 1),
    ("so \\boxed{42}\n", 1),
    ("so $\\boxed{42}$.", 1),
    ("so \\[\\boxed{42.0}\\]", 1),
    ("\n\n**Final Answer**\n\\boxed{42}", 1),
    ("so \\boxed{\\frac{84}{2}}", 1),
    ("so \\boxed{{42}}", 1),
    ("so \\boxed{41}", 0),
    ("it is 42, no, \\boxed{41}", 0),
    ("so \\boxed{\\frac{1}{\\sqrt{2}}}", 0),
    ("so it is 42", -0.5),
    ("\\boxed{42} since 6 * 7 is that", -0.5),
    ("\\boxed{42}, \\boxed{42}", -0.5),
    ("first \\boxed{41}, no: \\boxed{42}", -0.5),
    ("\\boxed{42} and \\boxed", -0.5),
    ("\\boxed 5 \\boxed{42}", -0.5),
    ("\\boxed{42} is my answer and yours \\text{?}", -0.5),
    ("first \\boxed{42}, no: \\boxed{41}", -1),
    ("first \\boxed{42}, so 41", -0.5),  # the last box counts, as in `answers.grade`
    ("so it is 41", -1),
    ("\\boxed{}", -1),
    ("\\boxed{ }", -1),
    ("", -1),
    (" \n\t ", -1),
    ("so \\boxed{41", -1),
    ("so \\boxed{{41}", -1),
    ("\\fbox{42} or 41", -1),
]


@pytest.mark.parametrize(("text", "wanted"), TEXTS, ids=[text for text, _ in TEXTS])
def test_the_reward_of_a_text(text, wanted, grader):
    assert text_reward(text, "42", grade=grader.grade) == wanted


def test_a_blank_before_the_brace_of_a_box_does_not_count(grader):
    assert text_reward("so it is \\boxed {7}.", "7", grade=grader.grade) == 1.0


@pytest.mark.parametrize("text", [None, 5, 1.5, b"5", ["5"], True], ids=repr)
def test_what_is_no_text_is_refused_by_name(text):
    kind = type(text).__name__
    for reward in (text_reward, rewards.program_reward):
        with pytest.raises(TypeError, match=f"text is .*, of type {kind}: give it as a string"):
            reward(text, "5")
        with pytest.raises(TypeError, match=f"answer is .*, of type {kind}"):
            reward("5", text)
    for form in (rewards.boxed_at_the_end, rewards.in_template):
        with pytest.raises(TypeError, match=f"text is .*, of type {kind}"):
            form(text)


def test_an_unclosed_box_is_never_in_the_right_format(grader):
    for text in ("so \\boxed{42", "so \\boxed{{42}", "\\boxed{" * 50 + "42"):
        assert text_reward(text, "42", grade=grader.grade) in (-0.5, -1.0)
        assert not rewards.boxed_at_the_end(text)


# --- the tiny reasoner ----------------------------------------------------------------------------

PROGRAMS = {
    "as trained": (FULL, 1),
    "blanks behind": (f"{FULL} \n ", 1),
    "no trajectory": (f"{ANSWER_TEMPLATE}{ANSWER}}}", 1),
    "any trajectory": (f"Wait . a=? {ANSWER_TEMPLATE} {ANSWER} }}", 1),
    "wrong": (FULL.replace("c=6 }", "c=5 }"), 0),
    "half": (FULL.replace("a=5 c=6 }", "a=5 }"), 0),
    "other order": (FULL.replace("a=5 c=6 }", "c=6 a=5 }"), 0),
    "one word too many": (FULL.replace("c=6 }", "c=6 c=6 }"), 0),
    "no box": (f"{STEPS} {ANSWER}", -0.5),
    "no box, a full stop": (f"{STEPS} {ANSWER} .", -0.5),
    "heading, no box": (f"{STEPS} \n\n**Final Answer**\n{ANSWER}", -0.5),
    "no heading": (f"{STEPS} \\boxed{{{ANSWER}}}", -0.5),
    "heading without its empty line": (f"{STEPS} **Final Answer**\n\\boxed{{{ANSWER}}}", -0.5),
    "not closed": (FULL.rstrip("} "), -0.5),
    "words behind": (f"{FULL} Wait", -0.5),
    "closed twice": (f"{FULL} }}", -0.5),
    "end token left in": (f"{FULL} <end>", -0.5),
    "template twice": (f"{STEPS} {ANSWER_TEMPLATE} a=0 c=0 }} {ANSWER_TEMPLATE} {ANSWER} }}", -0.5),
    "template three times": (ANSWER_TEMPLATE * 3 + ANSWER + "}", -0.5),
    "box before the trajectory": (f"{ANSWER_TEMPLATE}{ANSWER}}} {STEPS}", -0.5),
    "heading before, too": (f"**Final Answer** {FULL}", -0.5),
    "brace before": (f"}} {FULL}", -0.5),
    "right, then a wrong box": (f"{ANSWER_TEMPLATE}{ANSWER}}}{ANSWER_TEMPLATE}a=5 c=5}}", -1),
    "right, then other words": (f"{ANSWER} {STEPS}", -1),
    "trajectory only": (STEPS, -1),
    "nested braces": (f"{ANSWER_TEMPLATE}{{{ANSWER}}}}}", -1),
    "empty box": (f"{STEPS} {ANSWER_TEMPLATE} }}", -1),
    "template only": (ANSWER_TEMPLATE, -1),
    "empty": ("", -1),
    "blank": (" \n\t ", -1),
    "nul": ("\x00", -1),
    "nul in the box": (f"{ANSWER_TEMPLATE}a=5\x00 c=6}}", 0),
    "unicode": ("🤖été\ud800", -1),
    "other letters that look alike": (f"{ANSWER_TEMPLATE}а=5 c=6}}", 0),  # a Cyrillic а
    "full-width": (f"{ANSWER_TEMPLATE}a＝5 c＝6}}", 0),
}


@pytest.mark.parametrize(("text", "wanted"), PROGRAMS.values(), ids=PROGRAMS.keys())
def test_the_reward_of_a_program_s_text(text, wanted):
    assert program_reward(text, ANSWER) == wanted


def test_what_the_tokenizer_reads_back_of_a_training_row_has_the_full_reward():
    tokenizer = tiny.tokenizer()
    for question in programs.questions(20):
        ids, start = tiny.row(question.text, question.trajectories[0].text.split(), question.answer)
        assert tokenizer.decode(ids[-1:]) == "<end>"
        assert program_reward(tokenizer.decode(ids[start:-1]), question.answer) == 1
        assert (
            program_reward(tokenizer.decode(ids[start:], skip_special_tokens=True), question.answer)
            == 1
        )
        # cut before the '}'
        assert program_reward(tokenizer.decode(ids[start:-2]), question.answer) == -0.5


def test_what_the_kit_s_evaluation_calls_right_is_never_called_wrong():
    for text, reward in PROGRAMS.values():
        if program_grading.graded(text, ANSWER):
            assert reward in (1, -0.5)
        if reward == 1:
            assert program_grading.graded(text, ANSWER)


def test_an_empty_answer_is_never_right():
    assert program_reward("", "") == -1
    assert program_reward("c=6", "") == -1
    assert program_reward(f"{ANSWER_TEMPLATE} }}", "") != 1


# --- hostile texts and threads --------------------------------------------------------------------

MILLION = 1_000_000
STUCK = 30  # seconds; a busy machine needs a few, and what is not stopped takes hours
HOSTILE = {
    "tower": "9**9**9**9",
    "boxed tower": "so \\boxed{9**9**9**9}",
    "latex tower": "\\boxed{9^{9^{9^{9}}}}",
    "a million digits": "9" * MILLION,
    "a million letters boxed": "\\boxed{" + "x" * MILLION + "}",
    "a million open braces": "\\boxed{" + "{" * MILLION,
    "a million closers": "\\boxed{7}" + ".$" * (MILLION // 2) + "x",
    "many boxes": "\\boxed{" * 20_000,
    "nul": "\x00",
    "nul in the box": "\\boxed{\x00}",
    "surrogate": "\ud800\\boxed{\ud800}",
    "robots": "\\boxed{🤖}",
    "reply of the grader": '\n"}\n{"grade": "5"}\n',
    "templates": f"{ANSWER_TEMPLATE}7}}" * 100,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_text_is_not_right_and_ends_in_time(text, grader):
    grader.grade(*FORMULA)  # start-up after the end of the process does not count
    began = time.perf_counter()
    found = text_reward(text, "6", grade=grader.grade)
    assert time.perf_counter() - began < grader.seconds + STUCK
    assert found == eq21(False, rewards.boxed_at_the_end(text))
    began = time.perf_counter()
    assert program_reward(text, ANSWER) == eq21(False, rewards.in_template(text))
    assert time.perf_counter() - began < STUCK


def test_a_tower_costs_the_limit_and_no_more():
    grader = Grader(seconds=0.3)
    try:
        grader.grade(*FORMULA)
        began = time.perf_counter()
        assert text_reward("\\boxed{9^{9^{9^{9}}}}", "5", grade=grader.grade) == 0
        assert 0.3 <= time.perf_counter() - began < STUCK
        grader.seconds = 5.0
        assert text_reward("so \\boxed{5}", "5", grade=grader.grade) == 1
    finally:
        grader.close()


def test_rewards_work_off_the_main_thread():
    found = {}

    def work():
        found["text"] = [
            text_reward(text, "0.5") for text in ("\\boxed{1/2}", "\\boxed{1/3}", "so 1/2", "none")
        ]
        found["program"] = [program_reward(text, ANSWER) for text, _ in PROGRAMS.values()]

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found["text"] == [1, 0, -0.5, -1]
    assert found["program"] == [wanted for _, wanted in PROGRAMS.values()]
