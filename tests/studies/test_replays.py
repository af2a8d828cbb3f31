"""The stored evidence, made again: a record of every file that has one cheaper than a minute."""

import json

import pytest

from tml_lib.claims import ledger, replay, rulebook
from tml_lib.lessons import notebooks
from tml_lib.studies.replays import REPLAYS

FILES = sorted(notebooks.stored_evidence().glob("*.json"))
WITHIN = 60  # seconds of a record on one core


def test_every_study_can_be_replayed():
    assert set(REPLAYS) == set(rulebook.protocols())
    assert {path.name.split(".")[0] for path in FILES} <= set(REPLAYS)


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_record_drawn_at_random_comes_out_as_it_is_stored(path):
    evidence = ledger.read_evidence(path)
    replays = REPLAYS[evidence["study"]]
    possible = [r for r in replays if r.cost(evidence) <= WITHIN and r.names(evidence)]
    checks = list(replay.verify(path, replays, within=WITHIN))
    assert [c.row for c in checks if not c.ok] == []
    assert {c.kind for c in checks} == {r.kind for r in possible}
    if not possible:
        pytest.skip(
            f"a record of {path.name} takes over {WITHIN} s, or its model is not here: `python -m"
            f" tml_lib verify {evidence['study']}`"
        )


@pytest.mark.parametrize("name", ["published.published", "sft.tiny", "lora.small"])
def test_a_value_that_was_changed_is_found(name, tmp_path):
    """Every value of a test is moved; the cheapest way of replay notices."""
    source = notebooks.stored_evidence() / f"{name}.json"
    record = json.loads(source.read_text())
    test = sorted(record["values"])[0]
    moved = [[None if x is None else x + 0.5 for x in seed] for seed in record["values"][test]]
    path = tmp_path / source.name
    path.write_text(json.dumps(record | {"values": record["values"] | {test: moved}}))
    cheapest = min(REPLAYS[record["study"]], key=lambda r: r.seconds)
    wrong = [c.test for c in replay.verify(path, [cheapest]) if not c.ok]
    assert wrong
    assert {name.split(",")[0] for name in wrong} == {test}
