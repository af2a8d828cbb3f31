"""What a notebook says of a model that it does not run stands in a box that names it."""

import ast
import contextlib
import io
import math
import re

import matplotlib.pyplot as plt
import nbformat
import pytest
from outside import TEXT, live_comes_first, paragraphs, unboxed

from tml_lib.claims import ledger, rulebook
from tml_lib.lessons import boxes, notebooks

BOX = re.compile(r"> \*\*Stored, [^*]+ \(presets? `[^)]+`\)(, this question)?:\*\*")


@pytest.mark.parametrize("start", TEXT)
def test_prose_claims_nothing_of_a_model_outside_a_box(start):
    (book,) = notebooks.select([start])
    cells = nbformat.read(book.path, as_version=4).cells
    assert unboxed([cell for cell in cells if cell.cell_type == "markdown"]) == []
    quoted = [p for c in cells if c.cell_type == "markdown" for p in paragraphs(c.source)]
    assert [p for p in quoted if p[0] == ">" and not BOX.match(p)] == [], "a box names its model"
    assert sum(p[0] == ">" for p in quoted) >= 2


@pytest.mark.parametrize("start", TEXT)
def test_stored_evidence_is_shown_in_boxes_alone(start):
    """Nothing else reads it, and what a box makes of it is not used outside of boxes."""
    (book,) = notebooks.select([start])
    cells = nbformat.read(book.path, as_version=4).cells
    code = [ast.parse(c.source) for c in cells if c.cell_type == "code"]
    source = "\n".join(c.source for c in cells if c.cell_type == "code")
    assert not re.search(r"stored_evidence|read_evidence", source)
    held = [node for tree in code for node in ast.walk(tree) if _is_box(node)]
    assert held or book.name.startswith("05a"), "05a shows live figures alone"
    inside = {id(node) for box in held for node in ast.walk(box)}
    names = [(n, id(n) in inside) for t in code for n in ast.walk(t) if isinstance(n, ast.Name)]
    made = {n.id for n, within in names if within and isinstance(n.ctx, ast.Store)}
    made -= {n.id for n, within in names if not within and isinstance(n.ctx, ast.Store)}
    assert {n.id for n, within in names if not within and n.id in made} == set()


def _is_box(node):
    return isinstance(node, ast.With) and "boxes.stored(" in ast.unparse(node.items[0])


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("By the rules C12 **holds**.", 1),
        ("SmolLM2 does the same.", 1),
        ("> **Stored, SmolLM2-135M (preset `small`):** it falls by 2.1 nats.\n> More of it.", 0),
        ("It falls by 2.1 nats.\n\n> **Stored, SmolLM2-135M (preset `small`):** no.", 1),
        ("Bands are 95 % intervals.", 0),
        ("It holds 12 % of them.", 1),
    ],
)
def test_a_claim_outside_a_box_is_found(text, claims):
    assert len(unboxed([nbformat.v4.new_markdown_cell(text)])) == claims


@pytest.mark.parametrize(
    ("line", "claims"), [("      small  -0.4  holds", 1), ("│ small  holds", 0)]
)
def test_an_output_outside_a_box_is_found(line, claims):
    output = nbformat.v4.new_output("stream", text=line)
    assert len(unboxed([nbformat.v4.new_code_cell("x", outputs=[output])])) == claims


LIVE, STORED = "This run: a model\n", f"{boxes.TOP}Stored evidence\n"


@pytest.mark.parametrize(
    ("printed", "first"),
    [
        ([LIVE, STORED], True),
        ([LIVE + STORED], True),
        ([LIVE], True),
        ([STORED, LIVE], False),
        ([STORED], False),
        ([], False),
    ],
)
def test_what_a_run_shows_of_its_own_model_comes_first(printed, first):
    outputs = [nbformat.v4.new_output("stream", text=text) for text in printed]
    assert live_comes_first([nbformat.v4.new_code_cell("x", outputs=outputs)]) is first


def test_a_box_frames_what_is_printed_and_drawn_and_names_the_models():
    said = io.StringIO()
    before = plt.figure()
    with contextlib.redirect_stdout(said), boxes.stored("paths.small", "paths.tiny") as pair:
        print(pair[0]["scale"], pair[1]["scale"], sep="\n")
        figure = plt.figure()
        figure.suptitle("mine")
    top, *lines, foot = said.getvalue().splitlines()
    assert "SmolLM2" in top
    assert "tiny" in top
    assert lines == ["│ small", "│ tiny"]
    assert foot == boxes.FOOT
    *title, held = figure.get_suptitle().split("\n")
    assert " ".join(title) in top
    assert held == "mine"
    figure.draw_without_rendering()
    (shown,) = [text for text in figure.texts if text.get_text() == figure.get_suptitle()]
    assert shown.get_window_extent().width < figure.bbox.width
    assert len(figure.artists) == 1
    assert before.artists == []
    plt.close("all")


def test_a_runs_own_verdicts_are_shown_at_any_number_of_questions(capsys):
    for numbers in ([-0.5], [-0.5, -0.4], [math.nan], [-0.5 - k / 64 for k in range(64)]):
        values = {"C12.descends": [numbers]}
        rows = ledger.rows_of_values(values, study="paths", scale="mine")
        boxes.live_verdicts(rows, f"mine, {len(numbers)} questions")
        first, head, claim, test, *said = capsys.readouterr().out.splitlines()
        assert first == f"This run: mine, {len(numbers)} questions"
        assert head.split()[:3] == ["test", "(*:", "decisive)"]
        assert claim == f"{rulebook.claims()['C12']['title']} (C12)"
        assert rulebook.rules()["C12", "descends"]["label"].startswith(test[2:48].strip())
        enough = len(numbers) == 64
        assert test.endswith("holds") == enough
        assert ("Too few questions for a verdict" in "\n".join(said)) != enough
        assert boxes.interval(numbers).n == sum(not math.isnan(x) for x in numbers)
    assert len(plt.get_fignums()) == 1, "a figure where there is a verdict"
    plt.close("all")
