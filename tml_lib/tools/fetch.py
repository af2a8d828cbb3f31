"""`python -m tml_lib fetch`: bring weights into the cache and convert them once."""

from __future__ import annotations

import sys
import time

from tml_lib import runtime
from tml_lib.lm import fetching, presets


def run(options) -> int:
    """Fetch what `options` names (a preset or weights by name), or list what is there."""
    if options.list:
        print(listing())
        return 0
    weights = wanted(options.what)
    from tml_lib.lm import models

    torch_dtype = getattr(models.torch, options.dtype or runtime.hardware_dtype()[0])
    began = time.perf_counter()
    folder = fetching.fetch(
        weights,
        file=options.file,
        item_bytes=torch_dtype.itemsize,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    seconds = time.perf_counter() - began
    print(f"{folder}: SHA-256 is right, {seconds:.0f} s", file=sys.stderr)
    folder = models.fetched_folder(weights.name, torch_dtype, progress=True)
    print(f"{folder}: ready, {time.perf_counter() - began:.0f} s")
    return 0


def wanted(what: str) -> fetching.Weights:
    """The weights of that name or of the preset of that name; ValueError names the known ones."""
    known = fetching.known()
    by_preset = {p.name: p.model for p in presets.PRESETS.values() if p.model in known}
    name = by_preset.get(what, what)
    if name not in known:
        raise ValueError(
            f"{what!r} is nothing to fetch: choose one of {', '.join([*by_preset, *known])}"
        )
    return known[name]


def listing() -> str:
    """A line for all weights: size, licence, source, and what of them is there."""
    return "\n".join(
        f"{w.name}: {w.bytes / 1e9:.1f} GB, {w.licence}, {w.repository}; {fetching.state(w)}"
        for w in fetching.known().values()
    )
