"""Find and execute the notebooks headless with papermill: side by side, resumable, with evidence
and an index page.
"""

from __future__ import annotations

import contextlib
import errno
import html
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from urllib.parse import quote

from tml_lib import files, parameters, runtime
from tml_lib.lm import presets


@dataclass(frozen=True)
class Notebook:
    """A notebook of the kit: its file, title and declared parameters (name -> type name)."""

    path: Path
    title: str
    parameters: dict[str, str]
    preset: str = ""  # the committed default, where it has such a parameter
    any_preset: bool = False  # whether it asks each preset's own questions
    claims: tuple[str, ...] = ()  # that its first cell names ('C11' stands for C11g too)

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def number(self) -> str:
        """What it is called by: '05b' of '05b_right_against_wrong'."""
        return self.name.partition("_")[0]

    @property
    def subject(self) -> str:
        """The name of its exercises' module: 'right_against_wrong'."""
        return self.name.partition("_")[2]

    @property
    def presets(self) -> list[str]:
        """Presets that it runs on: all that it has questions for, by default those of its own
        preset's; none without one.
        """
        known = presets.PRESETS
        return [
            name
            for name in known
            if self.preset and (self.any_preset or known[name].task == known[self.preset].task)
        ]


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


def folder() -> Path:
    """notebooks/ of the clone."""
    return runtime.project_root() / "notebooks"


def stored_evidence() -> Path:
    """The committed evidence of runs that take longer than a notebook may."""
    return folder() / "evidence"


def discover() -> list[Notebook]:
    """All notebooks `NN_name.ipynb`, in order; a lesson in parts has a letter, `NNa_name.ipynb`."""
    found = (path for path in folder().glob("*.ipynb") if re.match(r"\d\d[a-z]?_", path.name))
    return [_describe(path) for path in sorted(found)]


def _describe(path: Path) -> Notebook:
    # as plain JSON: nbformat and its validator take seconds to import
    held = files.table(path, files.COMMITTED, {"cells": list})["cells"]
    first = next("".join(cell["source"]) for cell in held if cell["cell_type"] == "markdown")
    title = first.lstrip().splitlines()[0].lstrip("# ")
    cells = [
        "".join(cell["source"]) for cell in held if "parameters" in cell["metadata"].get("tags", [])
    ]
    default = re.search(r'^preset: str = "(\w+)"', cells[0], re.MULTILINE) if cells else None
    declared = runtime.declared_parameters(cells[0]) if cells else {}
    allowed = parameters.rule("preset", tuple(declared))
    any_preset = bool(default) and allowed.choices == tuple(presets.PRESETS)
    named = tuple(dict.fromkeys(re.findall(r"\b[CMGT]\d+[a-z]?\b", first)))
    return Notebook(path, title, declared, default[1] if default else "", any_preset, named)


def select(wanted: list[str]) -> list[Notebook]:
    """The notebooks whose names begin with the given ones ('04', or '05' for 05a, 05b and 05c); all
    where none is given.
    """
    found = discover()
    chosen = []
    for start in wanted:
        matches = [book for book in found if book.name.startswith(start.removesuffix(".ipynb"))]
        if not matches:
            raise ValueError(
                f"no notebook begins with {start!r}: there are"
                f" {', '.join(book.name for book in found)}"
            )
        chosen += [book for book in matches if book not in chosen]
    return chosen or found


def check_given(books: list[Notebook], settings: dict[str, object]) -> dict[str, dict[str, object]]:
    """Parameters per notebook. Each must be declared, with that type, by at least one of them, and
    goes to those.
    """
    runtime.check_names(settings, dict.fromkeys(name for book in books for name in book.parameters))
    for book in books:
        for name in settings.keys() & book.parameters.keys():
            runtime.check_value(name, settings[name], book.parameters[name])
    if "preset" in settings:
        wanted = presets.preset(settings["preset"]).name
        for book in books:
            if book.preset and wanted not in book.presets:
                known = " or ".join(book.presets)
                raise ValueError(
                    f"notebook {book.name} does not ask the questions of preset {wanted!r}: give it"
                    f" {known}"
                )
    own = {book.name: {k: v for k, v in settings.items() if k in book.parameters} for book in books}
    for book in books:
        # relative paths begin where the kernel will run
        values = {"preset": book.preset, **own[book.name]} if book.preset else own[book.name]
        parameters.check(values, tuple(book.parameters), book.path.parent)
    return own


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
    return select([str(name) for name in held["notebooks"]]), held["settings"]


def resumed(
    wanted: list[str], settings: dict[str, object]
) -> tuple[Path, list[Notebook], dict[str, object]]:
    """The newest run: its folder, and the notebooks and settings that it was begun with. Raises
    ValueError where names or settings that are given now differ from these.
    """
    out = newest_run()
    books, begun = begun_with(out)
    same = not wanted or {b.name for b in select(wanted)} == {b.name for b in books}
    if not same or any(name not in begun or begun[name] != settings[name] for name in settings):
        every = books == discover()
        numbers = "" if every else " ".join(book.number for book in books)
        command = " ".join(runtime.run_command(numbers, begun).split())
        raise ValueError(
            f"the newest run, {os.path.relpath(out)}, was begun with `{command}`: `python -m"
            " tml_lib run --resume` resumes that one, without names and -p. For other notebooks or"
            " settings leave --resume out"
        )
    return out, books, begun


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
    board = _Board([book.name for book in books])
    results: dict[str, Result] = {}
    children: list[subprocess.Popen] = []

    def one(book: Notebook) -> None:
        held = _finished(out, book.name, parameters[book.name])
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


_KINDS = {"str": str, "bool": bool, "float": float, "dict": dict}  # of a result's fields


def _finished(out: Path, name: str, parameters: dict) -> Result | None:
    state = out / "state" / f"{name}.json"
    if not os.path.lexists(state) or not (out / f"{name}.ipynb").is_file():
        return None
    step = "delete it, and `run --resume` executes the notebook again"
    kinds = {field.name: _KINDS[field.type] for field in fields(Result)}
    held = files.table(state, step, kinds)
    result = Result(**{name: held[name] for name in kinds})
    return result if result.ok and result.parameters == parameters else None


def _execute(
    book: Notebook, parameters: dict, out: Path, jobs: int, board: _Board, children: list
) -> Result:
    partial, final = out / f"{book.name}.partial.ipynb", out / f"{book.name}.ipynb"
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
    command += ["--progress-bar", "-f", str(settings)] if parameters else ["--progress-bar"]
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
        runtime.write_text(out / f"{book.name}.html", _html(partial))
        os.replace(partial, final)
    elif partial.exists():
        os.replace(partial, out / f"{book.name}.failed.ipynb")
    result = Result(book.name, ok, round(seconds, 1), round(memory), parameters, message)
    runtime.write_text(out / "state" / f"{book.name}.json", json.dumps(asdict(result)))
    return result


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


def _html(path: Path) -> str:
    from nbconvert import HTMLExporter

    book = files.notebook(path, "run the notebook again")
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = without_widgets(cell.outputs)
        for output in cell.get("outputs", []):
            make_harmless(output.get("data", {}))
    book.metadata.pop("widgets", None)  # whose labels may hold anything
    return HTMLExporter(embed_images=True).from_notebook_node(book)[0]


# where the address of a link begins that leads neither to a page of the kit nor to another site
_LINK = re.compile(r"(?m)(\]\(|^ {0,3}\[[^\]]+\]:)\s*(?!https?://|#|\d\d[a-z]?_\w+\.ipynb)")


def make_harmless(data: dict) -> None:
    """What a browser would run in an output becomes text: a model's name or a question may hold
    anything. The kit's own outputs are text, pictures, Markdown without HTML, and the view of a
    trajectory, which is written anew from its data; a reader's HTML is in the notebook itself, and
    its page shows the text beside it.
    """
    from tml_lib.lessons import explorer

    for kind in ("text/html", "image/svg+xml", "application/javascript", "text/latex"):
        data.pop(kind, None)
    view = data.pop(explorer.MIME, None)
    with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):  # not the kit's
        data["text/html"] = explorer.html(view)
    if "text/markdown" in data:
        text = re.sub(r"&(?=[#\w])", "&amp;", data["text/markdown"]).replace("<", "&lt;")
        text = _LINK.sub(r"\1./", text)  # an address such as javascript:… runs when it is clicked
        data["text/markdown"] = re.sub(r"(?i)(javascript|vbscript|data)\s*:", r"\1 :", text)


class _Board:
    """The progress display: a line that is rewritten on a terminal, a line per event and half
    minute elsewhere.
    """

    def __init__(self, names: list[str]):
        self._state = dict.fromkeys(names, "waits")
        self._lock = threading.Lock()
        self._began = self._shown = time.perf_counter()
        self._live = sys.stderr.isatty()

    def step(self, name: str, done: int, total: int) -> None:
        with self._lock:
            self._state[name] = f"cell {done}/{total}"
            now = time.perf_counter()
            if self._live or now - self._shown > 30:
                self._shown = now
                running = " · ".join(
                    f"{n} {s}" for n, s in self._state.items() if s not in ("waits", "done")
                )
                ready = sum(s == "done" for s in self._state.values())
                line = f"[{now - self._began:4.0f} s] {ready}/{len(self._state)} done · {running}"
                print(
                    f"\r{line[:110]:110}" if self._live else line,
                    end="" if self._live else "\n",
                    file=sys.stderr,
                    flush=True,
                )

    def done(self, result: Result, *, again: bool) -> None:
        with self._lock:
            self._state[result.name] = "done"
            what = "finished" if result.ok else "FAILED"
            took = (
                f"{result.seconds:.0f} s, {result.memory_mb / 1000:.2f} GB"
                if again
                else "kept from the earlier run"
            )
            print(
                f"{chr(13) if self._live else ''}{result.name}: {what} ({took})".ljust(110),
                file=sys.stderr,
                flush=True,
            )
            if result.message:
                print(f"  {result.message}", file=sys.stderr, flush=True)


def write_index(out: Path, results: list[Result]) -> Path:
    """index.html of a run: its notebooks with time and memory, its evidence and the ledger table;
    needs no network.
    """
    from tml_lib.claims import ledger

    lines = []
    for result in results:
        state = "finished" if result.ok else f"failed: {html.escape(result.message)}"
        link = html.escape(result.name)
        link = f'<a href="{quote(result.name)}.html">{link}</a>' if result.ok else link
        lines.append(
            f"<tr><td>{link}<td>{state}<td>{result.seconds:.0f}"
            f" s<td>{result.memory_mb / 1000:.2f} GB"
        )
    files = "".join(
        f'<li><a href="evidence/{quote(p.name)}">{html.escape(p.name)}</a>'
        for p in sorted((out / "evidence").glob("*.json"))
    )
    table = html.escape(ledger.to_text(ledger.rows([out / "evidence", stored_evidence()])))
    style = (
        "body{font:16px/1.5 system-ui;margin:2rem auto;max-width:70rem}td{padding:.2rem 1rem .2rem"
        " 0}pre{overflow:auto}"
    )
    page = f"""<!doctype html><meta charset="utf-8"><title>Run {html.escape(out.name)}</title>
<style>{style}</style>
<h1>Run {html.escape(out.name)}</h1>
<table><tr><th>notebook<th>state<th>time<th>peak memory{"".join(lines)}</table>
<h2>Evidence of this run</h2><ul>{files}</ul>
<h2>Ledger (this run's evidence and the stored one)</h2><pre>{table}</pre>
"""
    return runtime.write_text(out / "index.html", page)


def store(result: Result, out: Path) -> None:
    """Put an executed notebook's outputs into the committed one: without progress bars, timings and
    run metadata.
    """
    import nbformat

    done = files.notebook(out / f"{result.name}.ipynb", "run the notebook again")
    for cell in done.cells:
        cell.metadata = nbformat.from_dict(
            {k: v for k, v in cell.metadata.items() if k in ("tags", "jupyter")}
        )
        if cell.cell_type == "code":
            cell.outputs = _without_errors(cell.outputs)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    done.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    runtime.write_text(folder() / f"{result.name}.ipynb", nbformat.writes(done) + "\n")


WIDGET = "application/vnd.jupyter.widget-view+json"


def without_widgets(outputs: list) -> list:
    """A cell's outputs less the widgets (progress bars, boxes), which are nothing without
    a kernel.
    """
    return [output for output in outputs if WIDGET not in output.get("data", {})]


def _without_errors(outputs: list) -> list:
    """A cell's outputs less widgets and what it wrote to standard error; what these had cut in two
    is one again.
    """
    kept = []
    for output in without_widgets(outputs):
        if output.output_type == "stream" and output.name == "stderr":
            continue
        if kept and output.output_type == kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept
