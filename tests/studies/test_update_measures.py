"""What the update study measures: losses under updates, exactness, steps of equal length."""

import math

import numpy as np
import pytest

from tml_lib.data import toy
from tml_lib.measure.implicit import logit_error, update_from_ids
from tml_lib.measure.probe import naive_nll
from tml_lib.studies import update_cases, update_measures
from tml_lib.studies.update_measures import measure


@pytest.fixture(scope="module")
def measured():
    """(model, case, record) of one chain on an untrained model."""
    model, case = toy.new_model(0), update_cases.toy_case(toy.chains(1, 0)[0], 0)
    return model, case, measure(model, case, stride=1, seed=0)


def test_losses_are_those_of_the_updated_model(measured):
    model, case, record = measured
    under = record["losses"]["last"]
    for name, (prompt, suffix) in {"own": (case.prompt, case.suffix), **case.siblings}.items():
        assert under["theta"][name] == pytest.approx(naive_nll(model, prompt, [], suffix, 0))
    in_context = naive_nll(
        model, case.prompt, case.trajectories["gold"], case.suffix, len(case.trajectories["gold"])
    )
    # θ' without the trajectory = θ with it
    assert under["gold"]["own"] == pytest.approx(in_context, abs=1e-4)
    assert record["losses"]["all"]["gold"]["own"] == pytest.approx(in_context, abs=1e-4)
    assert (
        under["best_gradient"]["own"] <= min(under["gradient"]["own"], under["theta"]["own"]) + 1e-9
    )
    assert (
        under["matched_gradient"]["own"]
        <= max(under["gold"]["own"], under["best_gradient"]["own"]) + 1e-9
    )


def test_exactness_in_float64(measured):
    model, case, _ = measured
    errors = update_measures.exactness(update_measures.wide_copy(model), case)
    assert max(errors.values()) < 1e-9
    # a float32 model computes its last layer in float64 for this, and that one alone
    assert update_measures.exactness(model, case).keys() == {"last"}
    assert update_measures.exactness(model, case)["last"] < 1e-9
    assert next(model.parameters()).dtype.itemsize == 4
    # float32 is not enough, so the figure says something
    given = case.prompt, case.trajectories["gold"], case.suffix
    assert logit_error(model, update_from_ids(model, *given), *given) > 1e-9


@pytest.mark.parametrize(
    ("wanted", "fraction"), [(0.5, 0.5), (0.9, 0.1), (0.05, 0.95), (0.9999, 0.0001)]
)
def test_the_matched_step_is_the_shortest_that_reaches_the_loss(wanted, fraction):
    """On a loss that falls as 1 - fraction, steps of these lengths reach these losses."""
    tried = {f: 1 - f for f in update_measures.STEP_LENGTHS}
    found = update_measures._matched(tried, wanted, lambda f: 1 - f)
    assert 1 - found <= wanted + 1e-12
    if fraction >= 0.001:
        assert found == pytest.approx(fraction, rel=0.05)


def test_where_no_step_reaches_the_loss_the_best_one_counts_and_where_none_is_needed_none():
    tried = {f: 1 - f / 2 for f in update_measures.STEP_LENGTHS}
    assert update_measures._matched(tried, 0.4, lambda f: 1 - f / 2) == 1.0
    assert update_measures._matched(tried, 1.0, lambda f: 1 - f / 2) == 0.0


def test_random_steps_differ_from_question_to_question():
    model, cases = toy.new_model(0), [update_cases.toy_case(q, 0) for q in toy.chains(2, 0)]
    drawn = [
        measure(model, case, stride=10, seed=0)["steps"]["gold"]["cosine_random"] for case in cases
    ]
    assert len({len(d) for d in drawn}) == 1
    drawn = [[cosine for cosine in row if not math.isnan(cosine)] for row in drawn]
    assert abs(np.corrcoef(drawn)[0, 1]) < 0.999
    assert (np.sign(drawn[0]) != np.sign(drawn[1])).any()
