"""How near is equal: what rounding changes is measured on the model and the processor at hand."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tml_lib.lm import exactness


def few_rows_round_otherwise(model, most: int, by: float):
    """A model whose passes of at most `most` tokens give logits that differ a little."""
    plain = model.forward

    def forward(input_ids, **how):
        out = plain(input_ids=input_ids, **how)
        if input_ids.shape[1] <= most:
            out.logits[..., 0] += by
        return out

    model.forward = forward
    return model


@pytest.fixture
def llama():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=64, num_hidden_layers=1, num_key_value_heads=2, **sizes)
    return LlamaForCausalLM(config).double().eval()


@pytest.mark.parametrize("most", [1, 3, 6])
def test_rounding_is_seen_where_only_short_passes_are_rounded_otherwise(llama, most):
    """Some processors round a pass of one token otherwise, and give 6 and 9 tokens equal bits."""
    with torch.no_grad():
        whole = llama(torch.tensor([exactness.check_ids(llama, 9)])).logits
    by = 200 * torch.finfo(torch.float32).eps * float(whole.abs().max())
    model, one = few_rows_round_otherwise(llama, most, by), exactness.setting(llama)
    one = exactness.Setting(torch.float32, one.attention, one.adapter)
    # the logit moves its own log-probability by `by`, less its share of the sum of all
    assert exactness.rounding(model, one) == pytest.approx(max(8 * by, 1e-5), rel=0.1)


def test_a_larger_change_is_no_rounding(llama):
    assert (
        exactness.rounding(few_rows_round_otherwise(llama, 1, 0.01), exactness.setting(llama))
        == 1e-5
    )
