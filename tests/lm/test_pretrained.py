"""Reading models: what is damaged, incomplete or of another kind is refused by name."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig

from tml_lib.lm import models, pretrained


def load(folder, **settings):
    return models.load(model=str(folder), device="cpu", **{"dtype": "float32"} | settings)


def test_a_missing_folder_is_refused_by_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/nowhere does not exist"):
        load(tmp_path / "nowhere")


def test_a_folder_without_config_is_refused_by_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path} has no config\.json"):
        load(tmp_path)


def test_a_config_that_is_no_json_is_refused_by_path(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=f"{folder}/config.json is damaged"):
        load(folder)


@pytest.mark.parametrize("kept", [0, 7, 100, 20_000])
def test_truncated_weights_are_refused_by_path(folder, kept):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"{weights} is damaged .*: copy or save the folder again"):
        load(folder)


def test_absent_weights_are_refused_by_path(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=f"{folder} has no weights in safetensors"):
        load(folder)


def test_weights_that_would_be_unpickled_are_refused(folder):
    """A pickle runs code while it is read."""
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="nothing is unpickled here"):
        load(folder)


def test_a_hub_model_larger_than_the_memory_is_refused_before_it_is_fetched(monkeypatch):
    large = LlamaConfig(
        hidden_size=2**16,
        intermediate_size=2**18,
        num_hidden_layers=64,
        num_attention_heads=512,
        architectures=["LlamaForCausalLM"],
    )
    monkeypatch.setattr(pretrained.AutoConfig, "from_pretrained", lambda *_, **__: large)
    monkeypatch.setattr(pretrained.AutoModelForCausalLM, "from_pretrained", None)
    with pytest.raises(ValueError, match=r"'some/large' holds \d+ param.* GB.*, device='auto', wh"):
        models.load("gpu", model="some/large", device="cpu")


def test_a_missing_tensor_is_refused_by_name(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"lacks 1 weights \(first: model\.layers\.1\.mlp\.up_proj\.weight\)"
    ):
        load(folder)


def test_a_tensor_of_another_shape_is_refused_by_path(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"model '{folder}' cannot be loaded"):
        load(folder)


def test_a_folder_without_tokenizer_is_refused_by_path(folder):
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(ValueError, match=f"model '{folder}' cannot be loaded"):
        load(folder)


@pytest.mark.parametrize("architectures", [["BertForMaskedLM"], None])
def test_a_masked_language_model_is_refused(tmp_path, tokenizer, architectures):
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    config = transformers.BertConfig(vocab_size=len(tokenizer), **sizes)
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(written | {"architectures": architectures}))
    with pytest.raises(ValueError, match=r"is '?[Bb]ert\w*'?, not a causal LM"):
        load(tmp_path)


@pytest.mark.parametrize("shown", [False, True])
def test_loading_bars_are_afterwards_as_they_were(shown):
    bars = transformers.utils.logging
    before = bars.is_progress_bar_enabled()
    try:
        (bars.enable_progress_bar if shown else bars.disable_progress_bar)()
        with pretrained.quiet():
            with pretrained.quiet():
                pass
            assert not bars.is_progress_bar_enabled()
        assert bars.is_progress_bar_enabled() == shown
    finally:
        (bars.enable_progress_bar if before else bars.disable_progress_bar)()
