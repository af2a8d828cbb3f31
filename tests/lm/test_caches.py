"""A cache that grows in place holds what transformers' own holds."""

import pytest
import torch
from transformers import DynamicCache, LlamaConfig, MistralConfig

from tml_lib.lm.caches import RoomyLayer, roomy_cache

LAYERS = 2


def both(columns=0):
    return roomy_cache(columns=columns), DynamicCache()


def grow(caches, tokens, rows=3):
    draw = torch.Generator().manual_seed(tokens)
    for layer in range(LAYERS):
        keys, values = torch.randn(2, rows, 2, tokens, 4, generator=draw)
        (k, v), (keys_held, values_held) = [c.update(keys, values, layer) for c in caches]
        assert torch.equal(k, keys_held)
        assert torch.equal(v, values_held)


@pytest.mark.parametrize("columns", [0, 1, 9, 100])
def test_it_grows_is_cropped_and_loses_rows_as_transformers_own(columns):
    caches = both(columns)
    grow(caches, 5)
    for _ in range(4):
        grow(caches, 1)
    for cache in caches:
        cache.crop(-3)
    grow(caches, 2)
    kept = torch.tensor([2, 0])
    for cache in caches:
        cache.batch_select_indices(kept)
    grow(caches, 7, rows=2)
    for cache in caches:
        cache.reset()
    grow(caches, 3, rows=1)
    assert caches[0].get_seq_length() == 3


def test_a_token_is_written_where_there_is_room():
    cache = roomy_cache(columns=8)
    part = torch.ones(1, 1, 3, 2)
    before, _ = cache.update(part, part, 0)
    after, _ = cache.update(part, part, 0)
    assert after.data_ptr() == before.data_ptr()


def test_rows_that_leave_do_not_write_into_those_that_stay():
    cache = roomy_cache(columns=8)
    part = torch.arange(4.0).reshape(2, 1, 1, 2)
    held, _ = cache.update(part, part, 0)
    cache.batch_select_indices(torch.tensor([1]))
    cache.update(part[:1] + 9, part[:1] + 9, 0)
    assert torch.equal(held, part)


def test_layers_with_a_window_of_their_own_stay_as_they_are():
    small = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": LAYERS}
    for config, roomy in ((LlamaConfig(**small), True), (MistralConfig(**small), False)):
        cache = roomy_cache(config)
        assert [type(layer) is RoomyLayer for layer in cache.layers] == [roomy] * LAYERS
