"""Attention of a packed pass that pays for nothing it hides.

A pass reads a trunk of T tokens and C copies of a suffix tree of B nodes; a cache stands before it.
Plain attention scores each row against every column, the other copies among them, and a mask then
hides most. Here all rows meet the prefix that they share in one matrix product per key-value head,
and a copy's rows meet their own few keys apart. One softmax goes over both parts.

    columns:           cache    trunk    the row's own copy
    rows of the trunk   all     causal         none
    rows of copy c      all     ≤ root c       tree
                       ———————————————   ——————————————————
                       one product        a small product
                       for all rows       for each copy

`attention` switches a model to it for one pass. It knows no windows, caps, sinks or biases:
`ways` checks it on first use, and reads with the model's own attention where it does not fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from transformers import AttentionInterface, PretrainedConfig

NAME = "shared_prefix"  # among transformers' attention functions
# Scores of rows that are held at a time: on a processor few enough for its cache memory.
_SCORES = {"cpu": 2**18, "cuda": 2**27}
_UNKNOWN = ("softcap", "s_aux", "position_bias")  # what would change the scores


@dataclass(frozen=True)
class Branches:
    """Who sees whom among the N = T + C * B rows of a pass; every row sees all of the cache."""

    trunk: torch.Tensor  # (N, T) bool: a row sees a token of the trunk
    tree: torch.Tensor  # (B, B) bool: a node of a copy sees another node of the same copy
    copies: int  # C

    def mask(self, past: int) -> torch.Tensor:
        """(N, past + N) bool of all columns, of which `past` are in the cache."""
        rows, trunk = self.trunk.shape
        sees = torch.zeros(rows, past + rows, dtype=torch.bool, device=self.trunk.device)
        sees[:, :past] = True
        sees[:, past : past + trunk] = self.trunk
        sees[trunk:, past + trunk :] = torch.block_diag(*[self.tree] * self.copies).bool()
        return sees


_branches: ContextVar[Branches] = ContextVar("branches")


@contextmanager
def attention(model: torch.nn.Module, branches: Branches) -> Iterator[None]:
    """The model attends by shared prefix within; afterwards, also after an exception, as before."""
    modules = [getattr(module, "config", None) for module in model.modules()]
    configs = {id(one): one for one in modules if isinstance(one, PretrainedConfig)}.values()
    before = [one._attn_implementation_internal for one in configs]
    token = _branches.set(branches)
    try:
        for one in configs:
            one._attn_implementation_internal = NAME
        yield
    finally:
        for one, name in zip(configs, before, strict=True):
            one._attn_implementation_internal = name
        _branches.reset(token)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **more,
) -> tuple[torch.Tensor, None]:
    """softmax(Q Kᵀ * scaling) V of one packed pass, in transformers' form.

    query (1, H, N, D), key and value (1, G, past + N, ·) with G key-value heads -> (1, N, H, ·).
    The softmax is taken in float32 at least. Raises ValueError for a mask, a cap, sinks or a bias.
    """
    unknown = [name for name in _UNKNOWN if more.get(name) is not None]
    if unknown or attention_mask is not None or len(query) != 1:
        raise ValueError(f"attention by shared prefix knows no {unknown or 'mask of the model'}")
    branches, wide = _branches.get(), torch.promote_types(query.dtype, torch.float32)
    (_, heads, rows, width), groups = query.shape, key.shape[1]
    each, trunk = heads // groups, branches.trunk.shape[1]
    shared = key.shape[2] - rows + trunk  # columns of the cache and the trunk
    first, size, copies = trunk * each, len(branches.tree), branches.copies
    # (G, N * H / G, D): the heads of one group stand side by side for each token
    q = query[0] * (width**-0.5 if scaling is None else scaling)
    q = q.view(groups, each, rows, width).transpose(1, 2).reshape(groups, rows * each, width)
    unseen = ~branches.trunk.to(q.device).repeat_interleave(each, 0)

    # 1. scores of the copies' own nodes; the trunk's rows have none
    nodes = q[:, first:].view(groups, copies, size * each, width)
    own = nodes @ key[0, :, shared:].view(groups, copies, size, width).mT
    own.masked_fill_(~branches.tree.to(q.device).repeat_interleave(each, 0), -torch.inf)
    own = torch.nn.functional.pad(own.flatten(1, 2), (0, 0, first, 0), value=-torch.inf)

    # 2. scores of the shared prefix, and one softmax over both
    found = torch.empty(groups, rows * each, value.shape[-1], dtype=wide, device=q.device)
    weights_of_own = torch.empty_like(own, dtype=wide)
    step = max(1, _SCORES.get(q.device.type, 2**22) // shared)
    for group in range(groups):
        # the product makes room for a copy's own scores: its last columns are written over
        keys, values = key[0, group, : shared + size].T, value[0, group, :shared]
        for start in range(0, rows * each, step):
            at = slice(start, start + step)
            scores = q[group, at] @ keys
            scores[:, shared - trunk : shared].masked_fill_(unseen[at], -torch.inf)
            scores[:, shared:] = own[group, at]
            weights = scores.softmax(-1, dtype=wide)
            found[group, at] = weights[:, :shared].to(value.dtype) @ values
            weights_of_own[group, at] = weights[:, shared:]

    # 3. what the copies' rows take from their own nodes
    weights = weights_of_own[:, first:].view(groups, copies, size * each, size)
    nodes = value[0, :, shared:].view(groups, copies, size, value.shape[-1]).to(wide)
    found[:, first:] += (weights @ nodes).flatten(1, 2)
    found = found.view(groups, rows, each, -1).transpose(0, 1)
    return found.reshape(1, rows, heads, -1).to(value.dtype), None


AttentionInterface.register(NAME, attend)
