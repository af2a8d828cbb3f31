"""The folder of a run: settings in range, a claim that a kill cut off, damage, and one process at
a time.
"""

import json
import math
import os
import shutil
import subprocess
import sys

import pytest
import torch

from tml_lib.data import tiny
from tml_lib.lm import adapters
from tml_lib.lm.models import LanguageModel
from tml_lib.train import dpo, grpo, runs, sft
from tml_lib.train.settings import TrainSettings

STEPS, BATCH = 6, 4


@pytest.fixture(scope="module")
def rows():
    stream = tiny.base_rows(5, 100, batch=BATCH)
    return [row for step in range(STEPS) for row in stream(step)]


def fit(start, rows, folder, on_log=None, **settings):
    settings = {"steps": STEPS, "batch": BATCH, "peak_lr": 1e-3, "save_every": 2} | settings
    return sft.sft(start, rows, folder, sft.SFTSettings(log_every=1, **settings), on_log=on_log)


# --- settings -------------------------------------------------------------------------------------

WRONG = [
    (TrainSettings, "steps", 0, "out of range: give a whole number from 1 to 1000000000"),
    (TrainSettings, "steps", 1.5, "is a float: give a whole number"),
    (TrainSettings, "steps", True, "is a bool: give a whole number"),
    (TrainSettings, "steps", "10", "is a str: give a whole number"),
    (TrainSettings, "peak_lr", 0, "out of range: give a finite number more than 0"),
    (TrainSettings, "peak_lr", -1e-3, "out of range: give a finite number more than 0"),
    (TrainSettings, "peak_lr", math.nan, "out of range: give a finite number more than 0"),
    (TrainSettings, "peak_lr", math.inf, "out of range: give a finite number more than 0"),
    (TrainSettings, "peak_lr", "1e-3", "is a str: give a finite number"),
    (TrainSettings, "peak_lr", None, "is a NoneType: give a finite number"),
    (TrainSettings, "lora_rank", 10**6, "out of range: give a whole number from 0 to 1024"),
    (TrainSettings, "lora_rank", -1, "out of range: give a whole number from 0 to 1024"),
    (TrainSettings, "log_every", 0, "out of range: give a whole number from 1"),
    (TrainSettings, "save_every", -1, "out of range: give a whole number from 0"),
    (TrainSettings, "seed", -1, "out of range: give a whole number from 0 to 4294967295"),
    (TrainSettings, "seed", 2**40, "out of range: give a whole number from 0 to 4294967295"),
    (sft.SFTSettings, "batch", 0, "out of range: give a whole number from 1"),
    (dpo.DPOSettings, "batch", 2.0, "is a float: give a whole number"),
    (dpo.DPOSettings, "beta", 0.0, "out of range: give a finite number more than 0"),
    (dpo.DPOSettings, "beta", math.nan, "out of range: give a finite number more than 0"),
    (grpo.GRPOSettings, "beta", -0.1, "out of range: give a finite number of at least 0"),
    (grpo.GRPOSettings, "temperature", 0.0, "out of range: give a finite number more than 0"),
    (grpo.GRPOSettings, "group", 1, "out of range: give a whole number from 2"),
    (grpo.GRPOSettings, "update", -1, "out of range: give a whole number from 0"),
    (grpo.GRPOSettings, "update", 17, "samples cannot be kept of a group of 16: give 1..16"),
    (grpo.GRPOSettings, "prompts", 0, "out of range: give a whole number from 1"),
    (grpo.GRPOSettings, "most_tokens", 0, "out of range: give a whole number from 1"),
    (grpo.GRPOSettings, "accumulate", 0, "out of range: give a whole number from 1"),
]


@pytest.mark.parametrize(("kind", "name", "value", "said"), WRONG)
def test_a_setting_out_of_range_is_refused_by_name(kind, name, value, said):
    with pytest.raises(ValueError, match=f"^{name}=") as caught:
        kind(**{"steps": 1, "peak_lr": 1e-3} | {name: value})
    assert said in str(caught.value)
    assert str(value) in str(caught.value)


def test_numbers_of_numpy_become_plain_ones_and_the_rate_has_no_default():
    import numpy as np

    settings = TrainSettings(steps=np.int64(3), peak_lr=np.float32(0.5), seed=np.int32(7))
    assert json.loads(json.dumps(settings.identity())) == {
        "steps": 3,
        "peak_lr": 0.5,
        "lora_rank": 0,
        "seed": 7,
    }
    with pytest.raises(TypeError, match="peak_lr"):
        TrainSettings(steps=3)


def test_a_tokenizer_with_more_words_than_the_model_has_embeddings_is_refused(tmp_path):
    larger = tiny.tokenizer()
    larger.add_tokens(["new"])
    lm = LanguageModel(tiny.new_model(0), larger, "small")
    common = {"steps": 1, "peak_lr": 1e-3}
    calls = [
        lambda: sft.sft(lm, [([5, 6], 1)], tmp_path / "run", sft.SFTSettings(batch=1, **common)),
        lambda: dpo.dpo(
            lm, [([5], [6], [7])], tmp_path / "run", dpo.DPOSettings(batch=1, **common)
        ),
        lambda: grpo.grpo(lm, [], len, tmp_path / "run", grpo.GRPOSettings(**common)),
        lambda: adapters.adapted(lm, tmp_path / "run"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="'small' has 508 words and its model 507"):
            call()
    assert not (tmp_path / "run").exists()


# --- a claim --------------------------------------------------------------------------------------

CLAIMS = """
import os, sys
from pathlib import Path
from tml_lib.data import tiny
from tml_lib.lm.models import LanguageModel
from tml_lib.train import runs
lm = LanguageModel(tiny.new_model(0), tiny.tokenizer(), "start")
here, left, armed = Path(sys.argv[1]), 0, False
def hook(event, args):
    global left
    if armed and event.split(".")[0] in ("open", "os", "tempfile"):
        left -= 1
        if left < 0:
            os._exit(9)  # as a kill does: nothing is tidied up
sys.addaudithook(hook)
def claim(folder):
    runs.refuse_foreign(folder)
    with runs.locked(folder):
        runs.claim(folder, lm, {"steps": 1}, [1, 2])
for operations in range(1000):
    folder = here / str(operations)
    if not (child := os.fork()):
        left, armed = operations, True
        claim(folder)
        os._exit(0)
    done = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    claim(folder)  # the same call again
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "run.json"], operations
    if done == 0:
        print(operations)
        break
    assert done == 9
"""


def test_a_claim_that_is_killed_at_any_file_operation_is_completed_by_the_next(tmp_path):
    command = [sys.executable, "-c", CLAIMS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >= 5, "a folder, a lock, a temporary name, its mode, the rename"


def test_a_process_at_work_in_the_folder_is_named_and_a_dead_one_holds_nothing(
    start, rows, tmp_path
):
    with (
        runs.locked(tmp_path / "run"),
        pytest.raises(ValueError, match=f"is in use by process {os.getpid()}: wait until it ends"),
    ):
        fit(start, rows, tmp_path / "run")
    child = "import os, sys, pathlib; from tml_lib.train import runs\n"
    child += "runs.locked(pathlib.Path(sys.argv[1])).__enter__(); os._exit(9)"
    done = subprocess.run([sys.executable, "-c", child, str(tmp_path / "dead")], timeout=120)
    assert done.returncode == 9
    assert (tmp_path / "dead" / runs.LOCK).read_text() != str(os.getpid())
    fit(start, rows, tmp_path / "dead")


# --- damage ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(start, rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, fit(start, rows, folder)


def cut(held):
    return held[: len(held) // 2]


def flipped(held):
    place = len(held) // 2
    return held[:place] + bytes([held[place] ^ 1]) + held[place + 1 :]


def binary(held):
    return b"\xff\x00\x80" * 9


def nested(held):
    return b"[" * 100_000


DAMAGE = [
    ("model.safetensors", cut),
    ("model.safetensors", flipped),
    ("optimizer.pt", flipped),
    ("scheduler.pt", cut),
    ("rng_state.pth", flipped),
    ("config.json", cut),
    ("trainer_state.json", cut),
    ("trainer_state.json", binary),
    ("trainer_state.json", nested),
]


@pytest.mark.parametrize(("name", "damaged"), DAMAGE)
def test_a_damaged_file_of_a_checkpoint_is_named_with_what_to_delete(
    saved, start, rows, name, damaged
):
    folder, _ = saved
    path = folder / f"checkpoint-{STEPS}" / name
    whole = path.read_bytes()
    try:
        path.write_bytes(damaged(whole))
        with pytest.raises(ValueError, match="is damaged") as caught:
            fit(start, rows, folder)
    finally:
        path.write_bytes(whole)
    advice = f"delete the folder {path.parent}; the run then is resumed at step {STEPS - 2}"
    assert str(path) in str(caught.value)
    assert advice in str(caught.value)


@pytest.mark.parametrize("damaged", [cut, binary, nested, lambda held: b"[]"])
def test_a_damaged_list_of_sums_or_claim_is_named(saved, start, rows, damaged):
    folder, _ = saved
    advice = {
        f"checkpoint-{STEPS}/sums.json": f"delete the folder {folder}/checkpoint-{STEPS}",
        "run.json": f"delete the folder {folder}; the run then begins at step 0",
    }
    for name, said in advice.items():
        whole = (folder / name).read_bytes()
        try:
            (folder / name).write_bytes(damaged(whole))
            with pytest.raises(ValueError, match="is damaged") as caught:
                fit(start, rows, folder)
        finally:
            (folder / name).write_bytes(whole)
        assert str(folder / name) in str(caught.value)
        assert said in str(caught.value)


def test_folders_beside_the_checkpoints_are_neither_read_nor_removed(saved, start, rows):
    folder, whole = saved
    others = [folder / f"checkpoint-{STEPS}.bak", folder / "checkpoint-3x"]
    for other in others:
        other.mkdir()
        (other / "mine").touch()
    try:
        again = fit(start, rows, folder)
        assert all((other / "mine").is_file() for other in others)
    finally:
        for other in others:
            shutil.rmtree(other)
    assert all(map(torch.equal, again.lm.model.parameters(), whole.lm.model.parameters()))


def test_what_the_message_says_is_what_happens(saved, start, rows):
    """The newest checkpoint deleted, the run is resumed from the one before, to the same bits."""
    folder, whole = saved
    shutil.rmtree(folder / f"checkpoint-{STEPS}")
    seen = []
    again = fit(start, rows, folder, on_log=lambda log: seen.append(log[-1]["step"]))
    assert seen[0] == STEPS - 1
    for name, tensor in again.lm.model.state_dict().items():
        assert torch.equal(tensor, whole.lm.model.state_dict()[name]), name
