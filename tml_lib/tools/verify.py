"""`python -m tml_lib verify`: stored evidence, made again with today's code."""

from __future__ import annotations

import json
import math
import sys
import time

from tml_lib.claims import ledger, replay
from tml_lib.lessons import notebooks


def run(options) -> int:
    """Replay records of the studies named (all by default); 0 where every number lies within its
    tolerance.
    """
    from tml_lib.studies.replays import REPLAYS

    paths = sorted(notebooks.stored_evidence().glob("*.json"))
    known = {path.name.split(".")[0] for path in paths}
    if unknown := sorted(set(options.study) - known):
        raise ValueError(
            f"study {unknown[0]!r} has no stored evidence: choose among {', '.join(sorted(known))}"
        )
    if options.records < 1:
        raise ValueError(f"records={options.records} replays nothing: ask for at least 1")
    within, checks = math.inf if options.within is None else options.within, []
    wanted = [
        path for path in paths if not options.study or path.name.split(".")[0] in options.study
    ]
    for k, path in enumerate(wanted):
        began, study = time.perf_counter(), ledger.read_evidence(path)["study"]
        found = replay.verify(
            path, REPLAYS[study], records=options.records, seed=options.seed, within=within
        )
        try:
            checks += found
        except KeyboardInterrupt:
            print(
                f"interrupted at {path.name}; what was replayed before it follows", file=sys.stderr
            )
            _show(checks, options.json)
            raise
        seconds = time.perf_counter() - began
        print(
            f"{k + 1} of {len(wanted)}: {path.name} in {seconds:.0f} s", file=sys.stderr, flush=True
        )
    _show(checks, options.json)
    return 0 if all(check.ok for check in checks) else 1


def _show(checks: list[replay.Check], as_json: bool) -> None:
    if as_json:
        print(json.dumps([check.row for check in checks], indent=1, ensure_ascii=False))
    else:
        print(replay.to_text(checks))
