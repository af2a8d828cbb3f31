"""Replay: records drawn at random, compared within stated tolerances."""

import json
import math

import pytest

from tml_lib.claims import ledger, replay, rulebook
from tml_lib.claims.replay import ESTIMANDS, FIRST_STEPS, RECORD, Check, Replay


@pytest.fixture
def evidence(tmp_path):
    """Ten questions whose value is their number."""
    values = {"C1.fall": [[float(k) for k in range(10)]]}
    return ledger.write_evidence(
        tmp_path, "trajectories", "small", values, command="c", settings={}, wall_seconds=0
    )


def remade(shift: float, seconds: float = 1.0) -> Replay:
    """A replay that gives every question its number again, and a shift."""
    names = [f"question {k}" for k in range(10)]

    def again(evidence, name):
        k = int(name.split()[1])
        return {"C1.fall": (evidence["values"]["C1.fall"][0][k], k + shift)}

    return Replay(RECORD, lambda evidence: names, again, seconds)


def test_records_are_drawn_by_the_seed_and_without_repeats(evidence):
    first, again, other = (
        list(replay.verify(evidence, [remade(0)], records=4, seed=seed)) for seed in (0, 0, 1)
    )
    assert [c.record for c in first] == [c.record for c in again]
    assert [c.record for c in first] != [c.record for c in other]
    assert len({c.record for c in first}) == 4
    assert all(c.ok for c in first)


def test_no_more_records_are_drawn_than_there_are(evidence):
    assert len(list(replay.verify(evidence, [remade(0)], records=99))) == 10


@pytest.mark.parametrize(
    ("shift", "ok"), [(0.019, True), (-0.019, True), (0.021, False), (math.nan, False)]
)
def test_a_replay_may_differ_by_the_studys_tolerance(evidence, shift, ok):
    (check,) = replay.verify(evidence, [remade(shift)])
    assert rulebook.protocols()["trajectories"]["tolerance"] == 0.02
    assert check.ok == ok


def test_what_takes_longer_than_asked_is_left_out(evidence):
    checks = replay.verify(evidence, [remade(0, seconds=61), remade(0, seconds=5)], within=60)
    assert len(list(checks)) == 1


def test_a_record_takes_what_it_took_in_the_run_of_a_larger_model(evidence):
    kept = ledger.read_evidence(evidence)
    assert remade(0, seconds=5).cost(kept) == 5
    larger = kept | {"wall_seconds": 700, "templates": ["t"] * 10}
    assert remade(0, seconds=5).cost(larger) == 70
    training = Replay(FIRST_STEPS, lambda evidence: ["seed 0"], lambda evidence, name: {}, 5)
    assert training.cost(larger) == 5, "only its first steps are run"


@pytest.mark.parametrize(
    ("stored", "replayed", "ok"),
    [(math.nan, math.nan, True), (math.nan, 0.0, False), (0.0, math.nan, False)],
)
def test_no_number_is_met_by_no_number_only(stored, replayed, ok):
    assert Check("file", "question 0", RECORD, "C1.fall", stored, replayed, 0.1).ok == ok


def test_tolerances_depend_on_the_kind_of_replay():
    rules = rulebook.protocols()["chain"]

    def of(study, **settings):
        return {"study": study, "settings": settings}

    half = [of("text", dtype=name) for name in ("bfloat16", "float32")]
    found = [replay.tolerance(one, RECORD, "C3.loss", 5.0) for one in half]
    assert found == [0.15 + replay.ROUNDING, 0.02 + replay.ROUNDING]
    assert replay.tolerance(of("chain"), RECORD, "C5s.room", 5.0) == pytest.approx(
        rules["tolerance"], abs=1e-4
    )
    assert replay.tolerance(of("chain"), FIRST_STEPS, "loss", 5.0) == 5 * rules["loss_tolerance"]
    assert replay.tolerance(of("chain"), ESTIMANDS, "C5s.room", 5.0) == replay.ROUNDING
    wide = replay.tolerance(of("updates"), RECORD, "C11.exact", -13.0)
    assert wide == pytest.approx(0.5, abs=1e-4), "a test may have a tolerance of its own"


def test_a_check_is_a_row_of_json_and_a_line_of_text():
    good = Check("a.json", "seed 1", RECORD, "C1.fall", 1.0, 1.01, 0.02)
    bad = Check("a.json", "seed 1", RECORD, "C1.trend", math.nan, 1.0, 0.02)
    assert json.loads(json.dumps(bad.row))["stored"] is None
    keys = {"evidence", "record", "kind", "test", "stored", "replayed", "tolerance", "ok"}
    assert set(good.row) == keys
    _, line = replay.to_text([good, bad]).splitlines()
    assert "1 of 2" in line
    assert "C1.trend" in line
    assert line.endswith("DIFFERS")
    assert "DIFFERS" not in replay.to_text([good])
