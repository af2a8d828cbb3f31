"""The studies of C4b, C5 and C8: their arms, windows and values by hand, and a run with
two steps.
"""

import json

import numpy as np
import pytest

from tml_lib.claims import ledger, rulebook
from tml_lib.data import programs
from tml_lib.lm import models
from tml_lib.studies import rl, supervised


def curve(reward, seconds=None):
    return {"reward": list(reward), "seconds": list(seconds or range(1, len(reward) + 1))}


def test_questions_are_trained_ones_of_all_lengths():
    found = rl.questions(60, 3)
    lengths = {len(programs.parse(question.text).statements) for question in found}
    assert lengths == {programs.CHAINS * steps for steps in range(1, programs.STEPS + 1)}
    assert not any(programs.is_held_out(programs.parse(question.text)) for question in found)
    assert [q.text for q in rl.questions(5, 3)] == [q.text for q in found[:5]]
    assert rl.questions(5, 4)[0].text != found[0].text


def test_rewards_are_compared_at_the_end_or_at_a_time():
    made = curve(range(10), [2 * k for k in range(1, 11)])
    assert rl.last_reward(made).tolist() == [8, 9]
    assert rl.last_reward(made, 10.0).tolist() == [3, 4]
    assert rl.last_reward(made, 11.9).tolist() == [3, 4]
    assert rl.last_reward(made, 0.0).tolist() == [0, 1], "never fewer than a window"
    assert rl.last_reward(made, 99.0).tolist() == [8, 9]


def answers(greedy, warm, cool):
    return {"greedy": {"right": greedy}, "sampled": {"1.0": warm, "0.6": cool}}


def test_values_of_c4b_and_c5_by_hand():
    names = ("base", "long", "short", "cold", "dpo", "warm", "zero", "zero_wall")
    arms = {name: answers([0, 0], [0, 0], [0, 0]) for name in names}
    arms |= {
        "long": answers([1, 0], [16, 0], [16, 16]),
        "warm": answers([1, 1], [16, 16], [16, 16]),
    }
    arms |= {"zero": answers([0, 1], [16, 16], [0, 0]), "cold": answers([1, 0], [0, 0], [0, 0])}
    found = {test: np.asarray(x) for test, x in rl.rl_estimands({"arms": arms}).items()}
    assert found["C4b.greedy_over_zero"].tolist() == [1, -1]
    assert found["C4b.pass_over_zero"].tolist() == [0, -1]
    assert found["C4b.mgpass_over_zero_wall"].tolist() == pytest.approx([1, 1])
    assert found["C5.greedy"].tolist() == [1, 0]
    assert found["C5.cold"].tolist() == [0, 1]
    assert found["C4b.zero"].tolist() == [0, 1]
    assert found["C5.pass_over_long"].tolist() == [0, 1]
    wanted = {
        f"{claim}.{test['name']}"
        for claim in ("C4b", "C5")
        for test in rulebook.claims()[claim]["tests"]
    }
    assert set(found) == wanted


def test_values_of_c8_by_hand():
    sizes = {str(size): answers([0], [0], [0]) | {"curve": curve([0.0] * 10)} for size in rl.SIZES}
    sizes["cold"] = answers([0], [0], [0])
    sizes["16"] = answers([1], [16], [16]) | {
        "curve": curve(np.arange(10) / 10, [2.0 * k for k in range(1, 11)])
    }
    found = {test: np.asarray(x) for test, x in rl.size_estimands({"sizes": sizes}).items()}
    assert found["C8.greedy"].tolist() == found["C8.pass"].tolist() == [1]
    assert found["C8.reward_steps"].tolist() == pytest.approx([0.8, 0.9])
    assert found["C8.reward_wall"].tolist() == pytest.approx([0.3, 0.4]), (
        "at 10 s the slower run has taken 5 steps"
    )
    assert set(found) == {f"C8.{test['name']}" for test in rulebook.claims()["C8"]["tests"]}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(rl, "PROMPTS", 1)
    monkeypatch.setattr(rl, "GROUP", 4)
    monkeypatch.setattr(rl, "SIZES", (1, 4))
    monkeypatch.setattr(rl, "RATES", (1e-4, 3e-4))
    monkeypatch.setattr(rl, "DPO_RATES", (1e-4,))
    monkeypatch.setattr(rl, "PAIRS", 2)
    monkeypatch.setattr(rl, "PAIR_QUESTIONS", 20)
    monkeypatch.setattr(supervised, "BATCH", 4)
    monkeypatch.setattr(supervised, "MOST_TOKENS", 32)


def test_rates_are_tried_once_and_the_best_is_taken(small, tmp_path, monkeypatch):
    tried = rl.tried_rates(tmp_path, steps=2, cold_steps=2)
    assert [(row.get("start"), row.get("size")) for row in tried] == [
        ("cold", 1),
        ("cold", 4),
        ("base", 4),
        (None, None),
    ]
    for row in tried[:3]:
        assert set(row["rates"]) == {"0.0001", "0.0003"}
        assert row["rates"][str(row["best"])] == max(row["rates"].values())
    assert 0 <= tried[3]["right"] <= 1
    assert rl.best(tried, "base", 4) == tried[2]["best"]
    monkeypatch.setattr(rl, "rewarded", None)  # nothing is left to try
    assert rl.tried_rates(tmp_path, steps=2, cold_steps=2) == tried


@pytest.mark.slow
def test_a_whole_study_runs_and_resumes_where_it_stopped(small, tmp_path, monkeypatch):
    settings = {"steps": 4, "cold_steps": 2, "questions": 3, "command": "a test"}
    settings["rate_settings"] = {"steps": 2, "cold_steps": 2}
    path = rl.make_evidence(rl.RL, 2, tmp_path, **settings)
    records = json.loads(path.read_text())["records"]
    arms = records[0]["arms"]
    assert {name: arm["steps"] for name, arm in arms.items() if name != "zero_wall"} == {
        "base": 0, "long": 4, "short": 4, "cold": 2, "dpo": 4, "warm": 4, "zero": 4,
    }  # fmt: skip
    assert 1 <= arms["zero_wall"]["steps"] <= 4
    assert arms["warm"]["seconds"] > arms["cold"]["seconds"] > 0
    assert {name: len(made["reward"]) for name, made in records[0]["curves"].items()} == {
        "warm": 2, "zero": 4, "zero_wall": arms["zero_wall"]["steps"],
    }  # fmt: skip
    assert {row.claim for row in ledger.rows([tmp_path])} == {"C4b", "C5"}
    assert {row.verdict for row in ledger.rows([tmp_path])} == {"too few"}
    assert len(json.loads(path.read_text())["rates"]) == 4
    monkeypatch.setattr(rl, "rewarded", None)
    assert (
        json.loads(rl.make_evidence(rl.RL, 2, tmp_path, **settings).read_text())["records"]
        == records
    )


def test_sizes_share_the_cold_start_and_the_questions(small, tmp_path, monkeypatch):
    monkeypatch.setattr(rl, "SIZES", (1, 4))
    seen = []
    real = rl.rewarded

    def rewarded(lm, seed, steps, *, update, peak_lr):
        seen.append((lm, seed, steps, update, peak_lr))
        return real(lm, seed, steps, update=update, peak_lr=peak_lr)

    monkeypatch.setattr(rl, "rewarded", rewarded)
    record = rl.size_record(
        5, tmp_path, steps=2, cold_steps=2, questions=3, rates={"1": 1e-4, "4": 2e-4}
    )
    assert [(row[3], row[4]) for row in seen] == [(1, 1e-4), (4, 2e-4)]
    assert seen[0][0] is seen[1][0]
    assert set(record["sizes"]) == {"cold", "1", "4"}
    assert all(len(record["sizes"][size]["curve"]["reward"]) == 2 for size in ("1", "4"))


def test_the_base_leaves_something_to_learn_from():
    """Were no sample of the base right, GRPO from it would stand still: C4b and C5 would be decided
    before they begin.
    """
    base = models.load("tiny", device="cpu")
    curve = rl.logged(rl.rewarded(base, 9, 2, peak_lr=1e-4))
    assert max(curve["flat"]) < 1
    assert np.mean(curve["reward"]) > -0.5
