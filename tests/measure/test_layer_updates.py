"""Updates of layers: bit-exact restore, figures from the factors, adapters."""

import json

import peft
import pytest
import torch

from tml_lib.data import gsm
from tml_lib.lm import models
from tml_lib.lm.answers import Suffix, chat_prompt, encode
from tml_lib.measure import layer_updates
from tml_lib.measure.implicit import trajectory_update, update_from_ids

IDS = torch.randint(3, 199, (200,), generator=torch.Generator().manual_seed(5)).tolist()
PROMPT, TRAJECTORY = IDS[:9], IDS[9:40]
SUFFIX = Suffix(tuple(IDS[40:48]), 4, "four tokens")
GIVEN = (PROMPT, TRAJECTORY, SUFFIX)


@pytest.fixture(scope="module")
def wide():
    """Random models in float64, their norms included, built once per kind."""
    held = {}

    def build(kind):
        if kind not in held:
            held[kind] = models.random_model(kind).double()
            models.widen_norms(held[kind])
        return held[kind]

    return build


def logits(model, ids, count=4):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, -count:]


def without():
    return [*PROMPT, *SUFFIX.ids[:-1]]


def with_trajectory():
    return [*PROMPT, *TRAJECTORY, *SUFFIX.ids[:-1]]


# --- applying -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_leaving_restores_every_bit_also_after_an_exception(random_model, kind):
    model = random_model(kind)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    update = update_from_ids(model, *GIVEN, layers="all")
    name = f"{update.layers[0].module}.weight"

    def interrupted():
        with update.applied(model):
            assert not torch.equal(model.get_parameter(name), before[name])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_nested_update_adds_up_and_comes_off_again(wide):
    model, update = wide("llama"), update_from_ids(wide("llama"), *GIVEN)
    weight = model.get_submodule(update.layers[0].module).weight
    before = weight.detach().clone()
    with update.applied(model), update.scaled(-1.0).applied(model):
        torch.testing.assert_close(weight.detach(), before)
    assert torch.equal(weight, before)


def test_another_model_is_refused_and_left_alone(wide):
    update = update_from_ids(wide("llama"), *GIVEN, layers="all")
    other = models.random_model("llama", intermediate_size=96)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with (
        pytest.raises(ValueError, match=r"of shape \(64, 96\), the update of \(64, 128\)"),
        update.applied(other),
    ):
        pass
    with (
        pytest.raises(ValueError, match=r"GPT2LMHeadModel has no model\.layers\.0"),
        update.applied(models.random_model("gpt2")),
    ):
        pass
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


# --- factors --------------------------------------------------------------------------------------


def test_figures_from_the_factors_equal_those_of_the_dense_matrix(wide):
    first = update_from_ids(wide("llama"), *GIVEN).layers[0]
    dense = first.dense()
    assert first.norm == pytest.approx(float(dense.norm()))
    torch.testing.assert_close(first.singular_values(), torch.linalg.svdvals(dense)[:4])
    share = torch.linalg.svdvals(dense)[:4] / torch.linalg.svdvals(dense)[:4].sum()
    assert first.effective_rank == pytest.approx(float(torch.exp(-(share * share.log()).sum())))
    assert first.relative_norm == pytest.approx(
        float(dense.norm() / wide("llama").get_submodule(first.module).weight.detach().norm())
    )


def test_cosine_of_updates_equals_that_of_the_dense_matrices(wide):
    one, two = (
        update_from_ids(wide("llama"), PROMPT, TRAJECTORY[:n], SUFFIX, layers="all")
        for n in (10, 31)
    )
    flat = [torch.cat([item.dense().flatten() for item in update.layers]) for update in (one, two)]
    assert layer_updates.cosine(one, two) == pytest.approx(
        float(torch.cosine_similarity(*flat, dim=0))
    )
    assert one.norm == pytest.approx(float(flat[0].norm()))
    with pytest.raises(ValueError, match="different layers"):
        layer_updates.cosine(one, update_from_ids(wide("llama"), *GIVEN))


# --- adapters -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_the_adapter_loads_with_peft_and_gives_the_logits(kind, layers, tmp_path):
    model = models.random_model(kind)
    update = update_from_ids(model, *GIVEN, layers=layers)
    wanted = logits(model, with_trajectory())
    folder = update.save_adapter(tmp_path / "adapter", model)
    adapted = peft.PeftModel.from_pretrained(model, folder)
    # float32 factors on a float32 model
    assert (logits(adapted, without()) - wanted).abs().max() < 1e-3
    merged = adapted.merge_and_unload()
    assert (logits(merged, without()) - wanted).abs().max() < 1e-3


def test_the_adapter_of_a_real_model(lm, questions, tmp_path):
    question = questions[0]
    prompt, text = chat_prompt(lm.tokenizer, question.text), gsm.gold(question).text
    encoded = encode(lm.tokenizer, prompt, text, [question.answer])
    suffix = encoded.suffixes[0]
    count = len(suffix.ids) - suffix.start
    wanted = logits(lm.model, [*encoded.prompt, *encoded.trajectory, *suffix.ids[:-1]], count)
    folder = trajectory_update(lm, prompt, text, question.answer).save_adapter(
        tmp_path / "adapter", lm.model
    )
    adapted = peft.PeftModel.from_pretrained(lm.model, folder)
    try:
        found = logits(adapted, [*encoded.prompt, *suffix.ids[:-1]], count)
    finally:
        adapted.unload()
    assert (found - wanted).abs().max() < 1e-3


def test_an_adapter_is_written_whole_or_not_at_all(random_model, tmp_path, monkeypatch):
    update = update_from_ids(random_model("llama"), *GIVEN)
    monkeypatch.setattr(
        layer_updates,
        "save_file",
        lambda *_args, **_kwargs: (_ for _ in ()).throw(OSError("disk full")),
    )
    with pytest.raises(OSError, match="disk full"):
        update.save_adapter(tmp_path / "adapter", random_model("llama"))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    folder = update.save_adapter(tmp_path / "adapter", random_model("llama"))
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 4
    with pytest.raises(FileExistsError, match="exists: name a new one"):
        update.save_adapter(folder, random_model("llama"))


def test_an_update_of_no_layers_makes_no_adapter(random_model):
    with pytest.raises(ValueError, match="no layers makes no adapter"):
        layer_updates.Update(()).save_adapter("never-made", random_model("llama"))
