"""Optimisers: hand-written rules against torch.optim, the learned one against what it
starts from.
"""

import pytest
import torch
from torch.nn.functional import mse_loss

from tml_lib.data import toy
from tml_lib.meta import maml_mlp, optimisers


def new(seed):
    return maml_mlp.new_mlp([1, 8, 1], seed, dtype=torch.float64)


def single(seed):
    return maml_mlp.new_mlp([1, 8, 1], seed)


def batch(n=3):
    return toy.sinusoids(n, 6, torch.Generator().manual_seed(1)).to(dtype=torch.float64)


@pytest.mark.parametrize(
    ("rule", "reference"),
    [
        (optimisers.sgd(0.05), lambda parts: torch.optim.SGD(parts, lr=0.05)),
        (optimisers.adam(0.05), lambda parts: torch.optim.Adam(parts, lr=0.05)),
    ],
)
def test_rules_take_the_steps_of_torch(rule, reference):
    tasks = batch()
    networks = optimisers.fresh_networks(new, len(tasks), torch.Generator().manual_seed(2))
    found = optimisers.unroll(rule, networks, tasks, 7)
    assert len(found) == 8
    for task in range(len(tasks)):
        own = [
            maml_mlp.Layer(*(part[task].clone().requires_grad_() for part in layer))
            for layer in networks
        ]
        parts = [part for layer in own for part in layer]
        optimiser = reference(parts)
        for _ in range(7):
            optimiser.zero_grad()
            mse_loss(maml_mlp.forward(own, tasks.support_x[task]), tasks.support_y[task]).backward()
            optimiser.step()
        ours = [part[task] for layer in found[-1] for part in layer]
        torch.testing.assert_close(ours, [p.detach() for p in parts], rtol=1e-9, atol=1e-12)


def test_query_losses_are_those_of_the_networks():
    tasks = batch()
    networks = optimisers.fresh_networks(new, len(tasks), torch.Generator().manual_seed(2))
    losses = maml_mlp.query_losses(
        optimisers.unroll(optimisers.sgd(0.01), networks, tasks, 3), tasks
    )
    assert losses.shape == (3, 4)
    one = [maml_mlp.Layer(*(part[1] for part in layer)) for layer in networks]
    predicted = maml_mlp.forward(one, tasks.query_x[1])
    assert float(losses[1, 0]) == pytest.approx(float(mse_loss(predicted, tasks.query_y[1])))


def test_the_learned_rule_starts_as_a_normalised_momentum_step():
    rule = optimisers.LearnedOptimiser(0, lr=0.02)
    gradient = torch.tensor([[3.0, -0.001]])
    move, state = rule(gradient, torch.zeros(1, 2), 0, {})
    torch.testing.assert_close(move.detach(), torch.tensor([[-0.02, 0.02]]), rtol=1e-4, atol=1e-6)
    later, _ = rule(-gradient, torch.zeros(1, 2), 1, state)
    assert (later.detach().abs() < 0.02).all(), (
        "the running mean must damp a gradient that turns round"
    )


def test_training_makes_it_better_than_it_started_and_is_repeatable():
    def sample(draw):
        return toy.sinusoids(8, 10, draw)

    rule, losses = optimisers.train_optimiser(single, sample, meta_steps=150, steps=5, seed=0)
    unseen = toy.sinusoids(100, 10, torch.Generator().manual_seed(5), queries=50)
    networks = optimisers.fresh_networks(single, 100, torch.Generator().manual_seed(6))
    with torch.no_grad():
        ends = [
            float(
                maml_mlp.query_losses(optimisers.unroll(r, networks, unseen, 5), unseen)[
                    :, -1
                ].mean()
            )
            for r in (rule, optimisers.LearnedOptimiser(0))
        ]
    assert ends[0] < ends[1]
    assert optimisers.train_optimiser(single, sample, meta_steps=150, steps=5, seed=0)[1] == losses


def test_bad_settings_are_named():
    def few(draw):
        return toy.sinusoids(4, 6, draw)

    with pytest.raises(ValueError, match="steps=-2 is negative"):
        optimisers.unroll(optimisers.sgd(0.1), new(0), batch(), -2)
    with pytest.raises(ValueError, match="meta_steps=0, steps=5: both must be at least 1"):
        optimisers.train_optimiser(new, lambda draw: batch(), meta_steps=0, steps=5, seed=0)
    with pytest.raises(FloatingPointError, match="outer_lr"):
        optimisers.train_optimiser(single, few, meta_steps=50, steps=5, seed=0, outer_lr=1e30)
