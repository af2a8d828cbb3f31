"""Every causal-LM class of transformers: read as the naive loop reads it, or refused, and the table
in `notebooks/README.md` says which.
"""

import pytest
import torch
import transformers
import zoo

from tml_lib.lessons import generated

TABLE = generated.measured()["ways"]


def stored(kind: str) -> str:
    (row,) = [way for way, kinds in TABLE["rows"].items() if kind in kinds]
    return row


@pytest.mark.parametrize("name", zoo.classes())
def test_every_class_is_read_as_the_naive_loop_reads_it_or_refused(name):
    kind = zoo.classes()[name][0]
    found = list(zoo.outcomes(kind))
    for one in found:
        assert one.error <= 1e-5
        # the predictions are not so uniform that a wrong mask would go unnoticed
        assert one.spread > 0.01
        if one.way == "refused":
            assert zoo.brief(one.why) == TABLE["reasons"][kind]
    if transformers.__version__ == TABLE["transformers"]:
        assert zoo.row(found) == stored(kind), "run `python tests/measure/zoo.py` and `report`"


def test_the_table_holds_every_class_once():
    kinds = [kind for row in TABLE["rows"].values() for kind in row]
    assert len(kinds) == len(set(kinds))
    if transformers.__version__ == TABLE["transformers"]:
        assert sorted(kinds) == sorted(own for own, *_ in zoo.classes().values())
    told = [kind for row in ("refused", "not built") for kind in TABLE["rows"][row]]
    assert sorted(TABLE["reasons"]) == sorted(told)


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm"])
def test_a_model_that_sees_ahead_is_refused_at_any_scale_of_its_weights(kind):
    for scale in (0.02, 0.1):
        blind = {"is_decoder": False, "causal": False, "initializer_range": scale}
        seeing = zoo.model(kind, **blind, init_std=scale)
        with torch.inference_mode(), pytest.raises(ValueError, match="is not causal: what it pred"):
            zoo.prefix_nll(seeing, zoo.PROMPT, zoo.TRAJECTORY, zoo.SUFFIXES, zoo.POSITIONS)


def test_a_model_that_draws_at_random_is_refused():
    """Reformer hashes anew at every call where a text is longer than a chunk."""
    drawing = zoo.model("reformer", lsh_attn_chunk_length=4, local_attn_chunk_length=4)
    with pytest.raises(ValueError, match="other values for the same text"):
        zoo.prefix_nll(drawing, zoo.PROMPT, zoo.TRAJECTORY, zoo.SUFFIXES, zoo.POSITIONS)


@pytest.mark.parametrize("kind", ["mamba", "zamba", "falcon_mamba"])
@pytest.mark.parametrize("seed", range(3))
def test_a_small_fault_of_a_faster_way_is_not_taken_for_rounding(kind, seed):
    """A recurrent state that is not taken up changes these models by a thousandth of a nat."""
    found = zoo.read(zoo.model(kind, seed=seed, initializer_range=0.02))
    assert found.error <= 1e-5


@pytest.mark.parametrize("kind", ["mamba", "jamba", "falcon_mamba", "zamba"])
def test_half_precision_does_not_hide_a_state_that_is_not_taken_up(kind):
    half = zoo.model(kind, zoo.NARROW, initializer_range=0.3).to(torch.bfloat16)
    assert zoo.read(half).way in ("forked token by token", "naive")


@pytest.mark.parametrize("kind", ["nemotron_h", "mistral"])
def test_half_precision_takes_whole_suffixes_where_the_state_is_taken_up(kind):
    half = zoo.model(kind, zoo.NARROW, initializer_range=0.3).to(torch.bfloat16)
    assert zoo.read(half).way == "forked"


def test_ties_of_sparse_attention_are_told():
    found = zoo.read(zoo.model("deepseek_v32", zoo.NARROW))
    assert found.way == "naive"
    assert "attends to the 8 tokens that score best (index_topk)" in found.why
