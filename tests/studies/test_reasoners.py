"""The reasoners of studies with one per seed: trained once, then kept."""

import pytest

from tml_lib.studies import reasoners, supervised


def test_a_reasoner_is_trained_once_and_then_kept(tmp_path, monkeypatch):
    first = reasoners.reasoner(0, tmp_path, steps=2)
    monkeypatch.setattr(supervised, "tuned", None)  # nothing is left to train
    again = reasoners.reasoner(0, tmp_path, steps=2)
    for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert (a == b).all()
    with pytest.raises(TypeError):
        reasoners.reasoner(1, tmp_path, steps=2)  # another seed is another model
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("tmp")] == []
