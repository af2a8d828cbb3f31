"""The implicit update: exact logits for every supported block, gradients as factors, honest reports
where not exact.
"""

import peft
import pytest
import torch

from tml_lib.data import gsm
from tml_lib.lm import blocks, models
from tml_lib.lm.answers import Suffix, chat_prompt, encode
from tml_lib.measure.implicit import (
    gradient_update,
    logit_error,
    smallest_update,
    trajectory_update,
    update_from_ids,
)

IDS = torch.randint(3, 199, (200,), generator=torch.Generator().manual_seed(5)).tolist()
PROMPT, TRAJECTORY = IDS[:9], IDS[9:40]
SUFFIX = Suffix(tuple(IDS[40:48]), 4, "four tokens")
GIVEN = (PROMPT, TRAJECTORY, SUFFIX)
KINDS = ["llama", "qwen2", "qwen3", "gemma", "gpt2"]


@pytest.fixture(scope="module")
def wide():
    """Random models in float64, their norms included, built once per kind."""
    held = {}

    def build(kind, **overrides):
        name = kind, *sorted(overrides.items())
        if name not in held:
            held[name] = models.random_model(kind, **overrides).double()
            models.widen_norms(held[name])
        return held[name]

    return build


def logits(model, ids, count=4):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0, -count:]


def without(suffix=SUFFIX, prompt=PROMPT):
    return [*prompt, *suffix.ids[:-1]]


def with_trajectory(suffix=SUFFIX):
    return [*PROMPT, *TRAJECTORY, *suffix.ids[:-1]]


# --- exactness ------------------------------------------------------------------------------------


@pytest.mark.parametrize("protect", [True, False], ids=["protected", "free"])
@pytest.mark.parametrize("layers", ["last", "all", [0, -1]], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_updated_weights_give_the_with_trajectory_logits(wide, kind, layers, protect):
    model = wide(kind)
    update = update_from_ids(model, *GIVEN, layers=layers, protect=protect)
    wanted, before = logits(model, with_trajectory()), logits(model, without())
    with update.applied(model):
        found = logits(model, without())
    # the trajectory matters, so there is something to reproduce
    assert (before - wanted).abs().max() > 0.5
    assert (found - wanted).abs().max() < 1e-9
    assert update.logit_error < 1e-9
    assert logit_error(model, update, *GIVEN) < 1e-9
    assert update.exact
    assert all(item.residual < 1e-12 for item in update.layers)
    assert all(torch.linalg.matrix_rank(item.dense(), rtol=1e-9) <= 4 for item in update.layers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_float64_tail_is_enough_for_the_last_layers_update(random_model, kind, dtype):
    model = random_model(kind) if dtype == torch.float32 else models.random_model(kind).to(dtype)
    before, kept = logits(model, without()), dict(model.named_modules())
    rough = logit_error(model, update_from_ids(model, *GIVEN), *GIVEN)
    with blocks.wide_tail(model):
        update = update_from_ids(model, *GIVEN)
        assert logits(model, without()).dtype == torch.float64
        assert logit_error(model, update, *GIVEN) < 1e-9 < rough
        assert update.exact
    assert dict(model.named_modules()) == kept
    assert torch.equal(logits(model, without()), before)


@pytest.mark.parametrize("bias", [True, False])
def test_a_head_in_float64_is_read_some_rows_at_a_time(bias, monkeypatch):
    monkeypatch.setattr(blocks._WideHead, "ROWS", 7)  # of 24: the last part is shorter
    head = torch.nn.Linear(5, 24, bias=bias)
    hidden = torch.randn(3, 5, dtype=torch.float64)
    whole = torch.nn.functional.linear(
        hidden, head.weight.double(), head.bias.double() if bias else None
    )
    assert torch.allclose(blocks._WideHead(head)(hidden), whole, rtol=0, atol=1e-14)


def test_a_tail_whose_weights_lie_elsewhere_is_refused():
    model = models.random_model("llama", tie_word_embeddings=False)
    blocks.find_blocks(model)
    model.lm_head.to("meta")
    told = pytest.raises(ValueError, match="the last layer of LlamaForCausalLM is offloaded")
    with told, blocks.wide_tail(model):
        pass


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_heads_tied_or_not(wide, tied):
    model = wide("llama", tie_word_embeddings=tied)
    assert logit_error(model, update_from_ids(model, *GIVEN), *GIVEN) < 1e-9


def test_the_prompts_rows_stay_where_they_were(wide):
    model = wide("llama")
    before = logits(model, without(), count=16)
    with update_from_ids(model, *GIVEN).applied(model):
        kept = logits(model, without(), count=16)
    with update_from_ids(model, *GIVEN, protect=False).applied(model):
        moved = logits(model, without(), count=16)
    assert (kept - before)[:-4].abs().max() < 1e-9
    assert (moved - before)[:-4].abs().max() > 1e-3
    assert (moved - kept)[-4:].abs().max() < 1e-9


def test_the_free_update_is_the_smaller_one(wide):
    free, protected = (
        update_from_ids(wide("llama"), *GIVEN, protect=protect) for protect in (False, True)
    )
    assert 0 < free.norm < protected.norm


def test_an_empty_trajectory_is_no_update(wide):
    update = update_from_ids(wide("llama"), PROMPT, [], SUFFIX)
    assert update.norm < 1e-12
    assert update.logit_error < 1e-12


def test_one_answer_token_makes_a_rank_one_update(wide):
    suffix = Suffix((7, 8, 9), 2, "one token")
    (item,) = update_from_ids(wide("llama"), PROMPT, TRAJECTORY, suffix).layers
    assert item.U.shape == (64, 1)
    assert item.V.shape == (1, 128)
    assert item.effective_rank == pytest.approx(1)


def test_a_sequence_longer_than_the_hidden_width_is_reported_as_not_exact(wide):
    model = wide("llama", intermediate_size=12)
    update = update_from_ids(model, *GIVEN)
    (item,) = update.layers
    assert not update.exact
    assert (item.rows, item.row_rank) == (16, 12)
    assert item.residual > 1e-3
    assert update.logit_error > 1e-3
    assert logit_error(model, update, *GIVEN) == pytest.approx(update.logit_error)


def test_rank_deficient_rows_are_reported_and_solved_by_least_squares():
    draw = torch.Generator().manual_seed(0)
    M, D = (
        torch.randn(5, 20, generator=draw, dtype=torch.float64),
        torch.randn(2, 6, generator=draw, dtype=torch.float64),
    )
    M[1] = M[4]  # a prompt row that cannot stay while an equal answer row moves
    U, V, report = smallest_update(M, D, protect=True)
    asked = torch.cat([torch.zeros(3, 6, dtype=torch.float64), D])
    torch.testing.assert_close((U @ V).T, torch.linalg.lstsq(M, asked, driver="gelsd").solution)
    assert (report["rows"], report["row_rank"]) == (5, 4)
    assert report["residual"] == pytest.approx(float(D[1].abs().max()) / 2)
    assert smallest_update(M, D, protect=False)[2]["residual"] < 1e-12


def test_rows_that_rounding_alone_tells_apart_do_not_count_as_exact():
    """The same token over and over gives equal rows but for position, which float32 cannot resolve
    here.
    """
    settings = [7] * 9, [8, 9, 10], Suffix((7,) * 8, 4, "")
    single = update_from_ids(models.random_model("llama"), *settings)
    assert not single.exact
    assert single.layers[0].row_rank < single.layers[0].rows == 16


def test_a_real_model_in_float64_for_all_answer_tokens_at_once(questions):
    """SmolLM2, whole: last layer, then all layers in order."""
    lm = models.load("small", device="cpu", dtype="float64")
    question = next(q for q in questions if len(q.answer) == 3 and len(gsm.gold(q).text) < 120)
    prompt, text = chat_prompt(lm.tokenizer, question.text), gsm.gold(question).text
    encoded = encode(lm.tokenizer, prompt, text, [question.answer])
    settings = (encoded.prompt, encoded.trajectory, encoded.suffixes[0])
    for layers in ("last", "all"):
        update = trajectory_update(lm, prompt, text, question.answer, layers=layers)
        assert logit_error(lm.model, update, *settings) < 1e-9
        assert update.exact
        assert max(len(item.V) for item in update.layers) == 3
        assert len(update.layers) == (1 if layers == "last" else 30)


def test_float64_models_compute_their_norms_in_float64():
    stored = models.random_model("llama").double()
    before = logits(stored, without())
    models.widen_norms(stored)
    after = logits(stored, without())
    # the same norms, without transformers' rounding to float32
    assert 0 < (after - before).abs().max() < 1e-4


# --- the model stays as it is ---------------------------------------------------------------------


def test_training_mode_and_gradients_are_as_they_were(random_model):
    model = models.random_model("llama", attention_dropout=0.5).train()
    model.model.layers[0].eval()
    asked = [p.requires_grad for p in model.parameters()]
    update_from_ids(model, *GIVEN)
    gradient_update(model, PROMPT, SUFFIX)
    assert model.training
    assert not model.model.layers[0].training  # a part that was frozen stays so
    assert [p.requires_grad for p in model.parameters()] == asked
    assert all(p.grad is None for p in model.parameters())


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_gradients_factors_equal_autograds_own_gradient(wide, kind, layers):
    model = wide(kind)
    update = gradient_update(model, PROMPT, SUFFIX, layers=layers)
    log_p = model(input_ids=torch.tensor([without()])).logits[0, -4:].log_softmax(-1)
    loss = -sum(log_p[k, token] for k, token in enumerate(SUFFIX.ids[-4:])) / 4
    weights = [model.get_submodule(item.module).weight for item in update.layers]
    for item, wanted in zip(update.layers, torch.autograd.grad(loss, weights), strict=True):
        dense = item.dense().T if kind == "gpt2" else item.dense()
        torch.testing.assert_close(dense, -wanted)


def test_a_small_gradient_step_lowers_the_answers_loss_as_predicted(wide):
    model, step = wide("llama"), 1e-4
    gradient = gradient_update(model, PROMPT, SUFFIX)

    def loss():
        return float(
            torch.nn.functional.cross_entropy(
                logits(model, without()), torch.tensor(SUFFIX.ids[-4:])
            )
        )

    before = loss()
    with gradient.scaled(step / gradient.norm).applied(model):
        assert before - loss() == pytest.approx(step * gradient.norm, rel=1e-2)


# --- what cannot be done --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("gemma2", "Gemma2ForCausalLM does not add"),
        ("gemma3_text", "Gemma3ForCausalLM does not add"),
        ("mixtral", r"MixtralForCausalLM's block 0 .* has no linear `mlp\.down_proj`"),
        ("phi", "PhiForCausalLM has no list of blocks"),
        ("opt", "OPTForCausalLM has no list of blocks"),
    ],
)
def test_blocks_of_another_build_are_refused_by_name(kind, message):
    model = models.random_model(kind)
    with pytest.raises(ValueError, match=message):
        update_from_ids(model, *GIVEN)


def test_a_model_that_holds_an_adapter_is_refused(tmp_path):
    model = peft.get_peft_model(
        models.random_model("llama"), peft.LoraConfig(target_modules=["down_proj"])
    )
    with pytest.raises(ValueError, match="unload adapters"):
        update_from_ids(model, *GIVEN)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([2], r"layers=\[2\]: the model has layers 0\.\.1, not 2"),
        ([-3], "not -3"),
        ([], "must be 'last', 'all' or a list"),
        ("first", "layers='first' must be"),
        (-1, "layers=-1 must be"),
        ([0.5], r"layers=\[0\.5\] must be"),
    ],
)
def test_layers_that_do_not_exist(random_model, layers, message):
    with pytest.raises(ValueError, match=message):
        update_from_ids(random_model("llama"), *GIVEN, layers=layers)


def test_inputs_that_make_no_sense(random_model, tiny_lm):
    with pytest.raises(ValueError, match="at least one prompt token"):
        update_from_ids(random_model("llama"), [], TRAJECTORY, SUFFIX)
    update = update_from_ids(random_model("llama"), *GIVEN)
    short = models.random_model("gpt2", n_positions=20)
    for call in (
        lambda: update_from_ids(short, *GIVEN),
        lambda: gradient_update(short, IDS[:20], SUFFIX),
    ):
        with pytest.raises(ValueError, match="context holds 20"):
            call()
    for call in (
        lambda: gradient_update(random_model("llama"), [], SUFFIX),
        lambda: logit_error(random_model("llama"), update, [], TRAJECTORY, SUFFIX),
    ):
        with pytest.raises(ValueError, match="at least one prompt token"):
            call()
    with pytest.raises(ValueError, match="tokenises to nothing"):
        trajectory_update(tiny_lm, "Question:\n", "Step.", "")


def test_text_and_ids_give_the_same_update(tiny_lm):
    encoded = encode(tiny_lm.tokenizer, "What is 6 times 7?\n", "6 times 7 is\n42", ["42"])
    by_text = trajectory_update(
        tiny_lm, "What is 6 times 7?\n", "6 times 7 is\n42", "42", layers="all"
    )
    by_ids = update_from_ids(
        tiny_lm.model, encoded.prompt, encoded.trajectory, encoded.suffixes[0], layers="all"
    )
    assert [item.layer for item in by_text.layers] == [0, 1]
    assert all(torch.equal(a.U, b.U) for a, b in zip(by_text.layers, by_ids.layers, strict=True))


def test_a_bfloat16_model_is_updated_as_well_as_its_precision_allows():
    model = models.random_model("qwen2").to(torch.bfloat16)
    wanted, before = logits(model, with_trajectory()).float(), logits(model, without()).float()
    with update_from_ids(model, *GIVEN).applied(model):
        found = logits(model, without()).float()
    assert (found - wanted).abs().mean() < 0.1 * (before - wanted).abs().mean()


def test_blocks_of_one_build_are_checked_once(monkeypatch):
    model, calls = models.random_model("llama", num_hidden_layers=3), []
    real = blocks._check_additive
    monkeypatch.setattr(blocks, "_check_additive", lambda *args: calls.append(args) or real(*args))
    for _ in range(2):
        found, names = blocks.find_blocks(model)
    assert len(calls) == 1
    assert (len(found), names[2]) == (3, "model.layers.2.mlp.down_proj")
