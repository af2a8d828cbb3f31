"""The checkpoints that the kit ships, how they are made, and the manifest that says so.

`tiny-base` is trained from nothing on one-step questions; `tiny-long` and `tiny-short` are it after
supervised fine-tuning on long or short trajectories, as in the study of C4a but for longer and on
other questions. One thread each, so that a machine of the same kind makes the same bits again.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from tml_lib import files, runtime
from tml_lib.data import tiny
from tml_lib.lm import models, pretrained
from tml_lib.lm.models import LanguageModel
from tml_lib.studies import supervised
from tml_lib.tools.plan_cpu import one_thread

BASE_SEED = 0
BASE_STEPS = 3000
BASE_LR = 3e-3
SFT_SEED = 100  # the study's seeds are 0, 1, ...
SFT_STEPS = 1500
FIRST = 10  # steps whose losses are recorded one by one
COMMAND = "make checkpoints"


def manifest_file() -> Path:
    return Path(models.shipped("tiny-base")).parent / "manifest.json"


def manifest() -> dict:
    """What each shipped checkpoint was made by: seed, steps, first losses, versions, sha256 of the
    weights.
    """
    return files.table(manifest_file(), files.COMMITTED)


def train(
    name: str, *, steps: int | None = None, progress: bool = False
) -> tuple[LanguageModel, list[float]]:
    """The first `steps` steps (all of them by default) of a shipped checkpoint's training, and
    their losses.

    tiny-short and tiny-long start from the shipped tiny-base. ValueError for an unknown name.
    """
    models.shipped(name)
    if name == "tiny-base":
        model = tiny.new_model(BASE_SEED)
        rows = tiny.base_rows(BASE_SEED, BASE_STEPS)
        losses = tiny.train(
            model, rows, steps=BASE_STEPS, stop=steps, peak_lr=BASE_LR, progress=progress
        )
        return LanguageModel(model, tiny.tokenizer(), name), losses
    rows = supervised.arm_rows(SFT_SEED, name.removeprefix("tiny-"))
    return supervised.tuned(
        models.load("tiny", device="cpu"), rows, SFT_STEPS, stop=steps, progress=progress
    )


@one_thread()
def make(name: str, *, progress: bool = False) -> dict:
    """Train a checkpoint to its end, put it in its place and its entry into the manifest; returns
    the entry.
    """
    began = time.perf_counter()
    lm, losses = train(name, progress=progress)
    folder = Path(models.shipped(name))
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        with pretrained.quiet():
            lm.model.save_pretrained(temporary)
            tiny.tokenizer().save_pretrained(pretrained.shipped_tokenizer())  # one for all
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(shutil.copytree(temporary, f"{temporary}.whole"), folder)
    entry = {
        "command": COMMAND,
        "seed": BASE_SEED if name == "tiny-base" else SFT_SEED,
        "parameters": lm.parameters,
        "steps": len(losses),
        "first_losses": losses[:FIRST],
        "loss_by_100_steps": [
            round(float(np.mean(losses[k : k + 100])), 3) for k in range(0, len(losses), 100)
        ],
        "seconds": round(time.perf_counter() - began, 1),
        "versions": {
            key: value
            for key, value in runtime.versions().items()
            if key in ("python", "torch", "transformers")
        },
        "sha256": supervised.checkpoint_digest(name),
    }
    held = manifest() if manifest_file().is_file() else {}
    ordered = {
        key: (held | {name: entry})[key] for key in models.SHIPPED if key in held or key == name
    }
    runtime.write_text(manifest_file(), json.dumps(ordered, indent=1) + "\n")
    return entry
