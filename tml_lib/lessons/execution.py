"""Execute notebooks headless with papermill, side by side; what had finished stays."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tml_lib import files, runtime
from tml_lib.lessons import run_folders, run_pages
from tml_lib.lessons.notebooks import Notebook
from tml_lib.lessons.progress import Board
from tml_lib.lessons.run_folders import Result


def run(
    books: list[Notebook], parameters: dict[str, dict], out: Path, *, jobs: int | None = None
) -> list[Result]:
    """Execute notebooks into `out`, as many side by side as there are cores; finished ones with
    these parameters stay.

    Each writes <name>.ipynb (under another name until it is complete), <name>.html and
    state/<name>.json, and its evidence into out/evidence. Ctrl-C ends the running ones and leaves
    the finished ones as they are. Raises ValueError where another process runs into `out`.
    """
    with runtime.locked(out):
        return _run(books, parameters, out, min(jobs or runtime.usable_cores(), len(books)))


def _run(books: list[Notebook], parameters: dict[str, dict], out: Path, jobs: int) -> list[Result]:
    board = Board([book.name for book in books])
    results: dict[str, Result] = {}
    children: list[subprocess.Popen] = []

    def one(book: Notebook) -> None:
        held = run_folders.finished(out, book.name, parameters[book.name])
        try:
            made = held or _execute(book, parameters[book.name], out, jobs, board, children)
        except OSError as error:  # of this notebook's files: the others may still be whole
            made = Result(book.name, False, 0.0, 0, parameters[book.name], _told(error))
        results[book.name] = made
        board.done(made, again=held is None)

    with ThreadPoolExecutor(jobs) as pool:
        try:
            for future in [pool.submit(one, book) for book in books]:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in children:
                _kill(child)
            raise
    return [results[book.name] for book in books]


def _execute(
    book: Notebook, parameters: dict, out: Path, jobs: int, board: Board, children: list
) -> Result:
    partial, final = out / f"{book.name}.partial.ipynb", out / f"{book.name}.ipynb"
    command = _command(book, parameters, out, partial)
    environment = os.environ | {
        "TML_EVIDENCE": str(out / "evidence"),
        "OMP_NUM_THREADS": _threads(jobs),
    }
    began = time.perf_counter()
    child = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    children.append(child)
    with child.stderr:
        tail = _follow(child, lambda done, total: board.step(book.name, done, total))
    _, status, usage = os.wait4(child.pid, 0)  # counts the kernel too, which papermill waits for
    child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    memory = usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    ok = child.returncode == 0
    message = "" if ok else _explain(partial, tail, child.returncode)
    if ok:
        runtime.write_text(out / f"{book.name}.html", run_pages.notebook_page(partial))
        os.replace(partial, final)
    elif partial.exists():
        os.replace(partial, out / f"{book.name}.failed.ipynb")
    result = Result(book.name, ok, round(seconds, 1), round(memory), parameters, message)
    run_folders.keep(result, out)
    return result


def _command(book: Notebook, parameters: dict, out: Path, partial: Path) -> list[str]:
    """What executes a notebook into `partial`; its parameters are written beside its state."""
    settings = runtime.write_text(
        out / "state" / f"{book.name}.parameters.json", json.dumps(parameters)
    )
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(book.path),
        str(partial),
        "--cwd",
        str(book.path.parent),
    ]
    return command + (["--progress-bar", "-f", str(settings)] if parameters else ["--progress-bar"])


def _kill(child: subprocess.Popen) -> None:
    """End papermill and the kernel that it started, which is in a session of its own."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [*psutil.Process(child.pid).children(recursive=True), child]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


FULL = "the disk is full: free some space, then `python -m tml_lib run --resume`"


def _told(error: OSError) -> str:
    return (
        FULL if error.errno in (errno.ENOSPC, errno.EDQUOT) else f"{type(error).__name__}: {error}"
    )


def _threads(jobs: int) -> str:
    return str(max(1, runtime.usable_cores() // jobs))


def _follow(child: subprocess.Popen, step) -> str:
    """Read papermill's progress bar from its standard error, and keep the last of what it says."""
    text = ""
    while chunk := os.read(child.stderr.fileno(), 4096):
        text = (text + chunk.decode(errors="replace"))[-6000:]
        if found := re.findall(r"(\d+)/(\d+) \[", text):
            step(int(found[-1][0]), int(found[-1][1]))
    return text


def _explain(partial: Path, tail: str, code: int) -> str:
    """The error of the failed cell, else the end of what papermill said."""
    if os.strerror(errno.ENOSPC) in tail or os.strerror(errno.EDQUOT) in tail:
        return FULL
    with contextlib.suppress(OSError, ValueError):  # cut short
        for cell in files.notebook(partial, "").cells:
            for output in cell.get("outputs", []):
                if output.output_type == "error":
                    return f"{output.ename}: {output.evalue}"
    return (
        f"papermill ended with status {code}:"
        f" {tail.strip().splitlines()[-1] if tail.strip() else 'it said nothing'}"
    )
