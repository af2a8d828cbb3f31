"""How long a notebook takes to read, estimated from its words, code, printed lines and figures.

The rates are for a reader whose second language is English. Counted is the lesson itself: all that
stands before the exercises, what is marked 'Second reading', the appendix and the solutions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

LONGEST = 20  # minutes of a lesson
WORDS, CODE, PRINTED = 180, 15, 30  # words a minute, and lines
FIGURES = 1.5  # a minute

_END = re.compile(r"(?m)^## (?:\d+ · )?(?:Exercises|Second reading|Appendix|Solutions)\b")
_NOT_READ = re.compile(r"<!-- generated: .*?<!-- end -->|(?<=\])\([^)\s]*\)", re.DOTALL)


def minutes(cells: Iterable[dict]) -> float:
    """Minutes that the cells of an executed notebook take to read, until its exercises begin."""
    words = code = printed = figures = 0
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            end = _END.search(source)
            words += len(_NOT_READ.sub("", source[: end and end.start()]).split())
            if end:
                break
            continue
        if not {"setup", "parameters"} & set(cell["metadata"].get("tags", [])):
            code += len(source.splitlines())
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                figures += 1
            elif output.get("name") != "stderr":
                printed += len("".join(output.get("text", data.get("text/plain", ""))).splitlines())
    return words / WORDS + code / CODE + printed / PRINTED + figures / FIGURES
