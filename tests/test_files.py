"""Files that cannot be read: each kind, for each reader of the kit, ends at once in an error that
names the file, the reason and the next step.
"""

import json
import math
import os
import stat
import subprocess
import sys

import numpy as np
import pytest
import torch

from tml_lib import files, parameters
from tml_lib.claims import ledger, rulebook
from tml_lib.data import hub, tiny
from tml_lib.lessons import generated, notebooks, run_folders
from tml_lib.lm import adapters, models, quantised
from tml_lib.lm.models import LanguageModel
from tml_lib.studies import engine, published
from tml_lib.tools import checkpoints, cli, plan_shapes, sweep, sweep_run
from tml_lib.train import dpo, runs, sft

STUDY = engine.Study("trajectories", record=lambda item, folder: {"value": item})


# --- what a file may be ---------------------------------------------------------------------------


def sparse(path):
    with open(path, "wb") as file:
        file.truncate(20 << 30)


def content(held):
    return lambda path: path.write_bytes(held)


KINDS = {
    "a directory": (lambda path: path.mkdir(), "is a directory"),
    "a circle of links": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    "a named pipe": (os.mkfifo, "is a named pipe"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is a device"),
    "20 GB of nothing": (sparse, "has 21474836480 bytes"),
    "empty": (content(b""), "is damaged"),
    "cut": (content(b'{"values": {"C1'), "is damaged"),
    "binary": (content(b"\xff\x00\x80" * 9), "no UTF-8"),
    "UTF-16": (content('{"a": 1}'.encode("utf16")), "no UTF-8"),
    "zeros": (content(b"\0" * 4096), "is damaged"),
    "10,000 lists deep": (content(b"[" * 10_000), "nested too deeply"),
    "10,000 objects deep": (content(b'{"a":' * 10_000), "nested too deeply"),
    "a number too long": (content(b'{"a":' + b"9" * 5000 + b"}"), "is damaged"),
    "a list": (content(b"[]"), "it holds a list"),
    "null": (content(b"null"), "it holds a NoneType"),
    "a number": (content(b"3"), "it holds a int"),
    "an empty object": (content(b"{}"), "it lacks"),
}


def checkpoint(path):
    """Run a study whose checkpoint this is."""
    STUDY.run([1], path.parent)


def checkpoint_path(folder):
    STUDY.run([1], folder / "study")
    (path,) = (folder / "study").glob("*.checkpoint")
    path.unlink()
    return path


def state_path(folder):
    (folder / "state").mkdir()
    (folder / "05_a.ipynb").touch()
    return folder / "state" / "05_a.json"


def claim_path(folder):
    (folder / "run").mkdir()
    return folder / "run" / "run.json"


def claim(path):
    lm = type("Model", (), {"model": torch.nn.Linear(1, 1), "tokenizer": [1]})
    runs.claim(path.parent, lm, {}, [])


def measured(path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notebooks, "folder", lambda: path.parent)
        generated.measured()


def manifest(path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "manifest_file", lambda: path)
        checkpoints.manifest()


# name -> (where the file is, what reads it, a part of the next step)
READERS = {
    "evidence": (lambda f: f / "a.small.json", ledger.read_evidence, "make it again"),
    "ledger": (lambda f: f / "a.small.json", lambda p: ledger.rows([p.parent]), "make it again"),
    "a study's checkpoint": (checkpoint_path, checkpoint, "delete it, and its records are made"),
    "a run's state": (
        state_path,
        lambda p: run_folders.finished(p.parent.parent, "05_a", {}),
        "delete it, and `run --resume` executes the notebook again",
    ),
    "what a run was begun with": (
        lambda f: f / "run.json",
        lambda p: run_folders.begun_with(p.parent),
        "start a new run, without --resume",
    ),
    "a notebook": (lambda f: f / "05_a.ipynb", notebooks._describe, "back from git"),
    "a notebook as such": (lambda f: f / "a.ipynb", lambda p: files.notebook(p, "no"), "no"),
    "measured.json": (lambda f: f / "measured.json", measured, "back from git"),
    "the manifest": (lambda f: f / "manifest.json", manifest, "back from git"),
    "a claim": (claim_path, claim, "the run then begins at step 0"),
    "a sweep's record": (
        lambda f: f / "run.json",
        lambda p: sweep_run.over(p.parent) and sweep_run.record(p.parent),
        "delete the folder of this run",
    ),
    "a sweep's settings": (
        lambda f: f / "settings.json",
        lambda p: sweep_run.finish(p.parent, state="failed"),
        "delete the folder of this run",
    ),
    "a model to plan": (
        lambda f: f / "config.json",
        lambda p: plan_shapes.shape(str(p.parent)),
        "give the folder that `save_pretrained` wrote",
    ),
}
# any object will do for these, which say themselves what it lacks
ANY_OBJECT = {"a claim", "a model to plan", "the manifest"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_names_the_file_the_reason_and_the_next_step(tmp_path, reader, kind):
    where, read, step = READERS[reader]
    make, reason = KINDS[kind]
    if kind == "an empty object" and reader in ANY_OBJECT:
        pytest.skip("an empty object is one")
    if reader == "a notebook as such" and reason.startswith("it "):
        reason = "is damaged"  # nbformat has its own words
    path = where(tmp_path)
    make(path)
    with pytest.raises(files.Unreadable) as caught:
        read(path)
    said = str(caught.value)
    assert said.startswith(f"{path} ")
    assert reason in said
    assert step in said
    assert len(said) < 700


TABLES = {
    "claims.toml": rulebook._parsed.__wrapped__,
    "published.toml": published.models,
    "sweep.yaml": sweep.read,
}
TEXTS = [kind for kind in KINDS if KINDS[kind][1].startswith(("is a", "Too", "has", "no UTF"))]


@pytest.mark.parametrize("kind", [kind for kind in TEXTS if kind != "UTF-16"])
@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_read_by_the_same_reader(tmp_path, name, kind):
    make, reason = KINDS[kind]
    make(tmp_path / name)
    with pytest.raises(files.Unreadable) as caught:
        TABLES[name](tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    if name != "sweep.yaml" or kind not in ("empty", "zeros"):
        assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.toml", "a = [1, 2", "TOMLDecodeError"),
        ("a.toml", "a = " + "[" * 10_000, "nested too deeply"),
        ("a.toml", "a = 1\na = 2", "TOMLDecodeError"),
        ("a.yaml", "a: [1, 2", "ValueError: while parsing a flow sequence"),
        ("a.yaml", "a: " + "[" * 10_000, "nested too deeply"),
        ("a.yaml", "a: !!python/object/apply:os.system ['true']", "could not determine"),
        ("a.yaml", "a: &x [1]\nb: [*x, *x]", "it has an alias"),
        ("a.yaml", "- 1", "it holds a list"),
        ("a.json", '{"n": 1, "f": 1.5, "b": "yes"}', "b is a str, no bool"),
        ("a.json", '{"n": true, "f": 1.5, "b": true}', "n is a bool, no int"),
        ("a.json", '{"n": 1, "f": true, "b": true}', "f is a bool, no float"),
        ("a.json", '{"n": 1.5, "f": 1.5, "b": true}', "n is a float, no int"),
        ("a.json", '{"n": 1, "f": null, "b": true}', "f is a NoneType, no float"),
    ],
)
def test_syntax_and_types_are_told(tmp_path, name, text, reason):
    (tmp_path / name).write_text(text)
    wanted = {"n": int, "f": float, "b": bool} if name.endswith("json") else {}
    with pytest.raises(files.Unreadable) as caught:
        files.table(tmp_path / name, "write it again", wanted)
    assert str(caught.value).startswith(f"{tmp_path / name} is damaged (")
    assert str(caught.value).endswith("): write it again")
    assert reason in str(caught.value)


def test_what_is_sound_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"f": 1, "ä": [null]}', encoding="utf8")
    assert files.table(tmp_path / "a.json", "", {"f": float}) == {"f": 1, "ä": [None]}
    (tmp_path / "link").symlink_to(tmp_path / "a.json")
    assert files.text(tmp_path / "link", "") == '{"f": 1, "ä": [null]}'
    (tmp_path / "a.toml").write_text("[b]\nc = 1")
    assert files.table(tmp_path / "a.toml", "") == {"b": {"c": 1}}
    for book in sorted(notebooks.folder().glob("1*.ipynb")):
        assert files.notebook(book, "").cells


@pytest.mark.parametrize("read", [files.text, files.digest, files.table])
def test_a_file_that_is_not_there_is_no_damage(tmp_path, read):
    (tmp_path / "link").symlink_to(tmp_path / "none")
    for path in (tmp_path / "none", tmp_path / "link", tmp_path / "no" / "folder"):
        with pytest.raises(FileNotFoundError, match=f"{path} does not exist: make it"):
            read(path, "make it")
    (tmp_path / "file").touch()
    with pytest.raises(files.Unreadable, match="Not a directory"):
        read(tmp_path / "file" / "below", "make it")


UNREADABLE = """
import os, sys
from tml_lib import files
os.setuid(65534)
for read in (files.text, files.digest):
    try:
        read(sys.argv[1], "ask its owner")
    except files.Unreadable as error:
        print(error)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
def test_a_file_that_this_user_may_not_read_is_named(tmp_path):
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(folder.stat().st_mode | stat.S_IXOTH)
    path = tmp_path / "mine"
    path.touch(0o600)
    command = [sys.executable, "-c", UNREADABLE, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    said = f"{path} cannot be read (Permission denied): ask its owner\n"
    assert done.stdout == said * 2, done.stderr


def test_a_file_that_grows_while_it_is_read_is_read_to_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST", 10)
    (tmp_path / "a").write_text("x" * 11)
    files.check(tmp_path / "a", "", most=100)
    monkeypatch.setattr(files, "check", lambda path, step: None)
    with pytest.raises(files.Unreadable, match="has more than 10 bytes"):
        files.text(tmp_path / "a", "")


# --- what is written ------------------------------------------------------------------------------

NUMBERS = [
    (np.float32(1.5), 1.5),
    (np.float64(2.5), 2.5),
    (np.int64(3), 3),
    (np.uint8(4), 4),
    (np.array(2.5), 2.5),
    (torch.tensor(1.5), 1.5),
    (np.float16(math.nan), None),
    (math.nan, None),
    (None, None),
]


def write(folder, **changed):
    parts = {"values": {"C1.fall": [[1.0]]}, "settings": {}, "wall_seconds": 1.0} | changed
    return ledger.write_evidence(folder, "trajectories", "tiny", command="make it", **parts)


@pytest.mark.parametrize(("number", "written"), NUMBERS, ids=repr)
def test_numbers_of_numpy_and_torch_are_written_as_numbers(tmp_path, number, written):
    path = write(
        tmp_path,
        values={"C1.fall": [[number, 1.0]]},
        settings={"a": number},
        wall_seconds=np.float32(1.0),
        extra={"curve": {"b": (number, [number])}},
    )
    found = ledger.read_evidence(path)
    assert found["values"] == {"C1.fall": [[written, 1.0]]}
    assert found["settings"] == {"a": written}
    assert found["curve"] == {"b": [written, [written]]}


def test_arrays_are_written_as_lists_and_numbers_as_keys(tmp_path):
    values = {"C1.fall": np.arange(6, dtype=np.float32).reshape(2, 3)}
    path = write(tmp_path, values=values, extra={"by": {np.int64(3): np.bool_(True), 0.5: "x"}})
    found = ledger.read_evidence(path)
    assert found["values"] == {"C1.fall": [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]}
    assert found["by"] == {"3": True, "0.5": "x"}


@pytest.mark.parametrize(
    "value",
    [{1, 2}, 1j, object(), b"x", notebooks.folder()],
    ids=lambda value: type(value).__name__,
)
def test_what_json_cannot_hold_is_refused_with_its_place(tmp_path, value):
    with pytest.raises(
        TypeError, match=r"evidence\['settings'\]\['a'\]\[1\] is .*: give text, num"
    ):
        write(tmp_path, settings={"a": [1, value]})
    with pytest.raises(TypeError, match=r"a record of trajectories\['value'\] is "):
        STUDY.run([0], tmp_path) and STUDY.__class__(
            "trajectories", record=lambda item, folder: {"value": value}
        ).run([1], tmp_path)
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("values", [[1.0, 2.0], [], 3.0, [["x"]], [[True]], np.ones(3)], ids=repr)
def test_values_of_another_shape_are_refused_before_they_are_written(tmp_path, values):
    with pytest.raises(ValueError, match=r"values\['C1\.fall'\] is no list of lists of numbers"):
        write(tmp_path, values={"C1.fall": values})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("study", ["a"], "study is a list, no str"),
        ("scale", 3, "scale is a int, no str"),
        ("protocol", None, "protocol is a NoneType, no str"),
        ("settings", [], "settings is a list, no dict"),
        ("wall_seconds", "1", "wall_seconds is a str, no float"),
        ("templates", 3, "templates is no label per question"),
        ("templates", ["a", "b"], "templates is no label per question"),
        ("values", {"C1.fall": [[True]]}, "is no list of lists of numbers"),
        ("values", {"C1.fall": [[math.nan]]}, "is no list of lists of numbers"),
    ],
)
def test_evidence_of_another_shape_is_refused_by_path(tmp_path, field, value, reason):
    path = write(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(files.Unreadable, match=f"{path} is damaged") as caught:
        ledger.rows([tmp_path])
    assert reason in str(caught.value)


def test_the_kit_reads_files_in_one_place_only():
    """Text, JSON, TOML, YAML and notebooks go through `files`; `runtime` reads /proc/cpuinfo."""
    readers = (
        "read_text(",
        "read_bytes(",
        "tomllib",
        "yaml.safe_load",
        "json.load(",
        "nbformat.read",
    )
    for path in sorted((notebooks.folder().parent / "tml_lib").rglob("*.py")):
        source = path.read_text(encoding="utf8")
        found = [name for name in readers if name in source]
        assert found == [] or path.name in ("files.py", "runtime.py"), (path, found)
    assert parameters._entry("no entry", notebooks.folder()).startswith("the entries are ")


# --- a number where a path or a name is expected --------------------------------------------------

FOLDERS = {
    "write_evidence": lambda value: write(value),
    "read_evidence": ledger.read_evidence,
    "a study": lambda value: STUDY.run([1], value),
    "an adapter": lambda value: adapters.adapted(None, value),
    "which model an adapter is of": lambda value: adapters.belongs(None, value),
    "a set of one's own": lambda value: hub.fixture("aime24", value, 1),
    "a sweep": sweep.read,
    "a model to plan": plan_shapes.shape,
    "a model in 4 bits": quantised.load_4bit,
    "a model": lambda value: models.load("tiny", model=value),
    "questions": lambda value: hub.questions("aime24", source=value),
    "SFT": lambda value: train(sft.sft, sft.SFTSettings, [([5, 6], 1)], value),
    "DPO": lambda value: train(dpo.dpo, dpo.DPOSettings, [([5], [6], [7])], value),
}


def train(method, settings, rows, folder):
    lm = LanguageModel(tiny.new_model(0), tiny.tokenizer(), "start")
    method(lm, rows, folder, settings(steps=1, peak_lr=1e-3, batch=1))


@pytest.mark.parametrize("value", [3, 1.5, None, True, b"x", ["x"]], ids=repr)
@pytest.mark.parametrize("call", FOLDERS)
def test_a_place_of_another_type_is_refused_and_nothing_is_written(
    tmp_path, monkeypatch, call, value
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError) as caught:
        FOLDERS[call](value)
    said = str(caught.value)
    assert f"is {value!r}, of type {type(value).__name__}: give " in said
    assert said.split()[0] in ("folder", "path", "model", "name", "source")
    assert not list(tmp_path.iterdir())


def test_an_empty_place_is_refused_where_something_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for call in ("write_evidence", "a study", "a set of one's own", "SFT"):
        with pytest.raises(ValueError, match="folder='' names no place: give a folder"):
            FOLDERS[call]("")
    assert not list(tmp_path.iterdir())


def test_one_folder_where_several_are_wanted_is_refused(tmp_path):
    for value in (tmp_path, str(tmp_path)):
        with pytest.raises(TypeError, match="is one place: give a list of folders"):
            ledger.rows(value)


def test_evidence_is_not_written_over_a_directory(tmp_path):
    (tmp_path / "trajectories.tiny.json").mkdir()
    with pytest.raises(IsADirectoryError, match=r"tiny\.json is a directory: move it away"):
        write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["trajectories.tiny.json"]


@pytest.mark.parametrize("out", ["3", "[a]", "true", "''", "{a: b}"])
def test_the_place_of_a_sweep_is_a_text(tmp_path, out):
    text = f"outer: sft\nout: {out}\ngrid: {{seed: [0]}}"
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises((TypeError, ValueError), match=r"sweep\.yaml: out.*give a folder"):
        sweep.read(tmp_path / "sweep.yaml")


@pytest.mark.parametrize("option", ["run --jobs", "bench --rounds"])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "x", ""])
def test_a_count_on_the_command_line_is_at_least_one(capsys, option, value):
    command, flag = option.split()
    with pytest.raises(SystemExit):
        cli.main([command, f"{flag}={value}"])
    assert f"{value!r} is no whole number of at least 1" in capsys.readouterr().err
