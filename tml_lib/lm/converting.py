"""A GGUF file as a plain safetensors folder, made once, tensor by tensor to keep memory small.

transformers reads GGUF files as well, but holds the whole model in float32 meanwhile. Here only
decoders whose tensors map one to one are read: Llama's form and Qwen2's.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tml_lib.runtime import in_use, remove_left

LEFT = ".converting-"  # how the name of a folder begins that is being made
ARCHITECTURES = ("llama", "qwen2")
SHARD = "1GB"  # of a weights file: what is held in memory at a time
ROWS = 1024  # that are dequantised together


def converted(gguf: Path, folder: Path, dtype: torch.dtype, *, progress: bool = False) -> Path:
    """The folder that holds the model of a GGUF file with its tokenizer; made where it is not there
    yet, under a temporary name, so that a folder of that name is always whole.

    dtype: of the stored weights. Raises ValueError where the file cannot be read or has another
    form than Llama's and Qwen2's.
    """
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_left(folder.parent, LEFT)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=LEFT))
        try:
            with in_use(temporary):
                convert(gguf, temporary, dtype, progress=progress)
                # another process may have finished first: either copy will do
                with contextlib.suppress(OSError):
                    os.replace(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def convert(gguf: Path, folder: Path, dtype: torch.dtype, *, progress: bool = False) -> None:
    """Write config, generation settings, tokenizer and dequantised weights into a folder.

    A head that equals the embedding is stored once, as tied.
    """
    import gguf as reading

    try:
        tensors = {t.name: t for t in reading.GGUFReader(gguf).tensors}
        config = AutoConfig.from_pretrained(gguf.parent, gguf_file=gguf.name)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # gguf's and transformers' readers raise whatever the damage leads to
    except Exception as error:
        raise ValueError(
            f"{gguf} cannot be read as GGUF ({type(error).__name__}: {error}): fetch it again"
        ) from error
    if config.model_type not in ARCHITECTURES:
        raise ValueError(
            f"{gguf} holds a {config.model_type!r} model, and only {' and '.join(ARCHITECTURES)}"
            " are converted here: load it with transformers and write it with `save_pretrained`"
        )
    config.tie_word_embeddings = _tied(tensors)
    config.dtype, config._name_or_path = dtype, gguf.stem
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are plain now
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    config.architectures = [type(model).__name__]
    names = _names(model, config)
    if lacking := sorted(set(names.values()) - set(tensors)):
        raise ValueError(f"{gguf} lacks {len(lacking)} tensors (first: {lacking[0]})")
    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    state = {name: value for name, value in model.state_dict().items() if name in names}
    split = split_torch_state_dict_into_shards(state, max_shard_size=SHARD)
    with tqdm(total=len(names), desc="converting", disable=not progress) as bar:
        for file, held in split.filename_to_tensors.items():
            weights = {}
            for name in held:
                weights[name] = _tensor(tensors[names[name]], config, dtype)
                bar.update()
            save_file(weights, folder / file, metadata={"format": "pt"})
            del weights  # before the next ones are made
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def _names(model: torch.nn.Module, config) -> dict[str, str]:
    """transformers' name of each stored weight -> its name in the GGUF file."""
    import gguf as reading

    (architecture,) = (k for k, v in reading.MODEL_ARCH_NAMES.items() if v == config.model_type)
    table = reading.get_tensor_name_map(architecture, config.num_hidden_layers)
    names = {n: table.get_name(n, try_suffixes=(".weight", ".bias")) for n in model.state_dict()}
    if config.tie_word_embeddings:
        del names["lm_head.weight"]
    return names


def _tied(tensors: dict) -> bool:
    """Whether the head is the embedding: stored once, or equal number by number."""
    if "output.weight" not in tensors:
        return True
    head, embedding = tensors["output.weight"], tensors["token_embd.weight"]
    pairs = zip(_blocks(head), _blocks(embedding), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


def _blocks(tensor) -> Iterator[np.ndarray]:
    """The tensor in float32, some rows at a time: all at once, an embedding takes gigabytes."""
    import gguf as reading

    for start in range(0, len(tensor.data), ROWS):
        yield reading.dequantize(tensor.data[start : start + ROWS], tensor.tensor_type)


def _tensor(tensor, config, dtype: torch.dtype) -> torch.Tensor:
    found, start = torch.empty(*reversed(tensor.shape.tolist()), dtype=dtype), 0
    for block in _blocks(tensor):
        found[start : start + len(block)] = torch.from_numpy(np.array(block))
        start += len(block)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    part = tensor.name.split(".")[-2]
    if config.model_type == "llama" and part in heads:
        # GGUF interleaves the two halves that a rotation of Llama's pairs
        found = found.unflatten(0, (heads[part], -1, 2)).transpose(1, 2).reshape(found.shape)
    return found.contiguous()
