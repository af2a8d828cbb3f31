"""Toy task distributions. Running sums: questions that a tiny decoder answers only by way of a trajectory.

A question is a row of signed numbers (+3 -5 +2 ...), its trajectory repeats each one and writes the running sum after it, its
answer is the last sum: a sign and a digit, two tokens. Sums stay within -9..9. Questions of one *template* have the same signs.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tml_lib.answers import Suffix
from tml_lib.records import Question, Trajectory

TERMS, LARGEST = 6, 5  # numbers in a question; the largest of them
_WORDS = ["<pad>", "<start>", "=", "#", "+", "-", *map(str, range(10))]
_ID = {word: k for k, word in enumerate(_WORDS)}


def running_sums(n: int, seed: int = 0) -> list[Question]:
    """n questions with gold trajectories; the first n of a seed are the same whatever n is. ValueError where n < 1."""
    if n < 1:
        raise ValueError(f"n={n} questions make no set: ask for at least 1")
    return [_question(seed, k) for k in range(n)]


def _question(seed: int, index: int) -> Question:
    rng = random.Random(f"{seed}/{index}")
    while True:
        numbers = [rng.choice((1, -1)) * rng.randint(1, LARGEST) for _ in range(TERMS)]
        made = _from_numbers(numbers, f"running_sums/{seed}/{index}")
        if made is not None:
            return made


def _from_numbers(numbers: Sequence[int], name: str) -> Question | None:
    """The question of these numbers; None where a sum leaves -9..9 or the answer already stands among the earlier sums."""
    sums = _sums(numbers)
    if max(map(abs, sums)) > 9 or sums[-1] in sums[:-1] or sums[-1] in numbers:
        return None
    text = " ".join(map(_written, numbers)) + " ="
    gold = Trajectory(_steps(numbers, sums), "gold", _written(sums[-1]), True)
    return Question(name, text, _written(sums[-1]), "".join(_written(x)[0] for x in numbers), (gold,))


def _sums(numbers: Sequence[int]) -> list[int]:
    return [sum(numbers[: k + 1]) for k in range(len(numbers))]


def _written(number: int) -> str:
    return f"{'-' if number < 0 else '+'} {abs(number)}"


def _steps(numbers: Sequence[int], sums: Sequence[int]) -> str:
    return " ".join(f"{_written(x)} = {_written(s)}" for x, s in zip(numbers, sums, strict=True))


def sibling(question: Question, seed: int = 0, *, same_template: bool = True) -> Question:
    """Another question with the same signs and other numbers, or (same_template=False) with other signs."""
    rng = random.Random(f"{seed}/{question.id}/{same_template}")
    while True:
        signs = question.template if same_template else "".join(rng.choice("+-") for _ in range(TERMS))
        made = _from_numbers([int(f"{s}{rng.randint(1, LARGEST)}") for s in signs], f"{question.id}/sibling")
        if made is not None and made.text != question.text and (made.template == question.template) == same_template:
            return made


def altered_trajectories(question: Question, seed: int = 0) -> dict[str, Trajectory]:
    """Gold and its controls, all equally long: 'corrupted' (one sum wrong, used from there on), 'foreign' (another question's),
    'shuffled' (the steps before the last in another order). None but gold and shuffled ends in the answer.
    """
    rng = random.Random(f"{seed}/{question.id}/altered")
    numbers = [int("".join(pair)) for pair in zip(*[iter(question.text.removesuffix(" =").split())] * 2, strict=True)]
    sums = _sums(numbers)
    gold = question.trajectories[0]
    steps = [gold.text[k : k + _STEP] for k in range(0, len(gold.text), _STEP + 1)]
    order = list(range(TERMS - 1))
    while order == sorted(order):
        rng.shuffle(order)
    found = {"gold": gold, "shuffled": Trajectory(" ".join([*(steps[k] for k in order), steps[-1]]), "shuffled")}
    while "corrupted" not in found:
        at, shift = rng.randrange(1, TERMS - 1), rng.choice([d for d in range(-4, 5) if d])
        wrong = [s + shift * (k >= at) for k, s in enumerate(sums)]
        if max(map(abs, wrong)) <= 9:
            offset = at * (_STEP + 1) + len("+ 1 = ")
            found["corrupted"] = Trajectory(_steps(numbers, wrong), "corrupted", _written(wrong[-1]), False, offset)
    while "foreign" not in found:
        other = sibling(question, rng.randrange(10**9), same_template=False)
        if other.answer != question.answer:
            found["foreign"] = Trajectory(other.trajectories[0].text, "foreign")
    return found


_STEP = len("+ 1 = + 1")  # characters of a step


def encode(text: str) -> list[int]:
    """Token ids of a text of blank-separated words; KeyError names an unknown word."""
    return [_ID[word] for word in text.split()]


def prompt_ids(question: Question) -> list[int]:
    """I ⊕ q as token ids."""
    return [_ID["<start>"], *encode(question.text)]


def suffix(answer: str) -> Suffix:
    """The answer template '#' and an answer, as token ids."""
    return Suffix((_ID["#"], *encode(answer)), 1, answer)


# --- a tiny decoder that reasons -------------------------------------------------------------------------------------


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
    seed: int, *, steps: int = 1500, batch: int = 64, peak_lr: float = 3e-3
) -> tuple[LlamaForCausalLM, list[float]]:
    """Train a fresh model on whole trajectories and on as many cut short after some step; returns it and its losses.

    The cut ones teach it to answer after any prefix, as well as it can. Loss (nats per token) on trajectory and answer.
    Trained questions come from another seed range than `running_sums(n, seed < 10**6)`.
    """
    model = new_model(seed).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak_lr, betas=(0.9, 0.98), weight_decay=0.01)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimiser, peak_lr, total_steps=steps, pct_start=0.1)
    rng, losses = random.Random(f"train/{seed}"), []
    for step in range(steps):
        rows = [_example(rng, 10**6 + seed, step * batch + k) for k in range(batch)]
        width = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in rows])
        labels = torch.tensor([[-100] * start + ids[start:] + [-100] * (width - len(ids)) for ids, start in rows])
        loss = model(input_ids=ids, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        rate.step()
        losses.append(float(loss.detach()))
    return model.eval(), losses


def _example(rng: random.Random, seed: int, index: int) -> tuple[list[int], int]:
    """Token ids of prompt ⊕ trajectory (whole, or cut after a step) ⊕ '#' ⊕ answer, and where the loss starts."""
    question = _question(seed, index)
    steps = TERMS if rng.random() < 1 / 2 else rng.randrange(TERMS)
    prompt, trajectory = prompt_ids(question), encode(question.trajectories[0].text[: steps * (_STEP + 1)])
    return [*prompt, *trajectory, *suffix(question.answer).ids], len(prompt)
