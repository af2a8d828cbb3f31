"""L̂ from forked states: for models whose memory cannot hold many branches side by side.

The trajectory is read once. At each probed prefix the model's state (its key-value cache, or the
state of its recurrent layers) is copied, and every suffix is read from a copy of its own. So the
model's own code decides what each token sees: windows, chunks, ALiBi and recurrences are exact.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch

from tml_lib.lm.exactness import STATES
from tml_lib.measure.naive import PrefixNLL, Request, widened


@dataclass(frozen=True)
class Reading:
    """How a text is read on from a state."""

    singly: bool = False  # one token per pass: some recurrent layers (Mamba, Jamba) need that
    placed: bool = False  # with position ids: Bamba, without them, begins at 0 again


def forked_nll(model: torch.nn.Module, request: Request, reading: Reading = Reading()) -> PrefixNLL:
    """`prefix_nll` of a model in evaluation mode, from forked states and with nothing checked.

    Raises ValueError for a model that returns no state.
    """
    device = next(model.parameters()).device
    text = torch.tensor([*request.prompt, *request.trajectory], device=device)
    branches = [torch.tensor(suffix.ids, device=device) for suffix in request.suffixes]
    own, whole = request.unread, request.unread
    state, past = {}, 0
    for i, position in enumerate(request.bar()):
        end = len(request.prompt) + int(position)
        logits, state = _read(model, text[past:end], state, past=past, reading=reading)
        past = end
        for k, (suffix, ids) in enumerate(zip(request.suffixes, branches, strict=True)):
            nll = _branch_nll(model, ids, state, first=logits[-1:], past=past, reading=reading)
            own[k, i] = nll[suffix.start :].mean()
            if request.whole_suffix:
                whole[k, i] = nll.mean()
    return PrefixNLL(own, whole)


def _branch_nll(
    model: torch.nn.Module,
    ids: torch.Tensor,
    state: dict[str, object],
    *,
    first: torch.Tensor,
    past: int,
    reading: Reading,
) -> torch.Tensor:
    """(S,) nats of a suffix's tokens after a state, which stays as it is, on the CPU.

    first: (1, vocabulary) logits of the suffix's first token.
    """
    logits = first
    if len(ids) > 1:  # the last token is predicted, never read
        rest, _ = _read(model, ids[:-1], copy.deepcopy(state), past=past, reading=reading)
        logits = torch.cat([first, rest])
    nll = torch.nn.functional.cross_entropy(widened(logits), ids, reduction="none")
    return nll.double().cpu()


def _read(
    model: torch.nn.Module,
    ids: torch.Tensor,
    state: dict[str, object],
    *,
    past: int,
    reading: Reading,
) -> tuple[torch.Tensor, dict[str, object]]:
    """(logits (N, vocabulary), state afterwards) of N tokens after a state that has read `past`;
    {}: none yet.
    """
    found = []
    for piece in ids.split(1 if reading.singly and state else len(ids)):
        places = torch.arange(past, past + len(piece), device=ids.device)
        where = {"position_ids": places[None]} if reading.placed else {}
        output = model(input_ids=piece[None], use_cache=True, **where, **state)
        past += len(piece)
        found.append(output.logits[0])
        state = {n: v for n in STATES if (v := getattr(output, n, None)) is not None}
        if not state:
            raise ValueError("the model returns neither a cache nor a recurrent state")
    return torch.cat(found), state
