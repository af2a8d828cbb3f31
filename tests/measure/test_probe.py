"""The packed probe against the naive loop (RaML Algorithm 3), at every position, and what it must
refuse.
"""

import dataclasses
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from tml_lib.data import gsm
from tml_lib.lm import caches, models
from tml_lib.lm.answers import Suffix, chat_prompt, encode
from tml_lib.lm.models import LanguageModel
from tml_lib.measure import limits, probe, ways
from tml_lib.measure import packed as packing
from tml_lib.measure.naive import Request, plain_nll
from tml_lib.measure.probe import naive_nll, prefix_nll
from tml_lib.records import ProbeCurve

IDS = torch.randint(3, 199, (200,), generator=torch.Generator().manual_seed(3)).tolist()
PROMPT, TRAJECTORY, TEMPLATE = IDS[:7], IDS[7:30], IDS[30:34]
SUFFIXES = [
    Suffix((*TEMPLATE, 5, 9, 11), 4, "three tokens"),
    Suffix((*TEMPLATE, 5), 4, "its beginning"),
    Suffix((*TEMPLATE, 5, 9, 12, 13, 14), 4, "branches off late"),
    Suffix((7, 8), 0, "no template"),
    Suffix((7,), 0, "one token, none to be read"),
]
EVERY = range(len(TRAJECTORY) + 1)


def naive(
    model, prompt=PROMPT, trajectory=TRAJECTORY, suffixes=SUFFIXES, positions=EVERY, **settings
):
    return np.array(
        [
            [naive_nll(model, prompt, trajectory, s, i, **settings) for i in positions]
            for s in suffixes
        ]
    )


def packed(
    model, prompt=PROMPT, trajectory=TRAJECTORY, suffixes=SUFFIXES, positions=EVERY, **settings
):
    return prefix_nll(
        model,
        prompt,
        trajectory,
        suffixes,
        positions,
        **{"tokens_per_pass": 40, "way": "packed"} | settings,
    )


def sides(encoded):
    return encoded.prompt, encoded.trajectory, encoded.suffixes


def assert_close(found, wanted, tolerance=2e-5):
    assert found.shape == wanted.shape
    assert np.isfinite(wanted).all()
    assert np.abs(found - wanted).max() <= tolerance


# --- packed = naive -------------------------------------------------------------------------------


def test_the_naive_loop_equals_log_probabilities_summed_by_hand(random_model):
    model, suffix = random_model("llama"), SUFFIXES[0]
    with torch.inference_mode():
        log_p = (
            model(input_ids=torch.tensor([[*PROMPT, *TRAJECTORY[:9], *suffix.ids]]))
            .logits[0]
            .log_softmax(-1)
        )
    # index of the answer's first token, predicted from the one before
    end = len(PROMPT) + 9 + len(TEMPLATE)
    terms = [float(log_p[end - 1 + k, token]) for k, token in enumerate((5, 9, 11))]
    assert naive_nll(model, PROMPT, TRAJECTORY, suffix, 9) == pytest.approx(
        -sum(terms) / 3, abs=1e-5
    )
    few = naive_nll(model, PROMPT, TRAJECTORY, suffix, 9, few_logits=True)
    assert few == pytest.approx(-sum(terms) / 3, abs=1e-5)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3", "gpt2", "gemma", "gemma2"])
def test_packed_equals_naive_at_every_position(random_model, model_type, tied):
    model = random_model(model_type, tie_word_embeddings=tied)
    found = prefix_nll(model, PROMPT, TRAJECTORY, SUFFIXES, EVERY, tokens_per_pass=40)
    assert_close(found, naive(model))
    # the predictions are not so uniform that a wrong mask would go unnoticed
    assert found.std() > 0.1


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_equals_naive_under_either_attention(random_model, attention):
    model = random_model("qwen2", attn_implementation=attention)
    assert model.config._attn_implementation == attention
    assert_close(packed(model), naive(model))


@pytest.mark.parametrize("prompt", [1, 100], ids=["one token", "read in pieces"])
@pytest.mark.parametrize("length", [0, 1, 2, 60])
@pytest.mark.parametrize("rows", [1, 16])
def test_packed_equals_naive_for_all_lengths(random_model, prompt, length, rows):
    model, trajectory = random_model("llama"), IDS[100 : 100 + length]
    where = sorted({0, length // 2, length})
    found = packed(model, IDS[:prompt], trajectory, positions=where, tokens_per_pass=rows)
    assert_close(found, naive(model, IDS[:prompt], trajectory, positions=where))


@pytest.mark.parametrize("rows", [1, 7, 23, 64, 4096])
def test_the_result_does_not_depend_on_tokens_per_pass(random_model, rows):
    assert_close(
        packed(random_model("llama"), tokens_per_pass=rows),
        packed(random_model("llama"), tokens_per_pass=None),
    )


@pytest.mark.parametrize("suffix", SUFFIXES, ids=lambda s: s.answer)
def test_candidates_probed_together_equal_those_probed_alone(random_model, suffix):
    together = packed(random_model("llama"))[[SUFFIXES.index(suffix)]]
    assert_close(packed(random_model("llama"), suffixes=[suffix]), together)


@pytest.mark.parametrize("where", [[0], [23], [3, 4, 20], list(range(0, 24, 5))])
def test_some_positions_equal_those_of_all(random_model, where):
    assert_close(
        packed(random_model("llama"), positions=where), packed(random_model("llama"))[:, where]
    )


def test_in_float64_packing_is_exact_to_rounding(monkeypatch):
    # both sides cast logits to float32
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)
    model = models.random_model("llama").double()
    assert_close(packed(model), naive(model), 1e-9)


def test_a_float64_model_is_probed_in_float64():
    model = models.random_model("llama").double()
    assert_close(packed(model), naive(model), 1e-9)


def test_on_a_real_model_packed_equals_naive_at_every_position(lm, questions):
    question = min(questions, key=lambda q: abs(len(gsm.gold(q).text) - 60))
    prompt, text = chat_prompt(lm.tokenizer, question.text), gsm.gold(question).text
    encoded = encode(lm.tokenizer, prompt, text, [question.answer])
    assert 15 < len(encoded.trajectory) <= 40
    curve, other = probe.probe(lm, prompt, text, [question.answer, "17"])
    assert len(curve.positions) == curve.length + 1
    assert_close(
        curve.answer_nll[None],
        naive(lm.model, *sides(encoded), positions=curve.positions, few_logits=True),
        2e-4,
    )
    encoded = encode(lm.tokenizer, prompt, text, ["17"])
    assert_close(
        other.answer_nll[None, [0, 9]],
        naive(lm.model, *sides(encoded), positions=[0, 9], few_logits=True),
        2e-4,
    )
    assert curve.fall > 1.0  # gold states its answer


# --- a wrong mask is noticed ----------------------------------------------------------------------


def on_forward(monkeypatch, change):
    """Let `change(positions, who sees whom)` alter what the model is given in each branch pass."""
    forward = packing._forward

    def changed(model, given, cache, **settings):
        if given.sees is not None:
            places, sees = change(given.places, given.sees)
            given = dataclasses.replace(given, places=places, sees=sees)
        return forward(model, given, cache, **settings)

    monkeypatch.setattr(packing, "_forward", changed)


def drop_mask(monkeypatch):
    on_forward(monkeypatch, lambda places, sees: (places, None))


def positions_in_a_row(monkeypatch):
    on_forward(monkeypatch, lambda places, sees: (torch.arange(len(places)) + places[0], sees))


def copies_see_past_their_root(monkeypatch):
    def change(places, sees):
        return places, dataclasses.replace(sees, trunk=torch.ones_like(sees.trunk))

    on_forward(monkeypatch, change)


def copies_see_each_other(monkeypatch):
    """Only a mask can do that."""
    monkeypatch.setattr(ways, "_WAYS", ways._WAYS[1:])
    monkeypatch.setattr(
        torch,
        "block_diag",
        lambda *parts: torch.ones([sum(p.shape[k] for p in parts) for k in (0, 1)]),
    )


def on_tree(monkeypatch, change):
    """Let `change(tree)` spoil what `_suffix_tree` returns, in place."""
    grow = packing._suffix_tree

    def grown(*args):
        tree = grow(*args)
        change(tree)
        return tree

    monkeypatch.setattr(packing, "_suffix_tree", grown)


def branches_see_ahead(monkeypatch):
    on_tree(monkeypatch, lambda tree: tree.sees.fill_(True))


def siblings_see_each_other(monkeypatch):
    """A suffix's tokens see those that other suffixes read before them: causal in the tree's own
    order.
    """
    on_tree(monkeypatch, lambda tree: tree.sees.copy_(torch.ones_like(tree.sees).tril()))


def branches_stay_in_the_cache(monkeypatch):
    """Later passes then see the copies of earlier ones."""

    monkeypatch.setattr(caches.RoomyLayer, "crop", lambda self, _count: None)


FAULTS = [
    drop_mask,
    copies_see_past_their_root,
    copies_see_each_other,
    positions_in_a_row,
    branches_see_ahead,
    siblings_see_each_other,
]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_the_packing_check_notices(random_model, monkeypatch, fault, model_type):
    model = random_model(model_type)
    monkeypatch.setattr(ways, "_known", weakref.WeakKeyDictionary())
    packed(model)  # sound so far
    ways._known.clear()
    fault(monkeypatch)
    with pytest.raises(
        ValueError, match=rf"{type(model).__name__} cannot .* gives other values in packed passes"
    ):
        packed(model)
    assert None not in ways._known[model].short.values()


def test_the_packing_check_notices_a_cache_that_keeps_the_branches(monkeypatch):
    model = models.random_model("llama")
    branches_stay_in_the_cache(monkeypatch)
    with pytest.raises(ValueError, match="LlamaForCausalLM"):
        packed(model)
    assert None not in ways._known[model].short.values()


def test_the_packing_check_takes_several_passes_over_two_suffixes_that_begin_alike(monkeypatch):
    model, passes = models.random_model("llama"), []
    branch_pass, grow, trees = packing._branch_pass, packing._suffix_tree, []

    def noted(model, given, cache, **settings):
        passes.append(given.sees.copies)
        return branch_pass(model, given, cache, **settings)

    def grown(*args):
        trees.append(grow(*args))
        return trees[-1]

    monkeypatch.setattr(packing, "_branch_pass", noted)
    monkeypatch.setattr(packing, "_suffix_tree", grown)
    with torch.inference_mode():
        packing.packed_nll(model.eval(), ways._check_text(model))
    assert passes == [2, 2]
    tree = trees[0]
    assert len(tree.scored) == 2
    assert tree.depth.tolist() == [1, 2, 2]  # one shared token, then one node of each suffix


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_plain_reference_of_the_check_equals_the_naive_loop(random_model, kind):
    model, suffixes = random_model(kind), [Suffix((5, 9, 11), 1, ""), Suffix((5, 12, 13), 1, "")]
    with torch.inference_mode():
        found = plain_nll(model, Request(PROMPT, TRAJECTORY, suffixes, np.array([0, 3, 9])))
    assert_close(found, naive(model, suffixes=suffixes, positions=[0, 3, 9]))


def checks(monkeypatch):
    """A list that grows by one with each check that really runs."""
    plain, ran = ways.plain_nll, []

    def noted(model, request):
        ran.append(model)
        return plain(model, request)

    monkeypatch.setattr(ways, "plain_nll", noted)
    return ran


def test_the_check_is_repeated_for_another_attention_and_remembered_for_each(monkeypatch):
    model, ran = models.random_model("llama", attn_implementation="sdpa"), checks(monkeypatch)
    for attention, wanted in (("sdpa", 1), ("sdpa", 1), ("eager", 2), ("sdpa", 2), ("eager", 2)):
        model.set_attn_implementation(attention)
        packed(model)
        assert len(ran) == wanted
    assert {s.attention for s in ways._known[model].plain} == {"sdpa", "eager"}


def test_the_check_is_repeated_for_another_dtype(monkeypatch):
    model, ran = models.random_model("llama"), checks(monkeypatch)
    for dtype, wanted in ((torch.float32, 1), (torch.float64, 2), (torch.float32, 2)):
        packed(model.to(dtype))
        assert len(ran) == wanted


def lora(rank=2):
    return LoraConfig(r=rank, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def test_the_check_is_repeated_when_an_adapter_is_put_on_or_changes(monkeypatch):
    base, ran = models.random_model("llama"), checks(monkeypatch)
    packed(base)
    adapted = get_peft_model(base, lora())  # puts its layers into `base` itself
    for model, wanted in ((base, 2), (base, 2), (adapted, 3), (adapted, 3)):
        assert_close(packed(model), naive(model))
        assert len(ran) == wanted
    adapted.add_adapter("second", lora(rank=3))
    adapted.set_adapter("second")
    packed(adapted)
    packed(adapted)
    assert len(ran) == 4
    with adapted.disable_adapter():
        packed(adapted)
        assert len(ran) == 5
    packed(adapted)  # as it was before
    assert len(ran) == 5
    adapted.merge_adapter()
    packed(adapted)
    assert len(ran) == 6


def test_a_checked_model_that_an_adapter_spoils_is_refused(monkeypatch):
    model = models.random_model("llama")
    packed(model)
    get_peft_model(model, lora())
    drop_mask(monkeypatch)
    with pytest.raises(
        ValueError, match=r"LlamaForCausalLM cannot .* gives other values in packed passes"
    ):
        packed(model)


def test_training_an_adapter_does_not_repeat_the_check(monkeypatch):
    model, ran = get_peft_model(models.random_model("llama"), lora()), checks(monkeypatch)
    packed(model)
    for parameter in model.parameters():
        parameter.data.add_(0.01)
    assert_close(packed(model), naive(model))
    assert len(ran) == 1


def test_a_checked_model_is_not_checked_again(monkeypatch):
    model = models.random_model("llama")
    packed(model)
    drop_mask(monkeypatch)
    # so wrong a result passes, because the check is over
    assert np.abs(packed(model) - naive(model)).max() > 0.1


# --- mode -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_the_model_stays_in_its_mode(training):
    model = models.random_model("llama").train(training)
    packed(model)
    assert [m.training for m in model.modules()] == [training] * len(list(model.modules()))


def test_modules_of_several_modes_keep_their_own():
    model = models.random_model("gpt2").train()
    frozen = next(m for m in model.modules() if isinstance(m, torch.nn.Dropout)).eval()
    packed(model)
    assert {m for m in model.modules() if not m.training} == {frozen}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_model_keeps_its_dtype_and_weights(tokenizer, dtype):
    model = models.random_model(vocab_size=len(tokenizer)).to(dtype)
    before = {name: p.clone() for name, p in model.state_dict().items()}
    probe.probe(LanguageModel(model, tokenizer, "tiny"), "What?\n", TEXT, "42")
    after = model.state_dict()
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert all(torch.equal(after[name], p) for name, p in before.items())


@pytest.mark.parametrize("removed", [{"dtype": torch.float64}, {"device": "cpu"}])
def test_a_measurement_does_not_take_a_dtype_or_device(tiny_lm, removed):
    with pytest.raises(TypeError, match=next(iter(removed))):
        probe.probe(tiny_lm, "What?\n", TEXT, "42", **removed)
    assert next(tiny_lm.model.parameters()).dtype == torch.float32


def test_dropout_is_off_while_probing():
    model = models.random_model("gpt2")  # its dropout is 0.1
    wanted = packed(model)  # and it has been checked
    assert_close(packed(model.train()), wanted)


def test_a_model_in_training_with_dropout_can_be_probed_at_once():
    assert_close(packed(models.random_model("gpt2").train()), packed(models.random_model("gpt2")))


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "name"), [("mamba", "MambaForCausalLM"), ("bloom", "BloomForCausalLM")]
)
def test_a_model_without_branchable_attention_is_refused_by_name(random_model, model_type, name):
    with pytest.raises(ValueError, match=name):
        packed(random_model(model_type))


def test_a_sliding_window_wider_than_the_text_agrees_with_naive(random_model):
    model = random_model("mistral", sliding_window=39)  # 7 + 23 + 9 tokens
    assert_close(packed(model), naive(model))


def test_a_sliding_window_narrower_than_the_text_is_refused(random_model):
    with pytest.raises(
        ValueError, match=r"MistralForCausalLM .* sliding window of 38, and the text has 39 tokens"
    ):
        packed(random_model("mistral", sliding_window=38))


def test_a_sliding_window_that_is_not_used_does_not_count(random_model):
    model = random_model("qwen2", sliding_window=4, use_sliding_window=False)
    assert_close(packed(model), naive(model))


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({}, None),
        ({"sliding_window": 8}, 8),
        ({"sliding_window": 8, "use_sliding_window": False}, None),
        ({"sliding_window": 8, "layer_types": ["full_attention"]}, None),
        ({"sliding_window": 8, "layer_types": ["full_attention", "sliding_attention"]}, 8),
    ],
)
def test_the_sliding_window_is_read_from_the_configuration(fields, wanted):
    config = SimpleNamespace(**fields)
    config.get_text_config = lambda: config
    assert limits.sliding_window(config) == wanted


def test_a_context_that_is_just_long_enough_agrees_and_a_shorter_one_is_refused(random_model):
    model, suffixes = random_model("gpt2", n_positions=16), SUFFIXES[:1]
    # 7 + 2 + 7 tokens
    sound = {"trajectory": IDS[7:9], "suffixes": suffixes, "positions": range(3)}
    assert_close(packed(model, **sound), naive(model, **sound))
    with pytest.raises(ValueError, match="take 17 tokens, but GPT2LMHeadModel's context holds 16"):
        packed(model, trajectory=IDS[7:10], suffixes=suffixes, positions=[0])


def test_an_empty_prompt_is_refused(random_model, tiny_lm):
    with pytest.raises(ValueError, match=r"prompt=\[\]"):
        packed(random_model("llama"), prompt=[])
    with pytest.raises(ValueError, match=r"prompt=\[\]"):
        probe.probe(tiny_lm, "", "2 + 2 = 4", "4")


@pytest.mark.parametrize("where", [[-1, 3], [24], [3, 30]])
def test_prefix_nll_refuses_positions_outside_the_trajectory(random_model, where):
    with pytest.raises(ValueError, match="positions"):
        packed(random_model("llama"), positions=where)


# --- probe() on text ------------------------------------------------------------------------------

TEXT = "6 * 7 means 7 seven times.\nSo it is 42. Yes, 42!"


def test_probe_gives_the_curve_of_prefix_nll(tiny_lm):
    encoded = encode(tiny_lm.tokenizer, "What?\n", TEXT, ["42"])
    curve = probe.probe(tiny_lm, "What?\n", TEXT, "42")
    assert curve.positions.tolist() == list(range(len(encoded.trajectory) + 1))
    assert (curve.length, curve.tokens, curve.answer) == (
        len(encoded.trajectory),
        encoded.tokens,
        "42",
    )
    assert_close(curve.answer_nll[None], naive(tiny_lm.model, *sides(encoded), curve.positions))


def test_stated_at_is_the_last_prefix_without_the_answer(tiny_lm):
    right, wrong = probe.probe(tiny_lm, "What?\n", TEXT, ["42", "43"])
    assert "".join(right.tokens[: right.stated_at]) == "6 * 7 means 7 seven times.\nSo it is "
    assert wrong.stated_at is None


@pytest.mark.parametrize("stride", [1, 4, 1000])
def test_a_stride_keeps_the_first_the_last_and_the_one_before_the_statement(tiny_lm, stride):
    curve, every = (probe.probe(tiny_lm, "What?\n", TEXT, "42", stride=s) for s in (stride, 1))
    assert curve.positions.tolist() == sorted(
        {*range(0, curve.length, stride), curve.length, curve.stated_at}
    )
    assert_close(curve.answer_nll, every.answer_nll[curve.positions])


def test_positions_are_exactly_those_asked_for(tiny_lm):
    assert probe.probe(tiny_lm, "What?\n", TEXT, "42", positions=[9, 2, 2]).positions.tolist() == [
        2,
        9,
    ]


def test_further_prefixes_are_probed_beside_the_strides_or_the_positions(tiny_lm):
    found = probe.probe(tiny_lm, "What?\n", TEXT, "42", stride=4, also=[9, 5, 8])
    regular = probe.probe(tiny_lm, "What?\n", TEXT, "42", stride=4)
    assert found.positions.tolist() == sorted({*regular.positions, 5, 9})
    assert_close(found.answer_nll[np.isin(found.positions, regular.positions)], regular.answer_nll)
    exact = probe.probe(tiny_lm, "What?\n", TEXT, "42", positions=[2], also=[9])
    assert exact.positions.tolist() == [2, 9]


def test_one_answer_gives_a_curve_and_several_a_list(tiny_lm):
    alone = probe.probe(tiny_lm, "What?\n", TEXT, "42")
    (listed,) = probe.probe(tiny_lm, "What?\n", TEXT, ["42"])
    assert isinstance(alone, ProbeCurve)
    assert listed.answer_nll.tolist() == alone.answer_nll.tolist()


def test_a_model_in_float64_gives_nearly_the_same_curve(tokenizer):
    lm = LanguageModel(models.random_model(vocab_size=len(tokenizer)), tokenizer, "tiny")
    single = probe.probe(lm, "What?\n", TEXT, "42")
    lm.model.double()
    double = probe.probe(lm, "What?\n", TEXT, "42")
    assert 0 < np.abs(double.answer_nll - single.answer_nll).max() < 1e-4


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"stride": 0}, "stride=0"),
        ({"stride": -2}, "stride=-2"),
        ({"positions": []}, r"positions=\[\]"),
        ({"positions": [3, 99]}, r"positions=\[99\] must be some of 0\.\.2\d"),
        ({"positions": [-1]}, r"positions=\[-1\]"),
        ({"also": [3, 99]}, r"positions=\[99\] must be some of 0\.\.2\d"),
    ],
)
def test_unsound_settings_are_refused_by_value(tiny_lm, settings, named):
    with pytest.raises(ValueError, match=named):
        probe.probe(tiny_lm, "What?\n", TEXT, "42", **settings)


def test_an_error_shows_a_few_of_many_positions_and_their_count(random_model, tiny_lm):
    with pytest.raises(ValueError, match=r"=\[0, 1, 2, 3, 4, …\] \(5000 positions\)") as of_ids:
        packed(random_model("llama"), positions=range(5000))
    with pytest.raises(ValueError, match=r"=\[-9, -8, -7, -6, -5, …\] \(9 positions\)") as of_text:
        probe.probe(tiny_lm, "What?\n", TEXT, "42", positions=np.arange(-9, 9))
    assert max(len(str(error.value)) for error in (of_ids, of_text)) < 200


@pytest.mark.parametrize(
    ("answers", "named"), [([], r"answers=\[\]"), ("", "answer ''"), (["42", ""], "answer ''")]
)
def test_missing_answers_are_refused(tiny_lm, answers, named):
    with pytest.raises(ValueError, match=named):
        probe.probe(tiny_lm, "What?\n", TEXT, answers)


# --- the record -----------------------------------------------------------------------------------


CURVE = ProbeCurve(
    np.array([0, 2, 3, 5]), np.array([4.0, 3.0, 2.5, 0.5]), 5, "42", tuple("abcde"), 3
)


def test_a_curve_is_read_at_a_token_and_its_fall_is_start_minus_end():
    assert (CURVE.at(3), CURVE.fall) == (2.5, 3.5)
    with pytest.raises(KeyError, match=r"after 4 tokens.*\[0, 2, 3, 5\]"):
        CURVE.at(4)
