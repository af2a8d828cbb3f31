"""L̂ from forked states: for models whose memory cannot hold many branches side by side.

The trajectory is read once. Before each few probed prefixes the model's state (its key-value cache,
or the state of its recurrent layers) is copied, and what is left of each prefix is read from a copy
of its own, with a suffix behind it. So the model's own code decides what each token sees: windows,
chunks, ALiBi and recurrences are exact.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch

from tml_lib.lm.blocks import widened
from tml_lib.lm.exactness import STATES, keeps_rows
from tml_lib.lm.placed import device_of
from tml_lib.measure.naive import Request

_STRETCH = 4  # tokens between the first and the last prefix that are read from one state


@dataclass(frozen=True)
class Reading:
    """How a text is read on from a state."""

    singly: bool = False  # one token per pass: some recurrent layers (Mamba, Jamba) need that
    placed: bool = False  # with position ids: Bamba, without them, begins at 0 again


_WHOLE = Reading()


def forked_nll(model: torch.nn.Module, request: Request, reading: Reading = _WHOLE) -> np.ndarray:
    """`prefix_nll` of a model in evaluation mode, from forked states and with nothing checked.

    Raises ValueError for a model that returns no state.
    """
    device = device_of(model)
    text = torch.tensor([*request.prompt, *request.trajectory], device=device)
    branches = [torch.tensor(suffix.ids, device=device) for suffix in request.suffixes]
    nll = request.unread
    state, past = {}, 0
    for i, position in enumerate(request.bar()):
        end = len(request.prompt) + int(position)
        if past == 0 or reading.singly or end - past > _STRETCH:
            # all but the prefix's last token, whose logits predict the suffix
            if end - 1 > past:
                _, state = _read(model, text[past : end - 1], state, past=past, reading=reading)
            past = end - 1
        for k, (suffix, ids) in enumerate(zip(request.suffixes, branches, strict=True)):
            count = len(ids) - suffix.start
            piece = torch.cat([text[past:end], ids[:-1]])  # the last is predicted, never read
            copied = copy.deepcopy(state)
            logits, _ = _read(model, piece, copied, past=past, reading=reading, keep=count)
            losses = torch.nn.functional.cross_entropy(
                widened(logits), ids[-count:], reduction="none"
            )
            nll[k, i] = losses.double().mean()
    return nll


def _read(
    model: torch.nn.Module,
    ids: torch.Tensor,
    state: dict[str, object],
    *,
    past: int,
    reading: Reading,
    keep: int = 1,
) -> tuple[torch.Tensor, dict[str, object]]:
    """(logits (keep, vocabulary) of the last tokens, state afterwards) of N tokens after a state
    that has read `past`; {}: none yet.
    """
    found = []
    for piece in ids.split(1 if reading.singly and state else len(ids)):
        places = torch.arange(past, past + len(piece), device=ids.device)
        some = {"position_ids": places[None]} if reading.placed else {}
        some |= {"logits_to_keep": keep} if keeps_rows(model) else {}
        output = model(input_ids=piece[None], use_cache=True, **some, **state)
        past += len(piece)
        found.append(output.logits[0, -keep:])
        state = {n: v for n in STATES if (v := getattr(output, n, None)) is not None}
        if not state:
            raise ValueError("the model returns neither a cache nor a recurrent state")
    return torch.cat(found)[-keep:], state
