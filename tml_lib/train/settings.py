"""The settings that all trainers share, and the range of every setting.

Each trainer adds its own: `sft.SFTSettings`, `dpo.DPOSettings`, `grpo.GRPOSettings`.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, field, fields
from numbers import Integral, Real

PACE = ("save_every", "log_every")  # change what is kept and told, not what is trained


def whole(low: int, high: int, default=MISSING):
    """A setting that is a whole number, low..high."""
    return field(default=default, metadata={"low": low, "high": high, "whole": True})


def real(*, above: float = -math.inf, low: float = -math.inf, default=MISSING):
    """A setting that is a finite number, more than `above` and at least `low`."""
    return field(default=default, metadata={"low": low, "above": above, "whole": False})


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What every trainer needs to be told. Raises ValueError where a value is out of range."""

    steps: int = whole(1, 10**9)  # of the optimiser
    # the learning rate after warm-up; it depends on the size of the model, so it has no default
    peak_lr: float = real(above=0.0)
    lora_rank: int = whole(0, 1024, default=0)  # 0 trains all weights
    save_every: int = whole(0, 10**9, default=0)  # steps between checkpoints; 0: none
    log_every: int = whole(1, 10**9, default=10)  # steps between entries of the log
    seed: int = whole(0, 2**32 - 1, default=0)

    def __post_init__(self):
        for setting in fields(self):
            value = _checked(setting.name, getattr(self, setting.name), **setting.metadata)
            object.__setattr__(self, setting.name, value)

    def identity(self) -> dict:
        """The settings by which a folder recognises its run."""
        return {
            setting.name: getattr(self, setting.name)
            for setting in fields(self)
            if setting.name not in PACE
        }


def _checked(
    name: str, value, *, whole: bool, low: float, high: float = math.inf, above: float = -math.inf
) -> int | float:
    """The value as Python's int or float. Raises ValueError naming setting, value and range."""
    if whole:
        kind, wanted = Integral, f"give a whole number from {low} to {high}"
    else:
        least = f"more than {above:g}" if above > -math.inf else f"of at least {low:g}"
        kind, wanted = Real, f"give a finite number {least}"
    if isinstance(value, bool) or not isinstance(value, kind):
        raise ValueError(f"{name}={value!r} is a {type(value).__name__}: {wanted}")
    if not (math.isfinite(value) and low <= value <= high and value > above):
        raise ValueError(f"{name}={value} is out of range: {wanted}")
    return int(value) if whole else float(value)
