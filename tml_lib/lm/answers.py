"""Prompts, the answer template, exact token seams, extraction and grading.

Grading is Math-Verify's, run in a process of its own: its time-outs need the main thread's signals,
and an input such as `9**9**9**9` holds Python's interpreter lock for ever. Run as a script (`python
-m tml_lib.lm.answers`) this module is that
process: one JSON request a line in, one JSON reply a line out.
"""

from __future__ import annotations

import atexit
import json
import select
import subprocess
import sys
import threading
from dataclasses import dataclass

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
# RaML's Algorithms 3 and 4 append it, then the answer
ANSWER_TEMPLATE = "\n\n**Final Answer**\n\\boxed{"


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
    without one.
    """
    content = f"{question}\n{instruction}" if instruction else question
    if not getattr(tokenizer, "chat_template", None):
        return f"{content}\n\n"
    message = [{"role": "user", "content": content}]
    return tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)


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
    left, right = _split(tokenizer, prompt, trajectory, "prompt and trajectory")
    offsets = tokenizer(prompt + trajectory, add_special_tokens=False, return_offsets_mapping=True)[
        "offset_mapping"
    ]
    ends = [max(end - len(prompt), 0) for _, end in offsets[len(left) :]]
    starts = [0, *ends][: len(ends)]
    suffixes = []
    for answer in answers:
        before, own = _split(tokenizer, template, answer, "answer template and answer")
        if not own:
            raise ValueError(
                f"answer {answer!r} tokenises to nothing, so it has no likelihood: give a non-empty"
                " answer"
            )
        suffixes.append(Suffix(tuple(before + own), len(before), answer))
    texts = tuple(trajectory[a:b] for a, b in zip(starts, ends, strict=True))
    return Encoded(tuple(left), tuple(right), tuple(suffixes), texts, tuple(ends))


def _split(tokenizer, left: str, right: str, what: str) -> tuple[list[int], list[int]]:
    """Token ids of both sides, where the left side's own ids begin the joint ones; else the seam is
    no boundary.
    """
    first = tokenizer(left, add_special_tokens=False)["input_ids"]
    both = tokenizer(left + right, add_special_tokens=False)["input_ids"]
    if both[: len(first)] != first:
        raise ValueError(
            f"the seam between {what} is no token boundary: {left[-12:]!r} and {right[:12]!r} share"
            " a token; end the left side or begin the right side with other white space or"
            " punctuation"
        )
    return first, both[len(first) :]


# --- grading --------------------------------------------------------------------------------------


class Grader:
    """Math-Verify in a child process, with a time limit per request; safe from any thread.

    A request that takes longer than `seconds` ends the child, counts as not gradable, and the next
    one starts afresh.
    """

    def __init__(self, seconds: float = 5.0):
        self.seconds = seconds
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None

    def extract(self, text: str) -> str | None:
        """The final answer written in a text (the last \\boxed{} or number, as Math-Verify finds
        it); None if none.
        """
        return self._ask({"extract": _last_box(text)})

    def grade(self, text: str, answer: str) -> bool:
        """Whether the final answer written in the text equals the given one; what cannot be parsed
        is not equal.
        """
        return bool(self._ask({"grade": _last_box(text), "answer": answer}))

    def close(self) -> None:
        """End the child process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ask(self, request: dict):
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self.close()
                self._start()
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            reply = self._read(self.seconds)
            if reply is None:  # out of time, or it died
                self.close()
            return None if reply is None else reply["value"]

    def _start(self) -> None:
        command = [sys.executable, "-m", "tml_lib.lm.answers"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen(command, text=True, **pipes)
        if self._read(120.0) != {"value": "ready"}:  # importing sympy takes a second or two
            self.close()
            raise RuntimeError(
                "the grading process did not start: check that `python -c 'import math_verify'`"
                " works"
            )

    def _read(self, seconds: float) -> dict | None:
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            return None
        line = self._process.stdout.readline()
        return json.loads(line) if line else None


def _last_box(text: str) -> str:
    """The last complete \\boxed{...} of a text, the whole text where there is none: Math-Verify
    would join several.
    """
    start = text.rfind("\\boxed{")
    depth = 0
    for end in range(start, len(text)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0 and text[end] == "}":
            return text[start : end + 1]
    return text


_shared = Grader()
atexit.register(_shared.close)


def extract(text: str) -> str | None:
    """`Grader.extract` of a shared grader with a limit of 5 seconds."""
    return _shared.extract(text)


def grade(text: str, answer: str) -> bool:
    """`Grader.grade` of a shared grader with a limit of 5 seconds."""
    return _shared.grade(text, answer)


def _serve() -> None:
    import resource

    # bytes of address space: a power tower must not take the machine down before its time is up
    limit = 4 << 30
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    from math_verify import parse, verify

    print(json.dumps({"value": "ready"}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            found = parse(request.get("grade", request.get("extract")), parsing_timeout=None)
            if "grade" in request:
                wanted = parse(f"\\boxed{{{request['answer']}}}", parsing_timeout=None)
                reply = bool(wanted and found and verify(wanted, found, timeout_seconds=None))
            else:
                reply = str(found[-1]) if found else None
        except Exception:
            reply = None
        print(json.dumps({"value": reply}), flush=True)


if __name__ == "__main__":
    _serve()
