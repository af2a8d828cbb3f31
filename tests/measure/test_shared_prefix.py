"""Attention by shared prefix: equal to plain attention under a mask, switched on within a packed
pass only, and left where it does not fit.
"""

import copy

import numpy as np
import pytest
import torch
import zoo
from torch.nn.functional import scaled_dot_product_attention

from tml_lib.lm import models
from tml_lib.lm.answers import Suffix
from tml_lib.measure import packed, shared_prefix, ways
from tml_lib.measure.naive import Request, naive_loop, naive_nll
from tml_lib.measure.shared_prefix import Branches

IDS = torch.randint(3, 199, (200,), generator=torch.Generator().manual_seed(3)).tolist()
SUFFIXES = [Suffix((*IDS[30:34], 5, 9, 11), 4, "three"), Suffix((*IDS[30:34], 7), 4, "one")]
TREE = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]], dtype=torch.bool)


def branches(trunk, copies, tree=TREE, seed=0):
    """Copies that hang off random tokens of the trunk."""
    roots = torch.randint(trunk, (copies,), generator=torch.Generator().manual_seed(seed))
    causal = torch.ones(trunk, trunk, dtype=torch.bool).tril()
    return Branches(
        torch.cat([causal, causal[roots].repeat_interleave(len(tree), 0)]), tree, copies
    )


def states(given, past, heads, groups, *, dtype=torch.float64, width=8, value_width=8):
    """Random query, key and value, laid out as the models of transformers lay them out."""
    rows, draw = len(given.trunk), torch.Generator().manual_seed(1)
    sizes = [(rows, heads, width), (past + rows, groups, width), (past + rows, groups, value_width)]
    parts = [2 * torch.randn(1, *size, generator=draw, dtype=torch.float64) for size in sizes]
    return [part.to(dtype).transpose(1, 2) for part in parts]


def attended(given, query, key, value, **settings):
    token = shared_prefix._branches.set(given)
    try:
        return shared_prefix.attend(torch.nn.Module(), query, key, value, None, **settings)[0]
    finally:
        shared_prefix._branches.reset(token)


def plain(given, query, key, value, **settings):
    each = query.shape[1] // key.shape[1]
    mask = given.mask(key.shape[2] - query.shape[2])
    key, value = (part.repeat_interleave(each, 1) for part in (key, value))
    found = scaled_dot_product_attention(query, key, value, attn_mask=mask, **settings)
    return found.transpose(1, 2)


def request(count=40, rows=40):
    return Request(
        IDS[:7], IDS[7 : 7 + count], SUFFIXES, np.arange(count + 1), tokens_per_pass=rows
    )


# --- attention ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("heads", "groups"), [(6, 2), (4, 4), (3, 1)])
@pytest.mark.parametrize("past", [0, 1, 50])
@pytest.mark.parametrize("scores", [1, 500, 2**20], ids=["row by row", "in pieces", "at once"])
def test_it_equals_plain_attention_under_a_mask(heads, groups, past, scores, monkeypatch):
    monkeypatch.setattr(shared_prefix, "_SCORES", {"cpu": scores})
    given = branches(trunk=5, copies=7)
    parts = states(given, past, heads, groups)
    torch.testing.assert_close(attended(given, *parts), plain(given, *parts), rtol=0, atol=1e-12)


@pytest.mark.parametrize("trunk", [1, 9])
@pytest.mark.parametrize("copies", [1, 4])
@pytest.mark.parametrize("nodes", [0, 1, 3])
def test_trees_of_every_size(trunk, copies, nodes):
    given = branches(trunk, copies, TREE[:nodes, :nodes])
    parts = states(given, 3, 4, 2, value_width=6)
    torch.testing.assert_close(attended(given, *parts), plain(given, *parts), rtol=0, atol=1e-12)


def test_the_scale_of_the_scores_is_the_models():
    given = branches(3, 2)
    parts = states(given, 3, 4, 2)
    found = attended(given, *parts, scaling=0.07)
    torch.testing.assert_close(found, plain(given, *parts, scale=0.07), rtol=0, atol=1e-12)


def test_half_precision_errs_no_more_than_plain_attention_does_by_rounding():
    given = branches(20, 20)
    half = states(given, 300, 6, 2, dtype=torch.bfloat16, width=64)
    exact = plain(given, *(part.double() for part in half))
    off = float((attended(given, *half) - exact).pow(2).mean().sqrt())
    # one rounding of scores, weights and result each
    assert off <= 3 * torch.finfo(torch.bfloat16).eps * float(exact.pow(2).mean().sqrt())


@pytest.mark.parametrize("name", ["softcap", "s_aux", "position_bias"])
def test_what_it_does_not_know_is_refused(name):
    given = branches(3, 2)
    with pytest.raises(ValueError, match=f"knows no .*{name}"):
        attended(given, *states(given, 3, 4, 2), **{name: torch.ones(4)})


# --- within a packed pass only --------------------------------------------------------------------


def calls(monkeypatch):
    """A list that grows by one with each layer's attention by shared prefix."""
    done, attend = [], shared_prefix.attend

    def noted(*args, **settings):
        done.append(None)
        return attend(*args, **settings)

    monkeypatch.setitem(shared_prefix.AttentionInterface._global_mapping, shared_prefix.NAME, noted)
    return done


@pytest.mark.parametrize("own", ["eager", "sdpa"])
def test_the_model_has_its_own_attention_again(own, monkeypatch):
    model = models.random_model("llama", attn_implementation=own).eval()
    ids, done = torch.tensor([IDS[:9]]), calls(monkeypatch)
    with torch.inference_mode():
        before = model(input_ids=ids).logits
        packed.packed_nll(model, request(), shared=True)
        assert model.config._attn_implementation == own
        count = len(done)
        assert count > 2
        assert torch.equal(model(input_ids=ids).logits, before)
        assert len(done) == count


def test_also_after_an_exception(monkeypatch):
    model = models.random_model("llama").eval()

    def stops(*_):
        assert model.config._attn_implementation == shared_prefix.NAME
        raise KeyboardInterrupt

    handle = model.model.layers[1].register_forward_hook(stops)
    with torch.inference_mode(), pytest.raises(KeyboardInterrupt):
        packed.packed_nll(model, request(rows=400), shared=True)
    handle.remove()
    assert model.config._attn_implementation == "sdpa"
    assert shared_prefix._branches.get(None) is None


def test_every_configuration_of_a_model_of_parts_has_its_own_again():
    model = zoo.model("gemma3_text")
    outer = torch.nn.ModuleDict({"language": model, "other": models.random_model("gpt2")})
    outer["other"].config._attn_implementation = "eager"
    with shared_prefix.attention(outer, branches(2, 2)):
        names = [part.config._attn_implementation for part in outer.values()]
        assert names == [shared_prefix.NAME] * 2
    assert [part.config._attn_implementation for part in outer.values()] == ["sdpa", "eager"]


# --- where it fits --------------------------------------------------------------------------------

FITS = [
    "llama",
    "qwen2",
    "qwen3",
    "gpt2",
    "gemma",
    "phi3",
    "olmo2",
    "mixtral",
    "gpt_neox",
    "cohere",
]
# why not: caps, sinks, or attention of their own
LEFT = ["gemma2", "gpt_oss", "gptj", "falcon"]


def fits(model):
    known = ways._known[model].short
    return {reason for (_, way), reason in known.items() if way is ways._SHARED} == {None}


@pytest.mark.parametrize("kind", FITS + LEFT)
def test_every_architecture_gives_the_values_of_the_naive_loop(kind):
    model = zoo.model(kind)
    with torch.inference_mode():
        found = ways.read(model, request(30))
        wanted = naive_loop(model, request(30))
    assert np.abs(found - wanted).max() <= 1e-5
    assert found.std() > 0.01
    assert fits(model) == (kind in FITS)


def test_half_precision_is_as_near_to_the_exact_values_as_the_naive_loop_is():
    half = models.random_model("llama", initializer_range=0.1).to(torch.bfloat16).eval()
    exact = copy.deepcopy(half).double()
    with torch.inference_mode():
        wanted = naive_loop(exact, request())
        ours = packed.packed_nll(half, request(), shared=True)
        off = [np.abs(found - wanted).mean() for found in (ours, naive_loop(half, request()))]
    assert 0 < off[0] <= 2 * off[1]


@pytest.mark.parametrize("where", [range(0, 60, 7), [0, 1, 40, 41], [50]])
def test_gaps_between_prefixes_are_part_of_the_trunk_or_read_apart(where):
    model = models.random_model("llama").eval()
    few = Request(IDS[:30], IDS[30:90], SUFFIXES, np.array(where), tokens_per_pass=48)
    with torch.inference_mode():
        found = packed.packed_nll(model, few, shared=True)
    for k, suffix in enumerate(SUFFIXES):
        wanted = [naive_nll(model, few.prompt, few.trajectory, suffix, int(i)) for i in where]
        assert np.abs(found[k] - wanted).max() <= 1e-5
