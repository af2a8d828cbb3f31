"""The parameter path θ'_0, θ'_1, …, θ'_|t| that a trajectory traces in the last layer, and its
geometry.

θ'_i is the exact update (`implicit`) of the last layer's output projection for the prefix t_{≤i};
RaML's Eq. 4 says that it grows by a pseudo-gradient step per token. Nothing below the projection
changes, so all updates of the path share their right factor, ΔW_i = D_iᵀ V, and D_i is read off one
packed pass of `probe`: the last layer's output on the answer's rows. With K = M_R M_Rᵀ (M_R: the
answer's rows of H) and g = ∂L/∂(those outputs), (|a| × d) like D,

    ∇L = gᵀ M_R,   ‖∇L‖² = tr(gᵀ K g),   ⟨ΔW, ∇L⟩ = tr(Dᵀ g)  (V M_Rᵀ = I),   ‖ΔW‖² = tr(Dᵀ (V Vᵀ)
    D),

and V Vᵀ = K⁻¹ for the smallest ('free') update. Of all exact updates of this projection that one is
nearest to -∇L wherever
the loss falls: all have the same inner product with it, and it has the smallest norm.

Deviation from the paper: it computes no parameters and no gradients; L here is the loss of the
answer under θ'_{i-1} without the trajectory, the L_q of its Eq. 4 with the answer's negative
log-likelihood for the plausibility.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tml_lib.lm.answers import ANSWER_TEMPLATE, Suffix, encode
from tml_lib.lm.blocks import final_norm, find_blocks, frozen, hidden, run, widened
from tml_lib.lm.models import LanguageModel
from tml_lib.measure.implicit import smallest_update, weight_norm
from tml_lib.measure.layer_updates import LayerUpdate, Update
from tml_lib.measure.probe import prefix_nll

# fractions of a step's length at which gradient steps are tried
LINE_SEARCH = (1.0, 0.25, 0.0625, 0.015625)
_ROWS = 256  # rows whose logits are held at a time


@dataclass(frozen=True, eq=False)
class ParameterPath:
    """θ'_i for prefixes of one trajectory: the last layer's wanted outputs, and what turns them
    into updates.
    """

    positions: np.ndarray  # (n,) int: i, the number of trajectory tokens read
    answer_nll: np.ndarray  # (n,) float64: L(θ'_i) = L̂_i, nats per token
    # (n, |a|, d) float64: the last layer's output on the rows that predict the answer
    states: torch.Tensor
    start: torch.Tensor  # (|a|, d) float64: the same without any trajectory, θ'_0 = θ
    inputs: torch.Tensor  # (T, d_ff) float64: H, the projection's inputs without the trajectory
    targets: torch.Tensor  # (|a|,) the answer's token ids
    layer: int
    module: str
    weight_norm: float  # ‖W‖_F
    precision: float  # relative rounding of the model's dtype

    def right(self, *, protect: bool) -> torch.Tensor:
        """V (|a|, d_ff), the factor that all updates of the path share."""
        return smallest_update(self.inputs, self.start, protect, self.precision)[1]

    def exact(self, *, protect: bool) -> bool:
        """Whether the rows asked of are independent at the model's precision, so that every update
        of the path is exact.
        """
        report = smallest_update(self.inputs, self.start, protect, self.precision)[2]
        return report["row_rank"] == report["rows"]

    def update(self, index: int, *, protect: bool = True) -> Update:
        """θ'_i - θ for the prefix at `positions[index]`."""
        U, V, report = smallest_update(
            self.inputs, self.states[index] - self.start, protect, self.precision
        )
        report["residual"] /= float(self.states[index].abs().max())
        return Update((LayerUpdate(self.layer, self.module, U, V, self.weight_norm, **report),))


def parameter_path(
    lm: LanguageModel,
    prompt: str,
    trajectory: str,
    answer: str,
    *,
    stride: int = 1,
    template: str = ANSWER_TEMPLATE,
    progress: bool = False,
) -> ParameterPath:
    """The path over every stride-th prefix and the last one, in one packed pass; raises as `probe`
    and `implicit` do.
    """
    if stride < 1:
        raise ValueError(f"stride={stride} must be at least 1: 1 makes a step of every token")
    encoded = encode(lm.tokenizer, prompt, trajectory, [answer], template)
    positions = sorted({*range(0, len(encoded.trajectory) + 1, stride), len(encoded.trajectory)})
    return path_from_ids(
        lm.model,
        encoded.prompt,
        encoded.trajectory,
        encoded.suffixes[0],
        positions,
        progress=progress,
    )


def path_from_ids(
    model: torch.nn.Module,
    prompt: Sequence[int],
    trajectory: Sequence[int],
    suffix: Suffix,
    positions: Sequence[int],
    *,
    progress: bool = False,
    without: LastLayer | None = None,
) -> ParameterPath:
    """`parameter_path` on token ids, at the given increasing positions in 0..|t|.

    without: `last_layer` of this prompt and suffix, where several trajectories share it.
    """
    blocks, names = find_blocks(model)
    count = len(suffix.ids) - suffix.start
    # 1. the wanted outputs: `probe`'s packed pass, of whose kept rows we also take the last block's
    # output
    seen: list[torch.Tensor] = []
    wanted_rows = [torch.empty(0, dtype=torch.long)]

    def note(_module, _args, kwargs):
        rows = kwargs.get("logits_to_keep")  # a number of rows outside of packed passes
        wanted_rows[0] = rows if isinstance(rows, torch.Tensor) else wanted_rows[0][:0]

    def take(_module, _args, out):
        if len(wanted_rows[0]):
            seen.append(hidden(out)[0, wanted_rows[0]].cpu().double())

    hooks = [
        model.register_forward_pre_hook(note, with_kwargs=True),
        blocks[-1].register_forward_hook(take),
    ]
    try:
        nll = prefix_nll(
            model, prompt, trajectory, [suffix], positions, progress=progress, way="packed"
        )[0]
    finally:
        for hook in hooks:
            hook.remove()
    # before them: the check of a model's first use
    states = torch.cat(seen)[-len(nll) * count :].view(len(nll), count, -1)
    # 2. without the trajectory: H, and where the path starts
    base = last_layer(model, prompt, suffix) if without is None else without
    where, size = np.asarray(positions, dtype=int), weight_norm(model, names[-1])
    precision = torch.finfo(next(model.parameters()).dtype).eps
    return ParameterPath(
        where,
        nll,
        states,
        base.outputs,
        base.inputs,
        base.targets,
        len(blocks) - 1,
        names[-1],
        size,
        precision,
    )


# --- the loss as a function of the last layer's output --------------------------------------------


@dataclass(frozen=True, eq=False)
class LastLayer:
    """What the last layer's output projection takes and the layer puts out for an answer without
    any trajectory: all that L needs under a change of that projection.
    """

    inputs: torch.Tensor  # (T, d_ff) float64: H
    outputs: torch.Tensor  # (|a|, d) float64, on the rows that predict the answer
    targets: torch.Tensor  # (|a|,) the answer's token ids


def last_layer(model: torch.nn.Module, prompt: Sequence[int], suffix: Suffix) -> LastLayer:
    """One plain pass over prompt and suffix, with what its last layer does kept."""
    blocks, names = find_blocks(model)
    count, held = len(suffix.ids) - suffix.start, {}
    projection = model.get_submodule(names[-1])
    with torch.inference_mode():
        hooks = [
            projection.register_forward_pre_hook(
                lambda _m, args: held.__setitem__("H", args[0][0].cpu().double())
            ),
            blocks[-1].register_forward_hook(
                lambda _m, _i, out: held.__setitem__("out", hidden(out)[0, -count:].cpu().double())
            ),
        ]
        run(model, [*prompt, *suffix.ids[:-1]], 1, hooks)
    targets = torch.tensor(suffix.ids[suffix.start :])
    return LastLayer(held["H"].clone(), held["out"].clone(), targets)


def updated_loss(model: torch.nn.Module, base: LastLayer, update: Update) -> float:
    """L of the answer, nats per token, under an update of the last layer's output projection, or of
    nothing: what a pass of the updated model gives, from its last layer alone. ValueError for an
    update of other layers.
    """
    last = find_blocks(model)[1][-1]
    outputs = base.outputs
    for item in update.layers:
        if item.module != last:
            raise ValueError(
                f"an update of {item.module} changes what comes into {last}: run the model"
            )
        outputs = outputs + base.inputs[-len(outputs) :] @ item.V.T @ item.U.T
    return float(answer_loss(model, outputs[None], base.targets))


def answer_loss(
    model: torch.nn.Module, states: torch.Tensor, targets: torch.Tensor, *, gradients: bool = False
):
    """L of the answer from the last layer's outputs: (n, |a|, d) -> (n,) nats per token; with
    gradients also ∂L/∂states.

    Computed in the model's own precision, returned in float64.
    """
    norm, head, weight = final_norm(model), model.get_output_embeddings(), next(model.parameters())
    flat, wanted = states.reshape(-1, states.shape[-1]), targets.repeat(len(states))
    losses, row_gradients = [], []
    with frozen(model), torch.set_grad_enabled(gradients):
        for rows, aims in zip(flat.split(_ROWS), wanted.split(_ROWS), strict=True):
            rows = rows.to(weight.device, weight.dtype).requires_grad_(gradients)
            logits = head(norm(rows))
            loss = torch.nn.functional.cross_entropy(
                widened(logits), aims.to(weight.device), reduction="none"
            )
            losses.append(loss.detach().cpu().double())
            if gradients:
                row_gradients.append(torch.autograd.grad(loss.sum(), rows)[0].cpu().double())
    nll = torch.cat(losses).view(len(states), -1).mean(1)
    return (
        (nll, torch.cat(row_gradients).view(states.shape) / states.shape[1]) if gradients else nll
    )


@dataclass(frozen=True, eq=False)
class PathSteps:
    """Each step θ'_{k-1} → θ'_k of a path beside -∇L(θ'_{k-1}): arrays (n - 1,), NaN where a step
    has no length.
    """

    cosine: np.ndarray  # of the smallest exact step with -∇L
    cosine_protected: np.ndarray  # of the step that leaves the prompt's rows unchanged
    # of a random step: same rank, norm and right factor, drawn anew for each
    cosine_random: np.ndarray
    # the largest cosine that a step which leaves the prompt's rows unchanged can have
    ceiling: np.ndarray
    norm: np.ndarray  # ‖θ'_k - θ'_{k-1}‖_F / ‖W‖_F, smallest exact step
    drop: np.ndarray  # L(θ'_{k-1}) - L(θ'_k), nats per token
    gradient_drop: np.ndarray  # the drop of a step along -∇L, equally long
    # the largest drop among gradient steps no longer than that (LINE_SEARCH), or 0
    best_gradient_drop: np.ndarray


def path_steps(
    model: torch.nn.Module,
    path: ParameterPath,
    *,
    seed: int,
    fractions: Sequence[float] = LINE_SEARCH,
) -> PathSteps:
    """Compare each step of a path with the gradient of the loss where the step starts.

    seed: of the random steps. fractions: lengths of the gradient steps that are tried, in lengths
    of the path's own step; the first is that of `gradient_drop`; with none, both gradient drops are
    NaN. What concerns the prompt's rows is NaN where no exact update leaves them alone (T > d_ff).
    Raises ValueError for a path of one position, answer rows that are not independent, and a model
    whose loss is not simply its head after its final norm.
    """
    if len(path.positions) < 2:
        raise ValueError(
            f"a path over positions {path.positions.tolist()} has no step: give at least two"
            " positions"
        )
    if not path.exact(protect=False):
        raise ValueError(
            "the answer's rows are not independent at the model's precision, so no update serves"
            " all of them"
        )
    before, moves = path.states[:-1], path.states.diff(dim=0)
    nll, g = answer_loss(model, path.states, path.targets, gradients=True)
    if (worst := float((nll - torch.from_numpy(path.answer_nll)).abs().max())) > _tolerance(model):
        raise ValueError(
            f"{type(model).__name__}'s loss is not its head after its final norm (they differ by"
            f" {worst:.2g} nats): the path's gradients would be those of another loss; take a"
            " Llama, Qwen, first-generation Gemma or GPT-2 style decoder"
        )
    g = g[:-1]
    rows = path.inputs[-path.states.shape[1] :]
    K = rows @ rows.T
    V = path.right(protect=True)
    free, protected = (
        torch.linalg.inv(K),
        V @ V.T if path.exact(protect=True) else torch.full_like(K, torch.nan),
    )
    gradient_length, inner = _length(g, K), -(moves * g).sum((1, 2))
    noise = torch.randn(
        moves.shape, generator=torch.Generator().manual_seed(seed), dtype=moves.dtype
    )
    length = _length(moves, free)
    drops = [] if fractions else [torch.full_like(gradient_length, torch.nan)]
    for fraction in fractions:  # the states after a step of that length along -∇L: h - c K g
        after = before - (fraction * length / gradient_length)[:, None, None] * (K @ g)
        drops.append(nll[:-1] - answer_loss(model, after, path.targets))
    return PathSteps(
        cosine=(inner / (length * gradient_length)).numpy(),
        cosine_protected=(inner / (_length(moves, protected) * gradient_length)).numpy(),
        cosine_random=(-(noise * g).sum((1, 2)) / (_length(noise, free) * gradient_length)).numpy(),
        ceiling=(_length(g, _inverse(protected)) / gradient_length).numpy(),
        norm=(length / path.weight_norm).numpy(),
        drop=(nll[:-1] - nll[1:]).numpy(),
        gradient_drop=drops[0].numpy(),
        best_gradient_drop=torch.stack(drops).amax(0).clamp(min=0).numpy(),
    )


def _length(rows: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """sqrt(tr(rowsᵀ gram rows)) for each of (n, |a|, d): the Frobenius norm of a matrix whose other
    factor has that Gram.
    """
    return torch.einsum("nad,ab,nbd->n", rows, gram, rows).clamp(min=0).sqrt()


def _inverse(gram: torch.Tensor) -> torch.Tensor:
    return gram if gram.isnan().any() else torch.linalg.inv(gram)


def _tolerance(model: torch.nn.Module) -> float:
    return 2e-3 if next(model.parameters()).dtype in (torch.float32, torch.float64) else 0.25
