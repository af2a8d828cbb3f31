"""The study of M: estimands on made-up cases whose values are known, complete rules, evidence."""

import pytest

from tml_lib.claims import ledger, rulebook
from tml_lib.studies import toy_maml
from tml_lib.studies.engine import Made

SMALL = {"meta_steps": 3, "optimiser_steps": 1}


@pytest.fixture(scope="module")
def few():
    """Fewer unseen tasks: the study's structure, not its figures."""
    patch = pytest.MonkeyPatch()
    patch.setattr(toy_maml, "UNSEEN", 6)
    patch.setattr(toy_maml, "TUNING", 8)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def records(few):
    return [toy_maml.SINUSOIDS.record(seed, None, **SMALL) for seed in (0, 1)]


def test_every_rule_has_values_and_every_value_a_rule(records):
    ruled = {
        f"{c}.{t['name']}"
        for c, item in rulebook.claims().items()
        for t in item["tests"]
        if c.startswith("M")
    }
    values = toy_maml.SINUSOIDS.values(records, {})
    assert set(values) == ruled
    for name, seeds in values.items():
        assert [len(seed) for seed in seeds] == [6, 6], name


def test_evidence_is_written_and_read_and_small_samples_decide_nothing(records, tmp_path):
    path = toy_maml.SINUSOIDS.write(Made(records, 1.0, SMALL), tmp_path, command="x")
    table = [row for row in ledger.rows([tmp_path]) if row.evidence == path.as_posix()]
    assert table
    assert {row.verdict for row in table} == {"too few"}
    kept = ledger.read_evidence(path)["records"]
    assert len(kept) == 2
    assert set(kept[0]["optimisers"]) == {"rates", "curves"}


def test_the_same_seed_gives_the_same_record(few, records):
    again = toy_maml.sinusoid_record(1, None, **SMALL)
    first = dict(records[1])
    assert {k: v for k, v in again.items() if k != "seconds"} == {
        k: v for k, v in first.items() if k != "seconds"
    }


def test_differences_are_the_rivals_minus_ours():
    """Made-up losses of one seed and two tasks: every estimand's value and sign."""
    five = {
        "maml": [0.1, 0.3],
        "joint": [1.1, 2.3],
        "fomaml": [0.2, 0.3],
        "reptile": [0.1, 0.5],
        "anil": [0.0, 0.3],
    }
    rules = {"learned": [2.0, 3.0], "sgd": [4.0, 4.0], "adam": [3.0, 3.5], "foreign": [2.5, 3.0]}
    record = {
        "at_five": five,
        "start": [3.1, 2.3],
        "at_ten": [0.05, 0.2],
        "one_shot": [2.1, 1.3],
        "blind": [2.5, 4.0],
    }
    found = toy_maml.sinusoid_estimands(
        record | {"optimisers": {"at_end": rules, "beyond": [2.5, 2.0]}}
    )
    wanted = {
        "M1.gain": [3.0, 2.0],
        "M1.over_joint": [1.0, 2.0],
        "M1.over_fomaml": [0.1, 0.0],
        "M1.over_reptile": [0.0, 0.2],
        "M1.over_anil": [-0.1, 0.0],
        "M1.beyond": [0.05, 0.1],
        "M1.shots": [2.0, 1.0],
        "M2.over_sgd": [2.0, 1.0],
        "M2.over_adam": [1.0, 0.5],
        "M2.beyond": [-0.5, 1.0],
        "M2.over_foreign": [0.5, 0.0],
        "M2.over_blind": [0.5, 1.0],
    }
    assert set(found) == set(wanted)
    for name, values in wanted.items():
        assert found[name].tolist() == pytest.approx(values), name


def test_rates_are_chosen_on_the_tasks_given():
    start, tasks = toy_maml.new_network(0), toy_maml.unseen_sinusoids(30, 0).with_shots(10)
    ends = {
        rate: float(toy_maml.inner_curve(start, tasks, rate)[:, 5].mean())
        for rate in toy_maml.RATES_SWEPT
    }
    assert toy_maml.best_rate(start, tasks) == min(ends, key=ends.get)
    curve = toy_maml.inner_curve(start, tasks, toy_maml.INNER_LR)
    assert toy_maml.harmed(start, tasks) == pytest.approx(
        float((curve[:, 5] > curve[:, 0]).float().mean())
    )
