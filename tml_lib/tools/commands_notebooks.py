"""The commands of the notebooks: run, list, site, class.

`add_run` says which arguments `run` takes, and `_run` runs it; so with each.
"""

from __future__ import annotations

import ast
import os
import re
import sys
import time
from pathlib import Path

from tml_lib import parameters
from tml_lib.lessons import execution, notebooks, outputs, run_folders, run_pages
from tml_lib.lessons.notebooks import Notebook
from tml_lib.lessons.run_folders import Result
from tml_lib.lm import presets
from tml_lib.tools.arguments import count


def add_run(commands) -> None:
    parser = commands.add_parser("run", help="execute notebooks headless into runs/<time>/")
    parser.add_argument(
        "notebook", nargs="*", help="names or beginnings of names (05); all by default"
    )
    parser.add_argument(
        "-p",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="a notebook parameter",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="resume the newest run, with the notebooks and settings that it was begun with",
    )
    parser.add_argument("--jobs", type=count, help="notebooks side by side (default: one per core)")
    parser.add_argument(
        "--store",
        action="store_true",
        help="maintainers: put outputs and measured costs into notebooks/",
    )
    parser.set_defaults(command=_run)


def _run(options) -> int:
    from tml_lib.claims import ledger
    from tml_lib.lessons import generated

    began = time.perf_counter()
    out, books, given = None, notebooks.select(options.notebook), _given(options.p)
    if options.resume:
        out, books, given = run_folders.resumed(options.notebook, given)
        options.kept = _kept(out, store=options.store)
    settings = notebooks.check_given(books, given)
    _convert(books, settings)
    out = out or run_folders.new_run(books, given)
    options.kept = _kept(out, store=options.store)
    print(f"{len(books)} notebooks into {os.path.relpath(out)}", file=sys.stderr)
    results = execution.run(books, settings, out, jobs=options.jobs)
    index = run_pages.write_index(out, results)
    everything = books == notebooks.discover()
    seconds = time.perf_counter() - began
    if options.store:
        _store(books, settings, results, out)
        if everything and not options.resume:
            generated.record(commands={"run": round(seconds)})
    print(ledger.to_text(_shown(books, out, everything=everything)))
    failed = [result.name for result in results if not result.ok]
    print(
        f"\n{len(results) - len(failed)} of {len(results)} notebooks finished in {seconds:.0f} s."
        f" Look at {os.path.relpath(index)}"
    )
    if failed:
        where = f"{os.path.relpath(out)}/<name>.failed.ipynb"
        print(f"failed: {', '.join(failed)}; see {where}", file=sys.stderr)
    return 1 if failed else 0


def _kept(out: Path, *, store: bool) -> str:
    """What a run leaves where it is interrupted, and how to resume it."""
    again = "python -m tml_lib run --resume" + " --store" * store
    return (
        f"what had finished is kept in {os.path.relpath(out)}, and `{again}` resumes the newest run"
        " with its notebooks and settings"
    )


def _convert(books: list[Notebook], settings: dict[str, dict]) -> None:
    """Convert the weights that notebooks need, here once rather than by two at the same time."""
    own = [{"preset": book.preset, "model": ""} | settings[book.name] for book in books]
    for name, model in {(one["preset"], one["model"]) for one in own}:
        if name and presets.is_converted(name, model):
            from tml_lib.lm import models

            models.prepare(name, model)


def _store(
    books: list[Notebook], settings: dict[str, dict], results: list[Result], out: Path
) -> None:
    """Put outputs and costs into notebooks/; of a run at another preset only the costs."""
    from tml_lib.lessons import generated

    own = {
        book.name for book in books if settings[book.name].get("preset", book.preset) == book.preset
    }
    for result in results:
        if result.ok and result.name in own:
            outputs.store(result, out)
    generated.record_notebooks([result for result in results if result.ok])


def _shown(books: list[Notebook], out: Path, *, everything: bool) -> list:
    """The ledger's rows after a run: this run's and, of the claims that its notebooks speak of, the
    stored ones; after a run of everything, all.
    """
    from tml_lib.claims import ledger, rulebook

    made = ledger.rows([out / "evidence"])
    spoken = {claim for book in books for claim in book.claims} | {row.claim for row in made}
    stored = [
        row
        for row in ledger.rows([notebooks.stored_evidence()])
        if everything or any(re.fullmatch(rf"{claim}[a-z]?", row.claim) for claim in spoken)
    ]
    # by claim and test, in the ledger's order; of one test this run's row first
    table = [(row, 0) for row in made] + [(row, 1) for row in stored]
    order = {name: k for k, name in enumerate(rulebook.rules())}
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


def add_list(commands) -> None:
    parser = commands.add_parser(
        "list", help="list the notebooks, their parameters and the presets"
    )
    parser.set_defaults(command=_list)


def _list(options) -> int:
    for book in notebooks.discover():
        names = ", ".join(f"{name}: {kind}" for name, kind in book.parameters.items())
        print(f"{book.name}: {book.title}\n    {names}")
    for preset in presets.PRESETS.values():
        model = Path(preset.model).name if preset.name == "tiny" else preset.model
        print(f"preset {preset.name}: {model} on {preset.task}; {preset.needs}")
    return 0


def add_site(commands) -> None:
    parser = commands.add_parser(
        "site",
        help="build the kit as a static site: the report, README, notebooks with their outputs",
    )
    parser.add_argument("--out", type=Path, help="folder (default: runs/site)")
    parser.set_defaults(command=_site)


def _site(options) -> int:
    from tml_lib.tools import site

    print(f"open {os.path.relpath(site.build(options.out))}")
    return 0


def add_class(commands) -> None:
    parser = commands.add_parser(
        "class", help="copies of the notebooks without outputs and solutions, for a class"
    )
    parser.add_argument("--out", type=Path, help="a new folder (default: runs/class)")
    parser.set_defaults(command=_class)


def _class(options) -> int:
    from tml_lib.tools import classroom

    out = os.path.relpath(classroom.build(options.out))
    python = os.path.relpath(sys.executable)
    print(f"open them with `{python} -m jupyter lab --notebook-dir={out}`")
    return 0
