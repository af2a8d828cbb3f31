"""The package's architecture: layers, no cycles, one module per heavy dependency, nothing unsafe."""

import ast
from pathlib import Path

import pytest

import tml_lib

LAYERS = {
    0: {"records", "runtime", "stats"},
    1: {"tasks", "toy", "models", "answers", "programs", "blocks", "one_layer", "hub", "thinking"},
    2: {"maml", "optimisers", "descent", "probe", "implicit", "paths", "landscape", "rollouts", "tiny", "rewards", "quantised"},
    3: {
        "outer",
        "outer_dpo",
        "outer_grpo",
        "ledger",
        "plots",
        "exercises",
        "studies",
        "update_study",
        "meta_study",
        "outer_study",
        "probe_study",
        "role_study",
        "rl_study",
        "text_study",
        "text_efficiency",
        "path_study",
        "efficiency_study",
        "probe_exercises",
        "lora_study",
        "chain_study",
        "meta_lora",
        "outer_exercises",
        "reward_exercises",
        "meta_exercises",
        "checkpoints",
        "replication",
        "replication_exercises",
        "published",
        "published_exercises",
        "plan",
        "plan_cpu",
        "plan_formulas",
        "sweep",
        "sweep_run",
        "site",
        "notebooks",
        "bench",
        "report",
        "cli",
    },
}
LAYER_OF = {module: layer for layer, modules in LAYERS.items() for module in modules}
FILES = {path.stem: path for path in sorted(Path(tml_lib.__file__).parent.glob("*.py"))}
MODULES = [name for name in FILES if not name.startswith("__")]
RISKY = {"trust_remote_code", "pickle", "dill", "cloudpickle", "marshal", "shelve", "read_pickle"}
RISKY |= {"torch.load", "torch.hub", "np.load", "joblib.load", "joblib.dump"}
TRAINERS = {"outer", "outer_dpo", "outer_grpo"}
ONLY_IN = {"matplotlib": {"plots"}, "trl": TRAINERS, "peft": {"outer", "implicit"}}  # implicit: writes an adapter
ONLY_IN |= {"bitsandbytes": {"quantised"}, "sphinx": {"site"}, "joblib": {"sweep"}, "dask": {"sweep"}, "ray": {"sweep"}}


def imports(tree: ast.AST) -> list[str]:
    """Dotted names of all that is imported, wherever in the file: 'tml_lib.claims.stats.trend', 'torch', '.sibling'."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
    return found


def siblings(tree: ast.AST) -> set[str]:
    """Modules of the package that a file imports."""
    return {name.split(".")[1] for name in imports(tree) if name.startswith("tml_lib.")}


def unsafe(tree: ast.AST) -> set[str]:
    """Names in the code (not in strings or comments) that could run what a file or a hub sends."""
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword | ast.arg) and node.arg}
    names |= {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value == "trust_remote_code"}
    names |= {part for name in imports(tree) for part in (name, *name.split("."))}
    return names & RISKY | called(tree)


def called(tree: ast.AST) -> set[str]:
    """Calls of the built-in eval and exec (`model.eval()` is another thing)."""
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return {func.id for func in calls if isinstance(func, ast.Name) and func.id in ("eval", "exec")}


@pytest.fixture(scope="module")
def trees():
    return {name: ast.parse(path.read_text(encoding="utf8")) for name, path in FILES.items()}


def test_every_module_has_a_layer():
    assert set(MODULES) - set(LAYER_OF) == set()
    assert {"records", "probe", "ledger"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_from_its_own_layer_or_lower_ones(trees, name):
    higher = {other for other in siblings(trees[name]) if LAYER_OF[other] > LAYER_OF[name]}
    assert higher == set()


def test_imports_form_no_cycle(trees):
    waiting = {name: siblings(trees[name]) for name in MODULES}
    while ready := [name for name, needs in waiting.items() if not needs & set(waiting)]:
        for name in ready:
            del waiting[name]
    assert waiting == {}


@pytest.mark.parametrize("name", FILES)
def test_no_star_and_no_relative_imports(trees, name):
    assert [found for found in imports(trees[name]) if found.endswith(".*") or found.startswith(".")] == []


@pytest.mark.parametrize(("package", "allowed"), ONLY_IN.items())
def test_a_heavy_package_is_imported_by_its_one_module_only(trees, package, allowed):
    users = {name for name, tree in trees.items() if any(found.split(".")[0] == package for found in imports(tree))}
    assert users <= allowed


def test_importing_the_package_imports_nothing_heavy(trees):
    assert imports(trees["__init__"]) == []


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
    ("code", "found"),
    [
        ("def f():\n    from tml_lib import plots, stats", {"plots", "stats"}),
        ("import tml_lib.measure.probe as p", {"probe"}),
        ("from tml_lib.runtime import seed", {"runtime"}),
        ("import torch\nfrom torch import nn", set()),
    ],
)
def test_imports_are_found_wherever_they_stand(code, found):
    assert siblings(ast.parse(code)) == found


@pytest.mark.parametrize("name", MODULES)
def test_constants_are_assigned_one_by_one(trees, name):
    """`runtime.source_hash` follows a constant by its own assignment: one of a tuple would be left out of evidence's hash."""
    if name == "bench":  # makes no evidence
        return
    for node in trees[name].body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        assert not [t for t in targets if isinstance(t, ast.Tuple)], f"{name}:{node.lineno}: one assignment per line"
