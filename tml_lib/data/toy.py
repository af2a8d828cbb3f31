"""Toy task distributions: chains, questions that a tiny decoder answers only by way of a
trajectory, and regression tasks.

A chain's question is a row of operations (+ 3 * 5 + 2 ...) on a running value that starts at 1 and
is kept modulo 13; its trajectory repeats each operation and writes the value after it; its answer
is the last value, two digits and so two tokens. Adding and multiplying in turn leave no short cut
by a sum. Questions of one *template* have the same operators and other numbers. Regression tasks
carry a support set for an inner loop and a query set for an outer loss.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tml_lib import checks
from tml_lib.data.tiny import collate
from tml_lib.lm.answers import Suffix
from tml_lib.records import Question, TaskBatch, Trajectory

TERMS = 6  # operations of a question
MODULUS = 13  # values are 0..12
STEP_TOKENS = 5  # of a trajectory step: operator, number, '=', and the value's two digits
_NUMBERS = range(2, 7)
_WORDS = ["<pad>", "<start>", "=", "#", "+", "*", *map(str, range(10))]
_ID = {word: k for k, word in enumerate(_WORDS)}
_STEP = len("+ 3 = 0 4")  # characters of a step

Operation = tuple[str, int]


def chains(n: int, seed: int = 0) -> list[Question]:
    """n questions with gold trajectories; the first n of a seed are the same whatever n is.
    ValueError where n < 1.
    """
    checks.whole(n=n, seed=seed)
    if n < 1:
        raise ValueError(f"n={n} questions make no set: ask for at least 1")
    return [_question(seed, k) for k in range(n)]


def _question(seed: int, index: int) -> Question:
    rng = random.Random(f"{seed}/{index}")
    while True:
        made = _from_operations(_draw(rng), f"chains/{seed}/{index}")
        if made is not None:
            return made


def _draw(rng: random.Random, operators: str | None = None) -> list[Operation]:
    return [
        (operators[k] if operators else rng.choice("+*"), rng.choice(_NUMBERS))
        for k in range(TERMS)
    ]


def _from_operations(operations: Sequence[Operation], name: str) -> Question | None:
    """The question of these operations; None where its answer already stands among the earlier
    values.
    """
    values = _values(operations)
    if values[-1] in values[:-1]:
        return None
    text = " ".join(f"{o} {x}" for o, x in operations) + " ="
    gold = Trajectory(_steps(operations, values), "gold", _written(values[-1]), True)
    return Question(name, text, _written(values[-1]), "".join(o for o, _ in operations), (gold,))


def _values(operations: Sequence[Operation], start: int = 1) -> list[int]:
    found = [start]
    for operator, number in operations:
        found.append((found[-1] + number if operator == "+" else found[-1] * number) % MODULUS)
    return found[1:]


def _written(value: int) -> str:
    return f"{value // 10} {value % 10}"


def _steps(operations: Sequence[Operation], values: Sequence[int]) -> str:
    return " ".join(
        f"{o} {x} = {_written(v)}" for (o, x), v in zip(operations, values, strict=True)
    )


def sibling(question: Question, seed: int = 0, *, same_template: bool = True) -> Question:
    """Another question with the same operators and another answer, or (same_template=False) with
    other operators.
    """
    rng = random.Random(f"{seed}/{question.id}/{same_template}")
    while True:
        made = _from_operations(
            _draw(rng, question.template if same_template else None), f"{question.id}/sibling"
        )
        if (
            made is not None
            and made.answer != question.answer
            and (made.template == question.template) == same_template
        ):
            return made


def altered_trajectories(
    question: Question, seed: int = 0, *, avoid: str = ""
) -> dict[str, Trajectory]:
    """Gold and its controls, all equally long: 'corrupted' (one value wrong, used from there on;
    absent where impossible), 'foreign' (another question's), 'shuffled' (the steps before the last
    in another order).

    Only gold and shuffled ever write the answer's value, at their end; corrupted writes its own
    answer at its end only, and foreign ends in neither the answer nor `avoid`, another answer.
    """
    rng = random.Random(f"{seed}/{question.id}/altered")
    words = question.text.removesuffix(" =").split()
    operations = [(o, int(x)) for o, x in zip(words[::2], words[1::2], strict=True)]
    values, gold = _values(operations), question.trajectories[0]
    steps = [gold.text[k : k + _STEP] for k in range(0, len(gold.text), _STEP + 1)]
    order = list(range(TERMS - 1))
    while order == sorted(order):
        rng.shuffle(order)
    shuffled = Trajectory(
        " ".join([*(steps[k] for k in order), steps[-1]]), "shuffled", question.answer
    )
    found = {"gold": gold, "shuffled": shuffled}
    changes = [(at, v) for at in range(1, TERMS - 1) for v in range(MODULUS) if v != values[at]]
    rng.shuffle(changes)
    for at, value in changes:
        bad = [*values[:at], value, *_values(operations[at + 1 :], value)]
        if values[-1] not in bad and bad[-1] not in bad[:-1]:
            offset = at * (_STEP + 1) + len("+ 3 = ")
            found["corrupted"] = Trajectory(
                _steps(operations, bad), "corrupted", _written(bad[-1]), False, offset
            )
            break
    while "foreign" not in found:
        other = sibling(question, rng.randrange(10**9), same_template=False)
        text = other.trajectories[0].text
        if f"= {question.answer}" not in text and other.answer != avoid:
            found["foreign"] = Trajectory(text, "foreign")
    return found


def encode(text: str) -> list[int]:
    """Token ids of a text of blank-separated words; KeyError names an unknown word."""
    return [_ID[word] for word in text.split()]


def prompt_ids(question: Question) -> list[int]:
    """I ⊕ q as token ids."""
    return [_ID["<start>"], *encode(question.text)]


def suffix(answer: str) -> Suffix:
    """The answer template '#' and an answer, as token ids."""
    return Suffix((_ID["#"], *encode(answer)), 1, answer)


# --- a tiny decoder that reasons ------------------------------------------------------------------


def new_model(seed: int) -> LlamaForCausalLM:
    """A Llama of two layers and width 64 with random weights."""
    config = LlamaConfig(
        vocab_size=len(_WORDS),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def train_reasoner(
    seed: int, *, steps: int = 1500, batch: int = 64, peak_lr: float = 3e-3, stop: int | None = None
) -> tuple[LlamaForCausalLM, list[float]]:
    """Train a fresh model on whole trajectories and on as many cut short somewhere; returns it and
    its losses.

    The cut ones teach it to answer after any prefix, as well as it can. Loss (nats per token) on
    trajectory and answer. Trained questions come from another seed range than `chains(n, seed <
    10**6)`.
    stop: leave off after that many of the steps.
    """
    model = new_model(seed).train()
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=peak_lr, betas=(0.9, 0.98), weight_decay=0.01
    )
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak_lr, total_steps=steps, pct_start=0.1)
    rng, losses = random.Random(f"train/{seed}"), []
    for step in range(steps if stop is None else stop):
        rows = [_example(rng, 10**6 + seed, step * batch + k) for k in range(batch)]
        ids, labels = collate(rows)  # both vocabularies begin with '<pad>'
        loss = model(input_ids=ids, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        rate.step()
        losses.append(float(loss.detach()))
    return model.eval(), losses


def _example(rng: random.Random, seed: int, index: int) -> tuple[list[int], int]:
    """Token ids of prompt ⊕ trajectory (whole, or cut after any token) ⊕ '#' ⊕ answer, and where
    the loss starts.
    """
    question = _question(seed, index)
    trajectory = encode(question.trajectories[0].text)
    kept = len(trajectory) if rng.random() < 1 / 2 else rng.randrange(len(trajectory))
    prompt = prompt_ids(question)
    return [*prompt, *trajectory[:kept], *suffix(question.answer).ids], len(prompt)


# --- regression tasks -----------------------------------------------------------------------------


def support_query_split(
    x: torch.Tensor, y: torch.Tensor, support: Sequence[int], query: Sequence[int]
) -> TaskBatch:
    """Split the points of B tasks by index. x: (B, n, d), y: (B, n, 1).

    A query point that the inner loop has seen measures memory, not adaptation: ValueError names the
    shared points, and indices outside 0..n-1.
    """
    support, query = [int(i) for i in support], [int(i) for i in query]
    shared = sorted(set(support) & set(query))
    if shared:
        raise ValueError(
            f"support and query share the points {shared}: the outer loss would reward remembering"
            " them; give disjoint indices"
        )
    if outside := [i for i in [*support, *query] if not 0 <= i < x.shape[1]]:
        raise ValueError(
            f"point {outside[0]} does not exist: the tasks have points 0..{x.shape[1] - 1}"
        )
    return TaskBatch(x[:, support], y[:, support], x[:, query], y[:, query])


def sinusoids(
    n: int, shots: int, generator: torch.Generator, *, queries: int | None = None
) -> TaskBatch:
    """n tasks y = A sin(x - p), A in [0.1, 5], p in [0, pi], x in [-5, 5], all uniform (Finn et al.
    2017, §5.1).

    shots: support points per task; queries: query points per task, by default as many.
    """
    queries = shots if queries is None else queries
    amplitude = 0.1 + 4.9 * torch.rand(n, 1, 1, generator=generator)
    phase = torch.pi * torch.rand(n, 1, 1, generator=generator)
    x = 10 * torch.rand(n, shots + queries, 1, generator=generator) - 5
    return support_query_split(
        x, amplitude * torch.sin(x - phase), range(shots), range(shots, shots + queries)
    )


def linear_tasks(
    n: int,
    shots: int,
    generator: torch.Generator,
    *,
    d: int = 2,
    queries: int = 1,
    noise: float = 0.1,
    condition: float = 1.0,
) -> TaskBatch:
    """n tasks y = w*·x + noise, w* ~ N(0, I_d), x ~ N(0, S).

    noise: its standard deviation. condition: ratio of the largest to the smallest eigenvalue of S,
    which is diagonal with eigenvalues in geometric steps and trace d. ValueError where the noise is
    negative or the condition below 1.
    """
    if not noise >= 0 or not condition >= 1:
        raise ValueError(
            f"noise={noise} must not be negative, and condition={condition} must be at least 1"
        )
    spread = torch.logspace(0, -1, d, base=float(condition)) if d > 1 else torch.ones(1)
    scale = (d * spread / spread.sum()).sqrt()
    w = torch.randn(n, d, 1, generator=generator)
    x = torch.randn(n, shots + queries, d, generator=generator) * scale
    y = x @ w + noise * torch.randn(n, shots + queries, 1, generator=generator)
    return support_query_split(x, y, range(shots), range(shots, shots + queries))
