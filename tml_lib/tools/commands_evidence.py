"""The commands of the evidence: study, report, verify.

`add_study` says which arguments `study` takes, and `_study` runs it; so with each.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

from tml_lib import files, runtime
from tml_lib.lessons import notebooks
from tml_lib.tools.arguments import RESUMES, count


def add_study(commands) -> None:
    parser = commands.add_parser(
        "study", help="a study of your own model without a notebook: evidence and an HTML page"
    )
    asked = "material precision strides trajectories roles efficiency rejection rates updates paths"
    parser.add_argument("subject", choices=asked.split())
    parser.add_argument("--preset", default="gpu", help="whose settings are taken (default: gpu)")
    parser.add_argument(
        "--model", default="", help="a folder or a hub name (default: the preset's)"
    )
    parser.add_argument("--adapter", default="", help="a LoRA folder, or 'stored' (the kit's)")
    parser.add_argument(
        "--data", metavar="SET", help="a set of the paper, NAME or NAME=FOLDER; or own=FILE.jsonl"
    )
    parser.add_argument(
        "--trajectories-of",
        type=Path,
        metavar="FILE",
        help="trajectories, strides, rejection, rates: take what a model wrote before, from its"
        " evidence file",
    )
    _add_study_settings(parser)
    parser.add_argument(
        "--out",
        type=Path,
        help="folder (default: runs/studies/<subject>-<scale>-<model>); it resumes",
    )
    parser.set_defaults(command=_study, kept=RESUMES)


def _add_study_settings(parser) -> None:
    """How many questions a study asks, and what it measures of them."""
    parser.add_argument("--n", type=count, default=100, help="questions (default 100)")
    parser.add_argument("--seed", type=int, help="which questions (default 0)")
    parser.add_argument("--stride", type=count, help="probe every so many tokens (default 4)")
    parser.add_argument(
        "--controls",
        type=functools.partial(count, least=0),
        metavar="K",
        help="trajectories: the first K questions have the controls, four of the eight"
        " conditions (default: all)",
    )
    parser.add_argument(
        "--every",
        type=functools.partial(count, least=0),
        metavar="K",
        help="roles: C6, ten times as costly as C3, takes one of K questions (default 4; 0: none)",
    )
    parser.add_argument(
        "--layers",
        choices=("last", "all"),
        help="updates: 'all' also tries updates of every layer, many passes each (default: last)",
    )
    parser.add_argument(
        "--samples",
        type=int,
        help="of the model's own (default 2); trajectories: 0 takes the set's",
    )
    parser.add_argument("--max-tokens", type=count, help="of a sample (default: the preset's)")
    parser.add_argument(
        "--thinking", action="store_true", help="for a model that thinks apart from its answer"
    )


def _study(options) -> int:
    from tml_lib.tools import study

    return study.run(options)


def add_report(commands) -> None:
    parser = commands.add_parser(
        "report", help="the ledger: every claim's estimates, intervals and verdicts"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--write", action="store_true", help="renew the generated parts of README and notebooks"
    )
    parser.add_argument(
        "--repository",
        metavar="URL",
        help="maintainers: the public address, for links, badges and set-up cells",
    )
    parser.add_argument(
        "--record", action="store_true", help="maintainers: keep this clone's set-up and test times"
    )
    parser.set_defaults(command=_report)


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
            print(f"renewed {os.path.relpath(path)}", file=sys.stderr)
    table = ledger.rows([notebooks.stored_evidence()])
    print(ledger.to_json(table) if options.json else ledger.to_text(table))
    return 0


def add_verify(commands) -> None:
    parser = commands.add_parser(
        "verify", help="make stored evidence again, records drawn at random, and compare"
    )
    parser.add_argument("study", nargs="*", help="which studies (default: all)")
    parser.add_argument(
        "--records", type=count, default=1, help="records drawn for each way of replay (default 1)"
    )
    parser.add_argument(
        "--record",
        default="",
        metavar="NAME",
        help="replay this record alone, by its name in the table, such as 'question 7'",
    )
    parser.add_argument("--seed", type=int, default=0, help="which records are drawn (default 0)")
    parser.add_argument(
        "--within",
        type=float,
        metavar="SECONDS",
        help="leave out what takes longer a record on one core",
    )
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(command=_verify)


def _verify(options) -> int:
    from tml_lib.tools import verify

    return verify.run(options)
