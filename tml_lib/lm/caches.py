"""A key-value cache that grows in place: transformers' own copies all it holds at every token."""

from __future__ import annotations

from functools import partial

import torch
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

GROWTH = 1.5  # of the room, where it is too small


class RoomyLayer(DynamicLayer):
    """A layer's keys and values, of shape (B, heads, columns, width), with room for more."""

    def __init__(self, columns: int = 0):
        super().__init__()
        self.columns = columns
        self._room: list[torch.Tensor] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        past, parts = self.get_seq_length(), (key_states, value_states)
        end = past + key_states.shape[-2]
        if not self._room or end > self._room[0].shape[-2]:
            self.columns = max(self.columns, end, int(GROWTH * past))
            made = [p.new_empty(*p.shape[:-2], self.columns, p.shape[-1]) for p in parts]
            if past:
                for room, held in zip(made, (self.keys, self.values), strict=True):
                    room[..., :past, :] = held
            self._room = made
        for room, part in zip(self._room, parts, strict=True):
            room[..., past:end, :] = part
        self.keys, self.values = (room[..., :end, :] for room in self._room)
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)
        self._room = []

    def reset(self) -> None:
        super().reset()
        self._room = []


def roomy_cache(config: PretrainedConfig | None = None, columns: int = 0) -> DynamicCache:
    """An empty cache with room for so many columns; more are made as they are needed. config: of a
    model whose layers are not all alike; only those that keep every column are roomy.
    """
    cache = DynamicCache(config=config)
    layer = partial(RoomyLayer, columns)
    cache.layers = [layer() if type(one) is DynamicLayer else one for one in cache.layers]
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = layer
    return cache
