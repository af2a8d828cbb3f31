"""The package's architecture: rooms whose imports only go up the list, public names only, nothing
unsafe.
"""

import ast
from pathlib import Path

import pytest

import tml_lib

# from the ground up
ROOMS = ("", "lm", "data", "measure", "meta", "train", "claims", "studies", "lessons", "tools")
ROOT = Path(tml_lib.__file__).parent
FILES = {path.relative_to(ROOT).as_posix(): path for path in sorted(ROOT.rglob("*.py"))}
MODULES = [name for name in FILES if name != "__main__.py"]
RISKY = {"trust_remote_code", "pickle", "dill", "cloudpickle", "marshal", "shelve", "read_pickle"}
RISKY |= {"torch.load", "torch.hub", "np.load", "joblib.load", "joblib.dump"}
ONLY_IN = {
    # boxes: frames around the figures of a notebook's cell
    "matplotlib": {name for name in FILES if name.startswith("lessons/plots/")}
    | {"lessons/boxes.py"},
    "trl": {
        "train/sft.py",
        "train/dpo.py",
        "train/grpo.py",
        "train/grpo_trainer.py",
        "tools/bench/outer_loops.py",
    },
    # layer_updates: writes an adapter
    "peft": {"lm/adapters.py", "train/sft.py", "train/dpo.py", "measure/layer_updates.py"},
    "bitsandbytes": {"lm/quantised.py"},
    "sphinx": {"tools/site.py"},
    "joblib": {"tools/sweep.py"},
    "dask": {"tools/sweep.py"},
    "ray": {"tools/sweep.py"},
}


def imports(tree: ast.AST) -> list[str]:
    """Dotted names of all that is imported, wherever in the file: 'tml_lib.claims.stats.trend',
    'torch', '.sibling'.
    """
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
    return found


def room(name: str) -> str:
    """'claims/stats.py' and 'tml_lib.claims.stats.trend' -> 'claims'; '' for the modules beside the
    rooms.
    """
    parts = name.removeprefix("tml_lib.").replace("/", ".").split(".")
    return parts[0] if parts[0] in ROOMS else ""


def higher(name: str, tree: ast.AST) -> list[str]:
    """What a module imports from rooms that stand further down the list than its own."""
    own = [found for found in imports(tree) if found.startswith("tml_lib.")]
    return [found for found in own if ROOMS.index(room(found)) > ROOMS.index(room(name))]


def private(tree: ast.AST) -> list[str]:
    """Private names of other modules that a file uses: imported by name, or read off an imported
    module.
    """
    own = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tml_lib")
    ]
    names = {alias.asname or alias.name for node in own for alias in node.names}
    found = [name for name in names if name.startswith("_")]
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in names
        ):
            found += (
                [f"{node.value.id}.{node.attr}"]
                if node.attr.startswith("_") and node.attr[1] != "_"
                else []
            )
    return found


def unsafe(tree: ast.AST) -> set[str]:
    """Names in the code (not in strings or comments) that could run what a file or a hub sends."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {
        node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword | ast.arg) and node.arg
    }
    names |= {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value == "trust_remote_code"
    }
    names |= {part for name in imports(tree) for part in (name, *name.split("."))}
    return names & RISKY | called(tree)


def called(tree: ast.AST) -> set[str]:
    """Calls of the built-in eval and exec (`model.eval()` is another thing)."""
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {func.id for func in calls if isinstance(func, ast.Name) and func.id in ("eval", "exec")}


@pytest.fixture(scope="module")
def trees():
    return {name: ast.parse(path.read_text(encoding="utf8")) for name, path in FILES.items()}


def test_every_folder_is_a_room_that_says_what_is_in_it(trees):
    assert {room(name) for name in MODULES} == set(ROOMS)
    for name in ROOMS[1:]:
        lines = ast.get_docstring(trees[f"{name}/__init__.py"]).splitlines()
        assert 1 <= len([line for line in lines if line]) <= 3, name


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_up_the_list_of_rooms_only(trees, name):
    assert higher(name, trees[name]) == []


@pytest.mark.parametrize("name", MODULES)
def test_private_names_stay_in_their_module(trees, name):
    assert private(trees[name]) == []


def test_imports_form_no_cycle(trees):
    dotted = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name
        for name in MODULES
    }
    waiting = {}
    for short, name in dotted.items():
        found = {
            part.removeprefix("tml_lib.")
            for part in imports(trees[name])
            if part.startswith("tml_lib.")
        }
        found |= {part.rpartition(".")[0] for part in found}
        waiting[short] = (found & set(dotted)) - {short}
    while ready := [name for name, needs in waiting.items() if not needs & set(waiting)]:
        for name in ready:
            del waiting[name]
    assert waiting == {}


@pytest.mark.parametrize("name", FILES)
def test_no_star_and_no_relative_imports(trees, name):
    assert [
        found for found in imports(trees[name]) if found.endswith(".*") or found.startswith(".")
    ] == []


@pytest.mark.parametrize(("package", "allowed"), ONLY_IN.items())
def test_a_heavy_package_is_imported_by_its_own_modules_only(trees, package, allowed):
    users = {
        name
        for name, tree in trees.items()
        if any(found.split(".")[0] == package for found in imports(tree))
    }
    assert users <= allowed


def test_importing_the_package_imports_nothing_heavy(trees):
    assert imports(trees["__init__.py"]) == []


@pytest.mark.parametrize("name", FILES)
def test_no_module_can_run_foreign_code(trees, name):
    assert unsafe(trees[name]) == set()


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("AutoModel.from_pretrained(x, trust_remote_code=True)", {"trust_remote_code"}),
        ("AutoModel.from_pretrained(x, **{'trust_remote_code': True})", {"trust_remote_code"}),
        ("import pickle", {"pickle"}),
        ("from pickle import loads", {"pickle"}),
        ("import torch\ntorch.load(x)", {"torch.load"}),
        ("from joblib import load", {"joblib.load"}),
        ("import joblib\njoblib.Parallel()", set()),
        ("eval(x)", {"eval"}),
        ("model.eval()", set()),
        ("'''Never torch.load, pickle or trust_remote_code.'''", set()),
    ],
)
def test_the_search_for_unsafe_names_finds_them(code, found):
    assert unsafe(ast.parse(code)) == found


@pytest.mark.parametrize(
    ("name", "code", "wrong"),
    [
        ("claims/stats.py", "def f():\n    from tml_lib.lessons import plots", True),
        ("claims/stats.py", "import tml_lib.studies.roles as r", True),
        ("records.py", "from tml_lib.lm.models import load", True),
        (
            "studies/roles.py",
            "from tml_lib.claims import ledger\nfrom tml_lib import runtime",
            False,
        ),
        ("studies/roles.py", "from tml_lib.studies import lora\nimport torch", False),
    ],
)
def test_an_import_from_below_is_found_wherever_it_stands(name, code, wrong):
    assert bool(higher(name, ast.parse(code))) == wrong


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("from tml_lib.train.sft import _claim", ["_claim"]),
        ("from tml_lib.train import sft\nsft._claim()", ["sft._claim"]),
        ("from tml_lib.train import sft\nsft.claim.__name__", []),
        ("import torch\ntorch._C", []),
    ],
)
def test_private_names_are_found(code, found):
    assert private(ast.parse(code)) == found
