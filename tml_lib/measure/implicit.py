"""The parameter update that equals a trajectory, constructed exactly (RaML Proposition 2.1 for a
whole LLM).

Take the sequence *without* the trajectory, I ⊕ q ⊕ template ⊕ answer, of T tokens. In layer ℓ let H
(T × d_ff) be the inputs of the block's output projection (W_down of the MLP), and let D (T × d) be
zero, but on the |a| rows that predict the answer's tokens: there D is the layer's output at the
same tokens *with* the trajectory in context, minus its output now. Whenever H has full row rank, H
ΔWᵀ = D has a solution, and the smallest one is

    ΔW = Dᵀ (Hᵀ)† = U V,   U = D[rows]ᵀ (d × |a|),   V = (H†)ᵀ[rows] (|a| × d_ff).

So one static ΔW of rank at most |a| makes every answer token's output what it was with the
trajectory in context, and leaves all other rows, the prompt's, as they were. Applied to the last
layer, or to all layers in order, it gives the with-trajectory logits.

Deviations from the paper: its proof changes W_q, W_k and W_v and does not go through as printed
(notebook `01a_theory`); we change one projection of the MLP. With `protect=False` H is the answer's
rows alone: the prompt's may then change, the answer's logits are as exact, and in the last layer no
exact update of that projection is smaller.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D

from tml_lib.lm import placed
from tml_lib.lm.answers import ANSWER_TEMPLATE, Suffix, encode
from tml_lib.lm.blocks import choose_layers, find_blocks, frozen, hidden, run, watch, widened
from tml_lib.lm.models import LanguageModel
from tml_lib.measure.limits import check_model


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


# --- the construction -----------------------------------------------------------------------------


def trajectory_update(
    lm: LanguageModel,
    prompt: str,
    trajectory: str,
    answer: str,
    *,
    layers: str | Sequence[int] = "last",
    template: str = ANSWER_TEMPLATE,
    protect: bool = True,
) -> Update:
    """The static parameter update that gives the answer's tokens the logits they have with the
    trajectory in context.

    layers: 'last', 'all', or layer numbers (negative ones count from the end); exact logits need
    the last one. protect: leave prompt and template rows unchanged (else the smallest update that
    serves the answer's rows). Each layer says whether its update is exact (`exact`: it is not where
    T > d_ff or H is rank-deficient) and gives its `residual`. Raises ValueError as `answers.encode`
    does, for layers that do not exist, a context that is too long, and, by name, for models whose
    blocks are of another build.
    """
    encoded = encode(lm.tokenizer, prompt, trajectory, [answer], template)
    return update_from_ids(
        lm.model,
        encoded.prompt,
        encoded.trajectory,
        encoded.suffixes[0],
        layers=layers,
        protect=protect,
    )


@torch.no_grad()
def update_from_ids(
    model: torch.nn.Module,
    prompt: Sequence[int],
    trajectory: Sequence[int],
    suffix: Suffix,
    *,
    layers: str | Sequence[int] = "last",
    protect: bool = True,
) -> Update:
    """`trajectory_update` on token ids."""
    blocks, names = find_blocks(model)
    _check_context(model, prompt, trajectory, suffix)
    chosen = choose_layers(layers, len(blocks))
    count = len(suffix.ids) - suffix.start  # |a|
    # 1. with the trajectory in context: each layer's output on the rows that predict the answer's
    # tokens
    wanted: dict[int, torch.Tensor] = {}
    hooks = [watch(blocks[k], wanted, k, count) for k in chosen]
    logits = run(model, [*prompt, *trajectory, *suffix.ids[:-1]], count, hooks)
    # 2. without it: layer by layer, solve for the update, and keep its effect below
    inputs: dict[int, torch.Tensor] = {}
    made: list[LayerUpdate] = []

    def correct(k, out):
        actual = hidden(out)[0]
        D, H = (
            wanted[k].cpu().double() - actual[-count:].cpu().double(),
            inputs.pop(k).cpu().double(),
        )
        U, V, report = smallest_update(H, D, protect, torch.finfo(actual.dtype).eps)
        report["residual"] /= float(wanted[k].abs().max())
        effect = H @ V.T @ U.T
        made.append(LayerUpdate(k, names[k], U, V, weight_norm(model, names[k]), **report))
        changed = (actual.cpu().double() + effect).to(actual.dtype).to(actual.device)[None]
        return (changed, *out[1:]) if isinstance(out, tuple) else changed

    hooks = []
    for k in chosen:
        projection = model.get_submodule(names[k])
        hooks.append(
            projection.register_forward_pre_hook(
                lambda _m, args, k=k: inputs.__setitem__(k, args[0][0])
            )
        )
        hooks.append(blocks[k].register_forward_hook(lambda _m, _i, out, k=k: correct(k, out)))
    found = run(model, [*prompt, *suffix.ids[:-1]], count, hooks)
    return Update(tuple(made), float((found - logits).abs().max()))


def smallest_update(
    H: torch.Tensor,
    D: torch.Tensor,
    protect: bool,
    precision: float = torch.finfo(torch.float64).eps,
) -> tuple[torch.Tensor, torch.Tensor, dict]:
    """The smallest ΔW = U V with H ΔWᵀ = D on the last |a| rows and, with `protect`, zero on the
    others.

    H: (T, d_ff); D: (|a|, d). Returns U (d, |a|), V (|a|, d_ff) and a report: rows, row_rank and
    condition of H, and the largest absolute residual. V depends on H alone. Where H lacks full row
    rank this is the least-squares solution.
    precision: relative rounding of H's entries; rows that it cannot tell apart do not count for the
    rank.
    """
    asked = H if protect else H[-len(D) :]
    left, values, right = torch.linalg.svd(asked, full_matrices=False)
    told_apart = int((values > values[0] * max(asked.shape) * precision).sum())
    kept = values > values[0] * max(asked.shape) * torch.finfo(torch.float64).eps
    left, values, right = left[:, kept], values[kept], right[kept]
    U, V = D.T.contiguous(), (left[-len(D) :] / values) @ right
    error = asked @ V.T @ U.T
    error[-len(D) :] -= D
    report = {
        "rows": len(asked),
        "row_rank": told_apart,
        "condition": float(values[0] / values[-1]),
    }
    return U, V, report | {"residual": float(error.abs().max())}


@torch.no_grad()
def logit_error(
    model: torch.nn.Module,
    update: Update,
    prompt: Sequence[int],
    trajectory: Sequence[int],
    suffix: Suffix,
) -> float:
    """Largest difference of the answer tokens' logits: weights updated and no trajectory, against
    the trajectory in context.
    """
    _check_context(model, prompt, trajectory, suffix)
    count = len(suffix.ids) - suffix.start
    wanted = run(model, [*prompt, *trajectory, *suffix.ids[:-1]], count)
    with update.applied(model):
        return float((run(model, [*prompt, *suffix.ids[:-1]], count) - wanted).abs().max())


def _check_context(model, prompt: Sequence[int], trajectory: Sequence[int], suffix: Suffix) -> None:
    if not len(prompt):
        raise ValueError(
            "prompt=[] leaves the first answer token without a context: give at least one prompt"
            " token"
        )
    check_model(model, len(prompt) + len(trajectory) + len(suffix.ids))


def weight_norm(model: torch.nn.Module, name: str) -> float:
    """‖W‖_F of a named module's weight."""
    return float(placed.weight(model, f"{name}.weight").cpu().double().norm())


def gradient_update(
    model: torch.nn.Module,
    prompt: Sequence[int],
    suffix: Suffix,
    *,
    layers: str | Sequence[int] = "last",
) -> Update:
    """-∇L of the trajectory-free answer loss with respect to the same weights, as factors: U = -gᵀ
    (d × T), V = H.

    L is the mean negative log-likelihood of the answer's own tokens after I ⊕ q ⊕ template, in nats
    per token; g is its gradient at the projection's output. `scaled` gives a step of any length.
    Raises ValueError as `update_from_ids` does.
    """
    _, names = find_blocks(model)
    _check_context(model, prompt, [], suffix)
    chosen = choose_layers(layers, len(names))
    count = len(suffix.ids) - suffix.start
    inputs, outputs = {}, {}

    def follow(k, args, out):
        inputs[k], outputs[k] = args[0][0].detach().cpu().double(), out
        if not out.requires_grad:  # whatever lies below is a constant
            outputs[k] = out.detach().requires_grad_()
            return outputs[k]
        return None

    hooks = [
        model.get_submodule(names[k]).register_forward_hook(
            lambda _m, args, out, k=k: follow(k, args, out)
        )
        for k in chosen
    ]
    with torch.enable_grad(), frozen(model):
        logits = run(model, [*prompt, *suffix.ids[:-1]], count, hooks)
        targets = torch.tensor(suffix.ids[suffix.start :], device=logits.device)
        loss = torch.nn.functional.cross_entropy(widened(logits), targets)
        gradients = torch.autograd.grad(loss, [outputs[k] for k in chosen])
    return Update(
        tuple(
            LayerUpdate(
                k, names[k], -gradient[0].cpu().double().T, inputs[k], weight_norm(model, names[k])
            )
            for k, gradient in zip(chosen, gradients, strict=True)
        )
    )


def cosine(first: Update, second: Update) -> float:
    """Cosine of two updates of the same layers, from their factors; ValueError where the layers
    differ.
    """
    if [i.module for i in first.layers] != [i.module for i in second.layers]:
        raise ValueError("the updates are of different layers: make both with the same `layers`")
    pairs = zip(first.layers, second.layers, strict=True)
    inner = sum(float(((a.U.T @ b.U) * (a.V @ b.V.T)).sum()) for a, b in pairs)
    return inner / (first.norm * second.norm) if first.norm and second.norm else float("nan")
