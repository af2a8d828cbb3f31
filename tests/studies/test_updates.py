"""The update study: estimands by hand, its evidence, and going on after an interruption."""

import json
import math

import numpy as np
import pytest

from tml_lib.claims import ledger
from tml_lib.claims.rulebook import claims
from tml_lib.data import toy
from tml_lib.studies import update_cases, update_measures, updates
from tml_lib.studies.engine import Made
from tml_lib.studies.update_measures import measure
from tml_lib.studies.updates import estimands


@pytest.fixture(scope="module")
def measured():
    """(model, case, record) of one chain on an untrained model."""
    model, case = toy.new_model(0), update_cases.toy_case(toy.chains(1, 0)[0], 0)
    return model, case, measure(model, case, stride=1, seed=0)


def test_a_record_has_every_estimand_and_survives_json(measured):
    record = json.loads(json.dumps(measured[2]))
    values = estimands({"last": 1e-13, "all": 0.0}, record)
    ruled = {
        f"{c}.{test['name']}"
        for c, item in claims().items()
        for test in item["tests"]
        if c.startswith("C11")
    }
    assert set(values) == ruled
    assert not [name for name, number in values.items() if math.isnan(number)]
    assert values["C11.exact"] == pytest.approx(-13)
    assert values["C11.exact_all"] == pytest.approx(-17)
    shape = np.array(record["by_layer"]["relative_norm"]).shape
    assert shape == (len(update_measures.FRACTIONS), 2)


def test_with_a_stride_steps_are_still_those_of_one_token(measured):
    model, case, every = measured
    some = measure(model, case, stride=8, seed=0, layers="last")
    for kind, held in some["steps"].items():
        ends, cosines = held["positions"][1:], np.array(held["cosine"])
        alone = np.isfinite(cosines)
        assert (np.diff(held["positions"]) == 1).tolist() == alone.tolist()
        assert 1 < alone.sum() < len(every["steps"][kind]["cosine"])
        wanted = [every["steps"][kind]["cosine"][end - 1] for end in ends]
        assert cosines[alone] == pytest.approx(np.array(wanted)[alone], abs=2e-3)
    values = estimands({"last": 1e-13}, json.loads(json.dumps(some)))
    assert set(BY_HAND) - set(values) == {name for name in BY_HAND if name.endswith("_all")}
    assert not [name for name, number in values.items() if math.isnan(number)]
    assert "by_layer" not in updates.summary(some)


def record(**changes):
    """Steps to positions 2, 4, 5; the answer is stated after 4 tokens; the foreign text
    is shorter.
    """
    gold = {
        "positions": [0, 2, 4, 5],
        "cosine": [0.2, 0.0, 0.6],
        "cosine_random": [0.1, -0.1, 0.0],
        "drop": [0.5, -0.1, 2.0],
    }
    gold |= {
        "gradient_drop": [1.0, 0.5, 0.3],
        "best_gradient_drop": [1.0, 1.0, 1.0],
        "norm": [0.2, 0.1, 0.3],
    }
    steps = {
        "gold": gold,
        "foreign": {"positions": [0, 2, 3], "cosine": [0.05, 0.15]},
        "shuffled": {"positions": [0, 2, 3, 5], "cosine": [0.3, -0.1, 9.0]},
    }
    losses = {
        "theta": {"own": 3.0, "same": 2.0, "other": 1.0},
        "gold": {"own": 0.1, "same": 1.5, "other": 1.2},
        "foreign": {"own": 3.0, "same": 1.8, "other": 1.1},
        "gradient": {"own": 1.0, "same": 1.4, "other": 1.0},
        "best_gradient": {"own": 0.5, "same": 1.3, "other": 1.0},
        "matched_gradient": {"own": 0.1, "same": 1.75, "other": 1.0},
    }
    whole = {name: {k: 2 * v for k, v in held.items()} for name, held in losses.items()}
    base = {
        "steps": steps,
        "ends": {"gold": [4, 4], "foreign": [4, 3], "shuffled": [2, 3]},
        "size": 0.3,
        "rank": 1.5,
    }
    return (
        base
        | {"answer_tokens": 2, "content": 0.4, "losses": {"last": losses, "all": whole}}
        | changes
    )


BY_HAND = {
    "C11.exact": -10.0,
    "C11.exact_all": -9.0,
    "C11.size": 0.3,
    "C11.rank": 0.75,
    "C11.content": 0.4,
    "C11g.cosine": 0.8 / 3,
    "C11g.cosine_unstated": 0.1,
    "C11g.over_random": 0.8 / 3,
    "C11g.abs_over_random": 0.6 / 3,  # 0.8 - 0.2 over three
    "C11g.downhill": 0.8 / 3,
    "C11g.over_foreign": 0.0,  # 0.1 - 0.1
    "C11g.over_shuffled": 0.1,  # to gold's 2 tokens: 0.2; to shuffled's 3: 0.1
    "C11g.over_corrupted": math.nan,
    "C11g.share": 2.4 / 3,
    "C11g.over_gradient": (-0.5 - 0.6 + 1.7) / 3,
    "C11g.tokens": 1.0,  # norms 0.1 < 0.2 < 0.3 go with |drop| 0.1 < 0.5 < 2.0
    "C11t.same": 0.5,
    "C11t.over_foreign": 0.3,
    "C11t.over_other": 0.7,  # 0.5 - (1.0 - 1.2)
    "C11t.over_gradient": -0.1,
    "C11t.over_best_gradient": -0.2,
    "C11t.over_matched_gradient": 0.25,
    "C11t.over_matched_gradient_all": 0.5,
    "C11t.same_all": 1.0,
    "C11t.over_foreign_all": 0.6,
    "C11t.over_best_gradient_all": -0.4,
}


def test_estimands_by_hand():
    found = estimands({"last": 1e-10, "all": 1e-9}, record())
    assert found == pytest.approx(BY_HAND, nan_ok=True)


def test_evidence_values_are_by_seed_and_question():
    pair = ({"last": 1e-10, "all": 1e-9}, record())
    values = updates.TOY.values([{"made": [pair, pair]}] * 2, {})
    assert np.array(values["C11.size"]).tolist() == [[0.3, 0.3], [0.3, 0.3]]


def test_no_gradient_that_helps_leaves_the_share_undefined():
    gold = record()["steps"]["gold"] | {"best_gradient_drop": [0.0, 0.0, 0.0]}
    found = estimands(
        {"last": 1e-10, "all": 1e-9}, record(steps=record()["steps"] | {"gold": gold})
    )
    assert math.isnan(found["C11g.share"])


def test_summary_and_means_by_token(measured):
    held = updates.summary(measured[2])
    gold = measured[2]["steps"]["gold"]
    assert held["cosines"]["whole"] == pytest.approx(np.mean(gold["cosine"]))
    assert held["cosines"]["gold"] == pytest.approx(np.mean(gold["cosine"][:28]))
    assert held["falls"]["drop"] == pytest.approx(np.mean(gold["drop"]))
    assert held["cosines"]["downhill"] == pytest.approx(np.mean(np.clip(gold["cosine"], 0, None)))
    assert set(held["by_kind"]) == set(measured[1].trajectories)
    means = updates.by_token([measured[2]] * 2, "gold", "answer_nll")
    assert means == pytest.approx(gold["answer_nll"], rel=1e-3)


def test_evidence_of_questions_holds_values_templates_and_summaries(measured, tmp_path):
    _, case, found = measured
    settings = {"command": "c", "settings": {}, "scale": "small"}
    exact = Made([{"last": 1e-10, "all": 1e-9}], 1.0, {})
    path = updates.write_evidence(exact, Made([found], 2.0, {}), [case], tmp_path, **settings)
    evidence = ledger.read_evidence(path)
    assert path.name == "updates.small.json"
    assert evidence["values"]["C11.exact"] == [[-10.0]]
    assert evidence["templates"] == [case.template]
    assert set(evidence["records"][0]["losses"]) == {"last", "all"}


# --- resuming -------------------------------------------------------------------------------------


def test_a_toy_study_trains_measures_and_keeps_each_seed(tmp_path):
    made = updates.TOY.run(range(2), tmp_path, questions=2, steps=3)
    assert [len(record["made"]) for record in made.records] == [2, 2]
    found = ledger.read_evidence(updates.TOY.write(made, tmp_path, command="c"))
    values = found["values"]
    assert found["scale"] == "tiny"
    assert np.array(found["by_token"]["gold"]["cosine"]).shape == (2, 30)
    assert np.array(values["C11.exact"]).shape == (2, 2)
    assert (np.array(values["C11.exact"]) < -9).all()
    assert values["C11g.cosine"][0] != values["C11g.cosine"][1]
