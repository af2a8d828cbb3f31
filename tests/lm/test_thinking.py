"""Thinking on and off: prompts of three kinds of chat template, their seams, and a model's text
taken apart.
"""

import copy

import numpy as np
import pytest
from tokenizers import AddedToken

from tml_lib.lm import answers, models, thinking
from tml_lib.lm.answers import ANSWER_TEMPLATE, encode
from tml_lib.lm.models import LanguageModel
from tml_lib.measure.probe import naive_nll, probe

QUESTION = "What is 6 times 7?"
TRAJECTORY = "Okay, six times seven.\n\nThat is 42."
_TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
_BEGIN = "{% if add_generation_prompt %}<|im_start|>assistant\n"
TEMPLATES = {  # short templates that end as the public ones do
    # Qwen3
    "switched": _TURNS
    + _BEGIN
    + "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
    "opened": _TURNS + _BEGIN + "<think>\n{% endif %}",  # QwQ-32B
    "neither": _TURNS + _BEGIN + "{% endif %}",
    # GLM-4.5
    "opened when told": _TURNS
    + _BEGIN
    + "{{ '<think>\n' if enable_thinking else '</think>' }}{% endif %}",
}


@pytest.fixture(scope="module")
def thinker(tokenizer):
    """SmolLM2's tokenizer with thinking marks as tokens of their own; call it with the name of a
    template.
    """
    marked = copy.deepcopy(tokenizer)
    marked.add_tokens(
        [AddedToken(mark, special=False, normalized=False) for mark in thinking.THINK]
    )

    def with_template(name):
        chosen = copy.copy(marked)  # shares the vocabulary
        chosen.chat_template = TEMPLATES[name]
        return chosen

    return with_template


def ending(prompt):
    assert f"<|im_start|>user\n{QUESTION}\n{answers.INSTRUCTION}<|im_end|>\n" in prompt
    return prompt.rpartition("<|im_start|>assistant\n")[2]


# --- marks ----------------------------------------------------------------------------------------


def test_marks_are_found_in_the_vocabulary(thinker):
    assert thinking.delimiters(thinker("neither")) == ("<think>", "</think>")


def test_marks_are_found_in_the_chat_template(tokenizer):
    plain = copy.copy(tokenizer)
    plain.chat_template = TEMPLATES["switched"].replace("think>", "thinking>")
    assert thinking.delimiters(plain) == ("<thinking>", "</thinking>")


def test_the_vocabulary_goes_before_the_template(thinker):
    both = thinker("neither")
    both.chat_template += "{# <thinking> </thinking> #}"
    assert thinking.delimiters(both) == ("<think>", "</think>")


@pytest.mark.parametrize(
    "ask",
    [
        thinking.delimiters,
        lambda t: thinking.chat_prompt(t, QUESTION),
        lambda t: thinking.split("", t),
    ],
)
def test_a_model_that_does_not_think_is_refused_with_the_next_step(tokenizer, ask):
    with pytest.raises(
        ValueError,
        match=r"has no thinking marks.*<think>…</think>.*answers\.chat_prompt, which needs none",
    ):
        ask(tokenizer)


# --- prompts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_thinking_prompt_ends_behind_the_opening_mark(thinker, name):
    assert ending(thinking.chat_prompt(thinker(name), QUESTION)) == "<think>\n"


@pytest.mark.parametrize("name", ["switched", "opened", "neither"])
def test_a_thinking_prompt_goes_on_from_the_plain_one(thinker, name):
    plain = answers.chat_prompt(thinker(name), QUESTION)
    assert thinking.chat_prompt(thinker(name), QUESTION).removeprefix(plain) in ("", "<think>\n")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("switched", "<think>\n\n</think>\n\n"),
        ("opened", "<think>\nTherefore, after all this, I believe the answer is"),
        ("neither", "<think>\n\n</think>\n\n"),
        ("opened when told", "</think>"),
    ],
)
def test_a_no_thinking_prompt_ends_where_the_answer_begins(thinker, name, wanted):
    assert ending(thinking.chat_prompt(thinker(name), QUESTION, thinking=False)) == wanted


def test_marks_in_the_question_do_not_count(thinker):
    asked = "What do <think> and </think> mean?"
    assert thinking.chat_prompt(thinker("neither"), asked).endswith("assistant\n<think>\n")
    assert thinking.chat_prompt(thinker("neither"), asked, False).endswith(
        "assistant\n<think>\n\n</think>\n\n"
    )


def test_without_a_chat_template_the_marks_follow_plain_text(thinker):
    base = thinker("neither")
    base.chat_template = None
    assert thinking.chat_prompt(base, QUESTION, instruction="") == f"{QUESTION}\n\n<think>\n"
    assert (
        thinking.chat_prompt(base, QUESTION, False, "") == f"{QUESTION}\n\n<think>\n\n</think>\n\n"
    )


def test_a_template_that_closes_the_thinking_although_told_to_think_is_refused(thinker):
    stubborn = thinker("neither")
    stubborn.chat_template = _TURNS + _BEGIN + "<think></think>{% endif %}"
    assert ending(thinking.chat_prompt(stubborn, QUESTION, False)) == "<think></think>"
    with pytest.raises(
        ValueError,
        match=r"although thinking is asked for: take the thinking model.*or thinking=False",
    ):
        thinking.chat_prompt(stubborn, QUESTION)


# --- seams and probing ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("think", [True, False])
def test_prompts_meet_trajectory_and_answer_at_token_boundaries(thinker, name, think):
    tokenizer = thinker(name)
    prompt = thinking.chat_prompt(tokenizer, QUESTION, think)
    found = encode(tokenizer, prompt, TRAJECTORY if think else "", ["42"])
    assert tokenizer.decode(found.prompt) == prompt
    assert "".join(found.tokens) == (TRAJECTORY if think else "")
    assert tokenizer.decode(found.suffixes[0].ids) == f"{ANSWER_TEMPLATE}42"
    assert prompt.count("<think>") == found.prompt.count(tokenizer.convert_tokens_to_ids("<think>"))


def test_a_trajectory_that_shares_a_token_with_the_prompt_is_refused(thinker):
    tokenizer = thinker("opened")
    with pytest.raises(ValueError, match="prompt and trajectory is no token boundary"):
        encode(tokenizer, thinking.chat_prompt(tokenizer, QUESTION), "\n\nOkay", ["42"])


@pytest.mark.parametrize("name", ["switched", "opened"])
def test_a_random_model_is_probed_with_thinking_and_without(thinker, name):
    tokenizer = thinker(name)
    model = models.random_model("qwen3", vocab_size=len(tokenizer), seed=3)
    lm = LanguageModel(model, tokenizer, "random")
    curve = probe(lm, thinking.chat_prompt(tokenizer, QUESTION), TRAJECTORY, "42", stride=4)
    assert curve.length == len(tokenizer(TRAJECTORY)["input_ids"])
    assert curve.stated_at is not None
    prompt = thinking.chat_prompt(tokenizer, QUESTION, False)
    at_once = probe(lm, prompt, "", "42")
    found = encode(tokenizer, prompt, "", ["42"])
    assert np.isfinite([*curve.answer_nll, *at_once.answer_nll]).all()
    assert at_once.at(0) == pytest.approx(
        naive_nll(model, found.prompt, (), found.suffixes[0], 0), abs=1e-4
    )
    assert at_once.at(0) != pytest.approx(curve.at(0), abs=1e-3)


# --- a model's text -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            f"<think>\n{TRAJECTORY}\n</think>\n\nIt is \\boxed{{42}}.",
            (TRAJECTORY, "It is \\boxed{42}."),
        ),
        # the template wrote the opening mark
        (f"{TRAJECTORY}\n</think>\n\nIt is 42.", (TRAJECTORY, "It is 42.")),
        (f"<think>\n{TRAJECTORY}", (TRAJECTORY, "")),  # cut short
        (TRAJECTORY, (TRAJECTORY, "")),
        ("<think>\n\n</think>\n\n42", ("", "42")),
        ("a </think> b</think>c", ("a </think> b", "c")),
        ("", ("", "")),
    ],
)
def test_a_text_is_split_at_the_closing_mark(thinker, text, wanted):
    assert thinking.split(text, thinker("switched")) == wanted


def test_after_a_no_thinking_prompt_a_text_without_marks_is_all_answer(thinker):
    assert thinking.split("It is 42.", thinker("switched"), thinking=False) == ("", "It is 42.")
    assert thinking.split("Hm.</think>42", thinker("opened"), thinking=False) == ("Hm.", "42")


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_with_its_split_text_can_be_encoded(thinker, name):
    tokenizer = thinker(name)
    trajectory, _ = thinking.split(f"\n{TRAJECTORY}\n</think>\n\nIt is 42.", tokenizer)
    assert encode(
        tokenizer, thinking.chat_prompt(tokenizer, QUESTION), trajectory, ["42"]
    ).trajectory
