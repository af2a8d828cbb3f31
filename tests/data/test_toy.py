"""Chains: right by construction, controls as they are named, and a training that is reproducible
and learns.
"""

import pytest
import torch

from tml_lib.data import toy
from tml_lib.measure import probe
from tml_lib.records import TaskBatch


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
        assert all(
            values[k] == apply(values[k - 1], operations[k]) for k in range(at + 1, toy.TERMS)
        )
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
        ends = recompute(toy.altered_trajectories(question, seed=0, avoid="0 3")["foreign"].text)[
            1
        ][-1]
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
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )
    assert losses != toy.train_reasoner(6, steps=25, batch=16)[1]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert not first.training


def test_the_models_words_and_probing_fit_together(chains):
    model, question = toy.new_model(0), chains[0]
    trajectory = toy.encode(question.trajectories[0].text)
    nll = probe.prefix_nll(
        model, toy.prompt_ids(question), trajectory, [toy.suffix(question.answer)], [0, 5]
    )
    assert nll.shape == (1, 2)
    assert len(trajectory) == toy.TERMS * toy.STEP_TOKENS
    with pytest.raises(KeyError, match="Wait"):
        toy.encode("+ 3 Wait")


# --- regression tasks -----------------------------------------------------------------------------


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_sinusoids_lie_on_one_sine_per_task():
    tasks = toy.sinusoids(200, 30, draw(), queries=30)
    assert len(tasks) == 200
    assert tasks.query_x.shape == (200, 30, 1)
    x = torch.cat([tasks.support_x, tasks.query_x], 1)
    y = torch.cat([tasks.support_y, tasks.query_y], 1)
    basis = torch.cat([torch.sin(x), torch.cos(x)], 2).double()  # A sin(x - p) lies in their span
    fitted = torch.linalg.lstsq(basis, y.double())
    assert float((basis @ fitted.solution - y).abs().max()) < 1e-5
    amplitude = fitted.solution.norm(dim=1).squeeze()
    phase = torch.atan2(-fitted.solution[:, 1, 0], fitted.solution[:, 0, 0])
    assert 0.1 <= float(amplitude.min()) < 0.4
    assert 4.7 < float(amplitude.max()) <= 5.0 + 1e-6
    assert -1e-6 <= float(phase.min()) < 0.1
    assert 3.0 < float(phase.max()) <= torch.pi + 1e-6
    assert float(x.abs().max()) <= 5


def test_linear_tasks_have_the_stated_noise_and_condition():
    tasks = toy.linear_tasks(400, 50, draw(1), noise=0.3, condition=9.0)
    solution = torch.linalg.lstsq(tasks.support_x.double(), tasks.support_y.double()).solution
    residual = tasks.support_x.double() @ solution - tasks.support_y.double()
    assert float(residual.square().sum() / (400 * 48)) == pytest.approx(0.09, rel=0.05)
    second = (tasks.support_x**2).mean((0, 1))
    assert float(second[0] / second[1]) == pytest.approx(9, rel=0.05)
    assert float(second.sum()) == pytest.approx(2, rel=0.05)
    plain = (toy.linear_tasks(400, 50, draw(1)).support_x ** 2).mean((0, 1))
    assert torch.allclose(plain, torch.ones(2), rtol=0.05)


def test_fewer_shots_are_the_first_ones_of_the_same_tasks():
    tasks = toy.sinusoids(3, 20, draw())
    few = tasks.with_shots(2)
    assert torch.equal(few.support_x, tasks.support_x[:, :2])
    assert torch.equal(few.query_y, tasks.query_y)
    for shots in (0, 21, -1):
        with pytest.raises(ValueError, match=f"shots={shots} must lie in 1..20"):
            tasks.with_shots(shots)


def test_foreign_support_and_selection():
    tasks = toy.sinusoids(3, 4, draw())
    foreign = tasks.foreign_support()
    assert torch.equal(foreign.support_y[1], tasks.support_y[0])
    assert torch.equal(foreign.query_y, tasks.query_y)
    assert torch.equal(tasks.select(torch.tensor([2])).query_x[0], tasks.query_x[2])
    with pytest.raises(ValueError, match="0 tasks"):
        tasks.select(slice(0, 0))


def test_an_overlap_of_support_and_query_is_refused():
    x = torch.arange(6.0).view(1, 6, 1)
    with pytest.raises(ValueError, match=r"share the points \[1, 2\].*give disjoint indices"):
        toy.support_query_split(x, x, [0, 1, 2], [1, 2, 5])
    with pytest.raises(ValueError, match=r"share the points \[3, 4\]"):
        toy.support_query_split(x, x, torch.arange(5), torch.arange(3, 6))
    with pytest.raises(ValueError, match=r"point 6 does not exist: the tasks have points 0\.\.5"):
        toy.support_query_split(x, x, [0], [6])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: toy.sinusoids(0, 5, draw()), "0 tasks"),
        (lambda: toy.sinusoids(5, 0, draw(), queries=3), "K=0 support points"),
        (lambda: toy.sinusoids(5, 3, draw(), queries=0), "0 query points"),
        (lambda: toy.linear_tasks(5, 3, draw(), noise=-0.1), "noise=-0.1 must not be negative"),
        (lambda: toy.linear_tasks(5, 3, draw(), condition=0.5), "condition=0.5 must be at least 1"),
        (
            lambda: TaskBatch(torch.zeros(2, 3), *[torch.zeros(2, 3, 1)] * 3),
            "are not \\(tasks, points, features\\)",
        ),
        (lambda: TaskBatch(*[torch.zeros(2, 3, 1)] * 3, torch.zeros(2, 4, 1)), "do not fit"),
        (
            lambda: TaskBatch(*[torch.zeros(2, 3, 1)] * 3, torch.full((2, 3, 1), torch.nan)),
            "query_y holds numbers that are not finite",
        ),
    ],
)
def test_bad_task_batches_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
