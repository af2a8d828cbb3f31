"""L̂ in two dtypes at equal positions: differences, and estimands from them."""

import copy
import dataclasses
import math

import numpy as np
import pytest
import torch

from tml_lib.claims import ledger, rulebook
from tml_lib.lessons import notebooks
from tml_lib.lm.exactness import Setting
from tml_lib.measure.probe import probe
from tml_lib.records import Trajectory
from tml_lib.studies import precision, trajectories
from tml_lib.studies.own_trajectories import Own

STRIDE = 24


@pytest.fixture(scope="module")
def evidence(tiny_lm, tmp_path_factory):
    coarse = copy.deepcopy(tiny_lm.model).bfloat16()
    pair = {"bfloat16": dataclasses.replace(tiny_lm, model=coarse), "float32": tiny_lm}
    asked = trajectories.study_questions(2, 0)
    wrong = Trajectory("It is 1 + 1 = 2, so I say \\boxed{2}.", "sampled", "2", False)
    cases = [(asked[0], Own(wrong=wrong)), (asked[1], Own())]
    folder = tmp_path_factory.mktemp("precision")
    made = precision.STUDY.run(cases, folder, inputs={"models": pair}, seed=0, stride=STRIDE)
    settings = {"model": "tiny", "n_questions": 2, "seed": 0, "stride": STRIDE}
    path = precision.STUDY.write(made, folder, command="x", settings=settings)
    return asked, ledger.read_evidence(path)


def test_curves_are_those_of_the_probe_at_equal_positions(tiny_lm, evidence):
    lm = tiny_lm
    asked, record = evidence
    held = record["records"][0]["curves"]
    assert held.keys() == {"gold", "sampled"}
    again = probe(
        lm,
        lm.prompt(asked[0].text),
        asked[0].trajectories[0].text,
        asked[0].answer,
        positions=held["gold"]["positions"],
    )
    assert held["gold"]["float32"] == pytest.approx(again.answer_nll, abs=1e-3)
    assert len(held["gold"]["bfloat16"]) == len(again.positions)


def test_differences_are_percentiles_over_all_positions(evidence):
    _, record = evidence
    found = precision.differences(record)
    every = [
        abs(a - b)
        for held in record["records"]
        for curve in held["curves"].values()
        for a, b in zip(curve["bfloat16"], curve["float32"], strict=True)
    ]
    assert found["all"] == pytest.approx([np.median(every), np.percentile(every, 95), max(every)])
    assert 0 < found["all"][0] < 0.5, "two dtypes round differently, and not by much"
    assert "own_right" not in found


def test_estimands_are_compared_question_by_question(evidence):
    _, record = evidence
    found = precision.estimates(record)
    values = [held["values"] for held in record["records"]]
    for name in ("C1.unstated", "C1.content", "C1.trend"):
        assert name.split(".")[1] in {rule for claim, rule in rulebook.rules() if claim == "C1"}
        change = np.mean([one["bfloat16"][name] - one["float32"][name] for one in values])
        assert found[name]["difference"].estimate == pytest.approx(change, abs=1e-4)
    assert "C1.own_unstated" not in found, "no question has an own right trajectory"


def test_a_replay_measures_a_question_again_in_both_dtypes(tiny_lm, evidence, monkeypatch):
    _, record = evidence
    coarse = dataclasses.replace(tiny_lm, model=copy.deepcopy(tiny_lm.model).bfloat16())
    pair = {"bfloat16": coarse, "float32": tiny_lm}
    monkeypatch.setattr(precision.lora, "known", lambda name, dtype: pair[dtype])
    (replay,) = precision.STUDY.replays
    pairs = replay.again(record, "question 0")
    assert pairs.keys() >= {"C1.unstated in bfloat16", "C2.sampled_fall in float32"}
    numbers = [both for both in pairs.values() if not math.isnan(both[0])]
    assert len(numbers) > 10
    assert all(stored == pytest.approx(made, abs=1e-3) for stored, made in numbers)
    assert replay.names(record) == [], "its weights are not known by their content"


def test_what_two_ways_of_reading_may_differ_by_is_what_rounding_was_measured_to_change():
    record = ledger.read_evidence(notebooks.stored_evidence() / "precision.medium.json")
    worst = precision.differences(record)["all"][-1]
    assert worst <= Setting(torch.bfloat16, None, ()).widest < worst + 0.05
