"""Material: what a model wrote is stored with its counts, and read back as it was."""

import dataclasses
import json

import pytest
import torch

from tml_lib.claims.replay import verify
from tml_lib.lessons import notebooks
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
    assert [one.first_nll is None for one in found] == [False, True], "a group's first is read"
    for question, one in zip(asked, found, strict=True):
        assert len(one.samples) == HOW["samples"]
        for text in one.samples:
            assert text.tokens <= HOW["max_tokens"]
            assert text.right == (not text.cut and grade(text.text, question.answer))


@pytest.mark.parametrize(
    "path", notebooks.stored_evidence().glob("material.*.json"), ids=lambda path: path.stem
)
def test_in_stored_evidence_too_only_a_group_s_first_sample_was_read(path):
    _, found = material.stored(path)
    read = {place: one.first_nll for place, one in enumerate(found) if one.first_nll is not None}
    assert list(read) == list(range(0, len(found), material.GROUP))
    assert all(0 < nll < 1 for nll in read.values()), "samples of a language model, at T < 1"


def test_more_samples_or_other_groups_leave_the_first_as_they_were(tiny_lm, made, monkeypatch):
    asked, path = made
    first = [one.samples for one in material.stored(path)[1]]
    monkeypatch.setattr(material, "GROUP", 1)
    said = {"scale": "small", "command": "", "seed": 0, "samples": 3, "max_tokens": 12}
    again = material.make_evidence(tiny_lm, asked, path.parent / "more", **said)
    assert [one.samples[:2] for one in material.stored(again)[1]] == first
    assert len({text.text for text in material.stored(again)[1][0].samples}) == 3


def test_the_loss_of_the_first_sample_is_that_of_its_tokens_one_by_one(tiny_lm, made):
    lm, (asked, path) = tiny_lm, made
    one = material.stored(path)[1][0]
    prompt = token_ids(lm.tokenizer, lm.prompt(asked[0].text))
    ids = token_ids(lm.tokenizer, one.samples[0].text, begins=False)
    losses = []
    for k, token in enumerate(ids):
        with torch.inference_mode():
            logits = lm.model(torch.tensor([[*prompt, *ids[:k]]])).logits[0, -1]
        losses.append(-float(logits.log_softmax(-1)[token]))
    assert one.first_nll == pytest.approx(sum(losses) / len(losses), abs=1e-3)


def test_a_text_is_right_where_it_ended_with_the_answer(tiny_lm, monkeypatch):
    question = trajectories.study_questions(1, 0)[0]
    box = f"So \\boxed{{{question.answer}}}"
    written = [sampling.Sampled((1, 2), None if k == 1 else 0) for k in range(3)]
    monkeypatch.setattr(sampling, "sample", lambda *given, **settings: written)
    monkeypatch.setattr(sampling, "texts", lambda lm, found: [box, box, "So \\boxed{-7}"])
    how = {"seed": 0, "samples": 3, "max_tokens": 2}
    (record,) = material.group_record((0, [question]), None, lm=tiny_lm, **how)
    found = [(text["right"], text["cut"]) for text in record["samples"]]
    assert found == [(True, False), (False, True), (False, False)]


def test_a_replay_grades_the_texts_again(made):
    _, path = made
    checks = list(verify(path, REPLAYS["material"], records=2))
    assert len(checks) == 2
    assert all(check.ok for check in checks)
    record = json.loads(path.read_text())
    text = record["written"][0]["samples"][0]
    text["right"] = not text["right"]
    path.with_suffix(".other.json").write_text(json.dumps(record))
    checks = list(verify(path.with_suffix(".other.json"), REPLAYS["material"], records=2))
    assert [check.ok for check in checks].count(False) == 1


def test_evidence_of_another_study_is_refused(made):
    evidence = json.loads(made[1].read_text()) | {"study": "text"}
    path = made[1].with_suffix(".text.json")
    path.write_text(json.dumps(evidence))
    with pytest.raises(ValueError, match="evidence of 'text'"):
        material.stored(path)
