"""L̂ after every token: kinds of tokens, spikes by hand, and what a stride hides of them."""

import numpy as np
import pytest

from tml_lib.claims import ledger
from tml_lib.claims.stats import trend
from tml_lib.lm.answers import encode
from tml_lib.measure.probe import probe
from tml_lib.records import Trajectory
from tml_lib.studies import strides, trajectories
from tml_lib.studies.own_trajectories import Own


@pytest.mark.parametrize(
    ("nll", "found"),
    [
        ([2, 2, 3, 2], [1]),  # up by 1, and all of it gone
        ([2, 2, 2.9, 2], []),  # too low
        ([2, 2, 4, 3], [1]),  # half of it gone
        ([2, 2, 4, 3.1], []),  # less than half
        ([2, 2, 4, *[4] * 7, 2], [1]),  # gone after 8 tokens
        ([2, 2, 4, *[4] * 8, 2], []),  # gone too late
        ([2, 4, 2, 4, 2], [0, 2]),
        ([4, 2], []),
        ([2, 4], []),  # nothing comes after it
    ],
)
def test_a_spike_rises_by_a_nat_and_falls_again_soon(nll, found):
    assert strides.spikes(nll) == found


def evidence(*curves):
    return {
        "records": [
            {"curves": {"gold": {"nll": nll, "tokens": kinds, "unstated": len(kinds)}}}
            for nll, kinds in curves
        ]
    }


def test_spikes_are_counted_by_the_token_that_makes_them():
    held = evidence(([2, 4, 2, 2, 4, 2], "dwwdw"), ([2, 2, 5, 1], "wsd"))
    assert strides.by_token(held, "gold") == {"digit": (3, 2), "word": (4, 0), "sign": (1, 1)}
    assert strides.by_token(held, "sampled") == {}


def test_words_that_mark_a_step_are_compared_with_all_other_tokens():
    curve = {"nll": [4, 2, 3, 1, 1.5], "tokens": "wwbw", "marks": [["So", 0, 2], [".", 2, 3]]}
    found = strides.by_mark({"records": [{"curves": {"gold": curve}}]}, "gold")
    sizes = {name: (of["n"], of["absolute"], of["signed"]) for name, of in found.items()}
    assert sizes == {"So": (1, 1, -1), ".": (1, 2, -2), "other": (1, 0.5, 0.5)}


def test_a_stride_sees_a_spike_where_it_reads_its_upper_half():
    held = evidence(([2, 4, 2, 2, 4, 3.5, 2, 2], "wwwwwww"))  # spikes at prefixes 1 and 4 to 5
    assert strides.seen(held, "gold", 1) == (2, 2)
    assert strides.seen(held, "gold", 2) == (2, 1)
    assert strides.seen(held, "gold", 5) == (2, 1)
    assert strides.seen(held, "gold", 7) == (2, 0)


def test_trends_are_compared_with_that_of_every_token():
    nll = [4, 5, 3, 4, 2, 3]
    held = evidence((nll, "wwwww"), (nll[::-1], "wwwww"))
    found = strides.trends(held, "gold")
    assert 2 in found
    every, second = trend(np.array(nll)), trend(np.array([4, 3, 2, 3]))
    back = trend(np.array([3, 4, 5, 4]))
    expected = ((second - every) + (back + every)) / 2
    assert found[2].estimate == pytest.approx(expected)


def test_a_record_holds_every_prefix_and_a_kind_for_every_token(tiny_lm, tmp_path):
    question = trajectories.study_questions(1, 0)[0]
    text = "So \\frac{1}{2} of it, 34.\nNow + 5"
    own = Own(right=Trajectory(text, "own_right", question.answer, True))
    made = strides.STUDY.run([(question, own)], tmp_path, inputs={"lm": tiny_lm})
    curve = made.records[0]["curves"]["own_right"]
    prompt = tiny_lm.prompt(question.text)
    encoded = encode(tiny_lm.tokenizer, prompt, text, [question.answer])
    again = probe(tiny_lm, prompt, text, question.answer)
    assert curve["nll"] == pytest.approx(again.answer_nll, abs=1e-3)
    assert set(made.records[0]["curves"]) == {"gold", "own_right"}
    assert [mark for mark in curve["marks"] if mark[0] == "So"] == [["So", 0, 1]]
    kinds = dict(zip(encoded.tokens, curve["tokens"], strict=True))
    expected = {
        "So": "w",
        "3": "d",
        "5": "d",
        "frac": "m",
        "{": "m",
        ".": "p",
        "\n": "b",
        " +": "s",
    }
    known = {token: kind for token, kind in expected.items() if token in kinds}
    assert len(known) >= 5
    assert {token: kinds[token] for token in known} == known
    settings = {"model": "tiny", "n_questions": 1, "seed": 0}
    path = strides.STUDY.write(made, tmp_path, command="x", settings=settings)
    assert strides.by_token(ledger.read_evidence(path), "own_right")["digit"][0] >= 3
