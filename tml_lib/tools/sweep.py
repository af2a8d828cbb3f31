"""Sweeps: a notebook or an outer loop over a grid of parameters and seeds, on this machine or on a
cluster.

    notebook: "05"                               # or outer: sft, dpo or grpo
    grid: {n_questions: [2, 4], seed: [0, 1, 2]}
    fixed: {preset: small}                       # may be left out
    out: runs/sweeps/probing                     # by default runs/sweeps/<name of the file>; all
        workers must see it

Every combination is a run with a folder of its own (see sweep_run.py), and a finished one is never
repeated. joblib hands the folders' names to the workers of an engine. A try that is killed is
followed by another; the last is made alone, for where one death ends all that an engine is doing,
none may pay for another's.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import inspect
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tml_lib import checks, files, runtime
from tml_lib.tools import sweep_run

TRIES = 3
KEYS = ("notebook", "outer", "grid", "fixed", "out")
# by engine
PACKAGES = {"loky": ["joblib"], "dask": ["joblib", "dask", "distributed"], "ray": ["joblib", "ray"]}
PATIENCE = 60  # seconds until a shared disk shows what a worker wrote


def run(options) -> int:
    """The command `sweep`: run what is unfinished and print the table; 0 only if every run has
    finished.
    """
    rows = execute(
        read(options.file), options.engine, workers=options.workers, address=options.address
    )
    print(json.dumps(rows, indent=1, ensure_ascii=False) if options.json else to_text(rows))
    return 0 if all(row["state"] == "finished" for row in rows) else 1


# --- what to run ----------------------------------------------------------------------------------


def read(path: str | Path) -> dict[Path, dict]:
    """The runs of a sweep file, folder -> settings; ValueError or TypeError says what is amiss in
    the file.
    """
    path = checks.path("give a YAML file", path=path)
    held = files.table(path, f"give a YAML file with the keys {', '.join(KEYS)}")
    try:
        return _runs(held, path.stem)
    except (ValueError, TypeError) as error:
        raise (TypeError if isinstance(error, TypeError) else ValueError)(
            f"{path}: {error}"
        ) from error


def _runs(given: dict, stem: str) -> dict[Path, dict]:
    _check_keys(given)
    settings, declared, check = (
        _book(given["notebook"]) if "notebook" in given else _loop(given["outer"])
    )
    grid, fixed = _grid(given, declared)
    where = checks.path(out=given.get("out", f"runs/sweeps/{stem}"))
    out = runtime.project_root() / where
    runs: dict[Path, dict] = {}
    for values in itertools.product(*grid.values()):
        varied = dict(zip(grid, values, strict=True))
        check(fixed | varied)
        folder = out / _name(varied, one := settings | {"parameters": fixed | varied})
        _need(
            folder not in runs,
            f"two runs would be the same, {varied}: take out the value that is there twice",
        )
        runs[folder] = one
    return runs


def _grid(settings: dict, declared: dict[str, str]) -> tuple[dict[str, list], dict]:
    """What varies and what is fixed, each value of its declared type."""
    grid, fixed = settings["grid"], settings.get("fixed", {})
    for name, values in grid.items():
        _need(
            isinstance(values, list) and values,
            f"grid: {name} is {values!r}: give a list of one value or more",
        )
        _need(name not in fixed, f"{name!r} is in the grid and fixed: take it out of one of them")
    typed = {
        name: [_typed(name, value, declared) for value in values] for name, values in grid.items()
    }
    return typed, {name: _typed(name, value, declared) for name, value in fixed.items()}


def _need(fulfilled: object, message: str) -> None:
    if not fulfilled:
        raise ValueError(message)


def _check_keys(settings: dict) -> None:
    for key, value in settings.items():
        _need(key in KEYS, f"unknown key {key!r}: choose among {', '.join(KEYS)}")
        if key in ("grid", "fixed"):
            _need(isinstance(value, dict), f"{key} is {value!r}: write {key}: {{name: ...}}")
    _need(("notebook" in settings) != ("outer" in settings), "give either `notebook` or `outer`")
    _need(settings.get("grid"), "the grid is empty: write for example grid: {seed: [0, 1, 2]}")


def _book(start: object) -> tuple[dict, dict[str, str], Callable[[dict], None]]:
    """Of a notebook: settings that all runs share, declared parameters, a check of given ones."""
    from tml_lib.lessons import notebooks
    from tml_lib.lm import models, presets

    if not isinstance(start, str):
        raise TypeError(
            f'notebook: {start!r} is a {type(start).__name__}: put the number in quotes, as in "05"'
        )
    book, *others = notebooks.select([start])
    _need(
        not others,
        f"{1 + len(others)} notebooks begin with {start!r}: name one, for example {book.name!r}",
    )

    def check(parameters: dict) -> None:
        notebooks.check_given([book], parameters)
        name, model = parameters.get("preset", book.preset), parameters.get("model", "")
        if name and presets.is_converted(name, model):
            # converted here once rather than by several runs at the same time
            models.prepare(name, model)

    cells = [
        cell.source
        for cell in files.notebook(book.path, files.COMMITTED).cells
        if cell.cell_type == "code"
    ]
    source = hashlib.sha256("\n".join(cells).encode()).hexdigest()[:16]
    return {"notebook": book.name, "path": str(book.path), "source": source}, book.parameters, check


def _loop(method: object) -> tuple[dict, dict[str, str], Callable[[dict], None]]:
    """The same of an outer loop; its parameters are the keyword-only ones of its functions."""
    _need(
        isinstance(method, str) and method in sweep_run.OUTER,
        f"unknown outer loop {method!r}: choose among {', '.join(sweep_run.OUTER)}",
    )
    functions = (sweep_run.train, sweep_run.OUTER[method])
    found = [
        p
        for function in functions
        for p in inspect.signature(function).parameters.values()
        if p.kind == p.KEYWORD_ONLY
    ]
    return {"outer": method}, {p.name: p.annotation for p in found}, lambda parameters: None


def _typed(name: str, value: object, declared: dict[str, str]) -> object:
    """The value if it has the declared type; an int or '1e-3', which YAML takes for a text, may
    stand for a float.
    """
    _need(name in declared, f"unknown parameter {name!r}: choose among {', '.join(declared)}")
    if declared[name] == "float" and type(value) in (int, str):
        with contextlib.suppress(ValueError):
            return float(value)
    if type(value).__name__ != declared[name]:
        raise TypeError(
            f"parameter {name}={value!r} is a {type(value).__name__}: give values of type"
            f" {declared[name]}"
        )
    return value


def _name(varied: dict, settings: dict) -> str:
    """A folder's name: what varies, to be read, and a hash of all settings, to be told apart."""
    key = json.dumps(
        {name: value for name, value in settings.items() if name != "path"}, sort_keys=True
    )
    slug = re.sub(r"[^\w.+-]+", "-", "_".join(f"{name}-{value}" for name, value in varied.items()))[
        :80
    ]
    return f"{slug}_{hashlib.sha256(key.encode()).hexdigest()[:8]}"


# --- running --------------------------------------------------------------------------------------


def execute(
    runs: dict[Path, dict], engine: str = "loky", *, workers: int | None = None, address: str = ""
) -> list[dict]:
    """Run what is not finished; a row per run, which table.md and table.json beside the runs hold
    as well.

    workers: side by side on this machine, by default one per core. address: of a running cluster of
    dask or ray, all of whose workers are used. ValueError for an unknown engine, LookupError for a
    missing package, OSError where nothing comes back.
    """
    _check_engine(engine, workers, address)
    for folder, settings in runs.items():
        if not (sweep_run.over(folder) and sweep_run.record(folder)["state"] == "finished"):
            sweep_run.begin(folder, settings)
    if not all(map(sweep_run.over, runs)):
        workers = -1 if address else workers or runtime.usable_cores()
        with _engine(engine, workers, address) as ready:
            _drive(list(runs), engine, workers, ready)
    for folder in runs:
        if not sweep_run.over(folder):
            killed = (
                f"killed {sweep_run.tries(folder)} times, the last time alone: was memory short?"
            )
            sweep_run.finish(folder, state="failed", message=f"{killed} See {folder / 'log.txt'}")
    rows = [{"run": folder.name, **sweep_run.record(folder)} for folder in runs]
    runtime.write_text(folder.parent / "table.json", json.dumps(rows, indent=1))
    runtime.write_text(folder.parent / "table.md", to_text(rows) + "\n")
    return rows


def _check_engine(engine: str, workers: int | None, address: str) -> None:
    _need(engine in PACKAGES, f"unknown engine {engine!r}: choose among {', '.join(PACKAGES)}")
    _need(workers is None or workers > 0, f"workers={workers}: give at least 1")
    _need(
        not address or engine != "loky",
        f"address={address!r}: loky knows this machine only; use the engine dask or ray",
    )
    _need(
        not address or workers is None,
        f"workers={workers}: a cluster brings its own; leave out one of workers and address",
    )
    if missing := [name for name in PACKAGES[engine] if importlib.util.find_spec(name) is None]:
        raise LookupError(
            f"engine {engine} needs {' and '.join(missing)}: run `pip install {' '.join(missing)}`"
        )


def _drive(folders: list[Path], engine: str, workers: int, ready: Callable[[], object]) -> None:
    """Hand unfinished runs to the engine, again and again, until each is over or has used its
    tries.
    """
    idle = 0
    while waiting := [
        folder
        for folder in folders
        if not sweep_run.over(folder) and sweep_run.tries(folder) < TRIES
    ]:
        fresh = [folder for folder in waiting if sweep_run.tries(folder) < TRIES - 1]
        batch, limit = (fresh, TRIES - 1) if fresh else (waiting[:1], TRIES)
        before = _progress(folders)
        ready()
        error = _round(batch[:1] if workers == 1 else batch, limit, engine, workers)
        if _progress(folders) != before:
            idle = 0
            if error:
                print(
                    f"engine {engine} broke off ({type(error).__name__}): resuming what is"
                    " unfinished",
                    file=sys.stderr,
                )
        elif error or idle == PATIENCE:
            raise error or OSError(
                f"nothing new in {folders[0].parent}: give an `out` that all workers see"
            )
        else:
            idle += 1
            time.sleep(1)


def _progress(folders: list[Path]) -> list[tuple[bool, int]]:
    return [(sweep_run.over(folder), sweep_run.tries(folder)) for folder in folders]


def _round(folders: list[Path], limit: int, engine: str, workers: int) -> Exception | None:
    """One call of joblib; what it raised."""
    import joblib

    # with one joblib would work in this very process
    workers = max(workers, 2) if workers > 0 else workers
    try:
        with joblib.parallel_config(backend=engine, n_jobs=workers, verbose=11):
            joblib.Parallel(batch_size=1, pre_dispatch="all")(
                joblib.delayed(sweep_run.attempt)(str(f), limit) for f in folders
            )
    except Exception as error:  # each engine has its own for the death of a worker
        return error


@contextlib.contextmanager
def _engine(engine: str, workers: int, address: str):
    """Start or reach an engine; yields a function that waits until it has two workers."""
    if engine == "dask":
        import dask
        import distributed

        # a local cluster would give up a killed worker that a busy machine takes more than 15 s to
        # start again
        with (
            contextlib.ExitStack() as stack,
            dask.config.set({"distributed.deploy.lost-worker-timeout": "1 hour"}),
        ):
            local = {
                "n_workers": max(workers, 2),
                "threads_per_worker": 1,
                "host": "127.0.0.1",
                "dashboard_address": None,
            }
            where = address or stack.enter_context(
                distributed.LocalCluster(**local, silence_logs="CRITICAL")
            )
            client = stack.enter_context(distributed.Client(where))
            yield lambda: client.wait_for_workers(2, timeout=10 * PATIENCE)
    elif engine == "ray":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # the kit makes no request of its own
        import ray
        from ray.util.joblib import register_ray

        with (
            ray.init(address)
            if address
            else ray.init(num_cpus=max(workers, 2), include_dashboard=False)
        ):
            register_ray()
            yield lambda: None
    else:
        yield lambda: None


def to_text(rows: list[dict]) -> str:
    """The runs as a Markdown table, a column for each parameter and each result."""
    names = dict.fromkeys(
        name for part in ("parameters", "result") for row in rows for name in row[part]
    )
    heads = [*names, "state", "tries", "seconds", "memory_mb", "run", "message"]
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        flat = {**row, **row["parameters"], **row["result"]}
        lines.append(
            [str(flat.get(head, "")).replace("|", "\\|").replace("\n", " ") for head in heads]
        )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
