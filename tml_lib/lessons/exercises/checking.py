"""What all checkers share: how they say what they found."""

from __future__ import annotations

import numpy as np


def say(message: str, result: bool | None = None) -> bool | None:
    """Print a checker's message and pass its verdict on."""
    print(message)
    return result


def known_error(hints: dict[str, np.ndarray], got: np.ndarray) -> str | None:
    """The first hint whose wrong result a learner's function gave; None where it gave none."""
    for text, table in hints.items():
        if got.shape == np.shape(table) and np.allclose(got, table):
            return text
    return None
