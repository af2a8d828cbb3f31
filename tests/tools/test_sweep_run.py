"""One run of a sweep: tries counted, a dead kernel told from a failed cell, outer loops given their
settings.
"""

import sys
from types import SimpleNamespace

import nbformat
import pytest

from tml_lib.studies import rl, supervised
from tml_lib.tools import sweep_run


@pytest.fixture
def begun(tmp_path):
    """A run's folder with its settings written."""

    def begin(parameters: dict | None = None, **settings):
        sweep_run.begin(tmp_path / "run", settings | {"parameters": parameters or {}})
        return tmp_path / "run"

    return begin


@pytest.fixture
def book(tmp_path):
    """Writes a notebook of one cell."""

    def write(cell):
        kernel = {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        }
        path = tmp_path / "book.ipynb"
        nbformat.write(
            nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)], metadata=kernel), path
        )
        return str(path)

    return write


def test_a_run_is_tried_until_its_limit_or_its_end(begun, monkeypatch):
    folder = begun(outer="sft")
    monkeypatch.setattr(sys, "executable", "false")  # every try dies at once
    sweep_run.attempt(str(folder), 2)
    sweep_run.attempt(str(folder), 2)
    assert (sweep_run.tries(folder), sweep_run.over(folder)) == (2, False)
    sweep_run.finish(folder, state="failed")
    sweep_run.attempt(str(folder), 3)
    assert (sweep_run.record(folder)["state"], sweep_run.record(folder)["tries"]) == ("failed", 2)
    begun(outer="sft")
    assert (sweep_run.tries(folder), sweep_run.over(folder)) == (0, False)


def test_a_try_in_a_process_of_its_own_leaves_a_record_and_a_log(begun):
    folder = begun({"model": "/nowhere"}, outer="sft")
    sweep_run.attempt(str(folder), 3)
    record = sweep_run.record(folder)
    assert (record["state"], record["tries"], record["parameters"]) == (
        "failed",
        1,
        {"model": "/nowhere"},
    )
    assert record["message"].split(":")[0] in (folder / "log.txt").read_text()


def test_a_run_whose_kernel_is_killed_leaves_no_result(begun, book):
    folder = begun(notebook="book", path=book("import os\nos.kill(os.getpid(), 9)"))
    with pytest.raises(SystemExit, match="the kernel died"):
        sweep_run._try(folder)
    assert not sweep_run.over(folder)


def test_dpo_and_grpo_get_their_settings(begun, monkeypatch, start):
    monkeypatch.setattr(supervised, "MOST_TOKENS", 4)
    got = []

    def pretended(lm, seed, steps, **settings):
        got.append({"seed": seed, "steps": steps} | settings)
        return SimpleNamespace(lm=start, log=[{"reward": k, "loss": 0.0} for k in range(10)])

    monkeypatch.setattr(rl, "rewarded", pretended)
    monkeypatch.setattr(rl, "preferred", pretended)
    folder = begun({"update": 2, "steps": 3, "questions": 2}, outer="grpo")
    sweep_run._try(folder)
    assert sweep_run.record(folder)["result"]["reward"] == 8.5
    sweep_run._try(begun({"seed": 4, "questions": 2}, outer="dpo"))
    assert got == [
        {"seed": 0, "steps": 3, "update": 2, "peak_lr": 3e-4},
        {"seed": 4, "steps": 100, "peak_lr": 1e-4},
    ]


def test_a_model_of_other_words_is_refused(begun, tmp_path, tiny_lm):
    tiny_lm.model.save_pretrained(tmp_path / "other")
    tiny_lm.tokenizer.save_pretrained(tmp_path / "other")
    folder = begun({"model": str(tmp_path / "other")}, outer="sft")
    sweep_run._try(folder)
    record = sweep_run.record(folder)
    assert record["state"] == "failed"
    assert "is no tiny reasoner: give one of tiny-base" in record["message"]


def test_only_the_late_log_counts():
    assert sweep_run._late_mean([{"loss": float(k)} for k in range(10)]) == {"loss": 8.5}
    assert sweep_run._late_mean([{"step": 1}, {"train_loss": 2.0}]) == {"train_loss": 2.0}
