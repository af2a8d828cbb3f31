"""Prompts, the answer template, and text as token ids with exact seams.

`extract`, `grade` and `Grader` stand in `grading` and can be had from here too.
"""

from __future__ import annotations

import json
import weakref
from dataclasses import dataclass

from tml_lib import checks
from tml_lib.lm.grading import Grader, extract, grade
from tml_lib.lm.templates import rendered

__all__ = ["ANSWER_TEMPLATE", "INSTRUCTION", "Encoded", "Grader", "Suffix", "chat_prompt", "encode"]
__all__ += ["extract", "grade", "token_ids"]

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
# RaML's Algorithms 3 and 4 append it, then the answer
ANSWER_TEMPLATE = "\n\n**Final Answer**\n\\boxed{"
_ANSWER_SEAM = "answer template and answer"


@dataclass(frozen=True)
class Suffix:
    """What is appended after a prefix: template and answer, as token ids; the answer's own tokens
    start at `start`.
    """

    ids: tuple[int, ...]
    start: int
    answer: str


@dataclass(frozen=True)
class Encoded:
    """I ⊕ q, t and the candidate suffixes as token ids; their seams are token boundaries."""

    prompt: tuple[int, ...]
    trajectory: tuple[int, ...]
    suffixes: tuple[Suffix, ...]
    tokens: tuple[str, ...]  # (|t|,) the text that each trajectory token covers
    # (|t|,) character offset in the trajectory's text at which each token ends
    ends: tuple[int, ...]

    def tokens_before(self, offset: int) -> int:
        """How many trajectory tokens end at or before a character offset of the
        trajectory's text.
        """
        return sum(end <= offset for end in self.ends)


def chat_prompt(tokenizer, question: str, instruction: str = INSTRUCTION) -> str:
    """I ⊕ q as the model's own chat template writes it, ready for the assistant's words; plain text
    without one. Raises as `templates.rendered`.
    """
    return rendered(tokenizer, question, instruction)


def encode(
    tokenizer,
    prompt: str,
    trajectory: str,
    answers: list[str] | tuple[str, ...],
    template: str = ANSWER_TEMPLATE,
) -> Encoded:
    """Tokenise prompt ⊕ trajectory, and template ⊕ answer for each candidate answer.

    Two seams must be token boundaries, prompt|trajectory and template|answer: else ValueError. The
    seam between trajectory and template is a cut between tokens by definition, because Algorithm 3
    makes it after every single token. Also raises ValueError where an answer tokenises to nothing,
    TypeError for a tokenizer that cannot report offsets.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise TypeError(
            f"{type(tokenizer).__name__} reports no character offsets: load the fast tokenizer of"
            " this model"
        )
    checks.texts(prompt=prompt, trajectory=trajectory, template=template)
    if isinstance(answers, str) or not all(isinstance(answer, str) for answer in answers):
        raise TypeError(f"answers={answers!r} is no list of texts: give one such as ['42']")
    left, right = _split(tokenizer, prompt, trajectory, "prompt and trajectory")
    opening = len(_opening(tokenizer, prompt + trajectory))
    offsets = _read(tokenizer, prompt + trajectory)[1]
    ends = [max(end - len(prompt), 0) for _, end in offsets[len(left) - opening :]]
    starts = [0, *ends][: len(ends)]
    suffixes = []
    for answer in answers:
        before, own = _split(tokenizer, template, answer, _ANSWER_SEAM, begins=False)
        if not own:
            raise ValueError(
                f"answer {answer!r} tokenises to nothing, so it has no likelihood: give a non-empty"
                " answer"
            )
        suffixes.append(Suffix(tuple(before + own), len(before), answer))
    texts = tuple(trajectory[a:b] for a, b in zip(starts, ends, strict=True))
    return Encoded(tuple(left), tuple(right), tuple(suffixes), texts, tuple(ends))


def token_ids(tokenizer, text: str, *, begins: bool = True) -> list[int]:
    """The token ids of a text: the one place where the kit turns text into ids.

    begins: the text begins the sequence, so that the tokenizer's own first tokens (BOS) stand
    before it, once, unless its chat template goes without them. Otherwise it continues other text:
    it has no BOS, and none of the space that SentencePiece puts before a first word. Raises
    ValueError for words that the tokenizer does not know.
    """
    ids = _read(tokenizer, text, begins=begins)[0]
    return [*_opening(tokenizer, text), *ids] if begins else ids


def _read(tokenizer, text: str, *, begins: bool = True) -> tuple[list[int], list]:
    """Token ids and character offsets, without special tokens; each word must be known."""
    reader, fast = None if begins else _continuing(tokenizer), getattr(tokenizer, "is_fast", False)
    if reader is not None:
        found = reader.encode(text, add_special_tokens=False)
        ids, offsets = found.ids, found.offsets
    else:
        asked = {"return_offsets_mapping": True} if fast else {}
        found = tokenizer(text, add_special_tokens=False, **asked)
        ids, offsets = list(found["input_ids"]), found["offset_mapping"] if fast else None
    if unknown := _unknown(tokenizer, text, ids, offsets):
        shown = ", ".join(repr(word) for word in unknown[:8])
        raise ValueError(
            f"{type(tokenizer).__name__} has no tokens for {shown}"
            f"{' and others' if len(unknown) > 8 else ''}: leave these words out, or take a model"
            " whose tokenizer knows them"
        )
    return ids, offsets


def _unknown(tokenizer, text: str, ids: list[int], offsets: list | None) -> list[str]:
    """The words that became the unknown token, and those that no token covers; a slow tokenizer
    does not tell.
    """
    if offsets is None:
        return []
    names = {tokenizer.unk_token, getattr(tokenizer.backend_tokenizer.model, "unk_token", None)}
    unknown = {token: tokenizer.convert_tokens_to_ids(token) for token in names if token}
    found, bare, done = [], "", 0
    for token, (start, end) in zip(ids, offsets, strict=True):
        word = text[start:end].strip()
        if token in unknown.values() and word not in unknown:
            found.append(word)
        bare, done = bare + text[done:start].strip(), max(done, end)
    if bare := bare + text[done:].strip():  # offsets shift behind a character that is dropped
        alone = [c for c in text if not tokenizer(c, add_special_tokens=False)["input_ids"]]
        found += [c for c in alone if c.strip()] or [bare]
    return list(dict.fromkeys(found))


def _opening(tokenizer, text: str) -> list[int]:
    """The tokens that the tokenizer itself puts before a text, such as BOS; none where the text
    begins with them, or where a chat template goes without.
    """
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    places = (k for k in range(len(whole)) if whole[k : k + len(bare)] == bare)
    opening = list(whole[: next(places, 0)])
    template = getattr(tokenizer, "chat_template", None) or ""
    template = "".join(template.values()) if isinstance(template, dict) else template
    written = tokenizer.convert_ids_to_tokens(opening)
    if template and "bos_token" not in template and not all(mark in template for mark in written):
        return []
    return [] if text.startswith("".join(written)) else opening


# tokenizer -> its size, and its reader of texts that continue others
_readers: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def _continuing(tokenizer):
    """The tokenizer's rules without the one that puts a space before a text; None where it has no
    such rule.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not _adds_space(backend):
        return None
    size, reader = _readers.get(tokenizer, (None, None))
    if size != len(tokenizer):
        import tokenizers

        rules = json.loads(backend.to_str())
        rules |= {part: _without_space(rules[part]) for part in ("normalizer", "pre_tokenizer")}
        reader = tokenizers.Tokenizer.from_str(json.dumps(rules))
        reader.no_truncation()
        reader.no_padding()
        if _adds_space(reader):
            raise TypeError(
                f"{type(tokenizer).__name__} puts a space before every text by a rule that is not"
                " known here, so an answer cannot be appended: take another model"
            )
        _readers[tokenizer] = (len(tokenizer), reader)
    return reader


def _adds_space(backend) -> bool:
    """Whether these rules read 'a' as ' a'."""
    text = backend.normalizer.normalize_str("a") if backend.normalizer else "a"
    pieces = backend.pre_tokenizer.pre_tokenize_str(text) if backend.pre_tokenizer else [(text,)]
    return "".join(piece[0] for piece in pieces) != "a"


def _without_space(rule):
    """A normaliser's or pre-tokeniser's rule, as JSON, without the space before a text."""
    if not rule:
        return rule
    if rule["type"] == "Prepend":
        return None
    for inner in ("normalizers", "pretokenizers"):
        if inner in rule:
            kept = [_without_space(one) for one in rule[inner]]
            return rule | {inner: [one for one in kept if one]}
    changes = {"prepend_scheme": "never", "add_prefix_space": False}
    return rule | {name: to for name, to in changes.items() if name in rule}


def _split(
    tokenizer, left: str, right: str, what: str, *, begins: bool = True
) -> tuple[list[int], list[int]]:
    """Token ids of both sides, where the left side's own ids begin the joint ones; else the seam is
    no boundary.
    """
    first = token_ids(tokenizer, left, begins=begins)
    both = token_ids(tokenizer, left + right, begins=begins)
    if both[: len(first)] != first:
        raise ValueError(
            f"the seam between {what} is no token boundary: {left[-12:]!r} and {right[:12]!r} share"
            " a token; end the left side or begin the right side with other white space or"
            " punctuation"
        )
    return first, both[len(first) :]
