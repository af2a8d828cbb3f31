"""Cases of the update study: where they end, and their siblings."""

import pytest

from tml_lib.data import gsm, toy
from tml_lib.studies import trajectories, update_cases


@pytest.fixture(scope="module")
def others():
    return gsm.gsm_symbolic(64, seed=2)


@pytest.fixture(scope="module")
def gsm_cases(lm, others):
    return [
        (q, update_cases.gsm_case(lm, q, others, 2)) for q in trajectories.study_questions(12, 2)
    ]


def test_no_answer_is_stated_before_the_ends(lm, gsm_cases):
    for question, case in gsm_cases:
        assert {"gold", "foreign"} <= set(case.trajectories) == set(case.ends)
        for kind, (gold_end, end) in case.ends.items():
            ours = lm.tokenizer.decode(case.trajectories["gold"][:gold_end])
            assert gsm.first_mention(ours, question.answer) is None
            assert 0 < end <= len(case.trajectories[kind])
            assert (
                gsm.first_mention(
                    lm.tokenizer.decode(case.trajectories[kind][:end]), question.answer
                )
                is None
            )
        if "shuffled" in case.ends:
            both = [
                case.trajectories[k][:e]
                for k, e in zip(("gold", "shuffled"), case.ends["shuffled"], strict=True)
            ]
            texts = [sorted(lm.tokenizer.decode(ids).split("\n")) for ids in both]
            assert texts[0] == texts[1]


def test_siblings_have_another_answer_that_does_not_stand_in_them(lm, gsm_cases):
    for question, case in gsm_cases:
        for prompt, suffix in case.siblings.values():
            assert gsm.value(suffix.answer) != gsm.value(question.answer)
            assert gsm.first_mention(lm.tokenizer.decode(prompt), suffix.answer) is None
        same = update_cases._sibling(question, True, 2)
        assert (same.template, same.text != question.text) == (question.template, True)
        assert update_cases._sibling(question, False, 2).template != question.template
    assert len({case.siblings["other"][0] for _, case in gsm_cases}) > 6


def test_a_question_without_a_sibling_is_an_error(gsm_cases, monkeypatch):
    monkeypatch.setattr(update_cases, "_POOL", 1)
    question = next(q for q, _ in gsm_cases if q.template != gsm.gsm_symbolic(1, 1002)[0].template)
    with pytest.raises(LookupError, match="no sibling of gsm_symbolic"):
        update_cases._sibling(question, True, 2)


def test_toy_cases_end_before_the_last_value():
    for question in toy.chains(40, 1):
        case = update_cases.toy_case(question, 1)
        answer = toy.encode(question.answer)
        for kind, ids in case.trajectories.items():
            values = [list(ids[k + 3 : k + 5]) for k in range(0, 30, 5)]
            assert answer not in values[: case.ends[kind][1] // 5]
            assert (values[-1] == answer) is (kind in ("gold", "shuffled"))
            if kind != "shuffled":  # its last value, in another order, may not come early either
                assert values[-1] not in values[:-1] or kind == "foreign"
        sibling = list(case.siblings["same"][1].ids[1:])
        assert list(case.trajectories["foreign"][-2:]) != sibling
        assert list(case.trajectories["gold"][case.ends["gold"][0] :]) == answer
        assert list(case.suffix.ids) == [toy.encode("#")[0], *answer]
        assert case.ends["shuffled"] == (25, 25)
