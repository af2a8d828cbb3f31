"""The wrong and control trajectories made from gold ones."""

import re
from collections import Counter
from fractions import Fraction

import pytest

from tml_lib.data import gsm, gsm_variants
from tml_lib.records import Question, Trajectory

PENS = Question(
    "pens",
    "Ann has 3 boxes of 4 pens and buys 5 more. She sells all pens for $2 each. How many dollars"
    " does she get?",
    "34",
    "hand",
    (
        Trajectory(
            "She has 3 x 4 = 12 pens.\nWith 5 more, 12 pens + 5 = 17 pens.\nShe gets 17 * $2 ="
            " $34.",
            "gold",
            "34",
            True,
        ),
    ),
)
PENS_17 = PENS.trajectories[0].text.index("17")


def by_hand(gold, answer="34", text=PENS.text):
    return Question("hand", text, answer, "hand", (Trajectory(gold, "gold", answer, True),))


def numbers(text):
    return [Fraction(n.replace(",", "")) for n in re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", text)]


@pytest.fixture(scope="module")
def corrupted(questions):
    """(question, corrupted gold) for every one of the 200 questions that can be corrupted."""
    pairs = [(q, gsm_variants.corrupt(q, seed=0)) for q in questions]
    return [(q, wrong) for q, wrong in pairs if wrong is not None]


# --- corrupted gold -------------------------------------------------------------------------------


def test_a_value_that_is_also_a_well_known_constant_is_left_alone():
    # never the 12
    assert {gsm_variants.corrupt(PENS, seed).first_error for seed in range(40)} == {PENS_17}


def test_a_hand_example_is_corrupted_in_one_value_and_carried_on(monkeypatch):
    monkeypatch.setattr(gsm_variants, "_CONSTANTS", set())
    seen = set()
    for seed in range(40):
        wrong = gsm_variants.corrupt(PENS, seed)
        pens, more = map(int, re.findall(r"= (\d+) pens", wrong.text))
        seen.add(wrong.first_error)
        if wrong.first_error == len("She has 3 x 4 = "):
            assert (pens != 12, more) == (True, pens + 5)
        else:
            assert (pens, more != 17) == (12, True)
        text = (
            f"She has 3 x 4 = {pens} pens.\nWith 5 more, {pens} pens + 5 = {more} pens.\nShe gets"
            f" {more} * $2 = ${2 * more}."
        )
        assert wrong == Trajectory(text, "corrupted", str(2 * more), False, wrong.first_error)
        assert 2 * more != 34
    assert seen == {16, PENS_17}  # both intermediate values get their turn


def test_a_value_that_stands_in_the_question_is_never_the_corrupted_one():
    question = by_hand(gsm.gold(PENS).text, text=PENS.text + " Bob has 12 pens.")
    assert {gsm_variants.corrupt(question, seed).first_error for seed in range(40)} == {PENS_17}


@pytest.mark.parametrize(
    "gold",
    [
        "She has 3 x 4 = 13 pens.\n12 + 5 = 17.\n17 * 2 = 34.",  # a step that is wrong already
        "She has 3 x 4 = 12 pens.\n12 + 5 = 17.",  # the answer is no step's result
        "It is 2 * 17 = 34.",  # no intermediate step
        # the answer does not depend on the intermediate step
        "She has 3 x 4 = 12 pens.\nShe gets 17 * $2 = $34.",
        "She has n = 12 pens.\n12 + 5 = 17.\n17 * 2 = 34.",  # a step that is no arithmetic
    ],
)
def test_gold_that_cannot_be_corrupted_soundly_gives_none(gold):
    assert gsm_variants.corrupt(by_hand(gold)) is None


def test_gold_without_equations_gives_none():
    assert (
        gsm_variants.corrupt(
            by_hand("Three boxes of four pens and five more make thirty-four dollars.")
        )
        is None
    )


def test_most_questions_can_be_corrupted(corrupted):
    assert len(corrupted) > 100
    assert {(wrong.kind, wrong.correct) for _, wrong in corrupted} == {("corrupted", False)}


def test_corruption_makes_exactly_one_step_false(corrupted):
    for question, wrong in corrupted:
        right_before, right_after = (
            gsm.equations(gsm.gold(question).text),
            gsm.equations(wrong.text),
        )
        assert len(right_before) == wrong.text.count("=") == len(right_after) + 1
        assert wrong.first_error not in {step.value_start for step in right_after}


def test_simple_steps_of_corrupted_text_are_right_but_for_the_first_error(corrupted):
    checked = 0
    operations = {
        "+": Fraction.__add__,
        "-": Fraction.__sub__,
        "*": Fraction.__mul__,
        "/": Fraction.__truediv__,
    }
    for _, wrong in corrupted:
        # the whole expression is two bare numbers; counted here without the library's own reader
        for step in re.finditer(
            r"(?:^|[a-z] )(\d+) ?([-+*/]) ?(\d+) ?= ?(\d+)(?![\d.,]*\d)", wrong.text, re.MULTILINE
        ):
            a, b, stated = (Fraction(step[k]) for k in (1, 3, 4))
            assert (operations[step[2]](a, b) == stated) == (step.start(4) != wrong.first_error), (
                wrong.text
            )
            checked += 1
    assert checked > 50


def test_corrupted_text_equals_gold_up_to_the_error_and_differs_there(corrupted):
    for question, wrong in corrupted:
        gold = gsm.gold(question).text
        assert wrong.text[: wrong.first_error] == gold[: wrong.first_error]
        assert numbers(wrong.text[wrong.first_error :])[0] != numbers(gold[wrong.first_error :])[0]


def test_corrupted_text_ends_in_a_wrong_answer_that_it_names(corrupted):
    for question, wrong in corrupted:
        assert Fraction(wrong.answer) != Fraction(question.answer)
        stated = re.findall(r"=\s*[$£€]?\s*(\d[\d,]*(?:\.\d+)?)", wrong.text)[-1]
        assert Fraction(stated.strip(",").replace(",", "")) == Fraction(wrong.answer)


def test_corruption_is_fixed_by_its_seed(corrupted):
    assert all(
        gsm_variants.corrupt(question, seed=0) == wrong for question, wrong in corrupted[:40]
    )
    assert any(
        gsm_variants.corrupt(question, seed=1) != wrong for question, wrong in corrupted[:40]
    )


def words(text):
    return re.sub(r"\d+(?:,\d{3})*(?:\.\d+)?", "#", text)


def test_corruption_changes_numbers_only(corrupted):
    changed = [q.id for q, wrong in corrupted if words(gsm.gold(q).text) != words(wrong.text)]
    assert changed == []


# --- controls -------------------------------------------------------------------------------------


def test_shuffled_gold_holds_the_same_steps_in_another_order(questions):
    found = [(gsm.gold(q).text, gsm_variants.shuffle_steps(q)) for q in questions]
    shuffled = [(gold, made) for gold, made in found if made is not None]
    assert len(shuffled) > 80
    for gold, made in shuffled:
        assert Counter(made.text.split("\n")) == Counter(gold.split("\n"))
        assert made.text != gold
        assert (made.kind, made.correct) == ("shuffled", None)


def test_shuffling_keeps_everything_from_the_step_that_states_the_answer(questions):
    for question in questions:
        lines, made = gsm.gold(question).text.split("\n"), gsm_variants.shuffle_steps(question)
        first = next(
            k for k, line in enumerate(lines) if Fraction(question.answer) in numbers(line)
        )
        assert (made is None) == (first < 2 or len(set(lines[:first])) == 1)
        assert made is None or made.text.split("\n")[first:] == lines[first:]


def test_shuffling_is_fixed_by_its_seed(questions):
    made = [[gsm_variants.shuffle_steps(q, seed) for q in questions[:40]] for seed in (0, 0, 1)]
    assert made[0] == made[1] != made[2]


def test_foreign_text_is_of_other_templates_and_never_states_the_answer(questions):
    for question in questions[:100]:
        made = gsm_variants.foreign(question, questions)
        assert (made.kind, made.answer) == ("foreign", None)
        assert Fraction(question.answer) not in numbers(made.text)
        own = {
            line
            for q in questions
            if q.template == question.template
            for line in gsm.gold(q).text.split("\n")
        }
        others = {
            line
            for q in questions
            if q.template != question.template
            for line in gsm.gold(q).text.split("\n")
        }
        lines = set(made.text.split("\n"))
        assert lines <= others
        assert not lines & (own - others)
        assert len(made.text) >= 2 * len(gsm.gold(question).text)


def test_foreign_text_needs_another_template(questions):
    with pytest.raises(LookupError, match=questions[0].answer):
        gsm_variants.foreign(
            questions[0], [q for q in questions if q.template == questions[0].template]
        )
