"""The efficiency study of the tiny reasoner: what is shortened how, what it is worth, and the
values by hand.
"""

import random

import numpy as np
import pytest

from tml_lib.claims import ledger, rulebook
from tml_lib.data import programs
from tml_lib.lm import models
from tml_lib.lm.answers import ANSWER_TEMPLATE
from tml_lib.studies import efficiency, supervised

TEXT = "c:= h*4 h=5 c=1 Wait c=6 . e:= d*3 d=? Alternatively d:= c+1 c=6 d=0 . e:= d*3 d=0 e=0 ."
WORDS = TEXT.split()


@pytest.fixture(scope="module")
def asked():
    return programs.questions(4, 50, "held_out")


def test_a_summary_holds_finished_statements_and_no_answer():
    assert efficiency.summary(WORDS, {"e"}) == ["c:=", "h*4", "c=6", "d:=", "c+1", "d=0"]
    assert efficiency.summary(WORDS, {"e", "d"}) == ["c:=", "h*4", "c=6"]
    assert efficiency.summary(["c:="], {"e"}) == []
    left = [WORDS[k] for k in efficiency.withheld(WORDS, {"e"})]
    assert left == [*WORDS[:7], *WORDS[11:16]]


def test_pruning_keeps_the_classes_that_are_worth_most():
    places = efficiency.withheld(WORDS, {"e"})
    worth = {"value": 0.5, "name": 0.3, "operation": 0.2, "Wait": -1.0}
    kept = efficiency.pruned(WORDS, places, 5, worth, "e=0 x=1")
    assert kept == ["c:=", "c=6", "d:=", "c+1", "d=0"]
    assert efficiency.pruned(WORDS, places, 0, worth, "e=0 x=1") == []


def test_every_mode_is_as_long_as_the_summary_and_shows_no_answer(asked):
    for question in asked:
        program = programs.parse(question.text)
        words = programs.trajectory(program, "long", random.Random(0)).text.split()
        other = efficiency.summary(WORDS, {"e"}) * 2
        found = efficiency.shortened(words, question, other, {"value": 1.0}, random.Random(0))
        assert tuple(found) == efficiency.MODES
        assert len(found["summary"]) == 12
        assert {len(found[mode]) for mode in ("pruned", "begun", "random", "foreign")} == {12}
        for mode in set(efficiency.MODES) - {"full"}:
            assert not set(found[mode]) & set(question.answer.split())
            assert mode == "foreign" or not {f"{letter}:=" for letter in program.asked} & set(
                found[mode]
            )


def test_a_compact_row_is_a_summary_then_the_last_statements(asked):
    program = programs.parse(asked[0].text)
    words = efficiency.compact(program, random.Random(0))
    assert efficiency.summary(words, set(program.asked)) == words[:12]
    assert len(words) == 12 + 2 * 5
    assert set(asked[0].answer.split()) <= set(words[12:])
    rows = efficiency.mixed_rows(0)(0)
    assert rows == efficiency.mixed_rows(0)(0)
    assert len(rows) == supervised.BATCH


def test_the_room_suffices_for_two_statements_and_the_answer(asked):
    tokenizer = models.load("tiny", device="cpu").tokenizer
    program = programs.parse(asked[0].text)
    rest = (
        " ".join(efficiency.compact(program, random.Random(0))[12:])
        + ANSWER_TEMPLATE
        + asked[0].answer
        + " } <end>"
    )
    assert len(tokenizer(rest, add_special_tokens=False)["input_ids"]) <= efficiency.ROOM


def test_answers_are_finished_from_what_is_given(reasoner, asked):
    whole = [
        programs.trajectory(programs.parse(q.text), "plain", random.Random(0)).text.split()
        for q in asked
    ]
    right, counts = efficiency.finished(reasoner, asked, [words[:-5] for words in whole])
    assert sum(right) >= 3
    assert all(count >= 26 for count in counts)
    forced, counts = efficiency.finished(reasoner, asked, whole, at_once=True)
    assert sum(forced) >= 3
    assert counts == [30] * 4
    assert sum(efficiency.finished(reasoner, asked, [[]] * 4)[0]) == 0, (
        "there is no room to solve it anew"
    )


def test_contributions_are_answers_lost_per_word(asked, monkeypatch):
    words = [
        programs.trajectory(programs.parse(q.text), "plain", random.Random(0)).text.split()
        for q in asked
    ]

    def finished(lm, questions, begun):  # only the intermediate values matter
        return [
            any(w[1:2] == "=" and row[k - 1][1:2] == "=" for k, w in enumerate(row) if k)
            for row in begun
        ], []

    monkeypatch.setattr(efficiency, "finished", finished)
    worth = efficiency.contributions(None, asked, words)
    assert worth["value"] == pytest.approx(1 / 4)
    assert worth["name"] == 0
    assert set(worth) == {"name", "operation", "operand", "value", "."}


def test_values_compare_modes_question_by_question(asked, monkeypatch):
    share = {
        "full": 1.0,
        "summary": 0.75,
        "at_once": 0.25,
        "pruned": 0.5,
        "begun": 0.0,
        "random": 0.25,
        "foreign": 0.125,
    }
    calls = iter(efficiency.MODES)

    def finished(lm, questions, begun, at_once=False):
        mode = next(calls, "budget")
        right = [k % 8 < 8 * share.get(mode, 0) for k in range(len(questions))]
        return right, [20 if mode == "summary" else 40] * len(questions)

    monkeypatch.setattr(efficiency, "finished", finished)
    found = [WORDS] * (4 * efficiency.SAMPLES)
    record = efficiency.measured(None, asked, found, {}, 0)
    wanted = {
        "kept": 0.125,
        "kept_pass": 0.0,
        "saved": 0.5,
        "over_full": -0.25,
        "over_begun": 0.75,
        "over_random": 0.5,
    }
    wanted |= {"over_foreign": 0.625, "pruned_over_summary": -0.25, "pruned_over_random": 0.25}
    assert {k: np.asarray(x).tolist() for k, x in record["values"].items()} == {
        f"C10.{k}": [v] * 4 for k, v in wanted.items()
    }
    half = record["values"]["C10.kept"].second  # of what thinking gains
    assert half.tolist() == [0.625] * 4
    assert record["modes"]["summary"] == {"right": 0.75, "pass": 1.0, "words": 20.0}
    assert set(record["budget"].values()) == {0}


@pytest.mark.slow
def test_the_whole_study_runs_and_resumes_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(efficiency, "LEARNT_FROM", 2)
    settings = {"questions": 2, "steps": 2}
    made = efficiency.STUDY.run([0, 1], tmp_path, **settings)
    records = made.records
    with monkeypatch.context() as untrained:
        untrained.setattr(supervised, "tuned", None)
        assert efficiency.STUDY.run([0, 1], tmp_path, **settings).records == records
    efficiency.STUDY.write(made, tmp_path, command="a test")
    rows = ledger.rows([tmp_path])
    assert {row.verdict for row in rows} == {"too few"}
    assert {f"C10.{row.test}" for row in rows} == set(records[0]["values"])
    assert len(rulebook.claims()["C10"]["tests"]) == len(rows)
    assert np.isfinite(list(records[0]["budget"].values())).all()


def test_own_trajectories_end_before_the_answer(reasoner, asked):
    found, cut = efficiency.own_trajectories(reasoner, asked, 0, 2)
    assert len(found) == len(cut) == 8
    assert (found, cut) == efficiency.own_trajectories(reasoner, asked, 0, 2)
    assert all(found[k] == [] for k in range(8) if cut[k])
    assert not any("\\boxed" in word for words in found for word in words)
