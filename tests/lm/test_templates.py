"""Chat templates that are broken, raise, or never end: each is refused by name, within limits."""

import threading
import time

import pytest

from tml_lib.data import tiny
from tml_lib.lm import answers, templates, thinking

QUESTION = "How many are two and three?"
ASK = "{% for m in messages %}{{ m.content }}{% endfor %}"
LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"

BROKEN = {
    "syntax": ("{% for %}", "TemplateSyntaxError: Expected an expression"),
    "an open block": ("{% if true %}", "TemplateSyntaxError"),
    "an unknown tag": ("{% nothing %}", "TemplateSyntaxError"),
    "an unknown filter": ("{{ messages | nothing }}", "TemplateAssertionError"),
    "an unknown name": ("{{ nothing() }}", "UndefinedError"),
    "an unknown field": ("{{ messages[0].a.b }}", "UndefinedError"),
    "raises": ("{{ raise_exception('only two roles') }}", "TemplateError: only two roles"),
    "divides by zero": ("{{ 1 / 0 }}", "ZeroDivisionError"),
    "calls itself": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "includes a file": ("{% include '/etc/passwd' %}", "TypeError"),
    "leaves the sandbox": ("{{ ''.__class__.__mro__ }}", "SecurityError"),
    "is too deep": ("{{ " + "(" * 10_000 + " }}", "RecursionError"),
    "ends never": (LOOP, "does not end within 0.5 s"),
    "ends never after the question": (ASK + LOOP, "does not end within 0.5 s"),
    "takes a power": ("{{ 10**10**10 }}", "computes a power"),
    "is long": (ASK + "{{ 'a' * 10000000 }}", "writes 100000"),
    "takes much memory": ("{{ 'a' * 100000000000 }}", "takes more than 268435456 bytes"),
    "doubles": (
        "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s * 2 %}{% endfor %}",
        "takes more than 268435456 bytes",
    ),
    "leaves the question out": ("hello", "leaves the question 'How many"),
    "a number": ("{{ 3 }}", "leaves the question"),
}


@pytest.fixture
def tokenizer():
    return tiny.tokenizer()


@pytest.mark.parametrize("kind", BROKEN)
def test_a_template_is_refused_by_name_within_its_limits(monkeypatch, tokenizer, kind):
    source, reason = BROKEN[kind]
    if "does not end" in reason:  # elsewhere a busy machine might reach this limit first
        monkeypatch.setattr(templates, "SECONDS", 0.5)
    monkeypatch.setattr(templates, "MEMORY", 1 << 28)
    tokenizer.chat_template, tokenizer.name_or_path = source, "/models/mine"
    before, began = threading.active_count(), time.perf_counter()
    with pytest.raises(ValueError, match=r"^the chat template of /models/mine ") as caught:
        answers.chat_prompt(tokenizer, QUESTION)
    assert time.perf_counter() - began < 30
    assert reason in str(caught.value)
    assert "take it out of the model's folder" in str(caught.value)
    assert threading.active_count() == before, "the thread has ended"


def test_a_template_of_several_and_one_that_thinks_have_the_same_limits(monkeypatch, tokenizer):
    monkeypatch.setattr(templates, "SECONDS", 0.5)
    tokenizer.chat_template = {"default": ASK, "tool_use": "{{ 2 ** 3 }}"}
    with pytest.raises(ValueError, match="computes a power"):
        answers.chat_prompt(tokenizer, QUESTION)
    tokenizer.chat_template = "{% if enable_thinking %}" + LOOP + "{% endif %}<think></think>" + ASK
    with pytest.raises(ValueError, match="does not end within"):
        thinking.chat_prompt(tokenizer, QUESTION)
    assert thinking.chat_prompt(tokenizer, QUESTION, thinking=False).startswith("<think></think>Ho")


def test_a_sound_template_is_rendered_as_transformers_does(tokenizer):
    tokenizer.chat_template = "<s>" + ASK + "{% if add_generation_prompt %}<a>{% endif %}"
    assert answers.chat_prompt(tokenizer, QUESTION, "") == f"<s>{QUESTION}<a>"
    told = {"tokenize": False, "add_generation_prompt": True}
    message = [{"role": "user", "content": f"{QUESTION}\n{answers.INSTRUCTION}"}]
    wanted = tokenizer.apply_chat_template(message, **told)
    assert answers.chat_prompt(tokenizer, QUESTION) == wanted


@pytest.mark.parametrize("value", [None, 3, b"x", ["x"]], ids=repr)
def test_a_question_of_another_type_is_refused(tokenizer, value):
    with pytest.raises(TypeError, match=r"question is .*: give it as a string"):
        answers.chat_prompt(tokenizer, value)
    with pytest.raises(TypeError, match=r"instruction is .*: give it as a string"):
        answers.chat_prompt(tokenizer, QUESTION, value)


def test_an_interrupt_ends_the_rendering_too(monkeypatch, tokenizer):
    """As Ctrl-C in a notebook: the wait is broken off, and nothing goes on in the background."""

    def interrupted(self, timeout=None):
        monkeypatch.undo()
        raise KeyboardInterrupt

    tokenizer.chat_template, before = LOOP, threading.active_count()
    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        answers.chat_prompt(tokenizer, QUESTION)
    assert threading.active_count() == before


def test_the_limit_on_memory_is_taken_back():
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    with templates._memory_limited():
        assert resource.getrlimit(resource.RLIMIT_AS) != before
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_a_system_without_such_a_limit_renders_all_the_same(monkeypatch, tokenizer):
    import resource

    def refused(*arguments):
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refused)
    tokenizer.chat_template = ASK
    assert answers.chat_prompt(tokenizer, QUESTION, "") == QUESTION
