"""An explicit inner loop beside the pseudo one: MAML on a LoRA adapter (the left column of RaML's
analogy, on an LLM).

RaML reads a trajectory in context as an inner loop. Here the inner loop is a real one: gradient
steps of the adapter on the *support*, one question with its trajectory; the outer loss is that of
the *query*, a sibling question with its own. 'maml' differentiates through the inner steps;
'fomaml' takes the query's gradient at the adapted weights for the outer one (Finn et al. 2017);
'joint' has no inner loop and learns from the same rows side by side: SFT, whose inner loop is in
context, if anywhere. All take as many outer steps on the same rows.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from tml_lib.data import program_grading, programs, tiny
from tml_lib.data.programs import Program
from tml_lib.data.tiny import Row
from tml_lib.lm import adapters, sampling
from tml_lib.lm.models import LanguageModel
from tml_lib.records import Question

METHODS = ("maml", "fomaml", "joint")
Adapter = dict[str, torch.Tensor]  # LoRA weights by name
Pair = tuple[Row, Row]  # support, query


def sibling(program: Program, rng: random.Random) -> Program:
    """The same statements with other letters and other inputs, of the same split."""
    letters = [letter for letter, _ in program.inputs] + [s.name for s in program.statements]
    while True:
        new = dict(zip(letters, rng.sample(programs.LETTERS, len(letters)), strict=True))
        statements = [
            programs.Statement(new[s.name], new[s.operand], s.operator, s.literal)
            for s in program.statements
        ]
        inputs = tuple(
            (new[letter], rng.randrange(programs.MODULUS)) for letter, _ in program.inputs
        )
        asked = tuple(new[letter] for letter in program.asked)
        found = Program(
            inputs, tuple(rng.sample(statements, len(statements))), asked, program.other_surface
        )
        if programs.is_held_out(found) == programs.is_held_out(program):
            return found


def pairs(
    seed: int, batch: int, *, split: str = "train", steps: int = programs.STEPS
) -> Callable[[int], list[Pair]]:
    """Step -> `batch` pairs of rows: a question of `steps` statements a chain, a sibling of it,
    each with a long trajectory.
    """

    def one(step: int, k: int) -> Pair:
        rng = random.Random(f"meta/{split}/{seed}/{step}/{k}")
        support = programs.split_program(rng, split, steps)
        return tuple(_row(program, rng) for program in (support, sibling(support, rng)))

    return lambda step: [one(step, k) for k in range(batch)]


def _row(program: Program, rng: random.Random) -> Row:
    return tiny.row(
        program.text, programs.trajectory(program, "long", rng).text.split(), program.answer()
    )


def asked(row: Row) -> Question:
    """The question that a row of `pairs` asks, with its answer."""
    ids, start = row
    words = list(tiny.VOCABULARY)  # in the order of their ids
    # between '<user>' and the instruction
    program = programs.parse(" ".join(words[k] for k in ids[1 : start - 2]))
    return programs.question(program, f"meta/{program.text}", random.Random(0))


class MetaLora:
    """A frozen model with a LoRA adapter whose weights are passed in, so that inner steps leave no
    trace.

    lm: stays as it is, and shares its weights. rank: of the adapter, on every linear layer of the
    blocks.
    """

    def __init__(self, lm: LanguageModel, rank: int, seed: int = 0):
        self.lm = lm
        self.model = adapters.copy_to_train(adapters.without_patches(lm), rank, seed).eval()
        self.theta: Adapter = {
            name: p for name, p in self.model.named_parameters() if p.requires_grad
        }

    def loss(self, theta: Adapter, rows: Sequence[Row]) -> torch.Tensor:
        """Mean negative log-likelihood of all learnt tokens of the rows, in nats per token."""
        ids, labels = (part.to(self.lm.device) for part in tiny.collate(rows))
        logits = functional_call(self.model, theta, (), {"input_ids": ids}).logits[:, :-1]
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100
        )

    def adapted(
        self,
        theta: Adapter,
        support: Row,
        *,
        steps: int,
        inner_lr: float,
        second_order: bool = False,
    ) -> Adapter:
        """theta after `steps` gradient steps on the support row: theta' = theta - inner_lr ∇L (RaML
        Algorithm 1).
        """
        for _ in range(steps):
            gradients = torch.autograd.grad(
                self.loss(theta, [support]), list(theta.values()), create_graph=second_order
            )
            theta = {
                name: p - inner_lr * gradient
                for (name, p), gradient in zip(theta.items(), gradients, strict=True)
            }
        return theta

    def outer_gradient(
        self, batch: Sequence[Pair], *, method: str, steps: int, inner_lr: float
    ) -> tuple[float, list[torch.Tensor]]:
        """Mean outer loss of a batch of pairs, and its gradient by the adapter's weights ('fomaml':
        a first-order estimate).
        """
        if method not in METHODS:
            raise ValueError(f"method={method!r} is unknown: choose one of {', '.join(METHODS)}")
        names = list(self.theta)
        if method == "joint":
            loss = self.loss(self.theta, [row for pair in batch for row in pair])
            return float(loss.detach()), list(torch.autograd.grad(loss, list(self.theta.values())))
        total, gradient, second = (
            0.0,
            [torch.zeros_like(p) for p in self.theta.values()],
            method == "maml",
        )
        for support, query in batch:
            # the fused attention kernels have no second derivative
            with sdpa_kernel(SDPBackend.MATH) if second else contextlib.nullcontext():
                theta = self.adapted(
                    self.theta, support, steps=steps, inner_lr=inner_lr, second_order=second
                )
                if not second:  # at theta', as if it were the start
                    theta = {name: part.detach().requires_grad_() for name, part in theta.items()}
                loss, by = self.loss(theta, [query]), self.theta if second else theta
                gradients = torch.autograd.grad(loss, [by[name] for name in names])
            for whole, part in zip(gradient, gradients, strict=True):
                whole += part / len(batch)
            total += float(loss.detach()) / len(batch)
        return total, gradient

    def train(
        self,
        batches: Callable[[int], Sequence[Pair]],
        *,
        method: str,
        steps: int,
        inner_steps: int = 1,
        inner_lr: float = 0.1,
        outer_lr: float = 3e-3,
        progress: bool = False,
    ) -> list[float]:
        """AdamW on the adapter's weights by the outer gradient, in place; the outer loss of every
        step.

        Raises ValueError for an unknown method and for an outer loss that is not finite, naming the
        step.
        """
        optimiser = torch.optim.AdamW(
            self.theta.values(), lr=outer_lr, betas=tiny.BETAS, weight_decay=0.0
        )
        rate, losses = tiny.schedule(optimiser, steps), []
        for step in tqdm(range(steps), desc=method, unit="step", disable=not progress, leave=False):
            loss, gradient = self.outer_gradient(
                batches(step), method=method, steps=inner_steps, inner_lr=inner_lr
            )
            if not math.isfinite(loss):
                raise ValueError(
                    f"the outer loss is {loss} at step {step}: lower inner_lr={inner_lr} or"
                    f" outer_lr={outer_lr}"
                )
            for p, part in zip(self.theta.values(), gradient, strict=True):
                p.grad = part
            torch.nn.utils.clip_grad_norm_(self.theta.values(), 1.0)
            optimiser.step()
            rate.step()
            losses.append(loss)
        return losses

    def with_weights(self, theta: Adapter) -> LanguageModel:
        """The model with these adapter weights, to sample from; it shares all else, so use one at a
        time.
        """
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                if name in theta and p is not theta[name]:
                    p.data = theta[name].detach()
        return dataclasses.replace(self.lm, model=self.model, name=f"{self.lm.name}+meta")


def query_losses(
    meta: MetaLora, made: Sequence[Pair], *, steps: int, inner_lr: float
) -> np.ndarray:
    """Loss of each query row after 0..steps inner steps on the row before it: (pairs, steps + 1),
    nats per token.
    """
    found = np.empty((len(made), steps + 1))
    for k, (support, query) in enumerate(made):
        theta = meta.theta
        for step in range(steps + 1):
            if step:
                moved = meta.adapted(theta, support, steps=1, inner_lr=inner_lr)
                theta = {name: p.detach().requires_grad_() for name, p in moved.items()}
            with torch.no_grad():
                found[k, step] = float(meta.loss(theta, [query]))
    return found


def answered(
    meta: MetaLora, made: Sequence[tuple[Question, Row]], *, steps: int, inner_lr: float
) -> list[bool]:
    """Whether each question is answered rightly, greedily, after `steps` inner steps on the row
    beside it (0: none).
    """
    own, right = {name: p.detach().clone().requires_grad_() for name, p in meta.theta.items()}, []
    try:
        for question, support in made:
            lm = meta.with_weights(meta.adapted(own, support, steps=steps, inner_lr=inner_lr))
            prompt = lm.prompt(question.text)
            (written,) = sampling.sample(lm, [prompt], [0], temperature=0, max_new_tokens=128)
            right.append(
                not written.cut
                and program_grading.graded(lm.tokenizer.decode(written.ids), question.answer)
            )
    finally:
        meta.with_weights(own)
    return right
