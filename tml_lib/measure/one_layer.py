"""RaML's one-layer transformer (Eq. 5 and 6), and the exact updates of its weights that stand for a
trajectory.

Rows are tokens, as in the paper: E_l (|l| × d) embeds instruction and question, E_t (|t| × d) the
trajectory. Without the trajectory the model reads E_l and answers at its last row (Eq. 5); with it,
it reads [E_l; E_t] and answers at the last row of E_t (Eq. 6 for one token). Every update below
makes the first output equal to the second.

Deviations from the paper: its own update (Eq. 16-19) does not conform and is kept, in the nearest
reading that does, as `printed_update`; the others are the value-side one and that of Dherin et al.
(arXiv 2507.16003). `linear_attention` is the construction of von Oswald et al. (arXiv 2212.07677).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import gelu


@dataclass(frozen=True, eq=False)
class OneLayer:
    """θ of Eq. 5: one attention head and a two-layer FFN.

    residual: query and attention output form a stream, to which the FFN adds. linear: attention
    without the softmax.
    """

    W_q: Tensor  # (d, d)
    W_k: Tensor  # (d, d)
    W_v: Tensor  # (d, d)
    W_1: Tensor  # (d, d_ff)
    b_1: Tensor  # (d_ff,)
    W_2: Tensor  # (d_ff, d)
    b_2: Tensor  # (d,)
    residual: bool = False
    linear: bool = False

    def attention_weights(self, query: Tensor, context: Tensor) -> Tensor:
        """Softmax(query W_q W_kᵀ contextᵀ): query (d,), context (n, d) -> (n,)."""
        scores = query @ self.W_q @ (context @ self.W_k).T
        return scores if self.linear else torch.softmax(scores, dim=-1)

    def attention(self, query: Tensor, context: Tensor) -> Tensor:
        """What enters the FFN, (d,): the attention output, with the residual stream plus the query
        itself.
        """
        out = self.attention_weights(query, context) @ context @ self.W_v
        return query + out if self.residual else out

    def __call__(self, query: Tensor, context: Tensor) -> Tensor:
        """The activation of Eq. 5, (d,), at a query row that reads a context: gelu stands for σ."""
        z = self.attention(query, context)
        out = gelu(z @ self.W_1 + self.b_1) @ self.W_2 + self.b_2
        return z + out if self.residual else out


def random_layer(d: int, d_ff: int, *, seed: int, residual: bool = False) -> OneLayer:
    """A layer with Gaussian weights in float64."""
    draw = _generator(seed)
    shapes = {
        "W_q": (d, d),
        "W_k": (d, d),
        "W_v": (d, d),
        "W_1": (d, d_ff),
        "b_1": (d_ff,),
        "W_2": (d_ff, d),
        "b_2": (d,),
    }
    return OneLayer(
        **{name: draw(*shape) / shape[0] ** 0.5 for name, shape in shapes.items()},
        residual=residual,
    )


def random_tokens(n: int, d: int, *, seed: int) -> Tensor:
    """Embeddings of n tokens, (n, d), Gaussian, float64."""
    return _generator(seed)(n, d)


def _generator(seed: int):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


def with_trajectory(theta: OneLayer, E_l: Tensor, E_t: Tensor) -> Tensor:
    """Eq. 6: the output at the trajectory's last token, which reads instruction, question and
    trajectory.
    """
    return theta(E_t[-1], torch.cat([E_l, E_t]))


def without_trajectory(theta: OneLayer, E_l: Tensor) -> Tensor:
    """Eq. 5: the output at the question's last token."""
    return theta(E_l[-1], E_l)


def rank_one(x: Tensor, W: Tensor, target: Tensor) -> Tensor:
    """The smallest ΔW with x (W + ΔW) = target: xᵀ (target - x W) / ‖x‖². x: (m,), W: (m, n),
    target: (n,).
    """
    if not (size := x @ x) > 0:
        raise ValueError("x = 0 is mapped to 0 by every matrix: no update reaches another target")
    return torch.outer(x, target - x @ W) / size


def value_update(theta: OneLayer, E_l: Tensor, E_t: Tensor) -> OneLayer:
    """Change W_v by rank one so that the attention output is that with the trajectory. ValueError
    for residual layers.
    """
    if theta.residual:
        raise ValueError(
            "residual=True: the query itself is in the stream, which W_v does not carry; use"
            " ffn_update"
        )
    wanted = theta.attention(E_t[-1], torch.cat([E_l, E_t]))
    a = theta.attention_weights(E_l[-1], E_l) @ E_l
    return replace(theta, W_v=theta.W_v + rank_one(a, theta.W_v, wanted))


def ffn_update(theta: OneLayer, E_l: Tensor, E_t: Tensor) -> OneLayer:
    """Change W_1 by rank one, and with a residual stream b_2, so that the FFN sees the trajectory
    (Dherin et al. 2025).
    """
    z, wanted = theta.attention(E_l[-1], E_l), theta.attention(E_t[-1], torch.cat([E_l, E_t]))
    b_2 = theta.b_2 + (wanted - z) if theta.residual else theta.b_2
    return replace(theta, W_1=theta.W_1 + rank_one(z, theta.W_1, wanted @ theta.W_1), b_2=b_2)


def query_update(theta: OneLayer, E_l: Tensor, E_t: Tensor) -> OneLayer:
    """The proof's first part, with P turned round: W_q' = P W_q, E_l[-1] P = E_t[-1]; the token's
    key and value are ignored.
    """
    q = E_l[-1]
    return replace(theta, W_q=torch.outer(q, E_t[-1]) / (q @ q) @ theta.W_q)


def _combination(E_l: Tensor, E_t: Tensor) -> Tensor:
    """C (|t|, |l|) with C E_l nearest to E_t."""
    return torch.linalg.lstsq(E_l.T, E_t.T, driver="gelsd").solution.T


def printed_update(theta: OneLayer, E_l: Tensor, E_t: Tensor) -> OneLayer:
    """The proof's update (Eq. 16-19) in the nearest reading that conforms, for one trajectory
    token.

    With E_t ≈ C E_l (least squares) and F = [I, Cᵀ], all |l|+1 keys are Fᵀ E_l W_k and all values
    Fᵀ E_l W_v. They meet in W_kᵀ E_lᵀ F Fᵀ E_l W_v, so the values can carry both: W_v' = E_l† F Fᵀ
    E_l W_v, W_k' = W_k. (The printed E_l† Fᵀ E_l W multiplies d × |l| by (|l|+1) × |l|.) Without
    the softmax this is exact where the least squares are and E_l has full column rank; with it, it
    is not.
    """
    F = torch.cat([torch.eye(len(E_l), dtype=E_l.dtype), _combination(E_l, E_t).T], dim=1)
    fold = torch.linalg.pinv(E_l) @ F @ F.T @ E_l
    return replace(query_update(theta, E_l, E_t), W_v=fold @ theta.W_v)


def relative_errors(lengths: list[int], draws: int, d: int, *, seed: int) -> dict[str, Tensor]:
    """How far each update's output is from Eq. 6, and the fit of the token: name -> (draws,
    len(lengths)), relative.

    Every draw has its own weights and tokens; one trajectory token. 'no softmax': both outputs are
    of linear attention.
    """
    makers = {
        "printed, no softmax": printed_update,
        "printed, softmax": printed_update,
        "new query only": query_update,
    }
    makers["value-side rank one"] = value_update
    found = {name: torch.zeros(draws, len(lengths)) for name in ("fit of the token", *makers)}
    for i in range(draws):
        theta = random_layer(d, 2 * d, seed=seed + i)
        for j, length in enumerate(lengths):
            E_l, E_t = random_tokens(length + 1, d, seed=seed + draws + i).split([length, 1])
            found["fit of the token"][i, j] = (
                _combination(E_l, E_t) @ E_l - E_t
            ).norm() / E_t.norm()
            for name, make in makers.items():
                layer = replace(theta, linear=name.endswith("no softmax"))
                wanted = with_trajectory(layer, E_l, E_t)
                error = without_trajectory(make(layer, E_l, E_t), E_l) - wanted
                found[name][i, j] = error.norm() / wanted.norm()
    return found


# --- in-context examples as a gradient step -------------------------------------------------------


def linear_attention(tokens: Tensor, W_q: Tensor, W_k: Tensor, W_v: Tensor) -> Tensor:
    """One head without softmax, added to the stream: token_i + Σ_j (token_i W_q · token_j W_k)
    token_j W_v; (n, d) -> (n, d).

    The last token is the query; it reads the others and not itself.
    """
    context = tokens[:-1]
    return tokens + (tokens @ W_q) @ (context @ W_k).T @ (context @ W_v)


def gradient_step_weights(n: int, d_x: int, inner_lr: float) -> tuple[Tensor, Tensor, Tensor]:
    """W_q, W_k, W_v of a head that makes one gradient step on in-context linear regression (von
    Oswald et al. 2023).

    Tokens are (x, y) with scalar y, the query's y is 0. From w = 0 a step on L(w) = 1/(2n) Σ_j
    (w·x_j - y_j)² gives w = inner_lr/n Σ_j y_j x_j; the head adds w·x to the query's last entry.
    Each matrix is (d_x + 1, d_x + 1).
    """
    sees_x = torch.diag(torch.cat([torch.ones(d_x), torch.zeros(1)])).double()
    takes_y = torch.diag(torch.cat([torch.zeros(d_x), torch.ones(1)])).double()
    return sees_x, sees_x, inner_lr / n * takes_y
