"""Where a model's weights lie: on one device, spread over several, or offloaded by accelerate.

accelerate keeps an offloaded weight in memory or on disk, and puts it on the device for the time of
its module's forward pass; outside of it the parameter is on the device 'meta' and has no values.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch


def device_of(model: torch.nn.Module) -> torch.device:
    """The device on which the model takes its token ids."""
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    first = next((embedding if embedding is not None else model).parameters())
    hook = _offloading(embedding) if first.device.type == "meta" else None
    return torch.device(hook.execution_device) if hook else first.device


def weight(model: torch.nn.Module, name: str) -> torch.Tensor:
    """The values of a parameter by name; an offloaded one is read from where it lies."""
    module, own = _owner(model, name)
    parameter = module.get_parameter(own)
    if parameter.device.type != "meta":
        return parameter.data
    return _offloading(module).weights_map[own]


@contextlib.contextmanager
def replaced(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Other tensors in place of parameters by name; afterwards, also after an exception, the very
    same ones are back. In place of offloaded ones they stay in memory.
    """
    undo = contextlib.ExitStack()
    with undo:
        for name, tensor in tensors.items():
            module, own = _owner(model, name)
            parameter = module.get_parameter(own)
            if parameter.device.type == "meta":
                places, key = _places(_offloading(module).weights_map, own)
                undo.callback(_put_back, places, key, places.get(key))
                places[key] = tensor
            else:
                undo.callback(setattr, parameter, "data", parameter.data)
                parameter.data = tensor
        yield


def _owner(model: torch.nn.Module, name: str) -> tuple[torch.nn.Module, str]:
    owner, _, own = name.rpartition(".")
    return model.get_submodule(owner), own


def _offloading(module: torch.nn.Module):
    """The hook of accelerate that brings a module's weights."""
    hook = getattr(module, "_hf_hook", None)
    hooks = getattr(hook, "hooks", (hook,))
    found = next((one for one in hooks if getattr(one, "offload", False)), None)
    if found is None:
        raise ValueError(
            f"the weights of a {type(module).__name__} are on the device 'meta', and accelerate"
            " does not bring them: load the model again, with models.load"
        )
    return found


def _places(weights_map, own: str) -> tuple[dict, str]:
    """The table in memory that accelerate asks first, and the weight's key in it."""
    key = own
    while hasattr(weights_map, "prefix"):
        key, weights_map = f"{weights_map.prefix}{key}", weights_map.dataset
    return getattr(weights_map, "state_dict", weights_map), key


def _put_back(places: dict, key: str, tensor: torch.Tensor | None) -> None:
    if tensor is None:
        del places[key]  # it lies on disk
    else:
        places[key] = tensor
