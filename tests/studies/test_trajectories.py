"""The trajectory study: its conditions, its estimands by hand, and going on after an
interruption.
"""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import AddedToken

from tml_lib.claims.ledger import claims
from tml_lib.data import gsm, hub
from tml_lib.lm import models, presets, sampling, thinking
from tml_lib.lm.answers import chat_prompt, encode
from tml_lib.lm.models import LanguageModel
from tml_lib.records import ProbeCurve, Trajectory
from tml_lib.studies import trajectories


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
    wrong = [(q, gsm.corrupt(q)) for q in questions if gsm.shuffle_steps(q)]
    suited = [q for q, made in wrong if made and gsm.first_mention(made.text, q.answer) is None][:2]
    wrong = Trajectory("It is \\boxed{1}.", "sampled", "1", False)
    return [
        (q, trajectories.build_conditions(lm, q, questions, _own(q, wrong), seed=0)) for q in suited
    ]


def _own(question, wrong):
    text = f"There is a lot to think about here, and it takes a while. So it is {question.answer}."
    other = Trajectory("Here there is less to think about, and it is no number.", "own_right")
    right = Trajectory(text, "own_right", question.answer, True)
    return trajectories.Own(right, wrong, 2, foreign=other)


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
    question = next(q for q in questions if gsm.corrupt(q) is None and gsm.shuffle_steps(q) is None)
    found = trajectories.build_conditions(lm, question, questions, trajectories.Own(), seed=0)
    assert set(found) == {"gold", "foreign", "copying"}


def test_probed_conditions_give_every_estimand(tiny_lm, conditions):
    for question, found in conditions:
        curves = trajectories.probe_question(tiny_lm, question, found, stride=7)
        assert {kind: tuple(curves[kind]) for kind in curves} == dict.fromkeys(
            found, ("right",)
        ) | {"corrupted": ("right", "own")}
        record = json.loads(
            json.dumps(
                {"curves": {kind: trajectories._plain(held) for kind, held in curves.items()}}
            )
        )
        values = trajectories.estimands(record, stride=7)
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


# --- estimands by hand ----------------------------------------------------------------------------


def held(positions, nll, stated_at=None, **meta):
    return {
        "positions": positions,
        "answer_nll": nll,
        "length": positions[-1],
        "stated_at": stated_at,
        "answer": "x",
        **meta,
    }


def record(**changes):
    curves = {
        "gold": {"right": held([0, 2, 3, 4, 5], [4.0, 3.0, 2.0, 2.5, 0.5], 3, shuffled_end=2)},
        "foreign": {"right": held([0, 2, 3, 5], [4.0, 3.6, 3.5, 3.9])},
        "copying": {"right": held([0, 2, 4, 5], [4.0, 4.0, 4.0, 1.0], 4)},
        "shuffled": {"right": held([0, 2, 3, 5], [4.0, 9.0, 3.4, 0.4], 3, shuffled_end=3)},
        "corrupted": {
            "right": held([0, 2, 4], [4.0, 3.5, 3.7]),
            "own": held([0, 2, 4], [5.0, 4.0, 1.0], 2),
        },
        "sampled": {"right": held([0, 2, 3], [4.0, 4.2, 4.1])},
        "own_right": {"right": held([0, 2, 4, 5], [4.0, 4.1, 3.5, 0.2], 4)},
        "foreign_own": {"right": held([0, 2, 4, 5], [4.0, 3.9, 3.8, 3.0])},
    }
    return {
        "id": "q",
        "curves": {kind: curve for kind, curve in (curves | changes).items() if curve is not None},
    }


BY_HAND = {
    "C1.trend": -1.0,  # 4, 3, 2.5, 0.5: the prefix of 3 tokens is off the stride of 2
    "C1.trend_unstated": -1.0,  # 4, 3, 2
    "C1.trend_over_foreign": 0.0,  # -1, and 4, 3.6, 3.5 over as many tokens of the other
    "C1.fall": 3.5,  # 4 - 0.5
    "C1.unstated": 2.0,  # 4 - 2
    "C1.content": 1.5,  # 2 - (4 - 3.5)
    "C1.order": 0.4,  # 3.4 - 3
    "C1.copying": 0.5,  # 3.5 - 3
    "C1.own_trend": -2 / 3,  # all but the first step go down
    "C1.own_trend_unstated": -1 / 3,  # up, down, down
    "C1.own_unstated": 0.5,  # 4 - 3.5
    "C1.own_content": 0.3,  # 0.5 - (4 - 3.8)
    "C2.sampled_trend": 1 / 3,  # up, up, down
    "C2.corrupted_trend": -1 / 3,  # down, down, up
    "C2.corrupted_over_foreign": 0.0,  # -1/3, and down, down, up again (4, 3.6, 3.9)
    "C2.sampled_fall": -0.1,
    "C2.corrupted_fall": 0.3,
    "C2.contrast": 1.5,  # 2 - (4 - 3.5)
    "C2.own_answer": 4.0,
    "C2.pair": 0.6,  # 0.5 - (4 - 4.1): the wrong one has ended after 3 tokens
}


CORRUPTED = {
    "C2.corrupted_trend",
    "C2.corrupted_over_foreign",
    "C2.corrupted_fall",
    "C2.contrast",
    "C2.own_answer",
}


OWN = {*("C1.own_trend", "C1.own_trend_unstated", "C1.own_unstated", "C1.own_content"), "C2.pair"}


def test_estimands_by_hand():
    assert trajectories.estimands(record(), stride=2) == pytest.approx(BY_HAND)


def test_every_estimand_has_a_rule_and_every_rule_an_estimand():
    ruled = {
        f"{claim}.{test['name']}" for claim, item in claims().items() for test in item["tests"]
    }
    # tests that only the tiny reasoner's study can make: test_probe_study has them
    known_only_by_construction = {
        *("C1.area", "C1.share_unstated", "C1.changepoint", "C1.below_chance"),
        *("C2.after_error", "C2.after_error_over_gold", "C2.spoilt_word"),
    }
    assert set(BY_HAND) | known_only_by_construction == {
        name for name in ruled if name[:3] in ("C1.", "C2.")
    }
    assert not set(BY_HAND) & known_only_by_construction


def nan_names(values):
    return {name for name, number in values.items() if math.isnan(number)}


@pytest.mark.parametrize(
    ("absent", "names"),
    [
        ("shuffled", {"C1.order"}),
        ("sampled", {"C2.sampled_trend", "C2.sampled_fall", "C2.pair"}),
        ("own_right", OWN),
        ("foreign_own", {"C1.own_content"}),
        ("foreign", {"C1.trend_over_foreign", "C1.content", "C2.corrupted_over_foreign"}),
        ("copying", {"C1.copying"}),
        ("corrupted", CORRUPTED),
    ],
)
def test_estimands_of_absent_conditions_are_nan_and_the_others_stay(absent, names):
    values = trajectories.estimands(record(**{absent: None}), stride=2)
    assert nan_names(values) == names
    assert {k: v for k, v in values.items() if k not in names} == pytest.approx(
        {k: v for k, v in BY_HAND.items() if k not in names}
    )


def test_corrupted_gold_that_happens_to_state_the_right_answer_does_not_count():
    wrong = {
        "right": held([0, 2, 4], [4.0, 3.5, 3.7], 2),
        "own": held([0, 2, 4], [5.0, 4.0, 1.0], 2),
    }
    assert nan_names(trajectories.estimands(record(corrupted=wrong), stride=2)) == CORRUPTED


def test_foreign_text_that_is_shorter_is_read_at_its_end():
    values = trajectories.estimands(record(foreign={"right": held([0, 2], [4.0, 3.9])}), stride=2)
    assert values["C1.content"] == pytest.approx(2.0 - 0.1)


def test_gold_that_never_states_the_answer_counts_whole():
    gold = {"right": held([0, 2, 4, 5], [4.0, 3.0, 2.5, 0.5], shuffled_end=2)}
    assert trajectories.estimands(record(gold=gold), stride=2)["C1.unstated"] == pytest.approx(3.5)


def test_only_the_first_questions_have_the_controls_where_so_many_are_said(tiny_lm, questions):
    suited = [q for q in questions if gsm.corrupt(q) and gsm.shuffle_steps(q)][:3]
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
    values = trajectories.estimands(found[2], 7)
    missing = {"C1.trend_over_foreign", "C1.content", "C1.copying", "C1.order", "C1.own_content"}
    assert nan_names(values) == missing | {"C2.corrupted_over_foreign"}


def test_study_values_are_one_seed_of_questions():
    values = trajectories.STUDY.values([record(), record(sampled=None)], {"stride": 2})
    assert values["C1.fall"] == [[3.5, 3.5]]
    assert math.isnan(values["C2.sampled_fall"][0][1])


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
        return [trajectories.Own(samples=tries, cut=1)] * len(group)

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
    monkeypatch.setattr(trajectories, "own_samples", fake_samples)
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


# --- pairs before the statement -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "gold", "other"),
    [
        ("foreign", [4.0, 3.0, 2.0], [4.0, 3.6, 3.5]),  # both to gold's 3 tokens
        # to the end of the shuffled steps: 2 tokens, 3 tokens
        ("shuffled", [4.0, 3.0], [4.0, 9.0, 3.4]),
        ("corrupted", [4.0, 3.0, 2.0], [4.0, 3.5]),  # to where it states its own answer: 2 tokens
    ],
)
def test_pairs_are_cut_before_any_answer_is_stated(kind, gold, other):
    first, second = trajectories.paired_before_statement(record(), kind)
    assert (first.answer_nll.tolist(), second.answer_nll.tolist()) == (gold, other)
    assert (first.length, second.length) == (first.positions[-1], second.positions[-1])


@pytest.mark.parametrize(
    ("foreign", "beside"),
    [
        (held([0, 2, 5], [4.0, 3.6, 3.9]), 0.4),
        (held([0, 4, 5], [4.0, 3.0, 3.9]), 0.5),  # halfway between two probed prefixes
        (held([0, 1], [4.0, 3.3]), 0.7),  # shorter: all of it
    ],
)
def test_before_the_last_step_gold_is_compared_with_as_many_tokens(foreign, beside):
    found = trajectories.before_last_step(record(foreign={"right": foreign}))
    assert found == pytest.approx((1.0, 1.0 - beside))


def test_gold_of_one_step_has_nothing_before_its_last():
    gold = {"right": held([0, 2, 5], [4.0, 3.0, 0.5], 3)}
    assert np.isnan(trajectories.before_last_step(record(gold=gold))).all()


def test_a_pair_without_its_condition_is_none():
    assert trajectories.paired_before_statement(record(foreign=None), "foreign") is None


def test_gold_that_states_the_answer_at_once_leaves_nothing_to_compare():
    gold = {"right": held([0, 2, 5], [4.0, 3.0, 0.5], 0, shuffled_end=2)}
    first, _ = trajectories.paired_before_statement(record(gold=gold), "foreign")
    assert first.answer_nll.tolist() == [4.0]


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
    question = next(q for q in questions if gsm.shuffle_steps(q))
    written = [
        f"Let me add.</think>\n\nIt is \\boxed{{{question.answer}}}.",
        "So 1 and 2.</think>\n\nIt is \\boxed{-7}.",
    ]
    monkeypatch.setattr(
        trajectories.sampling, "sample", lambda *_, **__: [sampling.Sampled((), 0)] * 2
    )
    monkeypatch.setattr(trajectories.sampling, "texts", lambda *_, **__: written)
    (own,) = trajectories.own_samples(thinks, [question], seed=0, tries=2)
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
