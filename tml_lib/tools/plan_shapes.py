"""What the planner knows of a model and of a machine: a decoder's dimensions, a device's rates.

`plan.toml` holds both with their sources; a model's shape is also read from its config.json.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path

from tml_lib import checks, files
from tml_lib.lm import presets

CONFIG = {  # our names: config.json's
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "vocabulary": "vocab_size",
}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # model types whose blocks the formulas describe
SAVED = "give the folder that `save_pretrained` wrote"


@dataclass(frozen=True)
class Shape:
    """A decoder's dimensions: pre-norm blocks of grouped attention and a gated feed-forward net
    (Llama, Mistral, Qwen).

    Raises ValueError where the count of parameters differs from a published one.
    """

    name: str
    layers: int
    width: int  # d
    heads: int
    kv_heads: int
    head: int  # size of one head
    ffn: int  # f
    vocabulary: int
    tied: bool = False  # input and output embeddings are one
    bias: bool = False  # on queries, keys and values
    qk_norm: bool = False  # Qwen3
    published: int = 0

    def __post_init__(self):
        if self.published not in (0, self.parameters):
            raise ValueError(
                f"{self.name} has {self.parameters} parameters, published are {self.published}:"
                " fix plan.toml"
            )

    @property
    def query(self) -> int:
        """Width of all query heads, q."""
        return self.heads * self.head

    @property
    def key(self) -> int:
        """Width of all key heads, k; as many for values."""
        return self.kv_heads * self.head

    @property
    def matrices(self) -> int:
        """Parameters in the matrices of all blocks: layers · (2dq + 2dk + 3df)."""
        return self.layers * self.width * (2 * self.query + 2 * self.key + 3 * self.ffn)

    @property
    def parameters(self) -> int:
        """All parameters: matrices, norms and biases of blocks, the last norm, embeddings (once
        where tied).
        """
        norms = (
            2 * self.width + self.bias * (self.query + 2 * self.key) + self.qk_norm * 2 * self.head
        )
        return (
            self.matrices
            + self.layers * norms
            + self.width
            + (2 - self.tied) * self.vocabulary * self.width
        )

    def adapter(self, rank: int) -> int:
        """Parameters of a LoRA adapter on the seven linear layers of every block: layers · rank · Σ
        (in + out).
        """
        return self.layers * rank * (7 * self.width + 2 * self.query + 2 * self.key + 3 * self.ffn)


@dataclass(frozen=True)
class Device:
    """One GPU or processor; rates a second."""

    name: str
    flops: float  # peak of dense matrix products
    memory: float  # bytes
    bandwidth: float  # bytes
    launch: float  # seconds that a layer takes in a forward pass beside its arithmetic
    train_launch: float  # the same in a training step: forward, backward, optimiser
    pass_launch: float  # a forward pass's own, beside its layers
    use: float = 1.0  # share of the peak that is reached
    memory_use: float = 1.0
    number: int = 2  # bytes of a weight or activation
    eager: bool = True  # transformers' own loops; else a serving engine
    value: float = 0.0  # seconds per value that an element-wise operation writes


@functools.cache
def tables() -> dict:
    """plan.toml: models, devices, lengths, common settings, claims."""
    return files.table(Path(__file__).parent / "plan.toml", files.COMMITTED)


def shape(name: str) -> Shape:
    """The shape of a model by name (with or without its hub's owner and '-Instruct'), or of a
    folder with config.json.

    Raises ValueError for a name that is not known and for a folder whose model the formulas do not
    describe.
    """
    name = checks.place(model=name)
    folder = Path(presets.shipped(name)) if name.startswith("tiny-") else Path(name).expanduser()
    if os.path.lexists(folder / "config.json"):
        return _read_shape(folder / "config.json")
    short, known = name.split("/")[-1].removesuffix("-Instruct"), tables()["models"]
    if short not in known:
        names = ", ".join([*known, "tiny-base"])
        raise ValueError(
            f"the shape of {name!r} is not known: choose one of {names}, or give a folder with"
            " config.json"
        )
    return Shape(short, **known[short])


def _read_shape(file: Path) -> Shape:
    config = files.table(file, SAVED)
    if (kind := config.get("model_type")) not in FAMILIES:
        raise ValueError(
            f"{file} is of a {kind!r} model; the formulas are for {', '.join(FAMILIES)}: take one"
            " of those"
        )
    if missing := [key for key in CONFIG.values() if not config.get(key)]:
        raise ValueError(f"{file} lacks {missing[0]!r}: {SAVED}")
    found = {ours: config[theirs] for ours, theirs in CONFIG.items()}
    heads = {"kv_heads": config.get("num_key_value_heads") or found["heads"]}
    heads["head"] = config.get("head_dim") or found["width"] // found["heads"]
    flags = {"tied": config.get("tie_word_embeddings", False), "qk_norm": kind == "qwen3"}
    return Shape(
        file.parent.name,
        **found,
        **heads,
        **flags,
        bias=config.get("attention_bias", False) or kind == "qwen2",
    )
