"""The planner's formulas against hand counts, counted operations, real models and published
figures; no test times anything.
"""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tml_lib.lm import adapters, models
from tml_lib.lm.answers import Suffix
from tml_lib.lm.models import LanguageModel
from tml_lib.measure.probe import prefix_nll
from tml_lib.tools import plan, plan_cpu, plan_formulas, plan_shapes
from tml_lib.tools.plan_formulas import Stage
from tml_lib.tools.plan_shapes import Device, Shape

SIZE = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "head_dim": 16,
}
SMALL = Shape("small", layers=2, width=8, heads=2, kv_heads=1, head=4, ffn=16, vocabulary=10)
UNIT = Device(
    "unit", flops=1.0, memory=1e9, bandwidth=1.0, launch=0.0, train_launch=0.0, pass_launch=0.0
)


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """A random Llama whose attention is written out, so that its operations can be counted, and its
    shape.
    """
    model, folder = models.random_model("llama", **SIZE), tmp_path_factory.mktemp("llama")
    model.set_attn_implementation("eager")
    model.config.save_pretrained(folder)
    return model, plan_shapes.shape(str(folder))


def operations(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def planned(stage: Stage, model: Shape, on: Device = UNIT) -> float:
    return sum(phase.flops for phase in plan_formulas.phases(stage, model, on))


# --- operations -----------------------------------------------------------------------------------


def test_a_forward_pass_counted_by_hand():
    # scores, mixture, logits
    by_hand = 2 * 5 * SMALL.matrices + 2 * (2 * 5 * 8 * 3 + 2 * 5 * 8 * 3) + 2 * 4 * 8 * 10
    assert plan_formulas.forward_flops(SMALL, tokens=5, context=3, scored=4) == by_hand


@pytest.mark.parametrize("kind", plan_shapes.FAMILIES)
def test_a_forward_pass_equals_counted_operations(kind, tmp_path):
    model = models.random_model(kind, **SIZE)
    model.set_attn_implementation("eager")
    model.config.save_pretrained(tmp_path)
    ids = torch.randint(3, 190, (4, 50))
    wanted = operations(lambda: model(ids))
    assert (
        plan_formulas.forward_flops(plan_shapes.shape(str(tmp_path)), 200, 50, 200) == wanted
    )  # written out, attention is not halved


def test_training_equals_counted_operations(counted):
    model, shape = counted
    ids = torch.randint(3, 190, (4, 50), generator=torch.Generator().manual_seed(0))
    stage = Stage("sft", 4, 1, 50, prompt=0, suffix=0, rows=4, batch=4)
    wanted = operations(lambda: model(input_ids=ids, labels=ids).loss.backward())
    assert wanted == 3 * plan_formulas.forward_flops(shape, 200, 50, 200)
    # the planner halves attention, which is causal
    assert planned(stage, shape) == pytest.approx(wanted, rel=0.1)
    again = planned(replace(stage, recompute=True), shape)
    assert again == pytest.approx(planned(stage, shape) * 4 / 3)


def test_lora_trains_two_thirds_and_its_adapter(counted):
    model, shape = counted
    ids = torch.randint(3, 190, (4, 50), generator=torch.Generator().manual_seed(0))
    adapted = adapters.copy_to_train(LanguageModel(model, None, "counted"), 4, 0)
    assert shape.adapter(4) == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    stage = Stage("sft", 4, 1, 50, prompt=0, suffix=0, rows=4, batch=4, lora_rank=4)
    wanted = operations(lambda: adapted(input_ids=ids, labels=ids).loss.backward())
    assert planned(stage, shape) == pytest.approx(wanted, rel=0.15)
    assert planned(stage, shape) < planned(replace(stage, lora_rank=0), shape)


def test_a_packed_probe_equals_counted_operations(counted):
    model, shape = counted
    ids = torch.randint(3, 190, (120,), generator=torch.Generator().manual_seed(0)).tolist()
    settings = model, ids[:20], ids[20:84], [Suffix(tuple(ids[90:103]), 10, "")], range(65)
    prefix_nll(*settings)  # the check of a model's first use
    stage = Stage("probe", 1, 1, 64, prompt=20, suffix=13, answer=3)
    assert planned(stage, shape, replace(UNIT, name="cpu")) == pytest.approx(
        operations(lambda: prefix_nll(*settings)), rel=0.1
    )


def test_a_probe_reads_the_trajectory_once_and_a_suffix_per_prefix():
    (phase,) = plan_formulas.phases(
        Stage("probe", 3, 2, 64, prompt=20, suffix=13, answer=3), SMALL, UNIT
    )
    assert phase.tokens == 6 * (20 + 64 + 65 * 12)
    (some,) = plan_formulas.phases(
        Stage("probe", 3, 2, 64, prompt=20, suffix=13, answer=3, positions=5), SMALL, UNIT
    )
    assert some.tokens == 6 * (20 + 64 + 5 * 12)


def test_sampling_equals_counted_operations(start):
    start.model.set_attn_implementation("eager")
    try:
        # equal ones would be read once
        prompts = [f"<user>a={number} ?a<assistant>" for number in range(1, 5)]
        *_, stage, shape, call = plan_cpu._sampling(
            start, plan_shapes.shape("tiny-base"), prompts, 20
        )
        assert planned(stage, shape) == pytest.approx(operations(call), rel=0.1)
    finally:
        start.model.set_attn_implementation("sdpa")


def test_dpo_and_grpo_are_sums_of_what_they_do():
    settings = {"questions": 4, "each": 8, "length": 30.0, "prompt": 10, "batch": 2}
    first, dpo, grpo = (planned(Stage(kind, **settings), SMALL) for kind in ("sft", "dpo", "grpo"))
    assert dpo == pytest.approx(first * 2 * (1 + 1 / 3))  # two texts, read by the start, trained on
    sampled = planned(Stage("sample", **settings), SMALL)
    row = plan_formulas.forward_flops(SMALL, 40, 20, 40)
    assert grpo == pytest.approx(sampled + 32 * row + 32 * 3 * row)
    half = planned(Stage("grpo", **settings, update=0.5), SMALL)
    assert half == pytest.approx(sampled + 32 * row + 16 * 3 * row)


def test_a_landscape_reads_every_question_at_every_point():
    stage = Stage("landscape", 4, points=9, prompt=20, suffix=5, answer=2, rows=2)
    (phase,) = plan_formulas.phases(stage, SMALL, UNIT)
    assert (phase.tokens, phase.passes) == (9 * 4 * 25, 9 * 2)
    assert phase.streamed == (4 * 9 + 18) * 2 * SMALL.parameters


def test_an_unknown_kind_of_stage_is_refused():
    with pytest.raises(ValueError, match="stage 'guess' is unknown: choose probe, sample"):
        plan_formulas.phases(Stage("guess", 1), SMALL, UNIT)


# --- seconds --------------------------------------------------------------------------------------


def test_decoding_takes_the_longer_of_arithmetic_and_reading():
    stage = Stage("sample", 4, 1, 10.0, longest=10, prompt=0)
    served = replace(UNIT, eager=False, bandwidth=1e9)
    flops = plan_formulas.forward_flops(SMALL, 40, 5, 40) + plan_formulas.forward_flops(
        SMALL, 0, 0, 4
    )
    assert plan_formulas.predicted_seconds(stage, SMALL, served) == pytest.approx(flops)
    reading = replace(served, flops=1e12, bandwidth=1.0)
    # a step each; half of the text in the mean
    weights, cached = 10 * 2 * SMALL.parameters, 40 * 5 * 2 * 2 * 4 * 2
    prompts = 2 * SMALL.parameters
    assert plan_formulas.predicted_seconds(stage, SMALL, reading) == pytest.approx(
        weights + cached + prompts
    )


def test_seconds_fall_with_devices_and_rise_with_length_and_launches():
    stage = Stage("sft", 8, 1, 50.0, prompt=10, suffix=0, batch=8)
    once = plan_formulas.predicted_seconds(stage, SMALL, UNIT)
    assert plan_formulas.predicted_seconds(stage, SMALL, UNIT, gpus=2) == pytest.approx(once / 2)
    assert plan_formulas.predicted_seconds(replace(stage, length=60.0), SMALL, UNIT) > once
    slow = replace(UNIT, train_launch=3.0)
    # passes, layers
    assert plan_formulas.predicted_seconds(stage, SMALL, slow) == pytest.approx(once + 8 * 2 * 3.0)
    assert plan_formulas.predicted_seconds(stage, SMALL, slow, gpus=2) == pytest.approx(
        once / 2 + 4 * 2 * 3.0
    )
    assert plan_formulas.predicted_seconds(stage, SMALL, replace(UNIT, value=1.0)) > once


def test_the_kits_own_loop_goes_on_to_the_longest_row():
    stage = Stage("sample", 4, 1, 10.0, longest=40, prompt=5)
    slow = replace(UNIT, launch=1e9)
    ratio = plan_formulas.predicted_seconds(stage, SMALL, slow) / plan_formulas.predicted_seconds(
        stage, SMALL, replace(slow, eager=False)
    )
    assert ratio == pytest.approx(41 / 11, rel=0.01)  # one pass reads the prompts


def test_published_gpu_hours_of_another_paper_are_met_within_a_factor_of_two():
    """s1 (arXiv 2501.19393): SFT of Qwen2.5-32B on 59 k traces of 3.6 k tokens in the mean, 5
    epochs, batch 16: 394 H100-hours.

    Read in https://ai-papers.xuzou.cn/papers/s1_test_time_scaling_2025; the epochs are those of its
    smaller run.
    """
    stage = Stage("sft", 59_000, 5, 3600, longest=20_000, batch=16, recompute=True)
    seconds = plan_formulas.predicted_seconds(
        stage, plan_shapes.shape("Qwen2.5-32B"), plan.device("H100-80GB", eager=False)
    )
    assert 0.5 < seconds / 3600 / 394 < 2


# --- memory ---------------------------------------------------------------------------------------


def test_memory_of_training_summed_by_hand():
    stage = Stage("sft", 8, 1, 20.0, longest=30, prompt=10, suffix=2, rows=2)
    tokens, block = 2 * 42, 4 * 8 + 2 * 8 + 2 * 4 + 4 * 16
    states, logits = 16 * SMALL.parameters, tokens * 10 * (2 + 4 + 4)
    assert plan_formulas.training_bytes(SMALL, stage) == states + tokens * 2 * block * 2 + logits
    recomputed = plan_formulas.training_bytes(SMALL, replace(stage, recompute=True))
    assert recomputed == states + tokens * (2 * 8 + block) * 2 + logits
    lora = plan_formulas.training_bytes(SMALL, replace(stage, lora_rank=1))
    assert lora == 2 * SMALL.parameters + 16 * SMALL.adapter(1) + tokens * 2 * block * 2 + logits


def test_kept_activations_are_what_a_real_model_keeps(counted):
    model, shape = models.random_model("llama", **SIZE), counted[1]
    weights, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(tensor):
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    ids = torch.randint(3, 190, (4, 50), generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(input_ids=ids, labels=ids).loss
    assert loss.isfinite()
    found = sum(
        tensor.untyped_storage().nbytes() for where, tensor in kept.items() if where not in weights
    )
    stage = Stage("sft", 4, 1, 50, prompt=0, suffix=0, rows=4)
    assert plan_formulas.training_bytes(
        shape, stage, number=4
    ) - 16 * shape.parameters == pytest.approx(found, rel=0.25)


def test_a_cache_holds_keys_and_values_of_every_layer():
    assert plan_formulas.cache_bytes(SMALL, 7) == 7 * 2 * 2 * 4 * 2
    qwen = plan_shapes.shape("Qwen2.5-7B")
    assert plan_formulas.cache_bytes(qwen, 1) == 56 * 1024


def test_rows_are_as_many_as_find_room():
    stage = Stage("sample", 1000, 1, 100.0, longest=200, prompt=100)
    model, served = plan_shapes.shape("Qwen2.5-7B"), plan.device("A100-80GB", eager=False)
    needed, rows = plan_formulas.memory_bytes(stage, model, served)
    assert rows == plan_formulas.BATCH
    assert needed == 2 * model.parameters + plan_formulas.BATCH * 200 * 56 * 1024
    tight = replace(
        served, memory=(2 * model.parameters + 100.5 * 200 * 56 * 1024) / plan_formulas.FILL
    )
    assert plan_formulas.memory_bytes(stage, model, tight)[1] == 100
