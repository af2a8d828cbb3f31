"""Fixtures that several test files share; what is slow to build is built once per run."""

import functools
import os
import runpy
from pathlib import Path

import pytest
import torch

from tml_lib.data import gsm, tiny
from tml_lib.lm import models
from tml_lib.lm.models import LanguageModel

torch.set_num_threads(1)

# Nothing under test may leave this machine: not this process, nor the kernels and children that it
# starts.
_GUARD = Path(__file__).parent / "offline"
runpy.run_path(str(_GUARD / "sitecustomize.py"))
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(_GUARD), os.environ.get("PYTHONPATH")])
)


@pytest.fixture(scope="session")
def lm() -> LanguageModel:
    """The embedded SmolLM2-135M-Instruct in float32."""
    return models.load("small", device="cpu")


@pytest.fixture(scope="session")
def tokenizer(lm):
    return lm.tokenizer


@pytest.fixture(scope="session")
def tiny_lm(tokenizer) -> LanguageModel:
    """A tiny random Llama that reads SmolLM2's tokens: as fast as it is ignorant."""
    return LanguageModel(
        models.random_model("llama", vocab_size=len(tokenizer), seed=1), tokenizer, "tiny-random"
    )


@pytest.fixture(scope="session")
def random_model():
    """`models.random_model`, each model built once per run; a test that alters one asks `models`
    for its own.
    """
    return functools.cache(models.random_model)


@pytest.fixture(scope="session")
def start() -> LanguageModel:
    """The tiny reasoner before any training; outer loops train a copy of it."""
    return LanguageModel(tiny.new_model(0), tiny.tokenizer(), "start")


@pytest.fixture(scope="session")
def reasoner() -> LanguageModel:
    """The shipped tiny reasoner, fine-tuned on long trajectories."""
    return models.load("tiny", model=models.shipped("tiny-long"), device="cpu")


@pytest.fixture(scope="session")
def questions():
    """200 gsm_symbolic questions of seed 0."""
    return gsm.gsm_symbolic(200, seed=0)
