"""Peak memory of the packed probe above the model: printed in MiB by a process of its own, in which
nothing else has taken memory before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import psutil
import torch

from tml_lib import runtime
from tml_lib.lm import models
from tml_lib.measure.probe import prefix_nll
from tml_lib.tools.bench.probes import MEMORY_LENGTH, RUN
from tml_lib.tools.bench.shared import gold_text


def peak_above(call: Callable[[], object]) -> float:
    """Peak resident memory during a call above that before it, in MiB, sampled every 2 ms."""
    process, done = psutil.Process(), threading.Event()
    # else memory that was freed before and is still held would hide what the call takes
    runtime.free_memory()
    before = peak = process.memory_info().rss

    def watch():
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return (peak - before) / 2**20


def probe_peak(length: int) -> float:
    """Peak memory of SmolLM2's probe at the last prefixes of so many tokens, one thread, in MiB."""
    torch.set_num_threads(1)
    lm = models.load("small", device="cpu")
    prompt, trajectory, suffix = gold_text(lm, length)
    # weights are mapped from disk: touch them all before the baseline is taken
    with torch.inference_mode():
        lm.model(torch.tensor([prompt[:4]]))
    late = range(length + 1 - RUN, length + 1)  # memory grows with the text that was read
    return peak_above(lambda: prefix_nll(lm.model, prompt, trajectory, [suffix], late))


if __name__ == "__main__":
    print(probe_peak(MEMORY_LENGTH))
