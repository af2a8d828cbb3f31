"""`python -m tml_lib verify`: stored evidence, made again with today's code."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

from tml_lib.claims import ledger, replay
from tml_lib.lessons import notebooks


def run(options) -> int:
    """Replay records of the studies named (all by default), or the one record named; 0 where every
    number lies within its tolerance.
    """
    from tml_lib.studies.replays import REPLAYS

    paths = sorted(notebooks.stored_evidence().glob("*.json"))
    known = {path.name.split(".")[0] for path in paths}
    if unknown := sorted(set(options.study) - known):
        raise ValueError(
            f"study {unknown[0]!r} has no stored evidence: choose among {', '.join(sorted(known))}"
        )
    within, checks = math.inf if options.within is None else options.within, []
    wanted = [
        path for path in paths if not options.study or path.name.split(".")[0] in options.study
    ]
    if options.record:
        wanted = _with_record(wanted, options.record, within)
    nothing = []
    for k, path in enumerate(wanted):
        began, study = time.perf_counter(), ledger.read_evidence(path)["study"]
        found = replay.verify(
            path,
            REPLAYS[study],
            records=options.records,
            seed=options.seed,
            within=within,
            record=options.record,
        )
        before = len(checks)
        try:
            checks += found
        except KeyboardInterrupt:
            print(
                f"interrupted at {path.name}; what was replayed before it follows", file=sys.stderr
            )
            _show(checks, options.json)
            raise
        nothing += [path.name] * (len(checks) == before)
        seconds = time.perf_counter() - began
        print(
            f"{k + 1} of {len(wanted)}: {path.name} in {seconds:.0f} s", file=sys.stderr, flush=True
        )
    _show(checks, options.json)
    if nothing:
        print(
            f"nothing was compared in {', '.join(nothing)}: its model is not here (see `python -m"
            " tml_lib fetch --list`), or no replay is that short",
            file=sys.stderr,
        )
    return 0 if checks and all(check.ok for check in checks) else 1


def _with_record(paths: list[Path], record: str, within: float) -> list[Path]:
    """The evidence files that have a record of that name; ValueError where none has, with the names
    that there are.
    """
    from tml_lib.studies.replays import REPLAYS

    held = {
        path: replay.records_of(path, REPLAYS[ledger.read_evidence(path)["study"]], within=within)
        for path in paths
    }
    if not any(record in names for names in held.values()):
        there = "; ".join(f"{path.name}: {_listed(names)}" for path, names in held.items())
        raise ValueError(f"no record {record!r} can be replayed here. There are: {there}")
    return [path for path, names in held.items() if record in names]


def _listed(names: list[str]) -> str:
    """Records' names, shortened where many differ in their number only."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        kinds.setdefault(name.rstrip("0123456789"), []).append(name)
    said = [of if len(of) < 3 else [f"{of[0]} to {of[-1]}"] for of in kinds.values()]
    return ", ".join(name for group in said for name in group) or "none"


def _show(checks: list[replay.Check], as_json: bool) -> None:
    if as_json:
        print(json.dumps([check.row for check in checks], indent=1, ensure_ascii=False))
    else:
        print(replay.to_text(checks))
