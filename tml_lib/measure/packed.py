"""L̂ in packed passes: many prefixes and all suffixes in one forward pass, the fastest way.

The trajectory is read once into a key-value cache, and the suffixes (answer template ⊕ answer) of
many prefixes hang off it as branches of one tree: a pass holds a stretch of the trajectory (the
trunk) and, for each prefix that ends in it, one copy of the suffix tree. A 4-D mask lets a branch
token see the trunk up to its root and its own ancestors, and its position ids continue from its
root; afterwards the branches are cropped from the cache. Candidate answers share the template's
tokens. Attention is by `shared_prefix`, or the model's own with the mask as a matrix.

    cache = prompt ⊕ t_{<s}      trunk  t_s   t_{s+1}   t_{s+2}  …
                                         |       |         |
                                branches S_0    S_1       S_2   …   (S = template ⊕ answer)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from tml_lib.lm.answers import Suffix
from tml_lib.lm.blocks import widened
from tml_lib.lm.caches import roomy_cache
from tml_lib.lm.exactness import keeps_rows
from tml_lib.lm.placed import device_of
from tml_lib.measure import shared_prefix
from tml_lib.measure.naive import Request

_FEW = 16  # rows whose logits are in float32 at a time
_PLAIN = 128  # tokens of a pass that scores nothing: its mask and activations stay small


def packed_nll(model: torch.nn.Module, request: Request, *, shared: bool = False) -> np.ndarray:
    """`prefix_nll` of a model in evaluation mode, in packed passes and with nothing checked.

    shared: attend by `shared_prefix`, not by the model's own attention with a 4-D mask.
    """
    device = device_of(model)
    tree = _suffix_tree(request.suffixes)
    text = torch.tensor([*request.prompt, *request.trajectory], device=device)
    roots = request.positions + len(request.prompt) - 1
    found = request.unread
    cache = roomy_cache(columns=widest_pass(request)[0])
    with request.bar() as bar:
        for past, chunk in _chunks(roots, len(tree.ids), request.tokens_per_pass):
            _read(model, text[:past], cache, rows=min(request.tokens_per_pass, _PLAIN))
            rows = _branch_rows(text, past, roots[chunk], tree)
            nll = _branch_pass(model, rows, cache, shared=shared)
            for k, slots in enumerate(tree.scored):
                found[k, chunk] = nll[:, slots].mean(1)
            bar.update(chunk.stop - chunk.start)
    return found


def widest_pass(request: Request) -> tuple[int, int, int]:
    """(columns, first, last): the most tokens that a pass sees, cache included, and the indices of
    that pass's first and last position.
    """
    roots = request.positions + len(request.prompt) - 1
    branch = len(_suffix_tree(request.suffixes).ids)
    chunks = [chunk for _, chunk in _chunks(roots, branch, request.tokens_per_pass)]
    return max(
        (int(roots[c.stop - 1]) + 1 + (c.stop - c.start) * branch, c.start, c.stop - 1)
        for c in chunks
    )


# Six index spaces meet below, each with one name throughout:
#   positions  tokens of the trajectory in a prefix, 0..|t|
#   roots      index in the text (prompt ⊕ trajectory) of a prefix's last token
#   nodes      of the suffix tree; 0 is the root, node n ≥ 1 reads ids[n - 1]
#   slots      tokens of the answers in the tree, which are scored, 0..R - 1
#   rows       tokens that one pass reads, 0..N - 1: the trunk, then a copy of the tree per root
#   columns    tokens that a row may see: those in the cache, then the rows


@dataclass(frozen=True)
class _Tree:
    """B nodes of the suffixes' tokens below a root, the prefix's last token; R tokens are
    scored.
    """

    ids: torch.Tensor  # (B,) token id that each node reads
    depth: torch.Tensor  # (B,) distance from the root, from 1
    sees: torch.Tensor  # (B, B) bool: a node attends to itself and to its ancestors
    parents: list[int]  # (R,) node whose output predicts each slot's token, 0 for the root
    targets: list[int]  # (R,) token id of each slot
    scored: list[list[int]]  # per suffix the slots of its answer


def _suffix_tree(suffixes: Sequence[Suffix]) -> _Tree:
    """Join suffixes where they begin alike."""
    nodes: dict[tuple[int, int], int] = {}  # (parent, token) -> node
    slots: dict[tuple[int, int], int] = {}  # (parent, token) -> slot
    scored = []
    for suffix in suffixes:
        node, own = 0, []
        for place, token in enumerate(suffix.ids):
            if place >= suffix.start:
                own.append(slots.setdefault((node, token), len(slots)))
            if place + 1 < len(suffix.ids):  # the last token is predicted, never read
                node = nodes.setdefault((node, token), len(nodes) + 1)
        scored.append(own)
    size = len(nodes)
    sees = torch.zeros(size, size, dtype=torch.bool)
    depth = torch.zeros(size, dtype=torch.long)
    for (parent, _), node in nodes.items():
        if parent:
            sees[node - 1] = sees[parent - 1]
        sees[node - 1, node - 1] = True
        depth[node - 1] = sees[node - 1].sum()
    return _Tree(
        ids=torch.tensor([token for _, token in nodes], dtype=torch.long),
        depth=depth,
        sees=sees,
        parents=[parent for parent, _ in slots],
        targets=[token for _, token in slots],
        scored=scored,
    )


def _chunks(roots: np.ndarray, branch: int, rows: int) -> Iterator[tuple[int, slice]]:
    """(tokens that stand before the trunk, slice of the roots) of each pass: trunk and copies of
    `branch` nodes take at most `rows` rows.

    A slice holds one root at least, however many rows that takes. What stands between two passes
    is part of the trunk where it is short, else it is read apart.
    """
    first = read = 0
    while first < len(roots):
        past = read if roots[first] - read < rows // 4 else int(roots[first])
        last = first + 1
        while last < len(roots):
            if roots[last] - past + 1 + (last - first + 1) * branch > rows:
                break
            last += 1
        yield past, slice(first, last)
        first, read = last, int(roots[last - 1]) + 1


@dataclass(frozen=True)
class _Pass:
    """What one forward pass reads: N rows."""

    ids: torch.Tensor  # (N,) token ids
    places: torch.Tensor  # (N,) position ids
    sees: shared_prefix.Branches | None  # None: plain causal
    keep: torch.Tensor  # (K,) rows whose logits are wanted
    targets: torch.Tensor | None = None  # (K,) token ids that they predict


def _read(model: torch.nn.Module, text: torch.Tensor, cache: DynamicCache, *, rows: int) -> None:
    """Extend the cache to hold the text, in plain causal passes of `rows` tokens at most.

    No logits are computed.
    """
    while (past := cache.get_seq_length()) < len(text):
        piece = text[past : past + rows]
        places = torch.arange(past, past + len(piece), device=text.device)
        _forward(model, _Pass(piece, places, sees=None, keep=places[:0]), cache)
        if cache.get_seq_length() != past + len(piece):  # else this loop might never end
            raise ValueError(
                f"the model read {len(piece)} tokens and did not add them to its cache"
            )


def _branch_pass(
    model: torch.nn.Module, given: _Pass, cache: DynamicCache, *, shared: bool
) -> torch.Tensor:
    """Read a trunk and copies of the tree; the cache holds the trunk afterwards, not the copies.

    Returns (copies, R) float64 nats, one per root and slot, on the CPU.
    """
    logits = _forward(model, given, cache, shared=shared)
    rows, trunk = given.sees.trunk.shape
    if rows > trunk:
        cache.crop(trunk - rows)
    # a few rows at a time: a large vocabulary in float32 takes much memory
    parts = zip(logits.split(_FEW), given.targets.split(_FEW), strict=True)
    nll = [cross_entropy(widened(part), aim, reduction="none") for part, aim in parts]
    return torch.cat(nll).view(given.sees.copies, -1).double().cpu()


def _branch_rows(text: torch.Tensor, past: int, roots: np.ndarray, tree: _Tree) -> _Pass:
    """The rows of one branch pass: the trunk text[past..roots[-1]], then a copy of the tree per
    root; kept are (root, slot) in that order.
    """
    device, copies, branch = text.device, len(roots), len(tree.ids)
    trunk = int(roots[-1]) + 1 - past
    at = torch.from_numpy(roots).to(device)
    # 1. tokens and position ids: each copy continues from its root
    ids = torch.cat([text[past : past + trunk], tree.ids.to(device).repeat(copies)])
    in_copies = (at[:, None] + tree.depth.to(device)).flatten()
    places = torch.cat([torch.arange(past, past + trunk, device=device), in_copies])
    # 2. who sees whom: a copy sees the trunk up to its root, and itself
    causal = torch.ones(trunk, trunk, dtype=torch.bool, device=device).tril()
    up_to_root = causal[at - past].repeat_interleave(branch, 0)
    sees = shared_prefix.Branches(
        torch.cat([causal, up_to_root]), tree=tree.sees.to(device), copies=copies
    )
    # 3. rows that predict a slot's token: the root's own, or one of its copy
    parents = torch.tensor(tree.parents, device=device)
    in_copy = trunk + branch * torch.arange(copies, device=device)[:, None] + parents - 1
    keep = torch.where(parents == 0, (at - past)[:, None], in_copy).flatten()
    targets = torch.tensor(tree.targets, device=device).repeat(copies)
    return _Pass(ids, places, sees=sees, keep=keep, targets=targets)


def _forward(
    model: torch.nn.Module, given: _Pass, cache: DynamicCache, *, shared: bool = False
) -> torch.Tensor:
    """Logits (K, vocabulary) of a pass's kept rows; the cache holds all its rows afterwards."""
    mask, attention = None, nullcontext()
    if given.sees is not None and shared:
        attention = shared_prefix.attention(model, given.sees)
    elif given.sees is not None:
        # additive: with eager attention a boolean mask would silently be wrong
        sees, dtype = given.sees.mask(cache.get_seq_length()), next(model.parameters()).dtype
        mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device)
        mask = mask.masked_fill_(~sees, torch.finfo(dtype).min)[None, None]
    some = {"logits_to_keep": given.keep} if keeps_rows(model) else {}
    with attention:
        logits = model(
            input_ids=given.ids[None],
            position_ids=given.places[None],
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **some,
        ).logits[0]
    return logits if some else logits[given.keep]
