"""How L̂ is read off a model: which of three exact ways, and the checks that it is exact.

**packed** passes (`packed`) are the fastest, **forked** states (`forked`) take what packed passes
cannot, the **naive** loop (`naive`) takes every causal language model. The fastest exact way is
taken. That it is exact is checked on a short random text, once per model and `_Setting`, and on the
real text, once per power of two of its length, where one value is compared with the naive loop's.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch

from tml_lib.lm.answers import Suffix
from tml_lib.lm.models import not_finite
from tml_lib.measure.forked import forked_nll
from tml_lib.measure.naive import PrefixNLL, Request, naive_loop, naive_nll, plain_nll
from tml_lib.measure.packed import packed_nll, widest_pass

# what transformers and torch raise when a model is read in a way that it was not written for
_UNSUITED = (TypeError, ValueError, RuntimeError, AttributeError, LookupError, AssertionError)
_PASS = 20  # what a pass costs beside its tokens, in tokens: SmolLM2-135M on one CPU core


class SlowerWay(UserWarning):
    """A model cannot be read in packed passes and is read in a slower way, which is as exact."""


@dataclass(frozen=True)
class _Way:
    """One way of reading: its name, what it does in words, and the function."""

    name: str
    words: str
    read: Callable[[torch.nn.Module, Request], PrefixNLL]  # with nothing checked


# from the fastest to the slowest; each is tried after the one before
_PACKED = _Way("packed", "in packed passes", packed_nll)
_FORKED = _Way("forked", "from forked states", forked_nll)
_SINGLY = _Way("forked", "from forked states, token by token", partial(forked_nll, singly=True))
_NAIVE = _Way("naive", "in one full pass per prefix and answer", naive_loop)
_WAYS = (_PACKED, _FORKED, _SINGLY, _NAIVE)
NAMES = ("packed", "forked", "naive")


# --- what a configuration says --------------------------------------------------------------------


def sliding_window(config) -> int | None:
    """The attention window of a model, in tokens, or None where every layer sees the
    whole context.
    """
    config = config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    unused = getattr(config, "use_sliding_window", True) is False
    return None if unused or (kinds is not None and "sliding_attention" not in kinds) else window


def check_length(model: torch.nn.Module, tokens: int) -> None:
    """Raise ValueError where a model's context does not hold that many tokens."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and tokens > limit:
        raise ValueError(
            f"prompt, trajectory and answer take {tokens} tokens, but {type(model).__name__}'s"
            f" context holds {limit}: shorten the trajectory or take a model with a longer context"
        )


def _partial_attention(model: torch.nn.Module, tokens: int) -> str | None:
    """Why not every token of a text attends to all before it, or None where each does."""
    config = model.config.get_text_config()
    known = {"full_attention", "sliding_attention"}
    if unknown := set(getattr(config, "layer_types", None) or ()) - known:
        return (
            f"it has layers of kind {sorted(unknown)}, and only attention over a cache of all keys"
            " can be branched"
        )
    window = sliding_window(config)
    if window is not None and tokens > window:
        return f"it attends within a sliding window of {window}, and the text has {tokens} tokens"
    return None


def check_model(model: torch.nn.Module, tokens: int) -> None:
    """Raise ValueError unless every token of a text of that length attends to all before it."""
    check_length(model, tokens)
    if reason := _partial_attention(model, tokens):
        raise ValueError(
            f"{type(model).__name__} does not suit: {reason}; shorten the trajectory or take a"
            " model with full attention"
        )


def _obstacle(way: _Way, model: torch.nn.Module, request: Request) -> str | None:
    """Why a model's configuration rules a way out for a text, or None."""
    config = model.config.get_text_config()
    if way is _NAIVE:
        return None
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if "longrope" in (rope.get("rope_type"), rope.get("type")):
        short = rope.get("original_max_position_embeddings")
        short = short or getattr(config, "original_max_position_embeddings", None)
        if short and request.tokens > short:
            return (
                f"the angles of its rotary positions change for texts of more than {short} tokens"
                f" (longrope), and the text has {request.tokens}"
            )
    if way is not _PACKED:
        return None
    if "local" in getattr(config, "attention_layers", ()):  # GPT-Neo: it counts slots of the cache
        columns, _ = widest_pass(request)
        if columns > config.window_size:
            return (
                f"its local layers see {config.window_size} slots, and a packed pass has {columns}"
            )
    return _partial_attention(model, request.tokens)


# --- checks, and what is remembered of them -------------------------------------------------------


@dataclass(frozen=True)
class _Setting:
    """What decides whether a model reads packed passes rightly, and may change while it lives."""

    dtype: torch.dtype
    attention: str | None  # the implementation that transformers runs
    adapter: tuple  # see `_adapter`

    @property
    def tolerance(self) -> float:
        """Largest difference from the naive loop, in nats per token."""
        return 1e-3 if self.dtype in (torch.float32, torch.float64) else 0.25


def _setting(model: torch.nn.Module) -> _Setting:
    """The model's dtype, attention implementation and adapter as they are now."""
    attention = getattr(model.config.get_text_config(), "_attn_implementation", None)
    return _Setting(next(model.parameters()).dtype, attention, _adapter(model))


def _adapter(model: torch.nn.Module) -> tuple:
    """What adapters a model carries and which of them work: equal for equal structures, not values.

    One entry for each parameter of LoRA or of a learnt prompt (name, shape), then one for each
    state that peft's layers are in (active adapters, switched off, merged into the weights), then
    whether `forward` is another model's, as peft lets it be to switch a learnt prompt off.
    """
    names = "lora_", "prompt_encoder"
    weights = [
        (name, *p.shape) for name, p in model.named_parameters() if any(n in name for n in names)
    ]
    layers = [m for m in model.modules() if getattr(m, "adapter_layer_names", None)]  # peft's
    states = {
        (tuple(m.active_adapters), m.disable_adapters, tuple(m.merged_adapters)) for m in layers
    }
    borrowed = getattr(model.forward, "__self__", model) is not model
    return (*weights, *sorted(states), borrowed)


@dataclass
class _Known:
    """What is known of one model: None where a way was found exact, else why it is not."""

    plain: dict[_Setting, np.ndarray] = field(default_factory=dict)  # `_check_text`, naively
    short: dict[tuple, str | None] = field(default_factory=dict)  # (setting, way)
    real: dict[tuple, str | None] = field(default_factory=dict)  # (setting, way, length classes)
    announced: set[_Way] = field(default_factory=set)


_known: weakref.WeakKeyDictionary[torch.nn.Module, _Known] = weakref.WeakKeyDictionary()


def _check_text(model: torch.nn.Module) -> Request:
    """A short random text: two branch passes, each of two prefixes with two suffixes that begin
    alike, and between them a read of two tokens.
    """
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.randint(vocabulary, (9,), generator=torch.Generator().manual_seed(0)).tolist()
    prompt, trajectory, (shared, token, last) = ids[:1], ids[1:6], ids[6:]
    branches = (shared, token, last), (shared, (token + 1) % vocabulary, last)
    return Request(
        prompt,
        trajectory,
        [Suffix(branch, start=1, answer="") for branch in branches],
        np.array([0, 1, 4, 5]),
        rows_per_pass=8,  # 2 of the trunk and 2 * 3 nodes
    )


def _plain_values(model: torch.nn.Module, known: _Known, setting: _Setting) -> np.ndarray:
    """The naive values of `_check_text`; ValueError for a model that gives none."""
    if setting in known.plain:
        return known.plain[setting]
    name = type(model).__name__
    try:
        plain = plain_nll(model, _check_text(model))
    except _UNSUITED as reason:
        raise ValueError(
            f"{name} cannot be probed ({type(reason).__name__}: {reason}): take a causal language"
            " model that gives logits for token ids alone, such as Llama, Qwen or GPT-2"
        ) from reason
    if not np.isfinite(plain).all():
        reason = not_finite(model) or f"it overflows in {setting.dtype}: load it in float32"
        raise ValueError(
            f"{name} gives log-probabilities that are not finite, one prefix at a time too:"
            f" {reason}"
        )
    return known.plain.setdefault(setting, plain)


@contextmanager
def _silenced() -> Iterator[None]:
    """Other libraries' warnings about an attempt whose result is compared are not shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _short_check(way: _Way, model: torch.nn.Module, known: _Known, setting: _Setting) -> str | None:
    """Why a way is not exact on a short random text, or None; once per model, way and setting."""
    plain = _plain_values(model, known, setting)
    if way is _NAIVE:
        return None
    if (setting, way) in known.short:
        return known.short[setting, way]
    try:
        with _silenced():
            found = way.read(model, _check_text(model)).own
    except _UNSUITED as error:
        reason = _fails(way, error)
    else:
        error = float(np.abs(found - plain).max())
        right = error <= setting.tolerance
        reason = None if right else _differs(way, error)
    known.short[setting, way] = reason
    return reason


def _fails(way: _Way, error: Exception) -> str:
    first = next(iter(str(error).splitlines()), "")
    return f"it cannot be read {way.words} ({type(error).__name__}: {first[:100]})"


def _differs(way: _Way, error: float) -> str:
    return f"it gives other values {way.words} than one prefix at a time (by {error:.2g} nats)"


def _read_checked(
    way: _Way,
    model: torch.nn.Module,
    known: _Known,
    *,
    setting: _Setting,
    request: Request,
    announce: Callable[[], None],
) -> tuple[PrefixNLL | None, str | None]:
    """(values, None), or (None, why they are not exact): one value is compared with the naive loop
    where texts of that length were not read before.

    The value is that of the longest suffix at the position most at risk: the last one of the pass
    that sees the most tokens. Forked states are first tried at two positions, since they are slow.
    `announce` is called before the whole is read.
    """
    columns, at = widest_pass(request) if way is _PACKED else (request.tokens, -1)
    key = (setting, way, (request.tokens - 1).bit_length(), (columns - 1).bit_length())
    if known.real.get(key) is not None:
        return None, known.real[key]
    if way is _NAIVE or key in known.real:
        announce()
        return way.read(model, request), None
    k = max(range(len(request.suffixes)), key=lambda k: len(request.suffixes[k].ids))
    text = request.prompt, request.trajectory, request.suffixes[k], int(request.positions[at])
    naive, found = naive_nll(model, *text, few_logits=True), None
    ends = replace(request, positions=np.unique(request.positions[[0, -1]]))
    for part in (request,) if way is _PACKED else (ends, request):
        if part is request:
            announce()
        try:
            found = way.read(model, part)
        except torch.OutOfMemoryError:
            raise
        except _UNSUITED as error:
            known.real[key] = _fails(way, error)
            return None, known.real[key]
        value = float(found.own[k, at])
        if not np.isclose(value, naive, rtol=0, atol=setting.tolerance, equal_nan=True):
            known.real[key] = _differs(way, abs(value - naive))
            return None, known.real[key]
    known.real[key] = None
    return found, None


# --- the choice -----------------------------------------------------------------------------------


def read(model: torch.nn.Module, request: Request, way: str = "") -> PrefixNLL:
    """The values of a request, in the fastest way that is exact for the model, or in one by name.

    The model must be in evaluation mode. Warns with `SlowerWay`, once per model and way, where
    packed passes do not suit. Raises ValueError for a model without finite values, and for a way by
    name that is not exact.
    """
    if way and way not in NAMES:
        raise ValueError(f"way={way!r} is unknown: take one of {', '.join(NAMES)}, or '' to choose")
    known, setting = _known.setdefault(model, _Known()), _setting(model)
    reasons = []
    for one in _WAYS:
        if way and one.name != way:
            continue
        values = None
        reason = _obstacle(one, model, request) or _short_check(one, model, known, setting)
        if reason is None:
            announce = partial(_announce, one, model, known, request=request, reasons=reasons)
            values, reason = _read_checked(
                one,
                model,
                known,
                setting=setting,
                request=request,
                announce=_nothing if way else announce,
            )
        if values is not None:
            return values
        reasons.append(reason)
    raise ValueError(
        f"{type(model).__name__} cannot be probed with way={way!r}: {_told(reasons)}; leave `way`"
        " out, and an exact way is chosen"
    )


def _nothing() -> None:
    """A way that was asked for by name is not announced."""


def _told(reasons: list[str]) -> str:
    """The first two reasons, which are of packed passes and forked states where none was named."""
    return "; ".join(dict.fromkeys(reasons[:2]))


def _announce(
    way: _Way, model: torch.nn.Module, known: _Known, *, request: Request, reasons: list[str]
) -> None:
    """Warn once per model and way that it is not the fastest one, why, and what it costs."""
    if way is _PACKED or way in known.announced:
        return
    known.announced.add(way)
    times = _cost(way, request) / _cost(_PACKED, request)
    warnings.warn(
        f"{type(model).__name__} is probed {way.words}, about {times:.1f} times slower than in"
        f" packed passes, because {_told(reasons)}. The values are exact.",
        SlowerWay,
        stacklevel=6,
    )


def _cost(way: _Way, request: Request) -> float:
    """About what a way costs: tokens that it reads, and `_PASS` for each pass."""
    positions, read = len(request.positions), int(request.positions[-1]) + len(request.prompt)
    suffixes = sum(len(suffix.ids) - 1 for suffix in request.suffixes)
    forked = read + positions * suffixes
    if way is _NAIVE:
        prefixes = int(request.positions.sum()) + positions * len(request.prompt)
        passes = positions * len(request.suffixes)
        return prefixes * len(request.suffixes) + positions * suffixes + _PASS * passes
    if way is _PACKED:
        return forked + _PASS * np.ceil(forked / request.rows_per_pass)
    passes = forked if way is _SINGLY else positions * (1 + len(request.suffixes))
    return forked + _PASS * passes
