"""Answers that share a pass have the losses that each has alone, whatever the architecture."""

import warnings

import numpy as np
import pytest
import torch
import zoo

from tml_lib.lm.answers import Suffix, encode
from tml_lib.lm.exactness import SlowerWay
from tml_lib.measure import answer_rows
from tml_lib.measure.naive import naive_nll

IDS = torch.randint(3, 199, (400,), generator=torch.Generator().manual_seed(5)).tolist()
LENGTHS = (9, 30, 9, 17, 3, 30)
ROWS = [
    (IDS[10 * k : 10 * k + n], Suffix(tuple(IDS[200 + 9 * k : 204 + 9 * k + k % 2]), 2, ""))
    for k, n in enumerate(LENGTHS)
]
ROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 32.0}
ROPE |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}

# model type -> (fields of its configuration, what the warning says, '' for none)
KINDS = {
    "llama": ({}, ""),
    "gpt2": ({}, ""),
    "mistral": ({"sliding_window": 8}, ""),
    "phi3": ({"rope_parameters": ROPE, "original_max_position_embeddings": 20}, ""),
    "lfm2": ({}, None),
    "rwkv": ({}, "in groups of one length"),
    "mamba": ({}, None),
    "bart": ({}, "in groups of one length"),
    "roberta": ({}, "in groups of one length"),
    "openai-gpt": ({}, None),
}


def read(model, rows=ROWS, size=16):
    found = np.full(len(rows), np.nan)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for batch in answer_rows.batched(model, rows, size):
            assert len(batch.places) <= size
            found[batch.places] = answer_rows.answer_nll(model, batch)
    return found, [str(w.message) for w in told if issubclass(w.category, SlowerWay)]


@pytest.mark.parametrize("size", [16, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_every_row_has_the_loss_that_it_has_alone(kind, size):
    fields, words = KINDS[kind]
    model = zoo.model(kind, **fields)
    found, told = read(model, size=size)
    wanted = [naive_nll(model, context, (), suffix, 0) for context, suffix in ROWS]
    assert np.abs(found - wanted).max() <= 1e-5
    assert np.std(wanted) > 0.01
    if words is not None:
        assert (words in told[0]) if words else not told
    assert not read(model, size=size)[1], "said once"


def test_a_model_in_float64_is_read_in_float64():
    model = zoo.model("llama").double()
    wanted = [naive_nll(model, context, (), suffix, 0) for context, suffix in ROWS]
    assert np.abs(read(model)[0] - wanted).max() <= 1e-12


def test_a_large_vocabulary_costs_no_precision(lm):
    """A softmax over an axis that is not the last adds up in order, and was off by 2e-4 nats."""
    encoded = encode(lm.tokenizer, lm.prompt("Ann has 3 apples, and buys 4."), "3 + 4 = ", ["7"])
    context, suffix = [*encoded.prompt, *encoded.trajectory], encoded.suffixes[0]
    wanted = naive_nll(lm.model, context, (), suffix, 0)
    assert read(lm.model, [(context, suffix)])[0] == pytest.approx(wanted, abs=2e-5)


def test_a_fault_that_only_long_rows_have_is_noticed(monkeypatch):
    model, short = zoo.model("llama"), [ROWS[0], ROWS[4]]
    whole = answer_rows.answer_nll

    def faulty(model, batch):
        long = batch.mask is not None and batch.ids.shape[1] > 20
        return whole(model, batch) + 1e-3 * long

    monkeypatch.setattr(answer_rows, "answer_nll", faulty)
    assert not read(model, short)[1]
    found, told = read(model)
    assert "in groups of one length" in told[0]
    assert np.abs(found - [naive_nll(model, c, (), s, 0) for c, s in ROWS]).max() <= 1e-5


def test_a_model_that_sees_ahead_has_no_loss_to_read():
    with pytest.raises(ValueError, match="is not causal"):
        read(zoo.model("bert", is_decoder=False))
