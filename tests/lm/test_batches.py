"""Rows that are read together are what each alone would be, whatever the model's architecture."""

import warnings

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tml_lib.lm import batches, sampling
from tml_lib.lm.exactness import SlowerWay, keeps_rows

TINY = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY |= {"num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 512}
TINY |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3}
MAMBA = {"mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 8, "mamba_n_heads": 8}
ROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 32.0}
ROPE |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}

# model type -> (fields of its configuration, what the warning says, '' for none)
KINDS = {
    "llama": ({}, ""),
    "gpt2": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}, ""),
    "mistral": ({"sliding_window": 12, "head_dim": 8}, ""),
    "gpt_neo": ({"num_layers": 2, "num_heads": 4, "attention_types": [[["local"], 2]]}, ""),
    "bloom": ({"n_layer": 2, "n_head": 4}, ""),
    "lfm2": ({"layer_types": ["conv", "full_attention"]}, "in groups of one length"),
    "bamba": (MAMBA | {"attn_layer_indices": [1]}, "in groups of one length"),
    "mamba": ({"state_size": 8}, "in groups of one length"),
    "rwkv": ({"context_length": 512, "attention_hidden_size": 32}, "in groups of one length"),
    "roberta": ({"is_decoder": True}, "in groups of one length"),
    "openai-gpt": ({"n_embd": 32, "n_layer": 2, "n_head": 4}, "anew at each token"),
}
PROMPTS = [
    torch.randint(3, 97, (n,), generator=torch.Generator().manual_seed(k)).tolist()
    for k, n in enumerate((4, 9, 4, 23, 9, 4))
]


def built(kind, fields, seed=0):
    config = AutoConfig.for_model(kind, **(TINY | fields))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def by_hand(model, prompt, seed, most, ends):
    """A row's tokens by the definition: the whole text read anew, alone, for each token."""
    text, written = list(prompt), []
    with torch.inference_mode():
        for number in np.random.default_rng(seed).random(most):
            logits = model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]
            running = logits.softmax(-1).double().cumsum(-1)
            written.append(int((running > number * running[-1]).int().argmax()))
            if written[-1] in ends:
                return tuple(written[:-1]), written[-1]
            text.append(written[-1])
    return tuple(written), None


def sampled(model, prompts, most, ends=range(2, 8), **settings):
    ends = list(ends)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = sampling.sample_ids(
            model, prompts, range(len(prompts)), ends, max_new_tokens=most, **settings
        )
    wanted = [by_hand(model, prompt, k, most, ends) for k, prompt in enumerate(prompts)]
    assert [(one.ids, one.end) for one in found] == wanted
    return [str(w.message) for w in told if issubclass(w.category, SlowerWay)], found


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_is_what_it_is_alone(kind):
    fields, words = KINDS[kind]
    model = built(kind, fields)
    told, found = sampled(model, PROMPTS, 20)
    assert (words in told[0]) if words else not told
    assert len({len(one.ids) for one in found}) > 1
    again, _ = sampled(model, PROMPTS, 20)
    assert not again, "said once"


@pytest.mark.parametrize("limit", [8, 16, 24, 40])
def test_rows_cross_longropes_limit_each_at_its_own_length(limit):
    """Prompts of 4, 9 and 23 tokens with up to 20 more: below the limit, across it, beyond it."""
    rope = {"rope_parameters": ROPE, "original_max_position_embeddings": limit}
    model = built("phi3", rope)
    _, found = sampled(model, PROMPTS * 2, 20, ends=[2])
    pairs = zip(PROMPTS * 2, found, strict=True)
    crossed = [len(p) <= limit < len(p) + len(one.ids) for p, one in pairs]
    assert any(crossed)
    assert not all(crossed)


def test_a_fault_that_only_real_texts_show_is_noticed(monkeypatch):
    """Here padding shifts the positions of prompts longer than those of the short check."""
    model, reader = built("llama", {}), batches.Padded

    class Shifted(reader):
        def __init__(self, model, prompts, filler):
            super().__init__(model, prompts, filler)
            if self.ids.shape[1] > 16:
                self.positions = torch.arange(self.ids.shape[1]).expand_as(self.ids).clone()
                self.mask[:, : self.ids.shape[1] - 4] = 1

    way = batches.Way("padded on the left", Shifted, alike=False)
    monkeypatch.setattr(batches, "WAYS", (way, *batches.WAYS[1:]))
    told, _ = sampled(model, PROMPTS[:3], 20)
    assert not told
    told, _ = sampled(model, PROMPTS, 20)
    assert "in groups of one length" in told[0]


def test_a_model_in_training_is_sampled_from_in_evaluation_mode():
    model = built("gpt2", KINDS["gpt2"][0] | {"resid_pdrop": 0.5})
    wanted = sampled(model, PROMPTS, 12)[1]
    model.train()
    found = sampling.sample_ids(model, PROMPTS, range(6), list(range(2, 8)), max_new_tokens=12)
    assert found == wanted
    assert model.training


def test_an_adapted_model_still_applies_its_head_to_one_row_only():
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    assert keeps_rows(built("llama", {}))
    assert keeps_rows(get_peft_model(built("llama", {}), lora))
