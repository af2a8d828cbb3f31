"""A small decoder whose trajectory is gradient descent, literally: it writes the iterates w_1, w_2,
... before it answers.

A question is an in-context linear regression: support points (x_j, y_j) and a start w_0. Its
trajectory is a list of parameter vectors, one *continuous* token each, supervised by gradient
descent on the support set,

    w_{k+1} = w_k - inner_lr * grad L(w_k),   L(w) = 1/(2n) sum_j (w·x_j - y_j)^2,

and a query point x asks one of two questions. The *readout*: what do your current parameters
predict for x? (w_k·x, as a Gaussian of width READOUT_WIDTH over bins.) The *answer*: what is y at
x? Both can be asked after any number of iterates.

    [x_1 y_1] … [x_n y_n] [w_0] [w_1] … [w_k] [x ?] -> a bin of y
     support set (prompt)       trajectory     query -> answer

Compare RaML's table: support set, inner loop, query set, all in one context. The body is a Llama as
Hugging Face ships it; numbers enter by a linear map and leave by two (an iterate, a distribution
over bins). `as_causal_lm` gives one question to the kit's probe and implicit updates as an ordinary
causal language model.

The set-up is near Huang et al. (2025, arXiv 2502.21212), who train a one-layer linear transformer
to write gradient descent on in-context regression; here the model is an ordinary decoder, starts
are random, and what the iterates do for the answer is measured. Deviation from RaML: tokens of a
trajectory are real vectors there only in the analogy.
"""

from __future__ import annotations

import copy
import functools
import math
from dataclasses import dataclass

import torch
from torch import nn
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from tml_lib.data.toy import linear_tasks
from tml_lib.lm.answers import Suffix
from tml_lib.records import TaskBatch

D = 2  # features of a regression
SHOTS = 8  # support points
STEPS = 6  # iterates of a training trajectory
INNER_LR = 0.5
NOISE = 0.1  # standard deviation of a target's noise in training
STABLE = 1.9  # gradient descent converges where inner_lr times the largest curvature is below 2
READOUT_WIDTH = 0.5  # standard deviation of the predictive Gaussian around w·x
BINS = torch.linspace(-6, 6, 49)  # centres of the answer's bins
KINDS = ("readout", "answer")
_FEATURES = 4 + D + 1 + D  # kind of token (support, iterate, query), which question; x; y; w


def support_gradient(batch: TaskBatch, w: torch.Tensor) -> torch.Tensor:
    """grad L at w: (B, d) -> (B, d), or (B, k, d) -> (B, k, d), of L(w) = 1/(2n) sum_j (w·x_j -
    y_j)^2 on each support set.
    """
    points = w.reshape(len(w), -1, w.shape[-1])
    residual = points @ batch.support_x.mT - batch.support_y.mT  # (B, k, n)
    return (residual @ batch.support_x / batch.support_x.shape[1]).reshape(w.shape)


def gradient_descent(
    batch: TaskBatch, w_0: torch.Tensor, steps: int, *, inner_lr: float = INNER_LR
) -> torch.Tensor:
    """The iterates w_0, ..., w_steps of explicit gradient descent on each task's support set: (B,
    steps + 1, d).
    """
    if steps < 0:
        raise ValueError(f"steps={steps} is negative: gradient descent takes 0 or more steps")
    if not (math.isfinite(inner_lr) and inner_lr > 0):
        raise ValueError(
            f"inner_lr={inner_lr} must be finite and positive: the decoder here learns steps of"
            f" {INNER_LR}"
        )
    iterates = [w_0]
    for _ in range(steps):
        iterates.append(iterates[-1] - inner_lr * support_gradient(batch, iterates[-1]))
    return torch.stack(iterates, 1)


def query_loss(batch: TaskBatch, iterates: torch.Tensor) -> torch.Tensor:
    """Mean of (w_k·x - y)^2 over each task's query points: iterates (B, k, d) -> (B, k)."""
    return ((iterates @ batch.query_x.mT - batch.query_y.mT) ** 2).mean(2)


def bin_of(y: torch.Tensor) -> torch.Tensor:
    """Index of the bin of each number; what lies beyond the ends belongs to the last bin there."""
    step = float(BINS[1] - BINS[0])
    return ((y.clamp(float(BINS[0]), float(BINS[-1])) - float(BINS[0])) / step).round().long()


def readout_distribution(predicted: torch.Tensor) -> torch.Tensor:
    """The Gaussian around each prediction, as probabilities of the bins: (...) -> (..., bins), none
    below 1e-12.
    """
    edges = ((BINS[1:] + BINS[:-1]) / 2).to(predicted.device)
    # float64: differences near 1 are small
    below = torch.special.ndtr((edges - predicted[..., None]).double() / READOUT_WIDTH)
    ends = torch.zeros_like(below[..., :1])
    return torch.diff(torch.cat([ends, below, ends + 1], -1)).clamp_min(1e-12).to(predicted.dtype)


def explicit_nll(batch: TaskBatch, iterates: torch.Tensor) -> torch.Tensor:
    """L̂ of the true y if the parameters w_k themselves answered, through `readout_distribution`:
    (B, k), nats, query mean.
    """
    found = readout_distribution(iterates @ batch.query_x.mT)
    wanted = bin_of(batch.query_y.mT).expand(found.shape[:-1])[..., None]
    return -found.gather(-1, wanted)[..., 0].log().mean(2)


# --- the decoder ----------------------------------------------------------------------------------


class Writer(nn.Module):
    """A Llama that reads and writes real vectors. Parameters are drawn from the seed."""

    def __init__(self, seed: int, *, width: int = 64, layers: int = 2, heads: int = 4):
        super().__init__()
        size = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
        attention = {
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": 128,
        }
        ids = {"vocab_size": 1, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = LlamaModel(LlamaConfig(**size, **attention, **ids))
            self.embed = nn.Linear(_FEATURES, width, bias=False)
            self.iterate = nn.Linear(width, D, bias=False)
            self.bins = nn.Linear(width, len(BINS), bias=False)
            nn.init.normal_(self.embed.weight, std=0.5)

    def forward(self, batch: TaskBatch, iterates: torch.Tensor, kinds: tuple[str, ...] = KINDS):
        """Read the support set and iterates (B, k, d); ask every query in every kind after every
        iterate, in one pass.

        Returns (B, k, d), the iterate that it would write after each, and logits (B, k, kinds, Q,
        bins). The queries are branches off the trajectory, each of which sees what was written up
        to its place and no other query.
        """
        tokens = torch.cat([_support_tokens(batch), _iterate_tokens(iterates)], 1)
        n, k = batch.support_x.shape[1], iterates.shape[1]
        queries = batch.query_x.shape[1]
        asked = torch.cat(
            [tokens[:, :0], *(_query_tokens(batch.query_x, kind) for kind in kinds)], 1
        )  # (B, kinds * Q, features)
        mask, places = _layout(n, k, asked.shape[1])
        found = self.body(
            inputs_embeds=self.embed(torch.cat([tokens, asked.repeat(1, k, 1)], 1)),
            attention_mask=mask.to(asked).expand(len(batch), -1, -1, -1),
            position_ids=places.to(asked.device).expand(len(batch), -1),
            use_cache=False,
        ).last_hidden_state
        logits = self.bins(found[:, n + k :]).view(len(batch), k, len(kinds), queries, len(BINS))
        return self.iterate(found[:, n : n + k]), logits


def _support_tokens(batch: TaskBatch) -> torch.Tensor:
    return _tokens(
        batch.support_x.shape[:2], batch.support_x, 0, {4: batch.support_x, 4 + D: batch.support_y}
    )


def _iterate_tokens(iterates: torch.Tensor) -> torch.Tensor:
    return _tokens(iterates.shape[:2], iterates, 1, {5 + D: iterates})


def _query_tokens(x: torch.Tensor, kind: str) -> torch.Tensor:
    if kind not in KINDS:
        raise ValueError(
            f"kind={kind!r} is no question of this decoder: ask one of {', '.join(KINDS)}"
        )
    tokens = _tokens(x.shape[:2], x, 2, {4: x})
    tokens[..., 3] = float(kind == "answer")
    return tokens


def _tokens(shape, like: torch.Tensor, flag: int, parts: dict[int, torch.Tensor]) -> torch.Tensor:
    tokens = like.new_zeros(*shape, _FEATURES)
    tokens[..., flag] = 1
    for start, values in parts.items():
        tokens[..., start : start + values.shape[-1]] = values
    return tokens


@functools.lru_cache(maxsize=32)
def _layout(n: int, k: int, queries: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Additive attention mask (1, 1, T, T) and positions (1, T): trunk of n + k tokens, `queries`
    branches off each iterate.
    """
    trunk, total = n + k, n + k + k * queries
    sees = torch.eye(total, dtype=torch.bool)
    sees[:trunk, :trunk] = torch.ones(trunk, trunk, dtype=torch.bool).tril()
    sees[trunk:, :trunk] = sees[n:trunk, :trunk].repeat_interleave(queries, 0)
    places = torch.cat([torch.arange(trunk), torch.arange(n, trunk).repeat_interleave(queries) + 1])
    return (
        torch.zeros(total, total).masked_fill(~sees, torch.finfo(torch.float32).min)[None, None],
        places[None],
    )


@torch.no_grad()
def write(model: Writer, batch: TaskBatch, w_0: torch.Tensor, steps: int) -> torch.Tensor:
    """The trajectory that the model writes by itself, each iterate read back as its next token: (B,
    steps + 1, d) with w_0.
    """
    if steps < 0:
        raise ValueError(f"steps={steps} is negative: write 0 or more iterates")
    iterates = w_0[:, None]
    for _ in range(steps):
        following, _ = model(batch, iterates, ())
        iterates = torch.cat([iterates, following[:, -1:]], 1)
    return iterates


@torch.no_grad()
def answer_nll(model: Writer, batch: TaskBatch, iterates: torch.Tensor) -> dict[str, torch.Tensor]:
    """L̂ of the true y after each iterate, by kind of question: (B, k) each, mean over the queries,
    nats.
    """
    _, logits = model(batch, iterates)
    wanted = bin_of(batch.query_y.mT)[:, :, None].expand(logits.shape[:-1])[..., None]
    nll = -logits.log_softmax(-1).gather(-1, wanted)[..., 0].mean(3)
    return {kind: nll[:, :, place] for place, kind in enumerate(KINDS)}


# --- training -------------------------------------------------------------------------------------

ARMS = ("writer", "reciter", "late", "direct")


def draw_tasks(
    n: int, draw: torch.Generator, *, queries: int = 1, **shift: float
) -> tuple[TaskBatch, torch.Tensor]:
    """n tasks and random starts w_0 ~ N(0, I); shift: `noise`, `condition` of `toy.linear_tasks`,
    beyond training.

    Tasks on which gradient descent itself would diverge (inner_lr times the largest eigenvalue of A
    not below STABLE) are
    drawn anew: there is nothing to imitate on them.
    """
    kept: list[TaskBatch] = []
    while (missing := n - sum(map(len, kept))) > 0:
        batch = linear_tasks(
            missing, SHOTS, draw, d=D, queries=queries, **{"noise": NOISE, **shift}
        )
        stable = INNER_LR * largest_curvature(batch) < STABLE
        if bool(stable.any()):
            kept.append(batch.select(stable))
    parts = ("support_x", "support_y", "query_x", "query_y")
    whole = TaskBatch(*(torch.cat([getattr(batch, part) for batch in kept]) for part in parts))
    return whole, torch.randn(n, D, generator=draw)


def largest_curvature(batch: TaskBatch) -> torch.Tensor:
    """Largest eigenvalue of A = 1/n sum_j x_j x_j^T, the Hessian of L, for each task: (B,)."""
    return torch.linalg.eigvalsh(batch.support_x.mT @ batch.support_x / batch.support_x.shape[1])[
        :, -1
    ]


def train(
    arm: str,
    seed: int,
    *,
    train_steps: int,
    batch_size: int = 64,
    peak_lr: float = 3e-3,
    stop: int | None = None,
    progress: bool = False,
) -> tuple[Writer, list[float]]:
    """Train one arm on fresh tasks; returns the model and its losses (nats and squared units,
    summed as below).

    'writer': iterates from random starts, and both questions after each. 'reciter': the same,
    always from w_0 = 0, so that an iterate *may* be recited from data and place without reading the
    one before. 'late': as 'writer', but the answer is asked after the last iterate only, as
    fine-tuning on trajectories does. 'direct': the answer at once, no trajectory, on twice as many
    tasks. Loss: 4 |w written - w|^2 + 0.3 (readout + answer cross-entropy), teacher-forced.
    stop: leave off after that many of the steps.
    """
    if arm not in ARMS:
        raise ValueError(f"arm={arm!r} is unknown: train one of {', '.join(ARMS)}")
    if train_steps < 1:
        raise ValueError(
            f"train_steps={train_steps} trains nothing: take at least 1; 1500 give a usable model"
        )
    model, draw = Writer(seed), torch.Generator().manual_seed(10**6 + seed)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=peak_lr, betas=(0.9, 0.98), weight_decay=0.0
    )
    warm = min(100, max(1, train_steps // 10))
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda s: min(1, (s + 1) / warm) * 0.5 * (1 + math.cos(math.pi * s / train_steps)),
    )
    losses = []
    for _ in tqdm(
        range(train_steps if stop is None else stop),
        desc=arm,
        unit="step",
        disable=not progress,
        leave=False,
    ):
        batch, w_0 = draw_tasks(batch_size * (2 if arm == "direct" else 1), draw)
        loss = _loss(model, arm, batch, w_0 if arm in ("writer", "late") else torch.zeros_like(w_0))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        rate.step()
        losses.append(float(loss.detach()))
    return model.eval(), losses


def _loss(model: Writer, arm: str, batch: TaskBatch, w_0: torch.Tensor) -> torch.Tensor:
    kinds = ("answer",) if arm == "direct" else KINDS
    iterates = gradient_descent(batch, w_0, 0 if arm == "direct" else STEPS)
    written, logits = model(batch, iterates, kinds)
    logits = logits.log_softmax(-1)
    wanted = bin_of(batch.query_y.mT).expand(logits.shape[0], logits.shape[1], -1)
    # after which iterates the answer is asked
    asked = slice(-1, None) if arm == "late" else slice(None)
    answer = nn.functional.nll_loss(logits[:, asked, -1].flatten(0, 2), wanted[:, asked].flatten())
    if arm == "direct":
        return answer
    target = readout_distribution(iterates @ batch.query_x.mT)
    readout = -(target * logits[:, :, 0]).sum(-1).mean()
    return 4 * ((written[:, :-1] - iterates[:, 1:]) ** 2).sum(-1).mean() + 0.3 * (readout + answer)


# --- one question as a causal language model ------------------------------------------------------


@dataclass(frozen=True)
class AsTokens:
    """One task in token ids of its own vocabulary: what `probe.prefix_nll` and
    `parameter_paths.path_from_ids` take.
    """

    lm: LlamaForCausalLM
    prompt: list[int]  # support points and w_0
    trajectory: list[int]  # w_1, ..., w_k
    suffixes: dict[str, Suffix]  # by kind of question: the query's token and the answer's bin


def as_causal_lm(model: Writer, batch: TaskBatch, iterates: torch.Tensor, index: int) -> AsTokens:
    """Task `index` of a batch and its iterates (B, k + 1, d) as token ids, and the same Llama with
    a vocabulary that has them.

    The first ids are the answer's bins; then come the question's own vectors, each a token with its
    embedding, which the model never predicts (bias -30 of their logits). Weights are shared with
    `model`, not copied, embeddings excepted.
    """
    one = TaskBatch(
        *(
            part[index : index + 1]
            for part in (batch.support_x, batch.support_y, batch.query_x, batch.query_y)
        )
    )
    x = one.query_x[:, :1]
    tokens = [
        _support_tokens(one),
        _iterate_tokens(iterates[index : index + 1]),
        *(_query_tokens(x, kind) for kind in KINDS),
    ]
    with torch.no_grad():
        vectors = model.embed(torch.cat(tokens, 1))[0]
        bins, n, k = len(BINS), one.support_x.shape[1], iterates.shape[1]
        config = copy.deepcopy(model.body.config)
        config.vocab_size = bins + len(vectors)
        config.tie_word_embeddings = False
        with torch.random.fork_rng():
            lm = LlamaForCausalLM(config).eval()
            lm.lm_head = nn.Linear(vectors.shape[1], config.vocab_size)
        lm.model.layers, lm.model.norm, lm.model.rotary_emb = (
            model.body.layers,
            model.body.norm,
            model.body.rotary_emb,
        )
        lm.model.embed_tokens.weight.copy_(
            torch.cat([torch.zeros(bins, vectors.shape[1]), vectors])
        )
        lm.lm_head.weight.copy_(torch.cat([model.bins.weight, torch.zeros_like(vectors)]))
        lm.lm_head.bias.copy_(torch.cat([torch.zeros(bins), torch.full((len(vectors),), -30.0)]))
    ids = list(range(bins, config.vocab_size))
    wanted = int(bin_of(one.query_y[0, 0, 0]))
    suffixes = {
        kind: Suffix((ids[n + k + place], wanted), 1, "") for place, kind in enumerate(KINDS)
    }
    return AsTokens(lm, ids[: n + 1], ids[n + 1 : n + k], suffixes)
