"""Copies of a model to train, LoRA adapters on them, and which model an adapter belongs to."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers.pytorch_utils import Conv1D

from tml_lib import checks, files
from tml_lib.lm.models import LanguageModel, check_tokenizer
from tml_lib.lm.pretrained import quiet

RUN = "run.json"  # what an output folder was made for
WEIGHTS = "adapter_model.safetensors"
_AGAIN = "copy the folder again, or delete it and train anew"


def copy_to_train(lm: LanguageModel, lora_rank: int, seed: int) -> torch.nn.Module:
    """A copy of the model to train, with configurations of its own, for trl writes into them; with
    a rank a LoRA adapter on every linear layer of blocks whose weights stay lm's own.
    """
    if not lora_rank:
        return copy.deepcopy(lm.model).requires_grad_()
    linear = block_linears(lm.model)
    config = LoraConfig(
        r=lora_rank,
        lora_alpha=2 * lora_rank,
        target_modules=list(linear),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in linear.values()),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(sharing(lm.model), config)


def block_linears(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    """The linear layers of the transformer's blocks by dotted name, whatever the architecture calls
    them.

    Blocks are what stands in a numbered list, so the output head is none. Raises ValueError where
    there is no such layer. Experts that transformers keeps in one tensor are no layers: they stay
    frozen.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
        and any(part.isdigit() for part in name.split("."))
    }
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no linear layer in a list of blocks for an adapter: train"
            " all weights, with lora_rank=0"
        )
    return found


def adapted_modules(model: torch.nn.Module) -> tuple[str, ...]:
    """Names of the modules of the model below that a LoRA adapter was put on; none without one."""
    if not isinstance(model, PeftModel):
        return ()
    base = model.get_base_model()
    return tuple(name for name, layer in base.named_modules() if isinstance(layer, LoraLayer))


def sharing(model: torch.nn.Module) -> torch.nn.Module:
    """A second module with the same weights in the same memory, frozen."""
    return copy.deepcopy(
        model,
        {id(p): torch.nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()},
    )


def merged(model: torch.nn.Module, lm: LanguageModel) -> LanguageModel:
    """The trained model, its adapter merged where it has one, with lm's tokenizer."""
    if isinstance(model, PeftModel):
        # sums in new memory: the weights below the adapter are lm's own
        model = model.merge_and_unload(safe_merge=True)
    return dataclasses.replace(lm, model=model.eval())


def adapted(lm: LanguageModel, folder: Path, name: str = "") -> LanguageModel:
    """The model with the adapter that an outer loop left in a folder, merged; what the adapter does
    not change stays lm's memory.

    name: what is added to lm's; by default the beginning of the SHA-256 of the adapter's weights,
    so that no two adapters have one name. Raises FileNotFoundError where the folder holds no
    adapter, ValueError where it was trained on another model or is damaged.
    """
    folder = checks.path(folder=folder)
    check_tokenizer(lm)
    if not belongs(lm, folder):
        raise ValueError(
            f"the adapter in {folder} was trained on another model than {lm.name}: load the one it"
            " belongs to"
        )
    base = sharing(without_patches(lm).model)
    try:
        with quiet():
            model = PeftModel.from_pretrained(base, folder)
    # peft, json and safetensors each have errors of their own
    except Exception as error:
        raise ValueError(
            f"the adapter in {folder} cannot be read from adapter_config.json and {WEIGHTS}"
            f" ({type(error).__name__}: {str(error)[:200]}): {_AGAIN}"
        ) from error
    name = name or files.digest(folder / WEIGHTS, _AGAIN)[:8]
    return dataclasses.replace(merged(model, lm), name=f"{lm.name}+{name}")


def without_patches(lm: LanguageModel) -> LanguageModel:
    """lm itself, less the forward that trl has put on its model: a copy would go on running the
    weights of the model copied.
    """
    for name in ("forward", "_original_forward"):
        lm.model.__dict__.pop(name, None)
    return lm


def belongs(lm: LanguageModel, folder: Path) -> bool:
    """Whether the adapter in a folder was trained on this very model; FileNotFoundError where the
    folder holds none.
    """
    folder = checks.path(folder=folder)
    if not (folder / WEIGHTS).is_file() or not (folder / RUN).is_file():
        raise FileNotFoundError(
            f"folder {folder} holds no adapter of this kit: train one with train.sft.sft and a"
            " lora_rank"
        )
    held = files.table(folder / RUN, _AGAIN, {"model": str})  # the model that it belongs to
    return held["model"] == fingerprint(lm.model)


def fingerprint(model: torch.nn.Module) -> str:
    """sha256 of all weights' bytes: tells one checkpoint from another."""
    found = hashlib.sha256()
    for part in model.parameters():
        found.update(part.detach().cpu().contiguous().view(torch.uint8).numpy())
    return found.hexdigest()
