"""L̂ after every prefix of a trajectory: the pseudo-gradient curve of RaML §4.1, Algorithm 3.

The paper runs one forward pass per prefix. Here there are three ways, from the fastest to the
slowest, and `ways` takes the fastest that is exact for a model: packed passes (`packed`), forked
states (`forked`) and the paper's own loop (`naive`).

Deviation from the paper: none in what is computed. Tests check that every way equals the naive loop
up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
import torch

from tml_lib import checks
from tml_lib.data.gsm import first_mention
from tml_lib.lm.answers import ANSWER_TEMPLATE, Suffix, encode
from tml_lib.lm.exactness import SlowerWay, evaluating
from tml_lib.lm.models import LanguageModel
from tml_lib.lm.placed import device_of
from tml_lib.measure import ways
from tml_lib.measure.limits import check_length
from tml_lib.measure.naive import Request, naive_nll
from tml_lib.records import ProbeCurve
from tml_lib.runtime import OTHER_TOKENS_PER_PASS, TOKENS_PER_PASS

__all__ = ["SlowerWay", "naive_nll", "prefix_nll", "probe"]


@overload
def probe(
    lm: LanguageModel, prompt: str, trajectory: str, answers: str, **settings
) -> ProbeCurve: ...


@overload
def probe(
    lm: LanguageModel, prompt: str, trajectory: str, answers: Sequence[str], **settings
) -> list[ProbeCurve]: ...


def probe(
    lm: LanguageModel,
    prompt: str,
    trajectory: str,
    answers: str | Sequence[str],
    *,
    stride: int = 1,
    also: Sequence[int] = (),
    positions: Sequence[int] | None = None,
    template: str = ANSWER_TEMPLATE,
    progress: bool = False,
    way: str = "",
) -> ProbeCurve | list[ProbeCurve]:
    """L̂_i = -1/|a| Σ_j log p_θ(a^j | I, q, t_{≤i}, template, a^{<j}) for i = 0..|t| (RaML Alg. 3),
    in nats per token.

    I: instruction and q: question, together the prompt; t: trajectory of |t| tokens; a: answer of
    |a| tokens.
    answers: one candidate, for which a curve comes back, or several, for which a list does.
    stride: probe every stride-th prefix. The first, the last and the one before the answer is
        first stated are always probed.
    positions: these instead, in any order; repeated ones count once.
    also: further prefixes, beside the stride's or `positions`.
    template: the text between trajectory and answer.
    progress: show a bar.
    way: 'packed', 'forked' or 'naive' insists on one. By default the fastest exact way is taken,
        and a `SlowerWay` warning names it where that is not 'packed'.

    The model is read where it lies and in its own dtype: load it in another where that is wanted.
    Raises TypeError for answers that are no strings and positions that are no whole numbers;
    ValueError for an unsound stride or position, a seam that is no token boundary, an empty answer,
    a context that is too long, or a way by name that does not suit the model.
    """
    candidates = _candidates(answers)
    encoded = encode(lm.tokenizer, prompt, trajectory, candidates, template)
    offsets = [first_mention(trajectory, answer) for answer in candidates]
    # the last prefix before each answer's first statement
    stated_at = [None if at is None else encoded.tokens_before(at) for at in offsets]
    chosen = _positions(len(encoded.trajectory), stride, also, positions, stated_at)
    answer_nll = prefix_nll(
        lm.model,
        encoded.prompt,
        encoded.trajectory,
        encoded.suffixes,
        chosen,
        progress=progress,
        way=way,
    )
    curves = [
        ProbeCurve(
            positions=chosen,
            answer_nll=answer_nll[k],
            length=len(encoded.trajectory),
            answer=answer,
            tokens=encoded.tokens,
            stated_at=stated_at[k],
        )
        for k, answer in enumerate(candidates)
    ]
    return curves[0] if isinstance(answers, str) else curves


def _candidates(answers: str | Sequence[str]) -> list[str]:
    """The answers as a list; TypeError where one is no string, ValueError for an empty list."""
    candidates = [answers] if isinstance(answers, str) else answers
    if not isinstance(candidates, Sequence) or not all(isinstance(a, str) for a in candidates):
        raise TypeError(
            f"answers={answers!r} is no text: give one answer as a string, such as '5', or a list"
            " of strings"
        )
    if not candidates:
        raise ValueError("answers=[] leaves nothing to probe: give at least one candidate answer")
    return list(candidates)


def _positions(
    length: int,
    stride: int,
    also: Sequence[int],
    positions: Sequence[int] | None,
    stated_at: list[int | None],
) -> np.ndarray:
    """The (n,) increasing prefixes that `probe` reads, in 0..length; ValueError as there."""
    checks.whole(stride=stride)
    if stride < 1:
        raise ValueError(f"stride={stride} must be at least 1: 1 probes after every token")
    if positions is None:
        stated = [i for i in stated_at if i is not None]
        positions = [*range(0, length + 1, stride), length, *stated]
    chosen = np.unique(np.concatenate([_integers(positions), _integers(also)]))
    outside = chosen[(chosen < 0) | (chosen > length)]
    if len(outside) or not len(chosen):
        raise ValueError(
            f"positions={_shown(outside)} must be some of 0..{length}, the trajectory's length in"
            " tokens"
        )
    return chosen


def _integers(positions: Sequence[int]) -> np.ndarray:
    """Positions as an array; TypeError where they are no whole numbers."""
    found = np.asarray(positions)
    if found.ndim != 1 or (found.size and not np.issubdtype(found.dtype, np.integer)):
        raise TypeError(f"positions={positions!r}: give a list of whole numbers, such as [0, 5]")
    return found.astype(int)


def _shown(positions: Sequence[int], most: int = 5) -> str:
    """Positions for an error's text: all of a few, else the first `most` and how many there are."""
    if len(positions) <= most:
        return str(np.asarray(positions).tolist())
    first = ", ".join(str(int(p)) for p in positions[:most])
    return f"[{first}, …] ({len(positions)} positions)"


@torch.inference_mode()
def prefix_nll(
    model: torch.nn.Module,
    prompt: Sequence[int],
    trajectory: Sequence[int],
    suffixes: Sequence[Suffix],
    positions: Sequence[int],
    *,
    tokens_per_pass: int | None = None,
    progress: bool = False,
    way: str = "",
) -> np.ndarray:
    """Mean negative log-likelihood of each suffix's answer after chosen prefixes, on token ids.

    positions: (n,) increasing, in 0..|t|.
    tokens_per_pass: most tokens of a packed pass, trunk and branches together; by default what
        suits the model's device.
    way: as in `probe`.

    Returns (len(suffixes), n) float64, in nats per token. The model, its dtype and its modules'
    modes stay as they are. Raises TypeError and ValueError as `probe` does.
    """
    if not len(suffixes):
        raise ValueError("suffixes=[] leaves nothing to score: give at least one suffix")
    if not len(prompt):
        raise ValueError(
            "prompt=[] leaves the first answer token without a context: give at least one prompt"
            " token"
        )
    chosen = _integers(positions)
    length = len(trajectory)
    if not len(chosen) or chosen[0] < 0 or chosen[-1] > length or (np.diff(chosen) <= 0).any():
        raise ValueError(
            f"positions={_shown(positions)} must increase within 0..{length}, the trajectory's"
            " length"
        )
    check_length(model, len(prompt) + length + max(len(s.ids) for s in suffixes))
    device = device_of(model).type
    request = Request(
        prompt,
        trajectory,
        suffixes,
        chosen,
        tokens_per_pass=tokens_per_pass or TOKENS_PER_PASS.get(device, OTHER_TOKENS_PER_PASS),
        progress=progress,
    )
    with evaluating(model):
        return ways.read(model, request, way)
