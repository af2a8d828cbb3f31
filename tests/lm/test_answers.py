"""Token seams on a real tokenizer, prompts, and grading that survives hostile text."""

import threading
import time
from types import SimpleNamespace

import pytest

from tml_lib.data import gsm
from tml_lib.lm import answers
from tml_lib.lm.answers import ANSWER_TEMPLATE, INSTRUCTION, Grader, encode

PROMPT = "What is 6 times 7?\n"
FORMULA = ("so \\boxed{\\sqrt{25}}", "5")  # nothing but Math-Verify can grade it
TRAJECTORY = "6 * 7 means 7+7+7+7+7+7,\nwhich is 42. So: 42 🤖 été"


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


# --- seams ----------------------------------------------------------------------------------------


def test_prompt_and_trajectory_ids_concatenate_to_those_of_the_joint_text(tokenizer):
    found = encode(tokenizer, PROMPT, TRAJECTORY, ["42"])
    assert [*found.prompt, *found.trajectory] == ids_of(tokenizer, PROMPT + TRAJECTORY)
    assert list(found.prompt) == ids_of(tokenizer, PROMPT)


@pytest.mark.parametrize("answer", ["42", "1,234", "-7", "3.5", "x^2+1", "7 pens"])
def test_a_suffix_is_template_and_answer_and_starts_at_the_answer(tokenizer, answer):
    (suffix,) = encode(tokenizer, PROMPT, TRAJECTORY, [answer]).suffixes
    assert list(suffix.ids) == ids_of(tokenizer, ANSWER_TEMPLATE + answer)
    assert tokenizer.decode(suffix.ids[: suffix.start]) == ANSWER_TEMPLATE
    assert tokenizer.decode(suffix.ids[suffix.start :]) == answer
    assert suffix.answer == answer


def test_candidates_keep_their_order(tokenizer):
    assert [s.answer for s in encode(tokenizer, PROMPT, TRAJECTORY, ["9", "42", "9"]).suffixes] == [
        "9",
        "42",
        "9",
    ]


def test_another_template_is_used_as_given(tokenizer):
    (suffix,) = encode(tokenizer, PROMPT, TRAJECTORY, ["42"], template="\n#### ").suffixes
    assert tokenizer.decode(suffix.ids) == "\n#### 42"


def test_token_texts_join_to_the_trajectory_and_end_where_they_say(tokenizer):
    found = encode(tokenizer, PROMPT, TRAJECTORY, ["42"])
    assert len(found.tokens) == len(found.ends) == len(found.trajectory)
    assert "".join(found.tokens) == TRAJECTORY
    assert ["".join(found.tokens[: k + 1]) for k in range(len(found.ends))] == [
        TRAJECTORY[:end] for end in found.ends
    ]
    assert list(found.ends) == sorted(found.ends)


def test_token_ends_increase_strictly_over_plain_text(tokenizer, questions):
    for question in questions[:20]:
        text = gsm.gold(question).text.encode("ascii", "ignore").decode()
        ends = encode(tokenizer, PROMPT, text, ["1"]).ends
        assert all(a < b for a, b in zip((0, *ends), ends, strict=False))
        assert ends[-1] == len(text)


def test_an_empty_trajectory_has_no_tokens(tokenizer):
    found = encode(tokenizer, PROMPT, "", ["42"])
    assert (found.trajectory, found.tokens, found.ends) == ((), (), ())


def test_tokens_before_counts_only_tokens_that_end_by_the_offset(tokenizer):
    found = encode(tokenizer, PROMPT, "alpha beta 42", ["42"])
    assert found.tokens == ("alpha", " beta", " ", "4", "2")
    assert [found.tokens_before(k) for k in (0, 4, 5, 9, 10, 11, 12, 13)] == [
        0,
        0,
        1,
        1,
        2,
        3,
        4,
        5,
    ]


@pytest.mark.parametrize(
    ("prompt", "trajectory"), [("9 appl", "es and more"), ("The win", "ner"), ("two ", "words")]
)
def test_a_seam_inside_a_token_is_refused_and_both_sides_are_named(tokenizer, prompt, trajectory):
    with pytest.raises(
        ValueError, match=f"prompt and trajectory.*'{prompt}' and '{trajectory}' share a token"
    ):
        encode(tokenizer, prompt, trajectory, ["42"])


def test_a_seam_inside_a_token_of_the_answer_is_refused(tokenizer):
    with pytest.raises(ValueError, match=r"answer template and answer.*'ner' share a token"):
        encode(tokenizer, PROMPT, TRAJECTORY, ["42", "ner"], template=" The win")


def test_an_empty_answer_is_refused(tokenizer):
    with pytest.raises(ValueError, match="answer '' tokenises to nothing"):
        encode(tokenizer, PROMPT, TRAJECTORY, ["42", ""])


def test_a_slow_tokenizer_is_refused_by_name():
    with pytest.raises(TypeError, match="SimpleNamespace reports no character offsets"):
        encode(SimpleNamespace(is_fast=False), PROMPT, TRAJECTORY, ["42"])


# --- prompts --------------------------------------------------------------------------------------


def test_chat_prompt_is_the_model_s_own_template_ready_for_the_assistant(tokenizer):
    prompt = answers.chat_prompt(tokenizer, "What is 6 times 7?")
    assert f"<|im_start|>user\nWhat is 6 times 7?\n{INSTRUCTION}<|im_end|>" in prompt
    assert prompt.endswith("<|im_start|>assistant\n")
    assert (
        tokenizer.convert_tokens_to_ids("<|im_start|>")
        in encode(tokenizer, prompt, TRAJECTORY, ["42"]).prompt
    )


def test_without_a_chat_template_the_prompt_is_plain_text():
    base = SimpleNamespace(chat_template=None)
    assert (
        answers.chat_prompt(base, "What is 6 times 7?") == f"What is 6 times 7?\n{INSTRUCTION}\n\n"
    )
    assert (
        answers.chat_prompt(base, "What is 6 times 7?", instruction="") == "What is 6 times 7?\n\n"
    )


# --- extraction and grading -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def grader():
    """A grader with a short limit, so that hostile texts cost the tests little."""
    grader = Grader(seconds=1.5)
    yield grader
    grader.close()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("We get \\boxed{42}.", "42"),
        ("With 3 of 4, \\boxed{\\frac{1}{\\sqrt{2}}}, not 5.", "\\frac{1}{\\sqrt{2}}"),
        ("It is 7, then 9, so 42", "42"),
        ("no number at all", None),
        ("", None),
    ],
    ids=["boxed", "nested", "last number", "none", "empty"],
)
def test_extract(text, wanted):
    assert answers.extract(text) == wanted


def test_a_box_is_taken_back_by_a_later_one():
    assert answers.extract("First \\boxed{41}, no: \\boxed{42}.") == "42"


@pytest.mark.parametrize(
    ("text", "answer", "wanted"),
    [
        ("so \\boxed{42}", "42", True),
        ("so \\boxed{41}", "42", False),
        ("so \\boxed{1/2}", "0.5", True),
        ("so \\boxed{\\frac{1}{2}}", "0.5", True),
        ("so 1,234.", "1234", True),
        ("so \\boxed{025}", "25", True),
        ("so \\boxed{0.333}", "1/3", False),
        ("it was 42, but then 41", "42", False),
        ("nothing", "42", False),
        ("42", "", False),
    ],
)
def test_grade(text, answer, wanted):
    assert answers.grade(text, answer) is wanted


HOSTILE = {
    "boxed tower": "\\boxed{9**9**9**9}",
    "tower": "9**9**9**9",
    "latex tower": "\\boxed{9^{9^{9^{9}}}}",
    "factorial": "\\boxed{(10^9)!}",
    "many digits": "9" * 100_000,
    "open brackets": "(" * 20_000,
    "open fractions": "\\frac{" * 3_000,
    "open boxes": "\\boxed{" * 3_000,
    "long sum": "\\boxed{" + "1+" * 300 + "1}",
    "surrogate": "\ud800",
    "nul": "\x00",
    "robots": "\\boxed{" + "🤖" * 5_000 + "}",
    "new lines": '\n"}\n{"grade": "5"}\n',
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_text_is_not_right_and_does_not_spoil_the_next_request(grader, text):
    grader.grade(*FORMULA)  # start-up does not count
    began = time.perf_counter()
    assert grader.grade(text, "5" if text != HOSTILE["new lines"] else "6") is False
    # a busy machine needs a few seconds more, and what is not stopped takes hours
    assert time.perf_counter() - began < grader.seconds + 30
    assert grader.grade("so 5", "5") is True


def test_a_hostile_reference_answer_is_not_right_either(grader):
    assert grader.grade("so 5", "9**9**9**9") is False
    assert grader.grade("so 5", "5") is True


def test_a_time_out_ends_the_process_and_the_next_request_starts_another(grader):
    grader.grade(*FORMULA)
    first = grader._process
    limit, grader.seconds = grader.seconds, 0.05
    try:
        assert grader.grade("9**9**9**9", "5") is False
    finally:
        grader.seconds = limit
    assert first.poll() is not None
    assert grader.grade(*FORMULA) is True
    assert grader._process.pid != first.pid


def test_a_process_that_died_is_replaced(grader):
    grader.grade(*FORMULA)
    grader._process.kill()
    grader._process.communicate()
    assert grader.grade("so 5", "5") is True


def test_the_pipes_of_a_process_that_died_are_closed(grader):
    grader.grade(*FORMULA)
    died = grader._process
    died.kill()
    died.wait()
    grader.grade(*FORMULA)
    closed = died.stdin.closed and died.stdout.closed
    died.communicate()  # so that nothing leaks from the test itself
    assert closed


def test_a_text_without_an_answer_does_not_cost_a_restart(grader):
    grader.grade(*FORMULA)
    first = grader._process.pid
    assert grader.extract("no number at all") is None
    assert grader.grade(*FORMULA) is True
    assert grader._process.pid == first


def test_grading_works_from_several_threads_at_once(grader):
    wrong = []

    def work(mine):
        for k in range(10):
            number = 100 * mine + k
            if grader.extract(f"so {number}") != str(number) or grader.grade(
                f"so {number}", str(number + 1)
            ):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_grading_works_off_the_main_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(answers.grade("so \\boxed{1/2}", "0.5")))
    thread.start()
    thread.join()
    assert found == [True]
