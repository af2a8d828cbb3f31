"""The residual blocks of a decoder: where they are, what they put out, and one plain forward pass
with hooks on them.

A block is taken apart at its *output projection*, the last matrix of its MLP (W_2 in RaML Eq. 5,
`down_proj` in Llama).
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Hashable, Iterable, Iterator, Sequence
from numbers import Integral

import torch
from transformers.pytorch_utils import Conv1D

from tml_lib.lm import models
from tml_lib.lm.exactness import evaluating
from tml_lib.lm.placed import device_of

_PROJECTIONS = ("down_proj", "c_proj")  # of a block's `mlp`: Llama, Qwen, Gemma, Mistral; GPT-2
# the backbone's list of blocks, and the final norm that goes with it
_LISTS = {"layers": "norm", "h": "ln_f"}
_sound: weakref.WeakSet = weakref.WeakSet()


def find_blocks(model: torch.nn.Module) -> tuple[list[torch.nn.Module], list[str]]:
    """The residual blocks of a decoder and the dotted names of their output projections, first
    layer first.

    Raises ValueError by the model's name where a block has no such projection, or does not simply
    add its output to the residual stream (Gemma 2 and 3 normalise it first: no change of W_down
    reaches an output of another norm).
    """
    name = type(model).__name__
    kind = _list_name(model)
    blocks, names = list(getattr(model.base_model, kind)), []
    for k, block in enumerate(blocks):
        mlp = getattr(block, "mlp", None)
        found = [
            n for n in _PROJECTIONS if isinstance(getattr(mlp, n, None), torch.nn.Linear | Conv1D)
        ]
        if not found:
            raise ValueError(
                f"{name}'s block {k} ({type(block).__name__}) has no linear `mlp.down_proj` or"
                " `mlp.c_proj`: the update is written for Llama, Qwen, Gemma and GPT-2 style MLPs;"
                " unload adapters and take a model without experts"
            )
        names.append(f"{model.base_model_prefix}.{kind}.{k}.mlp.{found[0]}")
    if model not in _sound:
        # one block of each build
        for k in {type(block): k for k, block in enumerate(blocks)}.values():
            _check_additive(model, blocks[k], names[k])
        _sound.add(model)
    return blocks, names


def final_norm(model: torch.nn.Module) -> torch.nn.Module:
    """The norm between the last block and the language-model head."""
    return getattr(model.base_model, _LISTS[_list_name(model)])


def _list_name(model: torch.nn.Module) -> str:
    for kind, norm in _LISTS.items():
        if hasattr(model.base_model, kind) and hasattr(model.base_model, norm):
            return kind
    raise ValueError(
        f"{type(model).__name__} has no list of blocks `layers` (with `norm`) or `h` (with `ln_f`):"
        " take a Llama, Qwen, Gemma or GPT-2 style decoder; unload adapters first"
    )


@torch.no_grad()
def _check_additive(model: torch.nn.Module, block: torch.nn.Module, name: str) -> None:
    """What is added to a projection's output must be added to its block's output: shown on a short
    random input.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(
        model.get_input_embeddings().num_embeddings, (3,), generator=generator
    ).tolist()
    held: dict[str, torch.Tensor] = {}
    run(model, ids, 1, [watch(block, held, "plain", 3)])
    size = float(held["plain"].abs().max())
    shift = model.get_submodule(name).register_forward_hook(lambda _module, _args, out: out + size)
    run(model, ids, 1, [shift, watch(block, held, "shifted", 3)])
    error = float((held["shifted"] - held["plain"] - size).abs().max()) / size
    if not error < 0.05:  # rounding of bfloat16 is below
        raise ValueError(
            f"{type(model).__name__} does not add {name}'s output to the residual stream as it is"
            " (it is normalised or scaled first), so no update of that projection reaches every"
            " output: take a Llama, Qwen, first-generation Gemma or GPT-2 style decoder"
        )


def choose_layers(layers: str | Sequence[int], count: int) -> list[int]:
    """'last', 'all' or layer numbers (negative ones from the end) as increasing numbers; ValueError
    for others.
    """
    found = (
        {"all": range(count), "last": [-1]}.get(layers, []) if isinstance(layers, str) else layers
    )
    wanted = list(found) if isinstance(found, Iterable) else []
    if not wanted or not all(isinstance(k, Integral) for k in wanted):
        raise ValueError(f"layers={layers!r} must be 'last', 'all' or a list of layer numbers")
    if outside := [k for k in wanted if not -count <= k < count]:
        raise ValueError(
            f"layers={list(wanted)}: the model has layers 0..{count - 1}, not {outside[0]}"
        )
    return sorted({k % count for k in wanted})


def hidden(out) -> torch.Tensor:
    """A block's output states, (batch, tokens, d), whether the block returns them alone or in a
    tuple.
    """
    return out[0] if isinstance(out, tuple) else out


def watch(block: torch.nn.Module, held: dict, key: Hashable, rows: int):
    """A hook that keeps a copy of the block's output on the last `rows` tokens, (rows, d), as
    `held[key]`.
    """
    return block.register_forward_hook(
        lambda _module, _args, out: held.__setitem__(key, hidden(out)[0, -rows:].detach().clone())
    )


def run(
    model: torch.nn.Module, ids: Sequence[int], count: int, hooks: Sequence = ()
) -> torch.Tensor:
    """Logits (count, vocabulary) of the last rows of one plain forward pass; the hooks are removed
    afterwards.
    """
    try:
        read = torch.tensor([ids], device=device_of(model))
        with evaluating(model):
            return model(input_ids=read, use_cache=False, logits_to_keep=count).logits[0]
    finally:
        for hook in hooks:
            hook.remove()


def widened(logits: torch.Tensor) -> torch.Tensor:
    """Logits in float32 at least: log-probabilities of a large vocabulary need it."""
    return logits if logits.dtype == torch.float64 else logits.float()


@contextlib.contextmanager
def wide_tail(model: torch.nn.Module) -> Iterator[None]:
    """The last block, the final norm and the head in float64 within; the layers below stay as they
    are, and what they put out is widened. Afterwards the very same modules are back.

    Raises ValueError where accelerate holds their weights elsewhere (on the device 'meta').
    """
    kept = [find_blocks(model)[0][-1], final_norm(model), model.get_output_embeddings()]
    if any(p.device.type == "meta" for module in kept for p in module.parameters()):
        raise ValueError(
            f"the last layer of {type(model).__name__} is offloaded, and its float64 copy needs the"
            " weights in memory: load the model on a device that holds it"
        )
    names = {module: name for name, module in model.named_modules()}
    tail = torch.nn.ModuleList(copy.deepcopy(module) for module in kept[:-1]).double()
    tail.append(_WideHead(kept[-1]))
    models.widen_norms(tail)
    tail[0].register_forward_pre_hook(
        lambda _module, args, kwargs: (_wide(args), _wide(kwargs)), with_kwargs=True
    )
    try:
        for module, wide in zip(kept, tail, strict=True):
            model.set_submodule(names[module], wide)
        yield
    finally:
        for module in kept:
            model.set_submodule(names[module], module)


class _WideHead(torch.nn.Module):
    """A linear head in float64, some of its rows at a time: a whole copy of a 1.5 B model's takes 2
    GB.
    """

    ROWS = 2**13

    def __init__(self, head: torch.nn.Linear):
        super().__init__()
        self.weight, self.bias = head.weight, head.bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        parts = [hidden @ rows.double().T for rows in self.weight.split(self.ROWS)]
        logits = torch.cat(parts, -1)
        return logits if self.bias is None else logits + self.bias.double()


def _wide(given):
    """Floating-point tensors in nested tuples and dictionaries as float64."""
    if isinstance(given, tuple):
        return tuple(map(_wide, given))
    if isinstance(given, dict):
        return {key: _wide(value) for key, value in given.items()}
    return (
        given.double() if isinstance(given, torch.Tensor) and given.is_floating_point() else given
    )


@contextlib.contextmanager
def frozen(model: torch.nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient within: a backward pass then costs only what it is asked
    for.
    """
    asked = [p for p in model.parameters() if p.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)
