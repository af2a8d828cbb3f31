"""The notebooks of the kit: where they and the stored evidence are, their declared parameters, and
whether values that are given for these are right.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tml_lib import files, parameters, runtime
from tml_lib.lm import presets


@dataclass(frozen=True)
class Notebook:
    """A notebook of the kit: its file, title and declared parameters (name -> type name)."""

    path: Path
    title: str
    parameters: dict[str, str]
    preset: str = ""  # the committed default, where it has such a parameter
    any_preset: bool = False  # whether it asks each preset's own questions
    claims: tuple[str, ...] = ()  # that its first cell names ('C11' stands for C11g too)

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def number(self) -> str:
        """What it is called by: '05b' of '05b_right_against_wrong'."""
        return self.name.partition("_")[0]

    @property
    def subject(self) -> str:
        """The name of its exercises' module: 'right_against_wrong'."""
        return self.name.partition("_")[2]

    @property
    def presets(self) -> list[str]:
        """Presets that it runs on: all that it has questions for, by default those of its own
        preset's; none without one.
        """
        known = presets.PRESETS
        return [
            name
            for name in known
            if self.preset and (self.any_preset or known[name].task == known[self.preset].task)
        ]


def folder() -> Path:
    """notebooks/ of the clone."""
    return runtime.project_root() / "notebooks"


def stored_evidence() -> Path:
    """The committed evidence of runs that take longer than a notebook may."""
    return folder() / "evidence"


def discover() -> list[Notebook]:
    """All notebooks `NN_name.ipynb`, in order; a lesson in parts has a letter, `NNa_name.ipynb`."""
    found = (path for path in folder().glob("*.ipynb") if re.match(r"\d\d[a-z]?_", path.name))
    return [_describe(path) for path in sorted(found)]


def _describe(path: Path) -> Notebook:
    # as plain JSON: nbformat and its validator take seconds to import
    held = files.table(path, files.COMMITTED, {"cells": list})["cells"]
    first = next("".join(cell["source"]) for cell in held if cell["cell_type"] == "markdown")
    title = first.lstrip().splitlines()[0].lstrip("# ")
    cells = [
        "".join(cell["source"]) for cell in held if "parameters" in cell["metadata"].get("tags", [])
    ]
    default = re.search(r'^preset: str = "(\w+)"', cells[0], re.MULTILINE) if cells else None
    declared = runtime.declared_parameters(cells[0]) if cells else {}
    allowed = parameters.rule("preset", tuple(declared))
    any_preset = bool(default) and allowed.choices == tuple(presets.PRESETS)
    named = tuple(dict.fromkeys(re.findall(r"\b[CMGT]\d+[a-z]?\b", first)))
    return Notebook(path, title, declared, default[1] if default else "", any_preset, named)


def select(wanted: list[str]) -> list[Notebook]:
    """The notebooks whose names begin with the given ones ('04', or '05' for 05a, 05b and 05c); all
    where none is given.
    """
    found = discover()
    chosen = []
    for start in wanted:
        matches = [book for book in found if book.name.startswith(start.removesuffix(".ipynb"))]
        if not matches:
            raise ValueError(
                f"no notebook begins with {start!r}: there are"
                f" {', '.join(book.name for book in found)}"
            )
        chosen += [book for book in matches if book not in chosen]
    return chosen or found


def check_given(books: list[Notebook], settings: dict[str, object]) -> dict[str, dict[str, object]]:
    """Parameters per notebook. Each must be declared, with that type, by at least one of them, and
    goes to those.
    """
    runtime.check_names(settings, dict.fromkeys(name for book in books for name in book.parameters))
    for book in books:
        for name in settings.keys() & book.parameters.keys():
            runtime.check_value(name, settings[name], book.parameters[name])
    if "preset" in settings:
        wanted = presets.preset(settings["preset"]).name
        for book in books:
            if book.preset and wanted not in book.presets:
                known = " or ".join(book.presets)
                raise ValueError(
                    f"notebook {book.name} does not ask the questions of preset {wanted!r}: give it"
                    f" {known}"
                )
    own = {book.name: {k: v for k, v in settings.items() if k in book.parameters} for book in books}
    for book in books:
        # relative paths begin where the kernel will run
        values = {"preset": book.preset, **own[book.name]} if book.preset else own[book.name]
        parameters.check(values, tuple(book.parameters), book.path.parent)
    return own
