"""What the tests of the paper's question sets share: sets on disk, and a cache of their own."""

import pytest

from tml_lib.data import gsm, hub


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A folder with a set of eight questions per schema."""
    root = tmp_path_factory.mktemp("sets")
    names = [name for name, source in hub.SETS.items() if source.read]
    return {name: hub.fixture(name, root / name, n=8, seed=3) for name in names}


@pytest.fixture(scope="session")
def made():
    """The questions that the sets were made of."""
    return gsm.gsm_symbolic(8, 3)


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    """What `datasets` converts stays in the test's own folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
