"""Rejection sampling with LoRA: the same questions in every arm, held-out ones, values by hand."""

import json

import numpy as np
import pytest

from tml_lib.claims import ledger, replay
from tml_lib.claims.stats import mg_pass_at_k
from tml_lib.lm import answers
from tml_lib.records import Trajectory
from tml_lib.studies import lora, material, rejection, trajectories
from tml_lib.studies.own_trajectories import Own

TEXT = "One and one are 2. So it is {}."


@pytest.fixture
def cases():
    asked = [q for q in trajectories.study_questions(9, 0) if lora.is_trained(q)]
    return [(q, TEXT.format(q.answer)) for q in asked[:3]]


def test_arms_share_their_questions_and_differ_in_their_trajectories(tiny_lm, cases):
    rows = {arm: rejection.arm_rows(tiny_lm, arm, cases, 16, 0) for arm in rejection.ARMS[1:]}
    prompts = {arm: [ids[:start] for ids, start in rows[arm]] for arm in rows}
    assert prompts["answers"] == prompts["gold"] == prompts["own"]
    texts = {tuple(answers.token_ids(tiny_lm.tokenizer, tiny_lm.prompt(q.text))): (q, text)
             for q, text in cases}  # fmt: skip
    for k in range(16):
        question, own = texts[tuple(prompts["own"][k])]
        learnt = {arm: tiny_lm.tokenizer.decode(rows[arm][k][0][rows[arm][k][1] :]) for arm in rows}
        ending = f"{answers.ANSWER_TEMPLATE}{question.answer}}}"
        assert learnt["answers"].startswith(ending)
        left_out = k % lora.DIRECT == lora.DIRECT - 1
        gold = question.trajectories[0].text
        wanted = {"own": own, "gold": gold}
        for arm, text in wanted.items():
            assert learnt[arm].startswith(ending if left_out else text + ending)
    each = [prompts["own"].count(prompt) for prompt in prompts["own"]]
    assert set(each) <= {5, 6}, "no case is shown twice before all are"
    assert rejection.arm_rows(tiny_lm, "own", cases, 16, 1) != rows["own"]


def test_questions_that_the_model_answered_rightly_are_shown(tiny_lm, monkeypatch):
    asked = [*lora.training_questions(3, 0), *rejection.held_out(1, 0)[:1]]
    right = [Own(Trajectory(TEXT, "own_right", q.answer, True)) for q in asked]
    found = [right[0], Own(), *right[2:]]
    monkeypatch.setattr(material, "owns", lambda lm, path: (asked, found))
    assert rejection.shown(tiny_lm, "x.json") == [(asked[0], TEXT), (asked[2], TEXT)]
    monkeypatch.setattr(material, "owns", lambda lm, path: (asked, [Own()] * 4))
    with pytest.raises(ValueError, match=r"x\.json holds no right sample of a trained template"):
        rejection.shown(tiny_lm, "x.json")


def test_held_out_questions_are_of_other_templates_and_of_other_sets():
    asked = rejection.held_out(6, 0)
    assert len({q.text for q in asked}) == 12
    assert not any(lora.is_trained(q) for q in asked[:6])
    assert [q.id.split("/")[0] for q in asked[6:]] == ["chain_sum"] * 3 + ["gcd"] * 3
    assert len({q.template for q in asked[6:]}) == 6
    assert all(answers.grade(f"\\boxed{{{q.answer}}}", q.answer) for q in asked)
    assert rejection.held_out(6, 0) == asked


def test_values_compare_the_arms_question_by_question():
    def arm(name, greedy, sampled):
        return {"arm": name, "greedy": {"right": greedy}, "sampled": {"right": sampled}}

    records = [
        arm("base", [1, 0, 1, 0], [4, 0]),
        arm("answers", [0, 0, 1, 0], [0, 0]),
        arm("gold", [0, 0, 0, 1], [1, 0]),
        arm("own", [1, 1, 1, 1], [4, 3]),
    ]
    found = {test: np.asarray(arms) for test, arms in rejection.estimands(records, 2).items()}
    nan, most = np.nan, mg_pass_at_k(4, 3, 4)
    wanted = {
        "C4t.greedy": [1, 1, nan, nan],
        "C4t.pass": [0, 1, nan, nan],
        "C4t.mgpass": [1 - mg_pass_at_k(4, 1, 4), most, nan, nan],
        "C4t.over_answers": [1, 1, nan, nan],
        "C4t.gold_over_answers": [0, 0, nan, nan],
        "C4t.gold_over_base": [-1, 0, nan, nan],
        "C9t.within": [0, 1, nan, nan],
        "C9t.across": [nan, nan, 0, 1],
        "C9t.gold_across": [nan, nan, -1, 1],
        "C9t.answers_across": [nan, nan, 0, 0],
    }
    assert set(found) == set(wanted)
    for test, values in wanted.items():
        assert found[test] == pytest.approx(values, nan_ok=True), test


@pytest.mark.slow
def test_the_whole_study_runs_resumes_and_is_made_again(tiny_lm, tmp_path, monkeypatch, cases):
    monkeypatch.setattr(rejection, "shown", lambda lm, path: cases)
    monkeypatch.setattr(rejection, "BATCH", 2)
    settings, more = {"n_questions": 9, "seed": 0}, {"command": "a test", "wall_seconds": 0}
    written = ledger.write_evidence(tmp_path, "material", "medium", {}, settings=settings, **more)
    how = {"n": 4, "seed": 0, "max_tokens": 4, "scale": "medium", "command": "a test", "steps": 2}
    path = rejection.make_evidence(tiny_lm, written, tmp_path / "out", **how)
    evidence = json.loads(path.read_text())
    records = evidence["records"]
    assert [record["arm"] for record in records] == list(rejection.ARMS)
    assert [len(record["losses"]) for record in records] == [0, 2, 2, 2]
    assert [record["greedy"]["cut"][1] for record in records] == [8] * 4
    assert [record["sampled"]["cut"][1] for record in records] == [16] * 4
    assert records[1]["learnt"] < records[2]["learnt"]
    assert evidence["settings"]["n_questions"] == 4
    monkeypatch.setattr(rejection.lora, "replayed", lambda settings: tiny_lm)
    monkeypatch.setattr(rejection.engine, "questions_of", lambda evidence: ["question 0"])
    drawn = list(replay.verify(path, rejection.STUDY.replays, records=3))
    assert {one.record for one in drawn if one.kind == replay.FIRST_STEPS} == {*rejection.ARMS[1:]}
    assert all(one.ok for one in drawn)
    assert {"loss of step 1", "C4t.greedy"} <= {one.test for one in drawn}
    monkeypatch.setattr(rejection, "measured", None)  # nothing is left to make
    rejection.make_evidence(tiny_lm, written, tmp_path / "out", **how)
    rows = ledger.rows([tmp_path / "out"])
    assert {row.claim for row in rows} == {"C4t", "C9t"}
    assert {row.verdict for row in rows} == {"too few"}
