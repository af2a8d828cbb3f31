"""One table of names and colours: complete, distinct, and the only place where a colour is said."""

import ast
import itertools
import re
from pathlib import Path

import nbformat
import pytest
from matplotlib.colors import is_color_like, to_rgb

import tml_lib
from tml_lib.claims import ledger
from tml_lib.data import program_grading
from tml_lib.lessons import names, notebooks
from tml_lib.measure import token_roles
from tml_lib.meta import descent, maml
from tml_lib.studies import chain, efficiency, lora, paths, rates, rejection, supervised

LESSONS = Path(tml_lib.__file__).parent / "lessons"
# of matplotlib's `plot`: one colour letter with a marker or a dash, as 'ko', 'k--', '-.r'
SHORT = re.compile(r"(?=.*[bgrcmykw])(?:[bgrcmykw]|[.,ov^<>12348sp*hH+xXDd|_]|--|-\.|-|:){2,4}")
PLAIN = {"white", "black", "none", "None", "0", "1"}  # on colour maps, beside a colour that is data


def evidence(name):
    return ledger.read_evidence(notebooks.stored_evidence() / f"{name}.json")


def first(name, *keys):
    """The keys of evidence below so many others, in its first record."""
    held = evidence(name)["records"][0]
    for key in keys:
        held = held[key]
    return set(held)


def keys_of_evidence():
    """(group, keys that evidence or a study's constants hold)."""
    probes = evidence("probes.tiny")["records"][0]
    for scale in ("small", "small-sft"):
        stored = evidence(f"trajectories.{scale}")["curves"]
        yield "conditions", {kind for curves in stored for kind in curves}
        yield "classes", set(evidence(f"text.{scale}")["classes"])
    yield "conditions", set(probes["curves"]) | set(paths.KINDS)
    yield "conditions", set(evidence("updates.tiny")["by_token"])
    yield "updates", first("updates.small", "cosines")
    yield "falls", first("updates.small", "falls")
    losses = first("updates.small", "losses", "last")
    yield "transfer", losses - {"theta", "best_gradient"}  # before any step; not shown
    yield "arms", first("sft.tiny", "arms") | first("rl.tiny", "arms") | set(supervised.ARMS)
    yield "arms", first("sft.tiny", "splits", "held_out") | set(lora.ARMS) | set(chain.ARMS)
    yield "arms", set(rejection.ARMS) | {how.arm for how in rates.TRAININGS.values()}
    yield "methods", first("sinusoids.tiny", "curves") | set(maml.METHODS)
    yield "optimisers", first("sinusoids.tiny", "optimisers", "curves")
    for part in ("loss", "nll", "implicit", "step_error"):
        yield "written", first("descent.tiny", part)
    yield "written", set(descent.KINDS) | {"direct", "maml"}
    yield "modes", first("efficiency.tiny", "modes") | set(efficiency.MODES)
    yield "classes", set(probes["classes"]) | set(token_roles.MARKS)
    yield "faults", set(program_grading.FAULTS)
    groups = {model["group"] for model in evidence("published.published")["models"]}
    yield "sources", groups - {"base"}
    files = notebooks.stored_evidence().glob("*.json")
    yield "scales", {path.name.split(".")[1] for path in files}
    table = ledger.rows([notebooks.stored_evidence()])
    yield "verdicts", {row.verdict for row in table} | set(ledger.summary(table).values())


def test_every_key_of_evidence_has_a_name_and_a_colour():
    for group, keys in keys_of_evidence():
        assert keys <= set(names.GROUPS[group]), group


def test_entries_have_words_colours_and_marks():
    for group in names.GROUPS.values():
        for style in group.values():
            assert style.name
            assert re.fullmatch(r"#[0-9A-F]{6}", style.colour)
            assert is_color_like(style.colour)


MEET = {
    "conditions": [
        ("gold", "corrupted", "sampled", "own_right", "foreign", "shuffled", "copying"),
        ("gold", "own_right", "sampled", "corrupted", "foreign", "own_text"),
    ],
    "arms": [
        ("base", "none", "short", "plain", "long"),
        ("base", "cold", "warm", "zero", "long", "short"),
        ("base", "answers", "gold"),
        ("before", "GRPO", "DPO", "DPO, rate × 3"),
    ],
    "methods": [("maml", "fomaml", "reptile", "anil", "joint")],
    "updates": [tuple(names.UPDATES)],
    "falls": [tuple(names.FALLS)],
    "transfer": [tuple(names.TRANSFER)],
    "written": [
        ("readout", "foreign", "straight", "answer", "random"),
        ("answer", "late", "direct"),
        ("written", "explicit"),
    ],
    "metrics": [("greedy", "pass@1.0", "mgpass@0.6"), ("greedy", "sampled", "boxed")],
    "optimisers": [tuple(names.OPTIMISERS)],
    "modes": [("full", "summary", "pruned", "begun", "random", "foreign", "at_once")],
    "faults": [tuple(names.FAULTS)],
    "readings": [tuple(names.READINGS)],
    "verdicts": [("holds", "contradicted", "inconclusive", "floor")],
    "scales": [tuple(names.SCALES)],
}


def seen_by(colour, blindness):
    """A colour as a reader without one kind of cone sees it, in linear light (Viénot et al.
    1999).
    """
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    red, green, blue = linear
    if blindness == "none":
        return linear
    mixed = 0.1121 * red + 0.8853 * green if blindness == "red" else 0.2920 * red + 0.7054 * green
    return [mixed, mixed, blue]


@pytest.mark.parametrize("blindness", ["none", "red", "green"])
def test_colours_that_meet_in_a_figure_can_be_told_apart(blindness):
    for group, sets in MEET.items():
        for keys in sets:
            for one, other in itertools.combinations(keys, 2):
                a, b = (names.GROUPS[group][key] for key in (one, other))
                light = [seen_by(style.colour, blindness) for style in (a, b)]
                apart = max(abs(x - y) for x, y in zip(*light, strict=True))
                marked = a.dash != b.dash and a.marker != b.marker
                assert apart > 0.05 or marked, (group, one, other, apart)


def test_a_condition_has_one_colour_in_every_group():
    for key in ("gold", "foreign", "shuffled", "corrupted"):
        found = {names.GROUPS[g][key].colour for g in ("conditions", "updates", "transfer")}
        assert len(found) == 1, key


def test_ordered_keys_get_colours_from_dark_to_light():
    styles = names.ramp((1, 4, 32), "K = {}")
    assert [style.name for style in styles.values()] == ["K = 1", "K = 4", "K = 32"]
    light = [sum(to_rgb(style.colour)) for style in styles.values()]
    assert light == sorted(light)
    assert list(names.ramp([7])) == [7]
    with pytest.raises(ValueError, match="7 ordered keys have 6 colours"):
        names.ramp(range(7))


def test_an_unknown_key_is_refused_with_what_there_is():
    with pytest.raises(ValueError, match="'silver' has no name and colour among gold, corrupted"):
        names.style(names.CONDITIONS, "silver")


# --- nothing else says a colour -------------------------------------------------------------------


def colour_literals(code):
    """Strings in code that say a colour: a hex code, a grey's or a colour's name where a colour is
    asked for, a letter in a line format.
    """
    tree = ast.parse(code)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += re.findall(r"#[0-9A-Fa-f]{6}\b", node.value)
        if isinstance(node, ast.Call):
            asked = [k.value for k in node.keywords if k.arg and "color" in (k.arg, k.arg[-5:])]
            found += _said(asked)
            strings = [a.value for a in node.args if isinstance(a, ast.Constant)]
            found += [s for s in strings if isinstance(s, str) and _is_format(node, s)]
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            found += _said(
                v for k, v in pairs if isinstance(k, ast.Constant) and k.value == "color"
            )
    return found


def _said(values):
    parts = [part for value in values for part in ast.walk(value)]
    strings = [p.value for p in parts if isinstance(p, ast.Constant) and isinstance(p.value, str)]
    return [text for text in strings if is_color_like(text) and text not in PLAIN]


def _is_format(call, text):
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    return name in ("plot", "errorbar", "semilogy") and bool(SHORT.fullmatch(text))


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ('ax.plot(x, y, color="0.6")', ["0.6"]),
        ('ax.plot(x, y, color="white")', []),
        ('ax.plot(x, y, color=names.BLUE, ls="--")', []),
        ('style = {"color": "#D55E00"}', ["#D55E00", "#D55E00"]),
        ('ax.barh(a, b, color=["0.6", names.BLUE])', ["0.6"]),
        ('ax.plot(x, y, "k:")', ["k:"]),
        ('ax.plot(x, y, "o-", color=names.BLUE)', []),
        ('ax.annotate("o", at, color="red" if late else names.BLUE)', ["red"]),
    ],
)
def test_the_search_for_colours_finds_them(code, found):
    assert colour_literals(code) == found


@pytest.mark.parametrize("path", sorted(LESSONS.rglob("*.py")), ids=lambda path: path.name)
def test_no_module_of_lessons_says_a_colour(path):
    if path.name != "names.py":
        assert colour_literals(path.read_text(encoding="utf8")) == []


@pytest.mark.parametrize("book", notebooks.discover(), ids=lambda book: book.name)
def test_no_notebook_says_a_colour_or_a_legend_that_the_table_has(book):
    content = nbformat.read(book.path, as_version=4)
    known = {style.name for group in names.GROUPS.values() for style in group.values()}
    for cell in content.cells:
        if cell.cell_type != "code" or "setup" in cell.metadata.get("tags", []):
            continue
        assert colour_literals(cell.source) == [], cell.source
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.keyword) and node.arg == "label":
                typed = node.value.value if isinstance(node.value, ast.Constant) else None
                assert typed not in known, f"take {typed!r} from names"
