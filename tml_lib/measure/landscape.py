"""The answer's loss around θ: over random directions (RaML Algorithm 4), and over the plane that a
trajectory's path spans.

The paper draws L̂ of I ⊕ q ⊕ a over two random directions and lays the trajectory on it by matching
contours; no parameter of the path is computed. `random_plane` and `landscape` redo the surface,
with the paper's scaling (each tensor as long as the parameter) or filter normalisation (each row of
a matrix as long as the parameter's, vectors left alone; Li et al. 2018). `path_plane` and
`path_landscape` draw what the paper could not: the exact updates θ'_0, …, θ'_|t| of
`parameter_paths`, projected on their own first two principal directions, over the loss in that very
plane. All of it lies in the last layer's output projection. There an update ΔW = Dᵀ V adds D to the
layer's output on the answer's rows, so a point of the plane costs a head and no more.

Deviations from the paper: weights are written as θ + u₁ d₁ + u₂ d₂ beside the model's own, which
are never touched, so that not a bit of them changes (adding and subtracting in place drifts); many
questions share a pass; the Gaussian numbers of a 16-bit model are rounded to steps of 1/32.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm
from transformers.pytorch_utils import Conv1D

from tml_lib.lm import placed
from tml_lib.lm.answers import encode
from tml_lib.lm.models import LanguageModel
from tml_lib.measure.answer_rows import answer_nll, batched
from tml_lib.measure.parameter_paths import ParameterPath, answer_loss
from tml_lib.records import Landscape, Question

SCALINGS = ("filter", "tensor")


def axis(points: int, reach: float = 1.0) -> np.ndarray:
    """`points` coordinates from -reach to reach with 0 among them; ValueError for an even number or
    none.

    A single point is θ itself: a warning says that it makes no landscape.
    """
    if points < 1 or points % 2 == 0 or reach <= 0:
        raise ValueError(
            f"points={points}, reach={reach}: give an odd number of points (θ is one) and a"
            " positive reach"
        )
    if points == 1:
        warnings.warn(
            "a grid of one point holds the loss at θ alone: give 3 or more points to see a"
            " landscape",
            stacklevel=2,
        )
        return np.zeros(1)
    return np.linspace(-reach, reach, points)


# --- random directions ----------------------------------------------------------------------------


BLOCK = 2**19  # numbers of a weight that are displaced at once
STEP = 1 / 32  # of the Gaussian numbers of a 16-bit model's directions


class Direction(Mapping):
    """A tensor per parameter name. A 16-bit model's is made when it is asked for, of 8-bit numbers
    and a scale: two directions then take as much memory as the model.
    """

    def __init__(self):
        self._held: dict[str, tuple[torch.Tensor, torch.Tensor, torch.dtype]] = {}

    def put(self, name: str, noise: torch.Tensor, size: torch.Tensor, dtype: torch.dtype) -> None:
        """Keep noise · size as a tensor of that dtype."""
        if dtype.itemsize == 2:
            whole = torch.empty(noise.shape, dtype=torch.int8, device=noise.device)
            for rows in _blocks(noise):
                whole[rows] = (noise[rows] / STEP).round_().clamp_(-127, 127)
            self._held[name] = whole, size * STEP, dtype
        else:
            self._held[name] = (noise * size).to(dtype), torch.ones(()), dtype

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.rows(name, ...)

    def rows(self, name: str, rows) -> torch.Tensor:
        """Some rows of a parameter's tensor."""
        held, size, dtype = self._held[name]
        if held.dtype == dtype:
            return held[rows]
        return (held[rows].float() * size.expand_as(held)[rows]).to(dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


@dataclass(frozen=True, eq=False)
class Plane:
    """Two directions in parameter space, each a tensor per parameter name; parameters without one
    stay where they are.
    """

    first: Direction
    second: Direction


def random_plane(model: torch.nn.Module, seed: int, *, scaling: str = "filter") -> Plane:
    """Two Gaussian directions without embeddings, scaled by 'filter' (Li et al. 2018) or by
    'tensor' (RaML Algorithm 4).

    Experts kept in one tensor have a filter per expert and unit: (expert, unit, input), or (expert,
    input, unit) where their module says `is_transposed` (gpt-oss); Llama 4's does not say it.
    Raises ValueError for another scaling.
    """
    if scaling not in SCALINGS:
        raise ValueError(f"scaling={scaling!r} is unknown: choose one of {', '.join(SCALINGS)}")
    head = model.get_output_embeddings()
    draw = torch.Generator().manual_seed(seed)
    sides = Direction(), Direction()
    for owner, module in model.named_modules():
        if module is head or isinstance(module, torch.nn.Embedding):
            continue
        transposed = isinstance(module, Conv1D) or getattr(module, "is_transposed", False)
        inputs = -2 if transposed else -1  # a filter runs over a unit's inputs
        for own, p in module.named_parameters(recurse=False):
            name = f"{owner}.{own}" if owner else own
            p = placed.weight(model, name)
            for side in sides:
                # the same whatever the scaling
                noise = torch.randn(p.shape, generator=draw).to(p.device)
                if scaling == "filter" and (p.ndim < 2 or own.endswith("bias")):
                    continue
                over = {"dim": inputs, "keepdim": True} if scaling == "filter" else {}
                size = p.detach().norm(**over, dtype=torch.float32)
                size = size / noise.norm(**over).clamp(min=1e-12)
                side.put(name, noise, size, p.dtype)
    return Plane(*sides)


@contextlib.contextmanager
def displaced(model: torch.nn.Module, plane: Plane) -> Iterator:
    """A function that puts the model at θ + u₁ d₁ + u₂ d₂. Each module has its displaced weights
    for the time of its forward pass only, so that one module's are in memory beside the model's
    own; after a pass, also one that an exception ended, its own tensors are back.
    """
    known = {name for name, _ in model.named_parameters()}
    if missing := sorted(set(plane.first) - known):
        raise ValueError(
            f"the model has no parameter {missing[0]}: the plane was made for another one"
        )
    point, hooks = [0.0, 0.0], contextlib.ExitStack()

    @torch.no_grad()
    def put(own: contextlib.ExitStack, names: Sequence[str], *_) -> None:
        own.enter_context(placed.replaced(model, {name: moved(name) for name in names}))

    def moved(name: str) -> torch.Tensor:
        data = placed.weight(model, name)
        found = torch.empty_like(data)
        for rows in _blocks(data):
            part = data[rows].to(torch.float32, copy=True)
            for side, reach in zip((plane.first, plane.second), point, strict=True):
                part.add_(side.rows(name, rows), alpha=reach)
            found[rows] = part
        return found

    def move(first: float, second: float) -> None:
        point[:] = first, second

    for owner, module in model.named_modules():
        start = f"{owner}." if owner else ""
        names = [start + k for k, _ in module.named_parameters(recurse=False)]
        if names := [name for name in names if name in plane.first]:
            own = hooks.enter_context(contextlib.ExitStack())
            before = functools.partial(put, own, names)
            hooks.callback(module.register_forward_pre_hook(before).remove)
            after = functools.partial(_close, own)
            hooks.callback(module.register_forward_hook(after, always_call=True).remove)
    with hooks:
        yield move


def _blocks(data: torch.Tensor) -> list:
    """Indices of a tensor's rows, few enough for the processor's cache: in one piece, copies in
    float32 take most of a pass's time.
    """
    if data.ndim < 2:
        return [...]
    step = max(BLOCK // data[0].numel(), 1)
    return [slice(start, start + step) for start in range(0, len(data), step)]


def _close(own: contextlib.ExitStack, *_) -> None:
    own.close()


def landscape(
    lm: LanguageModel,
    questions: Sequence[Question],
    plane: Plane,
    first: np.ndarray,
    second: np.ndarray,
    *,
    trajectories: Sequence[str] | None = None,
    batch_size: int = 16,
    progress: bool = False,
) -> Landscape:
    """L̂ of every question's answer at θ + u₁ d₁ + u₂ d₂ for u₁ in `first`, u₂ in `second`, in nats
    per token.

    trajectories: one per question to stand in context; none by default, as in the paper. The
    weights are bit-identical afterwards, also after an interrupt. Raises ValueError without
    questions, or for a plane of another model.
    """
    if not questions:
        raise ValueError("0 questions have no loss to draw: give at least one")
    texts = trajectories if trajectories is not None else [""] * len(questions)
    rows = []
    for question, text in zip(questions, texts, strict=True):
        encoded = encode(lm.tokenizer, lm.prompt(question.text), text, [question.answer])
        rows.append(([*encoded.prompt, *encoded.trajectory], encoded.suffixes[0]))
    batches = batched(lm.model, rows, batch_size)
    nll = np.full((len(first), len(second), len(questions)), np.nan)
    points = [(i, j) for i in range(len(first)) for j in range(len(second))]
    with displaced(lm.model, plane) as move:
        for i, j in tqdm(points, desc="landscape", unit="point", disable=not progress, leave=False):
            move(float(first[i]), float(second[j]))
            for batch in batches:
                nll[i, j, batch.places] = answer_nll(lm.model, batch)
    return Landscape(np.asarray(first), np.asarray(second), nll)


def contour_match(found: Landscape, nll: Sequence[float]) -> np.ndarray:
    """Where the paper's figure puts a curve of L̂ on a landscape: time along the first direction,
    and along the second the point whose loss comes nearest. (n,) nats per token -> (n, 2).

    No parameter of the trajectory's enters: any numbers within the landscape's range can be drawn
    like this.
    """
    where = np.linspace(found.first[0], found.first[-1], len(nll))
    surface = found.nll.mean(-1)
    # (m, n)
    columns = np.array(
        [np.interp(where, found.first, surface[:, j]) for j in range(len(found.second))]
    )
    return np.stack([where, found.second[np.abs(columns - np.asarray(nll)).argmin(0)]], 1)


def frame(points: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of a grid that holds a path's points (n, 2), `count` along each direction, with
    room of 0.3 of the path's width around them.
    """
    low, high = points.min(0), points.max(0)
    room = 0.3 * (high - low).max()
    return tuple(np.linspace(a - room, b + room, count) for a, b in zip(low, high, strict=True))


# --- the path's own plane -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PathPlane:
    """The plane of largest spread of a path's updates, in coordinates of Frobenius length, and the
    path's points in it.
    """

    # (|a|, d) float64: the mean of D_i, the last layer's change on the answer's rows
    centre: torch.Tensor
    # (2, |a|, d) float64: changes whose updates Dᵀ V are orthogonal and of length 1
    directions: torch.Tensor
    points: np.ndarray  # (n, 2) coordinates of θ'_i about the path's mean
    explained: np.ndarray  # (2,) share of the path's variance along each direction


def path_plane(path: ParameterPath, *, protect: bool = True) -> PathPlane:
    """Principal directions of θ'_0, …, θ'_|t| about their mean, lengths measured in weight space.

    protect: the updates are those that leave the prompt's rows alone. Raises ValueError for fewer
    than three points, a path whose points coincide, or one without exact updates.
    """
    if len(path.positions) < 3:
        raise ValueError(
            f"a path over positions {path.positions.tolist()} spans no plane: give at least three"
            " positions"
        )
    if not path.exact(protect=protect):
        raise ValueError(
            "the rows asked of are not independent at the model's precision, so the path's updates"
            " are not exact"
        )
    V = path.right(protect=protect)
    changes = path.states - path.start
    centre = changes.mean(0)
    spread = changes - centre
    gram = torch.einsum("nad,ab,mbd->nm", spread, V @ V.T, spread)
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    if values[1] <= values.sum() * 1e-12:
        raise ValueError(
            "the path's points lie on a line or coincide: a plane needs three that do not"
        )
    sizes = values[:2].sqrt()
    directions = torch.einsum("nk,nad->kad", vectors[:, :2] / sizes, spread)
    points = vectors[:, :2] * sizes
    # the path runs to the right and up
    flip = torch.where(points[-1] < points[0], -1.0, 1.0).to(points.dtype)
    return PathPlane(
        centre,
        directions * flip[:, None, None],
        (points * flip).numpy(),
        (values[:2] / values.sum()).numpy(),
    )


def path_landscape(
    model: torch.nn.Module,
    path: ParameterPath,
    plane: PathPlane,
    first: np.ndarray,
    second: np.ndarray,
) -> Landscape:
    """The loss of the answer without the trajectory over a path's plane: first, second are
    coordinates as in `points`.
    """
    grid = np.stack(np.meshgrid(first, second, indexing="ij"), -1).reshape(-1, 2)
    nll = path_losses(model, path, plane, grid)
    return Landscape(np.asarray(first), np.asarray(second), nll.reshape(len(first), len(second), 1))


def path_losses(
    model: torch.nn.Module, path: ParameterPath, plane: PathPlane, points: np.ndarray
) -> np.ndarray:
    """The same loss at some points of the plane, (n, 2) -> (n,) nats per token."""
    where = torch.from_numpy(np.asarray(points)).double()
    states = path.start + plane.centre + torch.einsum("nk,kad->nad", where, plane.directions)
    return answer_loss(model, states, path.targets).numpy()
