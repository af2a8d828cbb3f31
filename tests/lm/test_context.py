"""How many tokens a model reads at once, whatever its configuration says about it."""

from types import SimpleNamespace

import pytest
from transformers import LlamaConfig, MambaConfig, XLNetConfig

from tml_lib.lm.context import check_context, context_of


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (LlamaConfig(max_position_embeddings=16), 16),
        (MambaConfig(), None),  # has no such field
        (XLNetConfig(), None),  # says -1
    ],
)
def test_only_a_model_with_a_limit_refuses_long_texts(config, limit):
    model = SimpleNamespace(config=config)
    assert context_of(model) == limit
    check_context(model, 16, "row 3 takes", "cut it")
    if limit is None:
        check_context(model, 10**6, "row 3 takes", "cut it")
        return
    with pytest.raises(ValueError, match=r"row 3 takes 17 tokens, but .* context holds 16: cut it"):
        check_context(model, 17, "row 3 takes", "cut it")
