"""Every causal language model of transformers, small and with random weights, and how it is probed.

A class's default configuration is shrunk field by field (`SIZES`), with a few fields of its own
where that makes no sound model (`OWN`). `python tests/measure/zoo.py` measures all classes and
stores the table that `notebooks/README.md` shows.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tml_lib.lessons import generated
from tml_lib.lm.answers import Suffix
from tml_lib.measure.probe import SlowerWay, naive_nll, prefix_nll

IDS = torch.randint(3, 199, (60,), generator=torch.Generator().manual_seed(3)).tolist()
PROMPT, TRAJECTORY = IDS[:5], IDS[5:19]
SUFFIXES = [Suffix((*IDS[30:32], 5, 9), 2, "two"), Suffix((7,), 0, "one")]
POSITIONS = range(0, len(TRAJECTORY) + 1, 2)
WIDE, NARROW = 64, 8  # windows that hold the text of 23 tokens, and that it crosses

_SIZES = {
    2: """num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers num_blocks
        num_decoder_layers num_encoder_layers num_layers_per_stack num_key_value_heads num_kv_heads
        linear_num_key_heads swa_num_key_value_heads n_groups mamba_n_groups num_experts_per_tok
        num_experts_per_token moe_k moe_topk index_n_heads hc_count hc_mult attn_layer_period
        expert_layer_period layer_group_size global_attn_every_n_layers no_rope_layer_interval
        sliding_window_pattern n_group topk_group num_expert_group o_groups altup_num_inputs
        num_query_groups hidden_size_per_layer_input heads_per_ngram""",
    4: """num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads
        encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads
        linear_num_heads linear_num_value_heads swa_num_attention_heads num_experts
        n_routed_experts num_local_experts moe_num_experts zero_expert_num""",
    8: """head_dim d_head dim_head attention_head_size linear_head_dim linear_key_head_dim
        linear_value_head_dim qk_nope_head_dim v_head_dim kv_channels swa_head_dim qk_rope_head_dim
        index_head_dim q_lora_rank kv_lora_rank o_lora_rank mamba_d_state ssm_state_size state_size
        mamba_d_head mamba_head_dim rotary_dim mamba_n_heads mamba_num_heads mamba_dt_rank
        time_step_rank chunk_size mamba_chunk_size block_size laurel_rank gated_norm_rank hc_lowrank
        adapter_rank router_hidden_size query_pre_attn_scalar ple_embed_dim shape_embed_dim
        pronunciation_embed_dim""",
    32: """hidden_size d_model n_embd embedding_dim emb_dim embedding_size word_embed_proj_dim
        lru_width input_embedding_size output_embedding_size""",
    64: """intermediate_size d_inner ffn_dim n_inner dim_ff dff decoder_ffn_dim encoder_ffn_dim
        ffn_hidden_size feed_forward_size moe_intermediate_size shared_expert_intermediate_size
        shared_intermediate_size dense_intermediate_size intermediate_size_mlp mamba_d_ssm
        expert_ffn_hidden_size moe_shared_expert_intermediate_size shared_experts_intermediate_size
        attention_hidden_size""",
    199: """vocab_size vocab_size_per_layer_input decoder_vocab_size unpadded_vocab_size
        shape_vocab_size pronunciation_vocab_size""",
    512: """max_position_embeddings n_positions n_ctx max_seq_len model_max_length context_length
        max_target_positions""",
}
SIZES = {name: size for size, names in _SIZES.items() for name in names.split()}
WINDOWS = {"sliding_window", "sliding_window_size", "attention_chunk_size", "window_size"}
WINDOWS |= {"local_attention", "attention_window_size", "index_topk", "index_topk_blocks"}
WINDOWS |= {"keep_window_size", "local_attention_window_len"}
# larger weights than usual: nearly uniform predictions would hide a wrong mask
ALWAYS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "is_decoder": True}
WHERE_KNOWN = {"initializer_range": 0.1, "init_std": 0.1, "logit_scale": 1.0, "causal": True}

LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
SHARED = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
}
ZAMBA = ["linear_attention", "linear_attention", "hybrid", "linear_attention", "hybrid"]
ANGLES = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
PATCHED = {"hidden_size_global": 32}
OWN = {
    "bamba": {"attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 100},
    "blt_local_decoder": PATCHED,
    "blt_local_encoder": PATCHED,
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": ANGLES, "sliding_attention": ANGLES}
    },
    "dbrx": {
        "attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_group": 1},
    "dots1": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
    },
    "gemma3n_text": SHARED,
    "gemma4_text": {"num_kv_shared_layers": 0},
    "gemma4_unified_assistant": {"text_config": SHARED},
    "gemma4_unified_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_offset": 1, "expert_layer_offset": 1},
    "kimi_linear": LINEAR,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lfm3": {
        "num_hidden_layers": 3,
        "layer_types": ["conv", "full_attention", "sliding_attention"],
    },
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "qwen3_5_moe_text": LINEAR,
    "qwen3_5_text": LINEAR,
    "qwen3_next": LINEAR,
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention"],
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_compress_ratio": 4,
        "indexer_budget": 64,
    },
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [16, 32]},
    "rwkv": {"attention_hidden_size": 32},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zamba": {"num_hidden_layers": 5, "layers_block_type": ZAMBA, "attention_head_dim": 16},
    "zamba2": {"num_hidden_layers": 5, "layers_block_type": ZAMBA, "n_mamba_heads": 8},
    "zaya": {"num_experts_per_tok": 1},
}


def classes() -> dict[str, tuple[str, ...]]:
    """Every causal-LM class of transformers -> the model types that lead to it, its own first."""
    found: dict[str, list[str]] = {}
    for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        found.setdefault(name, []).append(kind)
    return {
        name: tuple(sorted(kinds, key=lambda kind: (not kind.endswith("_text"), kind)))
        for name, kinds in found.items()
    }


def _fields(config, window: int) -> dict:
    """What of a configuration is set, and to what."""
    known = config.to_dict()
    whole = [k for k, v in known.items() if isinstance(v, int) and not isinstance(v, bool)]
    found = {name: SIZES[name] for name in whole if name in SIZES}
    found |= {name: window for name in whole if name in WINDOWS}
    found |= {name: value for name, value in WHERE_KNOWN.items() if name in known}
    if "kv_lora_rank" in found and "num_key_value_heads" in found:  # latent attention: one per head
        found["num_key_value_heads"] = found["num_attention_heads"]
    return found | ALWAYS | OWN.get(config.model_type, {})


def config(kind: str, window: int = WIDE, **overrides):
    """A small configuration of a model type."""
    cls = CONFIG_MAPPING[kind]
    default = cls()
    fields = _fields(default, window)
    for name in cls.sub_configs:
        part = getattr(default, name, None)
        if part is not None:
            whole = {"model_type": part.model_type} | _fields(part, window)
            fields[name] = whole | fields.get(name, {})
    return cls(**(fields | overrides))


def model(kind: str, window: int = WIDE, *, seed: int = 0, **overrides) -> torch.nn.Module:
    """A small model of a model type with random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        small = config(kind, window, **overrides)
        return AutoModelForCausalLM.from_config(small, dtype=torch.float32).eval()


@dataclass(frozen=True)
class Outcome:
    """How one class is read, at one width of its windows."""

    way: str  # 'packed', 'forked', 'forked token by token', 'naive', 'refused', 'not built'
    why: str = ""  # why not packed
    error: float = 0.0  # largest difference from the naive loop, nats per token
    spread: float = 1.0  # standard deviation of the values


def read(small: torch.nn.Module) -> Outcome:
    """How a model is probed, and how far from the naive loop."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            found = prefix_nll(small, PROMPT, TRAJECTORY, SUFFIXES, POSITIONS)
        except ValueError as reason:
            return Outcome("refused", str(reason))
    slower = [str(w.message) for w in told if issubclass(w.category, SlowerWay)]
    way, _, why = slower[0].partition(" because ") if slower else ("packed passes", "", "")
    words = {
        "from forked states, token by token": "forked token by token",
        "from forked states": "forked",
        "in one full pass": "naive",
        "packed passes": "packed",
    }
    naive = [[naive_nll(small, PROMPT, TRAJECTORY, s, i) for i in POSITIONS] for s in SUFFIXES]
    error = float(np.abs(found - np.array(naive)).max())
    way = next(short for part, short in words.items() if part in way)
    return Outcome(way, why, error, float(found.std()))


def outcomes(kind: str) -> Iterator[Outcome]:
    """One outcome where a class has no window, else two: for a text that it holds, and beyond."""
    before = None
    for window in (WIDE, NARROW):
        try:
            small = model(kind, window)
        except Exception as reason:  # whatever that class raises
            yield Outcome("not built", f"{type(reason).__name__}: {' '.join(str(reason).split())}")
            return
        if (now := small.config.to_json_string()) == before:
            return
        before = now
        yield read(small)


def row(found: list[Outcome]) -> str:
    """The name of the table's row for a class: one way, or 'packed; beyond its window forked'."""
    ways = list(dict.fromkeys(one.way for one in found))
    return ways[0] if len(ways) == 1 else f"{ways[0]}; beyond its window {ways[1]}"


# part of an error -> what it means
PLAIN = {
    "is not causal": "it is not causal: the tokens after a position change what it predicts there",
    "shared_kv_states cannot be None": "it drafts from the states of another model",
    "requires the timm library": "it needs the package timm",
    "hidden_size_per_layer_input must be 0": "its default configuration contradicts itself",
    "has no attribute 'dropout'": "transformers hands it the configuration of another class",
}


def brief(why: str) -> str:
    """What an error means, or the error."""
    return next((words for part, words in PLAIN.items() if part in why), why)


def main() -> None:
    """Measure every class, or those of the model types named, and store the table of all."""
    rows, reasons = {}, {}
    for name, kinds in classes().items():
        if sys.argv[1:] and not set(kinds) & set(sys.argv[1:]):
            continue
        found = list(outcomes(kinds[0]))
        rows.setdefault(row(found), []).append(kinds[0])
        worst = max(one.error for one in found)
        print(name, kinds[0], row(found), f"{worst:.1e}", *[o.why[:300] for o in found], flush=True)
        if row(found) in ("refused", "not built"):
            reasons[kinds[0]] = brief(found[0].why)
    if not sys.argv[1:]:
        table = {"transformers": transformers.__version__, "rows": rows, "reasons": reasons}
        generated.record_ways(table)
    print(json.dumps({way: len(kinds) for way, kinds in rows.items()}))


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    main()
