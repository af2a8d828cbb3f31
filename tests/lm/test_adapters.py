"""LoRA adapts every linear layer of the blocks, whatever the architecture calls it."""

import json

import pytest
import torch

from tml_lib.data import tiny
from tml_lib.lm import adapters, models
from tml_lib.lm.models import LanguageModel
from tml_lib.train import sft

LAYERS = {  # of a block
    "llama": {f"self_attn.{p}_proj" for p in "qkvo"}
    | {f"mlp.{p}_proj" for p in ("gate", "up", "down")},
    "phi3": {"self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"},
    "gpt2": {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"},
    "opt": {f"self_attn.{p}_proj" for p in ("q", "k", "v", "out")} | {"fc1", "fc2"},
    # transformers keeps the experts in one tensor, which is no layer
    "mixtral": {f"self_attn.{p}_proj" for p in "qkvo"},
}
MORE = {"opt": {"ffn_dim": 128, "word_embed_proj_dim": 32}, "mixtral": {"num_local_experts": 2}}


def named(kind):
    size = len(tiny.tokenizer())
    model = models.random_model(kind, vocab_size=size, **MORE.get(kind, {}))
    return LanguageModel(model, tiny.tokenizer(), kind)


@pytest.mark.parametrize("kind", LAYERS)
def test_every_linear_layer_of_the_blocks_is_adapted_and_loaded_again(kind, tmp_path):
    lm, rows = named(kind), tiny.base_rows(0, 10, batch=4)(0)
    settings = sft.SFTSettings(steps=1, batch=4, peak_lr=1e-2, lora_rank=2)
    run = sft.sft(lm, rows, tmp_path / "run", settings)
    of_blocks = {name.split(".0.", 1)[1] for name in run.adapted if ".0." in name}
    assert of_blocks == LAYERS[kind]
    assert len(run.adapted) == 2 * len(LAYERS[kind])
    assert set(run.adapted) == set(adapters.block_linears(lm.model))
    before, after = lm.model.state_dict(), run.lm.model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"{name}.weight" for name in run.adapted}
    again = adapters.adapted(lm, tmp_path / "run").model.state_dict()
    assert all(torch.equal(after[name], again[name]) for name in after)


def test_a_run_of_all_weights_names_no_module(start, tmp_path):
    settings = sft.SFTSettings(steps=1, batch=4, peak_lr=1e-3)
    rows = tiny.base_rows(0, 10, batch=4)(0)
    assert sft.sft(start, rows, tmp_path / "run", settings).adapted == ()


def test_a_copy_of_a_float64_model_computes_as_it_does_with_a_configuration_of_its_own():
    """Its norms are replaced (`widen_norms`), which its configuration does not tell."""
    model = tiny.new_model(0).double()
    models.widen_norms(model)
    lm, ids = LanguageModel(model, tiny.tokenizer(), "wide"), torch.tensor([[5, 6, 7]])
    copied = adapters.copy_to_train(lm, lora_rank=0, seed=0)
    assert torch.equal(copied(ids).logits, model(ids).logits)
    assert copied.config is not model.config
    assert copied.generation_config is not model.generation_config
    shared = {p.data_ptr() for p in model.parameters()} & {
        p.data_ptr() for p in copied.parameters()
    }
    assert not shared


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "run.json"])
def test_a_damaged_adapter_is_named(start, tmp_path, name):
    settings = sft.SFTSettings(steps=1, batch=4, peak_lr=1e-3, lora_rank=2)
    sft.sft(start, tiny.base_rows(0, 10, batch=4)(0), tmp_path / "run", settings)
    held = (tmp_path / "run" / name).read_bytes()
    for damaged in (held[: len(held) // 2], b"[]", b"\xff\x00", b"[" * 100_000):
        (tmp_path / "run" / name).write_bytes(damaged)
        with pytest.raises(ValueError, match=f"{name}.*copy the folder again"):
            adapters.adapted(start, tmp_path / "run")
    run = tmp_path / "run" / "run.json"
    assert name == "run.json" or json.loads(run.read_text())["lora_rank"] == 2
