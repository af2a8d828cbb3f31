"""In a real browser: JupyterLab runs notebooks to their end, the site's pages show their figures
and formulas, and the view of a trajectory moves.

Needs Chromium and its driver (Debian: `apt-get install chromium chromium-driver`); without them
these tests are skipped. TML_SCREENSHOTS names a folder for what was seen.
"""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import numpy as np
import pytest
import yaml
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tml_lib.lessons import explorer, notebooks, run_folders, run_pages
from tml_lib.records import ProbeCurve, Question
from tml_lib.tools import site

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run"
    " --disable-background-networking "
)
FLAGS += "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1200,1600"
BINARIES = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
BOOKS = ("00_start_here", "05a_probing_trajectories")
TRY_IT = "18_try_it"
RUN_ALL = """
const app = window.jupyterapp, panel = app.shell.currentWidget;
window.found = null;
(async () => {
  await panel.sessionContext.ready;
  await app.commands.execute('notebook:clear-all-cell-outputs');
  await app.commands.execute('notebook:run-all-cells');
  // a cell's reply may come before its last outputs: they are there when the kernel says 'idle'
  const kernel = panel.sessionContext.session.kernel;
  while (kernel.status === 'busy') await new Promise(again => setTimeout(again, 100));
  const cells = panel.content.widgets
    .map(cell => cell.model.toJSON())
    .filter(cell => cell.cell_type === 'code');
  return {status: kernel.status, cells};
})().then(found => window.found = found, error => window.found = {error: String(error)});
"""

# code and outputs that are wider than their place
CUT = """
return [...document.querySelectorAll('article pre')]
  .filter(pre => pre.scrollWidth > pre.clientWidth + 1).map(pre => pre.textContent.slice(0, 80))
"""

pytestmark = pytest.mark.skipif(
    None in BINARIES.values(), reason="no Chromium with its driver on this machine"
)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = BINARIES["chromium"]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    found = webdriver.Chrome(options, Service(BINARIES["chromedriver"]))
    yield found
    found.quit()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address and token of a JupyterLab over copies of the notebooks, with their small
    parameters.
    """
    folder, settings = tmp_path_factory.mktemp("notebooks"), tmp_path_factory.mktemp("settings")
    small = yaml.safe_load((notebooks.folder() / "params.yaml").read_text(encoding="utf8"))
    for name in (*BOOKS, TRY_IT):
        book = load_notebook_node(str(notebooks.folder() / f"{name}.ipynb"))
        nbformat.write(parameterize_notebook(book, small[name]), folder / f"{name}.ipynb")
    # every cell stays in the page
    whole = settings / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    whole.parent.mkdir(parents=True)
    whole.write_text(json.dumps({"windowingMode": "none"}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token, address = secrets.token_hex(16), f"http://127.0.0.1:{port}"
    command = [
        sys.executable,
        "-m",
        "jupyter",
        "lab",
        "--no-browser",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--allow-root",
    ]
    command += [
        f"--notebook-dir={folder}",
        f"--IdentityProvider.token={token}",
        "--LabApp.expose_app_in_browser=True",
    ]
    environment = os.environ | {
        "JUPYTERLAB_SETTINGS_DIR": str(settings),
        "TML_EVIDENCE": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    log = (folder / "log").open("w")
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(
            lambda: (
                urllib.request.urlopen(f"{address}/api/status?token={token}", timeout=5).status
                == 200
            ),
            120,
        )
        yield address, token
    finally:
        server.terminate()
        server.wait(30)
        log.close()


def wait_for(ready, seconds):
    end = time.monotonic() + seconds
    while True:
        try:
            if ready():
                return
        except OSError:
            pass
        assert time.monotonic() < end, f"not ready within {seconds} s"
        time.sleep(0.5)


def run_all(driver, lab, name):
    """Open a notebook, run all cells, wait for them: the kernel's status and the cells with their
    outputs.
    """
    address, token = lab
    driver.get(f"{address}/lab/tree/{name}?token={token}&reset")
    shown = f"return window.jupyterapp?.shell.currentWidget?.context?.path === '{name}'"
    WebDriverWait(driver, 120).until(lambda d: d.execute_script(shown))
    driver.execute_script(RUN_ALL)
    return WebDriverWait(driver, 600, poll_frequency=1).until(
        lambda d: d.execute_script("return window.found")
    )


@pytest.mark.parametrize("name", BOOKS)
def test_jupyterlab_runs_a_notebook_to_its_end(lab, driver, name):
    found = run_all(driver, lab, f"{name}.ipynb")
    assert found.get("status") == "idle", found.get("error")
    code = [cell for cell in found["cells"] if "".join(cell["source"]).strip()]
    assert all(cell["execution_count"] for cell in code)
    outputs = [output for cell in code for output in cell["outputs"]]
    assert [output for output in outputs if output["output_type"] == "error"] == []
    figures = sum("image/png" in output.get("data", {}) for output in outputs)
    assert figures >= 1
    look = (
        "return [...document.querySelectorAll('.jp-RenderedImage img')].filter(i => i.complete &&"
        " i.naturalWidth > 100).length"
    )
    WebDriverWait(driver, 60).until(lambda d: d.execute_script(look) >= figures)
    formulas = driver.execute_script(
        "return document.querySelectorAll('.jp-RenderedMarkdown mjx-container').length"
    )
    assert formulas > 5
    if folder := os.environ.get("TML_SCREENSHOTS"):
        for k in range(figures):
            script = (
                "document.querySelectorAll('.jp-RenderedImage"
                " img')[arguments[0]].scrollIntoView({block: 'center'})"
            )
            driver.execute_script(script, k)
            driver.save_screenshot(str(Path(folder) / f"{name}_{k}.png"))


def test_jupyterlab_shows_where_a_notebook_fails(lab, driver):
    """The check above finds an error where there is one."""
    address, token = lab
    bad = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    bad.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    body = json.dumps({"type": "notebook", "content": bad}).encode()
    request = urllib.request.Request(
        f"{address}/api/contents/bad.ipynb?token={token}", body, method="PUT"
    )
    assert urllib.request.urlopen(request).status == 201
    found = run_all(driver, lab, "bad.ipynb")
    (error,) = [
        output
        for cell in found["cells"]
        for output in cell["outputs"]
        if output["output_type"] == "error"
    ]
    assert re.search("ZeroDivisionError", error["ename"])


def test_the_site_shows_figures_formulas_and_no_error(driver, tmp_path):
    """Every page, opened from the disk without a server."""
    front, formulas, figures = site.build(tmp_path / "site"), 0, 0
    driver.get("about:blank")
    driver.get_log("browser")  # what the page before had to say, and what it says when it is left
    for page in sorted(front.parent.glob("*.html")):
        driver.get(page.as_uri())
        wanted = driver.execute_script("return document.querySelectorAll('.math').length")
        shown = "return document.querySelectorAll('.math mjx-container').length >= arguments[0]"
        WebDriverWait(driver, 60).until(
            lambda d, shown=shown, wanted=wanted: d.execute_script(shown, wanted)
        )
        sizes = driver.execute_script(
            "return [...document.querySelectorAll('article img')].map(i => i.naturalWidth)"
        )
        assert min(sizes, default=1) > 0, page.name
        assert driver.execute_script(CUT) == [], page.name
        assert (
            driver.execute_script("return document.querySelectorAll('mjx-merror').length") == 0
        ), page.name
        assert [
            row["message"] for row in driver.get_log("browser") if row["level"] == "SEVERE"
        ] == [], page.name
        formulas, figures = formulas + wanted, figures + len(sizes)
    assert formulas > 100
    assert figures > 50


# --- names that would run something ---------------------------------------------------------------

NAME = "<img src=x onerror=window.hit=1>"
QUESTION = "What is 2+3? </script><script>window.hit=1</script><svg onload=window.hit=1>"
LINKS = "[a](javascript:window.hit=1) [b](JavaScript&colon;window.hit=1) [c](java&#115;cript:hit())"
LINKS += " $\\href{javascript:window.hit=1}{x}$"
HOSTILE = (
    NAME,
    QUESTION,
    f"| a |\n|---|\n| {NAME} {LINKS} |",
    f"```\n{QUESTION}\n```",
    f"\n{NAME}\n",
)
KINDS = ("text/plain", "text/markdown", "text/html", "image/svg+xml", "text/latex")


@pytest.fixture
def hostile(tmp_path):
    """A notebook whose outputs hold such names, in every form that a kernel may send."""
    outputs = [
        nbformat.v4.new_output("display_data", {kind: text, "text/plain": text})
        for kind in (*KINDS, "application/javascript")
        for text in HOSTILE
    ]
    outputs += [
        nbformat.v4.new_output("stream", name=name, text=text)
        for name in ("stdout", "stderr")
        for text in HOSTILE
    ]
    outputs.append(nbformat.v4.new_output("error", ename=NAME, evalue=QUESTION, traceback=[NAME]))
    source = f"model: str = {NAME!r}\nquestion: str = {QUESTION!r}"
    cells = [
        nbformat.v4.new_markdown_cell("# Names\n\n$x$"),
        nbformat.v4.new_code_cell(source, outputs=outputs),
    ]
    state = {"a": {"model_module": "m", "model_name": "HTMLModel", "state": {"value": QUESTION}}}
    widgets = {"state": state, "version_major": 2, "version_minor": 0}
    book = nbformat.v4.new_notebook(
        cells=cells,
        metadata={
            "widgets": {"application/vnd.jupyter.widget-state+json": widgets},
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "language_info": {"name": "python"},
        },
    )
    nbformat.write(book, tmp_path / "00_names.ipynb")
    return tmp_path / "00_names.ipynb"


def run_page(book, folder):
    (folder / "run.html").write_text(run_pages.notebook_page(book), encoding="utf8")
    return folder / "run.html"


def site_page(book, folder):
    source = folder / "source"
    (source / "_static").mkdir(parents=True)
    nbformat.write(site._page(book, ""), source / "index.ipynb")
    with pytest.MonkeyPatch.context() as patch:
        # formulas are not the subject, and their script is large
        patch.setitem(site.SETTINGS, "html_css_files", [])
        site._run_sphinx(source, folder / "site", folder / "doctrees")
    return folder / "site" / "index.html"


def index_page(book, folder):
    stored = notebooks.stored_evidence() / "published.published.json"
    (folder / "evidence").mkdir()
    shutil.copy(stored, folder / "evidence" / f"{NAME}.json")
    results = [
        run_folders.Result(NAME, ok, 1.0, 2, {"model": NAME}, QUESTION) for ok in (True, False)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notebooks, "stored_evidence", lambda: folder / "none")
        return run_pages.write_index(folder, results)


@pytest.mark.parametrize("make", [run_page, site_page, index_page])
def test_no_page_runs_what_a_models_name_or_a_question_holds(driver, hostile, tmp_path, make):
    page = make(hostile, tmp_path)
    driver.get(page.as_uri())
    time.sleep(0.3)  # for a picture that cannot be loaded
    assert driver.execute_script("return window.hit === undefined")
    places = "return [...document.querySelectorAll('a')].map(a => a.href)"
    assert [to for to in driver.execute_script(places) if not re.match("file:|https?:", to)] == []
    text = driver.execute_script("return document.body.textContent")
    assert NAME in text
    if make is not index_page:
        assert "What is 2+3? </script><script>window.hit=1" in text


def test_the_browser_finds_a_page_that_runs_such_a_name(driver, tmp_path):
    """The check above finds what it looks for."""
    (tmp_path / "page.html").write_text(f"<!doctype html><title>a</title>{NAME}")
    driver.get((tmp_path / "page.html").as_uri())
    WebDriverWait(driver, 10).until(lambda d: d.execute_script("return window.hit === 1"))


# --- the view of a trajectory ---------------------------------------------------------------------

WORDS = ("She has $5 ", "and $6, ", f"{QUESTION} ", "so 17, ", "then 11.")


def view():
    """A view of two trajectories with numbers of its own, the second a token shorter."""
    candidates = (explorer.Candidate("11", "right", 2), explorer.Candidate(NAME, "wrong", 1))
    curves = {}
    for kind, n in (("gold", 5), ("foreign", 4)):
        places, numbers = np.arange(n + 1), np.linspace(2.0, 0.5, n + 1)
        curves[kind] = [
            ProbeCurve(places, numbers + k, n, one.answer, WORDS[:n], stated_at=4 - 4 * k or None)
            for k, one in enumerate(candidates)
        ]
    question = Question("q", QUESTION, "11", "t")
    return explorer.Explorer(question, NAME, candidates, curves)


def readout(driver, place=0):
    return driver.execute_script(
        "return document.querySelectorAll('.tml-readout')[arguments[0]].textContent", place
    )


@pytest.fixture
def shown(driver, tmp_path):
    (tmp_path / "view.html").write_text(explorer.page(view().data()), encoding="utf8")
    driver.get((tmp_path / "view.html").as_uri())
    return driver


def test_the_cursor_moves_by_keys_slider_click_and_mouse(shown):
    find = shown.find_element
    assert readout(shown).startswith("After 4 of 5 tokens: L̂ = 0.800 nats per token. ΔL̂ of this")
    assert "−0.300 (the right answer became likelier)" in readout(shown)
    text, slider = find("css selector", "pre"), find("css selector", "input[type=range]")
    text.send_keys(Keys.ARROW_LEFT)
    assert readout(shown).startswith("After 3 of 5")
    text.send_keys(Keys.HOME)
    assert readout(shown).startswith("After 0 of 5 tokens: L̂ = 2.000 nats per token. Nothing")
    slider.send_keys(Keys.ARROW_RIGHT)
    assert readout(shown).startswith("After 1 of 5")
    assert slider.get_attribute("aria-valuetext").startswith("After 1 of 5 tokens: L̂ = 1.700")
    find("css selector", "pre span:nth-child(2)").click()
    assert readout(shown).startswith("After 2 of 5")
    chart = find("css selector", ".tml-chart")
    edge = chart.size["width"] // 2 - 20
    ActionChains(shown).move_to_element_with_offset(chart, edge, 0).perform()
    assert readout(shown).startswith("After 5 of 5 tokens: L̂ = 0.500")
    rows = [row.text.split() for row in shown.find_elements("css selector", "tbody tr")]
    assert rows[0] == ["11", "right", "0.500", "36.8", "%"]
    assert rows[1][-4:] == ["wrong", "1.500", "22.3", "%"]


def test_a_button_shows_another_trajectory_at_the_same_place(shown):
    gold, foreign = shown.find_elements("css selector", ".tml-explorer button")
    assert (gold.get_attribute("aria-pressed"), foreign.text) == (
        "true",
        "control: another question's trajectory",
    )
    foreign.click()
    assert foreign.get_attribute("aria-pressed") == "true"
    assert readout(shown).startswith("After 4 of 4")
    text = shown.execute_script("return document.querySelector('pre').textContent")
    assert text == "".join(WORDS[:4])


def test_the_view_runs_nothing_and_fits_narrow_windows(shown):
    assert shown.execute_script("return window.hit === undefined")
    words = shown.execute_script("return document.body.innerText")
    assert NAME in words
    assert QUESTION in words
    assert "</script><script>window.hit=1</script>" in words
    assert shown.execute_script("return document.querySelectorAll('img').length") == 0
    for width in (1280, 700, 360):
        shown.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        wide = "return document.documentElement.scrollWidth"
        assert shown.execute_script(wide) <= width
    shown.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_several_views_on_a_page_move_apart(driver, tmp_path):
    part = explorer.html(view().data())
    (tmp_path / "two.html").write_text(f"<!doctype html><body>{part}{part}", encoding="utf8")
    driver.get((tmp_path / "two.html").as_uri())
    first, second = driver.find_elements("css selector", "pre")
    second.send_keys(Keys.HOME)
    assert readout(driver, 0).startswith("After 4 of 5")
    assert readout(driver, 1).startswith("After 0 of 5")
    first.send_keys(Keys.END)
    assert readout(driver, 0).startswith("After 5 of 5")


def test_in_jupyterlab_the_view_moves_and_the_box_probes_a_text(lab, driver):
    found = run_all(driver, lab, f"{TRY_IT}.ipynb")
    assert found.get("status") == "idle", found.get("error")
    outputs = [output for cell in found["cells"] for output in cell["outputs"]]
    assert [output for output in outputs if output["output_type"] == "error"] == []
    views = "return document.querySelectorAll('.tml-explorer[data-ready] pre').length"
    WebDriverWait(driver, 60).until(lambda d: d.execute_script(views) >= 3)
    typeset = "return document.querySelectorAll('.tml-explorer mjx-container').length"
    assert driver.execute_script(typeset) == 0, "a sum of dollars is no formula"
    text = driver.find_elements("css selector", ".tml-explorer pre")[0]
    text.send_keys(Keys.HOME)
    assert readout(driver).startswith("After 0 of")
    text.send_keys(Keys.ARROW_RIGHT)
    assert not readout(driver).startswith("After 0 of")
    area = driver.find_element("css selector", ".widget-textarea textarea")
    area.clear()
    area.send_keys("I know nothing.")
    driver.find_element("css selector", ".widget-button").click()
    second = "return document.querySelectorAll('.tml-explorer pre')[1].textContent"
    WebDriverWait(driver, 120).until(lambda d: d.execute_script(second) == "I know nothing.")
    if folder := os.environ.get("TML_SCREENSHOTS"):
        for k, where in enumerate((".tml-explorer", ".widget-textarea")):
            script = "document.querySelector(arguments[0]).scrollIntoView({block: 'start'})"
            driver.execute_script(script, where)
            driver.save_screenshot(str(Path(folder) / f"{TRY_IT}_view_{k}.png"))
