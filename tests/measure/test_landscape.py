"""The landscape: scaled directions, exact losses, not a bit of the weights changed, and the path's
own plane.
"""

import numpy as np
import pytest
import torch

from tml_lib.data import gsm
from tml_lib.lm import answers, models
from tml_lib.lm.models import LanguageModel
from tml_lib.measure import landscape, parameter_paths, probe
from tml_lib.measure.layer_updates import LayerUpdate, Update


@pytest.fixture(scope="module")
def asked():
    return gsm.gsm_symbolic(5, seed=3)


def bits(model):
    return {name: p.detach().view(torch.uint8).clone() for name, p in model.named_parameters()}


def unchanged(model, before):
    return all(
        torch.equal(before[name], p.detach().view(torch.uint8))
        for name, p in model.named_parameters()
    )


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "mixtral", "gpt_oss"])
def test_directions_are_as_long_as_what_they_displace(family, tokenizer):
    experts = {"num_local_experts": 4} if family in ("mixtral", "gpt_oss") else {}
    model = models.random_model(family, vocab_size=len(tokenizer), **experts)
    by_tensor, by_filter = (
        landscape.random_plane(model, 0, scaling=s) for s in ("tensor", "filter")
    )
    for name, p in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, torch.nn.Embedding) or owner is model.get_output_embeddings():
            assert name not in by_tensor.first
            continue
        assert by_tensor.first[name].norm() == pytest.approx(
            float(p.detach().norm()), rel=1e-4, abs=1e-6
        )
        if p.ndim < 2 or name.endswith("bias"):
            assert name not in by_filter.first
            continue
        transposed = family == "gpt2" or (family == "gpt_oss" and p.ndim == 3)
        inputs = -2 if transposed else -1
        assert torch.allclose(
            by_filter.second[name].norm(dim=inputs), p.norm(dim=inputs), rtol=1e-4
        )
        assert not torch.equal(by_filter.first[name], by_filter.second[name])
    again = landscape.random_plane(model, 0)
    assert all(torch.equal(again.first[name], by_filter.first[name]) for name in again.first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_at_each_point_is_that_of_a_model_with_those_weights(asked, tokenizer, dtype):
    lm = LanguageModel(
        models.random_model("llama", vocab_size=len(tokenizer)).to(dtype), tokenizer, "random"
    )
    plane, before, grid = (
        landscape.random_plane(lm.model, 1),
        bits(lm.model),
        landscape.axis(3, 0.5),
    )
    found = landscape.landscape(lm, asked, plane, grid, grid, batch_size=2)
    assert found.nll.shape == (3, 3, 5)
    assert unchanged(lm.model, before)
    other = LanguageModel(
        models.random_model("llama", vocab_size=len(tokenizer)).to(dtype), tokenizer, "displaced"
    )
    with torch.no_grad():
        for name, p in other.model.named_parameters():
            if name in plane.first:
                p.copy_(
                    p.float() - 0.5 * plane.first[name].float() + 0.5 * plane.second[name].float()
                )
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    for model, place in ((lm, (1, 1)), (other, (0, 2))):
        for k, question in enumerate(asked):
            prompt = answers.chat_prompt(tokenizer, question.text)
            wanted = probe.probe(model, prompt, "", question.answer, positions=[0]).at(0)
            assert found.nll[*place, k] == pytest.approx(wanted, abs=tolerance)
    assert found.nll.std() > 1e-3


def test_a_trajectory_may_stand_in_context(asked, tiny_lm):
    plane, texts = landscape.random_plane(tiny_lm.model, 1), [gsm.gold(q).text for q in asked]
    centre = np.zeros(1)
    found = landscape.landscape(tiny_lm, asked, plane, centre, centre, trajectories=texts)
    prompt = answers.chat_prompt(tiny_lm.tokenizer, asked[0].text)
    assert found.nll[0, 0, 0] == pytest.approx(
        probe.probe(tiny_lm, prompt, texts[0], asked[0].answer).answer_nll[-1], abs=1e-4
    )


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_or_an_interrupt_leaves_every_bit_in_place(error, tiny_lm):
    plane, before = landscape.random_plane(tiny_lm.model, 1), bits(tiny_lm.model)

    def fail(module, arguments):
        assert not unchanged(tiny_lm.model, before)
        raise error

    layer = tiny_lm.model.get_submodule("model.layers.0.mlp.down_proj")
    with landscape.displaced(tiny_lm.model, plane) as move:
        move(0.3, -0.7)
        handle = layer.register_forward_pre_hook(fail)
        try:
            with pytest.raises(error):
                tiny_lm.model(torch.ones(1, 3, dtype=torch.long))
        finally:
            handle.remove()
    assert unchanged(tiny_lm.model, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny_lm.model.modules())


def test_what_cannot_be_drawn_is_refused_by_name(asked, tiny_lm, random_model):
    plane = landscape.random_plane(tiny_lm.model, 1)
    with pytest.raises(ValueError, match="0 questions"):
        landscape.landscape(tiny_lm, [], plane, np.zeros(1), np.zeros(1))
    nowhere = landscape.Direction()
    nowhere.put("nowhere.weight", torch.zeros(2), torch.ones(()), torch.float32)
    other = landscape.Plane(nowhere, nowhere)
    with pytest.raises(ValueError, match=r"no parameter nowhere.weight"):
        landscape.landscape(tiny_lm, asked, other, np.zeros(1), np.zeros(1))
    with pytest.raises(
        ValueError, match="scaling='layer' is unknown: choose one of filter, tensor"
    ):
        landscape.random_plane(tiny_lm.model, 1, scaling="layer")
    for points, reach in ((10, 1.0), (0, 1.0), (3, 0.0)):
        with pytest.raises(ValueError, match="odd number"):
            landscape.axis(points, reach)
    with pytest.warns(UserWarning, match="one point"):
        assert landscape.axis(1).tolist() == [0.0]


# --- the path's own plane -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def path(tiny_lm, asked):
    prompt = answers.chat_prompt(tiny_lm.tokenizer, asked[0].text)
    return parameter_paths.parameter_path(
        tiny_lm, prompt, gsm.gold(asked[0]).text, asked[0].answer, stride=5
    )


@pytest.mark.parametrize("protect", [True, False])
def test_a_paths_plane_is_that_of_its_updates_in_weight_space(path, protect):
    plane = landscape.path_plane(path, protect=protect)
    updates = np.stack(
        [
            path.update(k, protect=protect).layers[0].dense().flatten()
            for k in range(len(path.positions))
        ]
    )
    spread = updates - updates.mean(0)
    sizes = np.linalg.svd(spread, compute_uv=False)
    assert plane.explained == pytest.approx((sizes**2 / (sizes**2).sum())[:2], rel=1e-6)
    V = path.right(protect=protect)
    axes = np.stack([(d.T @ V).flatten() for d in plane.directions])
    assert axes @ axes.T == pytest.approx(np.eye(2), abs=1e-8)
    assert plane.points == pytest.approx(spread @ axes.T, abs=1e-8)
    assert (plane.points[-1] >= plane.points[0]).all()


def test_the_loss_in_the_plane_is_that_of_the_model_with_those_weights(path, tiny_lm, asked):
    plane, before = landscape.path_plane(path), bits(tiny_lm.model)
    first, second = np.array([-0.5, 0.0]), np.array([0.25, 0.0, 1.0])
    found = landscape.path_landscape(tiny_lm.model, path, plane, first, second)
    prompt, V = answers.chat_prompt(tiny_lm.tokenizer, asked[0].text), path.right(protect=True)
    for i, j in ((0, 0), (1, 2), (1, 1)):
        change = plane.centre + first[i] * plane.directions[0] + second[j] * plane.directions[1]
        update = Update(
            (LayerUpdate(path.layer, path.module, change.T.contiguous(), V, path.weight_norm),)
        )
        with update.applied(tiny_lm.model):
            wanted = probe.probe(tiny_lm, prompt, "", asked[0].answer, positions=[0]).at(0)
        assert found.nll[i, j, 0] == pytest.approx(wanted, abs=1e-4)
    assert unchanged(tiny_lm.model, before)


def test_a_path_without_a_plane_is_refused(path, tiny_lm, asked):
    prompt = answers.chat_prompt(tiny_lm.tokenizer, asked[0].text)
    short = parameter_paths.parameter_path(
        tiny_lm, prompt, gsm.gold(asked[0]).text, asked[0].answer, stride=10**6
    )
    with pytest.raises(ValueError, match="at least three positions"):
        landscape.path_plane(short)
    still = parameter_paths.ParameterPath(
        **{**vars(path), "states": path.states[:1].repeat(len(path.positions), 1, 1)}
    )
    with pytest.raises(ValueError, match="coincide"):
        landscape.path_plane(still)


def test_a_curve_is_laid_on_a_landscape_by_matching_its_losses():
    first, second = np.linspace(-1, 1, 5), np.linspace(-1, 1, 9)
    bowl = landscape.Landscape(
        first, second, np.broadcast_to(second[None, :, None] ** 2 + 1, (5, 9, 1))
    )
    points = landscape.contour_match(bowl, [2.0, 1.25, 1.0])
    assert points[:, 0].tolist() == [-1, 0, 1]
    assert np.abs(points[:, 1]).tolist() == [1, 0.5, 0]
    assert landscape.contour_match(bowl, [9.0])[0, 1] in (-1, 1)


def test_a_frame_holds_its_points_with_room_around():
    first, second = landscape.frame(np.array([[0.0, 1.0], [2.0, 1.5]]), 5)
    assert (first[0], first[-1]) == pytest.approx((-0.6, 2.6))
    assert (second[0], second[-1]) == pytest.approx((0.4, 2.1))
    assert len(first) == len(second) == 5
