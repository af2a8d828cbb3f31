"""Checks of what a caller hands in: the error names the argument, its value and what to give."""

from __future__ import annotations

import reprlib
from numbers import Integral
from pathlib import Path


def texts(**named: object) -> None:
    """Raise TypeError at the first value that is no text."""
    for name, value in named.items():
        if not isinstance(value, str):
            raise TypeError(f"{_told(name, value)}: give it as a string")


def place(wanted: str = "give a folder or a hub name", **named: object) -> str:
    """The one value, a folder or a name, as text. Raises TypeError for what is neither text nor a
    path.
    """
    ((name, value),) = named.items()
    if not isinstance(value, str | Path):
        raise TypeError(f"{_told(name, value)}: {wanted}")
    return str(value)


def path(wanted: str = "give a folder", **named: object) -> Path:
    """The one value, a file or a folder, as a path, with ~ as the home folder. Raises TypeError for
    what is neither text nor a path, ValueError for an empty text.
    """
    found = place(wanted, **named)
    if not found:
        raise ValueError(f"{next(iter(named))}='' names no place: {wanted}")
    return Path(found).expanduser()


def whole(**named: object) -> None:
    """Raise TypeError at the first value that is no whole number."""
    for name, value in named.items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{_told(name, value)}: give a whole number")


def _told(name: str, value: object) -> str:
    return f"{name} is {reprlib.repr(value)}, of type {type(value).__name__}"
