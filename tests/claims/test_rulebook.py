"""The rules and the verdicts that follow from them."""

import math

import pytest

from tml_lib.claims import rulebook
from tml_lib.records import Interval

TESTS = [(claim, test) for claim, item in rulebook.claims().items() for test in item["tests"]]


@pytest.mark.parametrize(
    ("low", "high", "side", "wanted"),
    [
        (0.11, 0.5, "above", "holds"),
        (-0.2, 0.09, "above", "contradicted"),
        (0.05, 0.5, "above", "inconclusive"),
        (0.10, 0.5, "above", "inconclusive"),
        (-0.2, 0.09, "below", "holds"),
        (0.11, 0.5, "below", "contradicted"),
        (0.05, 0.5, "below", "inconclusive"),
        (math.nan, math.nan, "above", "inconclusive"),
    ],
)
def test_verdict_is_where_the_interval_lies(low, high, side, wanted):
    assert rulebook.verdict(Interval(0.1, low, high, 9), side, threshold=0.1) == wanted


def test_a_negative_threshold_is_mirrored_rightly():
    falls, flat = Interval(-0.5, -0.6, -0.4, 9), Interval(0.0, -0.05, 0.05, 9)
    assert [rulebook.verdict(i, "below", -0.1) for i in (falls, flat)] == ["holds", "contradicted"]
    assert [rulebook.verdict(i, "above", -0.1) for i in (falls, flat)] == ["contradicted", "holds"]


def test_an_unknown_side_is_refused():
    with pytest.raises(ValueError, match="side='over'"):
        rulebook.verdict(Interval(0, 0, 0, 9), "over", 0.1)


@pytest.mark.parametrize(
    "test", [test for _, test in TESTS], ids=[f"{claim}.{test['name']}" for claim, test in TESTS]
)
def test_every_rule_is_complete(test):
    assert {"name", "label", "decisive", "estimand", "unit", "control", "side", "threshold"} == set(
        test
    ) - {"added"}
    assert not (test.get("added") and test["decisive"]), (
        "a test written after a first look must not decide"
    )
    assert test["side"] in ("above", "below")
    assert isinstance(test["decisive"], bool)
    assert isinstance(test["threshold"], float)
    assert all(test[field].strip() for field in ("name", "label", "estimand", "unit", "control"))
    assert len(test["label"]) <= 70


@pytest.mark.parametrize("claim", rulebook.claims().values(), ids=rulebook.claims().keys())
def test_every_claim_has_a_title_its_place_scales_and_a_decisive_test(claim):
    assert claim["title"].strip()
    assert claim["paper"].strip()
    assert all(
        scale["questions"] >= 2 and scale["seeds"] >= 1 for scale in claim["scales"].values()
    )
    assert any(test["decisive"] for test in claim["tests"])
    assert len({test["name"] for test in claim["tests"]}) == len(claim["tests"])


def test_the_rules_hash_changes_with_a_rule_of_a_named_test_only(monkeypatch):
    before = [
        rulebook.rules_hash(names)
        for names in (["C1.trend", "C1.fall"], ["C1.fall", "C1.trend"], ["C1.fall"])
    ]
    assert before[0] == before[1] != before[2]
    changed = rulebook.claims()
    next(test for test in changed["C1"]["tests"] if test["name"] == "trend")["threshold"] = -0.2
    monkeypatch.setattr(rulebook, "claims", lambda: changed)
    assert rulebook.rules_hash(["C1.trend", "C1.fall"]) != before[0]
    assert rulebook.rules_hash(["C1.fall"]) == before[2]


def test_the_rules_hash_ignores_a_label(monkeypatch):
    before = rulebook.rules_hash(["C1.trend"])
    changed = rulebook.claims()
    next(test for test in changed["C1"]["tests"] if test["name"] == "trend")["label"] = (
        "other words"
    )
    monkeypatch.setattr(rulebook, "claims", lambda: changed)
    assert rulebook.rules_hash(["C1.trend"]) == before


@pytest.mark.parametrize("claim", rulebook.claims().values(), ids=rulebook.claims().keys())
def test_labels_tell_the_tests_of_a_claim_apart(claim):
    assert len({test["label"] for test in claim["tests"]}) == len(claim["tests"])


def test_every_protocol_has_a_version_and_a_tolerance_and_a_way_to_be_replayed():
    for study, rules in rulebook.protocols().items():
        assert rules["version"] >= 1
        assert min(x for name, x in rules.items() if name.endswith("tolerance")) > 0
        assert rulebook.protocol(study) == f"{study}/{rules['version']}"
