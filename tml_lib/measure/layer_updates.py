"""A low-rank change of some layers' output projections: its factors, norms and angle, the model
that it is applied to, and the adapter that it is written as. `implicit` constructs such changes.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D

from tml_lib.lm import placed


@dataclass(frozen=True, eq=False)
class LayerUpdate:
    """ΔW = U V of one layer's output projection, and how well it does what was asked of it."""

    layer: int
    module: str  # dotted name of the projection whose weight is updated
    U: torch.Tensor  # (d, r) float64, on the CPU
    V: torch.Tensor  # (r, d_ff) float64, on the CPU
    weight_norm: float  # ‖W‖_F
    rows: int | None = None  # T, the rows of H; None where nothing was solved for (a gradient)
    # rank of H at the model's precision; below `rows` the update need not do what was asked
    row_rank: int | None = None
    condition: float | None = None  # of H, over its non-zero singular values
    # largest |H ΔWᵀ - D|, relative to the largest entry of the wanted output
    residual: float | None = None

    @property
    def exact(self) -> bool:
        """Whether H had full row rank, so that H ΔWᵀ = D holds to rounding."""
        return self.rows is not None and self.row_rank == self.rows

    @property
    def relative_norm(self) -> float:
        """‖ΔW‖_F / ‖W‖_F."""
        return self.norm / self.weight_norm

    def dense(self) -> torch.Tensor:
        """ΔW (d, d_ff), written out."""
        return self.U @ self.V

    def singular_values(self) -> torch.Tensor:
        """Singular values of ΔW, largest first, (min(r, d, d_ff),), from the factors alone."""
        return torch.linalg.svdvals(torch.linalg.qr(self.U)[1] @ torch.linalg.qr(self.V.T)[1].T)

    @property
    def norm(self) -> float:
        """‖ΔW‖_F."""
        return float(((self.U.T @ self.U) * (self.V @ self.V.T)).sum().clamp(min=0).sqrt())

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the normalised singular values (Roy & Vetterli 2007): 1 to r; 0 for
        no update.
        """
        share = self.singular_values()
        share = (
            share[share > share.max() * 1e-12] / share.sum()
            if len(share) and share.max() > 0
            else share[:0]
        )
        return float(torch.exp(-(share * share.log()).sum())) if len(share) else 0.0


@dataclass(frozen=True, eq=False)
class Update:
    """A low-rank change of some layers' output projections."""

    layers: tuple[LayerUpdate, ...]
    # largest difference from the with-trajectory logits, seen as the update was made
    logit_error: float | None = None

    @property
    def exact(self) -> bool:
        """Whether every layer's update is an exact solution, not a least-squares one."""
        return all(item.exact for item in self.layers)

    @property
    def norm(self) -> float:
        """Frobenius norm over all layers together."""
        return sum(item.norm**2 for item in self.layers) ** 0.5

    def scaled(self, factor: float) -> Update:
        """The same direction, `factor` times as long."""
        return Update(
            tuple(
                LayerUpdate(i.layer, i.module, factor * i.U, i.V, i.weight_norm)
                for i in self.layers
            )
        )

    @contextlib.contextmanager
    def applied(self, model: torch.nn.Module) -> Iterator[torch.nn.Module]:
        """The model with W + ΔW in place of W; afterwards, also after an exception, the very same
        tensors are back.

        Raises ValueError where the model has no such projection of that shape.
        """
        changed = {}
        for item in self.layers:
            module, name = _submodule(model, item), f"{item.module}.weight"
            delta = item.dense().T if isinstance(module, Conv1D) else item.dense()
            held = changed.get(name, placed.weight(model, name))
            changed[name] = (held.cpu().double() + delta).to(held.dtype).to(held.device)
        with placed.replaced(model, changed):
            yield model

    def save_adapter(self, folder: str | Path, model: torch.nn.Module) -> Path:
        """Write the update as a PEFT LoRA adapter (float32), which
        `PeftModel.from_pretrained(model, folder)` loads.

        Raises ValueError where the model has no such projection, FileExistsError where the folder
        exists.
        """
        from peft import LoraConfig

        folder = Path(folder)
        if folder.exists():
            raise FileExistsError(
                f"adapter folder {folder} exists: name a new one, or remove it first"
            )
        if not self.layers:
            raise ValueError("an update of no layers makes no adapter: choose at least one layer")
        modules = [_submodule(model, item) for item in self.layers]
        ranks = {item.module: item.V.shape[0] for item in self.layers}
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=max(ranks.values()),
            lora_alpha=max(ranks.values()),  # scaling α / r = 1: ΔW is B A itself
            rank_pattern=ranks,
            alpha_pattern=ranks,
            target_modules=list(ranks),
            fan_in_fan_out=isinstance(modules[0], Conv1D),
            base_model_name_or_path=model.config._name_or_path or None,
            inference_mode=True,
        )
        tensors = {}
        for item in self.layers:
            for side, factor in (("A", item.V), ("B", item.U)):
                tensors[f"base_model.model.{item.module}.lora_{side}.weight"] = (
                    factor.float().contiguous()
                )
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            config.save_pretrained(temporary)
            save_file(tensors, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
            temporary.chmod(0o755)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return folder


def _submodule(model: torch.nn.Module, item: LayerUpdate) -> torch.nn.Module:
    try:
        module = model.get_submodule(item.module)
    except AttributeError as error:
        raise ValueError(
            f"{type(model).__name__} has no {item.module}: the update was made for another model"
        ) from error
    shape = (
        tuple(reversed(module.weight.shape))
        if isinstance(module, Conv1D)
        else tuple(module.weight.shape)
    )
    if shape != (wanted := (item.U.shape[0], item.V.shape[1])):
        raise ValueError(
            f"{item.module} is of shape {shape}, the update of {wanted}: it was made for another"
            " model"
        )
    return module


def cosine(first: Update, second: Update) -> float:
    """Cosine of two updates of the same layers, from their factors; ValueError where the layers
    differ.
    """
    if [i.module for i in first.layers] != [i.module for i in second.layers]:
        raise ValueError("the updates are of different layers: make both with the same `layers`")
    pairs = zip(first.layers, second.layers, strict=True)
    inner = sum(float(((a.U.T @ b.U) * (a.V @ b.V.T)).sum()) for a, b in pairs)
    return inner / (first.norm * second.norm) if first.norm and second.norm else float("nan")
