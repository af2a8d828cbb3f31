"""What all checkers share: how they say what they found."""

from __future__ import annotations


def say(message: str, result: bool | None = None) -> bool | None:
    """Print a checker's message and pass its verdict on."""
    print(message)
    return result
