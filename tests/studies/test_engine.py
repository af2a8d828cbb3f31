"""The frame of every study: records kept one by one, values, evidence, replay."""

import copy
import dataclasses
import json
import math
import subprocess
import sys

import pytest

from tml_lib.claims import ledger, replay, rulebook
from tml_lib.data import gsm
from tml_lib.lm import fetching, presets
from tml_lib.studies import checkpoint, engine
from tml_lib.studies.engine import Study


class Interrupted(Exception):
    pass


@pytest.fixture
def study(monkeypatch):
    """A study whose record of a seed is its test's values; `made` lists the seeds that were
    measured.
    """
    made = []

    def record(seed, folder, *, n, lm=None):
        if seed == fail.get("at"):
            fail.clear()
            raise Interrupted
        made.append(seed)
        return {"values": {"C1.trend": [seed + k / 8 for k in range(n)]}}

    values = engine.by_seed(lambda record: record["values"])
    fail: dict = {}
    one = Study(
        "probes",
        record,
        values,
        lambda records: {"nested": True, "records": records},
        settings={"n": 2},
        first_losses=lambda seed: [seed + 0.5] * engine.FIRST,
        replays=(
            engine.records_again(values),
            engine.losses_again(lambda seed: [seed + 0.5] * engine.FIRST, 1),
        ),
    )
    return one, made, fail


def test_a_model_that_is_asked_to_think_has_checkpoints_of_its_own(study, tiny_lm, tmp_path):
    one, made, _ = study
    for thinking in (None, False, True, True):
        lm = dataclasses.replace(tiny_lm, thinking=thinking)
        one.run(range(1), tmp_path, inputs={"lm": lm})
    assert made == [0, 0, 0]
    asked = gsm.gsm_symbolic(2, 0)
    assert "thinking" not in engine.said_of(tiny_lm, asked)
    assert engine.said_of(lm, asked)["thinking"] is True


def test_evidence_in_bfloat16_says_so_and_is_replayed_where_it_is_computed(tiny_lm, monkeypatch):
    asked = gsm.gsm_symbolic(2, 0)
    half = copy.deepcopy(tiny_lm.model).bfloat16()
    said = engine.said_of(dataclasses.replace(tiny_lm, model=half), asked)
    assert said["dtype"] == "bfloat16"
    assert "dtype" not in engine.said_of(tiny_lm, asked)
    monkeypatch.setattr(engine.presets, "is_replayed", lambda scale, model: True)
    evidence = {"scale": "medium", "settings": said, "templates": ["1", "2"]}
    wide = evidence | {"settings": {}}
    for dtype, drawn in (("bfloat16", 2), ("float32", 0)):
        monkeypatch.setattr(engine.runtime, "hardware_dtype", lambda dtype=dtype: (dtype, ""))
        assert len(engine.questions_of(evidence)) == drawn
        assert len(engine.questions_of(wide)) == 2


def test_evidence_of_other_questions_is_told_by_their_texts_or_their_templates(tiny_lm):
    asked = gsm.gsm_symbolic(3, 0)
    templates = [question.template for question in asked]
    evidence = {"settings": engine.said_of(tiny_lm, asked), "command": "make it"}
    engine.check_asked(evidence, asked)
    other = [dataclasses.replace(asked[0], answer="1"), *asked[1:]]
    with pytest.raises(ValueError, match=r"was made for other questions .* with `make it`"):
        engine.check_asked(evidence, other)
    older = {"settings": {}, "command": "make it", "templates": templates}
    engine.check_asked(older, other)
    with pytest.raises(ValueError, match="was made for other questions"):
        engine.check_asked(older, asked[::-1])


def test_an_interrupted_study_resumes_after_the_last_finished_record(study, tmp_path, capsys):
    one, made, fail = study
    fail["at"] = 2
    with pytest.raises(Interrupted):
        one.run(range(4), tmp_path)
    found = one.run(range(4), tmp_path, progress=True)
    assert made == [0, 1, 2, 3]
    assert [record["values"]["C1.trend"][0] for record in found.records] == [0, 1, 2, 3]
    assert found.seconds > 0
    assert capsys.readouterr().out == "probes: 3 of 4\nprobes: 4 of 4\n"


def test_records_are_found_by_their_item_whatever_the_order(study, tmp_path):
    one, made, _ = study
    one.run([0, 1], tmp_path)
    found = one.run([2, 1], tmp_path).records
    assert [record["values"]["C1.trend"][0] for record in found] == [2, 1]
    assert made == [0, 1, 2]


@pytest.mark.parametrize("change", ["setting", "protocol", "model", "question"])
def test_another_setting_protocol_or_model_starts_afresh(
    study, tmp_path, monkeypatch, tiny_lm, lm, change
):
    one, made, _ = study
    items = gsm.gsm_symbolic(2, 0) if change == "question" else [0]
    if change == "question":
        one = Study("probes", lambda question, folder: made.append(question.id) or {})
    inputs = {"lm": tiny_lm} if change == "model" else {}
    one.run(items[:1], tmp_path, inputs=inputs)
    if change == "protocol":
        monkeypatch.setattr(rulebook, "protocol", lambda name: f"{name}/0")
    settings = {"n": 3} if change == "setting" else {}
    one.run(items[-1:], tmp_path, inputs={"lm": lm} if change == "model" else inputs, **settings)
    assert len(made) == 2


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "null", '{"records": []}', '{"seconds": 1}', "[" * 10_000),
        '{"seconds": 1, "records": {}, "seconds_of": {"0": "long"}}',
    ],
)
def test_a_damaged_checkpoint_is_named_with_what_to_do(study, tmp_path, text):
    one, _, _ = study
    one.run([0], tmp_path)
    (kept,) = tmp_path.glob("*.checkpoint")
    kept.write_text(text)
    with pytest.raises(ValueError, match=rf"{kept.name} is damaged .*: delete it, and its"):
        one.run([0], tmp_path)


def test_evidence_holds_values_settings_and_first_losses(study, tmp_path):
    one, _, _ = study
    path = one.evidence(range(2), tmp_path, command="a test", n=3)
    found = ledger.read_evidence(path)
    assert path.name == "probes.tiny.json"
    assert found["values"] == {"C1.trend": [[0, 0.125, 0.25], [1, 1.125, 1.25]]}
    assert found["settings"] == {"seeds": 2, "n": 3}
    assert [losses[0] for losses in found["first_losses"]] == [0.5, 1.5]
    assert one.evidence([], tmp_path, command="a test") is None


def test_its_replays_agree_and_find_a_changed_value(study, tmp_path):
    one, _, _ = study
    path = one.evidence(range(2), tmp_path, command="a test")
    checks = list(replay.verify(path, one.replays, records=2))
    assert {check.kind for check in checks} == {replay.ESTIMANDS, replay.FIRST_STEPS}
    assert all(check.ok for check in checks)
    held = json.loads(path.read_text())
    held["values"]["C1.trend"][1][1] += 0.01
    held["first_losses"][0] = [0.6] * engine.FIRST
    path.write_text(json.dumps(held))
    wrong = [c for c in replay.verify(path, one.replays, records=2) if not c.ok]
    assert {(c.record, c.kind) for c in wrong} == {
        ("seed 1", replay.ESTIMANDS),
        ("seed 0", replay.FIRST_STEPS),
    }


def test_values_of_questions_are_one_seed_and_keep_what_is_missing():
    values = engine.by_question(lambda record, settings: {"C1.trend": record * settings["by"]})
    found = values([1.0, math.nan], {"by": 2})["C1.trend"]
    assert found[0][0] == 2
    assert math.isnan(found[0][1])


def test_settings_in_another_order_are_the_same_settings(tmp_path):
    made = []
    one = Study("probes", lambda item, folder, **settings: made.append(item) or {})
    one.run([0], tmp_path, a=1, b={"c": 2, "d": 3})
    one.run([0], tmp_path, b={"d": 3, "c": 2}, a=1)
    assert made == [0]


def test_seconds_are_those_of_the_records_that_are_asked_for(study, tmp_path):
    one, _, _ = study
    both = one.run([0, 1], tmp_path)
    parts = [one.run([item], tmp_path).seconds for item in (0, 1)]
    assert all(part > 0 for part in parts)
    assert both.seconds == pytest.approx(sum(parts))


def test_a_checkpoint_of_an_older_version_is_read_on(study, tmp_path, monkeypatch):
    """It was named by its settings' order, and knew the sum of its records' seconds only."""
    one, made, _ = study
    one.run([0, 1], tmp_path)
    (newer,) = tmp_path.glob("*.checkpoint")
    names = []

    def place(folder, study, key):
        names.append(checkpoint.digest(key))
        return newer

    monkeypatch.setattr(checkpoint, "place", place)
    one.run([0], tmp_path)
    monkeypatch.undo()
    held = json.loads(newer.read_text())
    newer.unlink()
    older = tmp_path / f"probes-{names[0]}.checkpoint"
    older.write_text(json.dumps({"seconds": 8.0, "records": held["records"]}))
    assert one.run([1, 0], tmp_path).seconds == 8.0
    assert one.run([1], tmp_path).seconds == 4.0
    assert 4.0 < one.run([0, 2], tmp_path).seconds < 8.0
    assert made == [0, 1, 2]
    assert list(tmp_path.glob("*.checkpoint")) == [older]


def test_a_study_without_values_writes_no_evidence(tmp_path):
    one = Study("probes", lambda item, folder: {})
    with pytest.raises(ValueError, match="probes has no values"):
        one.write(one.run([0], tmp_path), tmp_path, command="a test")


SHARED = """
import os, sys, time
from pathlib import Path
from tml_lib.studies import engine
def record(item, folder):
    time.sleep(0.02)
    with open(folder / "made", "a") as file:
        file.write(f"{item}\\n")
    return {"item": item}
study = engine.Study("trajectories", record=record, values=engine.by_question(
    lambda found, settings: {"C1.fall": float(found["item"])}
))
children = []
for step in (1, -1, 1):
    children.append(os.fork())
    if not children[-1]:
        study.evidence(list(range(20))[::step], Path(sys.argv[1]), command="a test")
        os._exit(0)
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
"""


def test_counts_of_cut_samples_are_found_in_all_parts_of_records():
    records = [{"cut": [1, 4], "arms": {"a": {"cut": [0, 2], "cuts": [9, 9]}}}, {"right": [1, 0]}]
    assert engine.cut_counts(records) == [[1, 4], [0, 2]]
    assert engine.cut_counts([{"right": [1, 0]}]) == []


def test_processes_that_share_a_checkpoint_and_evidence_are_all_right(tmp_path):
    """Three at once, one in the other order: each record is made once, none is lost, and the
    evidence is whole.
    """
    command = [sys.executable, "-c", SHARED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (kept,) = tmp_path.glob("*.checkpoint")
    held = json.loads(kept.read_text())
    made = (tmp_path / "made").read_text().split()
    assert sorted(map(int, made)) == list(range(20))
    assert sorted(record["item"] for record in held["records"].values()) == list(range(20))
    found = ledger.read_evidence(tmp_path / "trajectories.tiny.json")
    assert sorted(found["values"]["C1.fall"][0]) == [float(k) for k in range(20)]
    left = {path.name for path in tmp_path.iterdir()} - {"made"}
    assert left == {kept.name, "trajectories.tiny.json", ".lock"}, "no temporary file is left"


def test_a_text_study_is_made_again_only_by_a_model_that_the_kit_knows_and_has(
    monkeypatch, tmp_path
):
    monkeypatch.setenv("TML_CACHE", str(tmp_path))
    medium = presets.PRESETS["medium"].model

    def asked(scale, model):
        said = {"scale": scale, "settings": {"model": model}, "templates": ["1", "2"]}
        return engine.questions_of(said)

    both = ["question 0", "question 1"]
    assert asked("small", presets.EMBEDDED_NAME) == both
    assert asked("small-sft", f"{presets.EMBEDDED_NAME}+sft") == both
    assert asked("medium", medium) == [], "its weights are not fetched"
    weights = fetching.known()[medium]
    weights.folder.mkdir(parents=True)
    weights.gguf.touch()
    assert asked("medium", medium) == both
    others = [("small", "mine"), ("medium", "mine"), ("medium-aime24", medium), ("gpu", medium)]
    assert [asked(*other) for other in others] == [[]] * 4
