"""GRPO: one step is the formula's, in direction and size; a killed run ends in the same bits; bad
input is refused by name.
"""

import math
import os
import random
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
import torch

from tml_lib.data import program_grading, programs, tiny
from tml_lib.lm import adapters, models, sampling
from tml_lib.lm.answers import chat_prompt
from tml_lib.lm.models import LanguageModel
from tml_lib.train import grpo

pytestmark = pytest.mark.slow  # trains

KILLS = 5  # how often the run of the resume test is killed, at a random step
SMALL = {"steps": 4, "prompts": 1, "group": 4, "most_tokens": 40, "save_every": 1}


@pytest.fixture(scope="module")
def long():
    return models.load("tiny", model=models.shipped("tiny-long"), device="cpu")


@pytest.fixture(scope="module")
def questions():
    """Of two lengths, so that prompts are padded."""
    short, full = programs.questions(8, steps=2), programs.questions(8)
    return [q for pair in zip(short, full, strict=True) for q in pair]


def brevity(text: str, answer: str) -> float:
    """Right or not, less the number of words, and a little for what they are: hardly two samples
    have the same.
    """
    return (
        program_grading.graded(text, answer)
        - len(text.split()) / 10
        + text.count("=") / 30
        + text.count("a") / 70
    )


def fit(lm, questions, reward, folder, *, on_log=None, **settings):
    """A run, at the rate that suits the tiny reasoner unless told."""
    settings = grpo.GRPOSettings(**{"steps": 1, "peak_lr": 3e-4} | settings)
    return grpo.grpo(lm, questions, reward, folder, settings, on_log=on_log)


def steps_of(run):
    return [entry for entry in run.log if "loss" in entry]


def weights(lm):
    return lm.model.state_dict()


def same(first, second):
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


# --- one step -------------------------------------------------------------------------------------


def gpt2():
    """Its positions are absolute: what is padded must not count."""
    model = models.random_model(
        "gpt2", vocab_size=len(tiny.tokenizer()), eos_token_id=tiny.VOCABULARY["<end>"]
    )
    return LanguageModel(model, tiny.tokenizer(), "gpt2")


def by_hand(lm, questions, samples, kept, group):
    """Gradient of the module's L at ρ = 1, sample by sample and without padding; kept: rows that
    take part.
    """
    ends = lm.tokenizer.eos_token_id
    texts = [lm.tokenizer.decode(ids[:-1] if ids[-1] == ends else ids) for ids in samples]
    rewards = np.array(
        [brevity(text, questions[row // group].answer) for row, text in enumerate(texts)]
    )
    grouped = rewards.reshape(-1, group)
    advantages = (grouped - grouped.mean(1, keepdims=True)) / (
        grouped.std(1, ddof=1, keepdims=True) + 1e-4
    )
    loss = 0.0
    for row in kept:
        prompt = lm.tokenizer(
            chat_prompt(lm.tokenizer, questions[row // group].text), add_special_tokens=False
        )["input_ids"]
        ids = torch.tensor([prompt + samples[row]])
        log_probs = lm.model(ids).logits[0, :-1].log_softmax(-1)
        taken = log_probs.gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0]
        loss = loss - advantages.reshape(-1)[row] * taken.mean() / len(kept)
    names, parameters = zip(*lm.model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True)), rewards


def watched(monkeypatch) -> list[list[list[int]]]:
    """A list that will hold, step by step, the samples that a step has drawn."""
    drawn, turn = [], grpo.Trainer._generate_single_turn

    def generate(*settings):
        drawn.append(turn(*settings)[0])
        return drawn[-1], None

    monkeypatch.setattr(grpo.Trainer, "_generate_single_turn", generate)
    return drawn


@pytest.mark.parametrize(
    ("which", "update", "accumulate"),
    [("long", 0, 1), ("long", 2, 1), ("long", 2, 2), ("gpt2", 0, 1), ("gpt2", 2, 1)],
)
def test_a_step_of_plain_descent_is_the_formulas_in_direction_and_size(
    long, questions, tmp_path, monkeypatch, which, update, accumulate
):
    lm, most, group, rate = (long, 128, 16, 0.5) if which == "long" else (gpt2(), 12, 16, 0.5)
    monkeypatch.setattr(grpo, "OPTIMISER", "sgd")
    monkeypatch.setattr(grpo, "LARGEST_NORM", 0.0)
    drawn = watched(monkeypatch)
    settings = {
        "steps": 1,
        "group": group,
        "update": update,
        "accumulate": accumulate,
        "peak_lr": rate,
        "most_tokens": most,
    }
    run = fit(lm, questions, brevity, tmp_path / "run", **settings)
    kept = range(2 * group)
    if update:  # drawn for each group from (seed, step, first row)
        draws = [
            (row, np.random.default_rng([0, 0, row, 1]).permutation(group)) for row in (0, group)
        ]
        kept = [row + int(k) for row, order in draws for k in order[:update]]
        assert len(set(kept)) == 2 * update
    gradient, rewards = by_hand(lm, questions, drawn[0], kept, group)
    moved = torch.cat([(weights(run.lm)[name] - weights(lm)[name]).flatten() for name in gradient])
    wanted = torch.cat([-rate * part.flatten() for part in gradient.values()])
    assert float(torch.nn.functional.cosine_similarity(moved, wanted, dim=0)) > 0.99999
    assert float(moved.norm() / wanted.norm()) == pytest.approx(1, abs=1e-4)
    (entry,) = steps_of(run)
    assert entry["reward"] == pytest.approx(rewards.mean(), rel=1e-5)
    assert entry["completions/mean_length"] == pytest.approx(
        np.mean([len(ids) for ids in drawn[0]])
    )
    if not update:
        assert abs(entry["loss"]) < 1e-6 < 1e-2 < entry["grad_norm"], (
            "the loss says nothing, its gradient does"
        )


def test_the_kept_samples_are_drawn_anew_each_step_and_one_of_each_group(
    long, questions, tmp_path, monkeypatch
):
    found, kept = [], grpo.Trainer._kept

    def watched(self, output):
        output = kept(self, output | {"place": torch.arange(8)})
        found.append(output.pop("place").tolist())
        assert int(output["num_items_in_batch"]) == int(output["completion_mask"].sum())
        assert output["completion_ids"].shape[1] == int(output["completion_mask"].sum(1).max())
        return output

    monkeypatch.setattr(grpo.Trainer, "_kept", watched)
    settings = {"steps": 6, "prompts": 2, "group": 4, "update": 1, "most_tokens": 8}
    fit(long, questions, brevity, tmp_path / "run", **settings)
    assert [[place // 4 for place in places] for places in found] == [[0, 1]] * 6
    assert min(len({places[k] for places in found}) for k in (0, 1)) > 1


def test_a_step_trains_on_what_the_sampler_draws_for_its_seeds(
    long, questions, tmp_path, monkeypatch
):
    drawn = watched(monkeypatch)
    fit(
        long,
        questions,
        brevity,
        tmp_path / "run",
        steps=1,
        prompts=3,
        group=4,
        most_tokens=40,
        seed=5,
    )
    prompts = [chat_prompt(long.tokenizer, q.text) for q in questions[:3]]
    seeds, end = [[5, 0, row] for row in range(12)], long.tokenizer.eos_token_id
    wanted = sampling.sample(long, [p for p in prompts for _ in range(4)], seeds, max_new_tokens=40)
    assert 0 < sum(one.cut for one in wanted) < 12, "some should be cut off"
    assert len({one.ids for one in wanted}) > 9
    for mine, theirs in zip(drawn[0], wanted, strict=True):
        assert mine == [*theirs.ids] + [end] * (not theirs.cut)
        assert len(mine) == 40 if theirs.cut else end not in theirs.ids


# --- a run ----------------------------------------------------------------------------------------


def test_rewards_rise_the_log_tells_and_the_start_stays_as_it_is(long, tmp_path):
    before, config = (
        {name: tensor.clone() for name, tensor in weights(long).items()},
        long.model.config.to_dict(),
    )
    seen, texts = [], []

    def reward(text, answer):
        texts.append(text)
        return brevity(text, answer)

    settings = {
        "steps": 10,
        "group": 8,
        "most_tokens": 64,
        "peak_lr": 1e-3,
        "on_log": lambda log: seen.append(len(log)),
    }
    run = fit(long, programs.questions(20, steps=2), reward, tmp_path / "run", **settings)
    log = steps_of(run)
    rewards = [entry["reward"] for entry in log]
    assert np.mean(rewards[-4:]) > np.mean(rewards[:4]) + 0.5
    keys = {
        "reward",
        "reward_std",
        "frac_reward_zero_std",
        "completions/mean_length",
        "completions/clipped_ratio",
        "entropy",
    }
    keys |= {
        "clip_ratio/region_mean",
        "seconds_sampling",
        "seconds_scoring",
        "seconds_update",
        "learning_rate",
        "grad_norm",
    }
    assert all(keys <= set(entry) for entry in log)
    assert all(entry["clip_ratio/region_mean"] == 0 for entry in log)
    assert seen[:3] == [1, 2, 3]
    assert len(texts) == 10 * 2 * 8
    assert not any("<end>" in text for text in texts)
    assert same(before, weights(long))
    assert long.model.config.to_dict() == config
    assert run.trained == long.parameters
    assert (run.lm.name, run.lm.model.training) == ("tiny-long+grpo", False)
    assert "forward" not in run.lm.model.__dict__, "trl's patch is still on the model"
    again = models.load("tiny", model=str(tmp_path / "run"), device="cpu")
    assert same(weights(run.lm), weights(again))


@pytest.mark.parametrize("rank", [0, 4])
def test_the_kl_term_holds_the_model_near_its_start_with_all_weights_and_with_an_adapter(
    long, questions, tmp_path, rank
):
    """The reference is the start itself: kl is 0 before the first update, and less where it costs
    more.
    """
    settings = {
        "steps": 5,
        "prompts": 1,
        "group": 8,
        "most_tokens": 40,
        "lora_rank": rank,
        "peak_lr": 1e-2 if rank else 1e-3,
    }
    found = {}
    for beta in (1e-6, 3.0):
        run = fit(long, questions, brevity, tmp_path / f"{beta}", beta=beta, **settings)
        found[beta] = [entry["kl"] for entry in steps_of(run)]
    assert [kl[0] for kl in found.values()] == pytest.approx([0, 0], abs=1e-9)
    assert found[1e-6][-1] > 2 * found[3.0][-1] > 0
    assert not (tmp_path / "3.0" / "ref").exists(), "the reference was saved beside the adapter"


def test_an_adapter_is_loaded_again_on_its_own_base_and_on_no_other(long, questions, tmp_path):
    run = fit(long, questions, brevity, tmp_path / "run", **SMALL, lora_rank=2, peak_lr=1e-2)
    assert run.trained < long.parameters / 10
    assert not same(weights(run.lm), weights(long))
    assert same(weights(run.lm), weights(adapters.adapted(long, tmp_path / "run")))
    assert "forward" not in run.lm.model.__dict__
    base = models.load("tiny", model=models.shipped("tiny-base"), device="cpu")
    with pytest.raises(ValueError, match="trained on another model than tiny-base"):
        adapters.adapted(base, tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds another run \(model was"):
        fit(base, questions, brevity, tmp_path / "run", **SMALL, lora_rank=2, peak_lr=1e-2)
    with pytest.raises(ValueError, match=r"holds another run \(update was 4, is 2\)"):
        fit(
            long, questions, brevity, tmp_path / "run", **SMALL, lora_rank=2, peak_lr=1e-2, update=2
        )
    with pytest.raises(ValueError, match=r"holds another run \(reward was brevity, is graded\)"):
        fit(
            long,
            questions,
            program_grading.graded,
            tmp_path / "run",
            **SMALL,
            lora_rank=2,
            peak_lr=1e-2,
        )


def test_a_bfloat16_model_stays_one(long, questions, tmp_path):
    half = models.load("tiny", model=models.shipped("tiny-long"), device="cpu", dtype="bfloat16")
    run = fit(
        half, questions, brevity, tmp_path / "run", **SMALL | {"steps": 1}, beta=0.1, peak_lr=1e-2
    )
    assert {tensor.dtype for tensor in weights(run.lm).values()} == {torch.bfloat16}
    assert not same(weights(run.lm), weights(half))
    assert not {"forward", "_original_forward"} & set(run.lm.model.__dict__)
    full = fit(
        long, questions, brevity, tmp_path / "full", **SMALL | {"steps": 1}, beta=0.1, peak_lr=1e-2
    )
    assert steps_of(run)[0]["entropy"] == pytest.approx(steps_of(full)[0]["entropy"], rel=0.3)


def test_questions_come_in_order_and_then_again_in_new_orders(questions):
    names = [q.id for q in questions[:5]]
    drawn = [q.id for q in grpo._in_turn(questions[:5], 18, seed=3)]
    assert drawn[:5] == names
    assert [sorted(drawn[k : k + 5]) for k in (5, 10)] == [sorted(names)] * 2
    assert len({tuple(drawn[k : k + 5]) for k in (0, 5, 10)}) == 3
    assert drawn == [q.id for q in grpo._in_turn(questions[:5], 18, seed=3)]
    assert drawn != [q.id for q in grpo._in_turn(questions[:5], 18, seed=4)]
    assert [q.id for q in grpo._in_turn(questions, 3, seed=0)] == names[:3]


# --- resume ---------------------------------------------------------------------------------------

RESUMED = {
    "steps": 4 * KILLS + 2,
    "prompts": 1,
    "group": 4,
    "update": 2,
    "most_tokens": 48,
    "save_every": 1,
    "accumulate": 2,
}
RESUMED_ON = programs.questions(5)
NURSERY = """
import os, sys, time, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_grpo as tests
from tml_lib.lm import models
torch.set_num_threads(1)
long = models.load("tiny", model=models.shipped("tiny-long"), device="cpu")
def show(log):
    print("step", log[-1]["step"], flush=True)
    time.sleep(0.05)  # slow enough to be killed before it is done
for _ in sys.stdin:  # a child for every line: what takes long, the imports, is done once
    child = os.fork()
    if not child:
        out = Path(sys.argv[2])
        tests.fit(long, tests.RESUMED_ON, tests.brevity, out, **tests.RESUMED, on_log=show)
        os._exit(0)
    print(child, flush=True)
    print("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bits(long, tmp_path):
    whole = fit(long, RESUMED_ON, brevity, tmp_path / "whole", **RESUMED)
    rng, seen = random.Random(0), []
    command = [sys.executable, "-c", NURSERY, os.path.dirname(__file__), str(tmp_path / "cut")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as nursery:
        for _ in range(KILLS):
            print("go", file=nursery.stdin, flush=True)
            child = int(nursery.stdout.readline())
            for _ in range(2):  # the checkpoint of the first is whole when the second is told
                assert nursery.stdout.readline().startswith("step")
            time.sleep(rng.random() * 0.15)  # then somewhere in its checkpoint or the next step
            os.kill(child, signal.SIGKILL)
            while (line := nursery.stdout.readline()).startswith("step"):
                pass
            assert line == "ended -9\n"
        nursery.stdin.close()
    settings = RESUMED | {"on_log": lambda log: seen.append(log[-1]["step"])}
    again = fit(long, RESUMED_ON, brevity, tmp_path / "cut", **settings)
    assert seen[0] > 1, "it began anew"
    assert same(weights(again.lm), weights(whole.lm))
    told = ("step", "loss", "reward", "entropy", "grad_norm", "completions/mean_length")
    assert [[e[key] for key in told] for e in steps_of(again)] == [
        [e[key] for key in told] for e in steps_of(whole)
    ]
    done = fit(long, RESUMED_ON, brevity, tmp_path / "cut", **RESUMED)
    assert same(weights(done.lm), weights(whole.lm)), "a finished run, called again, went on"


# --- bad input ------------------------------------------------------------------------------------


def failing(after, value=None):
    calls = []

    def reward(text, answer):
        calls.append(text)
        if len(calls) > after:
            return value if value is not None else {}[answer]
        return brevity(text, answer)

    return reward


@pytest.mark.parametrize("rank", [0, 2])
def test_a_reward_that_raises_is_named_and_loses_no_step(long, questions, tmp_path, rank):
    settings = SMALL | {"save_every": 0, "lora_rank": rank}
    whole = fit(long, questions, failing(math.inf), tmp_path / "whole", **settings)
    said = (
        rf"raised KeyError \('.*'\) at step 3, question '{questions[2].id}', text '.*; the same"
        r" call resumes after step 2"
    )
    with pytest.raises(grpo.RewardError, match=said) as caught:
        fit(long, questions, failing(9), tmp_path / "cut", **settings)
    assert isinstance(caught.value.__cause__, KeyError)
    assert [path.name for path in (tmp_path / "cut").glob("checkpoint-*")] == ["checkpoint-2"]
    seen = []
    mended = settings | {"on_log": lambda log: seen.append(log[-1]["step"])}
    again = fit(long, questions, failing(math.inf), tmp_path / "cut", **mended)
    assert seen[0] == 3
    assert same(weights(again.lm), weights(whole.lm))


def test_a_reward_that_is_no_number_is_named(long, questions, tmp_path):
    with pytest.raises(
        grpo.RewardError,
        match=r"the reward is nan at step 1, question 'programs/train/0/0', text '",
    ):
        fit(long, questions, failing(2, math.nan), tmp_path / "run", **SMALL)
    assert not list((tmp_path / "run").glob("checkpoint-*")), (
        "nothing was trained, so nothing is kept"
    )


def test_rewards_without_variance_warn_once_and_move_nothing(long, questions, tmp_path):
    """In float32 the mean of three times -7.3 is not -7.3: without care the difference over 1e-4
    would train the model.
    """
    settings = {"steps": 22, "prompts": 1, "group": 3, "most_tokens": 2}
    with pytest.warns(
        UserWarning, match=r"for 10 steps no group's rewards differed \(mean -7.3\), so nothing"
    ) as caught:
        run = fit(long, questions, lambda text, answer: -7.3, tmp_path / "run", **settings)
    assert len([w for w in caught if "rewards differed" in str(w.message)]) == 1
    assert same(weights(run.lm), weights(long)), "no variance, no step"
    assert {entry["frac_reward_zero_std"] for entry in steps_of(run)} == {1.0}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning)  # nine are not ten
        fit(
            long, questions, lambda text, answer: -7.3, tmp_path / "less", **settings | {"steps": 9}
        )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"update": 5}, "update=5 samples cannot be kept of a group of 4: give 1..4, or 0 for all"),
        (
            {"accumulate": 3},
            "accumulate=3 passes cannot share the samples evenly: give a divisor of 4",
        ),
        (
            {"update": 1, "accumulate": 2},
            "accumulate=2 passes cannot share the samples evenly: give a divisor of 1",
        ),
        (
            {"most_tokens": 250},
            (
                r"question 'programs/train/0/0' \(\d+ tokens\) with most_tokens=250 takes \d+"
                r" tokens, but LlamaForCausalLM's context holds 256: lower most_tokens"
            ),
        ),
    ],
)
def test_settings_that_cannot_be_trained_with_are_refused_before_anything_is_written(
    long, questions, tmp_path, settings, said
):
    with pytest.raises(ValueError, match=said):
        fit(long, questions, brevity, tmp_path / "run", **SMALL | settings)
    assert not (tmp_path / "run").exists()


def test_no_questions_and_a_number_of_processes_that_splits_groups_are_refused(
    long, questions, tmp_path, monkeypatch
):
    with pytest.raises(ValueError, match="0 questions: there is nothing to sample for"):
        fit(long, [], brevity, tmp_path / "run", **SMALL)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="prompts=1 for 3 processes: give a multiple"):
        fit(long, questions, brevity, tmp_path / "run", **SMALL)
    assert not (tmp_path / "run").exists()


def test_a_rate_that_destroys_the_model_is_named(long, questions, tmp_path):
    with pytest.raises(ValueError, match=r"the loss is nan at step \d: lower peak_lr=1e\+30"):
        fit(long, questions, brevity, tmp_path / "run", **SMALL, peak_lr=1e30)
