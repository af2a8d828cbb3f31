"""What the trainers share: the folder of a run, its checkpoints, and what it leaves behind."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import TrainerCallback

from tml_lib.data import tiny
from tml_lib.data.tiny import Row
from tml_lib.lm.adapters import RUN, fingerprint, merged
from tml_lib.lm.models import LanguageModel, quiet
from tml_lib.runtime import write_text


@dataclass(frozen=True, eq=False)
class OuterRun:
    """What an outer loop leaves behind."""

    # the trained model; with LoRA its adapter is merged, and all else is the memory of the model
    # before
    lm: LanguageModel
    # trl's log history: step, loss (nats per learnt token), mean_token_accuracy, learning_rate, ...
    log: list[dict]
    seconds: float  # wall time of this call
    trained: int  # parameters that were trained
    folder: Path  # weights or adapter, and checkpoints


def trainer_settings(
    lm: LanguageModel,
    folder: Path,
    *,
    steps: int,
    peak_lr: float,
    seed: int,
    save_every: int,
    log_every: int,
) -> dict:
    """The settings of trl's trainers that SFT and DPO share: rows in the order given, AdamW, a rate
    that falls at the end.
    """
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "learning_rate": peak_lr,
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {"num_decay_steps": int(tiny.DECAY * steps)},
        "warmup_steps": min(tiny.WARMUP, steps // 10),
        "adam_beta1": tiny.BETAS[0],
        "adam_beta2": tiny.BETAS[1],
        "weight_decay": 0.0,
        "train_sampling_strategy": "sequential",
        "max_length": None,
        "activation_checkpointing": False,
        "bf16": lm.model.dtype == torch.bfloat16,
        "use_cpu": lm.device.type == "cpu",
        "save_strategy": "steps" if save_every else "no",
        "save_steps": save_every or steps,
        "save_total_limit": 2,
        "logging_steps": log_every,
        "logging_nan_inf_filter": False,  # a loss that is not finite must be seen
        "report_to": "none",
        "disable_tqdm": True,
        "seed": seed,
    }


def finished(model: torch.nn.Module, lm: LanguageModel, folder: Path) -> LanguageModel:
    """Save weights or adapter; the model, its adapter merged."""
    with quiet():
        model.save_pretrained(folder)
        lm.tokenizer.save_pretrained(folder)
    return merged(model, lm)


def claim(folder: Path, lm: LanguageModel, settings: dict, rows: Sequence[Row]) -> None:
    """Mark the folder as this run's, or raise ValueError where it is another's."""
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    wanted = settings | {
        "model": fingerprint(lm.model),
        "vocabulary": len(lm.tokenizer),
        "rows": digest,
    }
    marker = folder / RUN
    if marker.is_file():
        held = json.loads(marker.read_text(encoding="utf8"))
        if changed := [
            f"{key} was {held.get(key)}, is {wanted[key]}"
            for key in wanted
            if held.get(key) != wanted[key]
        ]:
            raise ValueError(
                f"folder {folder} holds another run ({'; '.join(changed)}): name another folder, or"
                " empty it"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise ValueError(
            f"folder {folder} is not empty and holds no run of this kit: name another folder"
        )
    write_text(marker, json.dumps(wanted))


def newest_whole(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; those cut off by a kill are removed."""
    whole = []
    for checkpoint in folder.glob("checkpoint-*"):
        try:  # the trainer's state is the last file of a checkpoint
            step = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf8"))[
                "global_step"
            ]
            whole.append((step, str(checkpoint)))
        except (OSError, ValueError, KeyError):
            shutil.rmtree(checkpoint)
    return max(whole)[1] if whole else None


class Follow(TrainerCallback):
    """Hand the log history on whenever it grows, and stop at a loss that is not finite."""

    def __init__(self, show: Callable[[list[dict]], None] | None):
        self.show = show

    def on_log(self, args, state, control, logs=None, **kwargs):
        loss = (logs or {}).get("loss", (logs or {}).get("train_loss", 0.0))
        if not math.isfinite(loss):
            raise ValueError(
                f"the loss is {loss} at step {state.global_step}: lower"
                f" peak_lr={args.learning_rate}"
            )
        if self.show is not None:
            self.show(state.log_history)
