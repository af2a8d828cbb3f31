"""`accelerate launch` of each trainer: two CPU processes over the loopback share the run of one.

On CPUs the launcher needs `--multi_gpu`, for `--cpu` starts one process whatever `--num_processes`
says.
"""

import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from tml_lib.data import program_grading, programs, tiny
from tml_lib.lm import adapters
from tml_lib.train import dpo, grpo, sft

pytestmark = pytest.mark.slow  # trains

FSDP = Path(sft.__file__).with_name("fsdp.yaml")
STEPS, BATCH, RATE = 4, 8, 3e-3
GRPO = {  # prompts of a step are shared; with fewer samples in the update, in two passes, with KL
    "grpo": {},
    "grpo_kept": {"update": 2, "accumulate": 2, "beta": 0.1, "peak_lr": 1e-3},
}


def made_pairs(count):
    """Pairs of a gold continuation and one of another question, of different lengths."""
    rows = [
        tiny.row(q.text, q.trajectories[0].text.split(), q.answer)
        for q in programs.questions(count + 1, seed=9)
    ]
    return [
        (ids[:start], ids[start:], other[before:])
        for (ids, start), (other, before) in itertools.pairwise(rows)
    ]


def preferred(lm, folder):
    settings = dpo.DPOSettings(steps=STEPS, batch=BATCH, peak_lr=RATE, log_every=1)
    return dpo.dpo(lm, made_pairs(STEPS * BATCH), folder, settings)


def brevity(text, answer):
    return program_grading.graded(text, answer) - len(text.split()) / 10 + text.count("=") / 30


def rewarded(lm, folder, settings):
    settings = {"steps": 3, "prompts": 2, "group": 4, "most_tokens": 48, "peak_lr": 1e-4} | settings
    asked = programs.questions(6)
    return grpo.grpo(lm, asked, brevity, folder, grpo.GRPOSettings(**settings))


SCRIPT = f"""
import json, shutil, sys
from pathlib import Path
import torch
from accelerate import Accelerator, PartialState, state
from accelerate.utils import DistributedType
from tml_lib.lm import adapters
from tml_lib.train import dpo, grpo, sft
from tml_lib.data import programs, tiny
from tml_lib.lm import models
from tml_lib.lm.models import LanguageModel
sys.path.insert(0, sys.argv[2])
import test_launch as tests
import transformers

torch.set_num_threads(1)
here, process = Path(sys.argv[1]), PartialState(cpu=True)
found = {{"processes": process.num_processes, "backend": process.backend}}
found["own"] = str(Accelerator(cpu=True).distributed_type)  # without what follows
if sys.argv[3] == "sharded":
    # accelerate shards on GPUs alone: lift this, so that all else is what it does there
    state.AcceleratorState._reset_state()
    begun = state.AcceleratorState.__init__

    def lifted(self, *given, fsdp_plugin=None, **settings):
        begun(self, *given, fsdp_plugin=fsdp_plugin, **settings)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    state.AcceleratorState.__init__ = lifted

def prepared(trainer, *given):
    made = prepare(trainer, *given)
    found.setdefault("held", []).append(tests.held(trainer.model))
    return made

prepare = transformers.Trainer._prepare_for_training
transformers.Trainer._prepare_for_training = prepared
stream = tiny.base_rows(5, 100, batch={BATCH})
rows = [row for step in range({STEPS}) for row in stream(step)]
start = LanguageModel(tiny.new_model(0), tiny.tokenizer(), "start")

def report(name, run):
    process.wait_for_everyone()
    found.setdefault(name, []).append({{
        "losses": [entry["loss"] for entry in run.log if "loss" in entry],
        "weights": adapters.fingerprint(run.lm.model),
        "epoch": run.log[-1]["epoch"],
        "rewards": [entry["reward"] for entry in run.log if "reward" in entry],
        "margins": [entry["rewards/margins"] for entry in run.log if "rewards/margins" in entry],
    }})

def train(name, rows, **settings):
    settings = {{"steps": {STEPS}, "peak_lr": {RATE}, "log_every": 1}} | settings
    report(name, sft.sft(start, rows, here / name, sft.SFTSettings(**settings)))

train("shared", rows, batch={BATCH}, save_every=2)
if process.is_main_process:  # as if killed between steps 3 and 4
    shutil.rmtree(here / "shared" / "checkpoint-4")
process.wait_for_everyone()
train("shared", rows, batch={BATCH}, save_every=2)
train("adapter", rows, batch={BATCH}, lora_rank=2)
report("dpo", tests.preferred(start, here / "dpo"))
long = models.load("tiny", model=models.shipped("tiny-long"), device="cpu")
for name in tests.GRPO:
    report(name, tests.rewarded(long, here / name, tests.GRPO[name]))
try:
    train("uneven", rows[:28], batch=7)
except ValueError as error:
    found["uneven"] = str(error)
try:
    tests.rewarded(long, here / "uneven", {{"prompts": 3}})
except ValueError as error:
    found["uneven_groups"] = str(error)
(here / f"process{{process.process_index}}.json").write_text(json.dumps(found))
"""


def held(model):
    """The share of the model's parameters that this process holds, to a hundredth."""
    own = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
    return round(sum(p.numel() for p in own) / sum(p.numel() for p in model.parameters()), 2)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# how the weights lie on two processes, and what the launcher is told
WAYS = {
    "whole": "--multi_gpu --num_machines 1 --mixed_precision no --dynamo_backend no",
    "sharded": f"--config_file {FSDP}",
}


@pytest.fixture(scope="module", params=WAYS)
def launched(request, tmp_path_factory):
    """The folder of a script that two processes have run, and what each of them reports."""
    folder, way = tmp_path_factory.mktemp("launch"), request.param
    (folder / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "accelerate.commands.launch", *WAYS[way].split()]
    command += ["--num_processes", "2", "--main_process_port", str(free_port())]
    alone = {
        "ACCELERATE_CONFIG_FILE": "",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    if sys.platform == "linux":
        # the host's own name need not resolve where there is no network
        alone["GLOO_SOCKET_IFNAME"] = "lo"
    command += [str(folder / "script.py"), str(folder), os.path.dirname(__file__), way]
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
    settings = {"steps": STEPS, "batch": BATCH, "peak_lr": RATE, "log_every": 1} | settings
    return sft.sft(start, rows, folder, sft.SFTSettings(**settings))


def losses(run):
    return [entry["loss"] for entry in run.log if "loss" in entry]


def assert_close(weights, state):
    for name, tensor in state.items():
        assert torch.allclose(weights[name], tensor, atol=2e-5), name


def assert_same_step(weights, state, before):
    """The difference of two runs, by the length of the way that both have gone.

    Adam divides a gradient by its own size, so where one is near 0 its rounding is seen.
    """
    apart = sum(float((weights[name] - tensor).square().sum()) for name, tensor in state.items())
    way = sum(float((before[name] - tensor).square().sum()) for name, tensor in state.items())
    assert way > 1e-6
    assert (apart / way) ** 0.5 < 1e-3


def test_two_processes_took_part_over_gloo_and_end_with_the_same_weights(launched):
    _, (first, second) = launched
    assert (first["processes"], first["backend"]) == (2, "gloo")
    assert first == second


def test_accelerate_itself_shards_no_weights_on_cpus(launched):
    """Were this to fail, the script need no longer lift it."""
    _, (found, _) = launched
    assert found["own"] == "DistributedType.MULTI_CPU"


def test_each_process_holds_all_weights_or_its_share_of_them(launched, request):
    _, (found, _) = launched
    sharded = "sharded" in request.node.callspec.id
    assert found["held"] == [0.5 if sharded else 1.0] * (4 + len(GRPO))


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


def test_a_launched_run_by_preference_is_the_run_of_one_process(launched, start, tmp_path):
    folder, (found, _) = launched
    run = preferred(start, tmp_path / "run")
    assert found["dpo"][0]["losses"] == pytest.approx(losses(run), rel=1e-5)
    margins = [entry["rewards/margins"] for entry in run.log if "rewards/margins" in entry]
    assert found["dpo"][0]["margins"] == pytest.approx(margins, rel=1e-4, abs=1e-5)
    assert abs(margins[-1]) > 0.01
    saved = load_file(folder / "dpo" / "model.safetensors")
    assert_same_step(saved, run.lm.model.state_dict(), start.model.state_dict())


@pytest.mark.parametrize("name", GRPO)
def test_a_launched_run_by_reward_is_the_run_of_one_process(launched, reasoner, tmp_path, name):
    """The same questions, samples and rewards at every step, and the same weights at its end."""
    folder, (found, _) = launched
    run = rewarded(reasoner, tmp_path / "run", GRPO[name])
    rewards = [entry["reward"] for entry in run.log if "reward" in entry]
    assert found[name][0]["rewards"] == pytest.approx(rewards, rel=1e-6)
    assert found[name][0]["losses"] == pytest.approx(losses(run), abs=1e-6)
    moved = max(
        (run.lm.model.state_dict()[key] - old).abs().max()
        for key, old in reasoner.model.state_dict().items()
    )
    assert moved > 1e-4
    saved = load_file(folder / name / "model.safetensors")
    assert_same_step(saved, run.lm.model.state_dict(), reasoner.model.state_dict())


def test_a_batch_that_does_not_split_evenly_is_refused(launched):
    _, (found, _) = launched
    assert "batch=7 for 2 processes: give a multiple" in found["uneven"]
    assert "prompts=3 for 2 processes: give a multiple" in found["uneven_groups"]
