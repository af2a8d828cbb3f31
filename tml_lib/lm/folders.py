"""What is checked of a model folder before its model is built: each file, and whether config.json
and the weights belong together.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from tml_lib import files

STEP = "copy or save the folder again"
_OBJECTS = ("config", "generation_config", "tokenizer", "tokenizer_config", "special_tokens_map")
OBJECTS = {f"{name}.json" for name in (*_OBJECTS, "added_tokens", "adapter_config")}
TEXTS = {".json", ".jinja", ".txt", ".model"}


class NoSafetensors(FileNotFoundError):
    """A model folder whose weights would have to be unpickled, or that has none."""


class Mismatch(ValueError):
    """A configuration and weights that do not suit each other, or this machine."""


def check_files(folder: Path) -> None:
    """Raise where a file of a model folder cannot be read; FileNotFoundError without a config."""
    if not os.path.lexists(folder / "config.json"):
        state = "has no config.json" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"model folder {folder} {state}: give a folder written by `save_pretrained`"
        )
    for path in sorted(folder.iterdir()):
        if path.name in OBJECTS:
            files.table(path, STEP)
        elif path.name == "chat_template.jinja":
            files.text(path, STEP)
        elif path.suffix in TEXTS:
            files.check(path, STEP)
        elif path.suffix == ".safetensors":
            files.check(path, STEP, most=None)


def check_sizes(folder: Path, config) -> int:
    """The number of parameters in the folder's weights.

    Raises NoSafetensors without weights that can be read, Mismatch where config.json has no layer,
    or more layers than the weights have tensors: such a model would be built for hours.
    """
    if not list(folder.glob("*.safetensors")):
        raise NoSafetensors(
            f"model folder {folder} has no weights in safetensors (nothing is unpickled here): load"
            " it once with transformers and write it with `save_pretrained`"
        )
    shapes = _shapes(folder)
    for name, layers in _layers(config.to_dict()):
        if not 0 <= layers <= len(shapes):
            raise Mismatch(
                f"{folder / 'config.json'} says {name}={layers}, and the weights beside it hold"
                f" {len(shapes)} tensors, so they do not belong together: {STEP}"
            )
    if getattr(config.get_text_config(), "num_hidden_layers", 1) == 0:
        raise Mismatch(f"{folder / 'config.json'} says num_hidden_layers=0: {STEP}")
    return sum(map(math.prod, shapes.values()))


def parameters_of(config) -> int:
    """The number of parameters that a configuration asks for, tied ones once; nothing is read."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())


def check_memory(source: str | Path, parameters: int, itemsize: int) -> None:
    """Raise Mismatch where so many parameters do not fit into this machine's memory."""
    import psutil

    needed = parameters * itemsize
    there = psutil.virtual_memory().total + psutil.swap_memory().total
    if needed > there:
        raise Mismatch(
            f"model {str(source)!r} holds {parameters} parameters, which take"
            f" {needed / 1e9:.1f} GB at {itemsize} bytes each, and this machine has"
            f" {there / 1e9:.1f} GB: give dtype='bfloat16' (2 bytes), device='auto', which spreads"
            " it over devices and disk, or take a smaller model"
        )


def misfit(folder: Path, config) -> str:
    """The first weight whose shape in the folder is not what its config.json asks for, in words."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    found = _shapes(folder)
    for name, parameter in model.named_parameters():
        if found.get(name, parameter.shape) != parameter.shape:
            wanted = tuple(parameter.shape)
            return f"{name} is {found[name]} in the weights and {wanted} by config.json"
    return "its weights have other shapes than config.json asks for"


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in the folder's weights, by name."""
    from safetensors import SafetensorError, safe_open

    shapes = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 (it is no dict)
                    shapes[name] = tuple(file.get_slice(name).get_shape())
        except (SafetensorError, OSError, MemoryError) as error:
            raise files.Unreadable(path, f"is damaged ({error})", STEP) from error
    return shapes


def _layers(config: dict) -> list[tuple[str, int]]:
    """Numbers of layers in a configuration and its parts, by name."""
    found = []
    for name, value in config.items():
        if isinstance(value, dict):
            found += _layers(value)
        elif isinstance(value, int) and name.startswith(("num_", "n_")) and "layer" in name:
            found.append((name, value))
    return found
