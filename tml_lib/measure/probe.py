"""L̂ after every prefix of a trajectory: the pseudo-gradient curve of RaML §4.1, Algorithm 3.

The paper runs one forward pass per prefix. Here there are three ways, from the fastest to the
slowest, and `ways` takes the fastest that is exact for a model: packed passes (`packed`), forked
states (`forked`) and the paper's own loop (`naive`).

Deviation from the paper: none in what is computed (equal to the naive loop to rounding, which tests
hold).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tml_lib import checks
from tml_lib.data.gsm import first_mention
from tml_lib.lm.answers import ANSWER_TEMPLATE, Suffix, encode
from tml_lib.lm.exactness import SlowerWay, evaluating
from tml_lib.lm.models import LanguageModel
from tml_lib.lm.placed import device_of
from tml_lib.measure import ways
from tml_lib.measure.limits import check_length, check_model
from tml_lib.measure.naive import PrefixNLL, Request, naive_nll
from tml_lib.records import ProbeCurve
from tml_lib.runtime import ROWS_PER_PASS

__all__ = ["PrefixNLL", "SlowerWay", "check_model", "naive_nll", "prefix_nll", "probe"]


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
    way: str = "",
) -> ProbeCurve | list[ProbeCurve]:
    """L̂_i = -1/|a| Σ_j log p_θ(a^j | I, q, t_{≤i}, template, a^{<j}) for i = 0..|t| (RaML Alg. 3),
    in nats per token.

    answers: one candidate, or several (a list of curves comes back). stride: probe every stride-th
    prefix; the first, the last and the one before the answer is first stated are always probed.
    positions: exactly these instead.
    whole_suffix: also the mean over template and answer tokens (about a fifth slower). progress:
        show a bar.
    way: 'packed', 'forked' or 'naive' insists on one; by default the fastest way that is exact is
        taken, and a `SlowerWay` warning names it where that is not 'packed'.
    The model is read where it lies and in its own dtype: load it in another where that is wanted.
    Raises ValueError for an unsound stride or position, a seam that is no token boundary, an empty
    answer, a context that is too long, or a way by name that does not suit the model.
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
        way=way,
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
    checks.whole(stride=stride)
    if stride < 1:
        raise ValueError(f"stride={stride} must be at least 1: 1 probes after every token")
    if positions is None:
        always = {length, *(s for s in stated if s is not None)}
        return np.array(sorted({*range(0, length + 1, stride), *always}))
    chosen = np.unique(_whole(positions))
    if not len(chosen) or chosen[0] < 0 or chosen[-1] > length:
        raise ValueError(
            f"positions={_shown(positions)} must be some of 0..{length}, the trajectory's length in"
            " tokens"
        )
    return chosen


def _whole(positions: Sequence[int]) -> np.ndarray:
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
    whole_suffix: bool = False,
    rows_per_pass: int | None = None,
    progress: bool = False,
    way: str = "",
) -> PrefixNLL:
    """Mean negative log-likelihood of each suffix after chosen prefixes, on token ids.

    positions: (n,) increasing, in 0..|t|. rows_per_pass: most tokens of a packed pass, by default
    what suits the model's device. way: as in `probe`.
    Returns `PrefixNLL`, each part (len(suffixes), n) in nats per token. The model, its dtype and
    its modules' modes stay as they are. Raises ValueError as `probe` does.
    """
    if not len(prompt):
        raise ValueError(
            "prompt=[] leaves the first answer token without a context: give at least one prompt"
            " token"
        )
    chosen, length = _whole(positions), len(trajectory)
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
        whole_suffix=whole_suffix,
        rows_per_pass=rows_per_pass or ROWS_PER_PASS.get(device, 1024),
        progress=progress,
    )
    with evaluating(model):
        return ways.read(model, request, way)
