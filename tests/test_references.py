"""What texts name exists: code of the README, files, and `module.name` in README, notebooks and
docstrings.
"""

import ast
import builtins
import importlib
import json
import re

import pytest

from tml_lib import runtime

ROOT = runtime.project_root()
FILES = [
    path for path in sorted((ROOT / "tml_lib").rglob("*.py")) if not path.name.startswith("__")
]
MODULES = {path.stem: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES}
# a lesson and its exercises, say
SHARED = {stem for stem in MODULES if sum(path.stem == stem for path in FILES) > 1}
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "notebooks").glob("*.ipynb")),
]
TEXTS = [
    *PAGES,
    *FILES,
    *sorted((ROOT / "tml_lib" / "claims").glob("*.toml")),
    ROOT / "tml_lib" / "__init__.py",
]


def prose(path) -> str:
    """A page's text, the Markdown cells of a notebook, or the docstrings of a module."""
    text = path.read_text(encoding="utf8")
    if path.suffix == ".ipynb":
        return "\n".join(
            "".join(cell["source"])
            for cell in json.loads(text)["cells"]
            if cell["cell_type"] == "markdown"
        )
    if path.suffix != ".py":
        return text
    nodes = [
        n
        for n in ast.walk(ast.parse(text))
        if isinstance(n, ast.Module | ast.FunctionDef | ast.ClassDef)
    ]
    return "\n".join(ast.get_docstring(node) or "" for node in nodes)


def missing(text: str) -> list[str]:
    """References to modules of the kit, in backticks, whose name the module does not have."""
    found = []
    for match in re.finditer(r"`(tml_lib\.)?((?:\w+\.)*?)(\w+)\.(\w+)[`(]", text):
        _, rooms, module, name = match.groups()
        if (
            module in MODULES
            and module not in SHARED
            and (not rooms or f"tml_lib.{rooms}{module}" == MODULES[module])
        ):
            loaded = importlib.import_module(MODULES[module])
            if not hasattr(loaded, name) and name not in ("py", "toml"):
                found.append(match.group())
    return found


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_names_of_modules_in_texts_exist(path):
    assert missing(prose(path)) == []


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_named_in_texts_exist(path):
    named = set(
        re.findall(
            r"(?:tml_lib|tests|notebooks)/[\w/]+\.(?:py|toml|yaml|json|ipynb|svg)", prose(path)
        )
    )
    assert [
        name for name in sorted(named) if not (ROOT / name).is_file() and "NN_" not in name
    ] == []


def test_the_search_for_missing_names_finds_them():
    assert missing("`probe.probe` and `tml_lib.measure.probe.probe`, `lm.sampling`") == []
    assert missing("`probe.gone`") == ["`probe.gone`"]
    assert missing("`tml_lib.train.sft.adapted`") == ["`tml_lib.train.sft.adapted`"]


def test_the_readmes_code_imports_what_is_there_and_uses_what_it_imports():
    code = "\n".join(
        re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf8"), re.S)
    )
    tree, known = ast.parse(code), set(dir(builtins))
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                modules[alias.name] = importlib.import_module(f"{node.module}.{alias.name}")
        elif isinstance(node, ast.arg):
            known.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            known.add(node.id)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert used - known - set(modules) == set()
    read = [
        n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)
    ]
    pairs = {
        (n.value.id, n.attr) for n in read if n.value.id in modules and n.value.id not in known
    }
    assert len(pairs) > 10
    assert [
        f"{module}.{name}" for module, name in sorted(pairs) if not hasattr(modules[module], name)
    ] == []
