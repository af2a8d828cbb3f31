"""How many tokens a model reads at once."""

from __future__ import annotations

import torch


def context_of(model: torch.nn.Module) -> int | None:
    """The most tokens that a model's context holds, or None where it has no limit."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    # XLNet says -1: as long as you like
    return limit if limit is not None and limit > 0 else None


def check_context(model: torch.nn.Module, tokens: int, what: str, step: str) -> None:
    """Raise ValueError where a model's context does not hold that many tokens.

    what: the text with its verb, as 'row 3 takes'. step: what to do about it.
    """
    limit = context_of(model)
    if limit is not None and tokens > limit:
        name = type(model).__name__
        raise ValueError(f"{what} {tokens} tokens, but {name}'s context holds {limit}: {step}")
