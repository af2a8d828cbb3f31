"""Evidence files, and the replication table made from them and from the rules (`rulebook`).

An evidence file is JSON: per test a list over seeds of a list over questions (null = does not
apply), with the settings, versions, wall time, the command, the study's protocol and a hash of its
rules.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tml_lib import checks, files, runtime
from tml_lib.claims import intervals, rulebook
from tml_lib.records import Arms

SCHEMA = 1
INTERVAL_SEED = 20250526  # the bootstrap's own seed: the day of the paper
AGAIN = (
    "make it again with the command in its 'command' field (the notebook that writes it runs it"
    " too), or take the committed file back from git"
)
_FIELDS = dict.fromkeys(("study", "scale", "command", "protocol", "rules_hash"), str)
_FIELDS |= {"schema": int, "settings": dict, "versions": dict, "values": dict}
_FIELDS |= {"wall_seconds": float}
# a claim's verdict is the first of these that one of its decisive tests has
_SETTLES = ("stale", "incomplete", "too few", "floor", "contradicted")

Values = Mapping[str, Sequence[Sequence[float] | Arms]]  # test ('C1.trend') -> seeds -> questions


@dataclass(frozen=True)
class Row:
    """One line of the replication table: one test of one claim at one scale."""

    claim: str
    test: str
    scale: str
    estimand: str
    unit: str
    estimate: float
    low: float
    high: float
    n_seeds: int
    n_questions: int
    control: str
    decisive: bool
    verdict: str
    evidence: str
    cut: float | None = None  # share of the study's samples that were cut, where it says so
    better: float | None = None  # accuracy of the better arm, where the test compares accuracies
    better_low: float | None = None  # the low end of that accuracy's interval
    before: str = ""  # the verdict without the floor rule, where that rule changes it

    @property
    def has_value(self) -> bool:
        """Whether any question has one; evidence may lack what a test needs, such as samples."""
        return not math.isnan(self.estimate)

    def numbers(self, digits: int) -> str:
        """Estimate, interval and unit as Markdown tables print them."""
        if not self.has_value:
            return "no value"
        middle, low, high = (f"{x:.{digits}f}" for x in (self.estimate, self.low, self.high))
        return f"{middle} [{low}, {high}] {self.unit}"

    @property
    def count(self) -> str:
        """How many values there are, and the share of cut samples, as tables print it."""
        n = f"{self.n_seeds}×{self.n_questions}" if self.n_seeds > 1 else str(self.n_questions)
        return n if self.cut is None else f"{n}, {self.cut:.0%} cut"

    @property
    def least(self) -> str:
        """The low end of the better arm's accuracy, as tables print it."""
        return "unknown" if self.better_low is None else f"{self.better_low:.3f}"

    @property
    def reason(self) -> str:
        """Why a verdict is 'floor', and what it would be without that rule, as tables print it."""
        if not self.before:
            return ""
        arm = f"better arm {self.better:.3f}, low end {self.least}"
        return f" (without this rule {self.before}; {arm})"

    @property
    def said(self) -> str:
        """The verdict as tables print it, with its reason where it is 'floor'."""
        return self.verdict + self.reason


def write_evidence(
    folder: Path,
    study: str,
    scale: str,
    values: Values,
    *,
    command: str,
    settings: dict,
    wall_seconds: float,
    extra: dict | None = None,
) -> Path:
    """Write `<study>.<scale>.json`. values: test ('C1.trend') -> seeds -> questions, NaN where the
    test does not apply; `Arms` for a seed where the test compares accuracies.

    extra: anything that figures need (curves, say); 'templates', a label per question, makes
    intervals resample whole templates; 'nested' makes them resample seeds and questions within
    seeds. Numbers of numpy and torch are written as numbers. Raises ValueError where a test has no
    rule or its values are no lists of numbers, TypeError for what JSON cannot hold.
    """
    folder = checks.path(folder=folder)
    checks.texts(study=study, scale=scale, command=command)
    record = {
        "schema": SCHEMA,
        "study": study,
        "scale": scale,
        "command": command,
        "settings": settings,
        "versions": runtime.versions(),
        "protocol": rulebook.protocol(study),
        "rules_hash": rulebook.rules_hash(list(values)),
        "wall_seconds": round(float(wall_seconds), 1),
        "values": values,
        **(extra or {}),
    }
    record = intervals.with_arms(record, "evidence", bootstrap_seed=INTERVAL_SEED)
    if fault := _fault(record["values"]):
        raise ValueError(f"evidence {study}.{scale}: {fault}: give those that the study measured")
    text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    return runtime.write_text(folder / f"{study}.{scale}.json", text + "\n")


def read_evidence(path: Path) -> dict:
    """An evidence file, checked; ValueError names the file, what is wrong with it and how to make
    it again.
    """
    path = checks.path("give the path of an evidence file", path=path)
    record = files.table(path, AGAIN, _FIELDS)
    if record["schema"] != SCHEMA:
        said = f"has schema {record['schema']}, and this kit reads {SCHEMA}"
        raise files.Unreadable(path, said, AGAIN)
    fault = _fault(record["values"])
    labels = record.get("templates")
    if not fault and labels is not None:
        lengths = {len(seed) for seeds in record["values"].values() for seed in seeds}
        if not isinstance(labels, list) or lengths - {len(labels)}:
            fault = "templates is no label per question"
    arms = record.get("arms", {})
    if not isinstance(arms, dict) or not all(map(_is_pair, arms.values())):
        fault = "arms holds something else than estimate, low and high of two arms"
    if fault:
        raise files.Unreadable(path, f"is damaged ({fault})", AGAIN)
    return record


def cut_share(record: dict) -> float | None:
    """The share of the samples of an evidence file that were cut, as they had not ended at the
    greatest number of tokens; None where the study samples none or kept no count.
    """
    counts = record.get("cut") or []
    written = sum(n for _, n in counts)
    return sum(cut for cut, _ in counts) / written if written else None


def _fault(values: dict) -> str:
    """What is wrong with the values; '' where each test has a list of seeds, each a list of numbers
    or None.
    """
    for name, seeds in values.items():
        listed = isinstance(seeds, list) and seeds and all(isinstance(s, list) for s in seeds)
        numbers = [x for seed in seeds for x in seed if x is not None] if listed else [None]
        if not all(files.is_a(x, float) and not math.isnan(x) for x in numbers):
            return f"values[{name!r}] is no list of lists of numbers"
    return ""


def _is_pair(arms) -> bool:
    return (
        isinstance(arms, list)
        and [len(arm) if isinstance(arm, list) else 0 for arm in arms] == [3, 3]
        and all(x is None or files.is_a(x, float) for arm in arms for x in arm)
    )


def rows(folders: list[Path], *names: str) -> list[Row]:
    """The replication table from every evidence file in the folders, in the order of the claims.

    names: of the claims that are wanted; none: all. ValueError for an unknown one.
    """
    if isinstance(folders, str | Path):
        raise TypeError(f"folders={folders!r} is one place: give a list of folders")
    paths = [p for folder in folders for p in sorted(checks.path(folder=folder).glob("*.json"))]
    return rows_of(*paths, names=names)


def rows_of(*paths: Path, names: Sequence[str] = ()) -> list[Row]:
    """The rows of some evidence files, in the order of the claims. names: as `rows` takes them."""
    known = rulebook.chosen(names)
    table = [row for path in paths for row in _rows_of(read_evidence(path), _named(path), known)]
    tests = rulebook.all_tests(known)
    order = {f"{claim}.{test['name']}": k for k, (claim, test) in enumerate(tests)}
    return sorted(table, key=lambda row: order[f"{row.claim}.{row.test}"])


def rows_of_values(values: Values, *, study: str, scale: str, **more) -> list[Row]:
    """The rows of what a run has just measured and wrote to no file. values: as `write_evidence`
    takes them; more: 'templates' and 'cut', as its `extra`.
    """
    record = {"study": study, "scale": scale, "values": values}
    record["protocol"] = rulebook.protocol(study)
    record |= {"rules_hash": rulebook.rules_hash(list(values))} | more
    record = intervals.with_arms(record, "values", bootstrap_seed=INTERVAL_SEED)
    return _rows_of(record, "this run", rulebook.claims())


def _rows_of(record: dict, evidence: str, known: dict[str, dict]) -> list[Row]:
    current = rulebook.is_current(record)
    tests = [
        (claim, test)
        for claim, test in rulebook.all_tests(known)
        if f"{claim}.{test['name']}" in record["values"]
    ]
    found = []
    tables = [record["values"][f"{claim}.{test['name']}"] for claim, test in tests]
    made = intervals.of_tests(tables, record, bootstrap_seed=INTERVAL_SEED)
    for (claim, test), (interval, kept) in zip(tests, made, strict=True):
        questions = min(len(seed) for seed in kept)
        needed = known[claim]["scales"].get(record["scale"], rulebook.ENOUGH)
        enough = questions >= needed["questions"] and len(kept) >= needed["seeds"]
        better, low = intervals.better(record.get("arms", {}).get(f"{claim}.{test['name']}", []))
        armed = better is not None or not rulebook.compares_accuracies(f"{claim}.{test['name']}")
        now = rulebook.verdict(interval, test["side"], test["threshold"])
        before = ""
        if not (current and armed):
            now = "stale"
        elif not enough:
            now = "too few"
        elif better is not None and not (low is not None and low >= rulebook.least_accuracy()):
            now, before = "floor", now
        found.append(
            Row(
                claim=claim,
                test=test["name"],
                scale=record["scale"],
                estimand=test["estimand"],
                unit=test["unit"],
                estimate=interval.estimate,
                low=interval.low,
                high=interval.high,
                n_seeds=len(kept),
                n_questions=questions,
                control=test["control"],
                decisive=test["decisive"],
                verdict=now,
                evidence=evidence,
                cut=cut_share(record),
                better=better,
                better_low=low,
                before=before,
            )
        )
    return found


def _named(path: Path) -> str:
    """The file's path from the project's folder, so that tables read the same on every machine."""
    path, root = Path(path).resolve(), runtime.project_root()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def summary(table: list[Row]) -> dict[tuple[str, str, str], str]:
    """Verdict per (claim, scale, evidence file): holds where all decisive tests hold; else the
    first of stale, incomplete (a decisive test is missing), too few, floor and contradicted that
    one of them has; else inconclusive. A file with none of a claim's decisive tests explains the
    claim, and gives no verdict.
    """
    settings: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in table:
        settings.setdefault((row.claim, row.scale, row.evidence), {})[row.test] = row.verdict
    out: dict[tuple[str, str, str], str] = {}
    known = rulebook.claims()
    for key, found in settings.items():
        needed = [test["name"] for test in known[key[0]]["tests"] if test["decisive"]]
        if not set(needed) & set(found):
            continue
        verdicts = {found.get(name, "incomplete") for name in needed}
        if verdicts == {"holds"}:
            out[key] = "holds"
        else:
            out[key] = next((v for v in _SETTLES if v in verdicts), "inconclusive")
    return out


def to_json(table: list[Row]) -> str:
    """The table as JSON; a number that does not exist is null."""
    lines = intervals.rounded([asdict(row) for row in table])
    return json.dumps(lines, indent=1, ensure_ascii=False)


def to_text(table: list[Row]) -> str:
    """The table for a terminal: claims by title, their tests by label, the decisive ones first, and
    the claims' verdicts below.
    """
    heads = f"{'scale':11}{'estimate':>9}  {'[95 % interval]':20}{'unit':16}{'n':11}verdict"
    known, tests, above = rulebook.claims(), rulebook.rules(), (None, None)
    lines = [f"      {heads}"] if table else []
    places = list(dict.fromkeys(row.claim for row in table))
    for row in sorted(table, key=lambda row: (places.index(row.claim), not row.decisive)):
        test = tests[row.claim, row.test]
        if row.claim != above[0]:
            lines.append(f"{known[row.claim]['title']} ({row.claim})")
        if (row.claim, row.test) != above:
            mark = "*" if row.decisive else " "
            lines.append(f" {mark} {test['label']} ({row.test}): claimed {rulebook.wanted(test)}")
        above = row.claim, row.test
        interval = f"[{row.low:.3f}, {row.high:.3f}]" if row.has_value else ""
        middle = f"{row.estimate:.3f}" if row.has_value else "–"
        numbers = f"{middle:>9}  {interval:20}{row.unit:16}"
        lines.append(f"      {row.scale:11}{numbers}n = {row.count + ' ':7}{row.said}")
    lines.append(_note(table))
    verdicts = summary(table)
    for (claim, scale, evidence), found in verdicts.items():
        alike = sum((claim, scale) == key[:2] for key in verdicts) > 1
        source = f" ({evidence})" if alike else ""
        lines.append(f"{known[claim]['title']} ({claim}) at scale {scale}: {found}{source}")
    return "\n".join(lines)


def _note(table: list[Row]) -> str:
    """What the signs in a printed table mean, as far as it has them."""
    parts = ["n: seeds × questions, or questions"]
    if any(row.decisive for row in table):
        parts.insert(0, "* decisive test, the others explain")
    if any(row.cut is not None for row in table):
        parts.append(
            "cut: share of the samples that had not ended at the greatest number of tokens"
        )
    return "; ".join(parts)
