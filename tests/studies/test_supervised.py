"""The studies of C4a, C7 and C9: arms that differ in one thing, metrics known by hand, complete
rules, evidence.
"""

import json
from collections import Counter

import numpy as np
import pytest
import torch

from tml_lib.claims import ledger, rulebook
from tml_lib.claims.stats import bootstrap_interval, mg_pass_at_k, nested_interval
from tml_lib.data import programs, tiny
from tml_lib.lm.answers import ANSWER_TEMPLATE
from tml_lib.lm.models import LanguageModel
from tml_lib.lm.sampling import Sampled
from tml_lib.studies import supervised
from tml_lib.studies.engine import Made

WORDS = list(tiny.VOCABULARY)


@pytest.fixture(scope="module")
def base():
    return LanguageModel(tiny.new_model(0), tiny.tokenizer(), "random")


@pytest.fixture(scope="module")
def small():
    """Fewer samples and smaller batches: the studies' structure, not their figures."""
    patch = pytest.MonkeyPatch()
    patch.setattr(supervised, "BATCH", 4)
    patch.setattr(supervised, "MOST_TOKENS", 12)
    patch.setattr(supervised, "SIZES", (1, 8, 32))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def sft_records(base, small):
    return [supervised.sft_record(seed, None, steps=2, questions=3) for seed in (0, 1)]


@pytest.fixture(scope="module")
def support_records(base, small):
    return [supervised.support_record(seed, None, steps=2, count=4, questions=3) for seed in (0, 1)]


def question_of(row):
    ids, start = row
    return " ".join(WORDS[k] for k in ids[1 : start - 2])


def trajectory_of(row):
    ids, start = row
    words = [WORDS[k] for k in ids[start:]]
    return words[: words.index(ANSWER_TEMPLATE)]


# --- arms -----------------------------------------------------------------------------------------


def test_arms_see_the_same_questions_at_the_same_step_and_differ_in_style_alone():
    batches = {style: supervised.arm_rows(3, style)(7) for style in ("long", "short", None)}
    asked = {style: [question_of(row) for row in rows] for style, rows in batches.items()}
    assert asked["long"] == asked["short"] == asked[None]
    assert len(set(asked["long"])) == supervised.BATCH
    assert not any(trajectory_of(row) for row in batches[None])
    assert sum(len(trajectory_of(row)) for row in batches["long"]) > 1.5 * sum(
        len(trajectory_of(r)) for r in batches["short"]
    )


def test_trained_questions_are_never_held_out_and_of_every_difficulty():
    texts = [question_of(row) for step in range(5) for row in supervised.arm_rows(0, "short")(step)]
    found = [programs.parse(text) for text in texts]
    assert not any(programs.is_held_out(program) for program in found)
    assert {len(program.statements) for program in found} == {2, 4, 6}
    assert {s.operator for program in found for s in program.statements} == {"+", "*"}
    assert texts != [
        question_of(row) for step in range(5) for row in supervised.arm_rows(1, "short")(step)
    ]


@pytest.mark.parametrize("size", [1, 4, 32])
def test_support_arms_visit_every_question_equally_often_with_that_many_trajectories(
    size, monkeypatch
):
    monkeypatch.setattr(supervised, "BATCH", 16)
    monkeypatch.setattr(
        tiny, "sft_row", lambda program, words, rng: (program.text, " ".join(words))
    )
    count, visits = 8, 64
    rows = supervised.support_rows(0, size, count)
    seen = Counter(row for step in range(count * visits // 16) for row in rows(step))
    assert set(seen.values()) == {visits // size}
    assert len(seen) == count * size
    assert set(Counter(text for text, _ in seen).values()) == {size}


def test_support_arms_see_the_same_questions_at_the_same_step():
    few, many = (supervised.support_rows(5, size, 40)(3) for size in (1, 32))
    assert [question_of(row) for row in few] == [question_of(row) for row in many]


def test_tuning_trains_a_copy(base):
    before = base.model.lm_head.weight.clone()
    lm, losses = supervised.tuned(base, tiny.base_rows(0, 3, batch=4), 3)
    assert len(losses) == 3
    assert torch.equal(base.model.lm_head.weight, before)
    assert not torch.equal(lm.model.lm_head.weight, before)


# --- measuring ------------------------------------------------------------------------------------


def test_metrics_of_made_up_counts():
    arm = {"greedy": {"right": [1, 0, 1]}, "sampled": {"0.6": [16, 0, 8], "1.0": [1, 0, 16]}}
    assert supervised.metric(arm, "greedy").tolist() == [1, 0, 1]
    # one of 16 is among 8 drawn half of the time
    assert supervised.metric(arm, "pass@1.0") == pytest.approx([0.5, 0, 1])
    assert supervised.metric(arm, "mgpass@1.0") == pytest.approx([0, 0, 1])
    assert supervised.metric(arm, "mgpass@0.6")[0] == 1
    with pytest.raises(KeyError):
        supervised.metric(arm, "median@0.6")


def test_rows_of_long_cost_more_tokens_than_short_and_none():
    found = [supervised.mean_tokens(style) for style in ("long", "short", None)]
    assert found[0] > found[1] > found[2] > 10


def test_a_scripted_model_is_graded_and_no_thinking_begins_with_the_template(base, monkeypatch):
    asked = programs.questions(3, 1, "held_out")

    def scripted(lm, prompts, seeds, **settings):
        assert all(prompt.endswith(ANSWER_TEMPLATE) for prompt in prompts)
        answers = [asked[0].answer, "a=0 b=0", asked[2].answer]
        return [
            Sampled(tuple(lm.tokenizer(f"{answer} }}", add_special_tokens=False)["input_ids"]), 0)
            for answer in answers
        ]

    monkeypatch.setattr(supervised.sampling, "sample", scripted)
    found = supervised.greedy(base, asked, begin=ANSWER_TEMPLATE)
    assert found == {"right": [1, 0, 1], "tokens": 3.0, "ended": 1.0, "cut": [0, 3]}


# --- records, rules, evidence ---------------------------------------------------------------------


def test_a_seed_gives_the_same_record_again(base, small, sft_records):
    again = supervised.sft_record(1, None, steps=2, questions=3)
    assert json.dumps(again) == json.dumps(sft_records[1]) != json.dumps(sft_records[0])


def test_the_token_matched_arms_take_more_steps(sft_records):
    arms, lengths = sft_records[0]["arms"], sft_records[0]["row_tokens"]
    assert (
        arms["short_tokens"]["steps"]
        == round(2 * lengths["long"] / lengths["short"])
        > arms["short"]["steps"]
    )
    assert arms["none_tokens"]["steps"] > arms["short_tokens"]["steps"]


@pytest.mark.parametrize(("study", "claims"), [("sft", ("C4a", "C9")), ("support", ("C7",))])
def test_every_rule_has_values_and_every_value_a_rule(study, claims, request, small):
    records = request.getfixturevalue(f"{study}_records")
    values = {"sft": supervised.SFT, "support": supervised.SUPPORT}[study].values(records, {})
    assert set(values) == {
        f"{c}.{t['name']}" for c in claims for t in rulebook.claims()[c]["tests"]
    }
    for name, seeds in values.items():
        assert [len(np.asarray(seed)) for seed in seeds] == [3, 3], name


def arm(greedy, cool, hot):
    """An arm of one question: right or not, and right ones among 16 samples at T = 0.6 and at T =
    1.
    """
    return {"greedy": {"right": [greedy]}, "sampled": {"0.6": [cool], "1.0": [hot]}}


# 1 - C(16 - c, 8) / C(16, 8)
PASS = {0: 0.0, 1: 0.5, 2: 23 / 30, 4: 1 - 495 / 12870, 12: 1.0, 16: 1.0}


def test_estimands_of_c4a_and_c9_by_hand():
    arms = {name: arm(0, 0, 0) for name in ("base", "none", "none_tokens", "plain", "long_whole")}
    arms |= {"long": arm(1, 16, 2), "short": arm(0, 4, 1), "short_tokens": arm(1, 12, 0)}
    models_of = ("base", "short", "long", "none", "no_thinking", "long_whole")
    splits = {
        split: {name: {"right": [0]} for name in models_of}
        for split in programs.SPLITS
        if split != "train"
    }
    splits["harder"]["long"]["right"] = splits["other_surface"]["short"]["right"] = [1]
    splits["other_operations"]["base"]["right"] = splits["held_out"]["long_whole"]["right"] = [1]
    splits["held_out"]["none"]["right"] = [1]
    found = {
        name: float(np.asarray(values)[0])
        for name, values in supervised.sft_estimands({"arms": arms, "splits": splits}).items()
    }
    wanted = {
        "C4a.steps_greedy": 1.0,
        "C4a.tokens_greedy": 0.0,
        "C4a.steps_pass": PASS[2] - PASS[1],
        "C4a.tokens_pass": PASS[2],
        "C4a.steps_pass_cool": 1.0 - PASS[4],
        # four right ones of sixteen are never more than half of eight drawn
        "C4a.steps_mgpass_cool": 1.0,
        "C4a.tokens_mgpass_cool": 1.0 - mg_pass_at_k(16, 12, 8),
        "C4a.steps_mgpass": 0.0,
        "C4a.over_none_steps": 1.0,
        "C4a.over_none_tokens": 1.0,
        "C4a.short_over_none_steps": 0.0,
        "C4a.short_over_none_tokens": 1.0,
        "C4a.plain_over_short": 0.0,
        "C4a.over_plain": 1.0,
        "C9.harder": 1.0,
        "C9.thinking_harder": 1.0,
        "C9.short_other_surface": 1.0,
        "C9.other_operations": -1.0,
        "C9.none_held_out": 1.0,
        "C9.whole_held_out": 1.0,
        "C9.held_out": 0.0,
    }
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value), name
    assert 0 < mg_pass_at_k(16, 12, 8) < 1


def test_estimands_of_c7_by_hand():
    sizes = {"1": arm(0, 2, 1), "8": arm(1, 12, 2), "32": arm(1, 16, 4)}
    found = {
        name: float(np.asarray(values)[0])
        for name, values in supervised.support_estimands({"sizes": sizes}).items()
    }
    assert found["C7.greedy"] == 1
    assert found["C7.greedy_late"] == 0
    assert found["C7.pass"] == pytest.approx(PASS[4] - PASS[1])
    assert found["C7.pass_late"] == pytest.approx(PASS[4] - PASS[2])
    assert found["C7.pass_cool"] == pytest.approx(1 - PASS[2])
    assert found["C7.mgpass_cool"] == pytest.approx(1)
    assert found["C7.mgpass"] == 0


def test_samples_are_drawn_at_their_temperature_and_with_their_number(base, monkeypatch):
    calls = []

    def spy(lm, questions, graded, **settings):
        calls.append((settings["temperature"], settings["samples"], settings["seed"]))
        return [7] * len(questions), 1.0, {0.6: 1.0, 1.0: 29 / 32}[settings["temperature"]]

    monkeypatch.setattr(supervised.sampling, "right_counts", spy)
    found = supervised.sampled(base, programs.questions(2), 5)
    assert found == {"0.6": [7, 7], "1.0": [7, 7], "cut": [3, 64]}
    assert calls == [(0.6, 16, 5), (1.0, 16, 5)]


def test_greedy_answers_say_how_many_of_them_were_cut(base, monkeypatch):
    monkeypatch.setattr(supervised, "MOST_TOKENS", 1)
    found = supervised.greedy(base, programs.questions(3))
    assert (found["right"], found["ended"], found["cut"]) == ([0, 0, 0], 0.0, [3, 3])


def test_pools_of_trajectories_are_shuffled_so_that_every_size_has_the_same_style(monkeypatch):
    monkeypatch.setattr(supervised, "BATCH", 60)
    monkeypatch.setattr(tiny, "sft_row", lambda program, words, rng: (program.text, words))
    waits = {}
    for size in (1, 32):
        rows = supervised.support_rows(0, size, 60)
        found = [words for step in range(32) for _, words in rows(step)]
        waits[size] = sum(words.count("Wait") for words in found) / sum(
            words.count(".") for words in found
        )
    assert waits[1] == pytest.approx(waits[32], abs=0.06)


def test_whole_rows_are_neither_cut_nor_without_a_trajectory():
    rows = supervised.arm_rows(1, "long", whole=True)(0)
    assert all(trajectory_of(row)[-1] == "." for row in rows)
    assert [question_of(row) for row in rows] == [
        question_of(row) for row in supervised.arm_rows(1, "long")(0)
    ]


def test_evidence_is_written_and_read_and_small_samples_decide_nothing(
    sft_records, support_records, tmp_path
):
    for study, records in ((supervised.SFT, sft_records), (supervised.SUPPORT, support_records)):
        study.write(Made(records, 1.0, study.settings), tmp_path, command="x")
    table = ledger.rows([tmp_path])
    assert {row.claim for row in table} == {"C4a", "C7", "C9"}
    assert {row.verdict for row in table} == {"too few"}
    assert {row.n_seeds for row in table} == {2}


def test_values_of_nested_evidence_resample_questions_too():
    """With equal seed means the plain interval would have no width; the nested one knows that
    questions vary.
    """
    rng = np.random.default_rng(0)
    groups = [rng.permutation([0.0] * 50 + [1.0] * 50) for _ in range(5)]
    flat = bootstrap_interval([g.mean() for g in groups], seed=0)
    nested = nested_interval(groups, seed=0)
    assert flat.low == flat.high
    assert nested.high - nested.low == pytest.approx(2 * 1.96 * 0.5 / 500**0.5, rel=0.15)
