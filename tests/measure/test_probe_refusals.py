"""What `probe` refuses says truly why, and ends."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, OpenAIGPTConfig, OpenAIGPTLMHeadModel

from tml_lib.lm.answers import Suffix
from tml_lib.measure.probe import SlowerWay, prefix_nll, probe

TINY = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def _values(model, **settings):
    suffix = Suffix((7, 8), start=1, answer="")
    return prefix_nll(model, [1, 2], [3, 4, 5, 6], [suffix], [0, 4], **settings)


def test_a_model_without_a_cache_is_read_without_one_or_refused_and_not_read_for_ever():
    config = OpenAIGPTConfig(vocab_size=50, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    model = OpenAIGPTLMHeadModel(config)
    with pytest.raises(ValueError, match="cannot be probed with way='packed'"):
        _values(model, way="packed")
    with pytest.raises(ValueError, match="neither a cache nor a recurrent state"):
        _values(model, way="forked")
    with pytest.warns(SlowerWay, match="one full pass per prefix"):
        chosen = _values(model)
    assert chosen.tolist() == _values(model, way="naive").tolist()


def test_nan_weights_are_named():
    model = LlamaForCausalLM(LlamaConfig(**TINY))
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        _values(model)


@pytest.mark.parametrize("answers", [5, [5], ["5", 5], {"5"}, None])
def test_answers_that_are_no_text_are_named(answers):
    with pytest.raises(TypeError, match="is no text"):
        probe(None, "q", "t", answers)


def test_suffixes_that_are_missing_are_named():
    model = LlamaForCausalLM(LlamaConfig(**TINY))
    with pytest.raises(ValueError, match=r"suffixes=\[\] leaves nothing to score"):
        prefix_nll(model, [1, 2], [3, 4], [], [0, 2])


def test_an_unknown_way_is_named():
    with pytest.raises(
        ValueError, match="way='fast' is unknown: take one of packed, forked, naive"
    ):
        _values(LlamaForCausalLM(LlamaConfig(**TINY)), way="fast")
