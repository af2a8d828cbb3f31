"""The studies of M and G: estimands on made-up cases whose values are known, complete rules,
resumption, evidence.
"""

import pytest
import torch

from tml_lib.claims import ledger
from tml_lib.meta import descent
from tml_lib.studies import toy_maml
from tml_lib.studies.engine import Made

STUDIES = {"sinusoids": toy_maml.SINUSOIDS, "descent": toy_maml.DESCENT}
SMALL = {
    "sinusoids": {"meta_steps": 3, "optimiser_steps": 1},
    "descent": {"train_steps": 2, "maml_steps": 1},
}


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
    return {
        name: [study.record(seed, None, **SMALL[name]) for seed in (0, 1)]
        for name, study in STUDIES.items()
    }


@pytest.mark.parametrize(("study", "letter"), [("sinusoids", "M"), ("descent", "G")])
def test_every_rule_has_values_and_every_value_a_rule(records, study, letter):
    ruled = {
        f"{c}.{t['name']}"
        for c, item in ledger.claims().items()
        for t in item["tests"]
        if c.startswith(letter)
    }
    values = STUDIES[study].values(records[study], {})
    assert set(values) == ruled
    for name, seeds in values.items():
        assert [len(seed) for seed in seeds] == [6, 6], name


@pytest.mark.parametrize("study", ["sinusoids", "descent"])
def test_evidence_is_written_and_read_and_small_samples_decide_nothing(records, study, tmp_path):
    path = STUDIES[study].write(Made(records[study], 1.0, SMALL[study]), tmp_path, command="x")
    table = [row for row in ledger.rows([tmp_path]) if row.evidence == path.as_posix()]
    assert table
    assert {row.verdict for row in table} == {"too few"}
    assert len(ledger.read_evidence(path)["records"]) == 2


def test_the_same_seed_gives_the_same_record(few, records):
    again = toy_maml.sinusoid_record(1, None, **SMALL["sinusoids"])
    first = dict(records["sinusoids"][1])
    assert {k: v for k, v in again.items() if k != "seconds"} == {
        k: v for k, v in first.items() if k != "seconds"
    }


class GradientDescent(torch.nn.Module):
    """A stand-in for the decoder that takes exact gradient steps from the iterate it reads, or
    recites them from the start.
    """

    def __init__(self, recites=False):
        super().__init__()
        self.recites = recites

    def forward(self, batch, iterates, kinds=()):
        if self.recites:
            return descent.gradient_descent(batch, iterates[:, 0], iterates.shape[1])[:, 1:], None
        return iterates - descent.INNER_LR * descent.support_gradient(
            batch, iterates.contiguous()
        ), None


def test_measures_tell_stepping_from_reciting():
    batch, w_0 = toy_maml.unseen_regressions(0)
    for recites, wanted in ((False, 0.0), (True, 1.0)):
        model = GradientDescent(recites)
        written = descent.write(model, batch, w_0, descent.STEPS)
        assert float(toy_maml.end_distance(model, batch, w_0).mean()) == pytest.approx(0, abs=1e-8)
        assert float(toy_maml.response_error(model, batch, written, 0).mean()) == pytest.approx(
            wanted, abs=1e-6
        )
        assert float(toy_maml.step_cosines(batch, written).min()) > 0.99
        assert float(toy_maml.step_errors(model, batch, w_0, "writer").max()) < 1e-8


def test_standing_still_has_distance_one_and_a_random_walk_no_cosine():
    batch, w_0 = toy_maml.unseen_regressions(1)
    explicit = descent.gradient_descent(batch, w_0, 6)
    assert float(toy_maml.relative_distance(w_0, explicit[:, -1], w_0).mean()) == pytest.approx(1)
    walk = torch.randn(
        len(batch), 50, descent.D, generator=torch.Generator().manual_seed(0)
    ).cumsum(1)
    assert abs(float(toy_maml.step_cosines(batch, walk).mean())) < 0.05


def test_foreign_and_straight_iterates_keep_the_start():
    written = torch.arange(24.0).view(3, 4, 2) ** 2
    foreign, straight = toy_maml.foreign_iterates(written), toy_maml.straight_iterates(written)
    assert torch.equal(foreign[:, 0], written[:, 0])
    assert torch.equal(foreign[1, 1:], written[0, 1:])
    assert torch.equal(straight[:, 0], written[:, 0])
    torch.testing.assert_close(straight[:, -1], written[:, -1])
    torch.testing.assert_close(straight.diff(dim=1)[:, 0], straight.diff(dim=1)[:, 2])


def test_the_implicit_values_of_a_foreign_path_are_those_of_its_iterates(few):
    writer = descent.Writer(0)
    batch, w_0 = descent.draw_tasks(6, torch.Generator().manual_seed(0), queries=2)
    written = descent.gradient_descent(batch, w_0, 3)
    values, means = toy_maml.implicit_values(writer, batch, written, 0)
    assert set(means) == {"readout", "answer", "foreign", "straight"}
    for index in (0, 4):
        own, foreign = (
            toy_maml.implicit_steps(writer, batch, iterates, index, "readout", 0).cosine.mean()
            for iterates in (written, toy_maml.foreign_iterates(written))
        )
        assert values["G3.cosine"][index] == pytest.approx(own, abs=1e-6)
        assert values["G3.over_foreign"][index] == pytest.approx(own - foreign, abs=1e-6)


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


def test_maml_on_mirrored_tasks_learns_a_start_near_zero():
    batch, _ = descent.draw_tasks(50, torch.Generator().manual_seed(0), queries=4)
    found = toy_maml.maml_comparison(GradientDescent(), batch, 0, 200)
    # the stand-in takes exact steps from the same start
    assert found["maml"] == pytest.approx(found["written"], rel=1e-4)
    assert max(found["start"]) < 0.3
    assert found["maml"] == sorted(found["maml"], reverse=True)
