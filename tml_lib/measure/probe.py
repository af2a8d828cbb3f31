"""L̂ after every prefix of a trajectory: the pseudo-gradient curve of RaML §4.1, Algorithm 3, in
packed passes.

The paper runs one forward pass per prefix. Here the trajectory is read once into a key-value cache,
and the suffixes (answer template ⊕ answer) of many prefixes hang off it as branches of one tree: a
pass holds a stretch of the trajectory (the trunk) and, for each prefix that ends in it, one copy of
the suffix tree. A 4-D mask lets a branch token see the trunk up to its root and its own ancestors,
and its position ids continue from its root; afterwards the branches are cropped from the cache.
Candidate answers share the template's tokens.

    cache = prompt ⊕ t_{<s}      trunk  t_s   t_{s+1}   t_{s+2}  …
                                         |       |         |
                                branches S_0    S_1       S_2   …   (S = template ⊕ answer)

Deviation from the paper: none in what is computed (equal to the naive loop to rounding, which tests
hold).
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

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
) -> ProbeCurve | list[ProbeCurve]:
    """L̂_i = -1/|a| Σ_j log p_θ(a^j | I, q, t_{≤i}, template, a^{<j}) for i = 0..|t| (RaML Alg. 3),
    in nats per token.

    answers: one candidate, or several (a list of curves comes back). stride: probe every stride-th
    prefix; the first, the last and the one before the answer is first stated are always probed.
    positions: exactly these instead.
    whole_suffix: also the mean over template and answer tokens (about a fifth slower). progress:
        show a bar.
    The model is read where it lies and in its own dtype: load it in another where that is wanted.
    Raises ValueError for an unsound stride or position, a seam that is no token boundary, an empty
    answer, a context that is too long, or a model that packed passes do not suit.
    """
    listed = isinstance(answers, Sequence) and all(isinstance(a, str) for a in answers)
    if not listed:
        raise ValueError(
            f"answers={answers!r} is no text: give one answer as a string, such as '5', or a list"
            " of strings"
        )
    candidates = [answers] if isinstance(answers, str) else list(answers)
    if not candidates:
        raise ValueError("answers=[] leaves nothing to probe: give at least one candidate answer")
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
        ProbeCurve(
            chosen,
            own[k],
            length,
            answer,
            encoded.tokens,
            whole[k] if whole_suffix else None,
            stated[k],
        )
        for k, answer in enumerate(candidates)
    ]
    return curves[0] if isinstance(answers, str) else curves


def _positions(
    length: int, stride: int, positions: Sequence[int] | None, stated: list[int | None]
) -> np.ndarray:
    """The (n,) increasing prefixes that `probe` reads, in 0..length; ValueError as there."""
    if stride < 1:
        raise ValueError(f"stride={stride} must be at least 1: 1 probes after every token")
    if positions is None:
        always = {length, *(s for s in stated if s is not None)}
        return np.array(sorted({*range(0, length + 1, stride), *always}))
    chosen = np.unique(np.asarray(positions, dtype=int))
    if not len(chosen) or chosen[0] < 0 or chosen[-1] > length:
        raise ValueError(
            f"positions={_shown(positions)} must be some of 0..{length}, the trajectory's length in"
            " tokens"
        )
    return chosen


def _shown(positions: Sequence[int], most: int = 5) -> str:
    """Positions for an error's text: all of a few, else the first `most` and how many there are."""
    if len(positions) <= most:
        return str(np.asarray(positions).tolist())
    first = ", ".join(str(int(p)) for p in positions[:most])
    return f"[{first}, …] ({len(positions)} positions)"


class PrefixNLL(NamedTuple):
    """Mean NLL of each suffix after each prefix: two (suffixes, prefixes) float64, nats
    per token.
    """

    own: np.ndarray  # over the answers' own tokens
    whole: np.ndarray  # over template and answer; NaN where that was not asked for


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
) -> PrefixNLL:
    """Mean negative log-likelihood of each suffix after chosen prefixes, on token ids.

    positions: (n,) increasing, in 0..|t|. rows_per_pass: most tokens of a pass, by default what
    suits the model's device. Returns `PrefixNLL`, each part (len(suffixes), n) in nats per token.
    The model, its dtype and its modules' modes stay as they are. Raises ValueError as `probe` does.
    """
    if not len(prompt):
        raise ValueError(
            "prompt=[] leaves the first answer token without a context: give at least one prompt"
            " token"
        )
    chosen, length = np.asarray(positions, dtype=int), len(trajectory)
    if not len(chosen) or chosen[0] < 0 or chosen[-1] > length or (np.diff(chosen) <= 0).any():
        raise ValueError(
            f"positions={_shown(positions)} must increase within 0..{length}, the trajectory's"
            " length"
        )
    check_model(model, len(prompt) + length + max(len(s.ids) for s in suffixes))
    device = next(model.parameters()).device.type
    with _evaluating(model):
        _check_packing(model)
        return _packed(
            model,
            prompt,
            trajectory,
            suffixes=suffixes,
            positions=chosen,
            whole_suffix=whole_suffix,
            rows_per_pass=rows_per_pass or ROWS_PER_PASS.get(device, 1024),
            progress=progress,
        )


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode within; afterwards every module is in its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _packed(
    model: torch.nn.Module,
    prompt: Sequence[int],
    trajectory: Sequence[int],
    *,
    suffixes: Sequence[Suffix],
    positions: Sequence[int] | np.ndarray,
    whole_suffix: bool = False,
    rows_per_pass: int,
    progress: bool = False,
) -> PrefixNLL:
    """`prefix_nll` of a model in evaluation mode, with nothing checked."""
    device = next(model.parameters()).device
    tree = _suffix_tree(suffixes, whole_suffix)
    text = torch.tensor([*prompt, *trajectory], device=device)
    roots = np.asarray(positions) + len(prompt) - 1
    own = np.full((len(suffixes), len(roots)), np.nan)
    whole = np.full_like(own, np.nan)
    cache = DynamicCache()
    with tqdm(total=len(roots), desc="L̂", unit="prefix", disable=not progress, leave=False) as bar:
        for chunk in _chunks(roots, len(tree.ids), rows_per_pass):
            _read(model, text[: roots[chunk.start]], cache, rows=rows_per_pass)
            nll = _branch_pass(model, text, cache, roots=roots[chunk], tree=tree)
            for k, suffix in enumerate(tree.scored):
                scored = nll[:, suffix.slots]
                own[k, chunk] = scored[:, suffix.answer :].mean(1)
                if whole_suffix:
                    whole[k, chunk] = scored.mean(1)
            bar.update(chunk.stop - chunk.start)
    return PrefixNLL(own, whole)


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
    nll = torch.nn.functional.cross_entropy(_widened(logits), targets, reduction="none")
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
    some = {"logits_to_keep": given.keep} if _keeps_rows(type(model)) else {}
    logits = model(
        input_ids=given.ids[None],
        position_ids=given.places[None],
        attention_mask=mask,
        past_key_values=cache,
        use_cache=True,
        **some,
    ).logits[0]
    return logits if some else logits[given.keep]


def _widened(logits: torch.Tensor) -> torch.Tensor:
    """Logits in float32 at least: log-probabilities of a large vocabulary need it."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _keeps_rows(model_class: type) -> bool:
    """Whether a model of that class can apply its head to some rows only."""
    return "logits_to_keep" in inspect.signature(model_class.forward).parameters


# --- the reference, and what packed passes cannot do ----------------------------------------------


@torch.inference_mode()
def naive_nll(
    model: torch.nn.Module,
    prompt: Sequence[int],
    trajectory: Sequence[int],
    suffix: Suffix,
    position: int,
    *,
    whole_suffix: bool = False,
    few_logits: bool = False,
) -> float:
    """One full forward pass over I ⊕ q ⊕ t_{≤position} ⊕ suffix, as RaML's Algorithm 3 is written:
    nats per token.

    few_logits: apply the language-model head to the rows that are needed only. The reference for
    tests and benchmarks.
    """
    device = next(model.parameters()).device
    ids = torch.tensor([*prompt, *trajectory[:position], *suffix.ids], device=device)
    count = len(suffix.ids) if whole_suffix else len(suffix.ids) - suffix.start
    some = {"logits_to_keep": count + 1} if few_logits and _keeps_rows(type(model)) else {}
    logits = model(input_ids=ids[None], use_cache=False, **some).logits[0]
    return float(torch.nn.functional.cross_entropy(_widened(logits[-count - 1 : -1]), ids[-count:]))


def sliding_window(config) -> int | None:
    """The attention window of a model, in tokens, or None where every layer sees the
    whole context.
    """
    config = config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    unused = getattr(config, "use_sliding_window", True) is False
    return None if unused or (kinds is not None and "sliding_attention" not in kinds) else window


def check_model(model: torch.nn.Module, tokens: int) -> None:
    """Raise ValueError unless the model can be probed on a context of that many tokens."""
    config = model.config.get_text_config()
    name = type(model).__name__
    if unknown := set(getattr(config, "layer_types", None) or ()) - {
        "full_attention",
        "sliding_attention",
    }:
        raise ValueError(
            f"{name} has layers of kind {sorted(unknown)}: only attention over a cache of keys can"
            " be branched"
        )
    limit = getattr(config, "max_position_embeddings", None)
    if limit is not None and tokens > limit:
        raise ValueError(
            f"prompt, trajectory and answer take {tokens} tokens, but {name}'s context holds"
            f" {limit}: shorten the trajectory or take a model with a longer context"
        )
    window = sliding_window(config)
    if window is not None and tokens > window:
        raise ValueError(
            f"prompt, trajectory and answer take {tokens} tokens, but {name} attends within a"
            f" sliding window of {window}: packed passes are exact only inside it; shorten the"
            " trajectory or take a model with full attention"
        )


@dataclass(frozen=True)
class _Setting:
    """What decides whether a model reads packed passes rightly, and may change while it lives."""

    dtype: torch.dtype
    attention: str | None  # the implementation that transformers runs
    adapter: tuple  # see `_adapter`; empty without one


_checked: weakref.WeakKeyDictionary[torch.nn.Module, set[_Setting]] = weakref.WeakKeyDictionary()


def _setting(model: torch.nn.Module) -> _Setting:
    """The model's dtype, attention implementation and adapter as they are now."""
    attention = getattr(model.config.get_text_config(), "_attn_implementation", None)
    return _Setting(next(model.parameters()).dtype, attention, _adapter(model))


def _adapter(model: torch.nn.Module) -> tuple:
    """What adapters a model carries and which of them work: equal for equal structures, not values.

    One entry for each parameter whose name says `lora_` (name, shape), then one for each state
    that peft's layers are in (active adapters, switched off, merged into the weights).
    """
    weights = [(name, *p.shape) for name, p in model.named_parameters() if "lora_" in name]
    layers = [m for m in model.modules() if getattr(m, "adapter_layer_names", None)]  # peft's
    states = {
        (tuple(m.active_adapters), m.disable_adapters, tuple(m.merged_adapters)) for m in layers
    }
    return (*weights, *sorted(states))


def _check_packing(model: torch.nn.Module) -> None:
    """Compare packed passes with plain ones on a short random input, once per model and `_Setting`.

    Two branch passes, each of two prefixes with two suffixes that begin alike, and between them a
    read of two tokens. The model must be in evaluation mode. Raises ValueError naming a model that
    differs by more than 1e-3 nats per token (float32, float64) or 0.25 (shorter formats).
    """
    setting = _setting(model)
    if setting in _checked.get(model, ()):
        return
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.randint(vocabulary, (9,), generator=torch.Generator().manual_seed(0)).tolist()
    prompt, trajectory, (shared, token, last) = ids[:1], ids[1:6], ids[6:]
    branches = (shared, token, last), (shared, (token + 1) % vocabulary, last)
    text = {
        "prompt": prompt,
        "trajectory": trajectory,
        "suffixes": [Suffix(branch, start=1, answer="") for branch in branches],
        "positions": [0, 1, 4, 5],
    }
    try:
        packed = _packed(model, **text, rows_per_pass=8).own  # 2 of the trunk and 2 * 3 nodes
        plain = _plain_nll(model, **text)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as reason:
        raise ValueError(
            f"{type(model).__name__} cannot be probed in packed passes "
            f"({type(reason).__name__}: {reason}); take a decoder with a key-value cache and 4-D "
            "attention masks, such as Llama, Qwen or GPT-2"
        ) from reason
    if not np.isfinite(plain).all():
        raise ValueError(
            f"{type(model).__name__} gives log-probabilities that are not finite, one prefix at a"
            f" time too, in {setting.dtype}: check its weights for NaN, or load it in float32"
        )
    error = float(np.abs(packed - plain).max())
    tolerance = 1e-3 if setting.dtype in (torch.float32, torch.float64) else 0.25
    if not error <= tolerance:
        raise ValueError(
            f"{type(model).__name__} gives other values in packed passes than one prefix at a time"
            f" (by {error:.2g} nats): its attention ignores 4-D masks or position ids; take a"
            " decoder such as Llama, Qwen or GPT-2"
        )
    _checked.setdefault(model, set()).add(setting)


def _plain_nll(
    model: torch.nn.Module,
    *,
    prompt: Sequence[int],
    trajectory: Sequence[int],
    suffixes: Sequence[Suffix],
    positions: Sequence[int],
) -> np.ndarray:
    """`naive_nll` of suffixes of one length and start after several prefixes: (suffixes, prefixes).

    All texts are rows of one batch, filled up on the right, which no earlier token sees: a large
    model's weights are then read once.
    """
    texts = [[*prompt, *trajectory[:i], *s.ids] for s in suffixes for i in positions]
    width, count = max(map(len, texts)), len(suffixes[0].ids) - suffixes[0].start
    filled = [text + text[-1:] * (width - len(text)) for text in texts]
    device = next(model.parameters()).device
    logits = model(input_ids=torch.tensor(filled, device=device), use_cache=False).logits
    nll = [
        torch.nn.functional.cross_entropy(
            _widened(row[len(text) - count - 1 : len(text) - 1]),
            torch.tensor(text[-count:], device=device),
        )
        for row, text in zip(logits, texts, strict=True)
    ]
    return torch.stack(nll).double().cpu().numpy().reshape(len(suffixes), -1)
