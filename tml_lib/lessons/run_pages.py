"""The HTML pages of a run: one of each notebook, and the index."""

from __future__ import annotations

import html
from pathlib import Path
from urllib.parse import quote

from tml_lib import files, runtime
from tml_lib.lessons import notebooks, outputs
from tml_lib.lessons.run_folders import Result


def notebook_page(path: Path) -> str:
    """An executed notebook as a page that runs nothing that its outputs hold."""
    from nbconvert import HTMLExporter

    book = files.notebook(path, "run the notebook again")
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = outputs.without_widgets(cell.outputs)
        for output in cell.get("outputs", []):
            outputs.make_harmless(output.get("data", {}))
    book.metadata.pop("widgets", None)  # whose labels may hold anything
    return HTMLExporter(embed_images=True).from_notebook_node(book)[0]


def write_index(out: Path, results: list[Result]) -> Path:
    """index.html of a run: its notebooks with time and memory, its evidence and the ledger table;
    needs no network.
    """
    from tml_lib.claims import ledger

    lines = []
    for result in results:
        state = "finished" if result.ok else f"failed: {html.escape(result.message)}"
        link = html.escape(result.name)
        link = f'<a href="{quote(result.name)}.html">{link}</a>' if result.ok else link
        lines.append(
            f"<tr><td>{link}<td>{state}<td>{result.seconds:.0f}"
            f" s<td>{result.memory_mb / 1000:.2f} GB"
        )
    evidence = "".join(
        f'<li><a href="evidence/{quote(p.name)}">{html.escape(p.name)}</a>'
        for p in sorted((out / "evidence").glob("*.json"))
    )
    table = html.escape(
        ledger.to_text(ledger.rows([out / "evidence", notebooks.stored_evidence()]))
    )
    style = (
        "body{font:16px/1.5 system-ui;margin:2rem auto;max-width:70rem}td{padding:.2rem 1rem .2rem"
        " 0}pre{overflow:auto}"
    )
    page = f"""<!doctype html><meta charset="utf-8"><title>Run {html.escape(out.name)}</title>
<style>{style}</style>
<h1>Run {html.escape(out.name)}</h1>
<table><tr><th>notebook<th>state<th>time<th>peak memory{"".join(lines)}</table>
<h2>Evidence of this run</h2><ul>{evidence}</ul>
<h2>Ledger (this run's evidence and the stored one)</h2><pre>{table}</pre>
"""
    return runtime.write_text(out / "index.html", page)
