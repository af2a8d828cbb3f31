"""What a model wrote itself: the first right and the first cleanly wrong of its samples."""

import pytest

from tml_lib.lm import sampling
from tml_lib.lm.answers import chat_prompt
from tml_lib.records import Question, Trajectory
from tml_lib.studies import own_trajectories

QUESTION = Question("q", "What is 6 times 7?", "42", "hand")
RIGHT = "It is \\boxed{42}."
WRONG = "It is \\boxed{41}."
MENTIONS = "42 or not? It is \\boxed{41}."
NUMBERLESS = "I do not know."


def sampled(monkeypatch, lm, texts, questions=(QUESTION,), **settings):
    """texts: of the samples; None for one that never ended."""
    asked = []

    def sample(lm, prompts, seeds, **passed):
        asked.append((prompts, seeds, passed))
        return [sampling.Sampled((), None if text is None else 0) for text in texts]

    def decoded(lm, samples, *, whole):
        assert whole, "a sample that never ended is no trajectory"
        return [text or "" for text in texts]

    monkeypatch.setattr(own_trajectories.sampling, "sample", sample)
    monkeypatch.setattr(own_trajectories.sampling, "texts", decoded)
    found = own_trajectories.own_samples(lm, list(questions), seed=7, **settings)
    return found, asked


@pytest.mark.parametrize(
    "texts",
    [[None] * 3, [NUMBERLESS] * 3, [MENTIONS] * 3, [""] * 3],
    ids=["never ended", "no answer", "mentions the right value", "empty"],
)
def test_samples_that_are_neither_right_nor_cleanly_wrong_are_dropped(monkeypatch, tiny_lm, texts):
    ((own,), _) = sampled(monkeypatch, tiny_lm, texts, tries=3)
    assert own == own_trajectories.Own(None, None, 3, texts.count(None)), "a cut sample is counted"


def test_the_first_right_and_the_first_clean_wrong_sample_are_kept(monkeypatch, tiny_lm):
    texts = [None, MENTIONS, NUMBERLESS, WRONG, "It is \\boxed{40}.", RIGHT, "so 42"]
    ((own,), _) = sampled(monkeypatch, tiny_lm, texts, tries=7)
    assert own.wrong == Trajectory(WRONG, "sampled", "41", False)
    assert own.right == Trajectory(RIGHT, "own_right", "42", True)
    assert (own.samples, own.cut) == (7, 1)


def test_right_in_other_words_is_right(monkeypatch, tiny_lm):
    texts = ["", "\\boxed{\\frac{84}{2}}"]
    ((own,), _) = sampled(monkeypatch, tiny_lm, texts, tries=2)
    assert (own.right.text, own.wrong) == (texts[1], None)


def test_each_question_is_judged_by_its_own_samples(monkeypatch, tiny_lm):
    other = Question("o", "What is 6 times 7 minus 1?", "41", "hand")
    texts = [RIGHT, WRONG, WRONG, RIGHT]
    found, _ = sampled(monkeypatch, tiny_lm, texts, (QUESTION, other), tries=2)
    assert [own.wrong.answer for own in found] == ["41", "42"]
    assert [own.right.answer for own in found] == ["42", "41"]


def test_every_question_is_asked_tries_times_with_the_chat_prompt(monkeypatch, tiny_lm, questions):
    pair = questions[:2]
    settings = {"tries": 3, "temperature": 0.9, "max_tokens": 77}
    _, asked = sampled(monkeypatch, tiny_lm, [None] * 6, pair, **settings)
    ((prompts, seeds, passed),) = asked
    assert prompts == [chat_prompt(tiny_lm.tokenizer, q.text) for q in pair for _ in range(3)]
    assert seeds == sampling.row_seeds(7, 6)
    assert (passed["temperature"], passed["top_k"], passed["max_new_tokens"]) == (0.9, 50, 77)
