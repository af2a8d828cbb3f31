"""What the checks of a model's first use share: when a result holds, and how near is equal.

A faster way of reading a model (packed passes, left-padded batches) is taken where a check finds it
exact. A check holds for one `Setting` of the model.
"""

from __future__ import annotations

import inspect
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from tml_lib.lm.placed import device_of

# what transformers and torch raise when a model is read in a way that it was not written for
UNSUITED = (TypeError, ValueError, RuntimeError, AttributeError, LookupError, AssertionError)
# where transformers' models return what they remember, and take it back
STATES = ("past_key_values", "cache_params", "state")


class SlowerWay(UserWarning):
    """A model cannot be read in the fastest way and is read in a slower one, which is as exact."""


class NotSuited(ValueError):
    """A model whose predictions are no function of the tokens before them."""


@dataclass(frozen=True)
class Setting:
    """What decides whether a model is read rightly, and may change while it lives."""

    dtype: torch.dtype
    attention: str | None  # the implementation that transformers runs
    adapter: tuple  # see `_adapter`

    @property
    def widest(self) -> float:
        """The most that two exact ways differ by, in nats per token, however large the model is; in
        half precision what rounding itself was measured to change (`studies.precision`).
        """
        return 1e-3 if self.dtype in (torch.float32, torch.float64) else 0.2


def setting(model: torch.nn.Module) -> Setting:
    """The model's dtype, attention implementation and adapter as they are now."""
    attention = getattr(model.config.get_text_config(), "_attn_implementation", None)
    return Setting(next(model.parameters()).dtype, attention, _adapter(model))


def _adapter(model: torch.nn.Module) -> tuple:
    """What adapters a model carries and which of them work: equal for equal structures, not values.

    One entry for each parameter of LoRA or of a learnt prompt (name, shape), then one for each
    state that peft's layers are in (active adapters, switched off, merged into the weights), then
    whether `forward` is another model's, as peft lets it be to switch a learnt prompt off.
    """
    names = "lora_", "prompt_encoder"
    weights = [
        (name, *p.shape) for name, p in model.named_parameters() if any(n in name for n in names)
    ]
    layers = [m for m in model.modules() if getattr(m, "adapter_layer_names", None)]  # peft's
    states = {
        (tuple(m.active_adapters), m.disable_adapters, tuple(m.merged_adapters)) for m in layers
    }
    borrowed = getattr(model.forward, "__self__", model) is not model
    return (*weights, *sorted(states), borrowed)


def check_ids(model: torch.nn.Module, count: int) -> list[int]:
    """Random token ids that a model both reads and predicts."""
    sizes = model.get_input_embeddings().num_embeddings, model.config.get_text_config().vocab_size
    draw = torch.Generator().manual_seed(0)
    return torch.randint(min(sizes), (count,), generator=draw).tolist()


def _logits(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    """(N, vocabulary) after each token of one text, read without a cache, in float64."""
    rows = torch.tensor([ids], device=device_of(model))
    return model(input_ids=rows, use_cache=False).logits[0].double()


def _change(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference of two tables of logits, in nats."""
    return float((one.log_softmax(-1) - other.log_softmax(-1)).abs().max())


@torch.inference_mode()
def rounding(model: torch.nn.Module, one: Setting) -> float:
    """How far two exact ways may lie apart, in nats per token: eight times the most that a shorter
    pass changes, and two roundings of the largest logit.

    Several lengths are tried: some processors give passes of 9 and of 6 tokens the same bits, and
    round a single token otherwise. At least 1e-5, and `Setting.widest` at the most. Raises
    NotSuited for a model whose predictions change with the tokens after them, or from call to call.
    """
    ids = check_ids(model, 9)
    whole = _logits(model, ids)
    last = check_ids(model, 10)[-1]
    other = _logits(model, [*ids[:-1], last if last != ids[-1] else ids[0]])
    step = torch.finfo(one.dtype).eps * float(whole.abs().max())
    if not (whole[:-1] - other[:-1]).abs().max() > min(64 * step, one.widest):
        changes = [_change(whole[:n], _logits(model, ids[:n])) for n in (1, 3, 6)]
        # one that counts a text's tokens in each of its predictions has no rounding to show here
        changed = max((change for change in changes if change < 256 * step), default=0.0)
        return min(max(8 * changed, 2 * step, 1e-5), one.widest)
    name = type(model).__name__
    if not torch.equal(whole, _logits(model, ids)):
        raise NotSuited(
            f"{name} gives other values for the same text at every call, so there is no value to"
            " measure: take a model that draws nothing at random"
        )
    raise NotSuited(
        f"{name} is not causal: what it predicts at a token changes with the tokens after it, so it"
        " would read the answer that it should predict; take a causal model (of BERT's kind: with"
        " is_decoder=True in its configuration)"
    )


@contextmanager
def silenced() -> Iterator[None]:
    """Other libraries' warnings about an attempt whose result is compared are not shown."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def longrope_limit(config) -> int | None:
    """Length in tokens beyond which a model's rotary angles change at once (longrope), or None."""
    config = config.get_text_config()
    ropes = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    kinds = [one for one in ropes.values() if isinstance(one, dict)] or [ropes]  # per kind of layer
    for rope in kinds:
        if "longrope" in (rope.get("rope_type"), rope.get("type")):
            short = rope.get("original_max_position_embeddings")
            return short or getattr(config, "original_max_position_embeddings", None)
    return None


def keeps_rows(model: torch.nn.Module) -> bool:
    """Whether a model can apply its head to some rows only."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "logits_to_keep" in inspect.signature(type(inner).forward).parameters


_remembered: weakref.WeakKeyDictionary[torch.nn.Module, dict] = weakref.WeakKeyDictionary()


def remembered(model: torch.nn.Module) -> dict:
    """What checks have found out about a model while it lives."""
    return _remembered.setdefault(model, {})


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode within; afterwards every module is in its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def contiguous_head(model: torch.nn.Module) -> Iterator[None]:
    """The head is given a batch's last rows in one piece: for a slice of a batch, frozen weights in
    half precision are copied once per row by torch 2.13 on a CPU (4 to 9 times as slow a pass).
    """
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None:
        yield
        return
    hook = head.register_forward_pre_hook(lambda _, given: (given[0].contiguous(), *given[1:]))
    try:
        yield
    finally:
        hook.remove()


def near(model: torch.nn.Module) -> float:
    """`rounding`, once per model and setting."""
    known, key = remembered(model), ("near", setting(model))
    if key not in known:
        known[key] = rounding(model, setting(model))
    return known[key]
