"""The benchmark measures what it says (never how fast this machine happens to be)."""

import numpy as np
import pytest
import torch

from tml_lib import bench, models
from tml_lib.answers import Suffix


def test_linear_flops_equal_a_hand_count():
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
    assert bench._linear_flops(model, lambda: model(torch.zeros(7, 3))) == 2 * 7 * (3 * 5 + 5 * 2)


def test_peak_above_sees_what_was_freed_again():
    def allocate():
        np.ones(60 * 2**20 // 8).sum()

    assert 50 < bench._peak_above(allocate) < 120


def test_compare_gives_rows_with_positive_medians():
    ids = torch.randint(3, 190, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    said = []
    rows = bench._compare("tiny", models.random_model(), ids[:5], ids[5:35], Suffix(tuple(ids[35:]), 3, ""), 7, 2, said.append)
    assert {row["unit"] for row in rows} == {"×", "%", "s"}
    assert all(set(row) == {"name", "value", "unit", "bar", "setting"} for row in rows)
    assert all(row["value"] >= 0 for row in rows)
    assert rows[0]["bar"] == "≥ 7"
    assert len(said) == 2


@pytest.mark.parametrize("length", [16])
def test_text_has_the_asked_length_and_a_two_token_answer(lm, length):
    prompt, trajectory, suffix = bench._text(lm, length)
    assert len(trajectory) == length
    assert len(suffix.ids) - suffix.start == 2
    assert len(prompt) > 20
