"""The replication report: margins, settling tests, coverage of the paper, and its exercises."""

import math
import re
from dataclasses import replace

import pytest
from matplotlib.colors import to_hex

from tml_lib import runtime
from tml_lib.claims import ledger, report, rulebook
from tml_lib.lessons import coverage, findings, names, notebooks, plots
from tml_lib.lessons.exercises import replication_report

PAPER = (
    [f"Fig. {k}" for k in range(1, 17)]
    + [f"Table {k}" for k in range(1, 8)]
    + [f"Algorithm {k}" for k in range(1, 5)]
)
PAPER += [f"Eq. {k}" for k in range(1, 9)] + ["Eq. 9–20"] + [f"Eq. {k}" for k in range(21, 24)]


@pytest.fixture(scope="module")
def table():
    return ledger.rows([notebooks.stored_evidence()])


def row(claim, test, low, high, verdict, *, scale="tiny", evidence="e.json"):
    rule = next(t for t in rulebook.claims()[claim]["tests"] if t["name"] == test)
    middle = (low + high) / 2
    return ledger.Row(
        claim,
        test,
        scale,
        rule["estimand"],
        rule["unit"],
        middle,
        low,
        high,
        5,
        300,
        "c",
        rule["decisive"],
        verdict,
        evidence,
    )


def test_a_test_without_a_value_is_said_so_and_does_not_settle_its_claim():
    """Evidence without samples of the model's own lacks what one of C2's decisive tests needs."""
    without = row("C2", "sampled_trend", math.nan, math.nan, "too few")
    rows = [without, row("C2", "corrupted_trend", 0.1, 0.3, "too few")]
    (item,) = report.settled(rows)
    assert item.row.test == "corrupted_trend"
    assert report.settled([without])[0].row is without
    printed = [report.overview([without]), report.details(rows), ledger.to_text(rows)]
    assert not any("nan" in text for text in printed)
    assert "no value" in printed[0]
    figure = plots.forest(rows)
    assert sum(len(ax.get_yticks()) for ax in figure.axes) == 1


# --- margins and settling tests -------------------------------------------------------------------


def test_a_margin_is_counted_in_smallest_effects_beyond_the_threshold():
    above = report.Settled("C5", "tiny", "holds", row("C5", "pass", 0.15, 0.25, "holds"))
    assert above.margin == pytest.approx((2.0, 3.0, 4.0))  # (x - 0.05) / 0.05
    below = report.Settled("C1", "tiny", "holds", row("C1", "trend", -0.6, -0.4, "holds"))
    assert below.margin == pytest.approx((3.0, 4.0, 5.0))  # (-0.1 - x) / 0.1


@pytest.mark.parametrize(
    ("unit", "size"),
    [("share", 0.05), ("tau", 0.1), ("nats per token", 0.1), ("squared error", 0.4)],
)
def test_the_smallest_effects_are_those_that_claims_toml_states(unit, size):
    assert report.smallest_effect(unit) == size


def test_a_unit_without_a_threshold_has_no_margin():
    with pytest.raises(ValueError, match="no decisive test has a threshold in 'metres'"):
        report.smallest_effect("metres")


def test_the_settling_test_is_the_least_favourable_of_those_with_the_verdict():
    good = row("C5", "mgpass", 0.2, 0.4, "holds")
    (found,) = report.settled([good, row("C5", "pass", 0.1, 0.2, "holds")])
    assert (found.verdict, found.row.test) == ("holds", "pass")
    (found,) = report.settled([good, row("C5", "pass", -0.2, 0.0, "contradicted")])
    assert (found.verdict, found.row.test) == ("contradicted", "pass")
    (found,) = report.settled(
        [row("C5", "mgpass", -0.9, 0.4, "inconclusive"), row("C5", "pass", 0.06, 0.07, "holds")]
    )
    assert (found.verdict, found.row.test) == ("inconclusive", "mgpass")


def test_a_margin_lies_on_the_side_of_its_verdict(table):
    for item in report.settled(table):
        low, middle, high = item.margin
        assert low <= middle <= high
        if item.verdict == "holds":
            assert low > 0
        if item.verdict == "contradicted":
            assert high < 0


# --- tables ---------------------------------------------------------------------------------------


def test_evidence_of_another_scale_has_a_column_and_a_second_file_its_say():
    other = row("C5", "pass", -0.3, -0.2, "contradicted", evidence="another.json")
    further = row("C5", "pass", 0.15, 0.25, "holds", scale="gpu-aime24")
    table = report.overview([row("C5", "pass", 0.15, 0.25, "holds"), other, further])
    assert "| gpu-aime24 |" in table.splitlines()[0]
    (line,) = [line for line in table.splitlines() if "(C5) |" in line]
    assert line.count("(`pass`, claimed above 0.05): ") == 3


def test_every_claim_has_a_verdict_or_a_reason_at_every_scale(table):
    done = {(row.claim, row.scale) for row in table}
    for claim, item in rulebook.claims().items():
        assert item["reported"].strip()
        assert any((claim, scale) in done for scale in item["scales"]), f"{claim} has no evidence"
        if claim[0] == "C" and "published" not in item["scales"]:
            assert (claim, "gpu") in done or report.why_not(claim, "gpu")
            for scale in ("tiny", "small"):
                assert (claim, scale) in done or report.why_not(claim, scale) or claim[-1] == "s", (
                    claim,
                    scale,
                )


def test_the_overview_has_a_line_per_claim_with_evidence_and_each_verdict(table):
    text = report.overview(table)
    for claim in rulebook.claims():
        assert re.search(rf"^\| [^|]+ \({claim}\) \|", text, re.MULTILINE)
    for item in report.settled(table):
        (line,) = [line for line in text.splitlines() if f" ({item.claim}) |" in line]
        label = rulebook.rules()[item.claim, item.row.test]["label"].replace("|", "&#124;")
        assert f"**{item.verdict}** {label} (`{item.row.test}`, claimed " in line
        assert f"): {item.row.estimate:.2f} [" in line
    assert len({line.count("|") for line in text.splitlines()}) == 1


def test_the_details_have_a_line_per_decisive_row(table):
    lines = report.details(table).splitlines()[2:]
    decisive = [row for row in table if row.decisive]
    assert len(lines) == len(decisive)
    for line, found in zip(lines, decisive, strict=True):
        numbers = f"{found.estimate:.3f} [{found.low:.3f}, {found.high:.3f}]"
        assert (numbers if found.has_value else "| no value |") in line
        assert line.endswith(f"| {found.said} |")


def test_every_claim_stands_in_one_chapter():
    placed = [claim for members in report.CHAPTERS.values() for claim in members]
    assert sorted(placed) == sorted(rulebook.claims())


def test_the_page_of_verdicts_has_words_threshold_and_estimate(table):
    found = report.settled(table)
    ax = plots.verdicts(found).axes[0]
    written = [text.get_text() for text in ax.texts]
    plain = [re.sub(r"\s+", " ", text) for text in written]
    order = [claim for members in report.CHAPTERS.values() for claim in members]
    titles = [f"{rulebook.claims()[claim]['title']} ({claim})" for claim in order]
    present = {f"({item.claim})" for item in found}
    wanted = [title for title in titles if title[title.rindex("(") :] in present]
    assert [text for text in plain if text in titles] == wanted
    for item in found:
        rule = rulebook.rules()[item.claim, item.row.test]
        sign = ">" if rule["side"] == "above" else "<"
        claimed = f"claimed {sign} {rule['threshold']:g} {rule['unit']}".replace("-", "−", 1)
        assert f"{rule['label']} {claimed}" in plain
    for item in found:
        numbers = (f"{x:.{1 if abs(x) >= 10 else 2}f}" for x in (item.row.low, item.row.high))
        low, high = (x.replace("-0.00", "0.00").replace("-", "−") for x in numbers)
        assert f"[{low}, {high}]" in written
    styles = [names.VERDICTS[item.verdict] for item in found]
    marks = [line for line in ax.lines if len(line.get_xdata()) == 1]
    legend = len(set(styles))
    assert sorted(line.get_color() for line in marks[legend:]) == sorted(s.colour for s in styles)
    assert sorted(line.get_marker() for line in marks[legend:]) == sorted(s.marker for s in styles)
    tiles = sorted(to_hex(patch.get_facecolor()).upper() for patch in ax.patches)
    assert tiles == sorted(style.colour for style in styles)
    claims, scales = ({getattr(item, key) for item in found} for key in ("claim", "scale"))
    absent = len(claims) * len(scales) - len(found)
    assert written.count("–") + written.count("no run yet") == absent


def test_a_page_of_few_verdicts_and_another_scale_is_drawn():
    """A run of one's own has claims, scales and files that the kit has not."""
    rows = [
        row("C5", "pass", 0.1, 0.2, "holds", scale="gpu-aime24", evidence=name)
        for name in ("a.json", "b.json")
    ]
    ax = plots.verdicts(report.settled(rows)).axes[0]
    written = [text.get_text() for text in ax.texts]
    assert "gpu-aime24" in written
    assert written.count("[0.10, 0.20]") == written.count("0.15") == 2
    assert len({(patch.get_y(), patch.get_height()) for patch in ax.patches}) == 2


# --- coverage -------------------------------------------------------------------------------------


def test_every_item_of_the_paper_stands_once():
    assert [item.id for item in coverage.coverage()] == PAPER


def test_every_claim_of_the_paper_is_named_by_an_item():
    named = {claim for item in coverage.coverage() for claim in item.claims}
    assert {claim for claim in rulebook.claims() if claim[0] == "C"} - named <= {"C11t"}


def test_the_coverage_table_links_to_notebooks():
    text = coverage.coverage_table()
    for name in re.findall(r"\]\((\S+\.ipynb)\)", text):
        assert (notebooks.folder() / name).is_file()
    assert text.count("\n") == len(PAPER) + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"how": "glanced at"}, "how='glanced at'"),
        ({"where": ("01a_theory", "No such heading")}, "no heading 'No such heading'"),
        ({"where": ("99_none", "Direction")}, "notebook '99_none'"),
        ({"how": "not covered", "note": "", "claims": ()}, "does not say why"),
        ({"how": "tested", "claims": ()}, "no claim is named"),
        ({"how": "tested", "claims": ("C99",)}, "no claim C99"),
        ({"how": "shown", "claims": ("C1",)}, "see claims.toml"),
    ],
)
def test_a_wrong_item_is_refused_by_name(change, message, monkeypatch):
    good = coverage.coverage()[0]
    bad = replace(good, **change)
    monkeypatch.setattr(coverage, "Item", lambda **fields: bad)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        coverage.coverage()
    assert "Fig. 1" in str(caught.value)


# --- README ---------------------------------------------------------------------------------------

README = (runtime.project_root() / "README.md").read_text(encoding="utf8")


def test_readme_is_read_in_a_minute():
    assert len(README.splitlines()) <= 100
    assert len(findings.FINDINGS) == 3
    bodies = re.findall(r"<!-- generated: \w+ -->(.*?)<!-- end -->", README, re.DOTALL)
    assert [body for body in bodies if not body.strip()] == []
    assert "not measured" not in README


def test_readme_names_no_claim_by_its_code_and_no_scale():
    prose = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", README, flags=re.DOTALL)
    codes = [code for code in rulebook.claims() if re.search(rf"\b{code}\b", prose)]
    assert codes == []
    assert [scale for scale in report.SCALES if re.search(rf"`{scale}`", README)] == []


def test_the_findings_are_what_the_ledger_bears_out(table):
    assert findings.text(table) in README
    for finding in findings.FINDINGS:
        shown = findings.rows(finding, table)
        assert len(shown) >= len(finding.tests)
        for _, row in shown:
            assert row.verdict not in ("stale", "too few")


@pytest.mark.parametrize(
    ("claim", "test", "low", "high", "verdict", "scale", "said"),
    [
        ("C7", "pass", 0.0, 0.3, "inconclusive", "small", "C7 is incomplete at small"),
        ("C11g", "cosine", 0.5, 0.6, "holds", "medium", "C11g is incomplete at medium"),
        ("C1", "trend", -0.6, -0.5, "holds", "gpu", "C1 has a run at gpu"),
    ],
)
def test_a_finding_that_new_evidence_contradicts_is_refused(
    table, claim, test, low, high, verdict, scale, said
):
    new = row(claim, test, low, high, verdict, scale=scale)
    with pytest.raises(ValueError, match=r"the ledger does not bear out .*" + re.escape(said)):
        findings.text([*table, new])


def test_findings_without_evidence_or_disagreement_are_refused(table):
    first, *_ = findings.FINDINGS[0].sentences
    assert first.faults([]) == ["C11 has no evidence"]
    found = row("C11", "exact", 0.0, 0.0, "contradicted")
    assert first.faults([report.Settled("C11", "tiny", "contradicted", found)]) == [
        "C11 is contradicted at tiny"
    ]
    for nothing in ("floor", "too few"):  # decide nothing, and do not count as evidence
        settled = report.Settled("C11", "tiny", nothing, found)
        assert first.faults([settled]) == ["C11 has no evidence"]
    kept = [item for item in report.settled(table) if item.scale == "tiny"]
    on_right, on_wrong, _ = findings.FINDINGS[2].sentences
    assert on_right.faults(kept) == ["the models agree on C1"]
    assert on_wrong.faults(kept) == ["the models agree on C2"]


def test_the_picture_of_the_findings_says_each_verdict_in_words(table):
    figure = plots.three_findings(table)
    whole = {key[:2]: verdict for key, verdict in ledger.summary(table).items()}
    for ax, finding in zip(figure.axes, findings.FINDINGS, strict=True):
        shown = findings.rows(finding, table)
        labels = [label.get_text() for label in ax.get_yticklabels()]
        assert labels == [name for name, _ in shown]
        written = [text.get_text() for text in ax.texts]
        assert finding.title in written
        for _, found in shown:
            number = f"{found.estimate:.2f}".replace("-", "−")
            compared = f"{found.claim}.{found.test}" in finding.compared
            said = number if compared else f"{number}, {found.verdict}"
            claim = whole[found.claim, found.scale]
            if not compared and claim != found.verdict:
                said += f"\n(its claim: {claim})"
            assert said in written


def test_a_picture_of_tests_with_several_thresholds_is_refused():
    mixed = replace(findings.FINDINGS[0], tests={"C4a.tokens_greedy": "", "C1.unstated": ""})
    with pytest.raises(ValueError, match=r"have thresholds \[0.05, 0.1\]: show tests that share"):
        findings.threshold(mixed)


def test_no_number_in_readmes_prose_is_typed():
    """Decimals and percentages stand in generated blocks and code only; what is left are addresses
    and versions.
    """
    text = re.sub(
        r"<!-- generated.*?<!-- end -->|```.*?```|`[^`]*`|\]\([^)]*\)", "", README, flags=re.DOTALL
    )
    names = (
        r"arXiv \d+\.\d+|Python 3\.\d+|0\.2 M parameters|Apache( License |-)2\.0|Qwen2\.5[\w.-]*"
    )
    assert re.findall(r"[^\n]*(?:\d\.\d|\d ?%)[^\n]*", re.sub(names, "", text)) == []


# --- exercises ------------------------------------------------------------------------------------


def rule(low, high, side, threshold):
    if side == "below":
        low, high, threshold = -high, -low, -threshold
    return "holds" if low > threshold else "contradicted" if high < threshold else "inconclusive"


VERDICTS = [
    (None, None, "not attempted"),
    (rule, True, "right"),
    (
        lambda low, high, side, t: rule((low + high) / 2, (low + high) / 2, side, t),
        False,
        "the whole interval",
    ),
    (
        lambda low, high, side, t: (
            "holds" if rule(low, high, side, t) == "holds" else "inconclusive"
        ),
        False,
        "smaller than what",
    ),
    (lambda low, high, side, t: rule(low, high, "above", t), False, "mirrors"),
    (lambda low, high, side, t: "contradicted", False, "where does the whole interval lie"),
]
MISSES = [
    (None, None, "not attempted"),
    (lambda n, level: 1 - level**n, True, "right"),
    (lambda n, level: level**n, False, "none misses"),
    (lambda n, level: n * (1 - level), False, "expected number"),
    (lambda n, level: (1 - level) ** n, False, "all of them miss"),
    (lambda n, level: math.inf, False, "when does none"),
]


@pytest.mark.parametrize(
    ("check", "attempt", "wanted", "said"),
    [("check_verdict", *case) for case in VERDICTS] + [("check_misses", *case) for case in MISSES],
)
def test_exercises_say_what_is_right_and_what_is_wrong(check, attempt, wanted, said, capsys):
    assert getattr(replication_report, check)(attempt) is wanted
    assert said in capsys.readouterr().out
