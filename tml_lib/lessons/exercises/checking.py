"""What all checkers share: how they say what they found, and what they say where the learner's
function stops or returns nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

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


def checker(check: Callable) -> Callable:
    """A checker that tells a learner in one line that the attempt stopped, or returned None.

    An error of the checker itself is raised. A checker may catch ValueError and RuntimeError of the
    attempt and explain them better.
    """

    @functools.wraps(check)
    def checked(attempt, *args, **kwargs) -> bool | None:
        stopped = []
        watched = _watched(attempt, stopped) if callable(attempt) else attempt
        try:
            return check(watched, *args, **kwargs)
        except Exception as error:
            if error not in stopped:
                raise
            return say(f"not yet: {_reason(error)}", False)

    return checked


class _ReturnedNothing(Exception):
    pass


def _watched(attempt: Callable, stopped: list[Exception]) -> Callable:
    """The attempt, with every error that leaves it kept in `stopped`."""

    def called(*args, **kwargs):
        try:
            result = attempt(*args, **kwargs)
            if result is None:
                raise _ReturnedNothing
        except Exception as error:
            stopped.append(error)
            raise
        return result

    return called


def _reason(error: Exception) -> str:
    if isinstance(error, _ReturnedNothing):
        return "your function returns None; does its last line begin with `return`?"
    name, steps = type(error).__name__, error.__traceback__
    while steps.tb_next:
        steps = steps.tb_next
    line = f"line {steps.tb_lineno} of {steps.tb_frame.f_code.co_name}"
    if isinstance(error, NameError):
        return f"your function stops with {name}: {error} ({line}); define it there, or import it"
    return f"your function stops with {name}: {error} ({line}); try it on a small example"
