"""Sampling: fixed by its seed, indifferent to padding, honest about texts that do not end."""

import pytest
import torch

from tml_lib import rollouts
from tml_lib.answers import chat_prompt
from tml_lib.records import Question, Trajectory


@pytest.fixture(scope="module")
def prompts(lm):
    """Two prompts of different lengths, whose greedy continuations end after a few tokens."""
    questions = ("Thank you, bye!", "What is the capital of France? Answer with one word.")
    return [chat_prompt(lm.tokenizer, q, instruction="") for q in questions]


def greedy(lm, prompts, **settings):
    return rollouts.sample(lm, prompts, seed=0, temperature=0, **{"max_new_tokens": 16} | settings)


def test_left_padding_does_not_change_greedy_continuations(lm, prompts):
    lengths = {len(lm.tokenizer(p)["input_ids"]) for p in prompts}
    assert len(lengths) == 2
    assert greedy(lm, prompts) == ["Bye!", "The capital of France is Paris."]
    assert greedy(lm, prompts, batch_size=1) == greedy(lm, prompts)


def test_the_greedy_continuation_is_the_argmax_of_each_step(lm, prompts):
    ids = lm.tokenizer(prompts[0], add_special_tokens=False)["input_ids"]
    written = []
    with torch.inference_mode():
        while not written or written[-1] != lm.tokenizer.eos_token_id:
            written.append(int(lm.model(input_ids=torch.tensor([ids + written])).logits[0, -1].argmax()))
    assert greedy(lm, prompts[:1]) == [lm.tokenizer.decode(written[:-1])]


def test_a_continuation_that_does_not_end_is_none(lm, prompts):
    assert greedy(lm, prompts, max_new_tokens=4) == ["Bye!", None]


def test_samples_are_fixed_by_their_seed_and_differ_between_seeds(lm, prompts):
    found = [rollouts.sample(lm, prompts[1:] * 3, seed=s, temperature=1.0, max_new_tokens=12) for s in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert any(found[0])


def test_sampling_leaves_the_global_generator_alone(tiny_lm):
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    rollouts.sample(tiny_lm, ["one two"], seed=5, max_new_tokens=3)
    assert torch.equal(torch.rand(3), wanted)


def test_no_prompts_give_no_texts(tiny_lm):
    assert rollouts.sample(tiny_lm, [], seed=0) == []


# --- wrong samples ---------------------------------------------------------------------------------------------------

QUESTION = Question("q", "What is 6 times 7?", "42", "hand")
RIGHT = "It is \\boxed{42}."
WRONG = "It is \\boxed{41}."
MENTIONS = "42 or not? It is \\boxed{41}."
NUMBERLESS = "I do not know."


def wrong_samples(monkeypatch, lm, texts, questions=(QUESTION,), **settings):
    asked = []

    def sample(lm, prompts, **passed):
        asked.append((prompts, passed))
        return texts

    monkeypatch.setattr(rollouts, "sample", sample)
    found = rollouts.wrong_samples(lm, list(questions), seed=7, **settings)
    return found, asked


@pytest.mark.parametrize(
    "texts",
    [[RIGHT] * 3, [None] * 3, [NUMBERLESS] * 3, [MENTIONS] * 3, ["", "so 42", "\\boxed{\\frac{84}{2}}"]],
    ids=["right", "never ended", "no answer", "mentions the right value", "right in other words"],
)
def test_samples_that_are_no_clean_wrong_trajectory_are_dropped(monkeypatch, tiny_lm, texts):
    assert wrong_samples(monkeypatch, tiny_lm, texts, tries=3)[0] == [None]


def test_the_first_clean_wrong_sample_is_kept(monkeypatch, tiny_lm):
    texts = [None, RIGHT, MENTIONS, NUMBERLESS, WRONG, "It is \\boxed{40}."]
    assert wrong_samples(monkeypatch, tiny_lm, texts, tries=6)[0] == [Trajectory(WRONG, "sampled", "41", False)]


def test_each_question_is_judged_by_its_own_samples(monkeypatch, tiny_lm):
    other = Question("o", "What is 6 times 7 minus 1?", "41", "hand")
    found, _ = wrong_samples(monkeypatch, tiny_lm, [RIGHT, WRONG, WRONG, RIGHT], (QUESTION, other), tries=2)
    assert [t.answer for t in found] == ["41", "42"]


def test_every_question_is_asked_tries_times_with_the_chat_prompt(monkeypatch, tiny_lm, questions):
    pair = questions[:2]
    _, asked = wrong_samples(monkeypatch, tiny_lm, [None] * 6, pair, tries=3, temperature=0.9)
    ((prompts, passed),) = asked
    assert prompts == [chat_prompt(tiny_lm.tokenizer, q.text) for q in pair for _ in range(3)]
    assert (passed["seed"], passed["temperature"]) == (7, 0.9)
