"""Figures: records in, matplotlib Axes or Figure out; only here is matplotlib imported.

Names and colours come from `lessons.names`; every figure is legible at 7 inches wide.
"""

from tml_lib.lessons.plots.comparisons import by_layer, intervals, seed_bands, shares
from tml_lib.lessons.plots.curves import (
    NLL_LABEL,
    bands,
    bands_alone,
    curve,
    differences,
    relative_changes,
    token_heat,
    token_path,
)
from tml_lib.lessons.plots.drawing import framed, idea, png, titled
from tml_lib.lessons.plots.landscapes import path_on, surface
from tml_lib.lessons.plots.outer_loop import live_rewards, live_training, rewards, training
from tml_lib.lessons.plots.public_models import published_models
from tml_lib.lessons.plots.tests_and_verdicts import decision, forest
from tml_lib.lessons.plots.three_findings import three_findings
from tml_lib.lessons.plots.verdict_grid import verdicts

__all__ = [
    "NLL_LABEL",
    "bands",
    "bands_alone",
    "by_layer",
    "curve",
    "decision",
    "differences",
    "forest",
    "framed",
    "idea",
    "intervals",
    "live_rewards",
    "live_training",
    "path_on",
    "png",
    "published_models",
    "relative_changes",
    "rewards",
    "seed_bands",
    "shares",
    "surface",
    "three_findings",
    "titled",
    "token_heat",
    "token_path",
    "training",
    "verdicts",
]
