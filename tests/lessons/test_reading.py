"""The estimate of how long a notebook takes to read, and that every lesson keeps to it."""

import nbformat
import pytest

from tml_lib.lessons import notebooks, reading

BOOKS = notebooks.discover()
WORDS = " ".join(["word"] * reading.WORDS)
PNG = {"data": {"image/png": "", "text/plain": "<Figure>"}}


def prose(text):
    return nbformat.v4.new_markdown_cell(text)


def code(lines, *outputs, tags=()):
    cell = nbformat.v4.new_code_cell("\n".join(["x"] * lines), metadata={"tags": list(tags)})
    return cell | {
        "outputs": [{"output_type": "display_data", "metadata": {}} | o for o in outputs]
    }


@pytest.mark.parametrize(
    ("cells", "minutes"),
    [
        ([prose(WORDS)], 1),
        ([prose(f"<!-- generated: needs -->\n{WORDS}\n<!-- end -->"), prose(WORDS)], 1),
        ([prose(f"[{WORDS}](https://example.org/a)")], 1),
        ([code(reading.CODE)], 1),
        ([code(reading.CODE, tags=["setup"]), code(reading.CODE, tags=["parameters"])], 0),
        ([code(0, {"name": "stdout", "text": "a\n" * reading.PRINTED})], 1),
        ([code(0, {"data": {"text/plain": ["a\n"] * reading.PRINTED}})], 1),
        ([code(0, {"name": "stderr", "text": "a\n" * reading.PRINTED})], 0),
        ([code(0, PNG, PNG, PNG)], 2),
        ([prose("## Exercises"), prose(WORDS), code(reading.CODE)], 0),
    ],
)
def test_words_code_lines_and_figures_count(cells, minutes):
    assert reading.minutes(cells) == pytest.approx(minutes)


@pytest.mark.parametrize(
    "end", ["Exercises", "7 · Exercises", "Second reading", "Appendix · Evidence", "Solutions"]
)
def test_what_stands_behind_the_lesson_is_not_counted(end):
    assert reading.minutes([prose(f"{WORDS}\n\n## {end}\n\n{WORDS}"), prose(WORDS)]) == 1


def test_a_section_of_the_lesson_is_counted():
    assert reading.minutes([prose(WORDS), prose(f"## 2 · What exercises {WORDS}")]) > 2


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.name)
def test_a_lesson_is_read_in_twenty_minutes(book):
    assert reading.minutes(nbformat.read(book.path, as_version=4).cells) <= reading.LONGEST
