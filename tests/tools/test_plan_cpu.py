"""This machine as a device of the planner: rates from pretended seconds, the benchmark's rows; no
test times anything.
"""

import pytest
import torch

from tml_lib import runtime
from tml_lib.tools import plan, plan_cpu
from tml_lib.tools.plan_formulas import Stage
from tml_lib.tools.plan_shapes import Shape

SMALL = Shape("small", layers=2, width=8, heads=2, kv_heads=1, head=4, ffn=16, vocabulary=10)
HERE = {
    "gflops": 100.0,
    "bandwidth_gbs": 10.0,
    "value_ns": 1.0,
    "launch_us": 200.0,
    "train_launch_us": 1000.0,
    "pass_launch_us": 300.0,
}


def test_the_measured_machine_has_the_calibrations_rates():
    found = plan_cpu.measured_device(HERE)
    assert (found.name, found.flops, found.bandwidth, found.number) == ("cpu", 1e11, 1e10, 4)
    assert (found.launch, found.train_launch, found.pass_launch) == pytest.approx(
        (2e-4, 1e-3, 3e-4)
    )
    assert found.memory == pytest.approx(runtime.resources()["memory_gb"] * 1e9, rel=0.01)


def test_calibration_turns_seconds_into_rates(monkeypatch):
    called = []
    monkeypatch.setattr(plan_cpu, "_processor_seconds", lambda call: called.append(call()) or 0.5)
    monkeypatch.setattr(
        plan_cpu, "_launches", lambda layers: (1e-3 + 2e-4 * layers, 3e-3 + 1e-3 * layers)
    )
    found = plan_cpu.calibrate()
    assert found["gflops"] == pytest.approx(2e-9 * 256 * 576 * 1536 / 0.5)
    assert found["bandwidth_gbs"] == pytest.approx(2**27 * 1e-9 / 0.5)
    assert (found["launch_us"], found["train_launch_us"], found["pass_launch_us"]) == pytest.approx(
        (200, 1000, 1000)
    )
    assert len(called) == 3


def test_one_thread_computes_and_there_are_as_many_as_before_afterwards():
    @plan_cpu.one_thread()
    def inside():
        assert torch.get_num_threads() == 1
        raise ArithmeticError

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ArithmeticError):
            inside()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_launches_are_of_a_step_that_works(monkeypatch):
    monkeypatch.setattr(plan_cpu, "_processor_seconds", lambda call: call() or 1.0)
    assert plan_cpu._launches(1) == (1.0, 1.0)


def test_a_cpu_plan_measures_the_machine_once(monkeypatch):
    asked = []
    plan_cpu.device.cache_clear()
    monkeypatch.setattr(plan_cpu, "calibrate", lambda: asked.append(1) or HERE)
    try:
        costs = plan.plan("C11", model="tiny-base", gpu="cpu", scale="colab") + plan.plan(
            "C6", model="tiny-base", gpu="cpu"
        )
        assert {c.gpu for c in costs} == {"cpu"}
        assert len(asked) == 1
    finally:
        plan_cpu.device.cache_clear()


def test_the_benchmark_gives_a_ratio_a_case(monkeypatch):
    stage, said = Stage("sft", 4, 1, 8.0, prompt=0, suffix=0, batch=4), []
    cases = [plan_cpu.Case("training", "small", stage, SMALL, lambda: sum(range(100_000)))]
    monkeypatch.setattr(plan_cpu, "calibrate", lambda: HERE)
    monkeypatch.setattr(plan_cpu, "_cases", lambda: cases)
    (row,) = plan_cpu.benchmark(rounds=2, say=said.append)
    assert set(row) == {"name", "value", "unit", "bar", "setting"}
    assert (row["name"], row["unit"], row["bar"]) == (
        "plan: predicted by measured time, training",
        "×",
        "0.5 to 2",
    )
    assert row["value"] >= 0
    assert len(said) == 2


def test_a_training_case_counts_padded_rows_and_steps():
    called = []
    batches = [[([1] * 5, 2), ([1] * 9, 2)], [([1] * 7, 2), ([1] * 7, 2)]]
    name, setting, stage, model, _ = plan_cpu._training(
        SMALL, batches, lambda: called.append(1), lora_rank=2
    )
    assert (name, setting, model, len(called)) == (
        "training",
        "small, LoRA of rank 2, 2 × 2 rows of 8 tokens",
        SMALL,
        1,
    )
    assert (stage.count, stage.steps, stage.whole, stage.rows) == (4, 2, 8, 2)
