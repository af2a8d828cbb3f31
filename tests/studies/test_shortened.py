"""Shortened trajectories at any preset: what is withheld, equal length, and who finishes."""

import random

import numpy as np
import pytest

from tml_lib.claims import ledger
from tml_lib.data import gsm, programs
from tml_lib.lm import models
from tml_lib.lm.answers import ANSWER_TEMPLATE
from tml_lib.studies import efficiency, lora, shortened, trajectories


@pytest.fixture(scope="module")
def reasoner():
    return models.load("tiny", model=models.shipped("tiny-long"), device="cpu")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("He has 3 pens. So 3 + 4 = 7 pens.", "He has 3 pens."),
        ("First 5.\nThen 3 + 4 = 7\nIt is 7.", "First 5."),
        ("It is 7.", ""),
        ("Nothing is said. 17 or 70 is not it.", "Nothing is said. 17 or 70 is not it."),
        ("Costs are 1.5. Then 7.", "Costs are 1.5."),
    ],
)
def test_what_is_withheld_begins_with_the_sentence_that_states_the_result(text, wanted):
    assert shortened.before_result(text, "7") == wanted


def test_ways_have_the_summarys_length_and_their_names():
    ways = shortened._same_length(
        "a b c d e f 7", "a b c d e f", "x y z", "p q r s t", random.Random(0)
    )
    assert ways["full"] == "a b c d e f 7"
    assert (ways["begun"], ways["foreign"], ways["at_once"]) == ("a b c", "p q r", "")
    assert len(ways["random"].split()) == 3
    assert ways["random"].split() == sorted(ways["random"].split())
    assert shortened._same_length("7", "", "x", "y", random.Random(0))["begun"] == ""


def test_a_program_is_shortened_as_in_the_study(reasoner):
    settings = shortened.material("tiny", n=4, seed=3, worth={"value": 1.0})
    assert settings.programs
    found, cut = efficiency.own_trajectories(reasoner, settings.questions, 3, 1)
    assert settings.cut == cut
    for question, words, ways in zip(settings.questions, found, settings.ways, strict=True):
        asked = efficiency.asked_letters(question)
        assert ways["full"] == " ".join(words)
        assert ways["withheld"].split() == [words[k] for k in efficiency.withheld(words, asked)]
        used = {letter for letter in programs.LETTERS if letter in question.text}
        assert not used & {c for c in ways["foreign"] if c in programs.LETTERS}
    assert set(settings.ways[0]) == set(efficiency.MODES)
    full = settings.right("full")
    assert full == efficiency.finished(reasoner, settings.questions, found, at_once=True)[0]
    assert sum(settings.right("at_once")) <= sum(full)


def test_a_text_model_writes_its_own_summary_and_finishes(tiny_lm, monkeypatch):
    seen, texts = [], []

    class Written(str):
        cut = False

    def scripted(lm, prompts, seeds, **settings):
        assert len(seeds) == len(prompts)
        seen.append(list(prompts))
        return [Written(text) for text in texts.pop(0)]

    monkeypatch.setattr(lora.models, "load", lambda name, **given: tiny_lm)
    monkeypatch.setattr(shortened.sampling, "sample", scripted)
    monkeypatch.setattr(shortened.sampling, "texts", lambda lm, written: written)
    full = ["He has 3. He gets 4. So 9 in all: \\boxed{9}", "There are 5 left. No 8."]
    texts += [full, ["3 and 4 pens. That makes 9.", "5 are left."]]
    given = shortened.material("small", n=2, seed=0, worth={})
    first, second = given.ways
    assert first["withheld"] == "He has 3. He gets 4."
    assert first["summary"] == "3 and 4 pens."
    assert first["foreign"] == "5 are left."
    assert "He has 3. He gets 4." in seen[1][0]
    assert "9" not in seen[1][0].replace(given.questions[0].text, ""), (
        "the result is withheld from the summary's writer"
    )
    assert second["summary"] == "5 are left."
    assert given.cut == [False, False]
    texts.append([f" so \\boxed{{{given.questions[0].answer}}}", "nothing"])
    assert given.right("summary") == [True, False]
    assert all(
        prompt.endswith(way["summary"]) for prompt, way in zip(seen[2], given.ways, strict=True)
    )


def test_an_answer_that_was_cut_is_not_right_by_chance(tiny_lm, monkeypatch):
    """A cut text may end in the right number, which is no answer yet."""
    asked = gsm.gsm_symbolic(2, 0)
    ways = [{"summary": "Some steps."}] * 2
    given = shortened.Shortened(tiny_lm, asked, ways, False, 9)
    endings = [f" That is {question.answer}" for question in asked]
    monkeypatch.setattr(shortened, "_written", lambda *_: (endings, [True, False]))
    assert given.right("summary") == [False, True]


def test_room_for_an_ending_and_words_of_both(tiny_lm, monkeypatch):
    """With the room of a whole trajectory a model would think anew, whatever it was given."""
    asked, rooms = gsm.gsm_symbolic(2, 0), []
    ways = [{"full": "a b c d", "summary": "a b"}] * 2
    given = shortened.Shortened(tiny_lm, asked, ways, False, 400)

    def written(lm, prompts, seed, temperature, most):
        rooms.append(most)
        return [f" c So it is.{ANSWER_TEMPLATE}1}}", " c d e"], [False, True]

    monkeypatch.setattr(shortened, "_written", written)
    monkeypatch.setattr(shortened, "forced", lambda *_: [True, True])
    _, words, cut = given.finished(["full", "summary"])
    assert rooms == [100]
    assert words == {"full": [4, 4], "summary": [2 + 4, 2 + 3]}
    assert cut == {"full": [False, False], "summary": [False, True]}


def test_pass_at_8_is_said_of_8_samples_only():
    for k in (2, efficiency.SAMPLES):
        tables = {way: np.ones((3, k)) for way in efficiency.MODES if way != "pruned"}
        values = efficiency.summed(tables, tables)["values"]
        assert ("C10.kept_pass" in values) == (k == 8)
        assert "C10.pruned_over_random" not in values


@pytest.mark.parametrize(
    ("n", "sizes"), [(2, [2]), (16, [16]), (17, [17]), (18, [16, 2]), (33, [16, 17])]
)
def test_no_group_has_one_question(n, sizes):
    groups = shortened._groups(range(n))
    assert [len(group) for _, group in groups] == sizes
    assert [k for _, group in groups for k in group] == list(range(n))
    assert [start for start, _ in groups] == [group[0] for _, group in groups]


def test_a_question_is_finished_again_from_what_evidence_keeps(tiny_lm, tmp_path, monkeypatch):
    monkeypatch.setattr(shortened, "GROUP", 2)
    monkeypatch.setattr(shortened, "grade", lambda text, answer: len(text) % 2 == 0)
    asked = trajectories.study_questions(5, 0)
    said = {"scale": "small", "command": "x", "seed": 0, "samples": 2, "max_tokens": 24}
    path = shortened.make_evidence(tiny_lm, asked, tmp_path, **said)
    evidence = ledger.read_evidence(path)
    assert len(evidence["summaries"]) == len(evidence["texts"]) == 10
    monkeypatch.setattr(lora, "replayed", lambda settings: tiny_lm)
    monkeypatch.setattr(trajectories, "chosen_questions", lambda data, n, seed: asked)
    (again,) = shortened.TEXT.replays
    for place in (0, 3, 4):
        pairs = again.again(evidence, f"question {place}")
        assert set(pairs) == set(evidence["values"])
        for stored, made in pairs.values():
            assert made == pytest.approx(stored, abs=1e-4, nan_ok=True)


def test_one_question_leaves_no_other(monkeypatch):
    with pytest.raises(ValueError, match="n=1 questions leave no other question"):
        shortened.material("tiny", n=1, seed=0, worth={})
