"""The kit as a static site: README and notebooks with their stored outputs, built and readable
without a network.

Sphinx, MyST-NB and the furo theme make the pages; MathJax is shipped with them. `check` reads what
they made.
"""

from __future__ import annotations

import importlib.util
import io
import re
import shutil
import tempfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat

from tml_lib import files, runtime
from tml_lib.lessons import generated, notebooks, outputs

TITLE = "Trajectory meta-learning kit"
NEEDS = ("sphinx", "myst_nb", "furo", "sphinx-mathjax-offline")
SETTINGS = {
    "project": TITLE,
    "html_title": TITLE,
    "language": "en",
    "extensions": ["myst_nb", "sphinx.ext.mathjax"],
    "nb_execution_mode": "off",  # the stored outputs are shown
    "nb_merge_streams": True,
    "nb_render_markdown_format": "gfm",  # the outputs' tables
    "nb_render_image_options": {"alt": "Figure drawn by the code above"},
    "myst_enable_extensions": ["dollarmath", "amsmath"],
    "myst_heading_anchors": 4,
    "smartquotes": False,
    "html_theme": "furo",
    "html_static_path": ["_static"],
    "html_css_files": ["wide.css"],
    "html_copy_source": False,
    "html_show_copyright": False,
    "html_use_index": False,
    "html_show_search_summary": False,  # it fetches pages, which browsers refuse on file://
    "mathjax_path": "mathjax/tex-svg.js",  # one file that holds its fonts
    # the menu could fetch speech rules from elsewhere
    "mathjax3_config": {"options": {"enableMenu": False}},
}
# wide pages for code of 88 columns and outputs of 128; what is wider still wraps
WIDE = """
@media (min-width: 67em) { .content { width: min(60em, 100vw - 22em); } }
@media (min-width: 84em) { .content { width: min(60em, 100vw - 38em); } }
article pre { white-space: pre-wrap; overflow-wrap: anywhere; }
article .highlight pre { font-size: 0.8em; }
"""
# attributes; srcset holds several
_ADDRESSES = ("href", "xlink:href", "src", "poster", "action", "data")
_STYLE_LOADS = re.compile(r"""(?:@import\s*(?:url\()?|url\()\s*["']?([^"')\s;]+)""")
_SCRIPT_LOADS = re.compile(
    r"""(?:\b(?:from|import\s*\(?|fetch\s*\(|importScripts\s*\(|new\s+(?:(?:Shared)?Worker|WebSocket|EventSource)\s*\()|"""
    r"""\bsrc\s*=|["'`]src["'`]\s*,|\.open\s*\(\s*["'`]\w+["'`]\s*,)\s*["'`]((?:(?:http|ws)s?:)?//[^"'`\s]+)"""
)


def build(out: Path | None = None) -> Path:
    """Build the site in place of `out` (default: runs/site) and return its front page.

    Raises LookupError without the packages, ValueError if `out` holds anything but an earlier site,
    Sphinx warns or `check` finds fault; whatever was at `out` then stays.
    """
    out = Path(out or runtime.project_root() / "runs" / "site").resolve()
    if missing := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
        raise LookupError(
            f"the site needs the packages {', '.join(missing)}: run `pip install -e '.[site]'`"
        )
    if (
        out.exists()
        and not (out / "searchindex.js").is_file()
        and (out.is_file() or any(out.iterdir()))
    ):
        raise ValueError(
            f"{out} exists and is no site of the kit: give --out a new or empty folder"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        work = Path(folder)
        _assemble(work / "source")
        _run_sphinx(work / "source", work / "site", work / "doctrees")
        check(work / "site")
        if out.exists():
            out.rename(work / "earlier")
        (work / "site").rename(out)
    return out / "index.html"


def _assemble(source: Path) -> None:
    """Write the source folder: one flat folder of pages, in which links between pages lead."""
    books = notebooks.discover()
    front = next((book.name for book in books if book.name.endswith("_replication_report")), "")
    others = [
        f"{book.number} · {book.title.split(':')[0]} <{book.name}>"
        for book in books
        if book.name != front
    ]
    pages = ["Findings <self>", "About the kit <README>", *others, "Map and reference <beside>"]
    entries = "\n".join(pages)
    contents = f"\n\n```{{toctree}}\n:hidden:\n\n{entries}\n```\n"
    for book in books:
        content = _page(book.path, front)
        if book.name == front:
            content.cells[0].source += contents
        runtime.write_text(
            source / f"{'index' if book.name == front else book.name}.ipynb",
            nbformat.writes(content),
        )
    readme = files.text(runtime.project_root() / "README.md", files.COMMITTED)
    runtime.write_text(source / "README.md", _flat_links(readme, front))
    beside = files.text(notebooks.folder() / "README.md", files.COMMITTED)
    runtime.write_text(source / "beside.md", _flat_links(beside, front))
    if not front:
        runtime.write_text(
            source / "index.md",
            f"# What has been found so far\n\n{generated.ledger_table()}{contents}",
        )
    for figure in [*notebooks.folder().glob("*.svg"), *notebooks.folder().glob("*.png")]:
        shutil.copy(figure, source)
    mathjax = (
        Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent
        / "static"
        / "mathjax"
    )
    (source / "_static" / "mathjax").mkdir(parents=True)
    runtime.write_text(source / "_static" / "wide.css", WIDE)
    shutil.copy(mathjax / "tex-svg.js", source / "_static" / "mathjax")


def _page(path: Path, front: str):
    """A notebook as a page's source: links lead to pages, outputs run nothing, cells fold."""
    content = files.notebook(path, files.COMMITTED)
    content.metadata.pop("widgets", None)
    for cell in content.cells:
        if cell.cell_type == "markdown":
            # beside a notebook, README.md is that of notebooks/
            text = cell.source.replace("](README.md", "](notebooks/README.md")
            cell.source = _flat_links(text, front)
        else:
            _collapse(cell)
            cell.outputs = outputs.without_widgets(cell.outputs)
            _link_outputs(cell, front)
    return content


def _flat_links(text: str, front: str) -> str:
    """Links to pages and figures lead into the flat folder; a picture of another host (a badge)
    gives way to its words.
    """
    text = re.sub(r"!\[([^\]]*)\]\(https?:[^)]*\)", r"\1", text)
    text = text.replace("](notebooks/README.md", "](beside.md")
    text = re.sub(
        r"\]\((?:\.\./|notebooks/)?(README\.md|\d\d[a-z]?_\w+\.ipynb|\w+\.(?:svg|png))",
        r"](\1",
        text,
    )
    # places have lower case on pages, as on GitHub; in JupyterLab they have the heading's
    text = re.sub(r"(\]\([\w./]*#)([\w-]+)\)", lambda m: f"{m[1]}{m[2].lower()})", text)
    return text.replace(f"]({front}.ipynb", "](index.ipynb") if front else text


def _link_outputs(cell, front: str) -> None:
    """Links to notebooks in a Markdown output, which Sphinx leaves as they are, lead to
    the pages.
    """
    for output in cell.get("outputs", []):
        outputs.make_harmless(data := output.get("data", {}))
        if "text/markdown" in data:
            text = re.sub(r"\]\((\d\d[a-z]?_\w+)\.ipynb\)", r"](\1.html)", data["text/markdown"])
            data["text/markdown"] = text.replace(f"]({front}.html)", "](index.html)")


def _collapse(cell) -> None:
    """Fold set-up and solutions away with their output, and the code of other cells whose source
    Jupyter hides.
    """
    tags = cell.metadata.get("tags", [])
    hidden = cell.metadata.get("jupyter", {}).get("source_hidden")
    if "solution" in tags or (hidden and "def solution" in cell.source):
        what, how = "the solution", "hide-cell"
    elif "setup" in tags:
        what, how = "the set-up", "hide-cell"
    elif hidden:
        what, how = "the code", "hide-input"
    else:
        return
    cell.metadata["tags"] = [*tags, how]
    cell.metadata["mystnb"] = {
        "code_prompt_show": f"Show {what}",
        "code_prompt_hide": f"Hide {what}",
    }


def _run_sphinx(source: Path, site: Path, doctrees: Path) -> None:
    from sphinx.application import Sphinx
    from sphinx.util.console import strip_escape_sequences
    from sphinx.util.docutils import docutils_namespace

    warnings = io.StringIO()
    with docutils_namespace():
        app = Sphinx(
            source,
            None,
            site,
            doctrees,
            "html",
            SETTINGS,
            status=None,
            warning=warnings,
            freshenv=True,
        )
        app.connect("doctree-read", _to_repository)
        app.build()
    if said := strip_escape_sequences(warnings.getvalue()).replace(f"{source}/", "").strip():
        raise ValueError(
            f"Sphinx warns, so fix the notebook or README that it names, and build again:\n{said}"
        )


def _to_repository(_, page) -> None:
    """Links to files that are no pages lead to the public address, or become plain text where the
    owner is not known.
    """
    from docutils import nodes
    from sphinx.addnodes import pending_xref

    root = runtime.project_root()
    for link in list(page.findall(pending_xref)):
        path = (
            link["reftarget"].split("#")[0]
            if link["reftype"] == "myst" and not link["refdomain"]
            else ""
        )
        for file in ((base / path).resolve() for base in (root, notebooks.folder()) if path):
            if file.exists() and file.is_relative_to(root):
                address = f"{generated.home()}/blob/main/{file.relative_to(root).as_posix()}"
                link.replace_self(
                    nodes.reference("", "", *link.children, refuri=address)
                    if generated.owned()
                    else link.children
                )
                break


def check(site: Path) -> None:
    """Raises ValueError if a link of the site leads nowhere, or a page, script or stylesheet loads
    from another host.

    Of scripts it sees the addresses that they load literally, not those that they compute.
    """
    from bs4 import BeautifulSoup

    site = Path(site).resolve()
    text = {
        file: files.text(file, "build the site again")
        for file in sorted(site.rglob("*.*"))
        if file.suffix in (".html", ".svg", ".css", ".js")
    }
    parsed = {
        file: re.sub(r"<\?xml.*?\?>", "", page)
        for file, page in text.items()
        if file.suffix in (".html", ".svg")
    }
    pages = {file: BeautifulSoup(page, "html.parser") for file, page in parsed.items()}
    places = {
        file: {tag[name] for name in ("id", "name") for tag in page.find_all(attrs={name: True})}
        for file, page in pages.items()
    }
    faults = []
    for file in text:
        rule = _STYLE_LOADS if file.suffix == ".css" else _SCRIPT_LOADS
        links = (
            _links(pages[file])
            if file in pages
            else [(link, True) for link in rule.findall(text[file])]
        )
        for link, loads in links:
            if fault := _fault(site, file, link, loads, places):
                faults.append(f"{file.relative_to(site).as_posix()}: {link!r} {fault}")
    if faults:
        raise ValueError("\n".join(faults))


def _links(page) -> list[tuple[str, bool]]:
    """The addresses on a page, each with whether the browser loads it by itself."""
    found = []
    for tag in page.find_all(True):
        loads = tag.name not in ("a", "area")
        found += [(tag[name], loads) for name in _ADDRESSES if tag.get(name)]
        found += [
            (part.split()[0], True) for part in tag.get("srcset", "").split(",") if part.strip()
        ]
        styles = tag.get("style", "") + (tag.get_text() if tag.name == "style" else "")
        found += [(link, True) for link in _STYLE_LOADS.findall(styles)]
        found += [
            (link, True)
            for link in _SCRIPT_LOADS.findall(tag.get_text() if tag.name == "script" else "")
        ]
    return found


def _fault(site: Path, file: Path, link: str, loads: bool, places: dict[Path, set[str]]) -> str:
    """What is wrong with a link, and the next step; empty where nothing is."""
    parts = urlsplit(link)
    if parts.netloc:
        return "is loaded from another host: ship that file with the site" if loads else ""
    if parts.scheme in ("data", "mailto"):
        return ""
    target = (file.parent / unquote(parts.path)).resolve() if parts.path else file
    if parts.scheme or not target.is_file() or not target.is_relative_to(site):
        return "leads to no file of the site: fix the link in its notebook or in README.md"
    if target in places and unquote(parts.fragment) not in places[target] | {"", "top"}:
        return "leads to no place on that page: fix what follows # in its notebook or in README.md"
    return ""
