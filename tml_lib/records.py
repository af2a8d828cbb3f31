"""The kit's nouns: frozen records with the shape and unit of every array field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Trajectory:
    """One reasoning trajectory t of one question.

    `kind` says where it comes from: 'gold' (the task's own), 'corrupted' (gold with one
    intermediate value changed and used consistently from there on), 'sampled' (written by a model;
    in a study a wrong one, beside 'own_right', a right one), a style of `programs.STYLES`, or a
    control: 'foreign' (another question's), 'foreign_own' (what the model wrote rightly to another
    question), 'shuffled' (gold steps in another order), 'copying' (unrelated text that ends in the
    answer).
    """

    text: str
    kind: str
    answer: str | None = None  # the answer that the trajectory itself states, if any
    # whether that answer is right; None where the notion does not apply
    correct: bool | None = None
    # character offset of the first wrong value, where it is known by construction
    first_error: int | None = None


@dataclass(frozen=True)
class Question:
    """One question q with its verified answer a: a *task* in the meta-learning reading
    (RaML §2.1).
    """

    id: str
    text: str
    answer: str
    template: str  # questions of one template differ only in names and numbers
    trajectories: tuple[Trajectory, ...] = ()


@dataclass(frozen=True, eq=False)
class TaskBatch:
    """B regression tasks: support sets for the inner loop, query sets for the outer loss (Finn et
    al. 2017).

    ValueError where there are no tasks, no support or query points, or shapes that do not belong
    together.
    """

    support_x: torch.Tensor  # (B, K, d) inputs; K is the number of shots
    support_y: torch.Tensor  # (B, K, 1) targets
    query_x: torch.Tensor  # (B, Q, d)
    query_y: torch.Tensor  # (B, Q, 1)

    def __post_init__(self):
        shapes = [
            tuple(t.shape) for t in (self.support_x, self.support_y, self.query_x, self.query_y)
        ]
        if any(len(shape) != 3 for shape in shapes) or len({shape[0] for shape in shapes}) != 1:
            raise ValueError(
                f"shapes {shapes} are not (tasks, points, features) of the same tasks: stack one"
                " row per task"
            )
        (tasks, shots, width), (_, queries, query_width) = shapes[0], shapes[2]
        if tasks == 0:
            raise ValueError("0 tasks: an outer loss is a mean over tasks, give at least 1")
        if shots == 0:
            raise ValueError(
                "K=0 support points leave the inner loop without a loss: give at least 1 (steps=0"
                " skips the loop)"
            )
        if queries == 0:
            raise ValueError("0 query points leave the outer loop without a loss: give at least 1")
        if (
            shapes[1] != (tasks, shots, 1)
            or shapes[3] != (tasks, queries, 1)
            or width != query_width
        ):
            raise ValueError(
                f"shapes {shapes} do not fit: targets have one feature, support and query inputs"
                " the same number"
            )
        for name in ("support_x", "support_y", "query_x", "query_y"):
            if not bool(getattr(self, name).isfinite().all()):
                raise ValueError(
                    f"{name} holds numbers that are not finite: every loss would be NaN; look at"
                    " how it was made"
                )

    def __len__(self) -> int:
        return len(self.support_x)

    def with_shots(self, shots: int) -> TaskBatch:
        """The same tasks and queries with only the first `shots` support points; ValueError where
        there are fewer.
        """
        if not 1 <= shots <= self.support_x.shape[1]:
            raise ValueError(
                f"shots={shots} must lie in 1..{self.support_x.shape[1]}, the support points of"
                " these tasks"
            )
        return TaskBatch(
            self.support_x[:, :shots], self.support_y[:, :shots], self.query_x, self.query_y
        )

    def select(self, tasks: torch.Tensor | slice) -> TaskBatch:
        """Some of the tasks: indices, a mask or a slice."""
        return TaskBatch(
            self.support_x[tasks], self.support_y[tasks], self.query_x[tasks], self.query_y[tasks]
        )

    def foreign_support(self) -> TaskBatch:
        """Every task with the support set of the one before it: a control that must not help."""
        return TaskBatch(
            self.support_x.roll(1, 0), self.support_y.roll(1, 0), self.query_x, self.query_y
        )

    def to(
        self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
    ) -> TaskBatch:
        """The same tasks in another precision or on another device."""
        parts = (self.support_x, self.support_y, self.query_x, self.query_y)
        return TaskBatch(*(part.to(dtype=dtype, device=device) for part in parts))


@dataclass(frozen=True, eq=False)
class ProbeCurve:
    """L̂ after prefixes of one trajectory: the pseudo-gradient curve (RaML §4.1, Algorithm 3)."""

    positions: np.ndarray  # (n,) int: i, the number of trajectory tokens in context; 0 = none
    answer_nll: np.ndarray  # (n,) float64: L̂_i, mean over the answer's own tokens, nats per token
    length: int  # |t| in tokens
    answer: str
    tokens: tuple[str, ...] = ()  # (|t|,) the text of each trajectory token
    # largest i whose prefix does not yet state the answer; None where t never states it
    stated_at: int | None = None
    meta: dict = field(default_factory=dict)

    def at(self, i: int) -> float:
        """L̂ after exactly i tokens, in nats per token; a position that was not probed is a
        KeyError.
        """
        where = np.flatnonzero(self.positions == i)
        if not len(where):
            raise KeyError(
                f"L̂ was not probed after {i} tokens; the probed positions are"
                f" {self.positions.tolist()}"
            )
        return float(self.answer_nll[where[0]])

    @property
    def unstated(self) -> int:
        """Tokens before the answer is first stated; all of them where it never is."""
        return self.length if self.stated_at is None else self.stated_at

    @property
    def fall(self) -> float:
        """L̂_0 - L̂_|t|: what the whole trajectory buys, in nats per token (positive = the answer
        became likelier).
        """
        return float(self.answer_nll[0] - self.answer_nll[-1])


@dataclass(frozen=True, eq=False)
class Landscape:
    """L̂ over a grid of a plane in parameter space (RaML §4.1, Algorithm 4)."""

    first: np.ndarray  # (n,) coordinates along the first direction
    second: np.ndarray  # (m,) coordinates along the second direction
    nll: np.ndarray  # (n, m, questions) float64: mean over the answer's own tokens, nats per token


@dataclass(frozen=True, eq=False)
class Arms:
    """The accuracies of the two arms that a test compares, question by question: shares of right
    answers, Pass@k or mG-Pass@k. As an array it is their difference, first minus second.
    """

    first: np.ndarray  # (Q,) in 0..1
    second: np.ndarray  # (Q,) in 0..1; NaN in either where the test does not ask the question

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.subtract(*self.paired(), dtype=dtype)

    def paired(self) -> np.ndarray:
        """(2, Q): both arms, NaN where either is."""
        both = np.array([self.first, self.second], dtype=float)
        return np.where(np.isnan(both).any(0), np.nan, both)

    def tolist(self) -> dict[str, list[float]]:
        """As JSON holds it: `Arms(**held)` makes it again."""
        first, second = self.paired().tolist()
        return {"first": first, "second": second}


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval and the number of independent units (questions or seeds)
    behind it.
    """

    estimate: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.estimate:.3g} [{self.low:.3g}, {self.high:.3g}] (n={self.n})"
