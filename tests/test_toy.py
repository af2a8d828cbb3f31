"""Chains: right by construction, controls as they are named, and a training that is reproducible and learns."""

import pytest
import torch

from tml_lib import probe, toy


def recompute(text):
    """(operations, values as written) of a trajectory, read back from its words."""
    words = text.split()
    steps = [words[k : k + toy.STEP_TOKENS] for k in range(0, len(words), toy.STEP_TOKENS)]
    return [(s[0], int(s[1])) for s in steps], [int(s[3] + s[4]) for s in steps]


def apply(value, operation):
    operator, number = operation
    return (value + number if operator == "+" else value * number) % 13


@pytest.fixture(scope="module")
def chains():
    return toy.chains(80, seed=3)


def test_gold_executes_its_question_step_by_step(chains):
    for question in chains:
        operations, values = recompute(question.trajectories[0].text)
        value = 1
        for operation, written in zip(operations, values, strict=True):
            value = apply(value, operation)
            assert written == value
        assert question.answer == f"{value // 10} {value % 10}"
        assert " ".join(f"{o} {x}" for o, x in operations) + " =" == question.text
        assert question.template == "".join(o for o, _ in operations)
        assert value not in values[:-1]


def test_the_first_questions_do_not_depend_on_how_many_are_asked_for():
    assert toy.chains(3, seed=1) == toy.chains(9, seed=1)[:3]
    assert toy.chains(3, seed=1) != toy.chains(3, seed=2)
    with pytest.raises(ValueError, match="n=0 questions"):
        toy.chains(0)


def test_controls_are_what_they_are_called(chains):
    for question in chains:
        made = toy.altered_trajectories(question, seed=0)
        assert len({len(t.text.split()) for t in made.values()}) == 1
        gold = recompute(made["gold"].text)
        operations, values = recompute(made["corrupted"].text)
        at = next(k for k in range(toy.TERMS) if values[k] != gold[1][k])
        assert operations == gold[0]
        assert made["corrupted"].first_error == len("+ 3 = 0 4 ") * at + len("+ 3 = ")
        assert all(values[k] == apply(values[k - 1], operations[k]) for k in range(at + 1, toy.TERMS))
        assert gold[1][-1] not in values
        assert values[-1] not in values[:-1]
        operations, values = recompute(made["shuffled"].text)
        steps = list(zip(operations, values, strict=True))
        assert sorted(steps) == sorted(zip(*gold, strict=True))
        assert steps != list(zip(*gold, strict=True))
        assert steps[-1][1] == gold[1][-1]
        foreign = recompute(made["foreign"].text)
        assert foreign[0] != gold[0]
        assert gold[1][-1] not in foreign[1]
        ends = recompute(toy.altered_trajectories(question, seed=0, avoid="0 3")["foreign"].text)[1][-1]
        assert ends != 3


@pytest.mark.parametrize("same", [True, False])
def test_siblings_share_the_template_or_do_not(chains, same):
    for question in chains:
        other = toy.sibling(question, same_template=same)
        assert (other.template == question.template) is same
        assert other.answer != question.answer


def test_training_is_by_seed_and_lowers_the_loss():
    first, losses = toy.train_reasoner(5, steps=25, batch=16)
    again, same = toy.train_reasoner(5, steps=25, batch=16)
    assert losses == same
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert losses != toy.train_reasoner(6, steps=25, batch=16)[1]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert not first.training


def test_the_models_words_and_probing_fit_together(chains):
    model, question = toy.new_model(0), chains[0]
    trajectory = toy.encode(question.trajectories[0].text)
    nll, _ = probe.prefix_nll(model, toy.prompt_ids(question), trajectory, [toy.suffix(question.answer)], [0, 5])
    assert nll.shape == (1, 2)
    assert len(trajectory) == toy.TERMS * toy.STEP_TOKENS
    with pytest.raises(KeyError, match="Wait"):
        toy.encode("+ 3 Wait")
