"""The final answer of a text: found, and compared with the right one.

What is written decides where it can: plain numbers by value (`notation`), letters, words and
collections by comparison. Everything else is Math-Verify's, run in a process of its own: its
time-outs need the main thread's signals, and an input such as `9**9**9**9` holds Python's
interpreter lock for ever. Run as a script (`python -m tml_lib.lm.grading`) this module is that
process: one JSON request a line in, one JSON reply a line out.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import re
import select
import subprocess
import sys
import threading
import time
import warnings
import weakref
from bisect import bisect_left

from tml_lib import checks
from tml_lib.lm import notation

_LONGEST = 1000  # characters of an answer that is compared by what is written
_BOX = re.compile(r"\\boxed\s*\{")
_WORDS = re.compile(r"[^\W\d_]+(?:[\s-]+[^\W\d_]+)*")
# a letter that is an option, not a word: 'the answer is C', '\boxed{C}', 'C is correct'
_OPTION = re.compile(
    r"""
    (?:
      (?i:answer|choice|solution)[ ]*(?i:is|:|=|must[ ]be|would[ ]be|to[ ]be)*[ ]*
        (?i:option|choice|letter)?
    | (?i:\b(?:so|hence|thus|therefore|choose|pick|select)),?[ ](?i:it[ ]is[ ]|option[ ]|choice[ ])*
    | \\boxed[ ]*\{
    )
    [\s:*$({]*(?:\\(?:text|mathrm|textbf|mathbf)\s*\{\(?)? (?P<letter>[A-J])(?![\w'])(?!\s*[=+])
    | (?<![\w'])(?P<first>[A-J])\)?\s+(?i:is|must[ ]be)\s+(?:the\s+)?(?i:right|correct|answer)
    """,
    re.VERBOSE,
)


def last_box(text: str) -> str | None:
    """What stands in the last complete \\boxed{...} of a text; None where there is none."""
    found = [(m.start(), m.end()) for m in _BOX.finditer(text)]
    if not found:
        return None
    start, depth = found[-1][1], 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start:end]
    return None


def options(text: str) -> list[tuple[int, str]]:
    """(offset, letter) of each option that a text gives as its answer: 'The answer is C', not
    'Consider option A'.
    """
    found = []
    for match in _OPTION.finditer(text):
        name = "letter" if match["letter"] else "first"
        found.append((match.start(name), match[name]))
    return found


def stated(text: str) -> notation.Number | None:
    """The number that a text without a box ends in, or that it calls its answer; None where it is
    part of a formula, or there is none.
    """
    found = list(notation.mentions(text))
    last = found[-1] if found else None
    starts = [one.start for one in found]
    for word in reversed(list(re.finditer(r"(?i:answer)[^\n]{0,100}", text))):
        own = found[bisect_left(starts, word.start()) : bisect_left(starts, word.end())]
        results = [one for one in own if re.search(r"=\s*[$€£]?\Z", _before(text, one))]
        if own:
            last = results[-1] if results else own[0]
            break
    if last is None:
        return None
    begins, ends = text.rfind("\n", 0, last.start) + 1, (text.find("\n", last.end) + 1 or None)
    line = text[begins : last.start] + text[last.end : ends]
    formula = re.search(r"\\(?!text|boxed|times|cdot|[$%,(){}\[\] ])|\^", line)
    after = text[last.end : last.end + 8]
    operand = re.search(r"[\d)]\s*[-+*/×÷^(][ ]*[$€£]?\Z", _before(text, last))
    return None if formula or operand or re.match(r"\s*(?:\*\*|[-+*/×÷^])\s*[\d(]", after) else last


def _before(text: str, found: notation.Number) -> str:
    return text[max(found.start - 8, 0) : found.start]


def decided(written: str, answer: str) -> bool | None:
    """Whether an answer as written equals the right one; None where mathematics must decide."""
    if max(len(written), len(answer)) > _LONGEST:
        return None
    mine, right = notation.number(written), notation.number(answer)
    if mine and right:
        return right.equals(mine)
    mine, right = notation.plain(written), notation.plain(answer)
    if re.fullmatch(r"\(?[A-J]\)?", right):
        found = re.fullmatch(r"\(?([A-Ja-j])\)?(?:[.:)]\s.*)?", mine, re.DOTALL)
        if found:
            return found[1].upper() == right.strip("()")
    words = [_WORDS.fullmatch(side.strip("()")) for side in (mine, right)]
    if all(words) and (len(right) > 2 or right.isupper()):
        return [w.group().casefold().split() for w in words[:1]] == [
            w.group().casefold().split() for w in words[1:]
        ]
    return _collections(mine, right)


def _collections(mine: str, right: str) -> bool | None:
    """Whether two sets, tuples or intervals are equal: of one kind, with the same plain numbers."""
    found = [
        re.fullmatch(r"(\\\{|[(\[])(.*,.*)(\\\}|[)\]])", side, re.DOTALL) for side in (mine, right)
    ]
    if not all(found):
        return None
    if found[0][1] != found[1][1] or found[0][3] != found[1][3]:
        return False
    items = [[notation.number(item) for item in one[2].split(",")] for one in found]
    if None in items[0] + items[1]:
        return None
    values = [[item.value for item in side] for side in items]
    if found[0][1] == "\\{":
        return set(values[0]) == set(values[1])
    return values[0] == values[1]


class Grader:
    """Reads and compares final answers, with a time limit per request; safe from any thread and in
    any process.

    What takes Math-Verify longer than `seconds` ends its process, counts as not gradable, and the
    next request starts another. A process that was forked from this one starts its own.
    """

    def __init__(self, seconds: float = 5.0):
        self.seconds = seconds
        self._forget()
        _graders.add(self)

    def extract(self, text: str) -> str | None:
        """The final answer written in a text, as the text writes it: the last \\boxed{}, else the
        number that it ends in; None if none. Raises TypeError for what is no text.
        """
        checks.texts(text=text)
        box = last_box(text)
        if box is not None and (found := notation.number(box)):
            return found.text + "%" * (found.scale < 1)
        if box is not None:
            return box.strip() or None
        if (found := stated(text)) is None:
            return self._ask({"extract": text})
        plain = notation.number(found.text)  # without its fonts
        return plain.text if plain else found.text

    def grade(self, text: str, answer: str) -> bool:
        """Whether the final answer written in the text equals the given one; what cannot be parsed
        is not equal. Raises TypeError for what is no text.
        """
        checks.texts(text=text, answer=answer)
        box, found = last_box(text), None
        if box is not None:
            found = decided(box, answer)
        elif number := stated(text):
            found = decided(number.text, answer)
        elif re.fullmatch("[A-J]", answer.strip()) and (letters := options(text)):
            found = letters[-1][1] == answer.strip()
        if found is None:
            asked = text if box is None else f"\\boxed{{{box}}}"
            found = self._ask({"grade": asked, "answer": answer})
        return bool(found)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _forget(self) -> None:
        """Begin without a process, as a fork must: the one that it knows is its parent's."""
        process = getattr(self, "_process", None)
        if process is not None:
            process.poll()  # not a child of this process, so that it counts as ended
            process.stdin.close()
            process.stdout.close()
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._number = 0
        self._unread = b""  # of its replies

    def _ask(self, request: dict):
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self.close()
                self._start()
            self._number += 1
            numbered = request | {"number": self._number, "seconds": self.seconds}
            try:
                self._process.stdin.write(json.dumps(numbered) + "\n")
                self._process.stdin.flush()
                reply = self._read(self.seconds, self._number)
            except BaseException:  # a signal's handler may raise: its reply must reach nobody
                self.close()
                raise
            if reply is None:  # out of time, or it died
                self.close()
            return None if reply is None else reply["value"]

    def _start(self) -> None:
        command = [sys.executable, "-m", "tml_lib.lm.grading"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self._process, self._unread = subprocess.Popen(command, text=True, **pipes), b""
        try:
            reply = self._read(120.0, 0)  # importing sympy takes a second or two
        except BaseException:
            self.close()
            raise
        if reply is None or reply["value"] != "ready":
            self.close()
            raise RuntimeError(
                "the grading process did not start: check that `python -c 'import math_verify'`"
                " works"
            )
        if not reply["limited"]:
            _say_unlimited()

    def _read(self, seconds: float, number: int) -> dict | None:
        """The reply of this number; others belong to requests that were given up."""
        until, source = time.monotonic() + seconds, self._process.stdout.fileno()
        while True:
            # lines are parted here: a reader with a buffer would keep a second reply from `select`
            line, end, rest = self._unread.partition(b"\n")
            if end:
                self._unread, reply = rest, json.loads(line)
                if reply["number"] == number:
                    return reply
                continue
            left = max(until - time.monotonic(), 0)
            if not select.select([source], [], [], left)[0]:
                return None
            if not (piece := os.read(source, 1 << 16)):
                return None
            self._unread += piece


_graders: weakref.WeakSet[Grader] = weakref.WeakSet()
_said: list[bool] = []
_shared = Grader()
atexit.register(_shared.close)
os.register_at_fork(after_in_child=lambda: [grader._forget() for grader in _graders])


def extract(text: str) -> str | None:
    """`Grader.extract` of a shared grader with a limit of 5 seconds."""
    return _shared.extract(text)


def grade(text: str, answer: str) -> bool:
    """`Grader.grade` of a shared grader with a limit of 5 seconds."""
    return _shared.grade(text, answer)


def _say_unlimited() -> None:
    """Say once per process that answers are graded without a limit on memory."""
    if not _said:
        _said.append(True)
        warnings.warn(
            "this system does not limit the memory of a process (RLIMIT_AS), so that answers are"
            " graded without that limit; a huge power in a text may use much memory for a few"
            " seconds",
            RuntimeWarning,
            stacklevel=2,
        )


def limit_memory(most: int = 4 << 30) -> bool:
    """Limit this process's address space in bytes, or keep a lower limit; False where the system
    has no such limit.
    """
    import resource

    try:
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    except (OSError, ValueError):
        return False
    return True


def _serve() -> None:
    import signal

    # a power tower must not take the machine down before its time is up
    limited = limit_memory()
    from math_verify import parse, verify

    # should the asking process end meanwhile, the system ends this one
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    print(json.dumps({"number": 0, "value": "ready", "limited": limited}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        signal.alarm(math.ceil(request["seconds"]) + 1)
        try:
            found = parse(request.get("grade", request.get("extract")), parsing_timeout=None)
            if "grade" in request:
                wanted = parse(f"\\boxed{{{request['answer']}}}", parsing_timeout=None)
                reply = bool(wanted and found and verify(wanted, found, timeout_seconds=None))
            else:
                reply = str(found[-1]) if found else None
        except Exception:
            reply = None
        signal.alarm(0)
        print(json.dumps({"number": request["number"], "value": reply}), flush=True)


if __name__ == "__main__":
    _serve()
