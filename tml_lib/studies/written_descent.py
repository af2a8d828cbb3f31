"""The study behind notebook 03: a decoder that writes gradient descent.

Each seed is one record: everything is trained anew from it and measured on unseen regressions of
its own. Kept after every seed, so that an interrupted study resumes. Deviation from the paper: this
is not in it; it makes its Eq. 4 literal, in a model where both sides can be computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tml_lib.measure import parameter_paths
from tml_lib.meta import descent, maml_mlp
from tml_lib.records import TaskBatch
from tml_lib.studies import engine
from tml_lib.studies.engine import Study

META_BATCH = 25
UNSEEN = 256  # regressions that a seed is measured on
LONGEST = 4 * descent.STEPS
NOISES = (0.1, 0.3, 1.0, 3.0)
CONDITIONS = (1.0, 3.0, 10.0, 30.0, 100.0)
STARTS = (0.5, 1.0, 2.0, 3.0, 5.0)  # multiples of the training's random starts
DISPLACEMENT = 0.3  # of w_3, in each coordinate
QUERIES = 4  # of a test regression


def descent_record(seed: int, folder: Path, *, train_steps: int, maml_steps: int) -> dict:
    """One seed of G1-G3: the four arms of `descent`, MAML on the same tasks, and what each does on
    unseen regressions.

    'values': per-task estimands; the rest are means over tasks for figures.
    """
    models = {arm: descent.train(arm, seed, train_steps=train_steps)[0] for arm in descent.ARMS}
    writer, (batch, w_0), end = models["writer"], unseen_regressions(seed), descent.STEPS
    explicit = descent.gradient_descent(batch, w_0, LONGEST)
    written = descent.write(writer, batch, w_0, LONGEST)
    explicit_nll = descent.explicit_nll(batch, explicit)
    asked = descent.answer_nll(writer, batch, written)
    late_written = descent.write(models["late"], batch, w_0, end)
    late = descent.answer_nll(models["late"], batch, late_written)["answer"]
    foreign = descent.answer_nll(writer, batch, foreign_iterates(written[:, : end + 1]))
    foreign_late = descent.answer_nll(models["late"], batch, foreign_iterates(late_written))
    direct = direct_nll(models["direct"], batch)
    values = iterate_values(models, batch, w_0, explicit, written, seed) | {
        "G1.readout_fall": asked["readout"][:, 0] - asked["readout"][:, end],
        "G1.readout_gap": asked["readout"][:, end] - explicit_nll[:, end],
        "G2.fall": asked["answer"][:, 0] - asked["answer"][:, end],
        "G2.content": foreign["answer"][:, end] - asked["answer"][:, end],
        "G2.late_content": foreign_late["answer"][:, end] - late[:, end],
        "G2.late_over_direct": direct - late[:, end],
        "G2.over_direct": direct - asked["answer"][:, end],
        "G2.readout_content": foreign["readout"][:, end] - asked["readout"][:, end],
    }
    implicit, steps = implicit_values(writer, batch, written[:, : end + 1], seed)
    losses = {"explicit": explicit, "written": written}
    return {
        "values": {name: engine.rounded(found) for name, found in {**values, **implicit}.items()},
        "loss": {
            name: engine.mean_rounded(descent.query_loss(batch, w)) for name, w in losses.items()
        },
        "nll": {
            name: engine.mean_rounded(found)
            for name, found in {"explicit": explicit_nll, **asked, "late": late}.items()
        },
        "direct": float(direct.mean()),
        "maml": maml_comparison(writer, batch, seed, maml_steps),
        "step_error": {
            arm: engine.rounded(step_errors(models[arm], batch, w_0, arm))
            for arm in ("writer", "reciter")
        },
        "shifts": shift_tables(writer, seed),
        "implicit": steps,
    }


def iterate_values(
    models: dict[str, descent.Writer],
    batch: TaskBatch,
    w_0: torch.Tensor,
    explicit: torch.Tensor,
    written: torch.Tensor,
    seed: int,
) -> dict[str, torch.Tensor]:
    """G1's per-task estimands of the iterates themselves: whether each is a gradient step."""
    writer, end = models["writer"], descent.STEPS
    recited = descent.write(models["reciter"], batch, torch.zeros_like(w_0), end)
    noisy, conditioned = (
        unseen_regressions(seed, **shift) for shift in ({"noise": 1.0}, {"condition": 30.0})
    )
    return {
        "G1.iterate": relative_distance(written[:, end], explicit[:, end], w_0),
        "G1.response": response_error(writer, batch, written[:, : end + 1], seed),
        "G1.reciter_response": response_error(models["reciter"], batch, recited, seed),
        "G1.cosine": step_cosines(batch, written[:, : end + 1]).mean(1),
        "G1.longer": relative_distance(written[:, 2 * end], explicit[:, 2 * end], w_0),
        "G1.longest": relative_distance(written[:, LONGEST], explicit[:, LONGEST], w_0),
        "G1.noisy": end_distance(writer, *noisy),
        "G1.conditioned": end_distance(writer, *conditioned),
        "G1.far_start": end_distance(writer, batch, 3 * w_0),
    }


def unseen_regressions(seed: int, **shift: float) -> tuple[TaskBatch, torch.Tensor]:
    """Test regressions and random starts, drawn apart from those of training."""
    return descent.draw_tasks(
        UNSEEN, torch.Generator().manual_seed(4 * 10**6 + seed), queries=QUERIES, **shift
    )


def foreign_iterates(written: torch.Tensor) -> torch.Tensor:
    """Every task's own w_0 followed by the iterates of the task before it: (B, k + 1, d)."""
    return torch.cat([written[:, :1], written.roll(1, 0)[:, 1:]], 1)


def straight_iterates(written: torch.Tensor) -> torch.Tensor:
    """The same ends joined by a straight line in equal steps, which is not gradient descent: (B, k
    + 1, d).
    """
    share = torch.linspace(0, 1, written.shape[1])[None, :, None]
    return written[:, :1] + share * (written[:, -1:] - written[:, :1])


def first_queries(batch: TaskBatch, n: int) -> TaskBatch:
    """The first n tasks, each with its first query point only."""
    return TaskBatch(
        batch.support_x[:n], batch.support_y[:n], batch.query_x[:n, :1], batch.query_y[:n, :1]
    )


def relative_distance(
    found: torch.Tensor, wanted: torch.Tensor, start: torch.Tensor
) -> torch.Tensor:
    """|found - wanted|^2 of each task by the mean over tasks of |start - wanted|^2: (B, d) each ->
    (B,).
    """
    return ((found - wanted) ** 2).sum(1) / ((start - wanted) ** 2).sum(1).mean()


def end_distance(
    model: descent.Writer, batch: TaskBatch, w_0: torch.Tensor, steps: int = descent.STEPS
) -> torch.Tensor:
    """`relative_distance` of the last of so many written iterates from explicit gradient
    descent's.
    """
    explicit = descent.gradient_descent(batch, w_0, steps)[:, -1]
    return relative_distance(descent.write(model, batch, w_0, steps)[:, -1], explicit, w_0)


@torch.no_grad()
def response_error(
    model: descent.Writer, batch: TaskBatch, written: torch.Tensor, seed: int
) -> torch.Tensor:
    """Displace w_3 and see how w_4 follows: squared error against (I - inner_lr A) displacement, by
    its mean square, (B,).

    A gradient step from the iterate that stands there moves on by exactly that; an iterate that is
    worked out from the data and its place does not move at all (error 1).
    """
    draw = torch.Generator().manual_seed(5 * 10**6 + seed)
    displacement = DISPLACEMENT * torch.randn(len(batch), descent.D, generator=draw)
    displaced = written[:, :4].clone()
    displaced[:, 3] += displacement
    response = model(batch, displaced, ())[0][:, 3] - model(batch, written[:, :4], ())[0][:, 3]
    zero = torch.zeros_like(displacement)
    # A displacement
    curved = descent.support_gradient(batch, displacement) - descent.support_gradient(batch, zero)
    expected = displacement - descent.INNER_LR * curved
    return relative_distance(response, expected, zero)


def step_cosines(batch: TaskBatch, written: torch.Tensor) -> torch.Tensor:
    """Cosine of each written step with -∇L at the iterate where it starts: (B, k + 1, d)
    -> (B, k).
    """
    gradients = -descent.support_gradient(batch, written[:, :-1].contiguous())
    return torch.cosine_similarity(written.diff(dim=1), gradients, dim=2)


@torch.no_grad()
def step_errors(
    model: descent.Writer, batch: TaskBatch, w_0: torch.Tensor, arm: str
) -> torch.Tensor:
    """One step at a time along explicit gradient descent: mean squared error of each written step
    by its mean square, (K,).
    """
    explicit = descent.gradient_descent(
        batch, w_0 if arm == "writer" else torch.zeros_like(w_0), descent.STEPS
    )
    following = model(batch, explicit, ())[0][:, :-1]
    steps = explicit.diff(dim=1)
    return ((following - explicit[:, 1:]) ** 2).sum(2).mean(0) / (steps**2).sum(2).mean(0)


@torch.no_grad()
def direct_nll(model: descent.Writer, batch: TaskBatch) -> torch.Tensor:
    """L̂ of the model that was trained to answer at once, (B,) nats."""
    start = torch.zeros(len(batch), 1, descent.D)
    return descent.answer_nll(model, batch, start)["answer"][:, 0]


def maml_comparison(writer: descent.Writer, batch: TaskBatch, seed: int, meta_steps: int) -> dict:
    """MAML with k = 1..6 inner steps on the same regressions, beside the iterates written from the
    same starts.

    A linear model w·x + b; on mirrored tasks b stays 0, and since the mean squared error has twice
    the gradient of L, half the inner_lr makes the same steps. 'maml': query loss after k steps from
    the start that was trained for k; 'written': the same of iterates that the decoder writes from
    that start; 'start': the start's length.
    """
    found: dict[str, list[float]] = {"maml": [], "written": [], "start": []}
    for steps in range(1, descent.STEPS + 1):
        theta, _ = maml_mlp.meta_train(
            [maml_mlp.new_mlp((descent.D, 1), seed)[0]._replace(bias=torch.zeros(1, 1))],
            lambda draw: mirrored(descent.draw_tasks(META_BATCH, draw, queries=QUERIES)[0]),
            meta_steps=meta_steps,
            inner_lr=descent.INNER_LR / 2,
            steps=steps,
            seed=seed,
        )
        w_0 = theta[0].weight.T.expand(len(batch), -1)
        curve = maml_mlp.adaptation_curve(
            theta, mirrored(batch), inner_lr=descent.INNER_LR / 2, steps=steps
        )
        found["maml"].append(float(curve[:, -1].mean()))
        written = descent.write(writer, batch, w_0, steps)
        found["written"].append(float(descent.query_loss(batch, written)[:, -1].mean()))
        found["start"].append(float(w_0[0].norm()))
    return found


def mirrored(batch: TaskBatch) -> TaskBatch:
    """The same tasks with every point (x, y) also as (-x, -y): the slope's gradient is the same, a
    bias of 0 has none.
    """
    parts = (batch.support_x, batch.support_y, batch.query_x, batch.query_y)
    return TaskBatch(*(torch.cat([part, -part], 1) for part in parts))


def shift_tables(writer: descent.Writer, seed: int) -> dict[str, list[list[float]]]:
    """Beyond training: per setting (relative distance from gradient descent, query loss of it,
    query loss as written).
    """

    def row(batch: TaskBatch, w_0: torch.Tensor) -> list[float]:
        explicit = descent.gradient_descent(batch, w_0, descent.STEPS)[:, -1:]
        written = descent.write(writer, batch, w_0, descent.STEPS)[:, -1:]
        losses = [float(descent.query_loss(batch, w).mean()) for w in (explicit, written)]
        return [float(relative_distance(written[:, 0], explicit[:, 0], w_0).mean()), *losses]

    plain, w_0 = unseen_regressions(seed)
    return {
        "noise": [row(*unseen_regressions(seed, noise=noise)) for noise in NOISES],
        "condition": [
            row(*unseen_regressions(seed, condition=condition)) for condition in CONDITIONS
        ],
        "start": [row(plain, factor * w_0) for factor in STARTS],
    }


def implicit_values(
    writer: descent.Writer, batch: TaskBatch, written: torch.Tensor, seed: int
) -> tuple[dict, dict]:
    """C11g's measurements on this model: G3's per-task estimands, and means by step for the figure.

    The path of each task's own iterates under both questions, and under the readout those of
    another task and of a straight line between the same ends.
    """
    held: dict[str, dict[str, list]] = {}
    for name, iterates, kind in (
        ("readout", written, "readout"),
        ("answer", written, "answer"),
        ("foreign", foreign_iterates(written), "readout"),
        ("straight", straight_iterates(written), "readout"),
    ):
        found = [
            implicit_steps(writer, batch, iterates, index, kind, seed)
            for index in range(len(batch))
        ]
        held[name] = {
            key: np.array([getattr(steps, key) for steps in found]) for key in IMPLICIT_KEPT
        }
    own, falls = held["readout"], held["readout"]["best_gradient_drop"].sum(1).mean()
    values = {
        "G3.cosine": np.nanmean(own["cosine"], 1),
        "G3.over_foreign": np.nanmean(own["cosine"], 1) - np.nanmean(held["foreign"]["cosine"], 1),
        "G3.over_straight": (
            np.nanmean(own["cosine"], 1) - np.nanmean(held["straight"]["cosine"], 1)
        ),
        "G3.over_random": np.nanmean(own["cosine"], 1) - np.nanmean(own["cosine_random"], 1),
        "G3.share": own["drop"].sum(1) / falls,
        "G3.answer_cosine": np.nanmean(held["answer"]["cosine"], 1),
    }
    means = {
        name: {key: engine.rounded(np.nanmean(table, 0)) for key, table in tables.items()}
        for name, tables in held.items()
    }
    return values, means


IMPLICIT_KEPT = ("cosine", "cosine_random", "drop", "best_gradient_drop", "norm")


def implicit_steps(
    writer: descent.Writer,
    batch: TaskBatch,
    iterates: torch.Tensor,
    index: int,
    kind: str,
    seed: int,
) -> parameter_paths.PathSteps:
    """The implicit path of one task's iterates, its first query asked, step by step beside -∇L."""
    asked = descent.as_causal_lm(writer, batch, iterates, index)
    path = parameter_paths.path_from_ids(
        asked.lm, asked.prompt, asked.trajectory, asked.suffixes[kind], range(iterates.shape[1])
    )
    return parameter_paths.path_steps(asked.lm, path, seed=seed * 10**4 + index)


# --- the study ------------------------------------------------------------------------------------


def first_losses(seed: int, steps: int = engine.FIRST) -> list[float]:
    """The losses of the first steps of a seed's writer, for replays."""
    train_steps = DESCENT.settings["train_steps"]
    return descent.train("writer", seed, train_steps=train_steps, stop=steps)[1]


def _kept(records: Sequence[dict]) -> dict:
    """The records without the values of single tasks."""
    return {
        "records": [
            {name: part for name, part in record.items() if name != "values"} for record in records
        ]
    }


DESCENT = Study(
    "descent",
    descent_record,
    engine.by_seed(lambda record: record["values"]),
    _kept,
    settings={"train_steps": 3000, "maml_steps": 1000},
    first_losses=first_losses,
    replays=(engine.losses_again(first_losses, 15),),
)
