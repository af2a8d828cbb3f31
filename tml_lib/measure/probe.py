"""L̂ after every prefix of a trajectory: the pseudo-gradient curve of RaML §4.1, Algorithm 3, in packed passes.

The paper runs one forward pass per prefix. Here the trajectory is read once into a key-value cache, and the suffixes
(answer template ⊕ answer) of many prefixes hang off it as branches of one tree: a pass holds a stretch of the trajectory
(the trunk) and, for each prefix that ends in it, one copy of the suffix tree. A 4-D mask lets a branch token see the
trunk up to its root and its own ancestors, and its position ids continue from its root; afterwards the branches are
cropped from the cache. Candidate answers share the template's tokens.

    cache = prompt ⊕ t_{<s}      trunk  t_s   t_{s+1}   t_{s+2}  …
                                         |       |         |
                                branches S_0    S_1       S_2   …   (S = template ⊕ answer)

Deviation from the paper: none in what is computed (equal to the naive loop to rounding, which tests hold).
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm
from transformers import DynamicCache

from tml_lib.data.gsm import first_mention
from tml_lib.lm.answers import ANSWER_TEMPLATE, Suffix, encode
from tml_lib.lm.models import LanguageModel
from tml_lib.records import ProbeCurve
from tml_lib.runtime import ROWS_PER_PASS


def probe(
    lm: LanguageModel,
    prompt: str,
    trajectory: str,
    answers: str | Sequence[str],
    *,
    stride: int = 1,
    positions: Sequence[int] | None = None,
    template: str = ANSWER_TEMPLATE,
    whole_suffix: bool = False,
    progress: bool = False,
    device: str | None = None,
    dtype: torch.dtype | None = None,
) -> ProbeCurve | list[ProbeCurve]:
    """L̂_i = -1/|a| Σ_j log p_θ(a^j | I, q, t_{≤i}, template, a^{<j}) for i = 0..|t| (RaML Alg. 3), in nats per token.

    answers: one candidate, or several (a list of curves comes back). stride: probe every stride-th prefix; the first,
    the last and the one before the answer is first stated are always probed. positions: exactly these instead.
    whole_suffix: also the mean over template and answer tokens (about a fifth slower). progress: show a bar.
    device, dtype: move or cast the model first (in place). Raises ValueError for an unsound stride or position, a seam
    that is no token boundary, an empty answer, a context that is too long, or a model that packed passes do not suit.
    """
    candidates = [answers] if isinstance(answers, str) else list(answers)
    if not candidates:
        raise ValueError("answers=[] leaves nothing to probe: give at least one candidate answer")
    if device is not None or dtype is not None:
        lm.model.to(device=device, dtype=dtype)
    encoded = encode(lm.tokenizer, prompt, trajectory, candidates, template)
    length = len(encoded.trajectory)
    stated = []
    for answer in candidates:
        offset = first_mention(trajectory, answer)
        stated.append(None if offset is None else encoded.tokens_before(offset))
    chosen = _positions(length, stride, positions, stated)
    own, whole = prefix_nll(
        lm.model,
        encoded.prompt,
        encoded.trajectory,
        encoded.suffixes,
        chosen,
        whole_suffix=whole_suffix,
        progress=progress,
    )
    curves = [
        ProbeCurve(chosen, own[k], length, answer, encoded.tokens, whole[k] if whole_suffix else None, stated[k])
        for k, answer in enumerate(candidates)
    ]
    return curves[0] if isinstance(answers, str) else curves


def _positions(length: int, stride: int, positions: Sequence[int] | None, stated: list[int | None]) -> np.ndarray:
    if stride < 1:
        raise ValueError(f"stride={stride} must be at least 1: 1 probes after every token")
    if positions is None:
        return np.array(sorted({*range(0, length + 1, stride), length, *(s for s in stated if s is not None)}))
    chosen = np.unique(np.asarray(positions, dtype=int))
    if not len(chosen) or chosen[0] < 0 or chosen[-1] > length:
        raise ValueError(f"positions={list(positions)} must be some of 0..{length}, the trajectory's length in tokens")
    return chosen


@torch.inference_mode()
def prefix_nll(
    model: torch.nn.Module,
    prompt: Sequence[int],
    trajectory: Sequence[int],
    suffixes: Sequence[Suffix],
    positions: Sequence[int],
    *,
    whole_suffix: bool = False,
    rows_per_pass: int | None = None,
    progress: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean negative log-likelihood of each suffix after chosen prefixes, on token ids.

    positions: (n,) increasing, in 0..|t|. Returns (answers' own tokens, whole suffixes), each (len(suffixes), n) float64
    in nats per token; the second is NaN unless `whole_suffix`. Raises ValueError as `probe` does.
    """
    if not len(prompt):
        raise ValueError("prompt=[] leaves the first answer token without a context: give at least one prompt token")
    chosen = np.asarray(positions, dtype=int)
    if not len(chosen) or chosen[0] < 0 or chosen[-1] > len(trajectory) or (np.diff(chosen) <= 0).any():
        raise ValueError(f"positions={list(positions)} must increase within 0..{len(trajectory)}, the trajectory's length")
    check_model(model, len(prompt) + len(trajectory) + max(len(s.ids) for s in suffixes))
    rows_per_pass = rows_per_pass or ROWS_PER_PASS.get(next(model.parameters()).device.type, 1024)
    training = model.training
    model.eval()
    try:
        _check_packing(model)
        return _packed(model, prompt, trajectory, suffixes, chosen, whole_suffix, rows_per_pass, progress)
    finally:
        model.train(training)


def _packed(model, prompt, trajectory, suffixes, positions, whole_suffix, rows_per_pass, progress):
    device = next(model.parameters()).device
    tree = _suffix_tree(suffixes, whole_suffix)
    text = torch.tensor([*prompt, *trajectory], device=device)
    roots = np.asarray(positions) + len(prompt) - 1  # index of the last context token of each prefix
    own = np.full((len(suffixes), len(roots)), np.nan)
    whole = np.full_like(own, np.nan)
    cache = DynamicCache()
    with tqdm(total=len(roots), desc="L̂", unit="prefix", disable=not progress, leave=False) as bar:
        for first, last in _chunks(roots, len(tree.ids), rows_per_pass):
            _read(model, text[: roots[first]], cache, rows_per_pass)
            nll = _branch_pass(model, text, roots[first:last], tree, cache)  # (prefixes, scored tokens)
            for k, (start, rows) in enumerate(tree.scored):
                scored = nll[:, rows]
                own[k, first:last] = scored[:, start:].mean(1)
                if whole_suffix:
                    whole[k, first:last] = scored.mean(1)
            bar.update(last - first)
    return own, whole


@dataclass(frozen=True)
class _Tree:
    """The suffixes as one token tree below a root, the prefix's last token (node 0); node n's token is ids[n - 1]."""

    ids: torch.Tensor  # (B,)
    depth: torch.Tensor  # (B,) distance from the root, from 1
    sees: torch.Tensor  # (B, B) bool: node row attends to node column (itself and its ancestors)
    parents: list[int]  # (R,) node whose output predicts each scored token
    targets: list[int]  # (R,) token id of each scored token
    scored: list[tuple[int, list[int]]]  # per suffix: where its answer starts in, and which of the R tokens are, its own


def _suffix_tree(suffixes: Sequence[Suffix], whole_suffix: bool) -> _Tree:
    nodes: dict[tuple[int, int], int] = {}  # (parent, token) -> node
    parents, targets, scored = [], [], []
    slots: dict[tuple[int, int], int] = {}  # (parent, token) -> index among the scored tokens
    for suffix in suffixes:
        node, rows = 0, []
        for place, token in enumerate(suffix.ids):
            if whole_suffix or place >= suffix.start:
                slot = slots.setdefault((node, token), len(slots))
                if slot == len(parents):
                    parents.append(node)
                    targets.append(token)
                rows.append(slot)
            if place + 1 < len(suffix.ids):  # the last token is predicted, never read
                node = nodes.setdefault((node, token), len(nodes) + 1)
        scored.append((suffix.start if whole_suffix else 0, rows))
    size = len(nodes)
    sees, depth = torch.zeros(size, size, dtype=torch.bool), torch.zeros(size, dtype=torch.long)
    for (parent, _), node in nodes.items():
        if parent:
            sees[node - 1] = sees[parent - 1]
        sees[node - 1, node - 1] = True
        depth[node - 1] = sees[node - 1].sum()
    return _Tree(torch.tensor([t for _, t in nodes], dtype=torch.long), depth, sees, parents, targets, scored)


def _chunks(roots: np.ndarray, branch: int, rows: int):
    """Split prefixes so that trunk and branches of a pass stay within `rows` tokens (always at least one prefix)."""
    first = 0
    while first < len(roots):
        last = first + 1
        while last < len(roots) and roots[last] - roots[first] + 1 + (last - first + 1) * branch <= rows:
            last += 1
        yield first, last
        first = last


def _read(model, text: torch.Tensor, cache: DynamicCache, rows: int) -> None:
    """Extend the cache to hold the text, a stretch of `rows` tokens at a time; no logits are computed but one row's."""
    while (past := cache.get_seq_length()) < len(text):
        piece = text[past : past + 2 * rows]
        at = torch.arange(past, past + len(piece), device=text.device)
        _forward(model, piece, at, None, cache, keep=at[-1:] - past)


def _branch_pass(model, text, roots: np.ndarray, tree: _Tree, cache: DynamicCache) -> torch.Tensor:
    """One pass over trunk text[roots[0]..roots[-1]] and a suffix tree per root: (len(roots), R) nats, on the CPU."""
    device, past = text.device, int(roots[0])
    trunk, copies, branch = int(roots[-1]) - past + 1, len(roots), len(tree.ids)
    at = torch.from_numpy(roots).to(device)
    # 1. tokens and positions: the trunk, then the copies of the tree, each continuing from its root
    ids = torch.cat([text[past : past + trunk], tree.ids.to(device).repeat(copies)])
    places = torch.cat([torch.arange(past, past + trunk, device=device), (at[:, None] + tree.depth.to(device)).flatten()])
    # 2. who sees whom: everything sees the cache; a copy sees the trunk up to its root, and itself
    sees = torch.zeros(trunk + copies * branch, past + trunk + copies * branch, dtype=torch.bool, device=device)
    sees[:, :past] = True
    causal = torch.ones(trunk, trunk, dtype=torch.bool, device=device).tril()
    sees[:trunk, past : past + trunk] = causal
    sees[trunk:, past : past + trunk] = causal[at - past].repeat_interleave(branch, 0)
    sees[trunk:, past + trunk :] = torch.block_diag(*[tree.sees.to(device)] * copies).bool()
    # 3. rows that predict a scored token: the root's own, or one of its copy
    parents = torch.tensor(tree.parents, device=device)
    in_copy = trunk + branch * torch.arange(copies, device=device)[:, None] + parents - 1
    keep = torch.where(parents == 0, (at - past)[:, None], in_copy).flatten()
    logits = _forward(model, ids, places, sees, cache, keep)
    if copies * branch:
        cache.crop(-copies * branch)
    targets = torch.tensor(tree.targets, device=device).repeat(copies)
    nll = torch.nn.functional.cross_entropy(_widened(logits), targets, reduction="none")
    return nll.view(copies, -1).double().cpu()


def _forward(model, ids, places, sees, cache, keep) -> torch.Tensor:
    """Logits (len(keep), vocabulary) of the kept rows; `sees` is a (tokens, keys) bool mask or None for plain causal."""
    mask = None
    if sees is not None:  # additive: with eager attention a boolean mask would silently be wrong
        dtype = next(model.parameters()).dtype
        mask = torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill_(~sees, torch.finfo(dtype).min)
        mask = mask[None, None]
    some = {"logits_to_keep": keep} if _keeps_rows(type(model)) else {}
    logits = model(
        input_ids=ids[None],
        position_ids=places[None],
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
        **some,
    ).logits[0]
    return logits if some else logits[keep]


def _widened(logits: torch.Tensor) -> torch.Tensor:
    """Logits in float32 at least: log-probabilities of a large vocabulary need it."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _keeps_rows(model_class: type) -> bool:
    return "logits_to_keep" in inspect.signature(model_class.forward).parameters


# --- the reference, and what packed passes cannot do -----------------------------------------------------------------


@torch.inference_mode()
def naive_nll(
    model, prompt, trajectory, suffix: Suffix, position: int, *, whole_suffix: bool = False, few_logits: bool = False
) -> float:
    """One full forward pass over I ⊕ q ⊕ t_{≤position} ⊕ suffix, as RaML's Algorithm 3 is written: nats per token.

    few_logits: apply the language-model head to the rows that are needed only. The reference for tests and benchmarks.
    """
    device = next(model.parameters()).device
    ids = torch.tensor([*prompt, *trajectory[:position], *suffix.ids], device=device)
    count = len(suffix.ids) if whole_suffix else len(suffix.ids) - suffix.start
    some = {"logits_to_keep": count + 1} if few_logits and _keeps_rows(type(model)) else {}
    logits = model(input_ids=ids[None], use_cache=False, **some).logits[0]
    return float(torch.nn.functional.cross_entropy(_widened(logits[-count - 1 : -1]), ids[-count:]))


def sliding_window(config) -> int | None:
    """The attention window of a model, in tokens, or None where every layer sees the whole context."""
    config = config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    unused = getattr(config, "use_sliding_window", True) is False
    return None if unused or (kinds is not None and "sliding_attention" not in kinds) else window


def check_model(model: torch.nn.Module, tokens: int) -> None:
    """Raise ValueError unless the model can be probed on a context of that many tokens."""
    config = model.config.get_text_config()
    name = type(model).__name__
    if unknown := set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
        raise ValueError(f"{name} has layers of kind {sorted(unknown)}: only attention over a cache of keys can be branched")
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and tokens > limit:
        raise ValueError(
            f"prompt, trajectory and answer take {tokens} tokens, but {name}'s context holds {limit}: shorten the trajectory "
            "or take a model with a longer context"
        )
    window = sliding_window(config)
    if window is not None and tokens > window:
        raise ValueError(
            f"prompt, trajectory and answer take {tokens} tokens, but {name} attends within a sliding window of {window}: "
            "packed passes are exact only inside it; shorten the trajectory or take a model with full attention"
        )


_checked: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _check_packing(model: torch.nn.Module) -> None:
    """On first use, compare packed and naive passes on a short random input: a model that differs is refused by name."""
    dtype = next(model.parameters()).dtype
    if _checked.get(model) == dtype:
        return
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.randint(vocabulary, (10,), generator=torch.Generator().manual_seed(0)).tolist()
    suffix, where = Suffix(tuple(ids[7:]), 1, ""), [0, 2, 4]
    tolerance = 1e-3 if dtype in (torch.float32, torch.float64) else 0.25
    try:
        packed = _packed(model, ids[:3], ids[3:7], [suffix], where, False, 64, False)[0][0]
        naive = [naive_nll(model, ids[:3], ids[3:7], suffix, i) for i in where]
        error = float(np.abs(packed - naive).max())
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as reason:
        raise ValueError(
            f"{type(model).__name__} cannot be probed in packed passes ({type(reason).__name__}: {reason}); take a decoder "
            "with a key-value cache and 4-D attention masks, such as Llama, Qwen or GPT-2"
        ) from reason
    if not error <= tolerance:
        raise ValueError(
            f"{type(model).__name__} gives other values in packed passes than one prefix at a time (by {error:.2g} nats): "
            "its attention ignores 4-D masks or position ids; take a decoder such as Llama, Qwen or GPT-2"
        )
    _checked[model] = dtype
