"""Sweeps: the whole grid once, deaths survived on loky and on a local Dask cluster, bad files
refused.
"""

import json
import os
import re
from argparse import Namespace
from pathlib import Path

import nbformat
import psutil
import pytest
import yaml

from tml_lib.lessons import notebooks
from tml_lib.lm import models
from tml_lib.studies import supervised
from tml_lib.tools import sweep, sweep_run

PARAMETERS = """
fate: str = "fine"
rate: float = 0.1
seed: int = 0
log: str = ""
"""
BODY = """
import os, psutil
from pathlib import Path
first = not Path(f"{log}.{fate}").exists()
Path(f"{log}.{fate}").touch()
with open(log, "a") as file:
    print(fate, rate, seed, os.environ["OMP_NUM_THREADS"], file=file)
me = psutil.Process()
fatal = fate == "once" and first or fate == "always" and not Path(f"{log}.mended").exists()
for process in reversed(me.parents()[:2]) if fatal else ():
    process.kill()  # the worker, then its child
if fatal:
    me.kill()
if fate == "error" and not Path(f"{log}.mended").exists():
    raise ValueError("as | told")
Path(os.environ["TML_EVIDENCE"], "made.json").write_text("{}")
"""


def write_book(folder, name, body):
    cells = [
        nbformat.v4.new_markdown_cell(f"# {name}"),
        nbformat.v4.new_code_cell(PARAMETERS.strip()),
        nbformat.v4.new_code_cell(body),
    ]
    cells[1].metadata = {"tags": ["parameters"]}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / f"{name}.ipynb")


@pytest.fixture
def books(tmp_path, monkeypatch):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.setattr(notebooks, "folder", lambda: folder)
    for name in ("00_fates", "01_one", "01_two"):
        write_book(folder, name, BODY)
    return folder


@pytest.fixture
def file(tmp_path):
    """Writes a sweep file of the given keys."""

    def write(**settings):
        path = tmp_path / "tried.yaml"
        path.write_text(yaml.safe_dump({"out": str(tmp_path / "out")} | settings, sort_keys=False))
        return path

    return write


@pytest.fixture
def in_this_process(monkeypatch):
    """Tries without an engine and a process each, in this one."""

    def one_round(folders, *rest):
        for folder in folders:
            monkeypatch.setenv("TML_EVIDENCE", str(folder / "evidence"))
            monkeypatch.setenv("OMP_NUM_THREADS", "1")
            (folder / "tries").write_text("now\n")
            sweep_run._try(folder)

    monkeypatch.setattr(sweep, "_round", one_round)


def executed(log):
    return sorted(log.read_text().splitlines())


# --- running --------------------------------------------------------------------------------------


@pytest.mark.timeout(2700)
@pytest.mark.parametrize("engine", ["loky", "dask"])
def test_a_killed_worker_costs_a_try_and_the_others_finish(engine, books, file, tmp_path):
    log = tmp_path / "log"
    path = file(notebook="00", grid={"fate": ["fine", "once", "always"]}, fixed={"log": str(log)})
    fine, once, always = sweep.execute(sweep.read(path), engine, workers=2)
    assert [row["state"] for row in (fine, once, always)] == ["finished", "finished", "failed"]
    assert once["tries"] >= 2
    assert always["tries"] == 3
    assert "killed 3 times, the last time alone" in always["message"]
    lines = executed(log)
    assert lines.count("once 0.1 0 1") >= 2
    assert lines.count("always 0.1 0 1") <= 3
    assert not [
        p
        for p in psutil.process_iter(["cmdline"])
        if str(tmp_path / "out") in " ".join(p.info["cmdline"] or [])
    ]
    if engine == "dask":
        return
    (tmp_path / "log.mended").touch()
    rows = sweep.execute(sweep.read(path), workers=2)
    assert rows[:2] == [fine, once]
    assert (rows[2]["state"], rows[2]["tries"], rows[2]["message"]) == ("finished", 1, "")
    assert executed(log) == sorted([*lines, "always 0.1 0 1"])


def test_the_grid_is_covered_once_and_only_what_failed_is_run_again(
    books, file, tmp_path, in_this_process
):
    log = tmp_path / "log"
    settings = {
        "notebook": "00",
        "grid": {"fate": ["fine", "error"], "seed": [0, 1]},
        "fixed": {"log": str(log), "rate": 1},
    }
    runs = sweep.read(file(**settings))
    rows = sweep.execute(runs)
    assert executed(log) == [
        f"{fate} 1.0 {seed} 1" for fate in ("error", "fine") for seed in (0, 1)
    ]
    assert [row["state"] for row in rows] == ["finished", "finished", "failed", "failed"]
    assert rows[2]["message"] == "ValueError: as | told"
    assert rows[0]["memory_mb"] > 50
    for folder in runs:
        assert re.fullmatch(r"fate-(fine|error)_seed-[01]_[0-9a-f]{8}", folder.name)
        assert (folder / "evidence" / "made.json").exists() == ("fine" in folder.name)
        assert (folder / "00_fates.ipynb").exists()
    text = (tmp_path / "out" / "table.md").read_text()
    assert "| ValueError: as \\| told |" in text
    assert json.loads((tmp_path / "out" / "table.json").read_text()) == rows
    (tmp_path / "log.mended").touch()
    again = sweep.execute(sweep.read(file(**settings)))
    assert again[:2] == rows[:2]
    assert [row["state"] for row in again] == ["finished"] * 4
    assert len(executed(log)) == 6
    assert sweep.execute(sweep.read(file(**settings))) == again
    assert len(executed(log)) == 6
    write_book(books, "00_fates", BODY + "\n1 + 1")
    assert not sweep.read(file(**settings)).keys() & runs.keys()


def test_an_engine_that_breaks_off_without_progress_is_an_error(books, file, monkeypatch):
    def lost(*rest):
        return FileNotFoundError("no such folder here")

    monkeypatch.setattr(sweep, "_round", lost)
    with pytest.raises(FileNotFoundError, match="no such folder here"):
        sweep.execute(sweep.read(file(notebook="00", grid={"seed": [0]})))
    monkeypatch.setattr(sweep, "_round", lambda *rest: None)
    monkeypatch.setattr(sweep, "PATIENCE", 0)
    with pytest.raises(OSError, match="give an `out` that all workers see"):
        sweep.execute(sweep.read(file(notebook="00", grid={"seed": [0]})))


def test_outer_runs_over_seeds_and_rates(file, tmp_path, in_this_process, monkeypatch, capsys):
    monkeypatch.setattr(supervised, "BATCH", 4)
    monkeypatch.setattr(supervised, "MOST_TOKENS", 12)
    fixed = {"steps": 2, "questions": 3, "style": "short"}
    path = file(outer="sft", grid={"seed": [0, 1], "peak_lr": ["1e-4", 0.01]}, fixed=fixed)
    assert sweep.run(Namespace(file=path, engine="loky", workers=2, address="", json=True)) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["parameters"]["seed"], row["parameters"]["peak_lr"]) for row in rows] == [
        (0, 1e-4),
        (0, 0.01),
        (1, 1e-4),
        (1, 0.01),
    ]
    losses = [row["result"]["loss"] for row in rows]
    assert len(set(losses)) == 4
    assert all(0 < loss < 10 for loss in losses)
    assert all(0 <= row["result"]["accuracy"] <= 1 for row in rows)
    assert (
        models.load(
            "tiny", model=str(tmp_path / "out" / rows[0]["run"] / "model"), device="cpu"
        ).parameters
        > 0
    )


def test_every_outer_loop_takes_its_own_settings(file):
    own = {"sft": {"style": "short"}, "dpo": {"peak_lr": 1e-4}, "grpo": {"update": 2}}
    assert own.keys() == sweep_run.OUTER.keys()
    for method, fixed in own.items():
        runs = sweep.read(file(outer=method, grid={"seed": [0, 1]}, fixed=fixed)).values()
        assert [run["parameters"] for run in runs] == [fixed | {"seed": seed} for seed in (0, 1)]
        assert {run["outer"] for run in runs} == {method}


# --- bad input ------------------------------------------------------------------------------------

SEEDS = {"seed": [0, 1]}
BAD = [
    ({"notebook": "00"}, "the grid is empty: write for example grid: {seed"),
    ({"notebook": "00", "grid": {}}, "the grid is empty"),
    ({"notebook": "00", "grid": [1]}, "grid is [1]: write grid: {name"),
    (
        {"notebook": "00", "grid": SEEDS, "seeds": 3},
        "unknown key 'seeds': choose among notebook, outer",
    ),
    ({"grid": SEEDS}, "give either `notebook` or `outer`"),
    ({"notebook": "00", "outer": "sft", "grid": SEEDS}, "give either `notebook` or `outer`"),
    ({"notebook": "77", "grid": SEEDS}, "no notebook begins with '77'"),
    (
        {"notebook": "01", "grid": SEEDS},
        "2 notebooks begin with '01': name one, for example '01_one'",
    ),
    ({"notebook": 5, "grid": SEEDS}, 'notebook: 5 is a int: put the number in quotes, as in "05"'),
    (
        {"notebook": "00", "grid": {"sede": [1]}},
        "unknown parameter 'sede': choose among fate, rate, seed, log",
    ),
    ({"notebook": "00", "grid": {"seed": 1}}, "grid: seed is 1: give a list of one value or more"),
    ({"notebook": "00", "grid": {"seed": []}}, "grid: seed is []: give a list"),
    (
        {"notebook": "00", "grid": {"seed": ["zero"]}},
        "parameter seed='zero' is a str: give values of type int",
    ),
    (
        {"notebook": "00", "grid": {"seed": [True]}},
        "parameter seed=True is a bool: give values of type int",
    ),
    (
        {"notebook": "00", "grid": {"seed": [[1]]}},
        "parameter seed=[1] is a list: give values of type int",
    ),
    (
        {"notebook": "00", "grid": {"rate": ["fast"]}},
        "parameter rate='fast' is a str: give values of type float",
    ),
    (
        {"notebook": "00", "grid": SEEDS, "fixed": {"log": None}},
        "parameter log=None is a NoneType: give values of type str",
    ),
    (
        {"notebook": "00", "grid": SEEDS, "fixed": {"seed": 2}},
        "'seed' is in the grid and fixed: take it out of one",
    ),
    (
        {"notebook": "00", "grid": {"rate": [1, 1.0]}},
        "two runs would be the same, {'rate': 1.0}: take out the value",
    ),
    ({"outer": "ppo", "grid": SEEDS}, "unknown outer loop 'ppo': choose among sft, dpo, grpo"),
    (
        {"outer": "dpo", "grid": {"style": ["long"]}},
        "unknown parameter 'style': choose among model, questions, seed, steps",
    ),
]


@pytest.mark.parametrize(("settings", "message"), BAD)
def test_a_bad_file_is_refused_with_what_is_amiss(settings, message, books, file):
    path = file(**settings)
    with pytest.raises(
        (ValueError, TypeError), match=f"^{re.escape(str(path))}: .*{re.escape(message)}"
    ):
        sweep.read(path)


def test_a_preset_that_a_notebook_has_no_questions_for_is_refused(file):
    book = next(book for book in notebooks.discover() if book.preset and not book.any_preset)
    with pytest.raises(ValueError, match="does not ask the questions of preset"):
        sweep.read(file(notebook=book.name, grid={"preset": ["tiny"]}))


@pytest.mark.parametrize("text", ["[1", "seed", "\ud800"])
def test_a_file_that_holds_no_mapping_is_refused(text, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ValueError, match=re.escape(str(path))):
        sweep.read(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"engine": "slurm"}, "unknown engine 'slurm': choose among loky, dask, ray"),
        ({"workers": 0}, "workers=0: give at least 1"),
        ({"address": "tcp://there"}, "loky knows this machine only"),
        ({"address": "tcp://there", "engine": "dask", "workers": 2}, "a cluster brings its own"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_written(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sweep.execute({Path("/nowhere"): {}}, **settings)


def test_a_missing_package_is_named_with_its_command(monkeypatch):
    monkeypatch.setattr(
        sweep.importlib.util, "find_spec", lambda name: None if name == "distributed" else os
    )
    with pytest.raises(
        LookupError, match="engine dask needs distributed: run `pip install distributed`"
    ):
        sweep.execute({Path("/nowhere"): {}}, "dask")
