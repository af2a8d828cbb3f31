"""One run of a sweep: its files, a worker's tries at it, and what a try does in a process of its
own.

All that is known of a run is in its folder: settings.json, tries (a line each), log.txt, the
executed notebook and its evidence, or the trained model, and run.json, written last and whole. A
run that has one is over. A try is a process of its own below the worker, with one thread, and ends
when the worker does; one that is killed leaves no run.json.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tml_lib import files, runtime  # nothing heavy: workers import this module

# --- files ----------------------------------------------------------------------------------------

AGAIN = "delete the folder of this run, and `sweep` runs it again"
# what run.json holds, beside figures that may be null
WANTED = {"parameters": dict, "state": str, "message": str, "tries": int, "result": dict}


def over(folder: Path) -> bool:
    """Whether a run has finished or failed."""
    return os.path.lexists(folder / "run.json")


def tries(folder: Path) -> int:
    """How often a run has been tried."""
    path = folder / "tries"
    return len(files.text(path, AGAIN).splitlines()) if os.path.lexists(path) else 0


def record(folder: Path) -> dict:
    """What a run that is over has come to (see `finish`)."""
    return files.table(folder / "run.json", AGAIN, WANTED)


def begin(folder: Path, settings: dict) -> None:
    """Write a run's settings, and forget what was tried before."""
    for name in ("run.json", "tries"):
        (folder / name).unlink(missing_ok=True)
    runtime.write_text(folder / "settings.json", json.dumps(settings))


def finish(
    folder: Path, *, state: str, message="", seconds=None, memory_mb=None, result=None
) -> None:
    """Write run.json: the run is over."""
    found = {
        "parameters": _settings(folder)["parameters"],
        "state": state,
        "message": message,
        "tries": tries(folder),
    }
    found |= {"seconds": seconds, "memory_mb": memory_mb, "result": result or {}}
    runtime.write_text(folder / "run.json", json.dumps(found, indent=1))


def _settings(folder: Path) -> dict:
    return files.table(folder / "settings.json", AGAIN, {"parameters": dict})


# --- in a worker ----------------------------------------------------------------------------------


def attempt(folder: str, limit: int) -> None:
    """Try a run until it is over or has had `limit` tries, each in a process that ends with this
    one.
    """
    place = Path(folder)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TML_EVIDENCE": str(place / "evidence")}
    while not over(place) and tries(place) < limit:
        with open(place / "tries", "a") as lines, open(place / "log.txt", "w") as log:
            print(time.strftime("%Y-%m-%d %H:%M:%S"), file=lines, flush=True)
            command = [sys.executable, "-m", "tml_lib.tools.sweep_run", folder]
            with subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log
            ) as child:
                child.wait()


# --- a try, in a process of its own ---------------------------------------------------------------


def _main(folder: Path) -> None:
    threading.Thread(target=_end_with_the_worker, daemon=True).start()
    with open(folder / "lock", "w") as lock:
        # the try of a worker that has only just died may still be ending
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not over(folder):
            _try(folder)


def _end_with_the_worker() -> None:
    os.read(0, 1)  # nothing ever comes through this pipe but its end
    os._exit(1)


def _try(folder: Path) -> None:
    """Try a run in this process; SystemExit where the kernel of its notebook died."""
    settings, began = _settings(folder), time.perf_counter()
    state, message, result = "finished", "", {}
    try:
        result = _result(folder, settings)
    except Exception as error:
        traceback.print_exc()
        # a cell's own
        name, text = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", error)
        state, message = "failed", f"{name}: {text}"
    seconds = round(time.perf_counter() - began, 1)
    finish(
        folder, state=state, message=message, result=result, seconds=seconds, memory_mb=_peak_mb()
    )


def _peak_mb() -> int:
    """The most memory that this process or one below it has held."""
    used = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return round(used / (1e6 if sys.platform == "darwin" else 1e3))


def _result(folder: Path, settings: dict) -> dict[str, float]:
    if "outer" in settings:
        return train(folder, OUTER[settings["outer"]], **settings["parameters"])
    _execute(folder, Path(settings["path"]), settings["parameters"])
    return {}  # a notebook's is its evidence


def _execute(folder: Path, book: Path, parameters: dict) -> None:
    """Execute a notebook into the run's folder; SystemExit where its kernel died, which is worth
    another try.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    (folder / "evidence").mkdir(exist_ok=True)
    try:
        papermill.execute_notebook(
            book, folder / book.name, parameters, cwd=book.parent, progress_bar=False
        )
    except DeadKernelError as error:
        raise SystemExit("the kernel died") from error


# --- outer loops ----------------------------------------------------------------------------------


def train(
    folder: Path,
    method: Callable,
    *,
    model: str = "tiny-base",
    questions: int = 100,
    seed: int = 0,
    **settings,
) -> dict[str, float]:
    """Train a tiny reasoner, save it and ask it held-out questions; loss or reward is the mean of
    the log's last fifth.

    model: a checkpoint of the kit or a folder. Raises ValueError for a model that does not read the
    words of `programs`.
    """
    from tml_lib.data import programs, tiny
    from tml_lib.lm import models
    from tml_lib.studies import supervised

    lm = models.load("tiny", model=models.shipped(model) if model in models.SHIPPED else model)
    if lm.tokenizer.get_vocab() != tiny.tokenizer().get_vocab():
        raise ValueError(f"{model!r} is no tiny reasoner: give one of {', '.join(models.SHIPPED)}")
    done = method(lm, folder / "training", seed=seed, **settings)
    done.lm.model.save_pretrained(folder / "model")
    done.lm.tokenizer.save_pretrained(folder / "model")
    right = supervised.greedy(done.lm, programs.questions(questions, seed, "held_out"))["right"]
    return _late_mean(done.log) | {"accuracy": round(sum(right) / questions, 4)}


def _late_mean(log: list[dict]) -> dict[str, float]:
    """The mean of the log's last fifth, of rewards where there are some, else of losses."""
    key = next(
        key for key in ("reward", "loss", "train_loss") if any(key in entry for entry in log)
    )
    values = [float(entry[key]) for entry in log if key in entry]
    last = values[-max(len(values) // 5, 1) :]
    return {key: round(sum(last) / len(last), 4)}


def _sft(
    lm,
    folder: Path,
    *,
    style: str = "long",
    steps: int = 100,
    peak_lr: float = 1e-3,
    lora_rank: int = 0,
    seed: int = 0,
):
    """SFT on trajectories of a style ('none': on answers alone), resumed from the newest checkpoint
    of a killed try.
    """
    from tml_lib.studies import supervised
    from tml_lib.train import sft

    batch = supervised.arm_rows(seed, None if style == "none" else style)
    rows = [row for step in range(steps) for row in batch(step)]
    settings = sft.SFTSettings(
        steps=steps,
        batch=supervised.BATCH,
        peak_lr=peak_lr,
        lora_rank=lora_rank,
        seed=seed,
        save_every=max(steps // 10, 1),
        log_every=max(min(steps, 10), 1),
    )
    return sft.sft(lm, rows, folder, settings)


def _dpo(lm, folder: Path, *, steps: int = 100, peak_lr: float = 1e-4, seed: int = 0):
    """DPO on pairs of the model's own samples."""
    from tml_lib.studies import rl

    return rl.preferred(lm, seed, steps, peak_lr=peak_lr)[0]


def _grpo(
    lm, folder: Path, *, steps: int = 100, peak_lr: float = 3e-4, update: int = 0, seed: int = 0
):
    """GRPO on the model's own samples; update: how many of a group's samples the gradient is of, 0
    for all.
    """
    from tml_lib.studies import rl

    return rl.rewarded(lm, seed, steps, update=update, peak_lr=peak_lr)


OUTER = {"sft": _sft, "dpo": _dpo, "grpo": _grpo}

if __name__ == "__main__":
    _main(Path(sys.argv[1]))
