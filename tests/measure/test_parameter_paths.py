"""The parameter path in one packed pass against one update per prefix, and its steps against dense
matrices and autograd.
"""

import numpy as np
import pytest
import torch

from tml_lib.lm import models
from tml_lib.lm.answers import Suffix, encode
from tml_lib.measure import parameter_paths, probe
from tml_lib.measure.implicit import gradient_update, update_from_ids
from tml_lib.measure.layer_updates import Update
from tml_lib.measure.parameter_paths import (
    PathSteps,
    answer_loss,
    last_layer,
    parameter_path,
    path_from_ids,
    path_steps,
    updated_loss,
)

IDS = torch.randint(3, 199, (200,), generator=torch.Generator().manual_seed(6)).tolist()
PROMPT, TRAJECTORY = IDS[:9], IDS[9:40]
SUFFIX = Suffix(tuple(IDS[40:47]), 4, "three tokens")
WHERE = [0, 1, 2, 10, 31]
KINDS = ["llama", "qwen2", "qwen3", "gemma", "gpt2"]


@pytest.fixture(scope="module", params=KINDS)
def walked(request):
    """(model in float64, its path, the path's steps)."""
    model = models.random_model(request.param).double()
    models.widen_norms(model)
    path = path_from_ids(model, PROMPT, TRAJECTORY, SUFFIX, WHERE)
    return model, path, path_steps(model, path, seed=0)


@pytest.fixture(scope="module")
def llama():
    model = models.random_model("llama").double()
    models.widen_norms(model)
    return model


@pytest.mark.parametrize("protect", [True, False], ids=["protected", "free"])
def test_the_path_holds_the_update_of_every_prefix(walked, protect):
    model, path, _ = walked
    for index, i in enumerate(WHERE):
        (item,) = update_from_ids(model, PROMPT, TRAJECTORY[:i], SUFFIX, protect=protect).layers
        (found,) = path.update(index, protect=protect).layers
        torch.testing.assert_close(found.dense(), item.dense(), rtol=0, atol=1e-10)
        assert (found.module, found.weight_norm) == (item.module, item.weight_norm)
        assert found.exact
        assert (found.rows, found.row_rank) == (item.rows, item.row_rank)
        assert found.residual == pytest.approx(item.residual, abs=1e-12)
    assert path.update(0).norm < 1e-10
    assert path.update(4).norm > 0.1


def test_the_paths_losses_are_those_of_the_updated_weights(walked):
    model, path, _ = walked
    for index in range(len(WHERE)):
        with path.update(index).applied(model):
            nll = probe.naive_nll(model, PROMPT, [], SUFFIX, 0)
        assert path.answer_nll[index] == pytest.approx(nll, abs=1e-9)
        assert path.answer_nll[index] == pytest.approx(
            probe.naive_nll(model, PROMPT, TRAJECTORY, SUFFIX, WHERE[index]), abs=1e-9
        )


def test_one_pass_gives_the_loss_under_any_update_of_the_last_layer(walked):
    model, path, _ = walked
    base = last_layer(model, PROMPT, SUFFIX)
    gradient = gradient_update(model, PROMPT, SUFFIX)
    for update in (Update(()), path.update(2), path.update(4), gradient.scaled(0.1)):
        with update.applied(model):
            nll = probe.naive_nll(model, PROMPT, [], SUFFIX, 0)
        assert updated_loss(model, base, update) == pytest.approx(nll, abs=1e-9)
    with pytest.raises(ValueError, match=r"an update of .*0\.mlp.* changes what comes into"):
        updated_loss(model, base, gradient_update(model, PROMPT, SUFFIX, layers="all"))


def test_trajectories_of_one_question_share_the_pass_without_them(llama, monkeypatch):
    base = last_layer(llama, PROMPT, SUFFIX)
    alone = path_from_ids(llama, PROMPT, TRAJECTORY, SUFFIX, WHERE)
    monkeypatch.setattr(parameter_paths, "last_layer", lambda *_: pytest.fail("read again"))
    shared = path_from_ids(llama, PROMPT, TRAJECTORY, SUFFIX, WHERE, without=base)
    assert torch.equal(shared.states, alone.states)
    assert torch.equal(shared.inputs, alone.inputs)
    assert torch.equal(shared.start, alone.start)


def dense(update, model):
    (item,) = update.layers
    return item.dense()


@pytest.mark.parametrize(("field", "protect"), [("cosine", False), ("cosine_protected", True)])
def test_cosines_equal_those_of_dense_steps_and_gradients(walked, field, protect):
    model, path, steps = walked
    for k in range(len(WHERE) - 1):
        step = dense(path.update(k + 1, protect=protect), model) - dense(
            path.update(k, protect=protect), model
        )
        with path.update(k, protect=protect).applied(model):
            gradient = dense(gradient_update(model, PROMPT, SUFFIX), model)
        wanted = float((step * gradient).sum() / (step.norm() * gradient.norm()))
        assert getattr(steps, field)[k] == pytest.approx(wanted, abs=1e-6)  # Gemma norms in float32


def test_norm_and_drop(walked):
    model, path, steps = walked
    for k in range(len(WHERE) - 1):
        step = dense(path.update(k + 1, protect=False), model) - dense(
            path.update(k, protect=False), model
        )
        assert steps.norm[k] == pytest.approx(float(step.norm()) / path.weight_norm)
        assert steps.drop[k] == pytest.approx(path.answer_nll[k] - path.answer_nll[k + 1])


def test_gradient_steps_have_the_steps_length_and_the_loss_that_they_say(walked):
    model, path, steps = walked
    k = 2
    with path.update(k, protect=False).applied(model):
        gradient = gradient_update(model, PROMPT, SUFFIX)
        drops = []
        for fraction in parameter_paths.LINE_SEARCH:
            length = fraction * steps.norm[k] * path.weight_norm
            with gradient.scaled(length / gradient.norm).applied(model):
                drops.append(path.answer_nll[k] - probe.naive_nll(model, PROMPT, [], SUFFIX, 0))
    assert steps.gradient_drop[k] == pytest.approx(drops[0], abs=1e-8)
    assert steps.best_gradient_drop[k] == pytest.approx(max(*drops, 0.0), abs=1e-8)


def test_the_ceiling_is_the_cosine_of_the_projected_gradient(llama):
    path = path_from_ids(llama, PROMPT, TRAJECTORY, SUFFIX, WHERE)
    steps = path_steps(llama, path, seed=0)
    gradient = dense(gradient_update(llama, PROMPT, SUFFIX), llama)
    # what must stay: the gradient's part that moves these rows is taken out
    others = path.inputs[:-3]
    kept = gradient - gradient @ torch.linalg.pinv(others) @ others
    assert steps.ceiling[0] == pytest.approx(
        float((kept * gradient).sum() / (kept.norm() * gradient.norm())), abs=1e-8
    )
    assert (np.abs(steps.cosine_protected) <= steps.ceiling).all()


def test_no_exact_step_is_nearer_to_the_gradient_than_the_smallest_one(llama):
    """Where the loss falls to first order; here any step with the same effect on the answer's rows,
    drawn at random.
    """
    path = path_from_ids(llama, PROMPT, TRAJECTORY, SUFFIX, [0, 10, 31])
    steps = path_steps(llama, path, seed=0)
    rows = path.inputs[-3:]
    k = int(np.argmax(steps.cosine))
    assert steps.cosine[k] > 0
    with path.update(k, protect=False).applied(llama):
        gradient = dense(gradient_update(llama, PROMPT, SUFFIX), llama)
    smallest = dense(path.update(k + 1, protect=False), llama) - dense(
        path.update(k, protect=False), llama
    )
    for seed in range(20):
        noise = torch.randn(
            smallest.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        other = smallest + noise - noise @ torch.linalg.pinv(rows) @ rows
        torch.testing.assert_close(rows @ other.T, rows @ smallest.T)
        assert float((other * gradient).sum() / (other.norm() * gradient.norm())) < steps.cosine[k]


def test_random_steps_differ_by_seed_and_have_no_direction(llama):
    path = path_from_ids(llama, PROMPT, TRAJECTORY, SUFFIX, range(32))
    drawn = np.concatenate(
        [path_steps(llama, path, seed=s, fractions=()).cosine_random for s in range(40)]
    )
    assert len(set(drawn)) == len(drawn)
    assert abs(drawn.mean()) < 4 * drawn.std() / len(drawn) ** 0.5
    assert drawn.std() == pytest.approx((3 * 64) ** -0.5, rel=0.5)  # about 1/sqrt of the dimension


def test_without_fractions_no_gradient_step_is_tried(llama, monkeypatch):
    path = path_from_ids(llama, PROMPT, TRAJECTORY, SUFFIX, WHERE)
    steps = path_steps(llama, path, seed=0, fractions=())
    assert np.isnan(steps.gradient_drop).all()
    assert np.isfinite(steps.cosine).all()
    assert {len(getattr(steps, name)) for name in PathSteps.__dataclass_fields__} == {4}


def test_a_step_of_no_length_has_no_direction(llama):
    path = path_from_ids(llama, PROMPT, TRAJECTORY, SUFFIX, [0, 5])
    still = parameter_paths.ParameterPath(
        **(vars(path) | {"states": path.states[[0, 0]], "answer_nll": path.answer_nll[[0, 0]]})
    )
    steps = path_steps(llama, still, seed=0)
    assert np.isnan(steps.cosine).all()
    assert steps.norm == pytest.approx(0)


@pytest.mark.parametrize("count", [1, 300])
def test_answer_loss_equals_the_models_own(llama, count):
    states = path_from_ids(llama, PROMPT, TRAJECTORY, SUFFIX, [31]).states.repeat(count, 1, 1)
    nll, gradient = answer_loss(llama, states, torch.tensor(SUFFIX.ids[-3:]), gradients=True)
    assert nll.shape == (count,)
    assert nll.numpy() == pytest.approx(
        probe.naive_nll(llama, PROMPT, TRAJECTORY, SUFFIX, 31), abs=1e-9
    )
    bump = torch.zeros_like(states)
    bump[0, 1, 5] = 1e-6
    ahead, back = (
        answer_loss(llama, states + sign * bump, torch.tensor(SUFFIX.ids[-3:]))[0]
        for sign in (1, -1)
    )
    assert float(ahead - back) / 2e-6 == pytest.approx(float(gradient[0, 1, 5]), abs=1e-6)


def test_packing_in_pieces_does_not_matter(llama, monkeypatch):
    whole = path_from_ids(llama, PROMPT, TRAJECTORY, SUFFIX, WHERE)
    monkeypatch.setattr(probe, "TOKENS_PER_PASS", {"cpu": 12})
    pieces = path_from_ids(models.random_model("llama").double(), PROMPT, TRAJECTORY, SUFFIX, WHERE)
    torch.testing.assert_close(pieces.states, whole.states, rtol=0, atol=1e-4)
    assert pieces.positions.tolist() == WHERE


def test_text_and_ids_give_the_same_path(tiny_lm):
    text = "What is 6 times 7?\n", "6 times 7 is\n42", "42"
    encoded = encode(tiny_lm.tokenizer, *text[:2], [text[2]])
    by_text = parameter_path(tiny_lm, *text, stride=3)
    length = len(encoded.trajectory)
    where = sorted({*range(0, length + 1, 3), length})
    by_ids = path_from_ids(
        tiny_lm.model, encoded.prompt, encoded.trajectory, encoded.suffixes[0], where
    )
    assert by_text.positions.tolist() == where
    assert torch.equal(by_text.states, by_ids.states)
    with pytest.raises(ValueError, match="stride=0 must be at least 1"):
        parameter_path(tiny_lm, *text, stride=0)


def test_a_model_whose_loss_is_more_than_its_head_is_refused(llama, monkeypatch):
    path = path_from_ids(llama, PROMPT, TRAJECTORY, SUFFIX, WHERE)
    monkeypatch.setattr(
        llama.lm_head, "forward", lambda x: 2 * torch.nn.functional.linear(x, llama.lm_head.weight)
    )
    with pytest.raises(
        ValueError, match="LlamaForCausalLM's loss is not its head after its final norm"
    ):
        path_steps(llama, path, seed=0)


def test_rows_that_cannot_all_be_served_are_reported_and_give_no_figures():
    narrow = models.random_model("llama", intermediate_size=12).double()
    models.widen_norms(narrow)
    # T = 15 > 12: the prompt cannot be left alone
    path = path_from_ids(narrow, PROMPT, TRAJECTORY, SUFFIX, WHERE)
    assert not path.exact(protect=True)
    assert not path.update(2).exact
    assert path.update(2).layers[0].residual > 1e-4
    assert path.update(2, protect=False).exact
    steps = path_steps(narrow, path, seed=0)
    assert np.isnan(steps.cosine_protected).all()
    assert np.isnan(steps.ceiling).all()
    assert np.isfinite(steps.cosine).all()
    tiny = models.random_model("llama", intermediate_size=2).double()
    with pytest.raises(ValueError, match="the answer's rows are not independent"):
        path_steps(tiny, path_from_ids(tiny, PROMPT, TRAJECTORY, SUFFIX, WHERE), seed=0)


def test_a_path_of_one_position_has_no_step(llama):
    with pytest.raises(ValueError, match=r"positions \[0\] has no step"):
        path_steps(llama, path_from_ids(llama, PROMPT, [], SUFFIX, [0]), seed=0)


def test_hooks_are_gone_after_an_error(llama):
    with pytest.raises(ValueError, match="must increase within"):
        path_from_ids(llama, PROMPT, TRAJECTORY, SUFFIX, [99])
    assert not llama._forward_pre_hooks
    assert not llama.model.layers[-1]._forward_hooks
