"""What the trainers share: the folder of a run, its checkpoints, and what it leaves behind.

A run's folder holds `run.json`, by which the same call recognises it; `.lock`, which names the
process that is at work in it; `checkpoint-<step>` folders; and in the end weights or an adapter.
A checkpoint's last file is `sums.json`, the SHA-256 of all others, so that damage is found before
anything is resumed from it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PrinterCallback, TrainerCallback

from tml_lib import files
from tml_lib.data import tiny
from tml_lib.lm.adapters import RUN, adapted, adapted_modules, fingerprint, merged, without_patches
from tml_lib.lm.models import LanguageModel
from tml_lib.lm.pretrained import quiet, read
from tml_lib.runtime import LOCK, locked, write_text
from tml_lib.train.settings import TrainSettings

SUMS = "sums.json"  # a checkpoint's last file: name -> SHA-256
STATE = "trainer_state.json"  # the last file that the trainer writes itself


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
    adapted: tuple[str, ...] = ()  # names of the modules that a LoRA adapter was put on


# --- processes and trl's settings -----------------------------------------------------------------


def per_process(name: str, rows: int) -> int:
    """How many of a step's rows this process takes; ValueError where they do not split evenly.

    Processes are those of `accelerate launch` or torchrun. The setting `name` is for all of them
    together, so that a run is the same on any number of processes, up to rounding.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if rows % world:
        raise ValueError(
            f"{name}={rows} for {world} processes: give a multiple, for they share the rows of a"
            " step"
        )
    return rows // world


def shared_arguments(lm: LanguageModel, folder: Path, settings: TrainSettings) -> dict:
    """The arguments that trl's three trainers are given alike."""
    return {
        "output_dir": str(folder),
        "max_steps": settings.steps,
        "learning_rate": settings.peak_lr,
        "seed": settings.seed,
        "adam_beta1": tiny.BETAS[0],
        "adam_beta2": tiny.BETAS[1],
        "weight_decay": 0.0,
        "activation_checkpointing": False,
        "bf16": lm.model.dtype == torch.bfloat16,
        "use_cpu": lm.device.type == "cpu" and not _onto_gpus(),
        "save_strategy": "steps" if settings.save_every else "no",
        "save_steps": settings.save_every or settings.steps,
        "save_total_limit": 2,
        "logging_steps": settings.log_every,
        "logging_nan_inf_filter": False,  # a loss that is not finite must be seen
        "report_to": "none",
        "disable_tqdm": True,
    }


def _onto_gpus() -> bool:
    """Whether a model that lies in memory is sharded onto GPUs, none of which need hold all of
    it.
    """
    return os.environ.get("ACCELERATE_USE_FSDP") == "true" and torch.cuda.is_available()


def in_given_order(settings: TrainSettings) -> dict:
    """The arguments that SFT and DPO share: rows in the order given, a rate that falls at the
    end.
    """
    return {
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {"num_decay_steps": int(tiny.DECAY * settings.steps)},
        "warmup_steps": min(tiny.WARMUP, settings.steps // 10),
        "train_sampling_strategy": "sequential",
        "max_length": None,
    }


# --- a run ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(folder: Path, lm: LanguageModel, identity: dict, rows: Sequence, arguments):
    """Claim and lock a folder for a run; yields the newest whole checkpoint, or None.

    identity, rows: what makes the run this one. arguments: trl's, of which the number of GPUs is
    set to one for each process. Raises ValueError where the folder belongs to another run or
    another process is at work in it, and where a checkpoint is damaged.
    """
    arguments._n_gpu = min(arguments.n_gpu, 1)  # else trl takes a batch for each that it sees
    with contextlib.ExitStack() as held:
        # the first process alone claims the folder and removes what a kill cut off
        with arguments.main_process_first():
            refuse_foreign(folder)
            if arguments.process_index == 0:
                held.enter_context(locked(folder))
            claim(folder, lm, identity, rows)
            newest = newest_whole(folder)
        yield newest


def fit(
    trainer,
    lm: LanguageModel,
    newest: str | None,
    *,
    folder: Path,
    began: float,
    name: str,
    on_log: Callable[[list[dict]], None] | None,
) -> OuterRun:
    """Train from the newest checkpoint, save the model, and return it with its log.

    name: what is added to lm's.
    """
    follow(trainer, on_log)
    trainer.train(resume_from_checkpoint=newest)
    trainer.accelerator.wait_for_everyone()
    model = trainer.model
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    modules = adapted_modules(model)
    # sharded weights (FSDP) are gathered by all processes together
    sharded = trainer.is_fsdp_enabled
    state = {"state_dict": trainer.accelerator.get_state_dict(model)} if sharded else {}
    if trainer.is_world_process_zero():
        with quiet():
            model.save_pretrained(folder, **state)
            lm.tokenizer.save_pretrained(folder)
    trainer.accelerator.wait_for_everyone()
    done = _saved(lm, folder, modules) if sharded else without_patches(merged(model, lm))
    return OuterRun(
        replace(done, name=f"{lm.name}+{name}"),
        trainer.state.log_history,
        time.perf_counter() - began,
        trained,
        folder,
        modules,
    )


def _saved(lm: LanguageModel, folder: Path, modules: tuple[str, ...]) -> LanguageModel:
    """The model that a run has left in its folder; modules: those that an adapter is on."""
    if modules:
        return adapted(lm, folder)
    model, _ = read(str(folder), local_only=True, dtype=lm.model.dtype)
    return replace(lm, model=model.to(lm.device).eval())


class Follow(TrainerCallback):
    """Hand the log history on whenever it grows, stop at a loss that is not finite, seal
    checkpoints.
    """

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

    def on_save(self, args, state, control, **kwargs):
        if args.world_size > 1:
            torch.distributed.barrier()  # each process writes the state of its own random numbers
        if state.is_world_process_zero:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def follow(trainer, on_log: Callable[[list[dict]], None] | None) -> None:
    """Let `Follow` report in place of trl's own printing."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Follow(on_log))


# --- the folder -----------------------------------------------------------------------------------


def refuse_foreign(folder: Path) -> None:
    """Raise ValueError where a folder holds files, but no run; a claim left half made is none."""
    if os.path.lexists(folder / RUN) or not folder.is_dir():
        return
    if any(path.name != LOCK and not _half_claim(path) for path in folder.iterdir()):
        raise ValueError(
            f"folder {folder} is not empty and holds no run of this kit: name another folder"
        )


def _half_claim(path: Path) -> bool:
    """Whether this is `run.json` under the name that it has until it is whole."""
    return path.name.startswith(f".{RUN}.")


def claim(folder: Path, lm: LanguageModel, identity: dict, rows: Sequence) -> None:
    """Mark the folder as this run's, or raise ValueError where it is another's."""
    refuse_foreign(folder)
    wanted = identity | {
        "model": fingerprint(lm.model),
        "vocabulary": len(lm.tokenizer),
        "rows": hashlib.sha256(json.dumps(rows).encode()).hexdigest(),
    }
    marker = folder / RUN
    if os.path.lexists(marker):
        held = files.table(marker, f"delete the folder {folder}; the run then begins at step 0")
        changed = [
            f"{key} was {held.get(key)}, is {wanted[key]}"
            for key in wanted
            if held.get(key) != wanted[key]
        ]
        if changed:
            raise ValueError(
                f"folder {folder} holds another run ({'; '.join(changed)}): name another folder, or"
                " empty it"
            )
    else:
        write_text(marker, json.dumps(wanted))
    for path in folder.iterdir():
        if _half_claim(path):
            path.unlink(missing_ok=True)


# --- checkpoints ----------------------------------------------------------------------------------


def newest_whole(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; those cut off by a kill are removed.

    Raises ValueError where a file of it has changed since: what is damaged, what to delete, and
    where the run is then resumed.
    """
    steps = {}
    for checkpoint in folder.glob("checkpoint-[0-9]*"):
        step = checkpoint.name.removeprefix("checkpoint-")
        if not step.isdecimal():
            continue  # not the trainer's
        if (checkpoint / SUMS).is_file() or _has_state(checkpoint):
            steps[int(step)] = checkpoint
        else:
            shutil.rmtree(checkpoint, ignore_errors=True)
    if not steps:
        return None
    *before, newest = sorted(steps)
    resumed = f"is resumed at step {before[-1]}" if before else "begins at step 0"
    verify(steps[newest], f"delete the folder {steps[newest]}; the run then {resumed}")
    return str(steps[newest])


def _has_state(checkpoint: Path) -> bool:
    try:
        return bool(files.table(checkpoint / STATE, "", {"global_step": int}))
    except (OSError, ValueError):
        return False


def seal(checkpoint: Path) -> None:
    """Write down the SHA-256 of a checkpoint's files: it is whole."""
    write_text(checkpoint / SUMS, json.dumps(_sums(checkpoint, "train again")))


def verify(checkpoint: Path, advice: str) -> None:
    """Raise ValueError with the advice where a file is not what it was when it was sealed."""
    if not (checkpoint / SUMS).is_file():
        return  # written before checkpoints were sealed
    held, found = files.table(checkpoint / SUMS, advice), _sums(checkpoint, advice)
    for name, digest in held.items():
        if found.get(name) != digest:
            state = "is missing" if name not in found else "is damaged (its SHA-256 has changed)"
            raise ValueError(f"{checkpoint / name} {state}: {advice}")


def _sums(checkpoint: Path, advice: str) -> dict[str, str]:
    return {
        path.name: files.digest(path, advice)
        for path in sorted(checkpoint.iterdir())
        if path.name != SUMS and not path.name.startswith(".")
    }
