"""The folder of a run, runs/<time>/: what the run was begun with and the results that it keeps, by
which it is resumed.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from tml_lib import files, runtime
from tml_lib.lessons import notebooks
from tml_lib.lessons.notebooks import Notebook


@dataclass(frozen=True)
class Result:
    """One executed notebook: wall seconds and the kernel's peak resident memory in MB.

    Linux counts the starting process's own peak as the child's: start from one that is small, as
    the command line is.
    """

    name: str
    ok: bool
    seconds: float
    memory_mb: float
    parameters: dict
    message: str = ""


BEGUN = "run.json"  # in a run's folder: the notebooks and settings that it was begun with


def new_run(books: list[Notebook], settings: dict[str, object]) -> Path:
    """A fresh folder runs/<time>/, which keeps the notebooks' names and the settings for `resumed`;
    runs/<time>-1/ where another run began in that second.
    """
    start = runtime.project_root() / "runs" / time.strftime("%Y%m%d-%H%M%S")
    for tail in ("", *(f"-{k}" for k in range(1, 10))):
        out = start.with_name(start.name + tail)
        try:
            out.mkdir(parents=True)
        except FileExistsError:
            continue
        (out / "evidence").mkdir()
        begun = {"notebooks": [book.name for book in books], "settings": settings}
        runtime.write_text(out / BEGUN, json.dumps(begun))
        return out
    raise FileExistsError(f"ten runs began in the second of {start}: wait a second, and try again")


def newest_run() -> Path:
    """The newest run's folder under runs/; FileNotFoundError where there is none."""
    found = sorted((runtime.project_root() / "runs").glob(f"[0-9]*-[0-9]*/{BEGUN}"))
    if not found:
        raise FileNotFoundError(
            "there is no run to resume under runs/: start one with `python -m tml_lib run`"
        )
    return found[-1].parent


def begun_with(out: Path) -> tuple[list[Notebook], dict[str, object]]:
    """The notebooks and the settings that a run was begun with."""
    step = "start a new run, without --resume"
    held = files.table(out / BEGUN, step, {"notebooks": list, "settings": dict})
    return notebooks.select([str(name) for name in held["notebooks"]]), held["settings"]


def resumed(
    wanted: list[str], settings: dict[str, object]
) -> tuple[Path, list[Notebook], dict[str, object]]:
    """The newest run: its folder, and the notebooks and settings that it was begun with. Raises
    ValueError where names or settings that are given now differ from these.
    """
    out = newest_run()
    books, begun = begun_with(out)
    same = not wanted or {b.name for b in notebooks.select(wanted)} == {b.name for b in books}
    if not same or any(name not in begun or begun[name] != settings[name] for name in settings):
        every = books == notebooks.discover()
        numbers = "" if every else " ".join(book.number for book in books)
        command = " ".join(runtime.run_command(numbers, begun).split())
        raise ValueError(
            f"the newest run, {os.path.relpath(out)}, was begun with `{command}`: `python -m"
            " tml_lib run --resume` resumes that one, without names and -p. For other notebooks or"
            " settings leave --resume out"
        )
    return out, books, begun


def keep(result: Result, out: Path) -> None:
    """Write a result to state/<name>.json in a run's folder."""
    runtime.write_text(out / "state" / f"{result.name}.json", json.dumps(asdict(result)))


_KINDS = {"str": str, "bool": bool, "float": float, "dict": dict}  # of a result's fields


def finished(out: Path, name: str, parameters: dict) -> Result | None:
    """The result of a notebook that finished with these parameters in a run's folder."""
    state = out / "state" / f"{name}.json"
    if not os.path.lexists(state) or not (out / f"{name}.ipynb").is_file():
        return None
    step = "delete it, and `run --resume` executes the notebook again"
    kinds = {field.name: _KINDS[field.type] for field in fields(Result)}
    held = files.table(state, step, kinds)
    result = Result(**{name: held[name] for name in kinds})
    return result if result.ok and result.parameters == parameters else None
