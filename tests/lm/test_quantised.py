"""Weights of 4 bits: what is asked of bitsandbytes, what is refused by name, and, where it is
installed, what comes out.
"""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tml_lib.lm import models, pretrained, quantised
from tml_lib.lm.answers import encode
from tml_lib.lm.models import LanguageModel
from tml_lib.measure import probe

PROMPT, TRAJECTORY = "What is 6 times 7?\n", "Six times seven is forty-two.\nSo it is 42."


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """A tiny random Llama with SmolLM2's tokenizer, as `save_pretrained` writes it."""
    place = tmp_path_factory.mktemp("models") / "tiny"
    models.random_model("llama", vocab_size=len(tokenizer), seed=5).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def full(folder) -> LanguageModel:
    return models.load(model=str(folder), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def four(folder) -> LanguageModel:
    """The same model in 4 bits, where bitsandbytes is installed."""
    pytest.importorskip("bitsandbytes")
    return quantised.load_4bit(str(folder), device="cpu")


@pytest.fixture(scope="module")
def rounded(folder, four) -> LanguageModel:
    """The full model with every quantised weight replaced by the number that its 4 bits
    stand for.
    """
    from bitsandbytes.functional import dequantize_4bit

    # a forward pass may pack weights anew for this processor
    fresh = quantised.load_4bit(str(folder), device="cpu").model
    dense = models.load(model=str(folder), device="cpu", dtype="float32")
    for name, layer in linear_4bit(fresh).items():
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).float()
        dense.model.get_submodule(name).weight.data = weight
    return dense


def linear_4bit(model):
    return {
        name: layer for name, layer in model.named_modules() if type(layer).__name__ == "Linear4bit"
    }


def logits(lm):
    with torch.inference_mode():
        return lm.model(input_ids=torch.arange(100, 140)[None]).logits.float()


# --- without the package --------------------------------------------------------------------------


def test_weights_are_nf4_and_computed_in_bfloat16():
    asked = quantised.settings()
    assert asked.load_in_4bit
    assert not asked.load_in_8bit
    assert asked.bnb_4bit_quant_type == "nf4"
    assert asked.bnb_4bit_compute_dtype == torch.bfloat16


def test_a_missing_package_is_named_with_the_command(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        ModuleNotFoundError,
        match=r"need the package bitsandbytes .*run `pip install 'bitsandbytes>=0\.48'`",
    ):
        quantised.load_4bit(str(folder), device="cpu")


@pytest.mark.parametrize(
    "package", [{"supported_torch_devices": {"cuda", "xpu"}, "__version__": "0.45.0"}, {}]
)
def test_a_package_that_cannot_compute_on_the_device_is_refused(monkeypatch, folder, package):
    monkeypatch.setitem(sys.modules, "bitsandbytes", SimpleNamespace(**package))
    version = package.get("__version__", "of unknown version")
    with pytest.raises(
        ValueError,
        match=rf"bitsandbytes {version} computes on cuda.*, not on cpu: run `pip.*models\.load",
    ):
        quantised.load_4bit(str(folder), device="cpu")


@pytest.mark.parametrize("place", ["nowhere", "."])
def test_a_folder_that_is_none_is_refused_by_path(monkeypatch, tmp_path, place):
    monkeypatch.setitem(
        sys.modules, "bitsandbytes", SimpleNamespace(supported_torch_devices={"cpu"})
    )
    with pytest.raises(
        FileNotFoundError,
        match=rf"model folder {tmp_path}.* (does not exist|has no config\.json): give",
    ):
        quantised.load_4bit(str(tmp_path / place), device="cpu")


def test_a_masked_language_model_is_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(
        sys.modules, "bitsandbytes", SimpleNamespace(supported_torch_devices={"cpu"})
    )
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"]})
    )
    with pytest.raises(ValueError, match=r"BertForMaskedLM.*not a causal LM"):
        quantised.load_4bit(str(tmp_path), device="cpu")


def test_settings_go_to_the_loader(monkeypatch, folder, full):
    given = {}

    def from_pretrained(source, **settings):
        given.update(settings, source=source)
        return full.model, {"missing_keys": set()}

    monkeypatch.setitem(
        sys.modules, "bitsandbytes", SimpleNamespace(supported_torch_devices={"cpu"})
    )
    monkeypatch.setattr(pretrained.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    lm = quantised.load_4bit(str(folder), device="cpu")
    assert lm.name == "tiny (4 bit)"
    assert (given["source"], given["device_map"], given["local_files_only"]) == (
        str(folder),
        "cpu",
        True,
    )
    assert given["quantization_config"].to_dict() == quantised.settings().to_dict()
    assert given["dtype"] == torch.bfloat16
    assert "trust_remote_code" not in given


def test_what_the_loader_says_is_passed_on_with_the_next_step(monkeypatch, folder, full):
    monkeypatch.setitem(
        sys.modules, "bitsandbytes", SimpleNamespace(supported_torch_devices={"cpu"})
    )
    monkeypatch.setattr(pretrained.AutoModelForCausalLM, "from_pretrained", lambda *_, **__: 1 / 0)
    with pytest.raises(
        ValueError, match=rf"{folder}' cannot be loaded \(ZeroDivisionError.*save the folder again"
    ):
        quantised.load_4bit(str(folder), device="cpu")
    lacking = lambda *_, **__: (full.model, {"missing_keys": {"model.norm.weight"}})  # noqa: E731
    monkeypatch.setattr(pretrained.AutoModelForCausalLM, "from_pretrained", lacking)
    with pytest.raises(ValueError, match=r"lacks 1 weights \(first: model\.norm\.weight\)"):
        quantised.load_4bit(str(folder), device="cpu")


# --- with the package -----------------------------------------------------------------------------


def test_linear_layers_hold_4_bits_and_the_rest_bfloat16(four, full):
    layers = linear_4bit(four.model)
    assert len(layers) == 2 * 7  # of each decoder layer q, k, v, o, gate, up and down
    for name, layer in layers.items():
        assert layer.weight.dtype == torch.uint8
        assert layer.weight.numel() * 2 == full.model.get_submodule(name).weight.numel()
    rest = {name: p.dtype for name, p in four.model.named_parameters() if p.dtype != torch.uint8}
    assert set(rest.values()) == {torch.bfloat16}
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= set(rest)
    assert (four.device.type, four.name, four.model.training) == ("cpu", "tiny (4 bit)", False)


def test_weights_are_rounded_and_no_more(four, full, rounded):
    for name in linear_4bit(four.model):
        before, after = (lm.model.get_submodule(name).weight.detach() for lm in (full, rounded))
        # Gaussian weights in NF4: 0.09
        assert 0.05 < float((after - before).norm() / before.norm()) < 0.12


def test_logits_are_those_of_the_rounded_weights(four, full, rounded):
    found, wanted, exact = logits(four), logits(rounded), logits(full)
    spread = float(exact.std())
    assert float((found - wanted).abs().mean()) < 0.05 * spread  # bfloat16
    assert float((found - exact).abs().mean()) < 0.6 * spread
    assert np.corrcoef(found.flatten(), exact.flatten())[0, 1] > 0.8


def test_a_model_in_4_bits_is_probed_like_any_other(four, rounded):
    curve = probe.probe(four, PROMPT, TRAJECTORY, "42", stride=3)
    wanted = probe.probe(rounded, PROMPT, TRAJECTORY, "42", stride=3)
    assert np.abs(curve.answer_nll - wanted.answer_nll).max() < 0.25
    encoded = encode(four.tokenizer, PROMPT, TRAJECTORY, ["42"])
    for i in (0, curve.length):
        one = probe.naive_nll(
            four.model, encoded.prompt, encoded.trajectory, encoded.suffixes[0], i
        )
        assert curve.at(i) == pytest.approx(one, abs=0.1)


def test_truncated_weights_are_refused_by_path(folder, tmp_path):
    pytest.importorskip("bitsandbytes")
    for file in folder.iterdir():
        data = file.read_bytes()
        (tmp_path / file.name).write_bytes(data[:1000] if file.suffix == ".safetensors" else data)
    with pytest.raises(ValueError, match="safetensors is damaged"):
        quantised.load_4bit(str(tmp_path), device="cpu")
