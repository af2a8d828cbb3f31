"""The trajectory study: its conditions, what is probed, and going on after an interruption."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import AddedToken

from tml_lib.data import gsm, gsm_variants, hub
from tml_lib.lm import models, presets, sampling, thinking
from tml_lib.lm.answers import chat_prompt, encode
from tml_lib.lm.models import LanguageModel
from tml_lib.records import ProbeCurve, Trajectory
from tml_lib.studies import own_trajectories, probed_curves, trajectories
from tml_lib.studies.own_trajectories import Own


def tokens(lm, question, trajectory):
    return encode(
        lm.tokenizer, chat_prompt(lm.tokenizer, question.text), trajectory.text, ["1"]
    ).trajectory


# --- questions and conditions ---------------------------------------------------------------------


def test_study_questions_are_those_that_do_not_hold_their_answer():
    found = trajectories.study_questions(60, seed=0)
    candidates = gsm.gsm_symbolic(90, seed=0)
    sound = [q for q in candidates if gsm.first_mention(q.text, q.answer) is None]
    assert found == sound[:60]
    assert len(sound) < len(candidates)


def test_the_first_study_questions_do_not_depend_on_how_many_are_asked_for():
    assert trajectories.study_questions(5, seed=1) == trajectories.study_questions(40, seed=1)[:5]


@pytest.mark.parametrize("name", ["aime24", "orz_14b"])
def test_questions_of_the_paper_have_a_right_trajectory_and_no_answer_to_copy(name, tmp_path):
    folder = hub.fixture(name, tmp_path / name, n=60, seed=4)
    found = trajectories.chosen_questions(f"{name}={folder}", 40, 1)
    assert found == trajectories.chosen_questions(f"{name}={folder}", 50, 1)[:40]
    assert all(gsm.gold(q).correct and gsm.first_mention(q.text, q.answer) is None for q in found)
    assert all(
        "7" in q.answer
        for q in trajectories.chosen_questions(f"{name}={folder}", 3, 1, lambda q: "7" in q.answer)
    )
    sound = [q for q in gsm.gsm_symbolic(60, 4) if gsm.first_mention(q.text, q.answer) is None]
    with pytest.raises(
        ValueError, match=f"{name}.* has {len(sound)} of 61 questions .*ask for fewer"
    ):
        trajectories.chosen_questions(f"{name}={folder}", 61, 1)


def test_questions_without_a_number_as_answer_are_passed_over(tmp_path):
    rows = [
        {"problem": f"Find x{k}.", "solution": "x = 1/2 = 0.5", "answer": a}
        for k, a in enumerate(("1/2", "0.5", "x+1"))
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = trajectories.chosen_questions(f"aime24={tmp_path / 'own.jsonl'}", 1, 0)
    assert found.answer == "0.5"


def test_no_set_is_gsm_symbolic_and_an_unknown_one_an_error():
    assert trajectories.chosen_questions("", 3, 2) == trajectories.study_questions(3, 2)
    with pytest.raises(
        ValueError, match="'aime25' is no question set of the paper: choose one of orz_14b"
    ):
        trajectories.chosen_questions("aime25", 3, 2)


def test_text_is_not_given_to_what_reads_programs():
    trajectories.check_data("aime24", "small")
    trajectories.check_data("", "tiny")
    with pytest.raises(ValueError, match="'aime24' is text, and preset 'tiny' reads programs"):
        trajectories.check_data("aime24", "tiny")


def test_evidence_of_another_set_has_a_scale_of_its_own():
    assert trajectories.scale_name("small") == "small"
    assert trajectories.scale_name("medium", name="qwen2.5-coder-0.5b-instruct") == "half"
    assert trajectories.scale_name("gpu", name="qwen2.5-coder-1.5b-instruct") == "medium"
    assert trajectories.scale_name("gpu", name="a/folder") == "gpu"
    assert trajectories.scale_name("gpu", "aime24=a/folder", "a+1f2e3d4c") == "gpu-aime24-1f2e3d4c"
    stored = f"{presets.EMBEDDED_NAME}+sft"
    assert trajectories.scale_name("small", name=stored) == "small-sft"
    own = trajectories.scale_name("small", name=f"{presets.EMBEDDED_NAME}+1f2e3d4c")
    assert own == "small-1f2e3d4c", "a reader's own adapter is not the stored one"


@pytest.fixture(scope="module")
def conditions(lm, questions):
    """(question, its conditions) for two that can be shuffled, and corrupted without ever stating
    the right answer.
    """
    wrong = [(q, gsm_variants.corrupt(q)) for q in questions if gsm_variants.shuffle_steps(q)]
    suited = [q for q, made in wrong if made and gsm.first_mention(made.text, q.answer) is None][:2]
    wrong = Trajectory("It is \\boxed{1}.", "sampled", "1", False)
    return [
        (q, trajectories.build_conditions(lm, q, questions, _own(q, wrong), seed=0)) for q in suited
    ]


def _own(question, wrong):
    text = f"There is a lot to think about here, and it takes a while. So it is {question.answer}."
    other = Trajectory("Here there is less to think about, and it is no number.", "own_right")
    right = Trajectory(text, "own_right", question.answer, True)
    return Own(right, wrong, 2, foreign=other)


def test_all_conditions_are_built_and_say_what_they_are(conditions):
    for _, found in conditions:
        kinds = ("gold", "corrupted", "own_right", "sampled", "foreign", "shuffled", "copying")
        assert tuple(found) == (*kinds, "foreign_own")
        assert all(trajectory.kind == kind for kind, trajectory in found.items())


def test_foreign_and_copying_are_as_long_as_gold(lm, conditions):
    for question, found in conditions:
        gold = len(tokens(lm, question, found["gold"]))
        assert len(tokens(lm, question, found["foreign"])) == pytest.approx(gold, abs=2)
        assert len(tokens(lm, question, found["copying"])) == pytest.approx(gold, abs=2)
        own, foreign = (len(tokens(lm, question, found[k])) for k in ("own_right", "foreign_own"))
        assert foreign <= own + 2


def test_copying_states_the_answer_at_its_end_only_and_foreign_never(conditions):
    for question, found in conditions:
        text = found["copying"].text
        assert text.endswith(f"\nThe result is {question.answer}.")
        assert gsm.first_mention(text, question.answer) == len(text) - len(question.answer) - 1
        assert gsm.first_mention(found["foreign"].text, question.answer) is None


def test_a_condition_that_cannot_be_built_is_left_out(lm, questions):
    question = next(
        q
        for q in questions
        if gsm_variants.corrupt(q) is None and gsm_variants.shuffle_steps(q) is None
    )
    found = trajectories.build_conditions(lm, question, questions, Own(), seed=0)
    assert set(found) == {"gold", "foreign", "copying"}


def test_probed_conditions_give_every_estimand(tiny_lm, conditions):
    for question, found in conditions:
        curves = trajectories.probe_question(tiny_lm, question, found, stride=7)
        assert {kind: tuple(curves[kind]) for kind in curves} == dict.fromkeys(
            found, ("right",)
        ) | {"corrupted": ("right", "own")}
        record = json.loads(
            json.dumps(
                {"curves": {kind: probed_curves.plain(held) for kind, held in curves.items()}}
            )
        )
        values = probed_curves.estimands(record, stride=7)
        assert [name for name, number in values.items() if math.isnan(number)] == []


def test_the_orders_are_compared_after_the_same_steps(lm, tiny_lm, conditions):
    for question, found in conditions:
        curves = trajectories.probe_question(tiny_lm, question, found, stride=50)
        read = []
        for kind in ("gold", "shuffled"):
            curve = curves[kind]["right"]
            read.append("".join(curve.tokens[: curve.meta["shuffled_end"]]))
            assert gsm.first_mention(read[-1], question.answer) is None
        assert sorted(read[0].split("\n")) == sorted(read[1].split("\n"))
        assert read[0] != read[1]


def test_only_the_first_questions_have_the_controls_where_so_many_are_said(tiny_lm, questions):
    suited = [q for q in questions if gsm_variants.corrupt(q) and gsm_variants.shuffle_steps(q)][:3]
    wrong = Trajectory("It is \\boxed{1}.", "sampled", "1", False)
    written = [replace(_own(question, wrong), foreign=None) for question in suited]
    how = {"lm": tiny_lm, "seed": 0, "stride": 7, "tries": 0, "max_tokens": 9}
    group = (4, suited, written)  # the fifth to seventh question of a study
    whole = trajectories.group_record(group, None, **how)
    found = trajectories.group_record(group, None, **how, controls=6)
    assert found[:2] == whole[:2]
    assert {*trajectories.CONTROLS} <= {*found[0]["curves"]}
    kinds = ["gold", "corrupted", "own_right", "sampled"]
    assert list(found[2]["curves"]) == kinds
    for kind in kinds[1:]:
        assert found[2]["curves"][kind] == whole[2]["curves"][kind]
    values = probed_curves.estimands(found[2], 7)
    missing = {"C1.trend_over_foreign", "C1.content", "C1.copying", "C1.order", "C1.own_content"}
    lacking = {name for name, number in values.items() if math.isnan(number)}
    assert lacking == missing | {"C2.corrupted_over_foreign"}


# --- resuming -------------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


@pytest.fixture
def study(lm, questions, monkeypatch):
    """A study whose probing is faked; `study.probed` and `study.sampled` list what was asked of the
    model.
    """

    def fake_samples(lm, group, *, seed, tries, max_tokens):
        run.sampled.append((seed, [q.id for q in group]))
        return [Own(samples=tries, cut=1)] * len(group)

    def fake_probe(lm, question, conditions, *, stride):
        if len(run.probed) == run.fail_at:
            run.fail_at = None
            raise Interrupted
        run.probed.append(question.id)
        nll = np.array([3.0, len(question.text) / 7])
        return {
            "gold": {"right": ProbeCurve(np.array([0, 5]), nll, 5, question.answer, stated_at=3)}
        }

    def run(folder):
        return trajectories.study(lm, questions[:7], folder, seed=0, stride=2).records

    run.probed, run.sampled, run.fail_at = [], [], None
    monkeypatch.setattr(trajectories, "_GROUP", 2)
    monkeypatch.setattr(own_trajectories, "own_samples", fake_samples)
    monkeypatch.setattr(trajectories, "probe_question", fake_probe)
    monkeypatch.setattr(trajectories, "build_conditions", lambda *_: {})
    return run


@pytest.mark.parametrize("fail_at", [0, 3, 4, 6])
def test_an_interrupted_study_resumes_where_it_was(study, tmp_path, questions, fail_at):
    uninterrupted = study(tmp_path / "whole")
    sampled = list(study.sampled)
    assert len({seed for seed, _ in sampled}) == 4  # each group has a seed of its own
    study.probed.clear()
    study.sampled.clear()
    study.fail_at = fail_at
    with pytest.raises(Interrupted):
        study(tmp_path)
    kept = fail_at - fail_at % 2  # whole groups of two
    assert study.probed == [q.id for q in questions[:fail_at]]
    study.probed.clear()
    study.sampled.clear()
    assert study(tmp_path) == uninterrupted
    assert study.probed == [q.id for q in questions[kept:7]]
    assert study.sampled == sampled[kept // 2 :]  # the same groups, drawn with the same seeds


# --- models that think apart from their answer ----------------------------------------------------


@pytest.fixture(scope="module", params=[("<think>\n", True), ("<think>\n\n</think>", False)])
def thinker(request, lm):
    """A random model whose chat template has Qwen3's switch, asked to think or not to."""
    tokenizer = copy.deepcopy(lm.tokenizer)
    marks = [AddedToken(mark, special=False, normalized=False) for mark in thinking.THINK]
    tokenizer.add_tokens(marks)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n"
        "{% if enable_thinking is false %}<think>\n\n</think>{% endif %}"
    )
    model = models.random_model("llama", vocab_size=len(tokenizer), seed=2)
    opening, think = request.param
    return opening, LanguageModel(model, tokenizer, "thinker").asked(think)


def test_a_model_that_thinks_has_its_trajectory_within_the_marks(thinker, questions, monkeypatch):
    opening, thinks = thinker
    question = next(q for q in questions if gsm_variants.shuffle_steps(q))
    written = [
        f"Let me add.</think>\n\nIt is \\boxed{{{question.answer}}}.",
        "So 1 and 2.</think>\n\nIt is \\boxed{-7}.",
    ]
    monkeypatch.setattr(
        own_trajectories.sampling, "sample", lambda *_, **__: [sampling.Sampled((), 0)] * 2
    )
    monkeypatch.setattr(own_trajectories.sampling, "texts", lambda *_, **__: written)
    (own,) = own_trajectories.own_samples(thinks, [question], seed=0, tries=2)
    if thinks.thinking:
        assert (own.right.text, own.wrong.text) == ("Let me add.", "So 1 and 2.")
    else:
        assert (own.right.text, own.wrong.text) == tuple(written)
    assert own.right.answer == question.answer
    assert thinks.prompt(question.text).endswith(f"assistant\n{opening}")
    record = trajectories.question_record(thinks, question, own, seed=0, stride=64)
    assert {"gold", "own_right", "sampled"} <= set(record["curves"])
    assert record["own_right"] == own.right.text


def test_a_model_without_marks_cannot_be_asked_to_think(lm):
    assert lm.asked(False) is lm
    with pytest.raises(ValueError, match="no thinking marks"):
        lm.asked(True)
