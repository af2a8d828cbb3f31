"""What texts name exists: code of the reference, files, links and their places, and
`module.name` in README, notebooks and docstrings.
"""

import ast
import builtins
import importlib
import json
import pkgutil
import re

import nbformat
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
    ROOT / "notebooks" / "README.md",
    ROOT / "notebooks" / "TEACHING.md",
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


# --- links ----------------------------------------------------------------------------------------


def headings(path) -> set[str]:
    """The places of a page that a link may name: GitHub's of a Markdown file, JupyterLab's of a
    notebook.
    """
    text = re.sub(r"```.*?```", "", prose(path), flags=re.DOTALL)
    found = re.findall(r"^#{1,6} (.+?)\s*$", text, re.MULTILINE)
    if path.suffix == ".ipynb":
        return {heading.replace(" ", "-") for heading in found}
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


def dead(path) -> list[str]:
    """Relative links of a page that lead to no file, or to no place in it."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", prose(path), flags=re.DOTALL)
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, place = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        # the site, which holds notebooks, leaves punctuation out of a place's name
        shared = path.suffix != ".ipynb" or re.fullmatch(r"[\w-]*", place)
        if not target.exists() or (place and place not in headings(target)) or not shared:
            found.append(link)
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_lead_to_files_and_to_places_in_them(path):
    assert dead(path) == []


def test_the_exercises_that_the_page_for_teachers_sets_exist():
    folder = ROOT / "notebooks"
    named = set(re.findall(r"\b(\d\d[a-z]?)\.(\d)\b", prose(folder / "TEACHING.md")))
    assert len(named) > 10
    for number, exercise in sorted(named):
        (book,) = folder.glob(f"{number}_*.ipynb")
        assert f"**{exercise}." in prose(book), (number, exercise)


def test_the_search_for_dead_links_finds_them(tmp_path):
    (tmp_path / "b.md").write_text("## mG pass\n\n### Two words")
    page = tmp_path / "a.md"
    page.write_text(
        "# Top\n[1](b.md) [2](b.md#two-words) [3](#top) [4](https://x.org/#y) `[5](no.md)`\n"
        "[6](b.md#Two-words) [7](c.md) [8](#bottom) ![9](c.svg)"
    )
    assert dead(page) == ["b.md#Two-words", "c.md", "#bottom", "c.svg"]
    text = "## Before and after\n## Before, after\n[1](#Before-and-after) [2](#Before,-after)"
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text)])
    nbformat.write(book, tmp_path / "c.ipynb")
    assert dead(tmp_path / "c.ipynb") == ["#Before,-after"], "the site makes another name of it"


def test_each_entry_of_the_glossary_stands_once_and_has_an_example():
    text = (ROOT / "notebooks" / "README.md").read_text(encoding="utf8")
    glossary = text[text.index("## Glossary") : text.index("## Symbols")]
    names, *entries = zip(*re.findall(r"^#### (.+)\n(.+(?:\n.+)*)", glossary, re.M), strict=True)
    assert len(names) == len(set(names)) > 60
    assert [name for name in names if not re.fullmatch(r"[a-z0-9_ -]+", name)] == [], (
        "GitHub, JupyterLab and the site make the same anchor of lower case letters only"
    )
    assert [
        n for n, entry in zip(names, entries[0], strict=True) if "*Example:*" not in entry
    ] == []


# --- code -----------------------------------------------------------------------------------------


def test_the_references_code_imports_what_is_there_and_uses_what_it_imports():
    page = ROOT / "notebooks" / "README.md"
    code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf8"), re.S))
    tree, known = ast.parse(code), set(dir(builtins))
    modules = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                known_as = f"{node.module}.{alias.name}"
                modules[alias.name] = pkgutil.resolve_name(known_as)
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
