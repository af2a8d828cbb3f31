"""The study of C5s: its sums and their gold trajectories, its values by hand, and a run of a few
steps with a random model.
"""

import math

import numpy as np
import pytest

from tml_lib.claims import ledger, rulebook
from tml_lib.data import gsm
from tml_lib.lm import models
from tml_lib.studies import chain


def test_a_gold_trajectory_adds_one_number_after_another():
    assert (
        chain.partial_sums("15 - 43 - 75 + 3") == "15 - 43 = -28\n-28 - 75 = -103\n-103 + 3 = -100"
    )
    for question in chain.sums(50, 3):
        assert gsm.gold(question).text.split()[-1] == question.answer


def test_questions_differ_and_avoid_what_was_shown():
    shown = chain.sums(60, 0)
    held_out = chain.sums(60, 1, avoid=shown)
    assert len({q.text for q in shown + held_out}) == 120
    assert [q.text for q in chain.sums(5, 0)] == [q.text for q in shown[:5]]


def made(right, boxed=(0, 0)):
    return {
        "greedy": {"right": [1, 0], "boxed": [1, 1]},
        "sampled": {"right": list(right), "boxed": list(boxed)},
    }


def test_values_by_hand():
    rights = {"base": (0, 0), "cold": (1, 1), "long": (2, 2), "warm": (4, 2), "zero": (0, 4)}
    records = [
        made(right, (4, 0) if arm == "zero" else (0, 0)) | {"arm": arm}
        for arm, right in rights.items()
    ]
    for record in records:
        record["room"] = {"right": [record["arm"] == "warm", True]}
    found = {test: np.asarray(x) for test, x in chain.estimands(records).items()}
    assert found["C5s.sampled"].tolist() == [1.0, -0.5]
    assert found["C5s.sampled_over_long"].tolist() == [0.5, 0.0]
    assert found["C5s.cold"].tolist() == [0.75, 0.25]
    assert found["C5s.zero_boxed"].tolist() == [1.0, 0.0]
    assert found["C5s.greedy"].tolist() == [0, 0]
    assert found["C5s.room"].tolist() == [1, 0]
    assert set(found) == {f"C5s.{test['name']}" for test in rulebook.claims()["C5s"]["tests"]}


@pytest.mark.filterwarnings("ignore:for .* steps no group")
@pytest.mark.slow
def test_a_study_trains_every_arm_once_and_writes_evidence(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(chain, "MOST_TOKENS", 8)
    monkeypatch.setattr(chain, "ROOM", 16)
    monkeypatch.setattr(chain, "GROUP", 4)
    monkeypatch.setattr(chain, "BATCH", 2)
    model = models.random_model("llama", vocab_size=len(lm.tokenizer), initializer_range=0.05)
    start = models.LanguageModel(model, lm.tokenizer, "random")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = {"steps": 3, "cold_steps": 1, "questions": 2}
    made = {"command": "made by a test"} | settings
    path = chain.make_evidence(start, "small", tmp_path, **made)
    records = ledger.read_evidence(path)["records"]
    assert [record["arm"] for record in records] == list(chain.ARMS)
    assert all((before[name] == value).all() for name, value in model.state_dict().items()), (
        "the start is left as it is"
    )
    assert [len(record["log"]) for record in records] == [0, 0, 0, 2, 3]
    assert (tmp_path / "warm" / "adapter_model.safetensors").is_file()
    assert {record["arm"] for record in records if "room" in record} == set(chain.ROOM_ARMS)
    assert all(
        len(record["room"]["tokens"]) == 2 and max(record["room"]["tokens"]) > 8
        for record in records
        if "room" in record
    )
    for record in records:
        assert [record[name]["cut"][1] for name in ("greedy", "sampled")] == [2, 2 * chain.SAMPLES]
    assert ledger.rows([tmp_path])[0].cut > 0.5, "a random model seldom ends within 8 tokens"
    monkeypatch.setattr(chain, "trained", None)
    chain.make_evidence(start, "small", tmp_path, **made)  # finished arms are kept
    values = ledger.read_evidence(path)["values"]
    assert all(math.isfinite(np.mean(seeds)) for seeds in values.values())
