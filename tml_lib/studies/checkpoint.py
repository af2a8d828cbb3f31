"""Where a study keeps its records, one by one: a JSON file that several processes may share.

A checkpoint holds 'records' by the name of their item, 'seconds_of' each of them by the same name,
and 'seconds', the sum for records of older checkpoints, which kept no more.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tml_lib import files, runtime

_STEP = "delete it, and its records are made again"


def digest(value, *, sort_keys: bool = False) -> str:
    """Twelve hexadecimal digits of what JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=sort_keys).encode()).hexdigest()[:12]


def place(folder: Path, study: str, key: dict) -> Path:
    """The checkpoint of a study and a key, in whatever order the key's settings come; one that an
    older version of the kit named by their order is taken where it is there.
    """
    older = folder / f"{study}-{digest(key)}.checkpoint"
    newer = folder / f"{study}-{digest(key, sort_keys=True)}.checkpoint"
    return older if os.path.lexists(older) else newer


def read(checkpoint: Path) -> dict:
    """What a checkpoint holds; ValueError where it is damaged."""
    if not os.path.lexists(checkpoint):
        return {"seconds": 0.0, "seconds_of": {}, "records": {}}
    held = files.table(checkpoint, _STEP, {"seconds": float, "records": dict})
    held = {"seconds_of": {}} | held
    times = held["seconds_of"]
    if not isinstance(times, dict) or not all(files.is_a(s, float) for s in times.values()):
        raise files.Unreadable(checkpoint, "is damaged (seconds_of holds no seconds)", _STEP)
    if not all(isinstance(record, dict | list) for record in held["records"].values()):
        raise files.Unreadable(checkpoint, "is damaged (a record is no object or list)", _STEP)
    return held


def keep(checkpoint: Path, name: str, record: dict, seconds: float) -> dict:
    """Add a record to what a checkpoint holds now: other processes may have added theirs."""
    with runtime.locked(checkpoint.parent, wait=True):
        held = read(checkpoint)
        if name not in held["records"]:
            held["records"][name] = record
            held["seconds_of"][name] = seconds
            runtime.write_text(checkpoint, json.dumps(held))
    return held


def seconds(held: dict, wanted: Sequence[str]) -> float:
    """Spent on the wanted records. Of an older checkpoint's sum each record has an equal share."""
    times = held["seconds_of"]
    older = held["records"].keys() - times.keys()
    share = held["seconds"] / len(older) if older else 0.0
    return sum(times.get(name, share) for name in set(wanted))


@contextlib.contextmanager
def claim(checkpoint: Path, name: str, *, wait: bool) -> Iterator[bool]:
    """Whether this process is to make a record: False where another is at it, unless it waits
    until that one ends. The system takes a claim from a process that dies.
    """
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    path = checkpoint.with_name(f".{checkpoint.stem}-{name}.claim")
    with open(path, "a", encoding="utf8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)
            fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough where a child still has it
