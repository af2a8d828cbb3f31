"""`accelerate launch` of `sft.sft`: two CPU processes over the loopback share the run of one.

On CPUs the launcher needs `--multi_gpu`, for `--cpu` starts one process whatever `--num_processes`
says.
"""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tml_lib.data import tiny
from tml_lib.lm import adapters
from tml_lib.train import sft

STEPS, BATCH, RATE = 4, 8, 3e-3

SCRIPT = f"""
import json, shutil, sys
from pathlib import Path
import torch
from accelerate import PartialState
from tml_lib.lm import adapters
from tml_lib.train import sft
from tml_lib.data import tiny
from tml_lib.lm.models import LanguageModel

torch.set_num_threads(1)
here, process = Path(sys.argv[1]), PartialState(cpu=True)
stream = tiny.base_rows(5, 100, batch={BATCH})
rows = [row for step in range({STEPS}) for row in stream(step)]
start = LanguageModel(tiny.new_model(0), tiny.tokenizer(), "start")
found = {{"processes": process.num_processes, "backend": process.backend}}

def train(name, rows, **settings):
    settings = {{"steps": {STEPS}, "peak_lr": {RATE}}} | settings
    run = sft.sft(start, rows, here / name, log_every=1, **settings)
    process.wait_for_everyone()
    found.setdefault(name, []).append({{
        "losses": [entry["loss"] for entry in run.log if "loss" in entry],
        "weights": adapters.fingerprint(run.lm.model),
        "epoch": run.log[-1]["epoch"],
    }})

train("shared", rows, batch={BATCH}, save_every=2)
if process.is_main_process:  # as if killed between steps 3 and 4
    shutil.rmtree(here / "shared" / "checkpoint-4")
process.wait_for_everyone()
train("shared", rows, batch={BATCH}, save_every=2)
train("adapter", rows, batch={BATCH}, lora_rank=2)
try:
    train("uneven", rows[:28], batch=7)
except ValueError as error:
    found["uneven"] = str(error)
(here / f"process{{process.process_index}}.json").write_text(json.dumps(found))
"""


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """The folder of a script that two processes have run, and what each of them reports."""
    folder = tmp_path_factory.mktemp("launch")
    (folder / "script.py").write_text(SCRIPT)
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
    ]
    command += [
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        str(free_port()),
    ]
    alone = {
        "ACCELERATE_CONFIG_FILE": "",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    if sys.platform == "linux":
        # the host's own name need not resolve where there is no network
        alone["GLOO_SOCKET_IFNAME"] = "lo"
    command += [str(folder / "script.py"), str(folder)]
    done = subprocess.run(
        command, env=os.environ | alone, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, [json.loads((folder / f"process{k}.json").read_text()) for k in (0, 1)]


@pytest.fixture(scope="module")
def rows():
    stream = tiny.base_rows(5, 100, batch=BATCH)
    return [row for step in range(STEPS) for row in stream(step)]


def alone(start, rows, folder, **settings):
    return sft.sft(
        start,
        rows,
        folder,
        **{"steps": STEPS, "batch": BATCH, "peak_lr": RATE, "log_every": 1} | settings,
    )


def losses(run):
    return [entry["loss"] for entry in run.log if "loss" in entry]


def assert_close(weights, state):
    for name, tensor in state.items():
        assert torch.allclose(weights[name], tensor, atol=2e-5), name


def test_two_processes_took_part_over_gloo_and_end_with_the_same_weights(launched):
    _, (first, second) = launched
    assert (first["processes"], first["backend"]) == (2, "gloo")
    assert first == second


def test_rows_differ_in_learnt_tokens_so_a_mean_of_means_would_show(rows):
    learnt = [len(ids) - start for ids, start in rows]
    halves = [sum(learnt[k : k + BATCH // 2]) for k in range(0, len(learnt), BATCH // 2)]
    assert (
        sum(abs(a - b) > 0.1 * a for a, b in zip(halves[::2], halves[1::2], strict=True))
        >= STEPS // 2
    )


def test_a_launched_run_is_the_run_of_one_process(launched, start, rows, tmp_path):
    folder, (found, _) = launched
    run = alone(start, rows, tmp_path / "run")
    assert found["shared"][0]["losses"] == pytest.approx(losses(run), rel=1e-5)
    assert_close(load_file(folder / "shared" / "model.safetensors"), run.lm.model.state_dict())
    moved = [
        (run.lm.model.state_dict()[name] - old).abs().max()
        for name, old in start.model.state_dict().items()
    ]
    assert max(moved) > 1e-3  # a hundred times what is allowed above
    assert found["shared"][0]["epoch"] == 1.0


def test_a_launched_run_that_was_cut_off_ends_in_the_same_bits(launched):
    _, (found, _) = launched
    whole, again = found["shared"]
    assert again["weights"] == whole["weights"]
    assert again["losses"] == whole["losses"]


def test_an_adapter_is_trained_together_too(launched, start, rows, tmp_path):
    folder, (found, _) = launched
    run = alone(start, rows, tmp_path / "run", lora_rank=2)
    assert found["adapter"][0]["losses"] == pytest.approx(losses(run), rel=1e-5)
    assert_close(
        adapters.adapted(start, folder / "adapter").model.state_dict(), run.lm.model.state_dict()
    )


def test_a_batch_that_does_not_split_evenly_is_refused(launched):
    _, (found, _) = launched
    assert "batch=7 for 2 processes: give a multiple" in found["uneven"]
