"""What a model's configuration says about the ways of reading it: its context, its windows, its
kinds of layers, and what changes with a text's length.
"""

from __future__ import annotations

import torch

from tml_lib.lm.context import check_context
from tml_lib.lm.exactness import longrope_limit


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
    step = "shorten the trajectory or take a model with a longer context"
    check_context(model, tokens, "prompt, trajectory and answer take", step)


def partial_attention(model: torch.nn.Module, tokens: int) -> str | None:
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
    if reason := partial_attention(model, tokens):
        raise ValueError(
            f"{type(model).__name__} does not suit: {reason}; shorten the trajectory or take a"
            " model with full attention"
        )


def in_parts(model: torch.nn.Module, tokens: int) -> str | None:
    """Why a text of that length gives other values where it is read in parts, or None."""
    config = model.config.get_text_config()
    limit = longrope_limit(config)
    if limit and tokens > limit:
        return (
            f"the angles of its rotary positions change for texts of more than {limit} tokens"
            f" (longrope), and the text has {tokens}"
        )
    blocks = getattr(config, "index_block_size", None) or 1
    for name, size in (("index_topk", 1), ("index_topk_blocks", blocks), ("indexer_budget", 1)):
        limit = (getattr(config, name, None) or tokens) * size
        if tokens > limit:
            return (
                f"it attends to the {limit} tokens that score best ({name}), the text has {tokens},"
                " and ties between scores fall differently where it is read in parts"
            )
    return None


def counted_slots(model: torch.nn.Module, columns: int) -> str | None:
    """Why a packed pass over that many columns has other windows than a text, or None."""
    config = model.config.get_text_config()
    if "local" in getattr(config, "attention_layers", ()) and columns > config.window_size:
        return f"its local layers see {config.window_size} slots, and a packed pass has {columns}"
    return None
