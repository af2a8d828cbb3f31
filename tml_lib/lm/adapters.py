"""Copies of a model to train, LoRA adapters on them, and which model an adapter belongs to."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tml_lib.lm.models import LanguageModel, quiet

LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RUN = "run.json"  # what an output folder was made for


def copy_to_train(lm: LanguageModel, lora_rank: int, seed: int) -> torch.nn.Module:
    """A copy of the model to train; with a rank a LoRA adapter on every linear layer of blocks
    whose weights stay lm's own.
    """
    if not lora_rank:
        model = type(lm.model)(lm.model.config).to(lm.device, lm.model.dtype)
        model.load_state_dict(lm.model.state_dict())
        return model
    config = LoraConfig(
        r=lora_rank, lora_alpha=2 * lora_rank, target_modules=LORA_TARGETS, task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(sharing(lm.model), config)


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
    return LanguageModel(model.eval(), lm.tokenizer, f"{lm.name}+sft")


def adapted(lm: LanguageModel, folder: Path) -> LanguageModel:
    """The model with the adapter that `sft` left in a folder, merged; what the adapter does not
    change stays lm's memory.

    Raises FileNotFoundError where the folder holds no adapter, ValueError where it was trained on
    another model.
    """
    if not belongs(lm, folder):
        raise ValueError(
            f"the adapter in {folder} was trained on another model than {lm.name}: load the one it"
            " belongs to"
        )
    with quiet():
        return merged(PeftModel.from_pretrained(sharing(without_patches(lm).model), folder), lm)


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
    folder = Path(folder)
    if not (folder / "adapter_model.safetensors").is_file() or not (folder / RUN).is_file():
        raise FileNotFoundError(
            f"folder {folder} holds no adapter of this kit: train one with train.sft.sft and a"
            " lora_rank"
        )
    return json.loads((folder / RUN).read_text(encoding="utf8"))["model"] == fingerprint(lm.model)


def fingerprint(model: torch.nn.Module) -> str:
    """sha256 of all weights' bytes: tells one checkpoint from another."""
    found = hashlib.sha256()
    for part in model.parameters():
        found.update(part.detach().cpu().contiguous().view(torch.uint8).numpy())
    return found.hexdigest()
