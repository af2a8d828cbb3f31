"""What the notebooks' parameters may be: every one of every notebook has a rule, and a bad value is
refused before any work.
"""

import ast
import json
import subprocess
import sys

import pytest
import yaml

from tml_lib import parameters, runtime
from tml_lib.data import hub
from tml_lib.lessons import notebooks
from tml_lib.lm import presets
from tml_lib.studies import published, written_descent
from tml_lib.tools import cli, study

BOOKS = notebooks.discover()
EACH = [(book, name) for book in BOOKS for name in book.parameters]
each_parameter = pytest.mark.parametrize(
    ("book", "name"), EACH, ids=[f"{book.number}-{name}" for book, name in EACH]
)
BAD = {
    "int": [-1, 2.5, "3", True, None, 10**400],
    "bool": ["false", "True", 0, 1, 2.5, None],
    "float": [-0.5, float("nan"), float("inf"), "0.3", True, None],
    "str": ["nope", "./nope", "/nonexistent", "~/nonexistent", __file__, 3, None],
}
# a large count is only slow: no number of questions, seeds or steps is too many
UNLIMITED = {
    name
    for name, rule in parameters.RULES.items()
    if isinstance(rule, parameters.Number) and rule.most == float("inf")
}
ZERO_MEANS_NONE = {"seed", "place", "near", "tries", "study_seeds", "tiny_seeds", "study_questions"}
ZERO_MEANS_NONE |= {"llm_questions", "lora_rank", "max_tokens", "most_tokens"}


def source(book):
    held = json.loads(book.path.read_text(encoding="utf8"))["cells"]
    (cell,) = [c for c in held if "parameters" in c["metadata"].get("tags", [])]
    return "".join(cell["source"])


def namespace(book, **values):
    """What a kernel holds after the parameters cell, with some values replaced."""
    defaults = {n.target.id: ast.literal_eval(n.value) for n in ast.parse(source(book)).body}
    return {"In": ["", "import os", source(book)], **defaults, **values}


@pytest.fixture(autouse=True)
def in_the_notebooks_folder(monkeypatch):
    monkeypatch.chdir(notebooks.folder())


@each_parameter
def test_every_parameter_has_a_rule(book, name):
    assert parameters.rule(name, tuple(book.parameters)) is not None


@each_parameter
def test_every_kind_of_bad_value_is_refused_by_name(book, name):
    bad = BAD[book.parameters[name]]
    bad = [v for v in bad if not (name in UNLIMITED and v == 10**400)]
    rule = parameters.rule(name, tuple(book.parameters))
    zero = name in ZERO_MEANS_NONE or isinstance(rule, parameters.Budget)
    if book.parameters[name] == "int" and not zero:
        bad = bad if (book.number, name) == ("01b", "n_questions") else [*bad, 0]
    for value in bad:
        with pytest.raises((ValueError, TypeError), match=rf"parameter {name}=.*-p {name}"):
            runtime.check_parameters(namespace(book, **{name: value}))


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.name)
def test_defaults_and_small_parameters_are_taken(book):
    small = yaml.safe_load((notebooks.folder() / "params.yaml").read_text())[book.name]
    for values in ({}, small):
        taken = runtime.check_parameters(namespace(book, **values))
        assert list(taken) == list(book.parameters)
        assert taken.items() >= values.items()


def test_a_presets_budget_stands_for_zero_and_for_nothing_else():
    (book,) = notebooks.select(["06"])
    for preset, budget in parameters.BUDGETS.items():
        taken = runtime.check_parameters(namespace(book, preset=preset, stride=5))
        wanted = budget | {"stride": 5}
        assert {name: taken[name] for name in ("n_questions", "grid", "stride")} == {
            name: wanted[name] for name in ("n_questions", "grid", "stride")
        }
        assert taken["study_seeds"] == 0, "0 means none here"


def test_a_path_given_to_the_command_begins_where_the_command_is_called(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    assert parameters.expanded("evidence_dir", "mine", tmp_path) == str(tmp_path / "mine")
    assert parameters.expanded("data", "aime24=mine", tmp_path) == f"aime24={tmp_path / 'mine'}"
    assert parameters.expanded("adapter", "stored", tmp_path) == "stored"
    assert parameters.expanded("seed", 3, tmp_path) == 3
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parameters.expanded("model", "~/mine") == str(tmp_path / "mine")


def test_the_command_of_each_stored_evidence_is_taken():
    for path in sorted(notebooks.stored_evidence().glob("*.json")):
        _, _, _, *words = json.loads(path.read_text())["command"].split()
        if words[0] == "study":
            assert cli._parser().parse_args(words).subject in study.SUBJECTS
            continue
        _, number, *options = words
        pairs = zip(options[1::3], options[2::3], strict=True)
        book = notebooks.select([number])
        notebooks.check_given(book, {k: int(v) if v.isdigit() else v for k, v in pairs})


def test_the_choices_are_those_of_the_library():
    assert tuple(presets.PRESETS) == parameters.PRESETS
    assert set(parameters.SETS) == {name for name, held in hub.SETS.items() if held.read}
    for model in published.models():
        assert not parameters.RULES["entry"].refusal(model.name, notebooks.folder())
    assert parameters.RULES["n_probed"].most == written_descent.UNSEEN


def test_each_exception_belongs_to_a_notebook_and_to_its_parameters():
    declared = [" ".join(book.parameters) for book in BOOKS]
    for names, rules in parameters.EXCEPTIONS.items():
        assert names in declared
        assert rules.keys() <= set(names.split())


def test_notebook_01_may_leave_its_live_study_out():
    (book,) = notebooks.select(["01b"])
    assert runtime.check_parameters(namespace(book, n_questions=0))["n_questions"] == 0


@pytest.mark.parametrize("number", ["00", "01a", "01b", "05a", "08"])
def test_a_text_notebook_refuses_the_preset_of_programs(number):
    (book,) = notebooks.select([number])
    with pytest.raises(ValueError, match=r"preset='tiny'.*give one of small, medium, gpu"):
        runtime.check_parameters(namespace(book, preset="tiny"))


@pytest.mark.parametrize(("name", "value"), [("adapter", "stored"), ("data", "aime24")])
def test_what_is_for_text_is_refused_with_programs(name, value):
    (book,) = notebooks.select(["07"])
    with pytest.raises(ValueError, match=f"{name}='{value}' is for text"):
        runtime.check_parameters(namespace(book, **{name: value}))
    runtime.check_parameters(namespace(book, **{name: value}, preset="small"))


def test_folders_with_what_is_asked_for_are_taken_and_others_named(tmp_path):
    (book,) = notebooks.select(["05b"])
    with pytest.raises(ValueError, match=rf"the folder {tmp_path} has no config\.json"):
        runtime.check_parameters(namespace(book, model=str(tmp_path)))
    settings = {"model": presets.shipped("tiny-base"), "evidence_dir": str(tmp_path)}
    settings |= {"data": f"aime24={tmp_path}"}
    assert runtime.check_parameters(namespace(book, **settings)).items() >= settings.items()
    with pytest.raises(ValueError, match=r"'./none' does not exist"):
        runtime.check_parameters(namespace(book, data="aime24=./none"))
    with pytest.raises(ValueError, match=r"'aime' is no question set.*aime24"):
        runtime.check_parameters(namespace(book, data=f"aime={tmp_path}"))
    runtime.check_parameters(namespace(book, data="aime24=someone/a-set"))


def test_a_hub_model_that_is_not_there_is_refused():
    (book,) = notebooks.select(["05b"])
    with pytest.raises(ValueError, match=r"model='some/where'.*no model that the hub gives here"):
        runtime.check_parameters(namespace(book, model="some/where"))


def test_a_tilde_is_expanded_in_the_namespace_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x").mkdir()
    (book,) = notebooks.select(["05b"])
    held = namespace(book, evidence_dir="~/x", data="aime24=~/x")
    assert runtime.check_parameters(held)["evidence_dir"] == str(tmp_path / "x")
    assert (held["evidence_dir"], held["data"]) == (f"{tmp_path}/x", f"aime24={tmp_path}/x")


def test_annotated_variables_of_a_reader_are_no_parameters():
    held = namespace(BOOKS[0], scores=[], n_questions=-5)
    held["In"] += ["scores: list[float] = []", "n_questions: int = -5"]
    assert list(runtime.check_parameters(held)) == list(BOOKS[0].parameters)


def test_without_its_parameters_cell_a_notebook_says_so():
    with pytest.raises(ValueError, match="run the notebook from its first cell"):
        runtime.check_parameters({"In": ["", "import os"]})


def test_the_command_line_refuses_before_a_kernel_starts():
    command = [sys.executable, "-m", "tml_lib", "run", "05", "-p", "n_questions", "-1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=runtime.project_root())
    assert done.returncode == 2
    assert done.stdout == "", "no notebook was begun"
    assert done.stderr == (
        "error: parameter n_questions=-1: it is out of range; give a number of at least 1, or 0 for"
        " the preset's, in the parameters cell or with `-p n_questions VALUE`\n"
    )


def test_a_kernel_without_history_has_its_annotations():
    """nbval executes cells without storing them."""
    space = {"In": [""], "__annotations__": {"seed": int, "near": "float"}, "seed": 1, "near": 0.5}
    assert runtime.check_parameters(space) == {"seed": 1, "near": 0.5}
    with pytest.raises(ValueError, match="parameter seed=-1"):
        runtime.check_parameters(space | {"seed": -1})
    with pytest.raises(ValueError, match="no parameters cell has run"):
        runtime.check_parameters({"In": [""]})
