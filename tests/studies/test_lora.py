"""The LoRA study of a pretrained model: its questions, its arms, its values; a tiny random model
stands in.
"""

import hashlib
import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tml_lib.claims import ledger
from tml_lib.lessons import notebooks
from tml_lib.lm import adapters, answers, presets
from tml_lib.measure import probe
from tml_lib.studies import lora


def test_half_of_the_held_out_questions_are_of_trained_templates_and_almost_all_are_fresh():
    trained = lora.training_questions(lora.STEPS * lora.BATCH, 0)
    held_out = lora.held_out_questions(200, 0)
    counted = lora.fresh(held_out, lora.STEPS, 0)
    assert counted == [q.text not in {t.text for t in trained} for q in held_out]
    assert 198 <= sum(counted) <= 200
    assert not any(lora.fresh(trained, lora.STEPS, 0))
    assert sum(map(lora.is_trained, held_out)) == 100
    assert {q.template for q in held_out if lora.is_trained(q)} <= {q.template for q in trained}
    assert not {q.template for q in held_out if not lora.is_trained(q)} & {
        q.template for q in trained
    }


def test_the_arms_train_on_the_same_questions_and_differ_in_their_trajectories(tiny_lm):
    questions = lora.training_questions(16, 0)
    gold, direct = (lora.arm_rows(tiny_lm, arm, 16, 0) for arm in ("gold", "answers"))
    for k, question in enumerate(questions):
        learnt = [tiny_lm.tokenizer.decode(ids[start:]) for ids, start in (gold[k], direct[k])]
        assert gold[k][0][: gold[k][1]] == direct[k][0][: direct[k][1]]
        assert learnt[1].startswith(f"{answers.ANSWER_TEMPLATE}{question.answer}}}")
        left_out = k % lora.DIRECT == lora.DIRECT - 1
        assert (learnt[0] == learnt[1]) == left_out
        assert left_out or learnt[0].startswith(question.trajectories[0].text)


def test_an_arm_that_is_not_trained_is_refused(tiny_lm):
    with pytest.raises(ValueError, match="'base' is not trained: choose 'answers' or 'gold'"):
        lora.arm_rows(tiny_lm, "base", 8, 0)


def test_values_compare_the_arms_question_by_question():
    questions = lora.held_out_questions(4, 0)

    def arm(name, greedy, sampled, nll):
        return {
            "arm": name,
            "greedy": {"right": greedy},
            "sampled": {"right": sampled},
            "nll": nll,
            "log": [],
        }

    records = [
        arm("base", [0, 0, 1, 0], [0, 0, 8, 0], [[3.0, 2.0]] * 4),
        arm("answers", [0, 1, 0, 0], [0, 1, 0, 0], [[1.0, 0.9]] * 4),
        arm("gold", [1, 1, 1, 0], [8, 1, 1, 0], [[2.0, 0.5]] * 4),
    ]

    def asked(second):
        found = lora.estimands(records, questions, [True, second, True, True])
        return {test: np.asarray(x) for test, x in found.items()}

    found = asked(True)
    assert found["C4s.greedy"].tolist() == [1, 1, 0, 0]
    # with as many samples as k, one right sample is enough
    assert found["C4s.pass"].tolist() == [1, 1, 0, 0]
    assert found["C4s.greedy_over_answers"].tolist() == [1, 0, 1, 0]
    assert found["C4s.answers"].tolist() == [0, 1, -1, 0]
    assert np.array_equal(found["C4s.seen"], [1, 1, np.nan, np.nan], equal_nan=True)
    assert np.array_equal(found["C4s.unseen"], [np.nan, np.nan, 0, 0], equal_nan=True)
    assert found["C4s.after"] == pytest.approx([1.5] * 4)
    assert found["C4s.after_over_answers"] == pytest.approx([0.4] * 4)
    assert found["C4s.descent"] == pytest.approx([0.5] * 4)
    counted = asked(False)
    assert all(np.isnan(values[1]) for values in counted.values())
    assert counted["C4s.greedy"][[0, 2, 3]].tolist() == [1, 0, 0]


def test_a_text_is_as_long_as_the_preset_allows_or_as_the_stored_evidence_had():
    assert [lora.limit(name, 96) for name in ("small", "medium", "gpu")] == [96, 400, 4096]


@pytest.mark.slow
def test_the_whole_study_runs_and_resumes_where_it_stopped(tiny_lm, tmp_path, monkeypatch):
    monkeypatch.setattr(lora, "MOST_TOKENS", 4)
    monkeypatch.setattr(lora, "SAMPLES", 8)
    settings = {"steps": 2, "questions": 4, "seed": 0}
    path = lora.make_evidence(tiny_lm, "small", tmp_path, command="a test", **settings)
    records = json.loads(path.read_text())["records"]
    assert [record["arm"] for record in records] == list(lora.ARMS)
    assert [len(record["log"]) for record in records] == [0, 2, 2]
    assert all(np.isfinite(record["nll"]).all() for record in records)
    for record in records:  # each said once among how many
        ended = [record[name]["ended"] for name in ("greedy", "sampled")]
        counts = [record[name]["cut"] for name in ("greedy", "sampled")]
        assert [n for _, n in counts] == [4, 32]
        assert [1 - cut / n for cut, n in counts] == pytest.approx(ended)
    assert records[0]["nll"] != records[2]["nll"], "training changed nothing"
    monkeypatch.setattr(lora, "measured", None)  # nothing is left to make
    lora.make_evidence(tiny_lm, "small", tmp_path, command="a test", **settings)
    assert json.loads(path.read_text())["settings"]["steps"] == 2
    rows = ledger.rows([tmp_path])
    assert {row.claim for row in rows} == {"C4s"}
    cut = sum(record[name]["cut"][0] for record in records for name in ("greedy", "sampled"))
    assert {row.cut for row in rows} == {cut / 108}
    assert {row.verdict for row in rows} == {"too few"}


def test_the_stored_adapter_is_the_one_of_the_stored_evidence(lm, tiny_lm, tmp_path):
    evidence = ledger.read_evidence(notebooks.stored_evidence() / "lora.small.json")
    assert lora.adapter_folder(lm, tmp_path) == lora.STORED
    assert lora.adapter_folder(tiny_lm, tmp_path) == tmp_path
    after = adapters.adapted(lm, lora.STORED)
    run = json.loads((lora.STORED / "run.json").read_text())
    assert {key: run[key] for key in ("steps", "batch", "lora_rank", "seed")} == {
        key: evidence["settings"][key] for key in ("steps", "batch", "lora_rank", "seed")
    }
    (gold,) = (record for record in evidence["records"] if record["arm"] == "gold")
    (question,) = lora.held_out_questions(200, evidence["settings"]["seed"])[:1]
    prompt = answers.chat_prompt(lm.tokenizer, question.text)
    found = probe.probe(after, prompt, "", question.answer, positions=[0]).at(0)
    assert found == pytest.approx(gold["nll"][0][0], abs=2e-3)


@pytest.mark.parametrize(("said", "dtype"), [({}, "float32"), ({"dtype": "bfloat16"}, "bfloat16")])
def test_evidence_is_replayed_in_the_dtype_that_it_says_whatever_the_processor(
    said, dtype, monkeypatch
):
    asked = []
    monkeypatch.setattr(lora, "load", lambda preset, **how: asked.append((preset, how)))
    lora.known.cache_clear()
    lora.replayed({"model": "qwen2.5-coder-1.5b-instruct"} | said)
    lora.known.cache_clear()
    assert asked == [("medium", {"model": "qwen2.5-coder-1.5b-instruct", "dtype": dtype})]


def test_only_the_stored_adapter_has_the_name_of_the_stored_evidence(lm, tmp_path, monkeypatch):
    monkeypatch.setattr(lora.models, "load", lambda *_, **__: lm)
    stored = lora.load("small", adapter="stored").name
    assert stored == "SmolLM2-135M-Instruct+sft"
    assert presets.is_replayed("small-sft", stored)
    own = tmp_path / "sft"
    shutil.copytree(lora.STORED, own)
    weights = own / adapters.WEIGHTS
    other = {name: 2 * part for name, part in load_file(weights).items()}
    save_file(other, weights)
    name = lora.load("small", adapter=str(own)).name
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert name == f"SmolLM2-135M-Instruct+{digest[:8]}"
    assert not presets.is_replayed("small-sft", name)
