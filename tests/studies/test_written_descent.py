"""The study of G: estimands on made-up cases whose values are known, complete rules, evidence."""

import pytest
import torch

from tml_lib.claims import ledger, rulebook
from tml_lib.meta import descent
from tml_lib.studies import written_descent
from tml_lib.studies.engine import Made

SMALL = {"train_steps": 2, "maml_steps": 1}


@pytest.fixture(scope="module")
def few():
    """Fewer unseen tasks: the study's structure, not its figures."""
    patch = pytest.MonkeyPatch()
    patch.setattr(written_descent, "UNSEEN", 6)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def records(few):
    return [written_descent.DESCENT.record(seed, None, **SMALL) for seed in (0, 1)]


def test_every_rule_has_values_and_every_value_a_rule(records):
    ruled = {
        f"{c}.{t['name']}"
        for c, item in rulebook.claims().items()
        for t in item["tests"]
        if c.startswith("G")
    }
    values = written_descent.DESCENT.values(records, {})
    assert set(values) == ruled
    for name, seeds in values.items():
        assert [len(seed) for seed in seeds] == [6, 6], name


def test_evidence_is_written_and_read_and_small_samples_decide_nothing(records, tmp_path):
    path = written_descent.DESCENT.write(Made(records, 1.0, SMALL), tmp_path, command="x")
    table = [row for row in ledger.rows([tmp_path]) if row.evidence == path.as_posix()]
    assert table
    assert {row.verdict for row in table} == {"too few"}
    kept = ledger.read_evidence(path)["records"]
    assert len(kept) == 2
    assert "values" not in kept[0]


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
    batch, w_0 = written_descent.unseen_regressions(0)
    for recites, wanted in ((False, 0.0), (True, 1.0)):
        model = GradientDescent(recites)
        written = descent.write(model, batch, w_0, descent.STEPS)
        assert float(written_descent.end_distance(model, batch, w_0).mean()) == pytest.approx(
            0, abs=1e-8
        )
        assert float(
            written_descent.response_error(model, batch, written, 0).mean()
        ) == pytest.approx(wanted, abs=1e-6)
        assert float(written_descent.step_cosines(batch, written).min()) > 0.99
        assert float(written_descent.step_errors(model, batch, w_0, "writer").max()) < 1e-8


def test_standing_still_has_distance_one_and_a_random_walk_no_cosine():
    batch, w_0 = written_descent.unseen_regressions(1)
    explicit = descent.gradient_descent(batch, w_0, 6)
    assert float(
        written_descent.relative_distance(w_0, explicit[:, -1], w_0).mean()
    ) == pytest.approx(1)
    walk = torch.randn(
        len(batch), 50, descent.D, generator=torch.Generator().manual_seed(0)
    ).cumsum(1)
    assert abs(float(written_descent.step_cosines(batch, walk).mean())) < 0.05


def test_foreign_and_straight_iterates_keep_the_start():
    written = torch.arange(24.0).view(3, 4, 2) ** 2
    foreign, straight = (
        written_descent.foreign_iterates(written),
        written_descent.straight_iterates(written),
    )
    assert torch.equal(foreign[:, 0], written[:, 0])
    assert torch.equal(foreign[1, 1:], written[0, 1:])
    assert torch.equal(straight[:, 0], written[:, 0])
    torch.testing.assert_close(straight[:, -1], written[:, -1])
    torch.testing.assert_close(straight.diff(dim=1)[:, 0], straight.diff(dim=1)[:, 2])


def test_the_implicit_values_of_a_foreign_path_are_those_of_its_iterates(few):
    writer = descent.Writer(0)
    batch, w_0 = descent.draw_tasks(6, torch.Generator().manual_seed(0), queries=2)
    written = descent.gradient_descent(batch, w_0, 3)
    values, means = written_descent.implicit_values(writer, batch, written, 0)
    assert set(means) == {"readout", "answer", "foreign", "straight"}
    for index in (0, 4):
        own, foreign = (
            written_descent.implicit_steps(
                writer, batch, iterates, index, "readout", 0
            ).cosine.mean()
            for iterates in (written, written_descent.foreign_iterates(written))
        )
        assert values["G3.cosine"][index] == pytest.approx(own, abs=1e-6)
        assert values["G3.over_foreign"][index] == pytest.approx(own - foreign, abs=1e-6)


def test_maml_on_mirrored_tasks_learns_a_start_near_zero():
    batch, _ = descent.draw_tasks(50, torch.Generator().manual_seed(0), queries=4)
    found = written_descent.maml_comparison(GradientDescent(), batch, 0, 200)
    # the stand-in takes exact steps from the same start
    assert found["maml"] == pytest.approx(found["written"], rel=1e-4)
    assert max(found["start"]) < 0.3
    assert found["maml"] == sorted(found["maml"], reverse=True)
