"""The explicit inner loop on LoRA weights: siblings, gradients by finite differences, and what the
outer loop learns.
"""

import random

import pytest
import torch

from tml_lib.data import programs, tiny
from tml_lib.lm import models
from tml_lib.lm.models import LanguageModel
from tml_lib.meta import maml_lora
from tml_lib.meta.maml_lora import MetaLora


@pytest.fixture(scope="module")
def start():
    model = tiny.new_model(0).double()
    models.widen_norms(model)
    return LanguageModel(model, tiny.tokenizer(), "start")


@pytest.fixture
def meta(start):
    made = MetaLora(start, rank=2)
    with torch.no_grad():  # LoRA's B begins at 0, where half of the gradient vanishes
        draw = torch.Generator().manual_seed(1)
        for p in made.theta.values():
            p.copy_(0.1 * torch.randn(p.shape, generator=draw, dtype=p.dtype))
    return made


def test_a_sibling_has_the_same_statements_and_other_letters_and_inputs():
    rng = random.Random(0)
    for split in ("train", "held_out"):
        program = programs.split_program(rng, split)
        other = maml_lora.sibling(program, rng)
        assert sorted((s.operator, s.literal) for s in other.statements) == sorted(
            (s.operator, s.literal) for s in program.statements
        )
        assert other.text != program.text
        assert programs.is_held_out(other) == programs.is_held_out(program)
        assert other.answer()


def test_rows_are_the_same_for_every_call_and_differ_between_steps():
    batches = maml_lora.pairs(0, 3, steps=1)
    assert batches(2) == batches(2) != batches(3)
    ((support, query), *_) = batches(0)
    assert support != query


def test_an_inner_step_is_gradient_descent_and_leaves_no_trace(meta, start):
    (pair,) = maml_lora.pairs(0, 1, steps=1)(0)
    before = {name: p.detach().clone() for name, p in meta.theta.items()}
    theta = meta.adapted(meta.theta, pair[0], steps=1, inner_lr=0.1)
    gradients = torch.autograd.grad(meta.loss(meta.theta, [pair[0]]), list(meta.theta.values()))
    for (name, moved), gradient in zip(theta.items(), gradients, strict=True):
        assert torch.allclose(moved, before[name] - 0.1 * gradient)
    assert all(torch.equal(p, before[name]) for name, p in meta.theta.items())
    assert meta.loss(theta, [pair[0]]).item() < meta.loss(meta.theta, [pair[0]]).item()


@pytest.mark.parametrize("steps", [1, 2])
def test_the_meta_gradient_agrees_with_finite_differences(meta, steps):
    batch = maml_lora.pairs(0, 2, steps=1)(0)
    settings = {"steps": steps, "inner_lr": 0.5}
    _, exact = meta.outer_gradient(batch, method="maml", **settings)
    _, first = meta.outer_gradient(batch, method="fomaml", **settings)
    name = next(iter(meta.theta))
    at, eps = int(exact[0].abs().argmax()), 1e-5

    def loss(shift):
        with torch.no_grad():
            meta.theta[name].view(-1)[at] += shift
        total, _ = meta.outer_gradient(batch, method="maml", **settings)
        with torch.no_grad():
            meta.theta[name].view(-1)[at] -= shift
        return total

    numeric = (loss(eps) - loss(-eps)) / (2 * eps)
    assert float(exact[0].view(-1)[at]) == pytest.approx(numeric, rel=1e-5)
    flat = [torch.cat([g.flatten() for g in side]) for side in (exact, first)]
    assert (flat[0] - flat[1]).norm() > 0.01 * flat[0].norm(), (
        "the second-order part is left out by mistake"
    )


def test_without_inner_steps_all_methods_agree_on_the_query(meta):
    batch = maml_lora.pairs(0, 2, steps=1)(0)
    found = {
        method: meta.outer_gradient(batch, method=method, steps=0, inner_lr=0.1)
        for method in ("maml", "fomaml")
    }
    assert found["maml"][0] == pytest.approx(found["fomaml"][0])
    for a, b in zip(found["maml"][1], found["fomaml"][1], strict=True):
        assert torch.allclose(a, b)


def test_a_row_gives_its_question_back():
    rng = random.Random(3)
    program = programs.split_program(rng, "held_out")
    question = maml_lora.asked(maml_lora._row(program, rng))
    assert (question.text, question.answer) == (program.text, program.answer())
    assert question.trajectories[0].correct


def test_query_losses_are_those_of_inner_steps_one_by_one(meta):
    made = maml_lora.pairs(0, 2, steps=1)(0)
    found = maml_lora.query_losses(meta, made, steps=2, inner_lr=0.3)
    assert found.shape == (2, 3)
    for k, (support, query) in enumerate(made):
        for steps in range(3):
            theta = meta.adapted(meta.theta, support, steps=steps, inner_lr=0.3)
            assert found[k, steps] == pytest.approx(meta.loss(theta, [query]).item())


@pytest.mark.parametrize("method", maml_lora.METHODS)
def test_every_outer_loop_lowers_its_loss(method):
    lm = models.load("tiny", device="cpu")
    meta = MetaLora(lm, rank=4)
    held = {name: p.detach().clone() for name, p in lm.model.state_dict().items()}
    batches = maml_lora.pairs(0, 4, steps=1)
    losses = meta.train(lambda step: batches(0), method=method, steps=12, outer_lr=1e-2)
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(p, held[name]) for name, p in lm.model.state_dict().items())


def test_answers_after_inner_steps_leave_the_adapter_as_it_was():
    meta = MetaLora(models.load("tiny", device="cpu"), rank=2)
    (pair,) = maml_lora.pairs(0, 1, steps=1, split="held_out")(0)
    question = programs.questions(1, 0, "held_out", steps=1)[0]
    before = {name: p.detach().clone() for name, p in meta.theta.items()}
    for steps in (0, 1):
        assert maml_lora.answered(meta, [(question, pair[0])], steps=steps, inner_lr=0.1) in (
            [True],
            [False],
        )
    assert all(
        torch.equal(p, before[name]) for name, p in meta.model.named_parameters() if name in before
    )


def test_bad_methods_and_runaway_losses_are_named(meta):
    with pytest.raises(ValueError, match="method='reptile' is unknown"):
        meta.outer_gradient([], method="reptile", steps=1, inner_lr=0.1)
    with pytest.raises(ValueError, match="lower inner_lr=1e"):
        meta.train(maml_lora.pairs(0, 1, steps=1), method="maml", steps=3, inner_lr=1e200)
