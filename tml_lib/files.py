"""The one reader of files: the kit's own, and those that a reader of the kit hands to it.

A file that is there and cannot be read raises `Unreadable`, which names the file, the reason and
the next step; one that is not there raises FileNotFoundError. Nothing here waits: a named pipe, a
device or a directory is refused before it is opened, and so is what is larger than `MOST` bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path

MOST = 256 << 20  # bytes of a file of text; the kit's largest has a million
COMMITTED = "take the committed file back from git"
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
# type -> what it accepts; a whole number may stand for any other, a bool for nothing else
_ACCEPTED = {float: (int, float)}


class Unreadable(ValueError):
    """A file that is there but is damaged, too large, no plain file, or not this user's to read."""

    def __init__(self, path: Path, reason: str, step: str):
        super().__init__(f"{path} {reason}: {step}")


def text(path: Path, step: str) -> str:
    """What a file of UTF-8 text holds. step: what to do where it cannot be read."""
    check(path, step)
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            held = file.read(MOST + 1)
    except OSError as error:
        raise Unreadable(path, f"cannot be read ({error.strerror})", step) from error
    if len(held) > MOST:  # the system may say that a file of /proc has no bytes
        raise Unreadable(path, f"has more than {MOST} bytes", step)
    try:
        return held.decode("utf8")
    except UnicodeDecodeError as error:
        raise Unreadable(path, f"is damaged (no UTF-8: {error})", step) from error


def table(path: Path, step: str, wanted: Mapping[str, type] | None = None) -> dict:
    """The object that a JSON file holds, or a TOML or YAML file by its name.

    wanted: names that must be there, with the type of each; float takes whole numbers too.
    """
    held = _parsed(path, text(path, step), step)
    if not isinstance(held, dict):
        raise Unreadable(path, f"is damaged (it holds a {type(held).__name__}, no object)", step)
    wanted = wanted or {}
    if missing := [name for name in wanted if name not in held]:
        raise Unreadable(path, f"is damaged (it lacks {', '.join(missing)})", step)
    for name, kind in wanted.items():
        if not is_a(held[name], kind):
            found = f"{name} is a {type(held[name]).__name__}, no {kind.__name__}"
            raise Unreadable(path, f"is damaged ({found})", step)
    return held


def is_a(value: object, kind: type) -> bool:
    """Whether a value is of a type; an int may stand for a float, a bool for nothing else."""
    right = isinstance(value, _ACCEPTED.get(kind, kind))
    return right and (kind is bool or not isinstance(value, bool))


def plain(item, place: str):
    """The same as JSON holds it: numbers and arrays of numpy and torch as Python's numbers, tuples
    as lists, keys as text. Raises TypeError for anything else, with its place.
    """
    if hasattr(item, "tolist"):
        item = item.tolist()
    if isinstance(item, dict):
        return {_key(key, place): plain(part, f"{place}[{key!r}]") for key, part in item.items()}
    if isinstance(item, list | tuple):
        return [plain(part, f"{place}[{k}]") for k, part in enumerate(item)]
    if item is None or isinstance(item, str | bool | int | float):
        return item
    raise TypeError(
        f"{place} is {item!r}, of type {type(item).__name__}, which JSON does not hold: give text,"
        " numbers, True, False, None, or lists and dicts of them"
    )


def _key(key, place: str) -> str:
    key = key.tolist() if hasattr(key, "tolist") else key
    if isinstance(key, str | int | float):
        return str(key)
    raise TypeError(f"{place} has the key {key!r}: give a text or a number")


def notebook(path: Path, step: str):
    """A notebook, as nbformat gives it."""
    import nbformat

    source = text(path, step)
    try:
        return nbformat.reads(source, as_version=4)
    # what nbformat and its validator raise depends on what is amiss
    except Exception as error:
        raise Unreadable(path, f"is damaged ({_said(error)})", step) from error


def digest(path: Path, step: str) -> str:
    """The SHA-256 of a file of any size."""
    check(path, step, most=None)
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Unreadable(path, f"cannot be read ({error.strerror})", step) from error


def check(path: Path, step: str, *, most: int | None = MOST) -> None:
    """Raise unless this is a plain file, of at most so many bytes, that this user may read."""
    try:
        found = os.stat(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist: {step}") from error
    except (OSError, ValueError) as error:  # a circle of links; a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise Unreadable(path, f"cannot be read ({reason})", step) from error
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise Unreadable(path, f"is {kind} and no plain file", step)
    if most is not None and found.st_size > most:
        raise Unreadable(path, f"has {found.st_size} bytes, {most} at most are read", step)
    if not os.access(path, os.R_OK):
        raise Unreadable(path, "cannot be read (Permission denied)", step)


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _parsed(path: Path, held: str, step: str):
    suffix = Path(path).suffix
    try:
        if suffix == ".toml":
            return tomllib.loads(held)
        if suffix in (".yaml", ".yml"):
            return _yaml(held)
        return json.loads(held)
    except (ValueError, RecursionError) as error:
        raise Unreadable(path, f"is damaged ({_said(error)})", step) from error


def _yaml(held: str):
    """Raises ValueError for what is no YAML, and for aliases: a few may stand for terabytes."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent, index):
            if self.check_event(yaml.AliasEvent):
                raise ValueError("it has an alias (*name): write its value out")
            return super().compose_node(parent, index)

    try:
        return yaml.load(held, Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _said(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return f"{type(error).__name__}: {str(error)[:200]}"
