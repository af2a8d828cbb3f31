"""A model's own chat template, rendered within limits: it comes with the model, and a file may hold
one that is broken or that never ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import threading
from collections.abc import Callable, Iterator

from tml_lib import checks

SECONDS = 10.0  # real ones take milliseconds
MEMORY = 1 << 30  # bytes beside what the process holds already
LONGEST = 1_000_000  # characters of a prompt beside the question's own
STEP = (
    "correct it (chat_template.jinja, or an entry of tokenizer_config.json), or take it out of the"
    " model's folder, and prompts are plain text"
)


def rendered(tokenizer, question: str, instruction: str, **told) -> str:
    """I ⊕ q as the model's chat template writes it, ready for the assistant's words; plain text
    without one. told: what the template is told besides.

    Raises TypeError for a question that is no text, ValueError where the template is broken,
    raises, takes more than SECONDS or MEMORY, writes more than LONGEST characters, or leaves the
    question out.
    """
    checks.texts(question=question, instruction=instruction)
    content = f"{question}\n{instruction}" if instruction else question
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return f"{content}\n\n"
    for source in template.values() if isinstance(template, dict) else [template]:
        if _has_power(source):
            raise ValueError(_said(tokenizer, "computes a power (**), which may take for ever"))
    message = [{"role": "user", "content": content}]
    try:
        with _memory_limited():
            prompt = _within(
                lambda: tokenizer.apply_chat_template(
                    message, tokenize=False, add_generation_prompt=True, **told
                )
            )
    except TimeoutError as error:
        raise ValueError(_said(tokenizer, f"does not end within {SECONDS:g} s")) from error
    except MemoryError as error:
        raise ValueError(_said(tokenizer, f"takes more than {MEMORY} bytes of memory")) from error
    # jinja's own errors, and any of Python's
    except Exception as error:
        reason = f"cannot be rendered ({type(error).__name__}: {str(error)[:200]})"
        raise ValueError(_said(tokenizer, reason)) from error
    if len(prompt) > LONGEST + 10 * len(content):
        raise ValueError(_said(tokenizer, f"writes {len(prompt)} characters for one question"))
    if question.strip() not in prompt and json.dumps(question)[1:-1] not in prompt:
        raise ValueError(_said(tokenizer, f"leaves the question {question[:60]!r} out"))
    return prompt


def _said(tokenizer, reason: str) -> str:
    name = getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__
    return f"the chat template of {name} {reason}: {STEP}"


@functools.cache
def _has_power(source: str) -> bool:
    """Whether a template computes powers: a single one may take hours, and cannot be ended."""
    import jinja2

    try:
        tokens = list(jinja2.Environment().lex(source))
    except jinja2.TemplateError:  # rendering says it
        return False
    return any(kind == "operator" and text == "**" for _, kind, text in tokens)


# --- limits ---------------------------------------------------------------------------------------


class _Stopped(BaseException):
    """Raised in a thread whose time is up."""


def _within(work: Callable[[], str]) -> str:
    """What `work` returns or raises, in a thread that is stopped after SECONDS with a
    TimeoutError.
    """
    done: list[str] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        thread.join(SECONDS)
    finally:  # an interrupt of the user's comes here too
        if late := thread.is_alive():
            stopped = ctypes.py_object(_Stopped)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), stopped)
            thread.join(SECONDS)
    if late:
        raise TimeoutError
    if raised:
        raise raised[0]
    return done[0]


_limiting = threading.Lock()


@contextlib.contextmanager
def _memory_limited() -> Iterator[None]:
    """MemoryError within where this process takes MEMORY more, if the system can limit that."""
    import resource

    import psutil

    with _limiting:
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        most = psutil.Process().memory_info().vms + MEMORY
        most = min(limit for limit in (most, soft, hard) if limit != resource.RLIM_INFINITY)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_AS, (most, hard))
        try:
            yield
        finally:
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
