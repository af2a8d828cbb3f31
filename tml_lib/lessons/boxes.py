"""What a notebook shows, and of which model: this run's own verdicts, and stored evidence of other
models in a box that names them.

A notebook runs on any model. What it says of another one stands in a box: stored evidence in
`stored`, prose in a Markdown quotation that begins with `> **Stored, MODEL (preset NAME):**`.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import textwrap
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tml_lib.claims import ledger, rulebook
from tml_lib.claims.ledger import Row
from tml_lib.claims.stats import bootstrap_interval
from tml_lib.lessons import names, notebooks, plots
from tml_lib.records import Interval

TOP, SIDE, FOOT = "┌─ ", "│ ", "└─"


@functools.cache
def read(name: str) -> dict:
    """Stored evidence by name, for what a notebook needs of it and does not show."""
    return ledger.read_evidence(notebooks.stored_evidence() / f"{name}.json")


@contextlib.contextmanager
def stored(*evidence: str) -> Iterator[list[dict]]:
    """Stored evidence by name, such as 'paths.small'. What the block prints and every figure that
    it draws get a frame, with the models named above it.
    """
    scales = dict.fromkeys(name.rpartition(".")[2] for name in evidence)
    called = [names.SCALES[scale].name if scale in names.SCALES else scale for scale in scales]
    title = " · ".join(["Stored evidence, not made by this run", *called])
    said = io.StringIO()
    with contextlib.redirect_stdout(said), plots.framed(title):
        yield [read(name) for name in evidence]
    lines = said.getvalue().splitlines()
    if lines:
        print("\n".join([TOP + title, *(SIDE + line for line in lines), FOOT]))


def stored_verdicts(
    claims: Iterable[str],
    *evidence: str,
    drawn: Sequence[str] | None = None,
    decisive: bool = False,
) -> None:
    """The tests of some claims in stored evidence, as a table and a figure, in a box. drawn: the
    scales that the figure shows, all by default; none leave it out. decisive: only such tests.
    """
    with stored(*evidence):
        rows = [row for row in _rows_of(evidence, claims) if row.decisive or not decisive]
        print(ledger.to_text(rows))
        drawable = [row for row in rows if drawn is None or row.scale in drawn]
        drawable = [row for row in drawable if row.has_value]
        if drawable:
            plots.forest(drawable)


def stored_tests(tests: Sequence[str], *evidence: str) -> None:
    """Some tests ('C1.order', ...) of stored evidence as a figure in a box."""
    with stored(*evidence):
        claims = {test.partition(".")[0] for test in tests}
        found = _rows_of(evidence, claims)
        plots.forest([row for row in found if f"{row.claim}.{row.test}" in tests])


def _rows_of(evidence: Sequence[str], claims: Iterable[str]) -> list[Row]:
    places = sorted(notebooks.stored_evidence() / f"{name}.json" for name in evidence)
    return ledger.rows_of(*places, names=tuple(claims))


def live_verdicts(rows: Sequence[Row], model: str) -> None:
    """This run's tests as a table; where they are enough for verdicts, these and a figure too."""
    print(f"This run: {model}")
    settled = [row for row in rows if row.verdict != "too few"]
    print(_table(rows, bool(settled)))
    if not settled:
        print("\nToo few questions for a verdict, by the rules in tml_lib/claims/claims.toml.")
        return
    for (claim, *_), found in ledger.summary(list(rows)).items():
        print(f"{rulebook.claims()[claim]['title']} ({claim}): {found}")
    plots.titled(plots.forest(settled), f"This run: {model}")


def _table(rows: Sequence[Row], verdicts: bool) -> str:
    """A header, then per test its label, what is claimed, its estimate, n, and its verdict where
    asked for.
    """
    told = f"  {'test (*: decisive)':46}{'claimed':26}{'estimate [95 % interval]':26}n"
    lines, claim = [told + "     verdict" * verdicts], None
    for row in rows:
        if row.claim != claim:
            claim = row.claim
            lines.append(f"{rulebook.claims()[claim]['title']} ({claim})")
        rule = rulebook.rules()[claim, row.test]
        first, *more = textwrap.wrap(rule["label"], 44, break_on_hyphens=False)
        spread = "" if math.isnan(row.low) else f" [{row.low:.2f}, {row.high:.2f}]"
        found = "–" if math.isnan(row.estimate) else f"{row.estimate:.2f}{spread}"
        mark, count = "*" if row.decisive else " ", f"{row.n_seeds * row.n_questions:<6}"
        line = f"{mark} {_padded(first, 46)}{rulebook.wanted(rule):26}{found:26}{count}"
        lines.append((line + row.verdict * verdicts).rstrip())
        lines += [f"  {part}" for part in more]
    return "\n".join(lines)


def _padded(text: str, width: int) -> str:
    """The text with spaces behind it; a mark over a letter, as in L̂, takes no room."""
    return text + " " * (width - sum(not unicodedata.combining(letter) for letter in text))


def interval(numbers: Sequence[float], seed: int = 0) -> Interval:
    """The mean with its bootstrap interval; of one number, or none, without an interval."""
    numbers = np.asarray(numbers, dtype=float)
    held = numbers[~np.isnan(numbers)]
    if len(held) >= 2:
        return bootstrap_interval(held, seed=seed)
    return Interval(float(held[0]) if len(held) else math.nan, math.nan, math.nan, len(held))
