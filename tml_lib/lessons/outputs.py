"""The outputs of executed notebooks: what is left out of them on pages and in the committed
notebooks.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from tml_lib import files, runtime
from tml_lib.lessons import notebooks
from tml_lib.lessons.run_folders import Result

WIDGET = "application/vnd.jupyter.widget-view+json"


def without_widgets(outputs: list) -> list:
    """A cell's outputs less the widgets (progress bars, boxes), which are nothing without
    a kernel.
    """
    return [output for output in outputs if WIDGET not in output.get("data", {})]


# where the address of a link begins that leads neither to a page of the kit nor to another site
_LINK = re.compile(r"(?m)(\]\(|^ {0,3}\[[^\]]+\]:)\s*(?!https?://|#|\d\d[a-z]?_\w+\.ipynb)")


def make_harmless(data: dict) -> None:
    """What a browser would run in an output becomes text: a model's name or a question may hold
    anything. The kit's own outputs are text, pictures, Markdown without HTML, and the view of a
    trajectory, which is written anew from its data; a reader's HTML is in the notebook itself, and
    its page shows the text beside it.
    """
    from tml_lib.lessons import explorer

    for kind in ("text/html", "image/svg+xml", "application/javascript", "text/latex"):
        data.pop(kind, None)
    view = data.pop(explorer.MIME, None)
    with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):  # not the kit's
        data["text/html"] = explorer.html(view)
    if "text/markdown" in data:
        text = re.sub(r"&(?=[#\w])", "&amp;", data["text/markdown"]).replace("<", "&lt;")
        text = _LINK.sub(r"\1./", text)  # an address such as javascript:… runs when it is clicked
        data["text/markdown"] = re.sub(r"(?i)(javascript|vbscript|data)\s*:", r"\1 :", text)


def store(result: Result, out: Path) -> None:
    """Put an executed notebook's outputs into the committed one: without progress bars, timings and
    run metadata.
    """
    import nbformat

    done = files.notebook(out / f"{result.name}.ipynb", "run the notebook again")
    for cell in done.cells:
        cell.metadata = nbformat.from_dict(
            {k: v for k, v in cell.metadata.items() if k in ("tags", "jupyter")}
        )
        if cell.cell_type == "code":
            cell.outputs = _without_errors(cell.outputs)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    done.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    runtime.write_text(notebooks.folder() / f"{result.name}.ipynb", nbformat.writes(done) + "\n")


def _without_errors(outputs: list) -> list:
    """A cell's outputs less widgets and what it wrote to standard error; what these had cut in two
    is one again.
    """
    kept = []
    for output in without_widgets(outputs):
        if output.output_type == "stream" and output.name == "stderr":
            continue
        if kept and output.output_type == kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept
