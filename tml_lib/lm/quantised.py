"""Weights of 4 bits for models that would not fit otherwise, through bitsandbytes; the only module
that imports it.

Linear layers are stored in NF4 and computed in bfloat16; embeddings, norms and the language-model
head stay bfloat16, so that a model of 32 B parameters takes about 20 GB. Deviation from the paper:
its models are not quantised. L̂ of a quantised model is another model's L̂: compare only values of
one precision.
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from transformers import BitsAndBytesConfig

from tml_lib import checks
from tml_lib.lm import models, pretrained
from tml_lib.lm.models import LanguageModel
from tml_lib.runtime import pick_device

INSTALL = "pip install 'bitsandbytes>=0.48'"  # from there on its own wheels compute on CPUs as well


def settings() -> BitsAndBytesConfig:
    """NF4 weights in blocks with one scale each, computed in bfloat16."""
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )


def load_4bit(name: str, device: str | None = None) -> LanguageModel:
    """A model by name, as `models.load` takes it, quantised to 4 bits while it is loaded; its
    tokenizer with it.

    device: a torch device name, by default cuda where there is one. Probing and sampling work;
    casting does not, and `LanguageModel.parameters` counts two 4-bit weights as one. Raises
    ModuleNotFoundError with the command to run where bitsandbytes is missing, ValueError where it
    cannot compute on the device or the model cannot be loaded, and FileNotFoundError for a folder
    that is none.
    """
    name = checks.place(name=name)
    target = pick_device(device)
    _check_backend(target)
    folder = models.local_folder(str(name), torch.bfloat16)
    model, tokenizer = pretrained.read(
        str(folder or name),
        local_only=folder is not None,
        quantization_config=settings(),
        dtype=torch.bfloat16,
        device_map=str(target),
    )
    return LanguageModel(model.eval(), tokenizer, f"{Path(name).name if folder else name} (4 bit)")


def _check_backend(device: torch.device) -> None:
    """Raise unless bitsandbytes is installed and computes on a device of that type."""
    # on some CPUs it warns that a package which fetches compiled code from the hub is not
    # installed; it works without
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        import bitsandbytes
    except ImportError as error:
        raise ModuleNotFoundError(
            f"4-bit weights need the package bitsandbytes ({error}): run `{INSTALL}`"
        ) from error
    known = getattr(bitsandbytes, "supported_torch_devices", {"cuda"})
    if device.type not in known:
        version = getattr(bitsandbytes, "__version__", "of unknown version")
        raise ValueError(
            f"bitsandbytes {version} computes on {', '.join(sorted(known))}, not on {device.type}:"
            f" run `{INSTALL}`, take another device, or load the model unquantised with models.load"
        )
