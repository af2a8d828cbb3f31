"""The benchmark of a GPU, at toy size on the processor: its rows, its formulas, its refusals."""

import pytest
import torch

from tml_lib.data import tiny
from tml_lib.tools.bench import gpu
from tml_lib.tools.plan_shapes import Shape

TOY = Shape("toy", 2, 32, heads=4, kv_heads=2, head=8, ffn=64, vocabulary=512, tied=True, bias=True)
LOAD = gpu.Load(
    shapes=(TOY,),
    dtype=torch.float32,
    lengths=(16, 24),
    side=64,
    rows=3,
    written=5,
    batch=2,
    row=220,
    lora_rank=2,
    steps=3,
)


@pytest.fixture(scope="module")
def made():
    said = []
    return gpu.rows(rounds=2, say=said.append, device="cpu", given=LOAD), said


def test_every_figure_is_there_once_a_length_and_model(made):
    rows, said = made
    parts = [row["name"].removeprefix("gpu: ").split(",")[0] for row in rows]
    assert parts == ["rate of matrix products", *["probe"] * 10, *["sampling"] * 2, *["LoRA"] * 2]
    assert len({(row["name"], row["setting"]) for row in rows}) == len(rows)
    assert all(row["value"] > 0 for row in rows)
    assert all(set(row) == {"name", "value", "unit", "bar", "setting"} for row in rows)
    assert said == [*[f"toy: probe at |t| = {n}" for n in (16, 24)], "toy: sampling", "toy: LoRA"]


def test_a_setting_names_device_model_size_and_dtype(made):
    settings = {row["setting"] for row in made[0]}
    assert all(s.startswith("processor, ") and s.endswith(", float32") for s in settings)
    assert any("toy, random weights, |t| = 24, every prefix" in s for s in settings)
    assert any("3 rows of up to 5 tokens" in s for s in settings)
    assert any("2 rows of 220 tokens, rank 2" in s for s in settings)


def test_rates_and_seconds_say_the_same(made):
    """Tokens read: the prompt and the trajectory once, and a suffix's twelve a prefix."""
    rows = {row["name"]: row["value"] for row in made[0] if "|t| = 16" in row["setting"]}
    tokens = gpu.PROMPT + 16 + 17 * (gpu.SUFFIX - 1)
    taken = rows["gpu: probe, time for all prefixes"]
    assert rows["gpu: probe, tokens read a second"] * taken == pytest.approx(tokens, rel=2e-3)


@pytest.mark.parametrize("one", [*gpu.load().shapes, TOY], ids=lambda one: one.name)
def test_a_random_model_has_as_many_parameters_as_its_shape(one):
    lm = gpu.random_decoder(one, torch.device("meta"), gpu.load())
    assert lm.parameters == one.parameters
    assert lm.model.config.tie_word_embeddings == one.tied
    assert lm.model.dtype == torch.bfloat16
    assert len(tiny.tokenizer()) <= one.vocabulary


def test_the_models_are_those_that_were_asked_for():
    given = gpu.load()
    assert [one.name for one in given.shapes] == ["Qwen2.5-1.5B", "Qwen2.5-7B"]
    assert (given.lengths, given.rows) == ((1024, 8192), 64)


def test_a_model_that_does_not_fit_is_left_out_and_named(monkeypatch):
    monkeypatch.setattr(gpu, "_memory", lambda on: 4 * TOY.parameters)
    said = []
    rows = gpu.rows(rounds=1, say=said.append, device="cpu", given=LOAD)
    assert len(rows) == 1
    assert said[0].startswith("toy is left out: it takes ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_error_says_what_to_do():
    with pytest.raises(ValueError, match=r"torch finds no GPU here.* run `python -m tml_lib bench"):
        gpu.rows()
