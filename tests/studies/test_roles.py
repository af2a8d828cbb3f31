"""C3 and C6 for text models: how a trajectory is cut, the values by hand, presets, and going on
after an interruption.
"""

import json

import numpy as np
import pytest

from tml_lib.claims import ledger, rulebook
from tml_lib.data import hub
from tml_lib.lm import sampling
from tml_lib.studies import lora, roles
from tml_lib.train import sft


def test_a_trajectory_is_cut_after_sentences_and_lines():
    text = "One. Two!\nThree?\n\nFour 3.5 pens. five"
    assert [roles.cut(text, share) for share in (0.0, 0.2, 0.5, 1.0)] == [
        "",
        "One.",
        "One. Two!",
        text,
    ]
    assert roles.cut(text, 1.0, less=1) == "One. Two!\nThree?\n\nFour 3.5 pens."
    assert roles.cut("no end", 1.0) == "no end"
    assert roles.cut("no end", 1.0, less=1) == roles.cut("", 0.5) == ""


def test_cut_thinking_is_compared_with_answering_at_once(tiny_lm, monkeypatch):
    asked = roles.questions(3, 0)
    thoughts = ["First. Then more. Done.", "", "Only one"]
    written = [sampling.Sampled((), end) for end in (None, 0, 0)]
    monkeypatch.setattr(roles.sampling, "sample", lambda *given, **settings: written)
    monkeypatch.setattr(roles.sampling, "texts", lambda lm, written: thoughts)
    seen = []

    def forced(lm, questions, texts):
        seen.append(list(texts))
        return [text in ("First. Then more. Done.", "Only one") for text in texts]

    monkeypatch.setattr(roles, "forced", forced)
    values, shares = roles.cut_values(tiny_lm, asked, 0)
    assert seen[0] == ["", "", ""]
    assert seen[4] == ["First. Then more.", "", ""]
    assert seen[5] == thoughts
    assert [len(text) for text in seen[6]] == [len(text) for text in thoughts]
    assert values["C3.optimum"].tolist() == {"first": [1, 0, 1], "second": [0, 0, 0]}
    assert np.asarray(values["C3.last"]).tolist() == [1, 0, 1]
    assert np.asarray(values["C3.half"]).tolist() == [0, 0, 0]
    assert np.isnan(values["C3.loss"]).tolist() == [False, True, False], (
        "an empty trajectory has no curve"
    )
    assert shares["empty"] == 1
    assert (shares["texts"], shares["cut"]) == (thoughts, [True, False, False])
    assert shares["right"] == pytest.approx([0, 0, 0, 0, 2 / 3])


def test_an_answer_is_what_stands_in_the_box(tiny_lm, monkeypatch):
    asked = roles.questions(2, 0)
    texts = [asked[0].answer + "} and on", "no number"]
    monkeypatch.setattr(roles.sampling, "sample", lambda *given, **settings: texts)
    monkeypatch.setattr(roles.sampling, "texts", lambda lm, written: written)
    assert roles.forced(tiny_lm, asked, ["", ""]) == [True, False]


def test_questions_can_be_reflected_on_and_were_not_trained():
    found = roles.questions(12, 1)
    assert len({question.id for question in found}) == 12
    assert all(roles.gsm_variants.reflecting(question, 1) for question in found)
    assert all(lora.fresh(found, lora.STEPS, 0))


def test_questions_of_the_paper_can_be_reflected_on_too(tmp_path):
    found = roles.questions(5, 1, f"math500_5={hub.fixture('math500_5', tmp_path / 'set', n=30)}")
    assert len(found) == 5
    assert all(roles.gsm_variants.reflecting(question, 1) for question in found)


def test_material_is_a_presets_own(tiny_lm, monkeypatch):
    assert roles.material("tiny", n=2, seed=0).pieces is roles.token_roles.program_pieces
    monkeypatch.setattr(lora.models, "load", lambda name, **settings: tiny_lm)
    settings = roles.material("small", n=2, seed=0)
    assert settings.lm is tiny_lm
    assert len(settings.questions) == len(settings.found) == len(settings.words) == 2
    with pytest.raises(ValueError, match="n=0 questions have no tokens"):
        roles.material("small", n=0, seed=0)
    with pytest.raises(ValueError, match="is for text models"):
        roles.material("tiny", adapter="stored", n=1, seed=0)
    with pytest.raises(FileNotFoundError, match="holds no adapter"):
        roles.material("small", adapter="nowhere", n=1, seed=0)
    with pytest.raises(ValueError, match="was trained on another model"):
        roles.material("small", adapter="stored", n=1, seed=0)


def test_an_adapter_trained_here_is_put_on(tiny_lm, monkeypatch, tmp_path):
    monkeypatch.setattr(lora.models, "load", lambda name, **settings: tiny_lm)
    rows = sft.question_rows(tiny_lm, roles.questions(2, 0))
    settings = sft.SFTSettings(steps=1, batch=2, lora_rank=2, peak_lr=0.1)
    run = sft.sft(tiny_lm, rows, tmp_path, settings)
    got = lora.load("small", adapter=str(tmp_path))
    for a, b in zip(got.model.parameters(), run.lm.model.parameters(), strict=True):
        assert (a == b).all()


@pytest.mark.slow
def test_the_whole_study_runs_and_resumes_where_it_stopped(tiny_lm, tmp_path, monkeypatch):
    monkeypatch.setattr(roles, "MOST_TOKENS", 4)
    settings = {
        "preset": "small",
        "model": "",
        "adapter": "",
        "n_questions": 4,
        "seed": 0,
        "study_seeds": 1,
    }
    monkeypatch.setattr(lora.models, "load", lambda name, **given: tiny_lm)
    given = roles.material("small", n=4, seed=0)
    made = {"n": 4, "seed": 0, "folder": tmp_path, "settings": settings}
    assert roles.make_evidence("small", given, seeds=0, **made) is None
    path = roles.make_evidence("small", given, seeds=1, **made)
    record = json.loads(path.read_text())
    assert record["command"].endswith(
        "run 07 -p preset small -p n_questions 4 -p seed 0 -p study_seeds 1"
    )
    assert {row.claim for row in ledger.rows([tmp_path])} == {"C3", "C6"}
    wanted = {
        f"{claim}.{test['name']}"
        for claim in ("C3", "C6")
        for test in rulebook.claims()[claim]["tests"]
    }
    assert set(record["values"]) == wanted
    assert [x is None for x in record["values"]["C6.relative"][0]] == [False, True, True, True]
    assert len(record["values"]["C3.optimum"][0]) == 4
    assert set(record["arms"]) == {f"C3.{name}" for name in ("optimum", "half", "last", "foreign")}
    assert record["classes"]["Wait"]["n"] == 1
    monkeypatch.setattr(roles, "cut_values", None)  # nothing is left to make
    assert (
        json.loads(roles.make_evidence("small", given, seeds=1, **made).read_text())["values"]
        == record["values"]
    )


def test_without_reflections_only_c3_is_measured_and_replayed(tiny_lm, tmp_path, monkeypatch):
    asked = roles.questions(2, 0)
    said = {"scale": "small", "command": "c", "seed": 0, "max_tokens": 6, "every": 0}
    path = roles.text_evidence(tiny_lm, asked, tmp_path, **said)
    record = ledger.read_evidence(path)
    assert {row.claim for row in ledger.rows_of(path)} == {"C3"}
    assert (record["settings"]["every"], record["classes"]) == (0, {})
    monkeypatch.setattr(lora, "replayed", lambda *_: tiny_lm)
    monkeypatch.setattr(roles, "questions", lambda n, seed: asked)
    again = roles._again(record, 1)
    assert set(again) == set(record["values"])
    assert again["C3.loss"] == pytest.approx(record["values"]["C3.loss"][0][1], abs=1e-4)
    # in bfloat16 the text is the stored one
    record["settings"]["dtype"], record["texts"][1] = "bfloat16", "So it is 3."
    other = roles.cut_values(tiny_lm, asked[1:], 0, 6, ["So it is 3."])[0]
    assert roles._again(record, 1)["C3.loss"] == pytest.approx(other["C3.loss"][0], abs=1e-4)


def test_a_group_that_writes_nothing_counts_as_wrong_and_has_no_loss():
    tests = [
        f"{claim}.{test['name']}"
        for claim in ("C3", "C6")
        for test in rulebook.claims()[claim]["tests"]
    ]
    curves = {"shares": [0.0, 0.25, 0.5, 0.75, 1.0], "right": [0.0, 0.0, 0.0, 0.0, 1.0]}
    written = {
        "cuts": curves
        | {"nll": [5.0, 4.0, 3.0, 2.0, 1.0], "empty": 1}
        | {"texts": ["Long.", "", "Done."], "cut": [True, False, False]},
        "values": dict.fromkeys(tests, [1.0] * 3),
    }
    silent = {
        "cuts": curves | {"right": [0.0] * 5, "nll": [], "empty": 1, "texts": [""], "cut": [False]},
        "values": {test: [0.0] for test in tests},
    }
    records = [record | {"tokens": [["Wait", 1.0, 0.5]]} for record in (written, silent)]
    kept = roles.STUDY.keep(records)
    cuts = kept["cuts"]
    assert cuts["right"][-1] == 0.75
    assert cuts["nll"] == [5.0, 4.0, 3.0, 2.0, 1.0]
    assert cuts["empty"] == 2
    assert kept["texts"] == ["Long.", "", "Done.", ""]
    assert kept["cut"] == [[1, 1], [0, 1], [0, 1], [0, 1]], "a cut text is counted, not dropped"
