"""The commands of this machine and its models: check, fetch, bench, plan, sweep, checkpoints.

`add_check` says which arguments `check` takes, and `_check` runs it; so with each.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tml_lib import runtime
from tml_lib.lm import fetching, presets
from tml_lib.tools.arguments import RESUMES, count


def add_check(commands) -> None:
    parser = commands.add_parser(
        "check", help="versions, device, cores, memory, embedded model, needs of each preset"
    )
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(command=_check)


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


def add_fetch(commands) -> None:
    parser = commands.add_parser(
        "fetch", help="bring a larger model's weights into the cache, once, and convert them"
    )
    parser.add_argument("what", nargs="?", default="medium", help="preset or weights by name")
    parser.add_argument("--file", type=Path, help="the GGUF file, where it is here already")
    parser.add_argument(
        "--dtype",
        choices=list(fetching.ITEM_BYTES),
        help="of the stored weights (default: bfloat16 where the hardware computes in it)",
    )
    parser.add_argument("--list", action="store_true", help="show what is there, and fetch nothing")
    parser.set_defaults(command=_fetch, kept=RESUMES)


def _fetch(options) -> int:
    from tml_lib.tools import fetch

    return fetch.run(options)


def add_bench(commands) -> None:
    parser = commands.add_parser("bench", help="benchmarks, as ratios in one interleaved run")
    parser.add_argument(
        "what",
        nargs="*",
        metavar="probe|forked|medium|path|maml|rollouts|sft|grpo|landscape|plan|gpu",
        help="which benchmarks (default: all but gpu, which needs one)",
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--rounds", type=count, default=3, help="turns of each comparison (default 3)"
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help="maintainers: keep the figures in notebooks/measured.json",
    )
    parser.set_defaults(command=_bench)


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


def add_plan(commands) -> None:
    parser = commands.add_parser(
        "plan",
        help="what claims cost at the paper's scale or on a free T4: tokens, memory, GPU-hours",
    )
    parser.add_argument(
        "--claim", nargs="+", default=[], metavar="C4", help="which claims (default: all)"
    )
    parser.add_argument(
        "--model",
        default="",
        help="a known name or a folder with config.json (default: the paper's)",
    )
    parser.add_argument("--gpu", default="", help="a known device (default: the scale's)")
    parser.add_argument("--scale", choices=["paper", "colab"], default="paper")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(command=_plan)


def _plan(options) -> int:
    from tml_lib.tools import plan

    return plan.run(options)


def add_sweep(commands) -> None:
    parser = commands.add_parser(
        "sweep", help="run a notebook or an outer loop over a grid of parameters and seeds"
    )
    parser.add_argument(
        "file",
        type=Path,
        metavar="FILE.yaml",
        help="notebook or outer, grid, fixed, out (see tml_lib/tools/sweep.py)",
    )
    parser.add_argument(
        "--engine",
        choices=["loky", "dask", "ray"],
        default="loky",
        help="loky: this machine (default)",
    )
    parser.add_argument(
        "--workers", type=count, help="runs side by side on this machine (default: one per core)"
    )
    parser.add_argument("--address", default="", help="of a running cluster of dask or ray")
    parser.add_argument("--json", action="store_true")
    parser.set_defaults(command=_sweep, kept=RESUMES)


def _sweep(options) -> int:
    from tml_lib.tools import sweep

    return sweep.run(options)


def add_checkpoints(commands) -> None:
    parser = commands.add_parser(
        "checkpoints", help="maintainers: train the shipped tiny models anew (half an hour)"
    )
    parser.add_argument("name", nargs="*", help="which ones (default: all, the base first)")
    parser.set_defaults(command=_checkpoints)


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
