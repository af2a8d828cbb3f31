"""Command line: `python -m tml_lib COMMAND`.

Each command imports what it needs itself, so that `--help`, `list` and `plan` answer at once.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading

from tml_lib.tools import commands_evidence, commands_machine, commands_notebooks
from tml_lib.tools.arguments import ANEW

COMMANDS = (  # in the order of --help
    commands_notebooks.add_run,
    commands_notebooks.add_list,
    commands_machine.add_check,
    commands_machine.add_fetch,
    commands_machine.add_bench,
    commands_evidence.add_report,
    commands_evidence.add_verify,
    commands_evidence.add_study,
    commands_notebooks.add_site,
    commands_notebooks.add_class,
    commands_machine.add_plan,
    commands_machine.add_sweep,
    commands_machine.add_checkpoints,
)


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
        print(f"\ninterrupted; {options.kept}", file=sys.stderr)
        return 143 if isinstance(error, Terminated) else 130
    except (ValueError, TypeError, LookupError, OSError, NotImplementedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    """Sets `command`, the function that runs it, and `kept`, what it leaves where it is
    interrupted.
    """
    parser = argparse.ArgumentParser(prog="python -m tml_lib", description=__doc__.splitlines()[0])
    parser.set_defaults(kept=ANEW)
    commands = parser.add_subparsers(
        required=True,
        metavar="run|list|check|fetch|study|bench|report|verify|site|class|plan|sweep|checkpoints",
    )
    for add in COMMANDS:
        add(commands)
    return parser
