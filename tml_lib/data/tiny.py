"""The tiny reasoner: a vanilla Llama of about 0.2 M parameters for the questions of `programs`, its
tokenizer and its rows.

Its tokenizer has one token per word, and one each for the instruction and the answer template, so
that prompts, probes and sampling are those of every other model of the kit. A *row* is one training
sequence I ⊕ q ⊕ t ⊕ a: its token ids and where the loss starts, after I ⊕ q. Deviations from the
paper: the base model is the kit's own, trained on one-step questions in every format, in place of
Qwen2.5-7B-Base.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, get_scheduler

from tml_lib.data import programs
from tml_lib.data.programs import Program
from tml_lib.lm.answers import ANSWER_TEMPLATE, INSTRUCTION

SPECIAL = ("<pad>", "<unk>", "<end>", "<user>", "<assistant>")
TEXTS = (INSTRUCTION, ANSWER_TEMPLATE, "}")  # one token each
VOCABULARY = {word: k for k, word in enumerate([*SPECIAL, *TEXTS, *programs.words()])}
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WIDTH = 64
LAYERS = 3
HEADS = 4

Row = tuple[list[int], int]  # token ids, and the index of the first one that is learnt


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, with a chat template; an unknown word becomes '<unk>'."""
    core = Tokenizer(WordLevel(VOCABULARY, unk_token="<unk>"))
    core.pre_tokenizer = WhitespaceSplit()
    core.add_tokens([AddedToken(text, normalized=False, special=False) for text in TEXTS])
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        additional_special_tokens=["<user>", "<assistant>"],
    )
    made.chat_template = CHAT_TEMPLATE
    return made


def new_model(seed: int) -> LlamaForCausalLM:
    """A Llama of three layers and width 64 with a head start: random weights but for two things
    that save most of the time.

    The embedding of a word is a sum over its parts: 'a=3' and 'a*4' share the vector of the letter
    a, so what is learnt about one letter holds for all. And one head of the first layer looks one
    word back, half of an induction head (Olsson et al. 2022, arXiv 2209.11895), which else takes
    most of the training to appear. The positions' base is 100 instead of 10000, for sequences are
    short.
    """
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        pad_token_id=VOCABULARY["<pad>"],
        bos_token_id=None,
        eos_token_id=VOCABULARY["<end>"],
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        vectors: dict[str, torch.Tensor] = {}
        shared = torch.randn(WIDTH)
        # a part of every embedding, by which that head knows nothing but positions
        shared *= WIDTH**0.5 / shared.norm()
        for word, k in VOCABULARY.items():
            parts = _parts(word)
            for part in parts:
                if part not in vectors:
                    vectors[part] = 0.1 * torch.randn(WIDTH)
            mixed = torch.stack([vectors[part] for part in parts]).sum(0) / len(parts) ** 0.5
            model.lm_head.weight.data[k] = mixed
            model.model.embed_tokens.weight.data[k] = mixed + 0.1 * shared
        _look_back(model.model.layers[0].self_attn, shared / WIDTH)
    return model.eval()


def _look_back(attention: torch.nn.Module, along: torch.Tensor, strength: float = 4.0) -> None:
    """Let the first head's score peak at the word before: its rotary phases cancel there. along:
    (d,) input direction.
    """
    half = WIDTH // HEADS // 2
    turn = 100.0 ** (-torch.arange(half) / half)  # radians a word turns each pair of coordinates
    query = torch.cat([torch.ones(half), torch.zeros(half)])
    key = torch.cat([turn.cos(), turn.sin()])
    attention.q_proj.weight.data[: 2 * half] += strength * torch.outer(query, along)
    attention.k_proj.weight.data[: 2 * half] += strength * torch.outer(key, along)


def _parts(word: str) -> list[str]:
    """'a=3' -> letter a, kind '=', value 3; a word of no letter is its own part."""
    if word[0] == "?" and len(word) == 2:
        return [word[1], word[0]]
    if len(word) == 3 and word[0] in programs.LETTERS:
        return (
            [word[0], word[1:]]
            if word[1:] in (":=", "<-")
            else [word[0], word[1], "value " + word[2]]
        )
    return [word]


# --- rows -----------------------------------------------------------------------------------------


def row(text: str, trajectory: Iterable[str], answer: str) -> Row:
    """I ⊕ q ⊕ t ⊕ a of a question's text, a trajectory's words and an answer. KeyError names an
    unknown word.
    """
    prompt = ["<user>", *text.split(), INSTRUCTION, "<assistant>"]
    learnt = [*trajectory, ANSWER_TEMPLATE, *answer.split(), "}", "<end>"]
    return [VOCABULARY[word] for word in prompt + learnt], len(prompt)


def base_rows(seed: int, steps: int, batch: int = 64) -> Callable[[int], list[Row]]:
    """Step -> its batch of one-step questions: few statements first, then up to 8; few short
    trajectories at first.
    """

    def rows(step: int) -> list[Row]:
        rng = random.Random(f"base/{seed}/{step}")
        chains, short = 4 if step < 0.1 * steps else 8, 0.1 if step < 0.4 * steps else 0.425
        return [base_row(rng, chains, short) for _ in range(batch)]

    return rows


def base_row(rng: random.Random, chains: int, short: float) -> Row:
    """A one-step question of up to `chains` statements, some of which wait for a letter without a
    value; any format.

    A quarter is written in the other surface form; every operator; 15 % have no trajectory, a share
    of `short` a short one, the rest a long one; one trajectory in twelve is cut short.
    """
    count = rng.randint(2, chains)
    dangling = rng.randint(0, count - 2) if rng.random() < 0.5 else 0
    operators = programs.TRAINED + programs.OTHER
    program = programs.draw(
        rng, 1, chains=count, operators=operators, other_surface=rng.random() < 0.25
    )
    program = _without_values(program, dangling, rng)
    style = rng.choices(["long", "short", None], [0.85 - short, short, 0.15])[0]
    words = programs.trajectory(program, style, rng).text.split() if style else []
    if words and rng.random() < 1 / 12:
        words = words[: rng.randrange(len(words))]
    return row(program.text, words, program.answer())


def _without_values(program: Program, dangling: int, rng: random.Random) -> Program:
    """The program with that many inputs taken away, asking for two letters that still
    have a value.
    """
    gone = set(rng.sample([letter for letter, _ in program.inputs], dangling))
    inputs = tuple(settings for settings in program.inputs if settings[0] not in gone)
    reached = [s.name for s in program.statements if s.operand not in gone]
    return replace(program, inputs=inputs, asked=tuple(rng.sample(reached, 2)))


def sft_row(program: Program, words: Sequence[str], rng: random.Random) -> Row:
    """A program's question with a trajectory: whole in 84 % of rows, cut at a random word in 8 %,
    left out in 8 %.

    The last two teach the model to answer after any prefix, as well as it can: what a probe and
    no-thinking ask of it.
    """
    u = rng.random()
    kept = len(words) if u < 0.84 or not words else rng.randrange(len(words)) if u < 0.92 else 0
    return row(program.text, words[:kept], program.answer())


def collate(rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as right-padded ids and labels, (B, T) int64; -100 where nothing is learnt."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [VOCABULARY["<pad>"]] * (width - len(ids)) for ids, _ in rows])
    labels = torch.tensor(
        [[-100] * start + ids[start:] + [-100] * (width - len(ids)) for ids, start in rows]
    )
    return ids, labels


# --- training -------------------------------------------------------------------------------------

WARMUP = 50  # steps
DECAY = 0.3  # share of all steps, at their end
BETAS = (0.9, 0.98)  # of AdamW
ROWS_AT_ONCE = 16


def schedule(optimiser: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """The rate rises for 50 steps, stays, and falls to zero over the last 30 % of the steps."""
    settings = {"num_decay_steps": int(DECAY * steps)}
    warmup = min(WARMUP, steps // 10)
    return get_scheduler(
        "warmup_stable_decay", optimiser, warmup, steps, scheduler_specific_kwargs=settings
    )


def train(
    model: LlamaForCausalLM,
    rows: Callable[[int], Sequence[Row]],
    *,
    steps: int,
    peak_lr: float,
    stop: int | None = None,
    progress: bool = False,
) -> list[float]:
    """AdamW on the mean loss of all learnt tokens of a batch; returns the loss of every step, nats
    per token.

    rows: step -> the batch of that step. stop: leave off after that many of the `steps`. Trains in
    place. The same as `sft.sft` with full weights, without its trainer. Raises ValueError where
    steps < 1, and where a loss is not finite, naming the step.
    """
    if steps < 1:
        raise ValueError(f"steps={steps} trains nothing: give at least 1")
    optimiser = torch.optim.AdamW(model.parameters(), lr=peak_lr, betas=BETAS, weight_decay=0.0)
    rate, losses = schedule(optimiser, steps), []
    model.train()
    for step in tqdm(
        range(steps if stop is None else stop),
        desc="training",
        unit="step",
        disable=not progress,
        leave=False,
    ):
        optimiser.zero_grad()
        losses.append(_add_gradient(model, rows(step)))
        if not math.isfinite(losses[-1]):
            raise ValueError(f"the loss is {losses[-1]} at step {step}: lower peak_lr={peak_lr}")
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        rate.step()
    model.eval()
    return losses


def _add_gradient(model: LlamaForCausalLM, rows: Sequence[Row]) -> float:
    """Add the gradient of the mean loss of a batch's learnt tokens to the weights'; returns that
    loss.

    The rows go through the model by length, a few at a time: padded to the batch's longest row, a
    third of all work would be padding.
    """
    # a row's first token is never predicted
    learnt = sum(len(ids) - max(start, 1) for ids, start in rows)
    by_length, loss = sorted(rows, key=lambda row: len(row[0])), 0.0
    for k in range(0, len(rows), ROWS_AT_ONCE):
        ids, labels = collate(by_length[k : k + ROWS_AT_ONCE])
        placed = {"input_ids": ids.to(model.device), "labels": labels.to(model.device)}
        part = model(**placed, num_items_in_batch=learnt).loss
        part.backward()
        loss += part.item()
    return loss
