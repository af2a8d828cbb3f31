"""Estimands of C1 and C2 from probed curves, by hand; pairs that are cut before the statement."""

import math

import numpy as np
import pytest

from tml_lib.claims.rulebook import claims
from tml_lib.studies import probed_curves, trajectories

# --- estimands by hand ----------------------------------------------------------------------------


def held(positions, nll, stated_at=None, **meta):
    return {
        "positions": positions,
        "answer_nll": nll,
        "length": positions[-1],
        "stated_at": stated_at,
        "answer": "x",
        **meta,
    }


def record(**changes):
    curves = {
        "gold": {"right": held([0, 2, 3, 4, 5], [4.0, 3.0, 2.0, 2.5, 0.5], 3, shuffled_end=2)},
        "foreign": {"right": held([0, 2, 3, 5], [4.0, 3.6, 3.5, 3.9])},
        "copying": {"right": held([0, 2, 4, 5], [4.0, 4.0, 4.0, 1.0], 4)},
        "shuffled": {"right": held([0, 2, 3, 5], [4.0, 9.0, 3.4, 0.4], 3, shuffled_end=3)},
        "corrupted": {
            "right": held([0, 2, 4], [4.0, 3.5, 3.7]),
            "own": held([0, 2, 4], [5.0, 4.0, 1.0], 2),
        },
        "sampled": {"right": held([0, 2, 3], [4.0, 4.2, 4.1])},
        "own_right": {"right": held([0, 2, 4, 5], [4.0, 4.1, 3.5, 0.2], 4)},
        "foreign_own": {"right": held([0, 2, 4, 5], [4.0, 3.9, 3.8, 3.0])},
    }
    return {
        "id": "q",
        "curves": {kind: curve for kind, curve in (curves | changes).items() if curve is not None},
    }


BY_HAND = {
    "C1.trend": -1.0,  # 4, 3, 2.5, 0.5: the prefix of 3 tokens is off the stride of 2
    "C1.trend_unstated": -1.0,  # 4, 3, 2
    "C1.trend_over_foreign": 0.0,  # -1, and 4, 3.6, 3.5 over as many tokens of the other
    "C1.fall": 3.5,  # 4 - 0.5
    "C1.unstated": 2.0,  # 4 - 2
    "C1.content": 1.5,  # 2 - (4 - 3.5)
    "C1.order": 0.4,  # 3.4 - 3
    "C1.copying": 0.5,  # 3.5 - 3
    "C1.own_trend": -2 / 3,  # all but the first step go down
    "C1.own_trend_unstated": -1 / 3,  # up, down, down
    "C1.own_unstated": 0.5,  # 4 - 3.5
    "C1.own_content": 0.3,  # 0.5 - (4 - 3.8)
    "C2.sampled_trend": 1 / 3,  # up, up, down
    "C2.corrupted_trend": -1 / 3,  # down, down, up
    "C2.corrupted_over_foreign": 0.0,  # -1/3, and down, down, up again (4, 3.6, 3.9)
    "C2.sampled_fall": -0.1,
    "C2.corrupted_fall": 0.3,
    "C2.contrast": 1.5,  # 2 - (4 - 3.5)
    "C2.own_answer": 4.0,
    "C2.pair": 0.6,  # 0.5 - (4 - 4.1): the wrong one has ended after 3 tokens
}


CORRUPTED = {
    "C2.corrupted_trend",
    "C2.corrupted_over_foreign",
    "C2.corrupted_fall",
    "C2.contrast",
    "C2.own_answer",
}


OWN = {*("C1.own_trend", "C1.own_trend_unstated", "C1.own_unstated", "C1.own_content"), "C2.pair"}


def test_estimands_by_hand():
    assert probed_curves.estimands(record(), stride=2) == pytest.approx(BY_HAND)


def test_every_estimand_has_a_rule_and_every_rule_an_estimand():
    ruled = {
        f"{claim}.{test['name']}" for claim, item in claims().items() for test in item["tests"]
    }
    # tests that only the tiny reasoner's study can make: test_program_probes has them
    known_only_by_construction = {
        *("C1.area", "C1.share_unstated", "C1.changepoint", "C1.below_chance"),
        *("C2.after_error", "C2.after_error_over_gold", "C2.spoilt_word"),
    }
    assert set(BY_HAND) | known_only_by_construction == {
        name for name in ruled if name[:3] in ("C1.", "C2.")
    }
    assert not set(BY_HAND) & known_only_by_construction


def nan_names(values):
    return {name for name, number in values.items() if math.isnan(number)}


@pytest.mark.parametrize(
    ("absent", "names"),
    [
        ("shuffled", {"C1.order"}),
        ("sampled", {"C2.sampled_trend", "C2.sampled_fall", "C2.pair"}),
        ("own_right", OWN),
        ("foreign_own", {"C1.own_content"}),
        ("foreign", {"C1.trend_over_foreign", "C1.content", "C2.corrupted_over_foreign"}),
        ("copying", {"C1.copying"}),
        ("corrupted", CORRUPTED),
    ],
)
def test_estimands_of_absent_conditions_are_nan_and_the_others_stay(absent, names):
    values = probed_curves.estimands(record(**{absent: None}), stride=2)
    assert nan_names(values) == names
    assert {k: v for k, v in values.items() if k not in names} == pytest.approx(
        {k: v for k, v in BY_HAND.items() if k not in names}
    )


def test_corrupted_gold_that_happens_to_state_the_right_answer_does_not_count():
    wrong = {
        "right": held([0, 2, 4], [4.0, 3.5, 3.7], 2),
        "own": held([0, 2, 4], [5.0, 4.0, 1.0], 2),
    }
    assert nan_names(probed_curves.estimands(record(corrupted=wrong), stride=2)) == CORRUPTED


def test_foreign_text_that_is_shorter_is_read_at_its_end():
    values = probed_curves.estimands(record(foreign={"right": held([0, 2], [4.0, 3.9])}), stride=2)
    assert values["C1.content"] == pytest.approx(2.0 - 0.1)


def test_gold_that_never_states_the_answer_counts_whole():
    gold = {"right": held([0, 2, 4, 5], [4.0, 3.0, 2.5, 0.5], shuffled_end=2)}
    assert probed_curves.estimands(record(gold=gold), stride=2)["C1.unstated"] == pytest.approx(3.5)


def test_study_values_are_one_seed_of_questions():
    values = trajectories.STUDY.values([record(), record(sampled=None)], {"stride": 2})
    assert values["C1.fall"] == [[3.5, 3.5]]
    assert math.isnan(values["C2.sampled_fall"][0][1])


# --- pairs before the statement -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "gold", "other"),
    [
        ("foreign", [4.0, 3.0, 2.0], [4.0, 3.6, 3.5]),  # both to gold's 3 tokens
        # to the end of the shuffled steps: 2 tokens, 3 tokens
        ("shuffled", [4.0, 3.0], [4.0, 9.0, 3.4]),
        ("corrupted", [4.0, 3.0, 2.0], [4.0, 3.5]),  # to where it states its own answer: 2 tokens
    ],
)
def test_pairs_are_cut_before_any_answer_is_stated(kind, gold, other):
    first, second = probed_curves.paired_before_statement(record(), kind)
    assert (first.answer_nll.tolist(), second.answer_nll.tolist()) == (gold, other)
    assert (first.length, second.length) == (first.positions[-1], second.positions[-1])


@pytest.mark.parametrize(
    ("foreign", "beside"),
    [
        (held([0, 2, 5], [4.0, 3.6, 3.9]), 0.4),
        (held([0, 4, 5], [4.0, 3.0, 3.9]), 0.5),  # halfway between two probed prefixes
        (held([0, 1], [4.0, 3.3]), 0.7),  # shorter: all of it
    ],
)
def test_before_the_last_step_gold_is_compared_with_as_many_tokens(foreign, beside):
    found = probed_curves.before_last_step(record(foreign={"right": foreign}))
    assert found == pytest.approx((1.0, 1.0 - beside))


def test_gold_of_one_step_has_nothing_before_its_last():
    gold = {"right": held([0, 2, 5], [4.0, 3.0, 0.5], 3)}
    assert np.isnan(probed_curves.before_last_step(record(gold=gold))).all()


def test_a_wrong_text_rises_beside_as_many_tokens_of_another():
    found = probed_curves.rises_beside_foreign(record(), "sampled")
    assert found == pytest.approx((0.1, -0.5))  # 4.1 - 4 after three tokens, and 3.5 - 4
    # after four tokens, where the other was not probed: halfway between 3.5 and 3.9
    found = probed_curves.rises_beside_foreign(record(), "corrupted")
    assert found == pytest.approx((-0.3, -0.3))


@pytest.mark.parametrize(
    "changes",
    [
        {"sampled": None},
        {"foreign": None},
        {"sampled": {"right": held([0, 2, 3], [4.0, 4.2, 4.1], 2)}},
    ],
    ids=["no wrong sample", "no other text", "states the right answer"],
)
def test_a_wrong_text_without_its_partner_has_no_rise(changes):
    assert np.isnan(probed_curves.rises_beside_foreign(record(**changes), "sampled")).all()


def test_a_pair_without_its_condition_is_none():
    assert probed_curves.paired_before_statement(record(foreign=None), "foreign") is None


def test_gold_that_states_the_answer_at_once_leaves_nothing_to_compare():
    gold = {"right": held([0, 2, 5], [4.0, 3.0, 0.5], 0, shuffled_end=2)}
    first, _ = probed_curves.paired_before_statement(record(gold=gold), "foreign")
    assert first.answer_nll.tolist() == [4.0]
