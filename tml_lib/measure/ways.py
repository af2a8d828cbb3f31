"""How L̂ is read off a model: which of three exact ways, and the checks that it is exact.

**packed** passes (`packed`) are the fastest, **forked** states (`forked`) take what packed passes
cannot, the **naive** loop (`naive`) takes every causal language model. Packed passes attend by
shared prefix (`shared_prefix`) where that fits. The fastest exact way is taken. That it is exact is
checked on a short random text, once per model and `Setting`, and on the real text, once per power
of two of its length, where one value is compared with the naive loop's.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch

from tml_lib.lm.answers import Suffix
from tml_lib.lm.exactness import (
    UNSUITED,
    NotSuited,
    Setting,
    SlowerWay,
    check_ids,
    near,
    setting,
    silenced,
)
from tml_lib.lm.pretrained import not_finite
from tml_lib.measure import limits
from tml_lib.measure.forked import Reading, forked_nll
from tml_lib.measure.naive import Request, naive_loop, naive_nll, plain_nll
from tml_lib.measure.packed import packed_nll, widest_pass

_PASS = 20  # what a pass costs beside its tokens, in tokens: SmolLM2-135M on one CPU core


@dataclass(frozen=True)
class _Way:
    """One way of reading: its name, what it does in words, and the function."""

    name: str
    words: str
    read: Callable[[torch.nn.Module, Request], np.ndarray]  # with nothing checked


# from the fastest to the slowest; each is tried after the one before
_SHARED = _Way("packed", "in packed passes by shared prefix", partial(packed_nll, shared=True))
_PACKED = _Way("packed", "in packed passes", packed_nll)
_FORKED = _Way("forked", "from forked states", forked_nll)
_PLACED = _Way(
    "forked",
    "from forked states, at given positions",
    partial(forked_nll, reading=Reading(placed=True)),
)
_SINGLY = _Way(
    "forked",
    "from forked states, token by token",
    partial(forked_nll, reading=Reading(singly=True)),
)
_NAIVE = _Way("naive", "in one full pass per prefix and answer", naive_loop)
_WAYS = (_SHARED, _PACKED, _FORKED, _PLACED, _SINGLY, _NAIVE)
NAMES = ("packed", "forked", "naive")


# --- checks, and what is remembered of them -------------------------------------------------------


def _obstacle(way: _Way, model: torch.nn.Module, request: Request) -> str | None:
    """Why a model's configuration rules a way out for a text, or None."""
    if way is _NAIVE:
        return None
    if reason := limits.in_parts(model, request.tokens):
        return reason
    if way.name != "packed":
        return None
    slots = limits.counted_slots(model, widest_pass(request)[0])
    return slots or limits.partial_attention(model, request.tokens)


@dataclass
class _Known:
    """What is known of one model: None where a way was found exact, else why it is not."""

    plain: dict[Setting, np.ndarray] = field(default_factory=dict)  # `_check_text`, naively
    short: dict[tuple, str | None] = field(default_factory=dict)  # (setting, way)
    real: dict[tuple, str | None] = field(default_factory=dict)  # (setting, way, length classes)
    announced: set[_Way] = field(default_factory=set)


_known: weakref.WeakKeyDictionary[torch.nn.Module, _Known] = weakref.WeakKeyDictionary()


def _check_text(model: torch.nn.Module) -> Request:
    """A short random text: two branch passes, each of two prefixes with two suffixes that begin
    alike, and between them a read of two tokens.
    """
    *ids, other = check_ids(model, 10)
    prompt, trajectory, (shared, token, last) = ids[:1], ids[1:6], ids[6:]
    branches = (shared, token, last), (shared, other if other != token else last, last)
    return Request(
        prompt,
        trajectory,
        [Suffix(branch, start=1, answer="") for branch in branches],
        np.array([0, 1, 4, 5]),
        tokens_per_pass=8,  # 2 of the trunk and 2 * 3 nodes
    )


def _plain_values(model: torch.nn.Module, known: _Known, now: Setting) -> np.ndarray:
    """The naive values of `_check_text`; ValueError for a model that gives none."""
    if now in known.plain:
        return known.plain[now]
    name, request = type(model).__name__, _check_text(model)
    shortest = request.prompt, request.trajectory, request.suffixes[0], int(request.positions[0])
    try:
        most = near(model)
        plain, alone = plain_nll(model, request), naive_nll(model, *shortest)
        if abs(plain[0, 0] - alone) > most:  # the text's length counts, filled up or not
            plain = naive_loop(model, request)
    except NotSuited:
        raise
    except UNSUITED as reason:
        raise ValueError(
            f"{name} cannot be probed ({type(reason).__name__}: {reason}): take a causal language"
            " model that gives logits for token ids alone, such as Llama, Qwen or GPT-2"
        ) from reason
    if not np.isfinite(plain).all():
        reason = not_finite(model) or f"it overflows in {now.dtype}: load it in float32"
        raise ValueError(
            f"{name} gives log-probabilities that are not finite, one prefix at a time too:"
            f" {reason}"
        )
    return known.plain.setdefault(now, plain)


def _short_check(way: _Way, model: torch.nn.Module, known: _Known, now: Setting) -> str | None:
    """Why a way is not exact on a short random text, or None; once per model, way and setting."""
    plain = _plain_values(model, known, now)
    if way is _NAIVE:
        return None
    if (now, way) in known.short:
        return known.short[now, way]
    try:
        with silenced():
            found = way.read(model, _check_text(model))
    except UNSUITED as error:
        reason = _fails(way, error)
    else:
        error = float(np.abs(found - plain).max())
        right = error <= near(model) and not _drifts(way, model, found, plain)
        reason = None if right else _differs(way, error)
    known.short[now, way] = reason
    return reason


def _drifts(way: _Way, model: torch.nn.Module, found: np.ndarray, plain: np.ndarray) -> bool:
    """Whether forked states in half precision err much more than token by token does: a state that
    is not taken up (Mamba) may be hidden in such a wide tolerance.
    """
    if way not in (_FORKED, _PLACED) or setting(model).widest < 0.1:
        return False
    try:
        with silenced():
            single = _SINGLY.read(model, _check_text(model))
    except UNSUITED:
        return False
    off, least = (float(np.sqrt(((part - plain) ** 2).mean())) for part in (found, single))
    return off > max(2.5 * least, near(model) / 16)


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
    now: Setting,
    request: Request,
    announce: Callable[[], None],
) -> tuple[np.ndarray | None, str | None]:
    """(values, None), or (None, why they are not exact): some values are compared with the naive
    loop where texts of that length were not read before.

    They are those of the longest suffix: of a packed read at the positions most at risk, the first
    and the last of the pass that sees the most tokens; of forked states at the first position, the
    middle one and the last. A slow read is tried there first. The naive loop is compared with
    itself.
    `announce` is called before the whole is read.
    """
    packed = way.name == "packed"
    columns, *ends = widest_pass(request) if packed else (request.tokens,)
    key = (now, way, (request.tokens - 1).bit_length(), (columns - 1).bit_length())
    if known.real.get(key) is not None:
        return None, known.real[key]
    if key in known.real:
        announce()
        return way.read(model, request), None
    n, found = len(request.positions), None
    places = sorted({*ends} or ({n - 1} if way is _NAIVE else {0, n // 2, n - 1}))
    k = max(range(len(request.suffixes)), key=lambda k: len(request.suffixes[k].ids))
    text = request.prompt, request.trajectory, request.suffixes[k]
    naive = [naive_nll(model, *text, int(request.positions[i]), few_logits=True) for i in places]
    few = replace(request, positions=request.positions[places], progress=False)
    for part in (request,) if packed else (few, request):
        if part is request:
            announce()
        try:
            found = way.read(model, part)
        except torch.OutOfMemoryError:
            raise
        except UNSUITED as error:
            known.real[key] = _fails(way, error)
            return None, known.real[key]
        values = found[k, places if part is request else slice(None)]
        if not np.allclose(values, naive, rtol=0, atol=near(model), equal_nan=True):
            known.real[key] = _differs(way, float(np.abs(values - naive).max()))
            return None, known.real[key]
    known.real[key] = None
    return found, None


# --- the choice -----------------------------------------------------------------------------------


def read(model: torch.nn.Module, request: Request, way: str = "") -> np.ndarray:
    """The values of a request, in the fastest way that is exact for the model, or in one by name.

    The model must be in evaluation mode. Warns with `SlowerWay`, once per model and way, where
    packed passes do not suit. Raises ValueError for a model without values that are finite and the
    same at every call, for one that is not causal, and for a way by name that is not exact.
    """
    if way and way not in NAMES:
        raise ValueError(f"way={way!r} is unknown: take one of {', '.join(NAMES)}, or '' to choose")
    known, now = _known.setdefault(model, _Known()), setting(model)
    reasons = []
    for one in _WAYS:
        if way and one.name != way:
            continue
        values = None
        reason = _obstacle(one, model, request) or _short_check(one, model, known, now)
        if reason is None:
            announce = partial(_announce, one, model, known, request=request, reasons=reasons)
            values, reason = _read_checked(
                one, model, known, now=now, request=request, announce=_nothing if way else announce
            )
        if values is not None:
            return values
        if one is not _SHARED:  # packed passes with the model's own attention are near as fast
            reasons.append(reason)
    name = type(model).__name__
    if way:
        raise ValueError(
            f"{name} cannot be probed with way={way!r}: {_told(reasons)}; leave `way` out, and an"
            " exact way is chosen"
        )
    raise ValueError(
        f"{name} cannot be probed: {reasons[-1]}, so there is no value to measure; take a model"
        " that draws nothing at random"
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
    if way.name == "packed" or way in known.announced:
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
    if way.name == "packed":
        return forked + _PASS * np.ceil(forked / request.tokens_per_pass)
    passes = forked if way is _SINGLY else positions * (1 + len(request.suffixes))
    return forked + _PASS * passes
