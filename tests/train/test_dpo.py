"""Preference optimisation: trl's loss is the formula, the margin grows, a killed run ends in the
same bits, and bad input.
"""

import copy
import inspect
import json
import math
import os
import random
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from tml_lib.data import program_grading, programs, tiny
from tml_lib.lm import adapters, models
from tml_lib.lm.answers import chat_prompt
from tml_lib.lm.models import LanguageModel
from tml_lib.train import dpo, sft

pytestmark = pytest.mark.slow  # trains

STEPS, BATCH = 6, 4


def made_pairs(count):
    """A right and a wrong trajectory of each of `count` questions, with their answers."""
    made = []
    for k, question in enumerate(programs.questions(count, seed=9)):
        program, rng = programs.parse(question.text), random.Random(k)
        wrong = programs.trajectory(program, "wrong", rng)
        ids, start = tiny.row(question.text, question.trajectories[0].text.split(), question.answer)
        other, _ = tiny.row(question.text, wrong.text.split(), wrong.answer)
        made.append((ids[:start], ids[start:], other[start:]))
    return made


@pytest.fixture(scope="module")
def short():
    """The kit's reasoner: right on about a third of its samples."""
    return models.load("tiny", model=models.shipped("tiny-short"), device="cpu")


@pytest.fixture(scope="module")
def pairs():
    return made_pairs(STEPS * BATCH)


def fit(lm, pairs, folder, *, on_log=None, **settings):
    settings = {"steps": STEPS, "batch": BATCH, "log_every": 1, "peak_lr": 1e-4} | settings
    return dpo.dpo(lm, pairs, folder, dpo.DPOSettings(**settings), on_log=on_log)


def fine_tune(lm, rows, folder, peak_lr):
    settings = sft.SFTSettings(steps=STEPS, batch=BATCH, peak_lr=peak_lr)
    return sft.sft(lm, rows, folder, settings)


def logged(run, name):
    return [entry[name] for entry in run.log if "loss" in entry]


def log_likelihood(model, prompt, continuation):
    """log p(continuation | prompt), summed over tokens; one row, no padding."""
    ids = torch.tensor([prompt + continuation])
    chances = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return chances.gather(1, torch.tensor(continuation)[:, None]).sum()


def margins(model, reference, pairs):
    """beta-less margins: (log p - log p_ref)(chosen) - (log p - log p_ref)(rejected), one for each
    pair.
    """
    found = []
    for prompt, chosen, rejected in pairs:
        gained = [
            log_likelihood(model, prompt, c) - log_likelihood(reference, prompt, c).detach()
            for c in (chosen, rejected)
        ]
        found.append(gained[0] - gained[1])
    return torch.stack(found)


def loss_by_hand(model, reference, pairs, beta):
    return -torch.log(1 / (1 + torch.exp(-beta * margins(model, reference, pairs)))).mean()


# --- the loss and its gradient --------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "beta"), [(0, 0.1), (2, 0.5)])
def test_the_first_loss_is_log_two(start, pairs, tmp_path, rank, beta):
    run = fit(start, pairs, tmp_path / "run", lora_rank=rank, beta=beta)
    assert logged(run, "loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert logged(run, "rewards/margins")[0] == pytest.approx(0, abs=1e-5)
    assert run.lm.name == "start+dpo"
    assert (run.trained == start.parameters) == (rank == 0)


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_loss_and_gradient_are_those_of_the_formula(start, pairs, tmp_path, beta):
    """Step 2's loss from the weights after step 1; step 1's move is Adam's first, the rate times
    the gradient's sign.
    """
    rate, settings = 1e-3, {"steps": 2, "batch": BATCH, "save_every": 1}
    run = fit(start, pairs[: 2 * BATCH], tmp_path / "run", peak_lr=rate, beta=beta, **settings)
    moved = tiny.new_model(1)
    moved.load_state_dict(load_file(tmp_path / "run" / "checkpoint-1" / "model.safetensors"))
    wanted = loss_by_hand(moved, start.model, pairs[BATCH : 2 * BATCH], beta).item()
    assert logged(run, "loss")[1] == pytest.approx(wanted, abs=1e-5)
    assert abs(wanted - math.log(2)) > 1e-3  # so the reference took part

    before = tiny.new_model(0)
    gradient = torch.autograd.grad(
        loss_by_hand(before, start.model, pairs[:BATCH], beta), list(before.parameters())
    )
    size = math.sqrt(sum(float(g.square().sum()) for g in gradient))
    assert logged(run, "grad_norm")[0] == pytest.approx(size, rel=1e-4)
    for g, old, new in zip(gradient, before.parameters(), moved.parameters(), strict=True):
        clear = g.abs() > 1e-4 * size  # where rounding does not decide the sign
        assert torch.allclose((old - new)[clear], rate * g[clear].sign(), atol=1e-5)


def test_the_reference_of_an_adapter_is_the_model_with_the_adapter_off(start, pairs, tmp_path):
    run = fit(start, pairs, tmp_path / "run", lora_rank=2, peak_lr=1e-2, save_every=STEPS - 1)
    checkpoint = adapters.PeftModel.from_pretrained(
        adapters.sharing(start.model), tmp_path / "run" / f"checkpoint-{STEPS - 1}"
    )
    prompt, chosen, _ = pairs[0]
    with checkpoint.disable_adapter():
        assert log_likelihood(checkpoint, prompt, chosen) == log_likelihood(
            start.model, prompt, chosen
        )
    wanted = loss_by_hand(checkpoint, start.model, pairs[-BATCH:], 0.1).item()
    assert logged(run, "loss")[-1] == pytest.approx(wanted, abs=1e-5)
    # trl keeps a second adapter where it is given no reference
    assert not (tmp_path / "run" / "ref").exists()


@pytest.mark.parametrize("rank", [0, 4])
def test_the_margin_grows_and_the_right_ones_win(short, tmp_path, rank):
    pairs = made_pairs(16)
    run = fit(
        short,
        dpo.passes(pairs, 160),
        tmp_path / "run",
        steps=20,
        batch=8,
        peak_lr=1e-3,
        lora_rank=rank,
    )
    with torch.no_grad():
        found = margins(run.lm.model, short.model, pairs)
    assert float(found.mean()) > 1.0
    assert float((found > 0).double().mean()) > 0.9
    assert logged(run, "loss")[-1] < math.log(2) - 0.05


def test_a_bfloat16_model_stays_one(start, pairs, tmp_path):
    half = LanguageModel(tiny.new_model(0).to(torch.bfloat16), tiny.tokenizer(), "half")
    run = fit(half, pairs, tmp_path / "run", peak_lr=1e-3)
    assert next(run.lm.model.parameters()).dtype == torch.bfloat16
    assert logged(run, "loss")[0] == pytest.approx(math.log(2), abs=1e-2)
    assert run.lm.model(torch.tensor([pairs[0][0]])).logits.dtype == torch.bfloat16


# --- what it leaves behind ------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 2])
def test_the_model_it_starts_from_stays_as_it_is(pairs, tmp_path, rank):
    lm = LanguageModel(tiny.new_model(0), tiny.tokenizer(), "start")
    lm.tokenizer.pad_token = None  # the trainer sets one
    lm.model.config.pad_token_id = None
    weights = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    config = copy.deepcopy(lm.model.config.to_dict())
    run = fit(lm, pairs, tmp_path / "run", lora_rank=rank, peak_lr=1e-2)
    assert all(torch.equal(weights[name], tensor) for name, tensor in lm.model.state_dict().items())
    assert any(
        not torch.equal(weights[name], tensor) for name, tensor in run.lm.model.state_dict().items()
    )
    assert all(p.requires_grad for p in lm.model.parameters())
    assert lm.model.config.to_dict() == config
    assert lm.tokenizer.pad_token is None
    assert "forward" not in lm.model.__dict__
    assert not lm.model.training
    assert not run.lm.model.training


def test_the_result_is_saved_and_loads_again(start, pairs, tmp_path):
    ids = torch.tensor([pairs[0][0]])
    full = fit(start, pairs, tmp_path / "full", peak_lr=1e-3)
    again = models.load("tiny", model=str(tmp_path / "full"), device="cpu")
    assert torch.equal(again.model(ids).logits, full.lm.model(ids).logits)
    lora = fit(start, pairs, tmp_path / "lora", lora_rank=2, peak_lr=1e-2)
    assert torch.equal(
        adapters.adapted(start, tmp_path / "lora").model(ids).logits, lora.lm.model(ids).logits
    )


def test_it_goes_on_from_a_fine_tuned_model_and_another_goes_on_from_it(start, pairs, tmp_path):
    """trl leaves a forward in the models it trains, by which a copy would run the weights of what
    it was copied from.
    """
    rows = [(prompt + chosen, len(prompt)) for prompt, chosen, _ in pairs]
    tuned = fine_tune(start, rows, tmp_path / "sft", 3e-3).lm
    first = fit(tuned, pairs, tmp_path / "first", lora_rank=2, peak_lr=1e-2)
    second = fit(first.lm, pairs, tmp_path / "second", lora_rank=2, peak_lr=1e-2)
    assert logged(second, "loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    ids = torch.tensor([rows[0][0]])
    for before, after in ((tuned, first.lm), (first.lm, second.lm)):
        plain = tiny.new_model(1)
        plain.load_state_dict(after.model.state_dict())
        assert torch.equal(after.model(ids).logits, plain(ids).logits)
        assert not torch.allclose(after.model(ids).logits, before.model(ids).logits, atol=1e-2)
        assert "forward" not in after.model.__dict__


def test_a_chat_model_s_pairs_work_too(tiny_lm, questions, tmp_path):
    tokenizer = tiny_lm.tokenizer
    made = []
    for question in questions[:2]:
        parts = (
            chat_prompt(tokenizer, question.text),
            f"It is {question.answer}.",
            "I do not know.",
        )
        made.append(tuple(tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts))
    run = fit(tiny_lm, made, tmp_path / "run", steps=1, batch=2, lora_rank=2)
    assert run.log[-1]["train_loss"] == pytest.approx(math.log(2), abs=1e-5)


# --- resume ---------------------------------------------------------------------------------------

CHILD = f"""
import random, sys, torch
from pathlib import Path
from tml_lib.train import dpo
from tml_lib.data import programs, tiny
from tml_lib.lm.models import LanguageModel
torch.set_num_threads(1)
{inspect.getsource(made_pairs)}
start = LanguageModel(tiny.new_model(0), tiny.tokenizer(), "start")
def show(log):
    print("step", log[-1]["step"], flush=True)
settings = dpo.DPOSettings(steps={STEPS}, batch={BATCH}, log_every=1, save_every=1, peak_lr=1e-3)
dpo.dpo(start, made_pairs({STEPS * BATCH}), Path(sys.argv[1]), settings, on_log=show)
"""


def assert_same(run, whole):
    assert logged(run, "loss") == logged(whole, "loss")
    for name, tensor in run.lm.model.state_dict().items():
        assert torch.equal(tensor, whole.lm.model.state_dict()[name]), name


def test_a_killed_run_goes_on_and_ends_in_the_same_bits(start, pairs, tmp_path):
    whole = fit(start, pairs, tmp_path / "whole", peak_lr=1e-3, save_every=1)
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "cut")], stdout=subprocess.PIPE, text=True
    )
    for line in child.stdout:
        if line.startswith("step 4"):
            os.kill(child.pid, signal.SIGKILL)
            break
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    seen = []
    settings = {
        "peak_lr": 1e-3,
        "save_every": 1,
        "on_log": lambda log: seen.append(log[-1]["step"]),
    }
    again = fit(start, pairs, tmp_path / "cut", **settings)
    assert seen[0] > 2, "it began anew"
    assert_same(again, whole)


def test_an_adapter_goes_on_where_it_was_stopped(start, pairs, tmp_path):
    class Stop(Exception):
        pass

    def stop(log):
        if log[-1]["step"] == 4:
            raise Stop

    settings = {"lora_rank": 2, "peak_lr": 1e-2, "save_every": 1}
    whole = fit(start, pairs, tmp_path / "whole", **settings)
    with pytest.raises(Stop):
        fit(start, pairs, tmp_path / "cut", on_log=stop, **settings)
    seen = []
    again = fit(
        start, pairs, tmp_path / "cut", on_log=lambda log: seen.append(log[-1]["step"]), **settings
    )
    assert seen[0] == 4
    assert_same(again, whole)


# --- bad input ------------------------------------------------------------------------------------


def test_a_folder_of_another_run_is_refused(start, pairs, tmp_path):
    fit(start, pairs, tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds another run \(beta was 0.1, is 0.2\)"):
        fit(start, pairs, tmp_path / "run", beta=0.2)
    with pytest.raises(ValueError, match=r"holds another run \(rows was"):
        fit(start, [(p, r, c) for p, c, r in pairs], tmp_path / "run")
    rows = [(prompt + chosen, len(prompt)) for prompt, chosen, _ in pairs]
    with pytest.raises(ValueError, match="holds another run"):
        fine_tune(start, rows, tmp_path / "run", 1e-4)
    fine_tune(start, rows, tmp_path / "sft", 1e-4)
    with pytest.raises(ValueError, match=r"holds another run \(method was None, is dpo"):
        fit(start, pairs, tmp_path / "sft")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match="is not empty and holds no run of this kit"):
        fit(start, pairs, tmp_path / "mine")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["beta"] == 0.1


def test_pairs_that_cannot_be_trained_on_are_refused(start, pairs, tmp_path):
    prompt, chosen, rejected = pairs[0]
    for wrong, message in [
        (pairs[:-1], "23 pairs for 6 steps of 4"),
        ([], "0 pairs for 6 steps of 4"),
        (
            [*pairs[:-1], (prompt, [5] * 300, rejected)],
            f"pair 23 takes {len(prompt) + 300} tokens, but LlamaForCausalLM's context holds 256",
        ),
        ([*pairs[:-1], (prompt, chosen, [5] * 300)], "context holds 256: cut long trajectories"),
        ([([], chosen, rejected), *pairs[1:]], "pair 0 has an empty prompt or continuation"),
        ([(prompt, chosen, []), *pairs[1:]], "pair 0 has an empty prompt or continuation"),
        ([(prompt, chosen, chosen), *pairs[1:]], "pair 0 prefers a continuation to itself"),
    ]:
        with pytest.raises(ValueError, match=message):
            fit(start, wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run(start, pairs, tmp_path):
    with pytest.raises(ValueError, match=r"the loss is nan at step \d+: lower peak_lr"):
        fit(start, pairs, tmp_path / "run", peak_lr=1e30)
    assert not list((tmp_path / "run").glob("*.safetensors"))


# --- pairs ----------------------------------------------------------------------------------------


def test_a_pair_is_a_right_and_a_wrong_sample_of_one_question(short):
    asked = programs.questions(24, seed=3)
    pairs, without, cut = dpo.sampled_pairs(short, asked, program_grading.graded, samples=6, seed=0)
    assert len(pairs) + without == 24
    assert cut[1] == 144
    assert len(pairs) >= 8
    by_prompt = {chat_prompt(short.tokenizer, question.text): question for question in asked}
    for prompt, chosen, rejected in pairs:
        texts = [short.tokenizer.decode(ids[:-1]) for ids in (chosen, rejected)]
        question = next(
            q for text, q in by_prompt.items() if short.tokenizer(text)["input_ids"] == prompt
        )
        assert [program_grading.graded(text, question.answer) for text in texts] == [True, False]
        for ids in (chosen, rejected):
            assert ids.count(short.tokenizer.eos_token_id) == 1
            assert ids[-1] == short.tokenizer.eos_token_id
    assert dpo.sampled_pairs(short, asked, program_grading.graded, samples=6, seed=0)[0] == pairs
    first = dpo.sampled_pairs(short, asked[:12], program_grading.graded, samples=6, seed=0)[0]
    assert first == pairs[: len(first)]
    assert dpo.sampled_pairs(short, asked, program_grading.graded, samples=6, seed=1)[0] != pairs


def test_samples_that_are_cut_are_in_no_pair_and_are_counted(short):
    asked, least = programs.questions(24, seed=3), 24
    settings = {"samples": 6, "seed": 0, "max_new_tokens": least}
    pairs, _, cut = dpo.sampled_pairs(short, asked, program_grading.graded, **settings)
    assert 0 < cut[0] < cut[1] == 144
    assert all(len(ids) <= least + 1 for pair in pairs for ids in pair[1:])


@pytest.mark.parametrize(
    ("graded", "settings", "message"),
    [
        (
            lambda text, answer: True,
            {},
            r"4 no wrong one, 0 none that ended\): ask harder questions",
        ),
        (lambda text, answer: False, {}, r"4 have no right one, .*\): ask easier questions"),
        (
            program_grading.graded,
            {"max_new_tokens": 1},
            r"4 none that ended\): raise max_new_tokens",
        ),
    ],
)
def test_where_there_is_no_pair_the_error_says_what_to_change(short, graded, settings, message):
    with pytest.raises(
        ValueError,
        match=f"none of 4 questions has a right and a wrong one among 3 samples.*{message}",
    ):
        dpo.sampled_pairs(
            short, programs.questions(4, seed=3), graded, samples=3, seed=0, **settings
        )


def test_passes_show_every_pair_once_before_any_twice(pairs):
    found = dpo.passes(pairs, 2 * len(pairs) + 3)
    assert len(found) == 2 * len(pairs) + 3
    for k in (0, 1):
        assert sorted(found[k * len(pairs) : (k + 1) * len(pairs)]) == sorted(pairs)
    assert found[: len(pairs)] != found[len(pairs) : 2 * len(pairs)]
    assert dpo.passes(pairs, 30) == found[:30]
    assert dpo.passes(pairs, 30, seed=1) != found[:30]
    with pytest.raises(ValueError, match="0 pairs cannot be repeated"):
        dpo.passes([], 3)
