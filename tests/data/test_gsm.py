"""Questions, their gold trajectories, and what is read from these: numbers and steps."""

import re
from fractions import Fraction

import pytest
import reasoning_gym

from tml_lib.data import gsm
from tml_lib.records import Question


def numbers(text):
    return [Fraction(n.replace(",", "")) for n in re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", text)]


# --- questions ------------------------------------------------------------------------------------


def test_gsm_symbolic_is_fixed_by_its_seed():
    assert gsm.gsm_symbolic(5, seed=3) == gsm.gsm_symbolic(5, seed=3)
    assert {q.text for q in gsm.gsm_symbolic(5, seed=3)}.isdisjoint(
        q.text for q in gsm.gsm_symbolic(5, seed=4)
    )


def test_the_first_questions_do_not_depend_on_how_many_are_asked_for(questions):
    assert gsm.gsm_symbolic(7, seed=0) == questions[:7]


def test_questions_have_distinct_ids_and_several_templates(questions):
    assert len({q.id for q in questions}) == 200
    assert 50 < len({q.template for q in questions}) <= 100


def test_every_gold_trajectory_states_the_answer_and_no_format_marker(questions):
    for question in questions:
        gold = gsm.gold(question)
        assert (gold.kind, gold.correct, gold.answer) == ("gold", True, question.answer)
        assert Fraction(question.answer) in numbers(gold.text)
        assert "####" not in gold.text


def test_52_of_the_first_2000_questions_have_a_false_step_and_are_left_out():
    passed, kept = {}, []
    for seed in range(4):
        passed |= gsm.left_out(500, seed)
        kept += gsm.gsm_symbolic(500, seed)
    places = {(seed, int(place) % 10**6) for _, seed, place in map(_parts, passed)}
    assert len(places) == 52
    assert any(step.endswith("= -1") for step in passed.values()), "an age of minus one year"
    assert not any(gsm.fault(gsm.gold(question).text) for question in kept)
    assert len({question.id for question in kept}) == 2000
    # what took a place has a later draw's number
    drawn_again = {
        (s, int(p) % 10**6) for _, s, p in map(_parts, (q.id for q in kept)) if int(p) >= 10**6
    }
    assert drawn_again == places


def _parts(name):
    return name.split("/")


def test_questions_are_those_of_reasoning_gym_and_a_redrawn_one_keeps_its_template(questions):
    data = reasoning_gym.create_dataset("gsm_symbolic", size=200, seed=0)
    passed = {int(name.split("/")[-1]) for name in gsm.left_out(200, 0)}
    for place, question in enumerate(questions):
        assert question.template == str(data.task_indices[place])
        assert (question.text == data[place]["question"]) == (place not in passed)


@pytest.mark.parametrize(
    "text",
    [
        "3 + 4 = 8",
        "first 3 + 4 = 7, then 7 * 2 = 15",
        "he writes 1188/60=19 hours",
        "it takes her 15÷2/5=37 minutes",
        "100% - 20% = 70% of it",
        "so 9 - 10 = -1 years",
        "1,000 + 1 = 1,002",
    ],
)
def test_a_false_step_is_found(text):
    assert gsm.fault(text) == gsm.fault(f"All is well.\n{text} and so on") != ""


@pytest.mark.parametrize(
    "text",
    [
        "3 + 4 = 7",
        "we get 2x+140=198",
        "x = 5 and 6 = 6",
        "a perimeter of 2(62+18) = 160",
        "it takes her 10÷1/2=20 minutes",
        "14/56 = 1/4 blocks",
        "100% - 20% = 80% of it",
        "85 spools / 250 spools * 100% = 34%",
        "her 42 questions x 50/100 = 21 points",
        "15 x 0.6666666666666666 = 10.0 liters",
        "14.000000000000004 - 7 - 1/3 = 6.6666666666666705 hours",
        "20 / 2 = 5 + 5 = 10",
    ],
)
def test_a_right_step_and_what_is_no_arithmetic_are_no_fault(text):
    assert gsm.fault(text) == ""


def test_fewer_than_one_question_is_refused():
    with pytest.raises(ValueError, match="n=0"):
        gsm.gsm_symbolic(0)


def test_a_question_without_gold_says_so():
    with pytest.raises(LookupError, match=r"question mine/0 carries no gold.*hub\.right_as_gold"):
        gsm.gold(Question("mine/0", "What is 1 + 1?", "2", "0"))


# --- reading numbers and equations ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "answer", "wanted"),
    [
        ("makes 69.0 in all", "69", 6),
        ("pays $1,234 now", "1234", 6),
        ("128 or 12.5 or 0.12 or 3.12", "12", None),
        ("128, then 12.", "12", 10),
        ("twelve x12 12x", "12", None),
        ("first 7, again 7", "7", 6),
        ("the answer is 25", "025", 14),
        ("so it is x+1 here", "x+1", 9),
        ("so it is x here", "y", None),
        ("so it is exact, x", "x", 16),
        ("so x+12 or x+1.5", "x+1", None),
        ("Consider option A. The answer is C.", "C", 33),
        ("Consider option A. The answer is C.", "A", None),
        ("A cat, so \\boxed{\\text{A}}", "A", 23),
        ("$1{,}234$", "1234", 1),
        ("1\\,234 km", "1234", 0),
        ("x_{12} = 5", "12", None),
        ("x_12 or 2^{12} or 2^12", "12", None),
        ("at 12:30", "12", None),
        ("at 12:30", "30", None),
        ("in the ratio 58:25", "58", 13),
        ("it is 1.2 \\times 10^3", "1200", 6),
        ("it is 2 1/2", "2.5", 6),
        ("it is 2 1/2", "2", None),
        ("it is \\frac{1}{2}", "0.5", 6),
        ("it is -$12", "12", None),
        ("it is -$12", "-12", 6),
        ("20 - 12 = 8", "12", 5),
        ("it is **12**.", "12", 8),
        ("weighs 12kg", "12", 7),
        ("it costs 1,234", "1{,}234 dollars", 9),
    ],
)
def test_first_mention_is_by_value(text, answer, wanted):
    assert gsm.first_mention(text, answer) == wanted


def test_a_decimal_with_its_unit_does_not_mention_its_whole_part():
    assert gsm.first_mention("weighs 12.5kg", "12") is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("so 3 + 4 = 7 apples", 7),
        ("he works 6 days/week * 2 weeks/month = 12 days/month", 12),
        ("fee is $400,000 x 8/100 = $32,000.", 32000),
        ("She pays £1.50*3 = £4.50 now", Fraction("4.5")),
        ("that is 100% - 20% = 0.8 of it", Fraction("0.8")),
        ("leaves 20% * 50 = 10", 10),
        ("makes 4×5=20", 20),
        ("so (2 + 3) * 4 = 20", 20),
        ("a total of 15.0 + 8.0 = 23.0 liters", 23),
    ],
)
def test_a_right_step_is_found_through_units_and_currency(text, value):
    (found,) = gsm.equations(text)
    assert found.value == value
    assert text[found.equals] == "="
    assert Fraction(text[found.value_start : found.value_end].replace(",", "")) == value


@pytest.mark.parametrize(
    "text",
    ["3 + 4 = 8", "13 + 4 = 7", "7 = 7", "x = 5", "2**3 = 8", "7//2 = 3", "4/0 = 0", "12 a = 1 b"],
)
def test_what_is_no_right_arithmetic_is_skipped(text):
    assert gsm.equations(f"so {text}") == []


@pytest.mark.parametrize(("text", "values"), [("3 + 4 = 7", [7]), ("13 + 4 = 7", [])])
def test_an_equation_may_open_the_text(text, values):
    assert [e.value for e in gsm.equations(text)] == values


def test_a_chain_of_equalities_gives_one_step_per_expression():
    assert [
        e.value for e in gsm.equations("so 2 + 3 = 5.\nThen 20 / 2 = 5 + 5 = 10, then 8 - 4 = 4")
    ] == [5, 10, 4]
