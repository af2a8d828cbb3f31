"""One study as an HTML page that needs no other file: question, method, figures, tests, settings,
command.
"""

from __future__ import annotations

import base64
import html
import math
from pathlib import Path

from tml_lib import runtime
from tml_lib.claims import ledger, rulebook
from tml_lib.lessons import explorer, names
from tml_lib.records import Interval

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; font-size: 14px }
td, th { border-bottom: 1px solid silver; padding: .3rem .6rem; text-align: left }
pre { background: whitesmoke; padding: .6rem; overflow-x: auto; white-space: pre-wrap }
img { max-width: 100% } code { font-size: 12px; color: dimgray }
"""
COUNTED = (
    "material",
    "precision",
    "strides",
    "trajectories",
    "transfer",
    "text",
    "efficiency",
)  # studies in which the model writes
_HEADS = ("test", "compared with", "claimed", "estimate [95 % interval]", "n", "verdict")


def write(
    path: Path, evidence: Path, question: str, method: str, look: explorer.Explorer | None = None
) -> Path:
    """Write the page of an evidence file; every text of model and data is escaped. look: one of its
    questions, to move through.
    """
    record, rows = ledger.read_evidence(evidence), ledger.rows_of(evidence)
    settings = record["settings"]
    title = f"{settings.get('model', 'a model')}: {record['study']} ({record['scale']})"
    parts = [
        f"<h1>{_text(title)}</h1>",
        f"<p><b>{_text(question)}</b></p><p>{_text(method)}</p>",
        *_claims(rows),
        *_precision(record),
        *_strides(record),
        *[
            f'<p><img src="{image}" alt="{_text(alt)}"></p>'
            for alt, image in _figures(record, rows)
        ],
        *([] if look is None else ["<h2>One question</h2>", explorer.html(look.data())]),
        f"<p>{_text(_cut(record))}</p>",
        "<h2>Settings</h2>",
        _table(("setting", "value"), sorted(settings.items())),
        f"<h2>Command</h2><pre>{_text(record['command'])}</pre>",
        f"<p>{record['wall_seconds'] / 60:.0f} minutes; {_text(_versions(record))}</p>",
    ]
    head = f'<meta charset="utf8"><title>{_text(title)}</title><style>{_STYLE}</style>'
    body = "\n".join(parts)
    return runtime.write_text(
        path, f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'
    )


def _claims(rows: list[ledger.Row]) -> list[str]:
    """Per claim its title and a table of its tests."""
    found, tests = [], rulebook.rules()
    for claim in dict.fromkeys(row.claim for row in rows):
        lines = []
        for row in (row for row in rows if row.claim == claim):
            rule = tests[claim, row.test]
            numbers = row.numbers(3) if row.has_value else "no question has it"
            name = f"{rule['label']} ({claim}.{row.test})" + ("" if row.decisive else ", beside")
            lines.append((name, row.control, rulebook.wanted(rule), numbers, row.count, row.said))
        found += [f"<h2>{_text(rulebook.claims()[claim]['title'])}</h2>", _table(_HEADS, lines)]
    return found


def _precision(record: dict) -> list[str]:
    """The tables of a study of two dtypes; none of another study."""
    if record["study"] != "precision":
        return []
    from tml_lib.studies import precision

    rounded = [
        (names.CONDITIONS[kind].name if kind in names.CONDITIONS else kind, *map(_nats, numbers))
        for kind, numbers in precision.differences(record).items()
    ]
    means = [
        (
            rulebook.label(test),
            *(_interval(found[name]) for name in (*precision.DTYPES, "difference")),
        )
        for test, found in precision.estimates(record).items()
    ]
    heads = ("|bfloat16 - float32|, nats per token", "median", "95th percentile", "worst")
    return [_table(heads, rounded), _table(("mean of", *precision.DTYPES, "difference"), means)]


def _strides(record: dict) -> list[str]:
    """The tables of a study of every token; none of another study."""
    if record["study"] != "strides":
        return []
    from tml_lib.studies import strides

    made, hidden = [], []
    for kind in strides.KINDS:
        if not any(kind in held["curves"] for held in record["records"]):
            continue
        name = names.CONDITIONS[kind].name
        made += [
            (name, token, there, spikes, f"{spikes / there:.1%}")
            for token, (there, spikes) in strides.by_token(record, kind).items()
        ]
        for stride, off in strides.trends(record, kind).items():
            there, visible = strides.seen(record, kind, stride)
            hidden.append((name, stride, f"{visible} of {there}", _interval(off)))
    heads = ("trajectory", "kind of token", "tokens", "spikes", "share")
    off = ("trajectory", "stride", "spikes seen", "trend before the statement, minus every token's")
    return [_table(heads, made), _table(off, hidden)]


def _nats(number: float) -> str:
    return f"{number:.3f}"


def _interval(one: Interval) -> str:
    return f"{one.estimate:.3f} [{one.low:.3f}, {one.high:.3f}], n = {one.n}"


def _figures(record: dict, rows: list[ledger.Row]) -> list[tuple[str, str]]:
    """(what it shows, PNG as a data address): the curves by condition where there are such, and
    every test's estimate beside its threshold.
    """
    from tml_lib.lessons import plots

    drawn = []
    if record["study"] == "trajectories":
        from tml_lib.studies.probed_curves import by_condition

        kinds = ("gold", "own_right", "sampled", "corrupted", "foreign")
        figure = plots.bands_alone(by_condition(record["curves"], kinds))
        drawn.append(("L̂ of the right answer along trajectories, by kind", figure))
    if drawable := [row for row in rows if not math.isnan(row.low)]:
        drawn.append(("Estimates with intervals beside thresholds", plots.forest(drawable)))
    return [(alt, f"data:image/png;base64,{_encoded(figure)}") for alt, figure in drawn]


def _encoded(figure) -> str:
    from tml_lib.lessons import plots

    return base64.b64encode(plots.png(figure)).decode()


def _cut(record: dict) -> str:
    share = ledger.cut_share(record)
    if share is None and record["study"] in COUNTED and "cut" not in record:
        return "No count was kept of how many of the model's samples were cut."
    if share is None:
        return "This study samples nothing."
    most = record["settings"].get("max_tokens", "an unknown number of")
    return (
        f"{share:.0%} of the model's samples were cut, as they had not ended after {most} tokens."
    )


def _versions(record: dict) -> str:
    held = record["versions"]
    return ", ".join(f"{name} {held[name]}" for name in ("torch", "transformers") if name in held)


def _table(heads, lines) -> str:
    cells = [[f"<th>{_text(name)}</th>" for name in heads]]
    cells += [[f"<td>{_text(cell)}</td>" for cell in line] for line in lines]
    return "<table>" + "".join(f"<tr>{''.join(row)}</tr>" for row in cells) + "</table>"


def _text(value) -> str:
    return html.escape(str(value))
