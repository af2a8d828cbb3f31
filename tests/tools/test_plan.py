"""Plans of claims: every claim has one, at both scales; what is unknown is refused; the table and
the command's output.
"""

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tml_lib.claims import rulebook
from tml_lib.tools import plan, plan_formulas, plan_shapes
from tml_lib.tools.plan_formulas import Stage


def test_every_claim_of_the_paper_has_a_plan_and_c13_costs_nothing():
    with (Path(rulebook.__file__).parent / "claims.toml").open("rb") as file:
        claims = [name for name in tomllib.load(file) if name.startswith("C")]
    numbers = {name.rstrip("abcdefghijklmnopqrstuvwxyz") for name in claims}
    assert numbers == {f"C{k}" for k in range(1, 14)}
    for number in numbers:
        for scale in plan.MACHINE:
            costs = plan.plan(number, scale=scale)
            assert bool(costs) == (number != "C13")
            assert all(
                min(c.tokens, c.flops, c.memory_gb, c.gpus, c.hours, c.gpu_hours) > 0 for c in costs
            )
            assert all(c.gpu_hours <= c.limit_gpu_hours * 1.001 for c in costs)
            assert all(c.gpu_hours == pytest.approx(c.gpus * c.hours) for c in costs)
    assert plan.matching("C4") == ["C4a", "C4b"]


def test_the_papers_settings_are_those_of_its_tables():
    sft, grpo = plan.stages("C4a")[0], plan.stages("C4b")[0]
    assert (sft.batch, sft.longest, sft.questions, sft.steps) == (256, 18432, 10_000, 1250)
    assert (grpo.each, grpo.batch, grpo.longest, grpo.questions, grpo.steps) == (
        16,
        1024,
        16384,
        39_000,
        39,
    )
    assert plan.stages("C8")[0].update == pytest.approx((1 + 2 + 4 + 8 + 16) / 5 / 16)


@pytest.mark.parametrize(
    ("gpu", "least"), [("A100-80GB", 2), ("A100-40GB", 3), ("L4", 6), ("T4", 8)]
)
def test_full_training_of_7b_takes_as_many_devices_as_its_states_need(gpu, least):
    (sft, *_) = plan.plan("C4a", gpu=gpu)
    assert sft.gpus >= least
    assert sft.memory_gb > 16 * 7.6


def test_devices_are_as_many_as_hold_a_stage():
    stage = Stage("sample", 1000, 1, 100.0, longest=200, prompt=100)
    model, served = plan_shapes.shape("Qwen2.5-7B"), plan.device("A100-80GB", eager=False)
    needed, gpus, *_ = plan._fitted(stage, model, replace(served, memory=2e9))
    assert needed <= gpus * plan_formulas.FILL * 2e9
    assert needed > 2 * model.parameters
    assert gpus >= 9


@pytest.mark.parametrize("claim", [f"C{k}" for k in range(1, 13)])
def test_the_reduced_plan_fits_one_t4_and_one_session(claim):
    costs = plan.plan(claim, scale="colab")
    assert {(c.gpu, c.gpus) for c in costs} == {("T4", 1)}
    assert sum(c.limit_gpu_hours for c in costs) < 12
    assert all(
        stage.lora_rank
        for name in plan.matching(claim)
        for stage in plan.stages(name, "colab")
        if stage.batch
    )


def test_a_plan_takes_another_model_and_device():
    (base, *_), (large, *_) = (
        plan.plan("C4a"),
        plan.plan("C4a", model="Qwen/Qwen2.5-32B", gpu="H100-80GB"),
    )
    assert (large.model, large.gpu) == ("Qwen2.5-32B", "H100-80GB")
    assert large.flops > 3 * base.flops
    assert large.gpus > base.gpus
    assert plan.plan("C10", model="Qwen2.5-7B")[1].model == "Qwen2.5-32B"  # the summaries' own


@pytest.mark.parametrize("claim", ["C4s", "C11g", "C14", "c4", "", "M1"])
def test_an_unknown_claim_is_refused_with_what_is_known(claim):
    with pytest.raises(
        ValueError,
        match=r"has no plan \(the kit's own run on a CPU\): choose one of C1, .*C13, or C4",
    ):
        plan.plan(claim)


def test_an_unknown_device_is_refused_with_what_is_known():
    with pytest.raises(
        ValueError, match=r"gpu='B300' is not known: choose one of A100-80GB, .*T4, or cpu"
    ):
        plan.device("B300")


def test_an_unknown_scale_is_refused():
    with pytest.raises(ValueError, match="scale='huge' is unknown: choose one of paper, colab"):
        plan.plan("C1", scale="huge")


def test_the_table_has_a_row_a_claim_and_their_sum():
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in plan.table().splitlines()
    ]
    assert [line[0] for line in lines] == ["claim", "---", *plan_shapes.tables()["claims"], "all"]
    assert {len(line) for line in lines} == {10}
    total = sum(c.gpu_hours for claim in plan_shapes.tables()["claims"] for c in plan.plan(claim))
    assert lines[-1][6] == f"{total:.0f}"


def options(**changed) -> SimpleNamespace:
    return SimpleNamespace(
        **({"claim": [], "model": "", "gpu": "", "scale": "paper", "json": False} | changed)
    )


def test_the_readmes_example_prints_json_alone(capsys):
    assert plan.run(options(claim=["C4"], model="Qwen/Qwen2.5-7B", gpu="A100-80GB", json=True)) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["claim"] for row in rows} == {"C4a", "C4b"}
    assert {(row["model"], row["gpu"]) for row in rows} == {("Qwen2.5-7B", "A100-80GB")}
    assert rows[0].keys() == plan.Cost.__dataclass_fields__.keys()


def test_the_text_names_claims_notes_sums_and_what_is_assumed(capsys):
    assert plan.run(options(claim=["C4", "C4a", "C13"])) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines() if line.startswith("C")] == [
        "C4a",
        "C4b",
        "C13",
    ]
    assert "published numbers: nothing to run" in out
    assert "GPU-hours; " in out
    assert "Mean lengths are assumed" in out
    assert plan.run(options(scale="colab")) == 0
    assert "1 × T4" in capsys.readouterr().out


def test_what_needs_several_devices_is_named_with_how_it_is_spread(capsys):
    costs = plan.plan("C4a") + plan.plan("C1")
    assert {(c.stage, c.spread) for c in costs if c.gpus > 1} == {
        ("sft", plan.SHARDED),
        ("sample", plan.PLACED),
        ("probe", plan.PLACED),
    }
    assert {c.spread for c in costs if c.gpus == 1} == {""}  # a model of 7B is sampled on one
    (sft, *_), (sample, *_) = plan.plan("C4a"), plan.plan("C1")
    assert plan.run(options(claim=["C4a", "C1"])) == 0
    out = capsys.readouterr().out
    assert f"  to train, by accelerate launch with FSDP: C4a ({sft.gpus})" in out
    assert f'  to sample and read, by models.load(..., device="auto"): C1 ({sample.gpus})' in out


def test_where_one_device_holds_everything_the_plan_says_so(capsys):
    assert plan.run(options(scale="colab")) == 0
    assert "Every stage fits on one device." in capsys.readouterr().out
    assert {c.spread for c in plan.plan("C4a", scale="colab")} == {""}
