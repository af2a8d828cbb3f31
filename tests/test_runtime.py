"""The machine and the run: safe writing, source hashes, notebook parameters, devices and
folders.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tml_lib import runtime

# --- write_text -----------------------------------------------------------------------------------


def test_write_text_writes_into_new_folders_and_returns_the_path(tmp_path):
    path = runtime.write_text(tmp_path / "new" / "deep" / "a.txt", "L̂ = 1\n")
    assert path.read_text(encoding="utf8") == "L̂ = 1\n"


def test_write_text_replaces_the_whole_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("something much longer than the new text")
    runtime.write_text(path, "new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("old", ["old", None])
def test_a_write_that_fails_keeps_the_old_content_and_leaves_nothing_behind(tmp_path, old):
    path = tmp_path / "a.txt"
    if old is not None:
        path.write_text(old)
    with pytest.raises(UnicodeEncodeError):
        # a lone surrogate has no UTF-8
        runtime.write_text(path, "fine so far " * 10_000 + "\ud800")
    assert os.listdir(tmp_path) == ([] if old is None else ["a.txt"])
    assert old is None or path.read_text() == old


def test_a_rename_that_fails_keeps_the_old_content_and_leaves_nothing_behind(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        runtime.write_text(path, "new")
    assert (os.listdir(tmp_path), path.read_text()) == (["a.txt"], "old")


# --- notebook parameters --------------------------------------------------------------------------

DECLARED = (
    "n_questions: int = 8  # how many\nfast: bool = True\nrate: float = 0.5\nname: str = 'small'"
)
DEFAULTS = {"n_questions": 8, "fast": True, "rate": 0.5, "name": "small"}


def namespace(injected="", **values):
    cells = ["", DECLARED] + ([f"# Parameters\n{injected}\n"] if injected else [])
    return {"In": [*cells, "check_parameters(globals())"], **DEFAULTS, **values}


def test_check_parameters_returns_the_declared_values():
    assert runtime.check_parameters(namespace("n_questions = 3", n_questions=3)) == DEFAULTS | {
        "n_questions": 3
    }


def test_an_unknown_injected_name_is_refused_with_the_nearest_declared_one():
    with pytest.raises(ValueError, match=r"'n_question'.*did you mean 'n_questions'"):
        runtime.check_parameters(namespace("n_question = 3", n_question=3))


def test_an_unknown_name_that_resembles_nothing_is_refused_with_all_declared_ones():
    with pytest.raises(
        ValueError, match=r"'zzz': the notebook declares n_questions, fast, rate, name"
    ):
        runtime.check_parameters(namespace("zzz = 3", zzz=3))


def test_names_of_other_cells_are_not_taken_for_parameters():
    cells = namespace()
    cells["In"].insert(2, "other = 3")
    assert "other" not in runtime.check_parameters(cells | {"other": 3})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fast", "false"),
        ("fast", 0),
        ("n_questions", True),
        ("n_questions", 8.0),
        ("rate", "0.5"),
        ("rate", True),
        ("name", 3),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(name, value):
    with pytest.raises(
        TypeError, match=f"{name}={value!r} is a {type(value).__name__}.*-p {name} "
    ):
        runtime.check_parameters(namespace(**{name: value}))


def test_an_int_may_stand_for_a_float():
    assert runtime.check_parameters(namespace("rate = 1", rate=1))["rate"] == 1


@pytest.mark.parametrize(
    "magic", ["%matplotlib inline\nx: int = 'no'", "!pip install tml_lib", "%%time\nfast = 'no'"]
)
def test_cells_with_magics_are_skipped(magic):
    cells = namespace()
    cells["In"].insert(1, magic)
    assert runtime.check_parameters(cells) == DEFAULTS


# --- device, folders, versions --------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_absent_is_refused():
    with pytest.raises(ValueError, match="device='cuda' cannot be used here"):
        runtime.pick_device("cuda")


def test_a_device_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="device='quantum'"):
        runtime.pick_device("quantum")


@pytest.mark.parametrize("present", [True, False])
def test_the_default_device_is_cuda_where_there_is_one(monkeypatch, present):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present)
    assert runtime.pick_device().type == ("cuda" if present else "cpu")


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("TML_CACHE", str(tmp_path / "here"))
    assert runtime.cache_folder() == tmp_path / "here"
    monkeypatch.setenv("TML_CACHE", "")
    assert runtime.cache_folder().parts[-2:] == (".cache", "tml_lib")


def test_versions_name_what_is_installed_and_what_is_missing(monkeypatch):
    monkeypatch.setattr(runtime, "PACKAGES", ("torch", "no-such-package"))
    found = runtime.versions()
    assert (found["torch"], found["no-such-package"]) == (torch.__version__, "missing")
    assert found["python"].startswith("3.")


def test_the_project_root_holds_notebooks_and_package():
    root = runtime.project_root()
    assert (root / "notebooks").is_dir()
    assert (root / "tml_lib" / "runtime.py").is_file()


def test_an_install_without_notebooks_says_how_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setattr(
        runtime, "__file__", str(tmp_path / "site-packages" / "tml_lib" / "runtime.py")
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"pip install -e \."):
        runtime.project_root()


def test_resources_count_the_cores_that_this_process_may_use():
    found = runtime.resources()
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert 0 < found["free_memory_gb"] <= found["memory_gb"]


def test_bfloat16_is_taken_where_the_processor_names_a_unit_for_it():
    words = "flags : fpu avx512f avx512_bf16 amx_bf16"
    assert runtime.bfloat16_units(words) == ["amx_bf16", "avx512_bf16"]
    assert runtime.bfloat16_units("Features : fp asimd bf16") == ["bf16"]
    assert runtime.bfloat16_units("flags : fpu avx2 avx512f amx_tile") == []
    units = runtime.bfloat16_units(Path("/proc/cpuinfo").read_text())
    dtype, why = runtime.hardware_dtype(torch.device("cpu"))
    assert dtype == ("bfloat16" if units else "float32")
    assert all(unit in why for unit in units)
    assert runtime.hardware_dtype(torch.device("meta"))[0] == "float32"


def test_freed_memory_goes_back_to_the_system():
    """Small blocks that glibc would keep, below one that is still in use."""
    code = """
import psutil
from tml_lib import runtime
held = [bytearray(60_000) for _ in range(2000)]
last = bytearray(60_000)
full = psutil.Process().memory_info().rss
del held
runtime.free_memory()
print(full - psutil.Process().memory_info().rss)
"""
    freed = int(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
    )
    assert freed > 0.8 * 2000 * 60_000


def test_a_command_is_quoted_for_a_shell_and_leaves_out_what_is_empty():
    settings = {"model": "/data/my models/X; rm -rf y", "data": "", "seed": 0}
    said = runtime.run_command("05", settings)
    assert shlex.split(said)[4:] == [
        "05", "-p", "model", "/data/my models/X; rm -rf y", "-p", "seed", "0"
    ]  # fmt: skip


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TML_CACHE", "~/cache")
    assert runtime.evidence_folder("~/x") == tmp_path / "x"
    assert runtime.cache_folder() == tmp_path / "cache"
