"""The kit's nouns: frozen records with the shape and unit of every array field."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Trajectory:
    """One reasoning trajectory t of one question.

    `kind` says where it comes from: 'gold' (the task's own), 'corrupted' (gold with one intermediate value changed and
    used consistently from there on), 'sampled' (written by a model), or a control: 'foreign' (another question's),
    'shuffled' (gold steps in another order), 'copying' (unrelated text that ends in the answer).
    """

    text: str
    kind: str
    answer: str | None = None  # the answer that the trajectory itself states, if any
    correct: bool | None = None  # whether that answer is right; None where the notion does not apply
    first_error: int | None = None  # character offset of the first wrong value, where it is known by construction


@dataclass(frozen=True)
class Question:
    """One question q with its verified answer a: a *task* in the meta-learning reading (RaML §2.1)."""

    id: str
    text: str
    answer: str
    template: str  # questions of one template differ only in names and numbers
    trajectories: tuple[Trajectory, ...] = ()


@dataclass(frozen=True, eq=False)
class ProbeCurve:
    """L̂ after prefixes of one trajectory: the pseudo-gradient curve (RaML §4.1, Algorithm 3)."""

    positions: np.ndarray  # (n,) int: i, the number of trajectory tokens in context; 0 = none
    answer_nll: np.ndarray  # (n,) float64: L̂_i, mean over the answer's own tokens, nats per token
    length: int  # |t| in tokens
    answer: str
    tokens: tuple[str, ...] = ()  # (|t|,) the text of each trajectory token
    suffix_nll: np.ndarray | None = None  # (n,) float64: mean over template and answer tokens, nats per token
    stated_at: int | None = None  # largest i whose prefix does not yet state the answer; None where t never states it
    meta: dict = field(default_factory=dict)

    def at(self, i: int) -> float:
        """L̂ after exactly i tokens, in nats per token; a position that was not probed is a KeyError."""
        where = np.flatnonzero(self.positions == i)
        if not len(where):
            raise KeyError(f"L̂ was not probed after {i} tokens; the probed positions are {self.positions.tolist()}")
        return float(self.answer_nll[where[0]])

    @property
    def fall(self) -> float:
        """L̂_0 - L̂_|t|: what the whole trajectory buys, in nats per token (positive = the answer became likelier)."""
        return float(self.answer_nll[0] - self.answer_nll[-1])

    def before_statement(self) -> ProbeCurve:
        """The same curve, cut where the answer is first stated: what remains cannot be copying."""
        if self.stated_at is None:
            return self
        keep = self.positions <= self.stated_at
        suffix = None if self.suffix_nll is None else self.suffix_nll[keep]
        return ProbeCurve(
            self.positions[keep],
            self.answer_nll[keep],
            self.stated_at,
            self.answer,
            self.tokens[: self.stated_at],
            suffix,
            None,
            self.meta,
        )


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval and the number of independent units (questions or seeds) behind it."""

    estimate: float
    low: float
    high: float
    n: int
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.estimate:.3g} [{self.low:.3g}, {self.high:.3g}] (n={self.n})"
