"""Models whose weights accelerate keeps elsewhere: the same numbers, and the very same weights
afterwards.
"""

import numpy as np
import pytest
import torch
from accelerate import cpu_offload, disk_offload

from tml_lib.data import gsm
from tml_lib.lm import models, placed, sampling
from tml_lib.lm.models import LanguageModel
from tml_lib.measure import landscape
from tml_lib.measure.implicit import gradient_update, logit_error, update_from_ids
from tml_lib.measure.probe import probe


@pytest.fixture(scope="module", params=["memory", "disk"])
def pair(request, tokenizer, tmp_path_factory):
    """A tiny model, and the same one with all weights offloaded."""
    whole, other = (
        models.random_model("llama", vocab_size=len(tokenizer), seed=1).eval() for _ in "ab"
    )
    if request.param == "memory":
        offloaded = cpu_offload(other, execution_device=torch.device("cpu"))
    else:
        offloaded = disk_offload(other, tmp_path_factory.mktemp("offloaded"), torch.device("cpu"))
    assert all(p.is_meta for p in offloaded.parameters())
    return LanguageModel(whole, tokenizer, "whole"), LanguageModel(offloaded, tokenizer, "away")


@pytest.fixture
def case(questions):
    question = questions[0]
    return question, gsm.gold(question).text


def test_weights_are_found_where_they_lie(pair):
    whole, away = pair
    assert away.device.type == placed.device_of(away.model).type == "cpu"
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(placed.weight(away.model, name), parameter), name


def test_a_model_whose_weights_nobody_brings_is_refused(tokenizer):
    with torch.device("meta"):
        model = models.random_model("llama", vocab_size=len(tokenizer), seed=1)
    with pytest.raises(ValueError, match="are on the device 'meta'"):
        placed.weight(model, "lm_head.weight")


def test_the_probe_reads_the_same(pair, case):
    question, text = case
    curves = [probe(lm, lm.prompt(question.text), text, question.answer, stride=16) for lm in pair]
    assert curves[0].answer_nll == pytest.approx(curves[1].answer_nll, abs=1e-5)


def test_sampling_writes_the_same(pair, case):
    question, _ = case
    prompts = [question.text, "Count: 1, 2,"]
    first, second = (sampling.sample(lm, prompts, [3, 4], max_new_tokens=12) for lm in pair)
    assert first == second


def test_updates_are_the_same_and_weights_come_back(pair, case):
    from tml_lib.lm.answers import encode

    question, text = case
    found = []
    for lm in pair:
        before = {name: placed.weight(lm.model, name).clone() for name in _names(lm)}
        held = encode(lm.tokenizer, lm.prompt(question.text), text, [question.answer])
        ids = held.prompt, held.trajectory, held.suffixes[0]
        update = update_from_ids(lm.model, *ids, layers="all")
        gradient = gradient_update(lm.model, held.prompt, held.suffixes[0], layers="all")
        found.append((update.norm, gradient.norm, logit_error(lm.model, update, *ids)))
        for name, tensor in before.items():
            assert torch.equal(placed.weight(lm.model, name), tensor), name
    assert found[0][:2] == pytest.approx(found[1][:2], rel=1e-5)
    assert found[1][2] < 1e-3, "the update is exact where it is put into offloaded weights"


def test_landscapes_are_the_same_and_weights_come_back(pair, case):
    question, text = case
    values = []
    for lm in pair:
        before = {name: placed.weight(lm.model, name).clone() for name in _names(lm)}
        plane = landscape.random_plane(lm.model, 0)
        axis = landscape.axis(3)
        surface = landscape.landscape(lm, [question], plane, axis, axis, trajectories=[text])
        values.append(np.asarray(surface.nll))
        for name, tensor in before.items():
            assert torch.equal(placed.weight(lm.model, name), tensor), name
    assert values[0] == pytest.approx(values[1], abs=1e-4)
    assert np.ptp(values[1]) > 0.01, "the weights were moved"


def _names(lm):
    return [name for name, _ in lm.model.named_parameters()]


def test_a_model_is_spread_over_what_there_is(tmp_path, tokenizer, case):
    question, text = case
    models.random_model("llama", vocab_size=len(tokenizer), seed=1).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    curves = []
    for device in ("cpu", "auto"):
        lm = models.load("small", model=str(tmp_path), device=device)
        prompt = lm.prompt(question.text)
        curves.append(probe(lm, prompt, text, question.answer, stride=32).answer_nll)
    assert curves[0] == pytest.approx(curves[1], abs=1e-5)
