"""The role study: reflections by rule, the classes of tokens, the values of C6 by hand, and a
model's own reflections.
"""

import math

import numpy as np
import pytest

from tml_lib.data import gsm, gsm_variants, programs
from tml_lib.lm.answers import chat_prompt, encode
from tml_lib.measure import token_roles
from tml_lib.measure.probe import probe
from tml_lib.studies import program_probes, trajectories


@pytest.fixture(scope="module")
def asked():
    return programs.questions(4, 50, "held_out")


# --- trajectories ---------------------------------------------------------------------------------


def test_a_programs_reflections_stand_where_they_are_said_to(asked):
    for question in asked:
        wait, other = token_roles.reflecting(question, 0)
        for one in (wait, other):
            assert one.text[one.at :].startswith(one.mark)
            assert one.instead == one.text[: one.at] + "."
            assert one.mark not in one.text[: one.at], "it is the first of its kind"
        slip, mark, right = wait.text[wait.slip : wait.repaired].split()
        assert mark == "Wait"
        assert slip[:2] == right[:2]
        assert slip != right
        assert wait.needless == f"{wait.text[: wait.slip]}{right} Wait {right}"
        assert (other.slip, other.needless) == (0, "")


def test_a_texts_reflections_stand_where_they_are_said_to():
    for question in trajectories.study_questions(30, 2):
        gold = gsm.gold(question).text
        found = gsm_variants.reflecting(question, 0)
        if found is None:
            continue
        wait, other = found
        slip, right = wait.text[wait.slip : wait.repaired].split(". Wait, ")
        assert slip != right
        assert wait.text[: wait.slip] + right + wait.text[wait.repaired :] == gold
        assert wait.needless == f"{gold[: wait.slip]}{right}. Wait, {right}"
        assert gsm.value(slip) not in {
            gsm.value(m.group()) for m in gsm.NUMBER.finditer(question.text)
        }
        assert gsm.value(slip) != gsm.value(question.answer)
        begun, rest = other.text[: other.at], other.text[other.at :]
        opening = begun.split("\n")[-1].removesuffix("? ")
        assert opening
        assert not any(c.isdigit() for c in opening), "a step given up must not tell a value"
        assert rest.startswith("Alternatively, ")
        assert begun[: len(begun) - len(opening) - 2] + rest.removeprefix("Alternatively, ") == gold
        for one in found:
            assert one.instead == one.text[: one.at] + "So"


# --- classes --------------------------------------------------------------------------------------


def test_words_have_classes_and_classes_means():
    text = "c:= h*4 h=5 c=1 Wait c=6 . d:= c+1 c=? Alternatively d:= c+1 c=6 d=0 ."
    words = text.split()
    found = [token_roles.word_class(words, k, "d=0 f=1") for k in range(len(words))]
    wanted = (
        "name operation operand slip Wait value . name operation ? Alternatively name operation"
        " operand answer ."
    )
    assert found == wanted.split()
    table = token_roles.by_class([["Wait", 1.0, 3.0], ["Wait", 2.0, 1.0], [".", 4.0, 4.0]])
    assert table["Wait"] == {
        "absolute": 1.5,
        "signed": 0.5,
        "relative": 1.25,
        "relative_median": 1.25,
        "n": 2,
    }
    assert table["."]["absolute"] == 0


def test_the_tokens_of_a_text_are_sorted_by_what_they_write(tiny_lm):
    text = "He has 28 pens. Hold on\nSo 1,231 Waiting. Wait, it is 31."
    prompt = chat_prompt(tiny_lm.tokenizer, "How many?")
    encoded = encode(tiny_lm.tokenizer, prompt, text, ["31"])
    pieces = token_roles.text_pieces(text, encoded, "31")
    covered = [k for _, first, last in pieces for k in range(first, last)]
    assert covered == list(range(len(encoded.tokens))), "every token belongs to one piece"
    spoken = {}
    for name, first, last in pieces:
        spoken.setdefault(name, []).append("".join(encoded.tokens[first:last]).strip())
    assert spoken["Hold on"] == ["Hold on"]
    assert spoken["So"] == ["So"]
    assert spoken["Wait"] == ["Wait"], "'Waiting' is no reflection"
    assert "".join(spoken["number"]) == "281231"
    assert "".join(spoken["answer"]) == "31"
    assert all(token in (".", "") for token in spoken["."])


def test_a_mark_of_several_tokens_is_one_piece(tiny_lm):
    text = "6 pens. Hold on, 7"
    encoded = encode(tiny_lm.tokenizer, "Q\n", text, ["7"])
    (piece,) = (
        piece for piece in token_roles.text_pieces(text, encoded, "7") if piece[0] == "Hold on"
    )
    assert piece[2] - piece[1] == 2
    nll = np.arange(len(encoded.tokens) + 1, dtype=float)
    assert token_roles.rows_of(nll, [piece]) == [["Hold on", piece[1], piece[2]]]


# --- values ---------------------------------------------------------------------------------------


def test_reflections_are_compared_with_all_else_by_hand(reasoner, asked, monkeypatch):
    class Curve:
        # every reflection halves what is left, a corrected value takes 0.1 off
        def __init__(self, words):
            nll = [4.0]
            for k, word in enumerate(words):
                nll.append(
                    nll[-1] / 2
                    if word in token_roles.REFLECTIONS
                    else nll[-1] - 0.1 * (words[k - 1] == "Wait")
                )
            self.answer_nll = np.array(nll)

    def ends(lm, question, texts):
        return [Curve(text.split()).answer_nll[-1] for text in texts]

    monkeypatch.setattr(token_roles, "probe", lambda lm, prompt, text, _: Curve(text.split()))
    monkeypatch.setattr(token_roles, "end_nlls", ends)
    found = token_roles.reflecting(asked[0], 0)
    values, rows = token_roles.role_values(reasoner, asked[0], found, token_roles.program_pieces)
    assert values["C6.relative"] == pytest.approx(0.5, abs=0.01)
    assert values["C6.log_ratio"] == pytest.approx(math.log(2), abs=0.01)
    reflections = [row[2] - row[1] for row in rows if row[0] in token_roles.REFLECTIONS]
    assert values["C6.signed"] == pytest.approx(np.mean(reflections))
    assert min(reflections) == pytest.approx(-2.0)
    assert (
        values["C6.replaced"]
        == values["C6.replaced_wait"]
        == values["C6.replaced_alternatively"]
        == pytest.approx(2.0)
    )
    assert values["C6.after_error"] == pytest.approx(0)
    others = [abs(row[2] - row[1]) for row in rows if row[0] not in token_roles.REFLECTIONS]
    assert values["C6.absolute"] == pytest.approx(-np.mean(reflections) - np.mean(others))
    own = [row[1] - row[2] for row in rows if row[0] == "Alternatively"]
    assert values["C6.alternatively"] == pytest.approx(np.mean(own) - np.mean(others))


def test_the_values_of_a_text_are_differences_of_its_curves(tiny_lm):
    question = next(q for q in trajectories.study_questions(8, 3) if gsm_variants.reflecting(q, 0))
    wait, other = gsm_variants.reflecting(question, 0)
    values, rows = token_roles.role_values(
        tiny_lm, question, [wait, other], token_roles.text_pieces
    )
    assert set(values) >= {f"C6.replaced_{mark.lower()}" for mark in token_roles.REFLECTIONS}

    def after(text):
        return probe(
            tiny_lm, chat_prompt(tiny_lm.tokenizer, question.text), text, question.answer
        ).answer_nll[-1]

    marked = after(wait.text[: wait.at] + "Wait")
    assert values["C6.replaced_wait"] == pytest.approx(after(wait.instead) - marked, abs=2e-4)
    fall = after(wait.text[: wait.at].rstrip()) - after(wait.text[: wait.repaired])
    again = after(wait.needless.rpartition(" Wait")[0]) - after(wait.needless)
    assert values["C6.after_error"] == pytest.approx(fall - again, abs=2e-4)
    assert [row[0] for row in rows].count("Wait") == 1


def test_a_loss_of_zero_makes_no_infinite_ratio():
    table = [["Wait", 0.0, 0.5], ["Alternatively", 1.0, 0.5], [".", 1.0, 0.0], ["value", 1.0, 1.0]]
    assert all(math.isfinite(value) for value in token_roles._by_role(table).values())
    assert math.isnan(token_roles._by_role([row for row in table if row[0] != "."])["C6.over_ends"])


# --- a model's own trajectories -------------------------------------------------------------------


def test_a_models_own_trajectories_have_rows_and_absent_marks_are_named(
    reasoner, asked, tiny_lm, questions
):
    rows = token_roles.own_rows(reasoner, asked, token_roles.program_pieces, seed=0)
    assert {row[0] for row in rows} >= {"name", "value", "."}
    text = token_roles.own_rows(
        tiny_lm, questions[:2], token_roles.text_pieces, seed=0, most_tokens=8
    )
    assert text, "a trajectory that is cut short counts too"
    message = token_roles.absent(text)
    assert "Wait and Alternatively: not once in" in message
    assert "nothing is left to compare" in message
    assert "the others are compared without" in token_roles.absent([["Wait", 1.0, 1.0]])
    assert token_roles.absent([["Wait", 1.0, 1.0], ["Alternatively", 1.0, 1.0]]) == ""


def test_words_are_left_out_one_by_one_and_one_after_another(reasoner, asked):
    words = gsm.gold(asked[0]).text.split()
    alone = token_roles.left_out(reasoner, asked[0], words)
    whole = program_probes.curve(reasoner, asked[0], words)[-1]
    assert alone[7] == pytest.approx(
        program_probes.curve(reasoner, asked[0], words[:7] + words[8:])[-1] - whole, abs=1e-5
    )
    order = [3, 0, 7]
    nll = token_roles.thinned(reasoner, asked[0], words, order)
    assert nll[:2] == pytest.approx([whole, whole + alone[3]], abs=1e-5)
    assert len(nll) == 4
