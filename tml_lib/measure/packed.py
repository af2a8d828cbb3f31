"""L̂ in packed passes: many prefixes and all suffixes in one forward pass, the fastest way.

The trajectory is read once into a key-value cache, and the suffixes (answer template ⊕ answer) of
many prefixes hang off it as branches of one tree: a pass holds a stretch of the trajectory (the
trunk) and, for each prefix that ends in it, one copy of the suffix tree. A 4-D mask lets a branch
token see the trunk up to its root and its own ancestors, and its position ids continue from its
root; afterwards the branches are cropped from the cache. Candidate answers share the template's
tokens.

    cache = prompt ⊕ t_{<s}      trunk  t_s   t_{s+1}   t_{s+2}  …
                                         |       |         |
                                branches S_0    S_1       S_2   …   (S = template ⊕ answer)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import DynamicCache

from tml_lib.lm.answers import Suffix
from tml_lib.lm.exactness import keeps_rows
from tml_lib.lm.placed import device_of
from tml_lib.measure.naive import PrefixNLL, Request, widened


def packed_nll(model: torch.nn.Module, request: Request) -> PrefixNLL:
    """`prefix_nll` of a model in evaluation mode, in packed passes and with nothing checked."""
    device = device_of(model)
    tree = _suffix_tree(request.suffixes, request.whole_suffix)
    text = torch.tensor([*request.prompt, *request.trajectory], device=device)
    roots = request.positions + len(request.prompt) - 1
    own, whole = request.unread, request.unread
    cache = DynamicCache()
    with request.bar() as bar:
        for chunk in _chunks(roots, len(tree.ids), request.rows_per_pass):
            _read(model, text[: roots[chunk.start]], cache, rows=request.rows_per_pass)
            nll = _branch_pass(model, text, cache, roots=roots[chunk], tree=tree)
            for k, suffix in enumerate(tree.scored):
                scored = nll[:, suffix.slots]
                own[k, chunk] = scored[:, suffix.answer :].mean(1)
                if request.whole_suffix:
                    whole[k, chunk] = scored.mean(1)
            bar.update(chunk.stop - chunk.start)
    return PrefixNLL(own, whole)


def widest_pass(request: Request) -> tuple[int, int]:
    """(columns, index of a position): the most tokens that a pass sees, cache included, and the
    last prefix of that pass.
    """
    roots = request.positions + len(request.prompt) - 1
    branch = len(_suffix_tree(request.suffixes, request.whole_suffix).ids)
    chunks = _chunks(roots, branch, request.rows_per_pass)
    sizes = [(int(roots[c.stop - 1]) + 1 + (c.stop - c.start) * branch, c.stop - 1) for c in chunks]
    return max(sizes)


# Six index spaces meet below, each with one name throughout:
#   positions  tokens of the trajectory in a prefix, 0..|t|
#   roots      index in the text (prompt ⊕ trajectory) of a prefix's last token
#   nodes      of the suffix tree; 0 is the root, node n ≥ 1 reads ids[n - 1]
#   slots      scored tokens of the tree, 0..R - 1
#   rows       tokens that one pass reads, 0..N - 1: the trunk, then a copy of the tree per root
#   columns    tokens that a row may see: those in the cache, then the rows


@dataclass(frozen=True)
class _Scored:
    """The scored tokens of one suffix."""

    slots: list[int]  # of its template and answer, or of its answer alone
    answer: int  # index in `slots` where its answer begins


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
    scored: list[_Scored]  # one per suffix


def _suffix_tree(suffixes: Sequence[Suffix], whole_suffix: bool) -> _Tree:
    """Join suffixes where they begin alike; whole_suffix: score their templates too."""
    nodes: dict[tuple[int, int], int] = {}  # (parent, token) -> node
    slots: dict[tuple[int, int], int] = {}  # (parent, token) -> slot
    scored = []
    for suffix in suffixes:
        node, own = 0, []
        for place, token in enumerate(suffix.ids):
            if whole_suffix or place >= suffix.start:
                own.append(slots.setdefault((node, token), len(slots)))
            if place + 1 < len(suffix.ids):  # the last token is predicted, never read
                node = nodes.setdefault((node, token), len(nodes) + 1)
        scored.append(_Scored(slots=own, answer=suffix.start if whole_suffix else 0))
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


def _chunks(roots: np.ndarray, branch: int, rows: int) -> Iterator[slice]:
    """Slices of the roots, one per pass: trunk and copies of `branch` nodes take at most `rows`
    rows.

    A slice holds one root at least, however many rows that takes.
    """
    first = 0
    while first < len(roots):
        last = first + 1
        while last < len(roots):
            if roots[last] - roots[first] + 1 + (last - first + 1) * branch > rows:
                break
            last += 1
        yield slice(first, last)
        first = last


@dataclass(frozen=True)
class _Pass:
    """What one forward pass reads: N rows, with C tokens in the cache before it."""

    ids: torch.Tensor  # (N,) token ids
    places: torch.Tensor  # (N,) position ids
    sees: torch.Tensor | None  # (N, C + N) bool: row attends to column; None: plain causal
    keep: torch.Tensor  # (K,) rows whose logits are wanted


def _read(model: torch.nn.Module, text: torch.Tensor, cache: DynamicCache, *, rows: int) -> None:
    """Extend the cache to hold the text, in plain causal passes of 2 * rows tokens at most.

    No logits are computed but those of each pass's last row.
    """
    while (past := cache.get_seq_length()) < len(text):
        piece = text[past : past + 2 * rows]
        places = torch.arange(past, past + len(piece), device=text.device)
        _forward(model, _Pass(piece, places, sees=None, keep=places[-1:] - past), cache)
        if cache.get_seq_length() != past + len(piece):  # else this loop might never end
            raise ValueError(
                f"the model read {len(piece)} tokens and did not add them to its cache"
            )


def _branch_pass(
    model: torch.nn.Module,
    text: torch.Tensor,
    cache: DynamicCache,
    *,
    roots: np.ndarray,
    tree: _Tree,
) -> torch.Tensor:
    """One pass over trunk text[roots[0]..roots[-1]] and a copy of the tree per root.

    The cache holds text[:roots[0]] before, text[:roots[-1] + 1] after.
    Returns (len(roots), R) float64 nats, one per root and slot, on the CPU.
    """
    copies, added = len(roots), len(roots) * len(tree.ids)
    logits = _forward(model, _branch_rows(text, roots, tree), cache)
    if added:
        cache.crop(-added)
    targets = torch.tensor(tree.targets, device=text.device).repeat(copies)
    nll = torch.nn.functional.cross_entropy(widened(logits), targets, reduction="none")
    return nll.view(copies, -1).double().cpu()


def _branch_rows(text: torch.Tensor, roots: np.ndarray, tree: _Tree) -> _Pass:
    """The rows of one branch pass: the trunk, then the copies; kept are (root, slot) in
    that order.
    """
    device, past = text.device, int(roots[0])
    trunk, copies, branch = int(roots[-1]) - past + 1, len(roots), len(tree.ids)
    at = torch.from_numpy(roots).to(device)
    # 1. tokens and position ids: each copy continues from its root
    ids = torch.cat([text[past : past + trunk], tree.ids.to(device).repeat(copies)])
    in_copies = (at[:, None] + tree.depth.to(device)).flatten()
    places = torch.cat([torch.arange(past, past + trunk, device=device), in_copies])
    # 2. who sees whom: everything sees the cache; a copy sees the trunk up to its root, and itself
    size = trunk + copies * branch
    sees = torch.zeros(size, past + size, dtype=torch.bool, device=device)
    sees[:, :past] = True
    causal = torch.ones(trunk, trunk, dtype=torch.bool, device=device).tril()
    sees[:trunk, past : past + trunk] = causal
    sees[trunk:, past : past + trunk] = causal[at - past].repeat_interleave(branch, 0)
    sees[trunk:, past + trunk :] = torch.block_diag(*[tree.sees.to(device)] * copies).bool()
    # 3. rows that predict a slot's token: the root's own, or one of its copy
    parents = torch.tensor(tree.parents, device=device)
    in_copy = trunk + branch * torch.arange(copies, device=device)[:, None] + parents - 1
    keep = torch.where(parents == 0, (at - past)[:, None], in_copy).flatten()
    return _Pass(ids, places, sees=sees, keep=keep)


def _forward(model: torch.nn.Module, given: _Pass, cache: DynamicCache) -> torch.Tensor:
    """Logits (K, vocabulary) of a pass's kept rows; the cache holds all its rows afterwards."""
    mask = None
    # additive: with eager attention a boolean mask would silently be wrong
    if given.sees is not None:
        dtype = next(model.parameters()).dtype
        mask = torch.zeros(given.sees.shape, dtype=dtype, device=given.sees.device)
        mask = mask.masked_fill_(~given.sees, torch.finfo(dtype).min)[None, None]
    some = {"logits_to_keep": given.keep} if keeps_rows(model) else {}
    logits = model(
        input_ids=given.ids[None],
        position_ids=given.places[None],
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
        **some,
    ).logits[0]
    return logits if some else logits[given.keep]
