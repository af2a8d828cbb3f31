"""The outer loop: trl's trainer does what the plain loop does, goes on after a kill in the same
bits, and refuses by name.
"""

import copy
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from tml_lib.data import programs, tiny
from tml_lib.lm import adapters, models
from tml_lib.lm.answers import ANSWER_TEMPLATE, chat_prompt, encode
from tml_lib.lm.models import LanguageModel
from tml_lib.train import sft

pytestmark = pytest.mark.slow  # trains

STEPS, BATCH = 12, 8


@pytest.fixture(scope="module")
def rows():
    stream = tiny.base_rows(5, 100, batch=BATCH)
    return [row for step in range(STEPS) for row in stream(step)]


def losses(run):
    return [entry["loss"] for entry in run.log if "loss" in entry]


def fit(start, rows, folder, *, on_log=None, **settings):
    settings = {"steps": STEPS, "batch": BATCH, "log_every": 1, "peak_lr": 1e-3} | settings
    return sft.sft(start, rows, folder, sft.SFTSettings(**settings), on_log=on_log)


def test_trl_and_the_plain_loop_give_the_same_losses_and_weights(start, rows, tmp_path):
    before = {name: tensor.clone() for name, tensor in start.model.state_dict().items()}
    run = fit(start, rows, tmp_path / "run", peak_lr=3e-3)
    model = tiny.new_model(0)
    plain = tiny.train(
        model, lambda k: rows[k * BATCH : (k + 1) * BATCH], steps=STEPS, peak_lr=3e-3
    )
    assert losses(run) == pytest.approx(plain, rel=1e-5)
    assert plain[-1] < plain[0] - 0.5
    for name, tensor in run.lm.model.state_dict().items():
        assert torch.allclose(tensor, model.state_dict()[name], atol=1e-5), name
        assert torch.equal(start.model.state_dict()[name], before[name]), (
            "the start was trained instead of a copy"
        )
    assert run.trained == start.parameters
    assert not run.lm.model.training


def test_the_result_is_saved_and_loads_as_any_model(start, rows, tmp_path):
    run = fit(start, rows, tmp_path / "run")
    again = models.load("tiny", model=str(tmp_path / "run"), device="cpu")
    ids = torch.tensor([rows[0][0]])
    assert torch.equal(again.model(ids).logits, run.lm.model(ids).logits)
    assert again.tokenizer.chat_template == start.tokenizer.chat_template


def test_lora_trains_few_parameters_and_its_merged_model_is_base_plus_adapter(
    start, rows, tmp_path
):
    before = {name: tensor.clone() for name, tensor in start.model.state_dict().items()}
    run = fit(start, rows, tmp_path / "run", lora_rank=2, peak_lr=1e-2)
    assert 0 < run.trained < start.parameters / 10
    assert losses(run)[-1] < losses(run)[0]
    adapter = load_file(tmp_path / "run" / "adapter_model.safetensors")
    name = "model.layers.1.self_attn.q_proj"
    a, b = (adapter[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    wanted = start.model.state_dict()[f"{name}.weight"] + 2.0 * b @ a  # alpha / rank = 2
    merged = run.lm.model.state_dict()
    assert torch.allclose(merged[f"{name}.weight"], wanted, atol=1e-6)
    assert torch.equal(merged["lm_head.weight"], start.model.state_dict()["lm_head.weight"])
    assert all(
        torch.equal(before[name], tensor) for name, tensor in start.model.state_dict().items()
    )
    assert all(p.requires_grad for p in start.model.parameters())
    again = adapters.adapted(start, tmp_path / "run").model.state_dict()
    assert all(torch.equal(merged[name], tensor) for name, tensor in again.items())
    assert all(
        torch.equal(before[name], tensor) for name, tensor in start.model.state_dict().items()
    )


def test_an_adapter_of_another_model_or_none_is_refused(start, rows, tmp_path):
    fit(start, rows, tmp_path / "run", lora_rank=2)
    with pytest.raises(ValueError, match="trained on another model than other"):
        adapters.adapted(
            LanguageModel(tiny.new_model(1), tiny.tokenizer(), "other"), tmp_path / "run"
        )
    fit(start, rows, tmp_path / "full")
    with pytest.raises(FileNotFoundError, match="no adapter of this kit"):
        adapters.adapted(start, tmp_path / "full")


def test_a_bfloat16_model_stays_one_and_learns_about_as_much(start, rows, tmp_path):
    model = tiny.new_model(0).to(torch.bfloat16)
    run = fit(LanguageModel(model, tiny.tokenizer(), "half"), rows, tmp_path / "run", peak_lr=3e-3)
    full = fit(start, rows, tmp_path / "full", peak_lr=3e-3)
    assert next(run.lm.model.parameters()).dtype == torch.bfloat16
    assert losses(run) == pytest.approx(losses(full), rel=0.05)


@pytest.mark.parametrize("rank", [0, 2])
def test_the_model_and_the_tokenizer_it_starts_from_stay_as_they_are(rows, tmp_path, rank):
    lm = LanguageModel(tiny.new_model(0), tiny.tokenizer(), "start")
    lm.tokenizer.pad_token = None  # the trainer sets one
    lm.model.config.pad_token_id = None
    lm.model.requires_grad_(False)
    config = copy.deepcopy(lm.model.config.to_dict())
    run = fit(lm, rows[:4], tmp_path / "run", steps=1, batch=4, lora_rank=rank)
    assert run.trained > 0
    assert lm.model.config.to_dict() == config
    assert lm.tokenizer.pad_token is None
    assert not any(p.requires_grad for p in lm.model.parameters())
    assert "forward" not in lm.model.__dict__
    assert not lm.model.training


def test_the_log_history_is_handed_on_while_it_grows(start, rows, tmp_path):
    seen = []
    run = fit(start, rows, tmp_path / "run", on_log=lambda log: seen.append(len(log)))
    assert seen[:3] == [1, 2, 3]
    assert {"loss", "mean_token_accuracy", "learning_rate"} <= set(run.log[0])


def test_gold_questions_become_rows_of_any_tokenizer(tiny_lm, questions, tmp_path):
    rows = sft.question_rows(tiny_lm, questions[:4])
    for question, (ids, start) in zip(questions, rows, strict=False):
        ending = f"{ANSWER_TEMPLATE}{question.answer}}}{tiny_lm.tokenizer.eos_token}"
        assert tiny_lm.tokenizer.decode(ids[start:]) == question.trajectories[0].text + ending
        assert tiny_lm.tokenizer.decode(ids[:start]) == chat_prompt(
            tiny_lm.tokenizer, question.text
        )
    run = fit(tiny_lm, rows, tmp_path / "run", steps=2, batch=2, lora_rank=2)
    assert len(losses(run)) == 2
    # the tiny task's questions carry gold trajectories too
    assert programs.questions(1)[0].trajectories
    own = LanguageModel(tiny.new_model(0), tiny.tokenizer(), "own")
    (made,) = sft.question_rows(own, programs.questions(1))
    question = programs.questions(1)[0]
    assert made == tiny.row(question.text, question.trajectories[0].text.split(), question.answer)


# --- resume ---------------------------------------------------------------------------------------

CHILD = """
import sys, torch
from pathlib import Path
from tml_lib.train import sft
from tml_lib.data import tiny
from tml_lib.lm.models import LanguageModel
torch.set_num_threads(1)
stream = tiny.base_rows(5, 100, batch=8)
rows = [row for step in range(12) for row in stream(step)]
start = LanguageModel(tiny.new_model(0), tiny.tokenizer(), "start")
def show(log):
    print("step", log[-1]["step"], flush=True)
settings = dict(steps=12, batch=8, log_every=1, save_every=2, lora_rank=int(sys.argv[2]))
settings = sft.SFTSettings(**settings, peak_lr=1e-3)
sft.sft(start, rows, Path(sys.argv[1]), settings, on_log=show)
"""


@pytest.mark.parametrize("rank", [0, 2])
def test_a_killed_run_goes_on_and_ends_in_the_same_bits(start, rows, tmp_path, rank):
    whole = fit(start, rows, tmp_path / "whole", lora_rank=rank, save_every=2)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "cut"), str(rank)],
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in child.stdout:
        if line.startswith("step 7"):
            os.kill(child.pid, signal.SIGKILL)
            break
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    kept = sorted(path.name for path in (tmp_path / "cut").glob("checkpoint-*"))
    assert kept
    began = time.perf_counter()
    seen = []
    again = fit(
        start,
        rows,
        tmp_path / "cut",
        lora_rank=rank,
        save_every=2,
        on_log=lambda log: seen.append(log[-1]["step"]),
    )
    assert seen[0] > 4, f"it began anew after {time.perf_counter() - began:.1f} s"
    for name, tensor in again.lm.model.state_dict().items():
        assert torch.equal(tensor, whole.lm.model.state_dict()[name]), name
    assert losses(again) == losses(whole)


def test_a_checkpoint_that_was_cut_off_is_left_out(start, rows, tmp_path):
    whole = fit(start, rows, tmp_path / "whole")
    fit(start, rows, tmp_path / "cut", save_every=4)
    newest = max(
        (tmp_path / "cut").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])
    )
    (newest / "sums.json").unlink()  # the last file of a checkpoint
    (newest / "trainer_state.json").write_text('{"global_st')
    (newest / "model.safetensors").write_bytes(b"")
    seen = []
    again = fit(
        start, rows, tmp_path / "cut", save_every=4, on_log=lambda log: seen.append(log[-1]["step"])
    )
    assert seen[0] == 9
    for name, tensor in again.lm.model.state_dict().items():
        assert torch.equal(tensor, whole.lm.model.state_dict()[name]), name


# --- bad input ------------------------------------------------------------------------------------


def test_a_folder_of_another_run_or_of_other_files_is_refused(start, rows, tmp_path):
    fit(start, rows, tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds another run \(peak_lr was 0.001, is 0.002\)"):
        fit(start, rows, tmp_path / "run", peak_lr=2e-3)
    other = LanguageModel(tiny.new_model(1), tiny.tokenizer(), "other")
    with pytest.raises(ValueError, match=r"holds another run \(model was"):
        fit(other, rows, tmp_path / "run")
    # the same tokens, learnt backwards
    shuffled = [(ids[:start_] + ids[: start_ - 1 : -1], start_) for ids, start_ in rows]
    for other_rows in (rows[::-1], shuffled, [(ids, start_ - 1) for ids, start_ in rows]):
        with pytest.raises(ValueError, match=r"holds another run \(rows was"):
            fit(start, other_rows, tmp_path / "run")
    marker = tmp_path / "run" / "run.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {"vocabulary": 49152}))
    with pytest.raises(ValueError, match="vocabulary was 49152, is 507"):
        fit(start, rows, tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="is not empty and holds no run of this kit"):
        fit(start, rows, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "precious"


def test_too_few_rows_and_too_long_ones_are_refused(start, rows, tmp_path):
    with pytest.raises(ValueError, match="95 rows for 12 steps of 8"):
        fit(start, rows[:-1], tmp_path / "run")
    with pytest.raises(ValueError, match="steps=0 is out of range"):
        fit(start, [], tmp_path / "run", steps=0)
    with pytest.raises(ValueError, match=r"row 95 takes 300 tokens, but .* context holds 256"):
        fit(start, [*rows[:-1], ([5] * 300, 3)], tmp_path / "run")
    for ids, first in (([5, 6, 7], 3), ([5, 6, 7], 9), ([5, 6, 7], -1), ([], 0), ([5], 0)):
        with pytest.raises(ValueError, match=r"row 2 has no learnt token"):
            fit(start, [*rows[:2], (ids, first), *rows[3:]], tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run(start, rows, tmp_path):
    for every in (1, 100):  # logged at each step, or only at the end
        with pytest.raises(ValueError, match=r"the loss is nan at step \d+: lower peak_lr"):
            fit(start, rows, tmp_path / f"run{every}", peak_lr=1e30, log_every=every)
        assert not list((tmp_path / f"run{every}").glob("*.safetensors"))


def test_the_programs_of_a_run_are_readable_from_its_rows(rows):
    """What is trained on is text that a person can read back."""
    words = list(tiny.VOCABULARY)
    ids, start = rows[0]
    assert programs.parse(" ".join(words[k] for k in ids[1 : start - 2])).answer() in " ".join(
        words[k] for k in ids
    )


@pytest.mark.parametrize("through", [True, False])
def test_the_answers_gradient_is_its_finite_difference_with_and_without_the_trajectory(through):
    """Held fixed, the trajectory's keys and values stay those of the first weights; the question's
    follow the moved ones.
    """
    lm = LanguageModel(tiny.new_model(3).double(), tiny.tokenizer(), "start")
    question = programs.questions(1)[0]
    text = programs.trajectory(programs.parse(question.text), "plain", random.Random(0)).text
    encoded = encode(
        lm.tokenizer, prompt := chat_prompt(lm.tokenizer, question.text), text, [question.answer]
    )
    suffix, start = encoded.suffixes[0], len(encoded.prompt)
    before, ids = torch.tensor([[*encoded.prompt, *encoded.trajectory]]), torch.tensor([suffix.ids])

    def read(model):
        return model(input_ids=before, use_cache=True).past_key_values

    @torch.no_grad()
    def loss(model, fixed):
        cache = read(model)
        for layer, other in zip(cache.layers, fixed.layers, strict=True):
            if not through:
                layer.keys = torch.cat([layer.keys[:, :, :start], other.keys[:, :, start:]], 2)
                layer.values = torch.cat(
                    [layer.values[:, :, :start], other.values[:, :, start:]], 2
                )
        logits = model(input_ids=ids, past_key_values=cache).logits[0, suffix.start - 1 : -1]
        return float(torch.nn.functional.cross_entropy(logits, ids[0, suffix.start :]))

    found = sft.answer_gradient(lm, prompt, text, question.answer, through=through)
    fixed, weights = (
        read(lm.model),
        [p for block in lm.model.model.layers for p in block.parameters()],
    )
    direction = torch.randn(
        found.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    values = []
    for step in (1e-5, -1e-5):
        moved = tiny.new_model(3).double()
        parts = torch.split(direction, [p.numel() for p in weights])
        with torch.no_grad():
            for p, part in zip(
                (p for block in moved.model.layers for p in block.parameters()), parts, strict=True
            ):
                p.add_(step * part.view(p.shape))
        values.append(loss(moved, fixed))
    gradient = (values[0] - values[1]) / 2e-5
    # norms and softmax are float32 inside
    assert float(found @ direction) == pytest.approx(gradient, rel=2e-3)
    other = sft.answer_gradient(lm, prompt, text, question.answer, through=not through)
    assert float(other @ direction) != pytest.approx(gradient, rel=5e-3)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_trained_model_runs_its_own_weights_and_not_those_it_was_copied_from(
    start, rows, tmp_path, rank
):
    """trl leaves a forward in the model it trains, by which a copy would run the weights of what it
    was copied from.
    """
    first = fit(start, rows[:4], tmp_path / "first", steps=1, batch=4, lora_rank=rank)
    second = fit(
        first.lm, rows[4:8], tmp_path / "second", steps=1, batch=4, peak_lr=1e-2, lora_rank=rank
    )
    for run in (first, second):
        assert not {"forward", "_original_forward"} & set(run.lm.model.__dict__)
    ids = torch.tensor([rows[0][0]])
    fresh = type(start.model)(start.model.config)
    fresh.load_state_dict(second.lm.model.state_dict())
    assert torch.allclose(second.lm.model(ids).logits, fresh.eval()(ids).logits, atol=1e-5)
    assert not torch.allclose(second.lm.model(ids).logits, first.lm.model(ids).logits, atol=1e-3)


def test_an_adapter_acts_on_a_model_that_was_trained_in_this_process(start, rows, tmp_path):
    first = fit(start, rows[:8], tmp_path / "first", steps=1, batch=8).lm
    ids = torch.tensor([rows[0][0]])
    with torch.inference_mode():
        before = first.model(ids).logits
    fit(first, rows[:8], tmp_path / "second", steps=1, batch=8, lora_rank=2, peak_lr=0.1)
    again = adapters.adapted(first, tmp_path / "second")
    with torch.inference_mode():
        assert (again.model(ids).logits - before).abs().max() > 1e-3
        assert torch.equal(first.model(ids).logits, before)


def test_trl_reports_nothing_to_its_makers(monkeypatch):
    import huggingface_hub.utils._telemetry as telemetry

    monkeypatch.setattr(telemetry, "Thread", None)  # what would send it
    telemetry.send_telemetry("trl/trainer")
    assert telemetry.constants.HF_HUB_DISABLE_TELEMETRY
