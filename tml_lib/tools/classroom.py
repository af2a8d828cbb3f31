"""`python -m tml_lib class`: copies of the notebooks without outputs and solutions, for a class
that predicts before it looks.

The copies need the kit's environment and read its stored evidence. The reference, with the words
that they link to, is copied too.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

from tml_lib import files, runtime
from tml_lib.lessons import notebooks

NOTE = (
    "> **Class copy**, without outputs and solutions."
    " It runs in the kit's environment (`make setup` makes it)."
)
_ASKED = re.compile(r"\bPredict\b")
_SOLUTION = re.compile(r"\s*\(?\[Solution \d\]\(#Solution-\d\)\)?")


def build(out: Path | None = None) -> Path:
    """Write the copies into a new folder (default: runs/class), all or none, and return it. Raises
    ValueError where it holds something: a class may have worked in it.
    """
    out = Path(out or runtime.project_root() / "runs" / "class").resolve()
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise ValueError(f"{out} is in use: move it away, or give --out a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        work = Path(folder) / "class"
        for book in notebooks.discover():
            runtime.write_text(work / book.path.name, copy(book.path))
        text = files.text(notebooks.folder() / "README.md", files.COMMITTED)
        # links that lead out of the folder become their words
        text = re.sub(r"\[([^\]]+)\]\((?:\.\./|TEACHING)[^)]*\)", r"\1", text)
        runtime.write_text(work / "README.md", text)
        for figure in notebooks.folder().glob("*.svg"):
            shutil.copy(figure, work)
        work.rename(out)
    return out


def copy(path: Path) -> str:
    """A notebook as JSON, up to its solutions, with no outputs and no links to solutions; what
    interprets the output that a reader was to predict is folded.
    """
    import nbformat

    content = files.notebook(path, files.COMMITTED)
    ends = [k for k, cell in enumerate(content.cells) if cell.source.startswith("## Solutions")]
    content.cells = content.cells[: ends[0] if ends else None]
    asked = shown = False  # a prediction was asked for; the cell that answers it has gone by
    for cell in content.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count, shown = [], None, asked
            continue
        text = _SOLUTION.sub("", cell.source)
        asked = (asked and not shown) or bool(_ASKED.search(text))
        cell.source, shown = _folded(text) if shown else text, False
    title, rest = content.cells[0].source.split("\n", 1)
    content.cells[0].source = f"{title}\n\n{NOTE}\n{rest}"
    return nbformat.writes(content) + "\n"


def _folded(text: str) -> str:
    """Markdown with its part before the first heading or exercise behind a click."""
    first = re.search(r"^(#|\*\*\d\.)", text, re.MULTILINE)
    at = first.start() if first else len(text)
    if not text[:at].strip():
        return text
    fold = "<details><summary>After you have run the cell</summary>\n\n{}\n\n</details>\n\n{}"
    return fold.format(text[:at].strip(), text[at:]).rstrip()
