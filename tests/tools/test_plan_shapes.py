"""The planner's shapes of models against hand counts, real models and published counts of
parameters.
"""

from dataclasses import replace

import pytest

from tml_lib.lm import models
from tml_lib.tools import plan_shapes
from tml_lib.tools.plan_shapes import Shape

SMALL = Shape("small", layers=2, width=8, heads=2, kv_heads=1, head=4, ffn=16, vocabulary=10)


@pytest.mark.parametrize("name", plan_shapes.tables()["models"])
def test_a_shape_gives_the_published_count_of_parameters(name):
    found = plan_shapes.shape(name)
    assert found.parameters == found.published > 0
    assert plan_shapes.shape(f"Qwen/{name}-Instruct") == found


def test_a_shape_of_another_count_than_published_is_refused():
    with pytest.raises(
        ValueError, match=r"small has 1352 parameters, published are 1000: fix plan\.toml"
    ):
        replace(SMALL, published=1000)


def test_parameters_of_a_small_shape_counted_by_hand():
    attention = 8 * 8 + 2 * (8 * 4) + 8 * 8  # queries, keys and values, output
    assert SMALL.matrices == 2 * (attention + 3 * 8 * 16)
    assert SMALL.parameters == SMALL.matrices + 2 * 2 * 8 + 8 + 2 * 10 * 8
    assert replace(SMALL, tied=True).parameters == SMALL.parameters - 10 * 8
    assert replace(SMALL, bias=True).parameters == SMALL.parameters + 2 * (8 + 2 * 4)


@pytest.mark.parametrize("kind", plan_shapes.FAMILIES)
def test_parameters_equal_those_of_a_real_model(kind, random_model, tmp_path):
    model = random_model(kind)
    model.config.save_pretrained(tmp_path)
    assert plan_shapes.shape(str(tmp_path)).parameters == sum(p.numel() for p in model.parameters())


def test_parameters_of_the_kits_own_models(lm, start):
    assert plan_shapes.shape("SmolLM2-135M").parameters == lm.parameters
    assert (
        plan_shapes.shape("tiny-base").parameters
        == plan_shapes.shape(models.shipped("tiny-long")).parameters
        == start.parameters
    )


def test_an_unknown_model_is_refused_with_what_is_known(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"'GPT-5' is not known: choose one of SmolLM2-135M, .*tiny-base, or give a folder",
    ):
        plan_shapes.shape("GPT-5")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="is of a 'gpt2' model; the formulas are for llama"):
        plan_shapes.shape(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 2}')
    with pytest.raises(ValueError, match="lacks 'hidden_size'"):
        plan_shapes.shape(str(tmp_path))
