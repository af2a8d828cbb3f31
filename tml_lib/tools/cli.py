"""Command line: `python -m tml_lib COMMAND`.

Each command imports what it needs itself, so that `--help`, `list` and `plan` answer at once.
"""

from __future__ import annotations

import argparse
import ast
import functools
import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

from tml_lib import files, parameters, runtime
from tml_lib.lessons import notebooks
from tml_lib.lm import fetching, presets


class Terminated(KeyboardInterrupt):
    """SIGTERM, as batch systems and containers send it before they kill."""


def _terminate(number: int, frame: object) -> None:
    raise Terminated


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns 0 only if all went well. Errors of use are printed on standard error,
    without a traceback. Ctrl-C ends with status 130, SIGTERM with 143: children end first.
    """
    options = _parser().parse_args(arguments)
    options.words = sys.argv[1:] if arguments is None else arguments
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _terminate)
    try:
        return options.command(options)
    except KeyboardInterrupt as error:
        print(f"\ninterrupted; {_what_is_kept(options)}", file=sys.stderr)
        return 143 if isinstance(error, Terminated) else 130
    except (ValueError, TypeError, LookupError, OSError, NotImplementedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _what_is_kept(options) -> str:
    """What an interrupted command leaves, and how to resume it."""
    if options.command in (_study, _sweep, _fetch):
        return "what had finished is kept, and the same command resumes"
    if options.command is not _run or options.out is None:
        return "the same command begins anew"
    again = "python -m tml_lib run --resume" + " --store" * options.store
    return (
        f"what had finished is kept in {_short(options.out)}, and `{again}` resumes the newest run"
        " with its notebooks and settings"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tml_lib", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(
        required=True,
        metavar="run|list|check|fetch|study|bench|report|verify|site|class|plan|sweep|checkpoints",
    )
    run = commands.add_parser("run", help="execute notebooks headless into runs/<time>/")
    run.add_argument(
        "notebook", nargs="*", help="names or beginnings of names (05); all by default"
    )
    run.add_argument(
        "-p",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="a notebook parameter",
    )
    run.add_argument(
        "--resume",
        action="store_true",
        help="resume the newest run, with the notebooks and settings that it was begun with",
    )
    run.add_argument("--jobs", type=_count, help="notebooks side by side (default: one per core)")
    run.add_argument(
        "--store",
        action="store_true",
        help="maintainers: put outputs and measured costs into notebooks/",
    )
    run.set_defaults(command=_run, out=None)
    listing = commands.add_parser(
        "list", help="list the notebooks, their parameters and the presets"
    )
    listing.set_defaults(command=_list)
    check = commands.add_parser(
        "check", help="versions, device, cores, memory, embedded model, needs of each preset"
    )
    check.add_argument("--json", action="store_true")
    check.set_defaults(command=_check)
    fetch = commands.add_parser(
        "fetch", help="bring a larger model's weights into the cache, once, and convert them"
    )
    fetch.add_argument("what", nargs="?", default="medium", help="preset or weights by name")
    fetch.add_argument("--file", type=Path, help="the GGUF file, where it is here already")
    fetch.add_argument(
        "--dtype",
        choices=list(fetching.ITEM_BYTES),
        help="of the stored weights (default: bfloat16 where the hardware computes in it)",
    )
    fetch.add_argument("--list", action="store_true", help="show what is there, and fetch nothing")
    fetch.set_defaults(command=_fetch)
    bench = commands.add_parser("bench", help="benchmarks, as ratios in one interleaved run")
    bench.add_argument(
        "what",
        nargs="*",
        metavar="probe|forked|medium|path|maml|rollouts|sft|grpo|landscape|plan|gpu",
        help="which benchmarks (default: all but gpu, which needs one)",
    )
    bench.add_argument("--json", action="store_true")
    bench.add_argument(
        "--rounds", type=_count, default=3, help="turns of each comparison (default 3)"
    )
    bench.add_argument(
        "--record",
        action="store_true",
        help="maintainers: keep the figures in notebooks/measured.json",
    )
    bench.set_defaults(command=_bench)
    table = commands.add_parser(
        "report", help="the ledger: every claim's estimates, intervals and verdicts"
    )
    table.add_argument("--json", action="store_true")
    table.add_argument(
        "--write", action="store_true", help="renew the generated parts of README and notebooks"
    )
    table.add_argument(
        "--repository",
        metavar="URL",
        help="maintainers: the public address, for links, badges and set-up cells",
    )
    table.add_argument(
        "--record", action="store_true", help="maintainers: keep this clone's set-up and test times"
    )
    table.set_defaults(command=_report)
    again = commands.add_parser(
        "verify", help="make stored evidence again, records drawn at random, and compare"
    )
    again.add_argument("study", nargs="*", help="which studies (default: all)")
    again.add_argument(
        "--records", type=_count, default=1, help="records drawn for each way of replay (default 1)"
    )
    again.add_argument(
        "--record",
        default="",
        metavar="NAME",
        help="replay this record alone, by its name in the table, such as 'question 7'",
    )
    again.add_argument("--seed", type=int, default=0, help="which records are drawn (default 0)")
    again.add_argument(
        "--within",
        type=float,
        metavar="SECONDS",
        help="leave out what takes longer a record on one core",
    )
    again.add_argument("--json", action="store_true")
    again.set_defaults(command=_verify)
    _study_parser(commands)
    pages = commands.add_parser(
        "site",
        help="build the kit as a static site: the report, README, notebooks with their outputs",
    )
    pages.add_argument("--out", type=Path, help="folder (default: runs/site)")
    pages.set_defaults(command=_site)
    copies = commands.add_parser(
        "class", help="copies of the notebooks without outputs and solutions, for a class"
    )
    copies.add_argument("--out", type=Path, help="a new folder (default: runs/class)")
    copies.set_defaults(command=_class)
    plan = commands.add_parser(
        "plan",
        help="what claims cost at the paper's scale or on a free T4: tokens, memory, GPU-hours",
    )
    plan.add_argument(
        "--claim", nargs="+", default=[], metavar="C4", help="which claims (default: all)"
    )
    plan.add_argument(
        "--model",
        default="",
        help="a known name or a folder with config.json (default: the paper's)",
    )
    plan.add_argument("--gpu", default="", help="a known device (default: the scale's)")
    plan.add_argument("--scale", choices=["paper", "colab"], default="paper")
    plan.add_argument("--json", action="store_true")
    plan.set_defaults(command=_plan)
    grid = commands.add_parser(
        "sweep", help="run a notebook or an outer loop over a grid of parameters and seeds"
    )
    grid.add_argument(
        "file",
        type=Path,
        metavar="FILE.yaml",
        help="notebook or outer, grid, fixed, out (see tml_lib/tools/sweep.py)",
    )
    grid.add_argument(
        "--engine",
        choices=["loky", "dask", "ray"],
        default="loky",
        help="loky: this machine (default)",
    )
    grid.add_argument(
        "--workers", type=_count, help="runs side by side on this machine (default: one per core)"
    )
    grid.add_argument("--address", default="", help="of a running cluster of dask or ray")
    grid.add_argument("--json", action="store_true")
    grid.set_defaults(command=_sweep)
    weights = commands.add_parser(
        "checkpoints", help="maintainers: train the shipped tiny models anew (half an hour)"
    )
    weights.add_argument("name", nargs="*", help="which ones (default: all, the base first)")
    weights.set_defaults(command=_checkpoints)
    return parser


def _study_parser(commands) -> None:
    one = commands.add_parser(
        "study", help="a study of your own model without a notebook: evidence and an HTML page"
    )
    subjects = "material precision strides trajectories roles efficiency updates paths"
    one.add_argument("subject", choices=subjects.split())
    one.add_argument("--preset", default="gpu", help="whose settings are taken (default: gpu)")
    one.add_argument("--model", default="", help="a folder or a hub name (default: the preset's)")
    one.add_argument("--adapter", default="", help="a LoRA folder, or 'stored' (the kit's)")
    one.add_argument(
        "--data", metavar="SET", help="a set of the paper, NAME or NAME=FOLDER; or own=FILE.jsonl"
    )
    one.add_argument(
        "--trajectories-of",
        type=Path,
        metavar="FILE",
        help="trajectories, strides: read what a model wrote before, from its evidence file",
    )
    one.add_argument("--n", type=_count, default=100, help="questions (default 100)")
    one.add_argument("--seed", type=int, help="which questions (default 0)")
    one.add_argument("--stride", type=_count, help="probe every so many tokens (default 4)")
    one.add_argument(
        "--controls",
        type=functools.partial(_count, least=0),
        metavar="K",
        help="trajectories: the first K questions have the controls, half of the cost (default:"
        " all)",
    )
    one.add_argument(
        "--every",
        type=functools.partial(_count, least=0),
        metavar="K",
        help="roles: C6, ten times as costly as C3, takes one of K questions (default 4; 0: none)",
    )
    one.add_argument(
        "--layers",
        choices=("last", "all"),
        help="updates: 'all' also tries updates of every layer, many passes each (default: last)",
    )
    one.add_argument(
        "--samples",
        type=int,
        help="of the model's own (default 2); trajectories: 0 takes the set's",
    )
    one.add_argument("--max-tokens", type=_count, help="of a sample (default: the preset's)")
    one.add_argument(
        "--thinking", action="store_true", help="for a model that thinks apart from its answer"
    )
    one.add_argument(
        "--out",
        type=Path,
        help="folder (default: runs/studies/<subject>-<scale>-<model>); it resumes",
    )
    one.set_defaults(command=_study)


def _count(text: str, least: int = 1) -> int:
    """A whole number on the command line that is at least `least`."""
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least {least}")
    return int(text)


def _run(options) -> int:
    from tml_lib.claims import ledger
    from tml_lib.lessons import generated

    began = time.perf_counter()
    books, given = notebooks.select(options.notebook), _given(options.p)
    if options.resume:
        options.out, books, given = notebooks.resumed(options.notebook, given)
    settings = notebooks.check_given(books, given)
    own = [{"preset": book.preset, "model": ""} | settings[book.name] for book in books]
    for name, model in {(one["preset"], one["model"]) for one in own}:
        if name and presets.is_converted(name, model):
            from tml_lib.lm import models

            # converted here once rather than by two notebooks at the same time
            models.prepare(name, model)
    out = options.out = options.out or notebooks.new_run(books, given)
    print(f"{len(books)} notebooks into {_short(out)}", file=sys.stderr)
    results = notebooks.run(books, settings, out, jobs=options.jobs)
    index = notebooks.write_index(out, results)
    everything = books == notebooks.discover()
    seconds = time.perf_counter() - began
    if options.store:
        own = {
            book.name
            for book in books
            if settings[book.name].get("preset", book.preset) == book.preset
        }
        for result in results:
            if result.ok and result.name in own:  # at another preset only the costs are kept
                notebooks.store(result, out)
        generated.record_notebooks([r for r in results if r.ok])
        if everything and not options.resume:
            generated.record(commands={"run": round(seconds)})
    print(ledger.to_text(_shown(books, out, everything=everything)))
    failed = [result.name for result in results if not result.ok]
    print(
        f"\n{len(results) - len(failed)} of {len(results)} notebooks finished in {seconds:.0f} s."
        f" Look at {_short(index)}"
    )
    if failed:
        print(
            f"failed: {', '.join(failed)}; see {_short(out)}/<name>.failed.ipynb", file=sys.stderr
        )
    return 1 if failed else 0


def _shown(books, out: Path, *, everything: bool) -> list:
    """The ledger's rows after a run: this run's and, of the claims that its notebooks speak of, the
    stored ones; after a run of everything, all.
    """
    from tml_lib.claims import ledger

    made = ledger.rows([out / "evidence"])
    spoken = {claim for book in books for claim in book.claims} | {row.claim for row in made}
    stored = [
        row
        for row in ledger.rows([notebooks.stored_evidence()])
        if everything or any(re.fullmatch(rf"{claim}[a-z]?", row.claim) for claim in spoken)
    ]
    # by claim and test, in the ledger's order; of one test this run's row first
    table = [(row, 0) for row in made] + [(row, 1) for row in stored]
    order = {name: k for k, name in enumerate(ledger.rules())}
    return [
        row
        for row, _ in sorted(table, key=lambda pair: (order[pair[0].claim, pair[0].test], pair[1]))
    ]


def _given(pairs: list[tuple[str, str]]) -> dict[str, object]:
    """Parameters by name; a path that exists from where the command was called is absolute."""
    return {name: parameters.expanded(name, _value(text), Path.cwd()) for name, text in pairs}


def _value(text: str) -> object:
    """A parameter value from the command line: Python literals as such ('3', 'True'), anything else
    as a string.
    """
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _short(path: Path) -> str:
    return os.path.relpath(path)


def _list(options) -> int:
    for book in notebooks.discover():
        names = ", ".join(f"{name}: {kind}" for name, kind in book.parameters.items())
        print(f"{book.name}: {book.title}\n    {names}")
    for preset in presets.PRESETS.values():
        model = Path(preset.model).name if preset.name == "tiny" else preset.model
        print(f"preset {preset.name}: {model} on {preset.task}; {preset.needs}")
    return 0


def _check(options) -> int:
    found = {
        "versions": runtime.versions(),
        **runtime.resources(),
        "device": str(runtime.pick_device()),
    }
    file = presets.embedded_gguf()
    found["embedded_model"] = "installed" if file else f"missing: run `{presets.EMBEDDED_INSTALL}`"
    dtype, why = runtime.hardware_dtype()
    found["dtype_of_hardware"] = f"{dtype}: {why}"
    found["fetched"] = {name: fetching.state(w) for name, w in fetching.known().items()}
    found["presets"] = {
        p.name: (
            f"{p.model}, {p.dtype_on()}: {p.disk_gb:g} GB of disk,"
            f" {p.memory_gb:g} GB of memory; {p.needs}"
        )
        for p in presets.PRESETS.values()
    }
    if options.json:
        print(json.dumps(found, indent=1))
    else:
        for key, value in found.items():
            print(f"{key}: {'' if isinstance(value, dict) else value}")
            for name, item in value.items() if isinstance(value, dict) else ():
                print(f"  {name}: {item}")
    return 0 if file else 1


def _bench(options) -> int:
    from tml_lib.lessons import generated
    from tml_lib.tools import bench

    if unknown := [what for what in options.what if what not in bench.BENCHMARKS]:
        raise ValueError(
            f"unknown benchmark {unknown[0]!r}: choose among {', '.join(bench.BENCHMARKS)}"
        )
    rows = []
    for what in options.what or [name for name in bench.BENCHMARKS if name != "gpu"]:
        rows += bench.BENCHMARKS[what](
            rounds=options.rounds, say=lambda line: print(line, file=sys.stderr, flush=True)
        )
    if options.record:
        generated.record_bench(rows)
    if options.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        for row in rows:
            print(f"{row['name']} ({row['setting']}): {row['value']:g} {row['unit']}  {row['bar']}")
    return 0


def _checkpoints(options) -> int:
    from tml_lib.tools import checkpoints

    for name in options.name:
        presets.shipped(name)
    for name in options.name or presets.SHIPPED:
        entry = checkpoints.make(name, progress=True)
        print(
            f"{name}: {entry['steps']} steps in {entry['seconds']:.0f} s, loss"
            f" {entry['loss_by_100_steps'][-1]:.3f}",
            flush=True,
        )
    return 0


def _study(options) -> int:
    from tml_lib.tools import study

    return study.run(options)


def _site(options) -> int:
    from tml_lib.tools import site

    print(f"open {_short(site.build(options.out))}")
    return 0


def _class(options) -> int:
    from tml_lib.tools import classroom

    out = _short(classroom.build(options.out))
    print(f"open them with `{_short(Path(sys.executable))} -m jupyter lab --notebook-dir={out}`")
    return 0


def _verify(options) -> int:
    from tml_lib.tools import verify

    return verify.run(options)


def _fetch(options) -> int:
    from tml_lib.tools import fetch

    return fetch.run(options)


def _plan(options) -> int:
    from tml_lib.tools import plan

    return plan.run(options)


def _sweep(options) -> int:
    from tml_lib.tools import sweep

    return sweep.run(options)


def _report(options) -> int:
    from tml_lib.claims import ledger
    from tml_lib.lessons import generated

    if options.record:
        venv = runtime.project_root() / ".venv"
        held = {name: venv / f".{name}-seconds" for name in ("setup", "test")}
        generated.record(
            commands={
                name: int(files.text(path, f"run `make {name}` again"))
                for name, path in held.items()
                if path.is_file()
            }
        )
    if options.repository:
        generated.set_home(options.repository)
    if options.write or options.repository:
        for path in generated.outdated(write=True):
            print(f"renewed {_short(path)}", file=sys.stderr)
    table = ledger.rows([notebooks.stored_evidence()])
    print(ledger.to_json(table) if options.json else ledger.to_text(table))
    return 0
