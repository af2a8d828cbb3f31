"""The two figures of README and the reference, as SVG files that are made from stored evidence and
say what they show by a hash.
"""

from __future__ import annotations

import hashlib
import io
import json

from tml_lib.claims import report, rulebook
from tml_lib.claims.ledger import Row
from tml_lib.lessons import findings


def _findings(table: list[Row]) -> list:
    return [
        (finding.title, finding.axis, name, row.estimate, row.low, row.high, row.verdict)
        for finding in findings.FINDINGS
        for name, row in findings.rows(finding, table)
    ]


def _verdicts(table: list[Row]) -> list:
    tests, found = rulebook.rules(), []
    for item in report.settled(table):
        label = tests[item.claim, item.row.test]["label"]
        found.append((item.claim, item.scale, item.verdict, item.row.test, label, item.margin))
    return found


SHOWN = {"findings.svg": _findings, "verdicts.svg": _verdicts}  # labels included


def digest(name: str, table: list[Row]) -> str:
    """What a figure shows of the table, as a hash: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(SHOWN[name](table)).encode()).hexdigest()[:16]


def drawn(name: str, table: list[Row]) -> str:
    """The figure as SVG, with the hash of what it shows."""
    from tml_lib.lessons import plots

    if name == "findings.svg":
        figure = plots.three_findings(table)
    else:
        figure = plots.verdicts(report.settled(table))
    buffer, about = io.StringIO(), {"Source": digest(name, table), "Date": None}
    figure.savefig(buffer, format="svg", metadata=about)
    return buffer.getvalue()
