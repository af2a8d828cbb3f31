"""The role study: which tokens of a trajectory move L̂, and what its reflections do (C6), for
programs and for text.

Every question has two trajectories by rule: in one a slip is taken back with 'Wait', in the other a
step is begun too early and given up with 'Alternatively'. So each reflection's place is known, and
the prefix without it can be probed beside it.
Deviations from the paper: it reads token roles off trajectories that a large model wrote;
`own_rows` does that for any model.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tml_lib.data import gsm, programs
from tml_lib.data.gsm_variants import Reflecting
from tml_lib.lm import sampling
from tml_lib.lm.answers import Encoded, encode
from tml_lib.lm.models import LanguageModel
from tml_lib.measure.answer_rows import answer_nll, batched
from tml_lib.measure.probe import probe
from tml_lib.records import Question

REFLECTIONS = ("Wait", "Alternatively")
# looked for in a model's own text
MARKS = (*REFLECTIONS, "Hold on", "However", "Therefore", "Since", "So")
TINY = 1e-6  # nats: what single precision can still tell from 0
Piece = tuple[str, int, int]  # a class and the tokens that it covers, first..last + 1


# --- trajectories and their pieces ----------------------------------------------------------------


def reflecting(question: Question, seed: int) -> list[Reflecting]:
    """A self-correcting and an exploring trajectory of a program, by rule. In place of the mark
    `instead` has a full stop.
    """
    program, found = programs.parse(question.text), []
    for style, mark in zip(("self_correcting", "exploring"), REFLECTIONS, strict=True):
        words = programs.trajectory(
            program, style, random.Random(f"{question.id}/{style}/{seed}")
        ).text.split()
        at = words.index(mark)
        before, ends = " ".join(words[:at]) + " ", len(" ".join(words[: at + 2]))
        settings = {}
        if mark == "Wait":
            needless = " ".join([*words[: at - 1], words[at + 1], mark, words[at + 1]])
            settings = {
                "slip": len(before) - 1 - len(words[at - 1]),
                "repaired": ends,
                "needless": needless,
            }
        found.append(Reflecting(" ".join(words), mark, len(before), f"{before}.", **settings))
    return found


def word_class(words: Sequence[str], k: int, answer: str) -> str:
    """What a program's k-th word is: 'name', 'operation', 'operand', 'slip', 'value', 'answer',
    '?', or the word itself.
    """
    word = words[k]
    if word in (*REFLECTIONS, "."):
        return word
    if word.endswith(":="):
        return "name"
    if word.endswith("=?"):
        return "?"
    if word[1:2] != "=":
        return "operation"
    if k and words[k - 1][1:2] in set("+*-/"):
        return "operand"
    if words[k + 1 : k + 2] == ["Wait"]:
        return "slip"
    return "answer" if word in answer.split() else "value"


def program_pieces(text: str, encoded: Encoded, answer: str) -> list[Piece]:
    """Every word of a program's trajectory, which is one token, with its class."""
    words = text.split()
    return [(word_class(words, k, answer), k, k + 1) for k in range(len(words))]


def text_pieces(text: str, encoded: Encoded, answer: str) -> list[Piece]:
    """The tokens of a text: a mark (all its tokens at once), 'answer' and 'number' (a digit), '.'
    (ends a step), or 'other'.
    """
    found = []
    for match in re.finditer(rf"\b({'|'.join(MARKS)})\b", text):
        found.append(
            (
                match.group(),
                encoded.tokens_before(match.start()),
                encoded.tokens_before(match.end()),
            )
        )
    marked = {k for _, first, last in found for k in range(first, last)}
    stated = gsm.first_mention(text, answer)
    for k, token in enumerate(encoded.tokens):
        if k in marked:
            continue
        if any(c.isdigit() for c in token):
            here = stated is not None and encoded.ends[k] > stated
            name = (
                "answer" if here and _number_at(text, encoded.ends[k] - 1) == answer else "number"
            )
        else:
            name = "." if "\n" in token or token.strip() in (".", "?", "!") else "other"
        found.append((name, k, k + 1))
    return sorted((piece for piece in found if piece[1] < piece[2]), key=lambda piece: piece[1])


def _number_at(text: str, offset: int) -> str:
    """The number that covers a character, without its thousands separators."""
    return next(
        (
            m.group().replace(",", "")
            for m in gsm.NUMBER.finditer(text)
            if m.start() <= offset < m.end()
        ),
        "",
    )


# --- values ---------------------------------------------------------------------------------------


def rows_of(nll: np.ndarray, pieces: Iterable[Piece]) -> list[list]:
    """A row [class, L̂ before, L̂ after] per piece; nll: (tokens + 1,)."""
    return [[name, float(nll[first]), float(nll[last])] for name, first, last in pieces]


def end_nlls(
    lm: LanguageModel, question: Question, texts: Sequence[str], batch_size: int = 8
) -> np.ndarray:
    """L̂ after each whole text, many of them in a pass, in nats per token: (len(texts),)."""
    prompt, rows, nll = lm.prompt(question.text), [], np.empty(len(texts))
    for text in texts:
        encoded = encode(lm.tokenizer, prompt, text, [question.answer])
        rows.append(([*encoded.prompt, *encoded.trajectory], encoded.suffixes[0]))
    for batch in batched(lm.model, rows, batch_size):
        nll[batch.places] = answer_nll(lm.model, batch)
    return nll


def role_values(
    lm: LanguageModel,
    question: Question,
    found: Sequence[Reflecting],
    pieces: Callable[..., list[Piece]],
) -> tuple[dict[str, float], list[list]]:
    """The values of C6 for one question, and for the figure the rows of all its tokens.

    found: as `reflecting` gives them; pieces: `program_pieces` or `text_pieces`. after_error: the
    fall from before 'Wait' to behind the value that follows it, after a real slip minus after a
    right value that is said again.
    """
    prompt, table, replaced, error = lm.prompt(question.text), [], {}, math.nan
    for one in found:
        encoded = encode(lm.tokenizer, prompt, one.text, [question.answer])
        nll = probe(lm, prompt, one.text, question.answer).answer_nll
        table += rows_of(nll, pieces(one.text, encoded, question.answer))
        before, behind = (
            encoded.tokens_before(offset) for offset in (one.at, one.at + len(one.mark))
        )
        replaced[one.mark] = end_nlls(lm, question, [one.instead])[0] - nll[behind]
        if one.needless:
            start = one.needless.rindex(one.mark)
            texts = [one.needless[:start].rstrip(), one.needless]
            said, again = end_nlls(lm, question, texts)
            error = nll[before] - nll[encoded.tokens_before(one.repaired)] - (said - again)
    values = _by_role(table) | {
        "C6.replaced": float(np.mean(list(replaced.values()))),
        **{f"C6.replaced_{mark.lower()}": float(change) for mark, change in replaced.items()},
        "C6.after_error": float(error),
    }
    return values, [[name, round(before, 5), round(after, 5)] for name, before, after in table]


def _by_role(table: Sequence[Sequence]) -> dict[str, float]:
    """Reflections against the other tokens of the same trajectories, by each measure of change; an
    L̂ of 0 counts as TINY.
    """
    names, before, after = (np.array(column) for column in zip(*table, strict=True))
    before, after = np.maximum(before, TINY), np.maximum(after, TINY)
    change, reflects = after - before, np.isin(names, REFLECTIONS)
    relative, log_ratio, ends = (
        np.abs(change) / before,
        np.abs(np.log(after / before)),
        names == ".",
    )
    values = {
        "C6.relative": relative[reflects].mean() - relative[~reflects].mean(),
        "C6.absolute": np.abs(change)[reflects].mean() - np.abs(change)[~reflects].mean(),
        "C6.over_ends": (
            np.abs(change)[reflects].mean() - np.abs(change)[ends].mean()
            if ends.any()
            else math.nan
        ),
        "C6.wait": np.abs(change)[names == "Wait"].mean() - np.abs(change)[~reflects].mean(),
        "C6.alternatively": (
            np.abs(change)[names == "Alternatively"].mean() - np.abs(change)[~reflects].mean()
        ),
        "C6.relative_median": np.median(relative[reflects]) - np.median(relative[~reflects]),
        "C6.log_ratio": log_ratio[reflects].mean() - log_ratio[~reflects].mean(),
        "C6.signed": change[reflects].mean(),
    }
    return {name: float(number) for name, number in values.items()}


def by_class(tokens: Sequence[Sequence]) -> dict[str, dict[str, float]]:
    """Rows -> per class the mean |ΔL̂|, mean ΔL̂ (nats per token), mean and median |ΔL̂|/L̂, and n."""
    found = {}
    for name in dict.fromkeys(row[0] for row in tokens):
        before, after = (np.array([row[k] for row in tokens if row[0] == name]) for k in (1, 2))
        change, relative = after - before, np.abs(after - before) / np.maximum(before, TINY)
        numbers = {
            "absolute": np.abs(change).mean(),
            "signed": change.mean(),
            "relative": relative.mean(),
        }
        numbers |= {"relative_median": np.median(relative), "n": len(change)}
        found[name] = {key: round(float(number), 5) for key, number in numbers.items()}
    return found


# --- a model's own trajectories -------------------------------------------------------------------


def own_rows(
    lm: LanguageModel,
    questions: Sequence[Question],
    pieces: Callable[..., list[Piece]],
    *,
    seed: int,
    temperature: float = 0.7,
    most_tokens: int = 160,
) -> list[list]:
    """The rows of one sampled trajectory per question, cut after `most_tokens`; questions with an
    empty one are left out.
    """
    prompts, table = [lm.prompt(question.text) for question in questions], []
    settings = {"temperature": temperature, "max_new_tokens": most_tokens, "batch_size": 32}
    written = sampling.sample(lm, prompts, sampling.row_seeds(seed, len(prompts)), **settings)
    for question, prompt, text in zip(questions, prompts, sampling.texts(lm, written), strict=True):
        own = lm.unanswered(text)
        if own:
            encoded = encode(lm.tokenizer, prompt, own, [question.answer])
            nll = probe(lm, prompt, own, question.answer).answer_nll
            table += rows_of(nll, pieces(own, encoded, question.answer))
    return table


def absent(rows: Sequence[Sequence], marks: Sequence[str] = REFLECTIONS) -> str:
    """Which marks occur in none of the rows, as a sentence; empty where all occur."""
    missing = [mark for mark in marks if mark not in {row[0] for row in rows}]
    if not missing:
        return ""
    rest = (
        "nothing is left to compare"
        if len(missing) == len(marks)
        else "the others are compared without"
    )
    return (
        f"{' and '.join(missing)}: not once in {len(rows)} tokens; {rest}. Ask a model that"
        " reflects, or more questions."
    )


# --- what the reader needs ------------------------------------------------------------------------


def left_out(lm: LanguageModel, question: Question, words: Sequence[str]) -> np.ndarray:
    """Per word, L̂ after the trajectory without it minus L̂ after the whole, nats per token:
    (len(words),).
    """
    texts = [" ".join([*words[:k], *words[k + 1 :]]) for k in range(len(words))]
    whole, *without = end_nlls(lm, question, [" ".join(words), *texts])
    return np.array(without) - whole


def thinned(
    lm: LanguageModel, question: Question, words: Sequence[str], order: Sequence[int]
) -> np.ndarray:
    """L̂ after the trajectory without the first k words of `order`, for k = 0..len(order):
    (len(order) + 1,).
    """
    gone = [set(order[:k]) for k in range(len(order) + 1)]
    texts = [" ".join(w for j, w in enumerate(words) if j not in left) for left in gone]
    return end_nlls(lm, question, texts)
