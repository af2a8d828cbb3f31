"""The benchmark measures what it says (never how fast this machine happens to be)."""

import importlib.util
import mmap
import runpy
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tml_lib import runtime
from tml_lib.data import gsm, programs, toy
from tml_lib.lessons import generated
from tml_lib.lm import models, sampling
from tml_lib.lm.answers import Suffix, chat_prompt
from tml_lib.lm.sampling import Sampled
from tml_lib.measure import landscape
from tml_lib.meta import maml_mlp
from tml_lib.tools.bench import (
    forked_states,
    loss_landscapes,
    medium,
    memory,
    meta_gradients,
    outer_loops,
    parameter_path,
    probes,
    rollouts,
    shared,
)


def test_linear_flops_equal_a_hand_count():
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
    assert shared.linear_flops(model, lambda: model(torch.zeros(7, 3))) == 2 * 7 * (3 * 5 + 5 * 2)


def test_peak_above_sees_what_was_freed_again():
    def allocate():
        # fresh pages: an allocator may hand out memory that the process holds already
        with mmap.mmap(-1, 60 * 2**20) as held:
            for _ in range(60):
                held.write(b"1" * 2**20)
            time.sleep(0.1)  # long enough for a watcher on a busy core

    assert 50 < memory.peak_above(allocate) < 120


def test_compare_gives_rows_with_positive_medians():
    ids = torch.randint(3, 190, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    said = []
    text = shared.Text(ids[:5], ids[5:35], Suffix(tuple(ids[35:]), 3, ""))
    rows = probes.compared("tiny", models.random_model(), text, bar=7, rounds=2, say=said.append)
    assert {row["unit"] for row in rows} == {"×", "%", "s"}
    assert all(set(row) == {"name", "value", "unit", "bar", "setting"} for row in rows)
    assert all(row["value"] >= 0 for row in rows)
    assert rows[0]["bar"] == "≥ 7"
    assert len(said) == 2


@pytest.mark.parametrize("length", [16])
def test_text_has_the_asked_length_and_a_two_token_answer(lm, length):
    prompt, trajectory, suffix = shared.gold_text(lm, length)
    assert len(trajectory) == length
    assert len(suffix.ids) - suffix.start == 2
    assert len(prompt) > 20


def test_places_stratify_the_trajectory_and_agree_between_rounds():
    rounds = [shared.places(turn, 3, 64) for turn in range(3)]
    for places in rounds:
        assert [p // 16 for p in places] == [0, 1, 2, 3]
    assert max(map(sum, rounds)) - min(map(sum, rounds)) <= 4


def test_the_path_is_compared_with_one_update_per_prefix(monkeypatch, lm):
    monkeypatch.setattr(parameter_path, "LENGTH", 4)
    monkeypatch.setattr(models, "load", lambda *_, **__: lm)
    said = []
    rows = parameter_path.path_rows(rounds=1, say=said.append)
    assert [row["unit"] for row in rows] == ["×", "×", "s"]
    assert all(row["value"] > 0 for row in rows)
    assert len(said) == 1


def test_forked_states_are_compared_with_the_naive_loop(monkeypatch):
    small = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4, "vocab_size": 99}
    monkeypatch.setattr(forked_states, "HYBRID", forked_states.HYBRID | small)
    monkeypatch.setattr(forked_states, "LENGTH", 24)
    said = []
    rows = forked_states.forked_rows(rounds=1, say=said.append)
    assert [row["unit"] for row in rows] == ["×", "s"]
    assert rows[0]["bar"] == "≥ 5"
    assert len(said) == 1


@pytest.fixture
def in_runs(monkeypatch):
    """Texts of more than 20 tokens are probed in runs of three prefixes."""
    monkeypatch.setattr(probes, "WHOLE", 20)
    monkeypatch.setattr(probes, "RUN", 3)


def test_a_long_text_is_probed_in_four_runs_that_stratify_it(in_runs):
    assert probes.positions(0, 3, 20) == list(range(21))
    for turn in range(3):
        some = probes.positions(turn, 3, 80)
        assert len(some) == 12
        assert [p // 20 for p in some[::3]] == [0, 1, 2, 3]
    assert probes.positions(0, 1, 21)[-1] <= 21


def test_runs_are_scaled_to_all_prefixes(in_runs, monkeypatch):
    ids = torch.randint(3, 190, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    given, asked = shared.Text(ids[:5], ids[5:45], Suffix(tuple(ids[45:50]), 3, "")), []

    def noted(model, prompt, trajectory, suffixes, positions):
        asked.append(len(positions))

    monkeypatch.setattr(shared, "prefix_nll", noted)
    # one second to read, and one for each prefix but the last
    monkeypatch.setattr(shared, "seconds_of", lambda call: (call(), float(asked[-1]))[1])
    rows = probes.compared(
        "tiny", models.random_model(), given, bar=7, rounds=1, say=lambda _: None
    )
    (seconds,) = [row["value"] for row in rows if row["name"] == "probe: time for all prefixes"]
    assert asked == [2, 12, 12, 1]
    assert seconds == pytest.approx(1 + 11 * 41 / 12, abs=0.01)


def test_the_memory_is_what_a_process_of_its_own_prints(monkeypatch, capsys, lm):
    monkeypatch.setattr(models, "load", lambda *_, **__: lm)
    monkeypatch.setattr(probes, "MEMORY_LENGTH", 24)
    monkeypatch.setattr(probes, "RUN", 3)

    def run(command, **_):
        assert command[:2] == [sys.executable, "-m"]
        monkeypatch.delitem(sys.modules, command[2])  # a new process has not loaded it
        runpy.run_module(command[2], run_name="__main__")
        return SimpleNamespace(stdout=capsys.readouterr().out)

    monkeypatch.setattr(probes.subprocess, "run", run)
    row = probes.memory_row()
    assert (row["unit"], row["bar"]) == ("MiB", "≤ 300")
    assert row["setting"] == "SmolLM2-135M, |t| = 24, its last 3 prefixes, one thread"
    assert 0 <= row["value"] < 300


def test_the_growth_is_the_exponent_of_the_length():
    rows = [
        {"name": name, "value": scale * length**power}
        for name, scale, power in (
            ("probe: time for all prefixes", 0.3, 1.2),
            (probes.NAIVE_TIME, 5, 2.1),
        )
        for length in (10, 100, 1000)
    ]
    packed, naive = probes.growth(rows, [10, 100, 1000])
    assert (packed["value"], naive["value"]) == (1.2, 2.1)
    assert naive["name"].endswith("of the naive loop")
    assert probes.growth(rows[:1], [10]) == []


def test_medium_is_skipped_with_a_reason_where_it_is_not_fetched(monkeypatch, tmp_path):
    monkeypatch.setenv("TML_CACHE", str(tmp_path))
    said = []
    assert medium.medium_rows(rounds=1, say=said.append) == []
    assert len(said) == 1
    assert "make medium" in said[0]


@pytest.mark.parametrize(("units", "bar"), [("amx_bf16", "≥ 3"), ("avx512_bf16", "")])
def test_medium_is_compared_with_the_naive_loop_and_with_float32(monkeypatch, units, bar):
    lm = models.load("tiny", model=models.shipped("tiny-long"), device="cpu", dtype="bfloat16")
    monkeypatch.setattr(medium, "LENGTH", 12)
    monkeypatch.setattr(medium, "ROWS", 8)
    monkeypatch.setattr(medium, "TOKENS", 8)
    asked = programs.questions(1, 0, "held_out")
    monkeypatch.setattr(gsm, "gsm_symbolic", lambda *_: asked)
    monkeypatch.setattr(models, "fetched_folder", lambda *_: None)
    monkeypatch.setattr(models, "load", lambda *_, **__: lm)
    ids = torch.randint(3, 40, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    text = shared.Text(ids[:5], ids[5:17], Suffix(tuple(ids[17:22]), 3, ""))
    monkeypatch.setattr(medium, "gold_text", lambda *_: text)
    monkeypatch.setattr(runtime, "hardware_dtype", lambda _: ("bfloat16", units))
    said = []
    rows = medium.medium_rows(rounds=1, say=said.append)
    assert [row["unit"] for row in rows] == ["×", "s", "×", "×", "1/s", "%"]
    assert [row["bar"] for row in rows] == ["≥ 25", "", bar, "≥ 1.5", "", ""]
    assert all(row["value"] > 0 for row in rows if row["unit"] != "s")
    assert len(said) == 2


def test_recording_one_benchmark_keeps_the_others(monkeypatch):
    held = {"bench": [{"name": "probe: speed"}, {"name": "path: speed"}]}
    kept = {}
    monkeypatch.setattr(generated, "measured", lambda: held)
    monkeypatch.setattr(generated, "record", lambda **parts: kept.update(parts))
    generated.record_bench(
        [{"name": "path: speed", "value": 2}, {"name": "path: time", "value": 3}]
    )
    assert kept["bench"] == [
        {"name": "probe: speed"},
        {"name": "path: speed", "value": 2},
        {"name": "path: time", "value": 3},
    ]


@pytest.mark.parametrize("steps", [1, 5])
def test_higher_computes_the_meta_gradient_that_it_is_timed_for(steps):
    theta = maml_mlp.new_mlp([1, 40, 40, 1], 0)
    batch = toy.sinusoids(3, 10, torch.Generator().manual_seed(0))
    _, wanted = maml_mlp.meta_gradient(theta, batch, inner_lr=0.01, steps=steps)
    found = meta_gradients.higher_gradient(
        maml_mlp.as_module(theta), batch, inner_lr=0.01, steps=steps
    )
    named = dict(enumerate(found))
    for ours, theirs in zip(wanted, maml_mlp.from_parameters(named), strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-6)


def test_maml_rows_are_ratios_and_a_training_run(monkeypatch):
    monkeypatch.setattr(meta_gradients, "META_STEPS", 5)
    rows = meta_gradients.maml_rows(rounds=1, say=lambda _: None)
    assert [row["unit"] for row in rows] == ["×", "×", "1/s"] * 2 + [
        "s",
        "squared error",
        "squared error",
    ]
    assert all(row["name"].startswith("maml: ") and row["value"] > 0 for row in rows)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LookupError, match="pip install higher"):
        meta_gradients.maml_rows()


def test_sampling_rates_are_tokens_by_seconds(monkeypatch, lm):
    pair = [Sampled((1, 2, 3), 0), Sampled((1,) * 5, None)]
    monkeypatch.setattr(models, "load", lambda *_, **__: lm)
    monkeypatch.setattr(
        sampling, "sample", lambda lm, prompts, seeds, **_: pair * (len(prompts) // 2)
    )
    monkeypatch.setattr(
        rollouts, "generated_lengths", lambda lm, prompts, *_, **__: [2] * len(prompts)
    )
    monkeypatch.setattr(rollouts, "seconds_of", lambda call: (call(), 2.0)[1])
    said = []
    ratio, rate, tiny, small = rollouts.rollouts_rows(rounds=1, say=said.append)
    assert rate["value"] == 128 * 3 / 2
    assert ratio["value"] == 128 * 3 / (16 * 2)
    assert tiny["value"] == small["value"] == 16 * 8 / (32 * 2), "what is cut was written too"
    assert said[0] == "rollouts, round 1/1: 12.0 times generate row by row"
    assert said[1:] == [
        f"rollouts, {name}, 32 rows: 2.00 times generate" for name in ("tiny-long", "SmolLM2-135M")
    ]


def test_generate_is_asked_for_what_the_sampler_is_asked_for():
    """At a temperature near 0 both write the greedy tokens, whatever they draw."""
    lm = models.load("tiny", model=models.shipped("tiny-long"), device="cpu")
    prompts = [chat_prompt(lm.tokenizer, q.text) for q in programs.questions(6, 0, "held_out")]
    settings = {"temperature": 1e-4, "max_new_tokens": 45}
    wanted = [len(one.ids) for one in sampling.sample(lm, prompts, range(6), **settings)]
    assert rollouts.generated_lengths(lm, prompts, 3, temperature=1e-4, most=45) == wanted
    assert min(wanted) < 45


def test_the_landscape_is_compared_with_adding_in_place(monkeypatch, tiny_lm):
    real, asked = models.load, gsm.gsm_symbolic(2, 0)
    monkeypatch.setattr(
        models,
        "load",
        lambda name, **settings: tiny_lm if name == "small" else real(name, **settings),
    )
    monkeypatch.setattr(gsm, "gsm_symbolic", lambda n, seed: asked)
    monkeypatch.setattr(landscape, "axis", lambda points: np.array([-0.5, 0.0]))
    before = [p.detach().clone() for p in tiny_lm.model.parameters()]
    rows = loss_landscapes.landscape_rows(rounds=1, say=lambda _: None)
    assert [row["unit"] for row in rows] == ["×", "×", "%", "%", "%", "%"]
    ours, theirs = rows[2::2], rows[3::2]
    assert [row["value"] for row in ours] == [0, 0]
    assert all(row["value"] > 0 for row in (*rows[:2], *theirs)), (
        "adding and subtracting in place drifts"
    )
    for p, held in zip(tiny_lm.model.parameters(), before, strict=True):
        assert (p - held).abs().max() < 1e-5
        p.data.copy_(held)  # the model is shared


def test_a_grpo_step_is_split_and_trls_sampler_takes_its_turn():
    said = []
    rows = outer_loops.grpo_rows(rounds=1, steps=3, say=said.append)
    named = {row["name"].removeprefix("grpo: "): row["value"] for row in rows}
    assert named["a whole step"] == pytest.approx(
        named["sampling"] + named["scoring"] + named["update"], abs=0.02
    )
    assert all(value >= 0 for value in named.values())
    assert {row["unit"] for row in rows} == {"s", "×"}
    assert len(said) == 1
