"""Model folders that cannot be loaded, by kind: each is refused at once, with the file or the
numbers that say why.
"""

import json
import math
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tml_lib import files
from tml_lib.data import programs, tiny
from tml_lib.lm import folders, models
from tml_lib.lm.models import LanguageModel
from tml_lib.measure.probe import probe

QUESTION = programs.questions(1)[0]
TEXTS = {"prompt": f"{QUESTION.text}\n\n", "trajectory": QUESTION.trajectories[0].text}
TEXTS |= {"answers": QUESTION.answer}


@pytest.fixture
def folder(tmp_path):
    """A tiny Llama of two layers with the tiny reasoner's tokenizer."""
    models.random_model("llama", vocab_size=len(tiny.tokenizer()), seed=5).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    return tmp_path


def load(folder):
    return models.load("tiny", model=str(folder), device="cpu")


def configure(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change(folder, alter):
    weights = load_file(folder / "model.safetensors")
    alter(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


# --- files ----------------------------------------------------------------------------------------

FILES = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
FILES += ["special_tokens_map.json", "chat_template.jinja", "vocab.txt", "model.safetensors"]


def pipe(path):
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def device(path):
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def circle(path):
    path.unlink(missing_ok=True)
    path.symlink_to(path)


def nothing(path):
    with open(path, "wb") as file:
        file.truncate(20 << 30)


def directory(path):
    path.unlink(missing_ok=True)
    path.mkdir()


@pytest.mark.parametrize("kind", [pipe, device, circle, directory, nothing])
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_another_kind_is_named(folder, name, kind):
    kind(folder / name)
    with pytest.raises(
        files.Unreadable, match=f"{folder / name} .*: copy or save the folder again"
    ):
        load(folder)


@pytest.mark.parametrize("held", [b"", b"{", b"\xff\x00\x80", b"[" * 10_000, b"[]", b"3"], ids=repr)
@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("json")])
def test_a_damaged_file_is_named(folder, name, held):
    (folder / name).write_bytes(held)
    with pytest.raises(files.Unreadable, match=f"{folder / name} is damaged .*: copy or save"):
        load(folder)


def test_a_template_that_is_no_text_is_named(folder):
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe{")
    with pytest.raises(files.Unreadable, match=r"chat_template\.jinja is damaged \(no UTF-8"):
        load(folder)


# --- config.json against the weights --------------------------------------------------------------


@pytest.mark.parametrize("layers", [10**6, 10**15, 22, -1, 0])
def test_layers_that_the_weights_do_not_have_are_refused_with_the_numbers(folder, layers):
    configure(folder, num_hidden_layers=layers)
    with pytest.raises(folders.Mismatch, match=f"says num_hidden_layers={layers}"):
        load(folder)


@pytest.mark.parametrize(
    ("model_type", "name"), [("gpt2", "n_layer"), ("mistral", "num_hidden_layers")]
)
def test_layers_are_found_by_any_name(tmp_path, model_type, name):
    model = models.random_model(model_type, vocab_size=len(tiny.tokenizer()))
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    assert load(tmp_path)
    configure(tmp_path, **{name: 10**6})
    with pytest.raises(folders.Mismatch, match=r"=1000000, and the weights beside it hold \d+ ten"):
        load(tmp_path)


def test_weights_of_layers_that_are_left_out_are_refused(folder):
    configure(folder, num_hidden_layers=1)
    with pytest.raises(
        ValueError, match=r"9 weights of layers .* \(first: model\.layers\.1\.input"
    ):
        load(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"hidden_size": 10**9},
            r"embed_tokens\.weight is \(\d+, 64\) in the weights and \(\d+, 10",
        ),
        (
            {"vocab_size": 10**12},
            r"\d+, 64\) in the weights and \(1000000000000, 64\) by config\.js",
        ),
        (
            {"intermediate_size": 10**12},
            r"gate_proj\.weight is \(128, 64\) in the weights and \(10",
        ),
        ({"head_dim": 10**9}, r"q_proj\.weight is \(64, 64\) in the weights and \(4000000000, 64"),
    ],
)
def test_sizes_that_the_weights_do_not_have_are_refused_with_the_numbers(folder, change, said):
    configure(folder, **change)
    with pytest.raises(ValueError, match=said):
        load(folder)


def test_experts_that_the_weights_do_not_have_are_refused(tmp_path):
    """Their tensors are joined while they are read, so that no name can be given."""
    few = {"num_local_experts": 4, "num_experts_per_tok": 2}
    models.random_model("mixtral", vocab_size=len(tiny.tokenizer()), **few).save_pretrained(
        tmp_path
    )
    tiny.tokenizer().save_pretrained(tmp_path)
    configure(tmp_path, num_local_experts=10**6)
    with pytest.raises(ValueError, match="its weights have other shapes than config"):
        load(tmp_path)


@pytest.mark.parametrize("value", ["2", None, 2.5, [2], {}])
@pytest.mark.parametrize("name", ["num_hidden_layers", "hidden_size", "vocab_size"])
def test_sizes_of_another_type_are_refused_by_name(folder, name, value):
    configure(folder, **{name: value})
    with pytest.raises(ValueError, match=f"model '{folder}' cannot be loaded .*{name}"):
        load(folder)


def test_weights_larger_than_the_memory_are_refused_with_the_numbers(folder):
    most = 10**15
    with pytest.raises(folders.Mismatch, match=r"4000000\.0 GB at 4 bytes each, and this machine"):
        folders.check_memory(folder, most, 4)
    assert folders.check_memory(folder, 10**6, 4) is None
    config = load(folder).model.config
    assert folders.check_sizes(folder, config) == sum(
        tensor.numel() for tensor in load_file(folder / "model.safetensors").values()
    )


@pytest.mark.parametrize("words", [1, 300])
def test_the_tokenizer_of_a_larger_model_is_refused(folder, words):
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens([f"word{k}" for k in range(words)])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"has \d+ words and its model \d+, so they do not belong"):
        load(folder)


# --- weights --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "kind"), [(math.nan, "NaN"), (math.inf, "infinite numbers"), (-math.inf, "infinite")]
)
def test_weights_that_are_no_numbers_are_said_to_be_so(folder, value, kind):
    change(folder, lambda weights: weights["model.norm.weight"][-1:].fill_(value))
    with pytest.raises(ValueError, match=rf"hold {kind}.* \(first in model\.norm\.weight\)"):
        load(folder)


def test_the_probe_says_what_is_wrong_with_a_model_in_memory():
    lm = LanguageModel(models.random_model(vocab_size=600), tiny.tokenizer(), "made")
    with torch.no_grad():
        lm.model.lm_head.weight[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"its weights hold NaN \(first in lm_head\.weight\)"):
        probe(lm, **TEXTS)
    with torch.no_grad():
        lm.model.lm_head.weight.fill_(3e38)
    with pytest.raises(ValueError, match=r"it overflows in torch\.float32: load it in float32"):
        probe(lm, **TEXTS)


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [3, 1.5, None, True, b"tiny", ["tiny"]], ids=repr)
@pytest.mark.parametrize("name", ["model", "preset_name", "dtype", "device"])
def test_an_argument_of_another_type_is_refused_by_name(name, value):
    if value is None and name in ("dtype", "device"):
        return  # the default
    with pytest.raises((TypeError, ValueError)) as caught:
        models.load(**{name: value})
    assert name.removesuffix("_name") in str(caught.value)
    assert str(value) in str(caught.value)


@pytest.mark.parametrize("value", [None, 3, b"x", ["x"]], ids=repr)
@pytest.mark.parametrize("name", ["prompt", "trajectory", "template"])
def test_a_text_of_another_type_is_refused_by_name(reasoner, name, value):
    with pytest.raises(TypeError, match=rf"{name} is .*, of type {type(value).__name__}: give it"):
        probe(reasoner, **TEXTS | {name: value})


@pytest.mark.parametrize("answers", [5, 1.5, None, b"5", [5], [None], {5}, ("5", 5)], ids=repr)
def test_answers_of_another_type_are_refused(reasoner, answers):
    with pytest.raises(TypeError, match=r"answers=.* is no text: give one answer as a string"):
        probe(reasoner, **TEXTS | {"answers": answers})


@pytest.mark.parametrize("value", ["x", 1.5, None, True, [1]], ids=repr)
def test_a_stride_of_another_type_is_refused(reasoner, value):
    with pytest.raises(TypeError, match=r"stride is .*: give a whole number"):
        probe(reasoner, **TEXTS, stride=value)


@pytest.mark.parametrize("value", ["ab", 3, [1.5], [[0, 1]], ["0"], [None], [math.nan]], ids=repr)
def test_positions_of_another_type_are_refused(reasoner, value):
    with pytest.raises(TypeError, match=r"positions=.*: give a list of whole numbers"):
        probe(reasoner, **TEXTS, positions=value)
    assert len(probe(reasoner, **TEXTS, positions=np.array([0, 1])).positions) == 2
