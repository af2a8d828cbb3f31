"""Chat prompts with thinking on and off, and a model's text divided into trajectory and answer
part.

Three kinds of chat template are known. Qwen3's takes `enable_thinking`: on, the model opens the
thinking itself; off, the template writes an empty block. QwQ-32B's always opens the thinking, so
that RaML makes the model answer at once by a sentence (§4.1, Fig. 5). A third kind does neither. A
prompt of this module always ends where the trajectory or the answer begins, so that
`answers.encode` and `probe.probe` take it as it is; they refuse a seam that is no token boundary.
"""

from __future__ import annotations

from tml_lib.lm.answers import INSTRUCTION
from tml_lib.lm.templates import rendered

THINK = ("<think>", "</think>")  # Qwen3, QwQ, DeepSeek-R1 and its distillations
PAIRS = (
    THINK,
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
# RaML's no-thinking sentence for QwQ
AT_ONCE = "Therefore, after all this, I believe the answer is"


def delimiters(tokenizer) -> tuple[str, str]:
    """The marks that open and close the thinking: the first pair of PAIRS that the vocabulary
    holds, else the chat template.

    Raises ValueError where neither holds one: such a model does not think apart from its answer.
    """
    template = _template(tokenizer)
    for pair in PAIRS:
        if all(_is_token(tokenizer, mark) for mark in pair):
            return pair
    for pair in PAIRS:
        if all(mark in template for mark in pair):
            return pair
    raise ValueError(
        f"{type(tokenizer).__name__} has no thinking marks in its vocabulary or chat template"
        f" (looked for {', '.join('…'.join(pair) for pair in PAIRS)}): take a model that thinks,"
        " such as Qwen/Qwen3-0.6B, or answers.chat_prompt, which needs none"
    )


def has_marks(tokenizer) -> bool:
    """Whether `delimiters` finds a pair of marks."""
    try:
        delimiters(tokenizer)
    except ValueError:
        return False
    return True


def chat_prompt(
    tokenizer, question: str, thinking: bool = True, instruction: str = INSTRUCTION
) -> str:
    """I ⊕ q up to where the trajectory begins (thinking), or to where the answer begins
    (no-thinking, RaML §4.1, Fig. 5).

    On, the prompt ends with the opening mark and a line break. Off, it ends with an empty thinking
    block, or with the sentence AT_ONCE where the template opens the thinking whatever it is told.
    Raises ValueError as `delimiters`, and where the template closes the thinking although it is
    told to think.
    """
    opening, closing = delimiters(tokenizer)
    # under the two names that templates use
    told = {"enable_thinking": thinking, "thinking": thinking}
    prompt = rendered(tokenizer, question, instruction, **told)
    ending = prompt.rstrip()
    if thinking:
        if ending.endswith(closing):
            raise ValueError(
                f"the chat template of {type(tokenizer).__name__} ends with {ending[-40:]!r}"
                " although thinking is asked for: take the thinking model of this family, or"
                " thinking=False"
            )
        return prompt if ending.endswith(opening) else f"{prompt}{opening}\n"
    if ending.endswith(closing):
        return prompt
    return (
        f"{prompt}{AT_ONCE}" if ending.endswith(opening) else f"{prompt}{opening}\n\n{closing}\n\n"
    )


def split(text: str, tokenizer, thinking: bool = True) -> tuple[str, str]:
    """What a model wrote after `chat_prompt`, as (trajectory, answer part); the marks belong to
    neither.

    A text without marks is a trajectory that was cut short (thinking), or all answer (the prompt
    was a no-thinking one). Raises ValueError as `delimiters`.
    """
    opening, closing = delimiters(tokenizer)
    if not thinking and closing not in text:
        return "", text
    return divide(text, opening, closing)


def divide(text: str, opening: str = THINK[0], closing: str = THINK[1]) -> tuple[str, str]:
    """(trajectory, answer part) of a text: what stands before the last closing mark, and what
    stands behind it.

    The opening mark may be missing, for a template may have written it. White space around the
    marks is dropped.
    """
    before, mark, after = text.rpartition(closing)
    trajectory, answer = (before, after) if mark else (text, "")
    return trajectory.strip().removeprefix(opening).strip(), answer.lstrip()


def _is_token(tokenizer, mark: str) -> bool:
    token = tokenizer.convert_tokens_to_ids(mark)
    return token is not None and tokenizer.convert_ids_to_tokens(token) == mark


def _template(tokenizer) -> str:
    """The chat template as text; a tokenizer may have several, by name."""
    template = getattr(tokenizer, "chat_template", None) or ""
    return "\n".join(template.values()) if isinstance(template, dict) else template
