"""Class copies: nothing in them gives a prediction away, and nothing in them leads nowhere."""

import re

import nbformat
import pytest

from tml_lib.lessons import notebooks
from tml_lib.tools import classroom, cli


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return classroom.build(tmp_path_factory.mktemp("built") / "class")


def cells(path):
    return nbformat.read(path, as_version=4).cells


def test_copies_have_the_lesson_without_outputs_and_solutions(built):
    for book in notebooks.discover():
        held, copied = cells(book.path), cells(built / book.path.name)
        assert not any(cell.get("outputs") for cell in copied)
        text = "\n".join(cell.source for cell in copied if cell.cell_type == "markdown")
        assert "Solution" not in text
        assert text.count("<details>") == text.count("<summary>After you have run the cell<")
        at = [cell.source for cell in held].index("## Solutions")
        assert [c.source for c in copied if c.cell_type == "code"] == [
            c.source for c in held[:at] if c.cell_type == "code"
        ]
        assert classroom.NOTE in copied[0].source


def test_the_text_after_a_predicted_output_is_folded_up_to_the_next_heading():
    assert classroom._folded("Gold is lowest.\n\n## Next") == (
        "<details><summary>After you have run the cell</summary>\n\nGold is lowest.\n\n</details>"
        "\n\n## Next"
    )
    assert classroom._folded("## Next\n\nText.") == "## Next\n\nText."


def test_what_the_first_figure_shows_is_not_given_away(built):
    (text,) = [c.source for c in cells(built / "00_start_here.ipynb") if "Which bar is" in c.source]
    assert text.startswith("<details>")


def test_links_of_the_copies_stay_in_their_folder(built):
    for path in [*built.glob("*.ipynb"), built / "README.md"]:
        text = path.read_text(encoding="utf8")
        if path.suffix == ".ipynb":
            text = "\n".join(cell.source for cell in cells(path) if cell.cell_type == "markdown")
        found = re.findall(r"\]\((?![a-z]+:|#)([^)#\s]+)", re.sub(r"`[^`\n]*`", "", text))
        assert [name for name in found if not (built / name).exists()] == []


def test_a_folder_that_a_class_has_worked_in_is_left_alone(tmp_path, capsys):
    work = tmp_path / "class"
    work.mkdir()
    (work / "00_start_here.ipynb").write_text("an answer")
    assert cli.main(["class", "--out", str(work)]) == 2
    assert "is in use: move it away" in capsys.readouterr().err
    assert [path.read_text() for path in work.iterdir()] == ["an answer"]
    assert [path.name for path in tmp_path.iterdir()] == ["class"]
