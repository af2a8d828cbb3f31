"""What `probe` refuses says truly why, and ends."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, OpenAIGPTConfig, OpenAIGPTLMHeadModel

from tml_lib.lm.answers import Suffix
from tml_lib.measure.probe import prefix_nll, probe


def _values(model):
    return prefix_nll(model, [1, 2], [3, 4, 5, 6], [Suffix((7, 8), start=1, answer="")], [0, 4])


def test_a_model_without_a_cache_is_refused_and_not_read_for_ever():
    config = OpenAIGPTConfig(vocab_size=50, n_positions=64, n_embd=16, n_layer=1, n_head=2)
    with pytest.raises(ValueError, match="cannot be probed in packed passes"):
        _values(OpenAIGPTLMHeadModel(config))


def test_nan_weights_are_named():
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model = LlamaForCausalLM(config)
    torch.nn.init.constant_(model.lm_head.weight, float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        _values(model)


@pytest.mark.parametrize("answers", [5, [5], None])
def test_answers_that_are_no_text_are_named(answers):
    with pytest.raises(ValueError, match="is no text"):
        probe(None, "q", "t", answers)
