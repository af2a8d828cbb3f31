"""Shipped checkpoints: small, what the manifest says, trained by the code that is here, able to do
what they are for.
"""

import filecmp
import json
import shutil
from pathlib import Path

import pytest
import torch

from tml_lib.data import programs, tiny
from tml_lib.lm import models, pretrained
from tml_lib.lm.answers import ANSWER_TEMPLATE
from tml_lib.studies import supervised
from tml_lib.tools import checkpoints

NAMES = models.SHIPPED


@pytest.fixture(scope="module")
def lms():
    return {name: models.load("tiny", model=models.shipped(name), device="cpu") for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_the_manifest_describes_the_files(name, lms):
    entry = checkpoints.manifest()[name]
    folder = Path(models.shipped(name))
    assert entry["sha256"] == supervised.checkpoint_digest(name)
    assert entry["parameters"] == lms[name].parameters < 5e6
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10e6
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_first_steps_give_the_recorded_losses(name):
    _, losses = checkpoints.train(name, steps=5)
    assert losses == pytest.approx(checkpoints.manifest()[name]["first_losses"][:5], rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_tokenizers_are_the_kits(name, lms):
    assert lms[name].tokenizer.get_vocab() == tiny.tokenizer().get_vocab()
    assert lms[name].tokenizer.chat_template == tiny.CHAT_TEMPLATE


def test_the_shared_tokenizer_is_what_the_code_here_writes(tmp_path):
    files = sorted(Path(path).name for path in tiny.tokenizer().save_pretrained(tmp_path))
    assert sorted(path.name for path in pretrained.shipped_tokenizer().iterdir()) == files
    assert filecmp.cmpfiles(tmp_path, pretrained.shipped_tokenizer(), files, shallow=False) == (
        files,
        [],
        [],
    )


def whole(folder):
    """A copy of tiny-base with a tokenizer of its own."""
    shutil.copytree(models.shipped("tiny-base"), folder)
    return Path(shutil.copytree(pretrained.shipped_tokenizer(), folder, dirs_exist_ok=True))


def test_a_folder_takes_its_own_tokenizer_and_no_other(tmp_path, monkeypatch):
    folder = whole(tmp_path / "tiny-base")
    monkeypatch.setattr(pretrained, "shipped", lambda name: str(tmp_path / name))
    assert pretrained.tokenizer_source(str(folder)) == str(folder)
    (folder / "tokenizer_config.json").unlink()
    assert pretrained.tokenizer_source(str(folder)) == str(tmp_path / "tiny-tokenizer")
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere")
    assert pretrained.tokenizer_source(str(elsewhere)) == str(elsewhere)
    assert pretrained.tokenizer_source("Qwen/Qwen2.5-0.5B-Instruct") == "Qwen/Qwen2.5-0.5B-Instruct"


def test_a_copy_without_a_tokenizer_is_refused_by_name(tmp_path):
    folder = shutil.copytree(models.shipped("tiny-base"), tmp_path / "tiny")
    with pytest.raises(ValueError, match=f"model '{folder}' cannot be loaded"):
        models.load("tiny", model=str(folder), device="cpu")


def share(lm, questions, **settings):
    return sum(supervised.greedy(lm, questions, **settings)["right"]) / len(questions)


def test_the_tuned_models_reason_and_the_base_does_not(lms):
    asked = programs.questions(200, 77, "held_out")
    assert share(lms["tiny-base"], asked) < 0.1
    assert share(lms["tiny-long"], asked) > 0.85
    assert share(lms["tiny-long"], asked, begin=ANSWER_TEMPLATE) < 0.25


def test_an_unknown_checkpoint_is_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match="'tiny-huge' is no checkpoint of the kit: choose one of tiny-base"
    ):
        checkpoints.train("tiny-huge")


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path):
    folder = whole(tmp_path / "tiny")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=f"{folder}.* is damaged"):
        models.load("tiny", model=str(folder), device="cpu")


def test_a_checkpoint_of_another_tokenizer_is_refused(tmp_path):
    folder = whole(tmp_path / "tiny")
    held = json.loads((folder / "tokenizer.json").read_text())
    held["model"]["vocab"]["new"] = len(held["model"]["vocab"])
    (folder / "tokenizer.json").write_text(json.dumps(held))
    with pytest.raises(ValueError, match="'tiny' has 508 words and its model 507"):
        models.load("tiny", model=str(folder), device="cpu")


def test_making_a_checkpoint_replaces_it_whole_and_writes_the_manifest(tmp_path, monkeypatch):
    for module in (models, pretrained):
        monkeypatch.setattr(module, "shipped", lambda name: str(tmp_path / "weights" / name))
    monkeypatch.setattr(checkpoints, "BASE_STEPS", 3)
    threads = torch.get_num_threads()
    (tmp_path / "weights" / "tiny-base").mkdir(parents=True)
    (tmp_path / "weights" / "tiny-base" / "old.txt").write_text("old")
    entry = checkpoints.make("tiny-base")
    assert torch.get_num_threads() == threads
    assert sorted(p.name for p in (tmp_path / "weights").iterdir()) == [
        "manifest.json",
        "tiny-base",
        "tiny-tokenizer",
    ]
    assert not (tmp_path / "weights" / "tiny-base" / "old.txt").exists()
    assert json.loads((tmp_path / "weights" / "manifest.json").read_text()) == {"tiny-base": entry}
    assert entry["steps"] == 3
    assert len(entry["first_losses"]) == 3
