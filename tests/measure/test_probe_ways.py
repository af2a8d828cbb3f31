"""The three ways of reading L̂: which one a model takes, and that its values are the naive loop's.

A model here is small and has random weights; it stands for its architecture.
"""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tml_lib.lm.answers import Suffix
from tml_lib.measure.probe import SlowerWay, naive_nll, prefix_nll

IDS = torch.randint(3, 199, (300,), generator=torch.Generator().manual_seed(3)).tolist()
PROMPT, TRAJECTORY = IDS[:7], IDS[7:30]
SUFFIXES = [Suffix((*IDS[30:34], 5, 9, 11), 4, "three"), Suffix((7,), 0, "one")]
EVERY = range(len(TRAJECTORY) + 1)

GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4}
MAMBA = {"mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 16}
LINEAR = {
    "num_hidden_layers": 4,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
EXPERTS = {"num_experts_per_tok": 2}
WINDOW = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}

# model type -> fields of its configuration; contexts of 14 to 37 tokens cross windows of 16
PACKED = {
    "llama": {},
    "gpt2": {},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "gpt_neox": {},
    "gptj": GPT | {"rotary_dim": 8},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "phi3": {},
    "qwen2": {},
    "qwen3": {},
    "mixtral": EXPERTS | {"num_local_experts": 4, "sliding_window": None},
    "olmo2": {},
    "starcoder2": {},
    "cohere": {"logit_scale": 1.0},
}
FORKED = {
    "bloom": {"n_layer": 2, "n_head": 4},
    "falcon": {"alibi": True},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "expansion_ratio": 2, "max_seq_len": 512},
    "gemma3_text": WINDOW,
    "gpt_oss": WINDOW | EXPERTS | {"num_local_experts": 4},
    "mistral": {"sliding_window": 16},
    "llama4_text": {
        "attention_chunk_size": 16,
        "num_local_experts": 2,
        "intermediate_size_mlp": 64,
        "layer_types": ["chunked_attention", "full_attention"],
        "no_rope_layers": [1, 0],
    },
    "qwen3_next": LINEAR
    | EXPERTS
    | {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
    "qwen3_5_text": LINEAR,
    "granitemoehybrid": MAMBA
    | EXPERTS
    | {
        "layer_types": ["mamba", "attention"],
        "mamba_n_heads": 8,
        "num_local_experts": 4,
        "shared_intermediate_size": 64,
    },
    "falcon_h1": MAMBA | {"mamba_d_ssm": 64, "mamba_n_heads": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "mamba": {"state_size": 8},
    "mamba2": {"num_heads": 8, "state_size": 8, "n_groups": 2, "chunk_size": 16},
    "rwkv": {"context_length": 512},
}
NAIVE = {
    "openai-gpt": GPT | {"n_positions": 512},
    "recurrent_gemma": {"num_hidden_layers": 3, "attention_window_size": 16},
    "minimax": EXPERTS
    | {
        "num_local_experts": 4,
        "layer_types": ["linear_attention", "full_attention"],
        "block_size": 16,
    },
}
CASES = [
    (kind, fields, way)
    for way, kinds in (("packed", PACKED), ("forked", FORKED), ("naive", NAIVE))
    for kind, fields in kinds.items()
]


def built(kind, fields):
    """A model of two layers of width 64, or a skip that says why transformers does not build it."""
    settings = {"vocab_size": 199, "hidden_size": 64, "num_hidden_layers": 2, "head_dim": 16}
    settings |= {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 128}
    settings |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    settings |= {"max_position_embeddings": 2048, "initializer_range": 0.1} | fields
    if kind == "falcon":
        del settings["head_dim"]  # it derives its own
    try:
        config = AutoConfig.for_model(kind, **settings)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    except (ValueError, ImportError, KeyError, AttributeError, TypeError) as reason:
        pytest.skip(f"{kind} does not build here: {type(reason).__name__}: {reason}")


def taken(recwarn):
    """The way that the one warning names; 'packed' where there was none."""
    told = [str(w.message) for w in recwarn if issubclass(w.category, SlowerWay)]
    assert len(told) <= 1
    if not told:
        return "packed"
    return "forked" if "is probed from forked states" in told[0] else "naive"


def naive(model, prompt=PROMPT, trajectory=TRAJECTORY, suffixes=SUFFIXES, positions=EVERY):
    return np.array(
        [[naive_nll(model, prompt, trajectory, s, i) for i in positions] for s in suffixes]
    )


@pytest.mark.parametrize(("kind", "fields", "way"), CASES, ids=[kind for kind, *_ in CASES])
def test_every_architecture_gives_the_values_of_the_naive_loop(
    kind, fields, way, recwarn, record_property
):
    model = built(kind, fields)
    found = prefix_nll(model, PROMPT, TRAJECTORY, SUFFIXES, EVERY).own
    assert np.abs(found - naive(model)).max() <= 1e-5
    assert found.std() > 0.02
    record_property("way", taken(recwarn))
    assert taken(recwarn) == way
