"""The static site: a page per notebook with its stored outputs, links that lead somewhere, nothing
from another host.
"""

import re

import nbformat
import pytest
from bs4 import BeautifulSoup
from nbformat import v4

from tml_lib.lessons import notebooks
from tml_lib.tools import site

BOOKS = notebooks.discover()
FRONT = next((book.name for book in BOOKS if book.name.endswith("_replication_report")), "")
each_book = pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.name)


def file_name(book):
    return "index.html" if book.name == FRONT else f"{book.name}.html"


def read(path):
    return BeautifulSoup(path.read_text(encoding="utf8"), "html.parser")


def links(path):
    return {tag.get_text(): tag["href"] for tag in read(path).article.find_all("a", href=True)}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The whole site, built with the network closed."""
    return site.build(tmp_path_factory.mktemp("built") / "site").parent


def test_the_front_page_tells_the_findings_and_leads_to_all_pages(built):
    page = read(built / "index.html")
    assert "C11g" in page.get_text()
    assert "inconclusive" in page.get_text()
    sidebar = {tag["href"] for tag in page.aside.find_all("a", href=True)}
    assert {file_name(book) for book in BOOKS} - {"index.html"} | {"README.html"} <= sidebar


@each_book
def test_a_notebooks_page_has_its_title_figures_and_folded_cells(built, book):
    page, content = read(built / file_name(book)), nbformat.read(book.path, as_version=4)
    # what MathJax and the markdown renderer replace is left out of the comparison
    assert re.sub(r"\W", "", page.h1.get_text()).startswith(
        re.sub(r"\W", "", re.sub(r"[$`*].*", "", book.title))
    )
    outputs = [output for cell in content.cells for output in cell.get("outputs", [])]
    shown = [image["src"] for image in page.find_all("img", src=re.compile(r"^_images/.*\.png"))]
    assert len(shown) == sum("image/png" in output.get("data", {}) for output in outputs)
    tags = [tag for cell in content.cells for tag in cell.metadata.get("tags", [])]
    assert len(page.select("details.hide")) >= tags.count("setup") + tags.count("solution") > 0
    printed = [
        output.text.strip().splitlines()[0] for output in outputs if output.output_type == "stream"
    ]
    text = page.get_text()
    assert [line for line in printed if line.strip() not in text] == []


@each_book
def test_formulas_are_left_to_the_mathjax_that_is_shipped(built, book):
    page = read(built / file_name(book))
    prose = "\n".join(
        cell.source
        for cell in nbformat.read(book.path, as_version=4).cells
        if cell.cell_type == "markdown"
    )
    assert len(page.select("div.math")) == prose.count("$$") // 2
    if page.select(".math"):
        (script,) = [tag for tag in page.find_all("script", src=True) if "mathjax" in tag["src"]]
        assert (built / script["src"].split("?")[0]).stat().st_size > 1e6
    # in a view of a trajectory a dollar is a dollar
    for code in [*page.select(".mathjax_ignore"), *page.find_all(["pre", "code"])]:
        code.decompose()
    assert "$" not in page.article.get_text()


def test_links_to_notebooks_lead_to_their_pages(built):
    sources = {
        "README": (notebooks.folder().parent / "README.md").read_text(),
        BOOKS[0].name: BOOKS[0].path.read_text(),
    }
    names = {book.name: file_name(book) for book in BOOKS}
    for page, text in sources.items():
        wanted = {
            names[name]
            for name in re.findall(r"\]\((?:notebooks/)?(\d\d[a-z]?_\w+)\.ipynb\)", text)
        } - {f"{page}.html"}
        assert wanted <= set(links(built / f"{page}.html").values())
        assert wanted
    local = [
        link
        for path in built.glob("*.html")
        for link in re.findall(r'href="([^":]*)"', path.read_text())
    ]
    assert [link for link in local if ".ipynb" in link or ".md" in link] == []


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Builds the site of a project of its own: name -> markdown of a notebook's only text."""
    root = tmp_path / "kit"
    (root / "notebooks").mkdir(parents=True)
    (root / "tml_lib").mkdir()
    (root / "tml_lib" / "claims.toml").write_text("")
    (root / "README.md").write_text(
        "# Kit\n\n[lesson](notebooks/01_lesson.ipynb)"
        " [![Open](https://colab.org/badge.svg)](https://colab.org)"
    )
    (root / "notebooks" / "README.md").write_text("# Beside\n\n[kit](../README.md)")
    monkeypatch.setattr(site.runtime, "project_root", lambda: root)

    def build(owner="OWNER", **texts):
        (root / "pyproject.toml").write_text(
            f'[project.urls]\nRepository = "https://github.com/{owner}/kit"'
        )
        for name, text in texts.items():
            code = v4.new_code_cell("x = 1", metadata={"jupyter": {"source_hidden": True}})
            content = v4.new_notebook(
                cells=[v4.new_markdown_cell(text), code],
                metadata={"language_info": {"name": "python"}},
            )
            nbformat.write(content, root / "notebooks" / f"{name[1:]}.ipynb")
        return site.build(tmp_path / "out" / "site").parent

    return build


def test_the_report_is_the_front_page_and_files_of_the_repository_lead_home(small):
    lesson = (
        "# Lesson: why?\n\n[rules](../tml_lib/claims.toml),"
        " [found](02_replication_report.ipynb#two), [kit](../README.md)"
    )
    report = "# Replication report\n\nsee [lesson](01_lesson.ipynb)\n\n## Two"
    out = small("someone", _01_lesson=lesson, _02_replication_report=report)
    assert not (out / "02_replication_report.html").exists()
    assert read(out / "index.html").h1.get_text().startswith("Replication report")
    assert (
        links(out / "index.html")["lesson"]
        == links(out / "README.html")["lesson"]
        == "01_lesson.html"
    )
    assert links(out / "README.html")["Open"] == "https://colab.org"
    found = links(out / "01_lesson.html")
    assert found["rules"] == "https://github.com/someone/kit/blob/main/tml_lib/claims.toml"
    assert (found["found"], found["kit"]) == ("index.html#two", "README.html")
    assert read(out / "01_lesson.html").select("details.hide")


def test_without_an_owner_a_file_of_the_repository_is_plain_text(small):
    out = small(_01_lesson="# Lesson\n\nthe [rules](../tml_lib/claims.toml)")
    assert "the rules" in read(out / "01_lesson.html").article.get_text()
    assert "rules" not in links(out / "01_lesson.html")
    assert read(out / "index.html").h1.get_text().startswith("What has been found")


def test_links_to_solutions_and_words_lead_to_their_places(small):
    lesson = (
        "# Lesson\n\n[Solution 1](#Solution-1), [kit](README.md#beside)\n\n## Solutions\n\n"
        "### Solution 1\n\n<details><summary>The code</summary>\n\n"
        "```python\nx = 2\n```\n\n</details>"
    )
    out = small(_01_lesson=lesson)
    found = links(out / "01_lesson.html")
    assert (found["Solution 1"], found["kit"]) == ("#solution-1", "beside.html#beside")
    (fold,) = read(out / "01_lesson.html").article.select("details:not(.hide)")
    assert fold.pre.get_text().strip() == "x = 2"


def test_a_dead_link_stops_the_build_and_leaves_the_earlier_site(small):
    out = small(_01_lesson="# Lesson\n\nbefore")
    for link in (
        "03_missing.ipynb",
        "01_lesson.ipynb#missing",
        "#missing",
        "../tml_lib/missing.py",
    ):
        with pytest.raises(ValueError, match=r"01_lesson.*missing"):
            small(_01_lesson=f"# Lesson\n\n[next]({link})")
    assert "before" in (out / "01_lesson.html").read_text()
    assert [path.name for path in out.parent.iterdir()] == ["site"]


def test_a_folder_that_is_no_site_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="is no site of the kit: give --out"):
        site.build(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_missing_packages_are_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(
        site.importlib.util, "find_spec", lambda name: None if name == "furo" else name
    )
    with pytest.raises(
        LookupError, match=r"needs the packages furo: run `pip install -e '\.\[site\]'`"
    ):
        site.build(tmp_path / "site")


# --- the checker ----------------------------------------------------------------------------------

GOOD = """<link rel="stylesheet" href="main.css"><script src="main.js?v=1"></script>
<h1 id="here" style="color: red">x</h1><a href="https://example.org/x">elsewhere</a>
<a href="#here">here</a><a href="other.html#there">there</a><a href="#">top</a>
<a href="mailto:a@example.org">write</a><img src="data:image/png;base64,AA" alt="">
<script>const home = "https://x.org"</script>
"""


@pytest.fixture
def planted(tmp_path):
    (tmp_path / "other.html").write_text('<p id="there">x</p>')
    (tmp_path / "main.css").write_text(
        "a { color: red; background: url(data:image/png;base64,AA) } /* https://example.org */"
    )
    (tmp_path / "main.js").write_text(
        '// from https://example.org\nconst space = "http://www.w3.org/2000/svg";'
    )
    (tmp_path / "index.html").write_text(GOOD)
    return tmp_path


def test_the_checker_passes_hyperlinks_and_local_files(planted):
    site.check(planted)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            '<a href="gone.html">x</a>',
            "index.html: 'gone.html' leads to no file of the site: fix the link",
        ),
        ('<a href="/other.html">x</a>', "'/other.html' leads to no file"),
        ('<a href="../index.html">x</a>', "'../index.html' leads to no file"),
        ('<a href="file:///x.html">x</a>', "'file:///x.html' leads to no file"),
        ('<img src="gone.png">', "'gone.png' leads to no file"),
        (
            '<a href="#gone">x</a>',
            "index.html: '#gone' leads to no place on that page: fix what follows #",
        ),
        ('<a href="other.html#here">x</a>', "'other.html#here' leads to no place"),
        (
            '<script src="https://cdn.org/a.js"></script>',
            "index.html: 'https://cdn.org/a.js' is loaded from another host: ship",
        ),
        ('<script src="//cdn.org/a.js"></script>', "'//cdn.org/a.js' is loaded from another host"),
        (
            '<link rel="stylesheet" href="https://cdn.org/a.css">',
            "'https://cdn.org/a.css' is loaded",
        ),
        (
            '<img srcset="main.js 1x, https://cdn.org/a.png 2x">',
            "'https://cdn.org/a.png' is loaded",
        ),
        (
            '<p style="background: url(https://cdn.org/a.png)">x</p>',
            "'https://cdn.org/a.png' is loaded",
        ),
        ("<style>@import 'https://cdn.org/a.css';</style>", "'https://cdn.org/a.css' is loaded"),
        (
            '<script type="module">import x from "https://cdn.org/a.mjs"</script>',
            "'https://cdn.org/a.mjs' is loaded",
        ),
        ('<iframe src="https://cdn.org/"></iframe>', "'https://cdn.org/' is loaded"),
    ],
)
def test_the_checker_names_a_pages_fault(planted, code, said):
    (planted / "index.html").write_text(GOOD + code)
    with pytest.raises(ValueError, match=re.escape(said)) as found:
        site.check(planted)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        (
            "main.css",
            "@font-face { src: url('https://fonts.org/a.woff2') }",
            "main.css: 'https://fonts.org/a.woff2' is loaded",
        ),
        ("main.css", "@import url(//fonts.org/a.css);", "'//fonts.org/a.css' is loaded"),
        ("main.css", "a { background: url(gone.png) }", "main.css: 'gone.png' leads to no file"),
        (
            "main.js",
            'fetch("https://cdn.org/a.json")',
            "main.js: 'https://cdn.org/a.json' is loaded",
        ),
        ("main.js", "script.src='https://cdn.org/a.js'", "'https://cdn.org/a.js' is loaded"),
        (
            "main.js",
            'script.setAttribute("src", "https://cdn.org/a.js")',
            "'https://cdn.org/a.js' is loaded",
        ),
        (
            "main.js",
            'request.open("GET", "https://cdn.org/a.js")',
            "'https://cdn.org/a.js' is loaded",
        ),
        ("main.js", 'await import("https://cdn.org/a.js")', "'https://cdn.org/a.js' is loaded"),
        ("main.js", 'new Worker("https://cdn.org/a.js")', "'https://cdn.org/a.js' is loaded"),
    ],
)
def test_the_checker_names_a_scripts_or_stylesheets_fault(planted, name, code, said):
    (planted / name).write_text(code)
    with pytest.raises(ValueError, match=re.escape(said)):
        site.check(planted)


def test_wide_code_and_outputs_wrap(small):
    """What a browser does with it, tests/tools/test_browser.py looks at."""
    out = small(_01_lesson="# Lesson")
    sheet = (out / "_static" / "wide.css").read_text()
    assert re.search(r"article pre \{[^}]*white-space: pre-wrap", sheet)
    assert "wide.css" in (out / "01_lesson.html").read_text()
