"""What notebook 12 works on: a preset's questions, and the passes that share a step's samples."""

import dataclasses
import math

import pytest

from tml_lib.data import programs
from tml_lib.lm import models
from tml_lib.studies import rl, rl_material


def test_material_of_the_tiny_reasoner_trains_and_asks_all_lengths():
    material = rl_material.material("tiny", n=7, seed=2)
    assert material.lm.name == "tiny-short"
    statements = [
        len(programs.parse(question.text).statements) // programs.CHAINS
        for question in material.held_out
    ]
    assert statements == [1, 2, 3, 1, 2, 3, 1]
    assert all(
        programs.is_held_out(programs.parse(question.text)) for question in material.held_out
    )
    assert [q.text for q in material.trained] == [
        q.text for q in rl.questions(rl_material.SHOWN, 2)
    ]
    assert [q.text for q in rl_material.material("tiny", n=3, seed=2).held_out] == [
        q.text for q in material.held_out[:3]
    ]
    assert material.reward("\n\n**Final Answer**\n\\boxed{ a=1 }", "a=1") == 1
    assert (material.rate("grpo", 4), material.rate("grpo", 0)) == (3e-3, 3e-4)


def test_material_of_a_text_model_trains_on_no_question_that_it_asks(tiny_lm, monkeypatch):
    monkeypatch.setattr(rl_material.models, "load", lambda name, **settings: tiny_lm)
    material = rl_material.material("small", n=40, seed=0)
    assert material.lm is tiny_lm
    assert len(material.held_out) == 40
    assert len(material.trained) > 200
    assert not {q.text for q in material.trained} & {q.text for q in material.held_out}
    assert material.reward("It is \\boxed{4}.", "4") == 1
    with pytest.raises(ValueError, match="n=0 questions"):
        rl_material.material("small", n=0, seed=0)
    with pytest.raises(ValueError, match="adapter='stored' is for text models"):
        rl_material.material("tiny", adapter="stored", n=1, seed=0)


def test_passes_share_the_samples_of_a_step_evenly():
    material = rl_material.material("tiny", n=1, seed=0)
    assert [material.passes(update) for update in (1, 3, 16)] == [1, 1, 1]
    assert rl_material.BUDGETS.keys() == models.PRESETS.keys()
    assert material.most_tokens == models.preset("tiny").max_tokens
    for budget in rl_material.BUDGETS.values():
        assert set(budget) == set(rl_material.BUDGETS["tiny"])
        for update in range(1, rl.GROUP + 1):
            passes = dataclasses.replace(
                material, prompts=budget["prompts"], rows=budget["rows"]
            ).passes(update)
            assert budget["prompts"] * math.gcd(rl.GROUP, update) % passes == 0, (
                "trl would drop the rest"
            )
            if update & (update - 1) == 0:  # for others trl cannot cut finer
                assert budget["prompts"] * update <= passes * budget["rows"]
