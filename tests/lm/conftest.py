"""What several tests of models read."""

import pytest

from tml_lib.lm import models


@pytest.fixture
def folder(tmp_path, tokenizer):
    """A folder that holds a tiny random Llama with SmolLM2's tokenizer, as `save_pretrained` writes
    it.
    """
    models.random_model("llama", vocab_size=len(tokenizer), seed=5).save_pretrained(
        tmp_path / "tiny"
    )
    tokenizer.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"
