"""The trainings of `rejection` with one thing changed: rows, rates and values by hand."""

import json

import numpy as np
import pytest

from tml_lib.claims import ledger, replay
from tml_lib.lm.answers import token_ids
from tml_lib.studies import lora, rates, rejection, trajectories

TEXT = 12 * "One and one are 2, and one more makes 3. " + "So it is {}."  # longer than gold


@pytest.fixture
def cases():
    asked = [q for q in trajectories.study_questions(9, 0) if lora.is_trained(q)]
    return [(q, TEXT.format(q.answer)) for q in asked[:3]]


def test_only_what_a_training_says_is_changed(tiny_lm, cases, tmp_path, monkeypatch):
    asked = {}

    def trained(lm, rows, folder, steps, seed, peak_lr):
        asked[folder.name] = (rows, steps, seed, peak_lr)
        return lm, [0.0] * steps

    monkeypatch.setattr(rejection, "trained", trained)
    monkeypatch.setattr(rejection, "measured", lambda *given, **how: {"right": [1, 0]})
    how = {"lm": tiny_lm, "cases": cases, "steps": 4, "questions": 2, "seed": 0, "max_tokens": 4}
    for name in rates.ARMS:
        rates.record(name, tmp_path, **how)
    assert set(asked) == set(rates.TRAININGS), "the base is not trained"
    each = rejection.BATCH * 4
    for name, (rows, steps, seed, peak_lr) in asked.items():
        arm = next(arm for arm in ("gold", "own", "as_written") if name.startswith(arm))
        numbers = [int(part) for part in name.split("_") if part.isdigit()]
        assert seed == (numbers or [0])[0]
        assert rows[:each] == rejection.arm_rows(tiny_lm, arm, cases, each, seed)[: len(rows)]
        share = 0.1 if name.endswith("tenth") else 1
        assert peak_lr == pytest.approx(share * lora.PEAK_LR)
        assert len(rows) == rejection.BATCH * steps
        assert (steps == 4) == (name != "gold_1_tokens")
    longer, own = asked["gold_1_tokens"], asked["own_1"]
    ratio = sum(rejection.learnt(longer[0])) / sum(rejection.learnt(own[0]))
    assert ratio == pytest.approx(1, abs=0.5 / longer[1] + 0.15)


def test_samples_are_learnt_as_the_model_wrote_them(tiny_lm, cases):
    rows = rejection.arm_rows(tiny_lm, "as_written", cases, 9, 0)
    beside = rejection.arm_rows(tiny_lm, "gold", cases, 9, 0)
    texts = {tiny_lm.prompt(q.text): text for q, text in cases}
    end = tiny_lm.tokenizer.eos_token_id
    for (ids, start), (other, begins) in zip(rows, beside, strict=True):
        assert ids[:start] == other[:begins], "the arms share their order"
        prompt = next(p for p in texts if token_ids(tiny_lm.tokenizer, p) == ids[:start])
        assert ids[-1] == end
        assert tiny_lm.tokenizer.decode(ids[start:-1]) == texts[prompt]


def test_values_compare_the_trainings_question_by_question():
    right = {
        "base": [1, 0, 1],
        "gold_tenth": [1, 1, 1],
        "own_tenth": [1, 0, 0],
        "gold_1": [0, 0, 1],
        "own_1": [1, 1, 1],
        "gold_1_tokens": [1, 0, 0],
        "as_written_1": [1, 1, 0],
        "as_written_tenth": [0, 0, 1],
    }
    assert list(right) == list(rates.ARMS)
    records = [{"arm": arm, "greedy": {"right": found}} for arm, found in right.items()]
    wanted = {
        "C4t.other_seed": [1, 1, 0],
        "C4t.equal_tokens": [0, 1, 1],
        "C4t.tenth": [0, -1, -1],
        "C4t.gold_tenth": [0, 1, 0],
        "C4t.as_written": [1, 1, -1],
        "C9t.within_seed": [0, 1, 0],
        "C9t.within_tenth": [0, 0, -1],
        "C9t.within_as_written": [0, 1, -1],
        "C9t.within_as_written_tenth": [-1, 0, 0],
    }
    found = {test: np.asarray(arms).tolist() for test, arms in rates.estimands(records).items()}
    assert found == wanted


@pytest.mark.slow
def test_the_whole_study_runs_resumes_and_is_made_again(tiny_lm, tmp_path, monkeypatch, cases):
    monkeypatch.setattr(rejection, "shown", lambda lm, path: cases)
    monkeypatch.setattr(rejection, "BATCH", 2)
    settings, more = {"n_questions": 9, "seed": 0}, {"command": "a test", "wall_seconds": 0}
    written = ledger.write_evidence(tmp_path, "material", "medium", {}, settings=settings, **more)
    how = {"n": 3, "seed": 0, "max_tokens": 4, "scale": "medium", "command": "a test", "steps": 2}
    path = rates.make_evidence(tiny_lm, written, tmp_path / "out", **how)
    evidence = json.loads(path.read_text())
    records = {record["arm"]: record for record in evidence["records"]}
    assert list(records) == list(rates.ARMS)
    assert all(record["greedy"]["cut"][1] == 3 for record in records.values())
    first = {name: record["losses"][:1] for name, record in records.items()}
    assert first["gold_1"] == first["gold_1_tokens"] != first["gold_tenth"]
    assert len(records["gold_1_tokens"]["losses"]) > len(records["gold_1"]["losses"])
    monkeypatch.setattr(rates.lora, "replayed", lambda settings: tiny_lm)
    monkeypatch.setattr(rates.engine, "questions_of", lambda evidence: ["question 0"])
    drawn = list(replay.verify(path, rates.STUDY.replays, records=3))
    again = {one.record for one in drawn if one.kind == replay.FIRST_STEPS}
    assert len(again) == 3
    assert again < set(rates.TRAININGS)
    assert all(one.ok for one in drawn)
    assert {"loss of step 1", "C4t.tenth"} <= {one.test for one in drawn}
    monkeypatch.setattr(rejection, "measured", None)  # nothing is left to make
    rates.make_evidence(tiny_lm, written, tmp_path / "out", **how)
    rows = ledger.rows([tmp_path / "out"])
    assert {row.claim for row in rows} == {"C4t", "C9t"}
