"""Sweeps: a notebook or an outer loop over a grid of parameters and seeds, on this machine or on a cluster.

    notebook: "05"                               # or outer: sft, dpo or grpo
    grid: {n_questions: [2, 4], seed: [0, 1, 2]}
    fixed: {preset: small}                       # may be left out
    out: runs/sweeps/probing                     # by default runs/sweeps/<name of the file>; all workers must see it

Every combination is a run with a folder of its own. joblib hands the folders' names to the workers of an engine; all else is
in a folder's files: settings.json, tries (a line each), log.txt, the executed notebook and its evidence, or the trained model,
and run.json, written last and whole. A run that has one is over, and a finished one is never repeated. A try is a process of
its own below the worker, with one thread, and ends when the worker does. A try that is killed leaves no run.json and is
followed by another; the last is made alone, for where one death ends all that an engine is doing, none may pay for another's.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import inspect
import itertools
import json
import os
import re
import resource
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tml_lib import runtime  # nothing heavy: workers import this module

TRIES = 3
KEYS = ("notebook", "outer", "grid", "fixed", "out")
PACKAGES = {"loky": ["joblib"], "dask": ["joblib", "dask", "distributed"], "ray": ["joblib", "ray"]}  # by engine
PATIENCE = 60  # seconds until a shared disk shows what a worker wrote


def run(options) -> int:
    """The command `sweep`: run what is unfinished and print the table; 0 only if every run has finished."""
    rows = execute(read(options.file), options.engine, workers=options.workers, address=options.address)
    print(json.dumps(rows, indent=1, ensure_ascii=False) if options.json else to_text(rows))
    return 0 if all(row["state"] == "finished" for row in rows) else 1


# --- what to run -----------------------------------------------------------------------------------------------------


def read(path: str | Path) -> dict[Path, dict]:
    """The runs of a sweep file, folder -> settings; ValueError or TypeError says what is amiss in the file."""
    import yaml

    try:
        given = yaml.safe_load(Path(path).read_text(encoding="utf8"))
        _check_keys(given)
        settings, declared, check = _book(given["notebook"]) if "notebook" in given else _loop(given["outer"])
        grid, fixed = given["grid"], given.get("fixed", {})
        for name, values in grid.items():
            _need(isinstance(values, list) and values, f"grid: {name} is {values!r}: give a list of one value or more")
            _need(name not in fixed, f"{name!r} is in the grid and fixed: take it out of one of them")
        grid = {name: [_typed(name, value, declared) for value in values] for name, values in grid.items()}
        fixed = {name: _typed(name, value, declared) for name, value in fixed.items()}
        out = runtime.project_root() / str(given.get("out") or f"runs/sweeps/{Path(path).stem}")
        runs: dict[Path, dict] = {}
        for values in itertools.product(*grid.values()):
            varied = dict(zip(grid, values, strict=True))
            check(fixed | varied)
            folder = out / _name(varied, one := settings | {"parameters": fixed | varied})
            _need(folder not in runs, f"two runs would be the same, {varied}: take out the value that is there twice")
            runs[folder] = one
        return runs
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise (TypeError if isinstance(error, TypeError) else ValueError)(f"{path}: {error}") from error


def _need(fulfilled: object, message: str) -> None:
    if not fulfilled:
        raise ValueError(message)


def _check_keys(given: object) -> None:
    _need(isinstance(given, dict), f"holds {given!r}: give the keys {', '.join(KEYS)}")
    for key, value in given.items():
        _need(key in KEYS, f"unknown key {key!r}: choose among {', '.join(KEYS)}")
        if key in ("grid", "fixed"):
            _need(isinstance(value, dict), f"{key} is {value!r}: write {key}: {{name: ...}}")
    _need(("notebook" in given) != ("outer" in given), "give either `notebook` or `outer`")
    _need(given.get("grid"), "the grid is empty: write for example grid: {seed: [0, 1, 2]}")


def _book(start: object) -> tuple[dict, dict[str, str], Callable[[dict], None]]:
    """Of a notebook: settings that all runs share, declared parameters, a check of given ones."""
    import nbformat

    from tml_lib import models, notebooks

    if not isinstance(start, str):
        raise TypeError(f'notebook: {start!r} is a {type(start).__name__}: put the number in quotes, as in "05"')
    book, *others = notebooks.select([start])
    _need(not others, f"{1 + len(others)} notebooks begin with {start!r}: name one, for example {book.name!r}")

    def check(parameters: dict) -> None:
        notebooks.check_given([book], parameters)
        if parameters.get("preset", book.preset) == "small":
            models.embedded_folder()  # converted here once rather than by several runs at the same time

    cells = [cell.source for cell in nbformat.read(book.path, as_version=4).cells if cell.cell_type == "code"]
    source = hashlib.sha256("\n".join(cells).encode()).hexdigest()[:16]
    return {"notebook": book.name, "path": str(book.path), "source": source}, book.parameters, check


def _loop(method: object) -> tuple[dict, dict[str, str], Callable[[dict], None]]:
    """The same of an outer loop; its parameters are the keyword-only ones of its functions."""
    _need(method in OUTER, f"unknown outer loop {method!r}: choose among {', '.join(OUTER)}")
    functions = (_outer, OUTER[method])
    found = [p for function in functions for p in inspect.signature(function).parameters.values() if p.kind == p.KEYWORD_ONLY]
    source = runtime.source_hash([f"sweep.{function.__name__}" for function in functions])
    return {"outer": method, "source": source}, {p.name: p.annotation for p in found}, lambda parameters: None


def _typed(name: str, value: object, declared: dict[str, str]) -> object:
    """The value if it has the declared type; an int or '1e-3', which YAML takes for a text, may stand for a float."""
    _need(name in declared, f"unknown parameter {name!r}: choose among {', '.join(declared)}")
    if declared[name] == "float" and type(value) in (int, str):
        with contextlib.suppress(ValueError):
            return float(value)
    if type(value).__name__ != declared[name]:
        raise TypeError(f"parameter {name}={value!r} is a {type(value).__name__}: give values of type {declared[name]}")
    return value


def _name(varied: dict, settings: dict) -> str:
    """A folder's name: what varies, to be read, and a hash of all settings, to be told apart."""
    key = json.dumps({name: value for name, value in settings.items() if name != "path"}, sort_keys=True)
    slug = re.sub(r"[^\w.+-]+", "-", "_".join(f"{name}-{value}" for name, value in varied.items()))[:80]
    return f"{slug}_{hashlib.sha256(key.encode()).hexdigest()[:8]}"


# --- running ---------------------------------------------------------------------------------------------------------


def execute(runs: dict[Path, dict], engine: str = "loky", *, workers: int | None = None, address: str = "") -> list[dict]:
    """Run what is not finished; a row per run, which table.md and table.json beside the runs hold as well.

    workers: side by side on this machine, by default one per core. address: of a running cluster of dask or ray, all of whose
    workers are used. ValueError for an unknown engine, LookupError for a missing package, OSError where nothing comes back.
    """
    _need(engine in PACKAGES, f"unknown engine {engine!r}: choose among {', '.join(PACKAGES)}")
    _need(workers is None or workers > 0, f"workers={workers}: give at least 1")
    _need(not address or engine != "loky", f"address={address!r}: loky knows this machine only; use the engine dask or ray")
    _need(not address or workers is None, f"workers={workers}: a cluster brings its own; leave out one of workers and address")
    if missing := [name for name in PACKAGES[engine] if importlib.util.find_spec(name) is None]:
        raise LookupError(f"engine {engine} needs {' and '.join(missing)}: run `pip install {' '.join(missing)}`")
    for folder, settings in runs.items():
        if not (_over(folder) and _record(folder)["state"] == "finished"):
            for name in ("run.json", "tries"):
                (folder / name).unlink(missing_ok=True)
            runtime.write_text(folder / "settings.json", json.dumps(settings))
    if not all(map(_over, runs)):
        workers = -1 if address else workers or runtime.usable_cores()
        with _engine(engine, workers, address) as ready:
            _drive(list(runs), engine, workers, ready)
    for folder in runs:
        if not _over(folder):
            message = f"killed {_tries(folder)} times, the last time alone: was memory short? See {folder / 'log.txt'}"
            _finish(folder, state="failed", message=message)
    rows = [{"run": folder.name, **_record(folder)} for folder in runs]
    runtime.write_text(folder.parent / "table.json", json.dumps(rows, indent=1))
    runtime.write_text(folder.parent / "table.md", to_text(rows) + "\n")
    return rows


def _drive(folders: list[Path], engine: str, workers: int, ready: Callable[[], object]) -> None:
    """Hand unfinished runs to the engine, again and again, until each is over or has used its tries."""
    idle = 0
    while waiting := [folder for folder in folders if not _over(folder) and _tries(folder) < TRIES]:
        fresh = [folder for folder in waiting if _tries(folder) < TRIES - 1]
        batch, limit = (fresh, TRIES - 1) if fresh else (waiting[:1], TRIES)
        before = [(_over(folder), _tries(folder)) for folder in folders]
        ready()
        error = _round(batch[:1] if workers == 1 else batch, limit, engine, workers)
        if [(_over(folder), _tries(folder)) for folder in folders] != before:
            idle = 0
            if error:
                print(f"engine {engine} broke off ({type(error).__name__}): going on with what is unfinished", file=sys.stderr)
        elif error or idle == PATIENCE:
            raise error or OSError(f"nothing new in {folders[0].parent}: give an `out` that all workers see")
        else:
            idle += 1
            time.sleep(1)


def _round(folders: list[Path], limit: int, engine: str, workers: int) -> Exception | None:
    """One call of joblib; what it raised."""
    import joblib

    workers = max(workers, 2) if workers > 0 else workers  # with one joblib would work in this very process
    try:
        with joblib.parallel_config(backend=engine, n_jobs=workers, verbose=11):
            joblib.Parallel(batch_size=1, pre_dispatch="all")(joblib.delayed(attempt)(str(f), limit) for f in folders)
    except Exception as error:  # each engine has its own for the death of a worker
        return error


@contextlib.contextmanager
def _engine(engine: str, workers: int, address: str):
    """Start or reach an engine; yields a function that waits until it has two workers."""
    if engine == "dask":
        import dask
        import distributed

        # a local cluster would give up a killed worker that a busy machine takes more than 15 s to start again
        with contextlib.ExitStack() as stack, dask.config.set({"distributed.deploy.lost-worker-timeout": "1 hour"}):
            local = {"n_workers": max(workers, 2), "threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": None}
            where = address or stack.enter_context(distributed.LocalCluster(**local, silence_logs="CRITICAL"))
            client = stack.enter_context(distributed.Client(where))
            yield lambda: client.wait_for_workers(2, timeout=10 * PATIENCE)
    elif engine == "ray":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # the kit makes no request of its own
        import ray
        from ray.util.joblib import register_ray

        with ray.init(address) if address else ray.init(num_cpus=max(workers, 2), include_dashboard=False):
            register_ray()
            yield lambda: None
    else:
        yield lambda: None


def attempt(folder: str, limit: int) -> None:
    """In a worker: try a run until it is over or has had `limit` tries, each in a process that ends with this one."""
    place = Path(folder)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TML_EVIDENCE": str(place / "evidence")}
    while not _over(place) and _tries(place) < limit:
        with open(place / "tries", "a") as tries, open(place / "log.txt", "w") as log:
            print(time.strftime("%Y-%m-%d %H:%M:%S"), file=tries, flush=True)
            command = [sys.executable, "-m", "tml_lib.sweep", folder]
            with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log) as child:
                child.wait()


# --- a run's files ---------------------------------------------------------------------------------------------------


def _over(folder: Path) -> bool:
    return (folder / "run.json").is_file()


def _tries(folder: Path) -> int:
    return len((folder / "tries").read_text().splitlines()) if (folder / "tries").is_file() else 0


def _record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text(encoding="utf8"))


def _finish(folder: Path, *, state: str, message="", seconds=None, memory_mb=None, result=None) -> None:
    parameters = json.loads((folder / "settings.json").read_text(encoding="utf8"))["parameters"]
    found = {"parameters": parameters, "state": state, "message": message, "tries": _tries(folder)}
    found |= {"seconds": seconds, "memory_mb": memory_mb, "result": result or {}}
    runtime.write_text(folder / "run.json", json.dumps(found, indent=1))


def to_text(rows: list[dict]) -> str:
    """The runs as a Markdown table, a column for each parameter and each result."""
    names = dict.fromkeys(name for part in ("parameters", "result") for row in rows for name in row[part])
    heads = [*names, "state", "tries", "seconds", "memory_mb", "run", "message"]
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        flat = {**row, **row["parameters"], **row["result"]}
        lines.append([str(flat.get(head, "")).replace("|", "\\|").replace("\n", " ") for head in heads])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# --- a try, in a process of its own ----------------------------------------------------------------------------------


def _main(folder: Path) -> None:
    threading.Thread(target=_end_with_the_worker, daemon=True).start()
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the try of a worker that has only just died may still be ending
        if not _over(folder):
            _try(folder, json.loads((folder / "settings.json").read_text(encoding="utf8")))


def _end_with_the_worker() -> None:
    os.read(0, 1)  # nothing ever comes through this pipe but its end
    os._exit(1)


def _try(folder: Path, settings: dict) -> None:
    state, message, result, began = "finished", "", {}, time.perf_counter()
    try:
        if "notebook" in settings:
            _notebook(folder, Path(settings["path"]), settings["parameters"])
        else:
            result = _outer(folder, OUTER[settings["outer"]], **settings["parameters"])
    except Exception as error:
        traceback.print_exc()
        name, text = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", error)  # a cell's own
        state, message = "failed", f"{name}: {text}"
    used = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    cost = {
        "seconds": round(time.perf_counter() - began, 1),
        "memory_mb": round(used / (1e6 if sys.platform == "darwin" else 1e3)),
    }
    _finish(folder, state=state, message=message, result=result, **cost)


def _notebook(folder: Path, book: Path, parameters: dict) -> None:
    """Execute a notebook into the run's folder; SystemExit where its kernel died, which is worth another try."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    (folder / "evidence").mkdir(exist_ok=True)
    try:
        papermill.execute_notebook(book, folder / book.name, parameters, cwd=book.parent, progress_bar=False)
    except DeadKernelError as error:
        raise SystemExit("the kernel died") from error


def _outer(
    folder: Path, method: Callable, *, model: str = "tiny-base", questions: int = 100, seed: int = 0, **settings
) -> dict[str, float]:
    """Train a tiny reasoner, save it and ask it held-out questions; loss or reward is the mean of the log's last fifth.

    model: a checkpoint of the kit or a folder. Raises ValueError for a model that does not read the words of `programs`.
    """
    from tml_lib import models, outer_study, programs, tiny

    lm = models.load("tiny", model=models.shipped(model) if model in models.SHIPPED else model)
    known = ", ".join(models.SHIPPED)
    _need(lm.tokenizer.get_vocab() == tiny.tokenizer().get_vocab(), f"{model!r} is no tiny reasoner: give one of {known}")
    done = method(lm, folder / "training", seed=seed, **settings)
    done.lm.model.save_pretrained(folder / "model")
    done.lm.tokenizer.save_pretrained(folder / "model")
    key = next(key for key in ("reward", "loss", "train_loss") if any(key in entry for entry in done.log))
    values = [float(entry[key]) for entry in done.log if key in entry]
    last = values[-max(len(values) // 5, 1) :]
    right = outer_study.greedy(done.lm, programs.questions(questions, seed, "held_out"))["right"]
    return {key: round(sum(last) / len(last), 4), "accuracy": round(sum(right) / questions, 4)}


def _sft(lm, folder: Path, *, style: str = "long", steps: int = 100, peak_lr: float = 1e-3, lora_rank: int = 0, seed: int = 0):
    """SFT on trajectories of a style ('none': on answers alone); a killed try's newest checkpoint is gone on from."""
    from tml_lib import outer, outer_study

    batch = outer_study.arm_rows(seed, None if style == "none" else style)
    rows = [row for step in range(steps) for row in batch(step)]
    given = {"steps": steps, "batch": outer_study.BATCH, "peak_lr": peak_lr, "lora_rank": lora_rank, "seed": seed}
    return outer.sft(lm, rows, folder, **given, save_every=max(steps // 10, 1), log_every=min(steps, 10))


def _dpo(lm, folder: Path, *, steps: int = 100, peak_lr: float = 1e-4, seed: int = 0):
    """DPO on pairs of the model's own samples."""
    from tml_lib import rl_study

    return rl_study.preferred(lm, seed, steps, peak_lr=peak_lr)


def _grpo(lm, folder: Path, *, steps: int = 100, peak_lr: float = 3e-4, update: int = 0, seed: int = 0):
    """GRPO on the model's own samples; update: how many of a group's samples the gradient is of, 0 for all."""
    from tml_lib import rl_study

    return rl_study.rewarded(lm, seed, steps, update=update, peak_lr=peak_lr)


OUTER = {"sft": _sft, "dpo": _dpo, "grpo": _grpo}

if __name__ == "__main__":
    _main(Path(sys.argv[1]))
