"""L̂ one prefix at a time, as RaML's Algorithm 3 is written: the reference, and the slowest way.

A full forward pass per prefix and suffix, with no cache: any causal language model can be read so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from tml_lib.lm.answers import Suffix
from tml_lib.lm.blocks import widened
from tml_lib.lm.exactness import keeps_rows
from tml_lib.lm.placed import device_of
from tml_lib.runtime import TOKENS_PER_PASS


@dataclass(frozen=True)
class Request:
    """What is read off a model in any way: token ids, and the prefixes that are probed."""

    prompt: Sequence[int]
    trajectory: Sequence[int]
    suffixes: Sequence[Suffix]
    positions: np.ndarray  # (n,) increasing, in 0..|t|
    tokens_per_pass: int = TOKENS_PER_PASS["cpu"]  # most of a packed pass, trunk and branches
    progress: bool = False

    @property
    def tokens(self) -> int:
        """Length of the longest text, in tokens."""
        longest = max(len(suffix.ids) for suffix in self.suffixes)
        return len(self.prompt) + int(self.positions[-1]) + longest

    @property
    def unread(self) -> np.ndarray:
        """(suffixes, n) NaN, to be filled."""
        return np.full((len(self.suffixes), len(self.positions)), np.nan)

    def bar(self) -> tqdm:
        """The positions one after another, with a progress bar where it is wanted."""
        quiet = not self.progress
        return tqdm(self.positions, desc="L̂", unit="prefix", disable=quiet, leave=False)


@torch.inference_mode()
def naive_nll(
    model: torch.nn.Module,
    prompt: Sequence[int],
    trajectory: Sequence[int],
    suffix: Suffix,
    position: int,
    *,
    few_logits: bool = False,
) -> float:
    """One full forward pass over I ⊕ q ⊕ t_{≤position} ⊕ suffix, as RaML's Algorithm 3 is written:
    nats per token.

    few_logits: apply the language-model head to the rows that are needed only. The reference for
    tests and benchmarks.
    """
    device = device_of(model)
    ids = torch.tensor([*prompt, *trajectory[:position], *suffix.ids], device=device)
    count = len(suffix.ids) - suffix.start
    some = {"logits_to_keep": count + 1} if few_logits and keeps_rows(model) else {}
    logits = model(input_ids=ids[None], use_cache=False, **some).logits[0]
    return float(torch.nn.functional.cross_entropy(widened(logits[-count - 1 : -1]), ids[-count:]))


def plain_nll(model: torch.nn.Module, request: Request) -> np.ndarray:
    """`naive_nll` of suffixes of one length and start after several prefixes: (suffixes, prefixes).

    All texts are rows of one batch, filled up on the right, which no earlier token sees: a large
    model's weights are then read once.
    """
    suffixes, positions = request.suffixes, request.positions
    texts = [
        [*request.prompt, *request.trajectory[:i], *s.ids] for s in suffixes for i in positions
    ]
    width, count = max(map(len, texts)), len(suffixes[0].ids) - suffixes[0].start
    filled = [text + text[-1:] * (width - len(text)) for text in texts]
    device = device_of(model)
    logits = model(input_ids=torch.tensor(filled, device=device), use_cache=False).logits
    nll = [
        torch.nn.functional.cross_entropy(
            widened(row[len(text) - count - 1 : len(text) - 1]),
            torch.tensor(text[-count:], device=device),
        )
        for row, text in zip(logits, texts, strict=True)
    ]
    return torch.stack(nll).double().cpu().numpy().reshape(len(suffixes), -1)


def naive_loop(model: torch.nn.Module, request: Request) -> np.ndarray:
    """`prefix_nll` of a model in evaluation mode, one text at a time and with nothing checked."""
    nll = request.unread
    for i, position in enumerate(request.bar()):
        for k, suffix in enumerate(request.suffixes):
            text = request.prompt, request.trajectory, suffix, int(position)
            nll[k, i] = naive_nll(model, *text, few_logits=True)
    return nll
