"""Material: what a model wrote is stored with its counts, and read back as it was."""

import dataclasses
import json

import pytest
import torch

from tml_lib.claims.replay import verify
from tml_lib.lm import sampling
from tml_lib.lm.answers import grade, token_ids
from tml_lib.studies import material, trajectories
from tml_lib.studies.replays import REPLAYS

HOW = {"seed": 0, "samples": 2, "max_tokens": 12}


@pytest.fixture(scope="module")
def made(tiny_lm, tmp_path_factory):
    asked = trajectories.study_questions(2, 0)
    folder = tmp_path_factory.mktemp("material")
    said = {"scale": "small", "command": "python -m tml_lib study material"}
    return asked, material.make_evidence(tiny_lm, asked, folder, **HOW, **said)


def test_texts_are_read_back_as_they_were_written(made):
    asked, path = made
    questions, found = material.stored(path)
    assert questions == asked
    raw = json.loads(path.read_text())["written"]
    assert [json.loads(json.dumps(dataclasses.asdict(one))) for one in found] == raw
    assert all(len(one.samples) == len(one.at_once) == HOW["samples"] for one in found)
    for question, one in zip(questions, found, strict=True):
        for text in (*one.samples, one.greedy):
            assert text.tokens <= HOW["max_tokens"]
            assert text.right == (not text.cut and grade(text.text, question.answer))
        assert (one.summary is None) == (not one.greedy.right)


def test_the_loss_of_the_greedy_text_is_that_of_its_tokens_one_by_one(tiny_lm, made):
    lm, (asked, path) = tiny_lm, made
    one = material.stored(path)[1][0]
    prompt = token_ids(lm.tokenizer, lm.prompt(asked[0].text))
    ids = token_ids(lm.tokenizer, one.greedy.text, begins=False)
    losses = []
    for k, token in enumerate(ids):
        with torch.inference_mode():
            logits = lm.model(torch.tensor([[*prompt, *ids[:k]]])).logits[0, -1]
        losses.append(-float(logits.log_softmax(-1)[token]))
    assert one.greedy_nll == pytest.approx(sum(losses) / len(losses), abs=1e-3)


def writes(monkeypatch, texts, cut=()):
    """Have the model write these texts, whatever it is asked; returns the prompts that it gets."""
    asked = []

    def sample(lm, prompts, seeds, **settings):
        asked.extend(prompts)
        return [sampling.Sampled((1, 2), None if k in cut else 0) for k in range(len(prompts))]

    monkeypatch.setattr(sampling, "sample", sample)
    monkeypatch.setattr(sampling, "texts", lambda lm, samples: texts)
    return asked


def test_a_summary_is_asked_for_and_kept_without_the_result(tiny_lm, monkeypatch):
    question = trajectories.study_questions(1, 0)[0]
    greedy = material.Text(f"First so. Then it is {question.answer}.", 9, False, True)
    asked = writes(monkeypatch, [f"Steps are done. They give {question.answer}."])
    (summary,) = material._summaries(tiny_lm, [question], [greedy], 16).values()
    assert "Beginning: First so." in asked[0]
    assert "Then it is" not in asked[0]
    assert summary.text == "Steps are done."
    wrong = dataclasses.replace(greedy, right=False)
    assert material._summaries(tiny_lm, [question], [wrong], 16) == {}


def test_a_text_is_right_where_it_ended_with_the_answer(tiny_lm, monkeypatch):
    question = trajectories.study_questions(1, 0)[0]
    box = f"So \\boxed{{{question.answer}}}"
    writes(monkeypatch, [box, box, "So \\boxed{-7}"], cut={1})
    found = material._write(tiny_lm, [question] * 3, max_tokens=2)
    assert [(one.right, one.cut) for one in found] == [(True, False), (False, True), (False, False)]


def test_an_answer_at_once_is_cut_where_its_box_stays_open(tiny_lm, monkeypatch):
    question = trajectories.study_questions(1, 0)[0]
    writes(monkeypatch, [f"{question.answer}}} and on", question.answer, "-7}"], cut={0})
    found = material._write(tiny_lm, [question] * 3, max_tokens=2, begin="\\boxed{")
    assert [(one.right, one.cut) for one in found] == [(True, False), (False, True), (False, False)]


def test_a_replay_grades_the_texts_again(made):
    _, path = made
    checks = list(verify(path, REPLAYS["material"], records=2))
    assert len(checks) == 4
    assert all(check.ok for check in checks)
    record = json.loads(path.read_text())
    record["written"][0]["greedy"]["right"] = not record["written"][0]["greedy"]["right"]
    path.with_suffix(".other.json").write_text(json.dumps(record))
    checks = list(verify(path.with_suffix(".other.json"), REPLAYS["material"], records=2))
    assert [check.ok for check in checks].count(False) == 1


def test_evidence_of_another_study_is_refused(made):
    evidence = json.loads(made[1].read_text()) | {"study": "text"}
    path = made[1].with_suffix(".text.json")
    path.write_text(json.dumps(evidence))
    with pytest.raises(ValueError, match="evidence of 'text'"):
        material.stored(path)
