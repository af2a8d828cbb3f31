"""Model and tokenizer of a folder or of a name on the hub: read in one place, and checked.

Remote code is never trusted and nothing is unpickled.
"""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterable
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tml_lib import files
from tml_lib.lm import folders
from tml_lib.lm.presets import SHIPPED, shipped
from tml_lib.runtime import cache_folder


def shipped_tokenizer() -> Path:
    """Folder of the tokenizer that the kit's checkpoints share; it lies beside theirs."""
    return Path(shipped(SHIPPED[0])).parent / "tiny-tokenizer"


def tokenizer_source(source: str) -> str:
    """Where the tokenizer of a model (folder or hub name) is: with it, but for the kit's
    checkpoints, which share one.
    """
    folder = Path(source)
    bare = folder.is_dir() and not (folder / "tokenizer_config.json").is_file()
    ours = {Path(shipped(name)).resolve() for name in SHIPPED}
    return str(shipped_tokenizer()) if bare and folder.resolve() in ours else source


def read(source: str, *, local_only: bool, **settings) -> tuple[torch.nn.Module, object]:
    """Model and tokenizer of a folder or of a name on the hub; settings: of `from_pretrained`.

    Only safetensors are read, nothing is unpickled. Raises FileNotFoundError where a folder is
    none of a model, ValueError that names the model, what is wrong and the next step.
    """
    if local_only:
        folders.check_files(Path(source))
    try:
        with quiet():
            config = AutoConfig.from_pretrained(source, local_files_only=local_only)
            check_causal(config, source)
            sized = folders.check_sizes(Path(source), config) if local_only else None
            if not {"quantization_config", "device_map"} & set(settings):
                parameters = sized or folders.parameters_of(config)
                folders.check_memory(source, parameters, settings["dtype"].itemsize)
            model, info = AutoModelForCausalLM.from_pretrained(
                source,
                config=config,
                local_files_only=local_only,
                output_loading_info=True,
                use_safetensors=True,
                **settings,
            )
            tokenizer = AutoTokenizer.from_pretrained(
                tokenizer_source(source), local_files_only=local_only
            )
    except (NotCausal, folders.Mismatch, folders.NoSafetensors, files.Unreadable):
        raise
    # safetensors, json, hub, memory and OS errors all mean: these files cannot be read
    except Exception as error:
        step = (
            "copy or save the folder again"
            if local_only
            else "check the name, the network, the memory and your hub login"
        )
        reason = f"{type(error).__name__}: {error}"
        if "ignore_mismatched_sizes" in reason and local_only:  # it was told on a silenced channel
            reason = folders.misfit(Path(source), config)
        raise ValueError(f"model {source!r} cannot be loaded ({reason}); {step}") from error
    if info["missing_keys"]:
        raise ValueError(
            f"model {source!r} lacks {len(info['missing_keys'])} weights (first:"
            f" {sorted(info['missing_keys'])[0]}), which would be left random: copy or save the"
            " folder again"
        )
    check_layers(model, source, info.get("unexpected_keys", ()))
    # what the kit converted itself is sound, and reading all of it would keep it in memory
    if not Path(source).is_relative_to(cache_folder()) and (damage := not_finite(model)):
        raise ValueError(
            f"model {source!r}: {damage}; copy or save the folder again, or train it with a lower"
            " learning rate"
        )
    return model, tokenizer


def check_layers(model: torch.nn.Module, source: str, unused: Iterable[str]) -> None:
    """Raise ValueError where weights that are not used are of layers that the model ought to
    have.
    """
    kinds = {re.sub(r"\d+", "#", name) for name in model.state_dict()}
    if left := [name for name in sorted(unused) if re.sub(r"\d+", "#", name) in kinds]:
        raise ValueError(
            f"model {source!r} has {len(left)} weights of layers that its config.json leaves out"
            f" (first: {left[0]}): copy or save the folder again"
        )


def not_finite(model: torch.nn.Module) -> str:
    """Which weights are NaN or infinite, in words; '' where none is."""
    for name, parameter in model.named_parameters():
        if parameter.is_meta or not parameter.is_floating_point():
            continue  # what is offloaded has no values here
        # a sum is finite only where all are, and takes no memory
        if parameter.sum(dtype=torch.float32).isfinite():
            continue
        if not parameter.isfinite().all():
            kind = "NaN" if parameter.isnan().any() else "infinite numbers"
            return f"its weights hold {kind} (first in {name})"
    return ""


class NotCausal(ValueError):
    """A model that does not read from left to right."""


def check_causal(config, source: str) -> None:
    names = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    found = config.architectures or []
    if not names & set(found):
        raise NotCausal(
            f"model {source!r} is {' or '.join(found) or config.model_type!r}, not a causal LM: a"
            " trajectory is probed token by token from left to right, so give a decoder such as"
            " LlamaForCausalLM"
        )


@contextlib.contextmanager
def quiet():
    """Silence the loading bars and reports of transformers: what matters is raised as an error."""
    logger = logging.getLogger("transformers")
    level, shown = logger.level, transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        if shown:
            transformers.utils.logging.enable_progress_bar()
