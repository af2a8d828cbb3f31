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

from collections.abc import Sequence

import torch

from tml_lib.lm import placed
from tml_lib.lm.answers import ANSWER_TEMPLATE, Suffix, encode
from tml_lib.lm.blocks import choose_layers, find_blocks, frozen, hidden, run, watch, widened
from tml_lib.lm.models import LanguageModel
from tml_lib.measure.layer_updates import LayerUpdate, Update
from tml_lib.measure.limits import check_model


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
