"""Benchmarks by name: every figure is a ratio, or is taken, in one run in which the things compared
take turns (A B A B). Start with `probes`; `shared` holds what all use.
"""

from tml_lib.tools import plan_cpu
from tml_lib.tools.bench import gpu
from tml_lib.tools.bench.forked_states import forked_rows
from tml_lib.tools.bench.loss_landscapes import landscape_rows
from tml_lib.tools.bench.medium import medium_rows
from tml_lib.tools.bench.meta_gradients import maml_rows
from tml_lib.tools.bench.outer_loops import grpo_rows, sft_rows
from tml_lib.tools.bench.parameter_path import path_rows
from tml_lib.tools.bench.probes import probe_rows
from tml_lib.tools.bench.rollouts import rollouts_rows

BENCHMARKS = {
    "probe": probe_rows,
    "forked": forked_rows,
    "medium": medium_rows,
    "path": path_rows,
    "maml": maml_rows,
    "rollouts": rollouts_rows,
    "sft": sft_rows,
    "grpo": grpo_rows,
    "landscape": landscape_rows,
    "plan": plan_cpu.benchmark,
    "gpu": gpu.rows,
}
