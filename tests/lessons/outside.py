"""Finds what an executed notebook claims of a model that it did not run, outside of the boxes."""

import re

from tml_lib.lessons import boxes

TEXT = ("05a", "05b", "06", "07", "11")  # whose live part shows a reader's model
CLAIM = re.compile(
    r"SmolLM2|Qwen2\.5-Coder|reasoners?\b|\d (?:per cent|nats?)\b|\d %(?<!\b95 %)"
    r"|\*\*(?:holds|contradicted|inconclusive|floor)\*\*"
)
# in outputs: a model's name, a ledger's line of its scale, a stored file
STORED = re.compile(r"SmolLM2|Qwen|reasoner|^ +(?:tiny|small) |-sft\b|notebooks/evidence")
GENERATED = re.compile(r"<!-- generated: .*?<!-- end -->", re.DOTALL)


def paragraphs(text):
    return [part for part in re.split(r"\n\s*\n", GENERATED.sub("", text)) if part.strip()]


def unboxed(cells):
    """The claims of an executed notebook that stand in no box: paragraphs, lines of output. An
    exercise claims nothing.
    """
    found = []
    for cell in cells:
        if cell.cell_type == "markdown":
            free = [p for p in paragraphs(cell.source) if not re.match(r">|\*\*\d\.\*\*", p)]
            found += [p for p in free if CLAIM.search(re.sub(r"`[^`]*`", "", p))]
        for output in cell.get("outputs", []):
            lines = output.get("text", "") if output.get("name") != "stderr" else ""
            lines = lines or output.get("data", {}).get("text/plain", "")
            sides = (boxes.TOP, boxes.SIDE, boxes.FOOT)
            free = [line for line in lines.splitlines() if not line.startswith(sides)]
            found += [line for line in free if STORED.search(line)]
    return found


def live_comes_first(cells):
    """Whether the run's own results are printed, and before any stored evidence there is."""
    text = "\n".join(o.get("text", "") for c in cells for o in c.get("outputs", []))
    live, stored = text.find("This run: "), text.find(boxes.TOP)
    return live >= 0 and (stored < 0 or live < stored)
