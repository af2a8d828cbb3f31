"""The three ways of reading L̂: which one a model takes, and that its values are the naive loop's.

A model here is small and has random weights; it stands for its architecture.
"""

import re

import numpy as np
import pytest
import torch
from peft import PrefixTuningConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from tml_lib.lm.answers import Suffix
from tml_lib.measure import packed as packing
from tml_lib.measure import probe, ways
from tml_lib.measure.naive import Request
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


def assert_close(found, wanted, tolerance=2e-5):
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance


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
    found = prefix_nll(model, PROMPT, TRAJECTORY, SUFFIXES, EVERY)
    assert np.abs(found - naive(model)).max() <= 1e-5
    assert found.std() > 0.02
    record_property("way", taken(recwarn))
    assert taken(recwarn) == way


# --- what only a text of real length shows --------------------------------------------------------


def gpt_neo():
    """Local attention that counts slots of the cache, a window of 256."""
    kinds = {"num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 256}
    return built("gpt_neo", {"num_layers": 2, "initializer_range": 0.2} | kinds)


def phi3_longrope():
    """Rotary angles that change for texts of more than 64 tokens."""
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 32.0}
    rope |= {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    fields = {"rope_parameters": rope, "original_max_position_embeddings": 64}
    return built("phi3", {"initializer_range": 0.2} | fields)


LONG = {
    "gpt_neo": (gpt_neo, IDS[:29], IDS[29:202], "forked"),  # 29 + 173 + 7 = 209 tokens
    "phi3": (phi3_longrope, IDS[:20], IDS[20:110], "naive"),
}


@pytest.mark.parametrize("kind", LONG)
@pytest.mark.parametrize("told", [True, False], ids=["by its configuration", "by the check"])
def test_a_way_that_fails_on_long_texts_only_is_left(kind, told, monkeypatch, recwarn):
    build, prompt, trajectory, way = LONG[kind]
    model = build()
    if not told:
        monkeypatch.setattr(ways, "_obstacle", lambda *_: None)
    short = {"prompt": prompt[:9], "trajectory": trajectory[:9], "positions": range(10)}
    long = {"prompt": prompt, "trajectory": trajectory, "positions": range(len(trajectory) + 1)}
    assert_close(prefix_nll(model, suffixes=SUFFIXES, **short), naive(model, **short))
    assert taken(recwarn) == "packed"
    wanted = naive(model, **long)
    assert_close(prefix_nll(model, suffixes=SUFFIXES, **long), wanted)
    assert taken(recwarn) == way
    with torch.inference_mode():
        places = np.arange(len(trajectory) + 1)
        wrong = packing.packed_nll(model, Request(prompt, trajectory, SUFFIXES, places))
    assert np.abs(wrong - wanted).max() > 0.1
    # texts of the first length are read as before
    assert_close(prefix_nll(model, suffixes=SUFFIXES, way="packed", **short), naive(model, **short))
    with pytest.raises(ValueError, match="cannot be probed with way='packed'"):
        prefix_nll(model, suffixes=SUFFIXES, way="packed", **long)


# --- adapters, names, memory ----------------------------------------------------------------------


def test_a_learnt_prefix_is_read_one_prefix_at_a_time():
    model = built("llama", {})
    settings = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    tuned = get_peft_model(model, settings).eval()
    with pytest.warns(SlowerWay, match="PeftModelForCausalLM is probed in one full pass"):
        found = prefix_nll(tuned, PROMPT, TRAJECTORY, SUFFIXES, EVERY)
    assert_close(found, naive(tuned))
    bare = prefix_nll(model, PROMPT, TRAJECTORY, SUFFIXES, EVERY)
    assert np.abs(found - bare).max() > 1e-3  # the prefix counts


def test_a_learnt_prefix_that_is_switched_on_again_is_noticed():
    settings = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    tuned = get_peft_model(built("llama", {}), settings).eval()
    with tuned.disable_adapter():
        bare = prefix_nll(tuned, PROMPT, TRAJECTORY, SUFFIXES, EVERY)
        assert_close(bare, naive(tuned))
    with pytest.warns(SlowerWay, match="one full pass"):
        found = prefix_nll(tuned, PROMPT, TRAJECTORY, SUFFIXES, EVERY)
    assert_close(found, naive(tuned))


@pytest.mark.parametrize("kind", ["llama", "qwen3_next", "mamba", "gemma3_text"])
@pytest.mark.parametrize("way", ["forked", "naive"])
def test_a_way_by_name_gives_the_same_values_and_no_warning(kind, way):
    model = built(kind, (PACKED | FORKED)[kind])
    found = prefix_nll(model, PROMPT, TRAJECTORY, SUFFIXES, [0, 3, 23], way=way)
    assert_close(found, naive(model, positions=[0, 3, 23]))


def test_probe_passes_the_way_on(tiny_lm):
    text = "6 * 7 means 7 seven times.\nSo it is 42."
    curves = [
        probe.probe(tiny_lm, "What?\n", text, "42", way=way).answer_nll for way in ("", *ways.NAMES)
    ]
    assert np.array_equal(curves[0], curves[1])
    for curve in curves[2:]:
        assert 0 < np.abs(curve - curves[0]).max() <= 2e-5
    with pytest.raises(ValueError, match="way='fast'"):
        probe.probe(tiny_lm, "What?\n", text, "42", way="fast")


def test_a_slower_way_is_announced_once_with_its_cost_and_reason():
    model = built("mistral", FORKED["mistral"])
    with pytest.warns(SlowerWay) as told:
        prefix_nll(model, PROMPT, TRAJECTORY, SUFFIXES, EVERY)
    prefix_nll(model, PROMPT, TRAJECTORY, SUFFIXES, EVERY)  # a second warning would be an error
    assert len(told) == 1
    text = str(told[0].message)
    assert re.search(r"from forked states, about \d+\.\d times slower than in packed passes", text)
    assert "it attends within a sliding window of 16, and the text has 37 tokens" in text


def test_the_ends_of_the_widest_pass_are_read_naively_for_each_power_of_two_of_the_length(
    monkeypatch,
):
    model, read = built("llama", {}), []
    one = ways.naive_nll

    def noted(model, prompt, trajectory, suffix, position, **settings):
        if prompt == PROMPT:  # else the short text of the first check
            read.append(position)
        return one(model, prompt, trajectory, suffix, position, **settings)

    monkeypatch.setattr(ways, "naive_nll", noted)
    for length, wanted in ((3, [0, 3]), (3, []), (20, [0, 20]), (23, []), (90, [0, 90])):
        read.clear()
        prefix_nll(model, PROMPT, IDS[7 : 7 + length], SUFFIXES[:1], [0, length])
        assert read == wanted
