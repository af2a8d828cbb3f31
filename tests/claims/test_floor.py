"""The floor rule: accuracies near 0 are compared, and decide nothing."""

import json

import numpy as np
import pytest

from tml_lib.claims import ledger, report, rulebook
from tml_lib.lessons import notebooks
from tml_lib.records import Arms
from tml_lib.studies import published, replays

STORED = sorted(notebooks.stored_evidence().glob("*.json"))
# shares that are no accuracies: of a fall, of a trajectory, of words, of boxes, of a norm
OTHER_SHARES = {
    "C1": {"area", "share_unstated", "changepoint"},
    "C3": {"sooner"},
    "C5s": {"zero_boxed"},
    "C10": {"saved"},
    "C11g": {"share"},
    "C12": {"explained"},
    "G1": {"iterate", "response", "reciter_response", "longer", "longest"}
    | {"noisy", "conditioned", "far_start"},
    "G3": {"share"},
}
N = 200  # questions, as C3 asks for at scale small


def right(share):
    return (np.arange(N) < share * N).astype(float)


def row_of(first, second, scale="small", test="optimum", **more):
    values = {f"C3.{test}": [Arms(first, second)]}
    (row,) = ledger.rows_of_values(values, study="text", scale=scale, **more)
    return row


# --- what compares accuracies ---------------------------------------------------------------------


def test_every_share_either_compares_accuracies_or_is_known_to_be_another():
    others: dict[str, set] = {}
    for (claim, name), rule in rulebook.rules().items():
        if rule["unit"] == "share" and not rulebook.compares_accuracies(f"{claim}.{name}"):
            others.setdefault(claim, set()).add(name)
    assert others == OTHER_SHARES
    compared = [t for t in rulebook.rules() if rulebook.compares_accuracies(".".join(t))]
    assert {rulebook.rules()[test]["unit"] for test in compared} == {"share"}


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_stored_evidence_has_both_arms_of_every_comparison_of_accuracies(path):
    held = ledger.read_evidence(path)
    wanted = {test for test in held["values"] if rulebook.compares_accuracies(test)}
    assert set(held.get("arms", {})) == wanted
    for row in ledger.rows_of(path):
        if f"{row.claim}.{row.test}" in wanted:
            (first, *_), (second, *_) = held["arms"][f"{row.claim}.{row.test}"]
            assert first - second == pytest.approx(row.estimate, abs=3e-5)
            assert (row.better, row.verdict == "floor") == (max(first, second), bool(row.before))


@pytest.mark.parametrize("name", ["rl.tiny", "sizes.tiny", "support.tiny", "chain.small"])
def test_stored_arms_are_those_of_the_records(name):
    study = {s.name: s for s in replays.STUDIES}[name.partition(".")[0]]
    held = ledger.read_evidence(notebooks.stored_evidence() / f"{name}.json")
    values = study.values(held["records"], held["settings"])
    more = {"nested": True} if held.get("nested") else {}
    arms = {test: seeds for test, seeds in values.items() if isinstance(seeds[0], Arms)}
    assert set(arms) == set(held["arms"])
    for row in ledger.rows_of_values(arms, study=held["study"], scale=held["scale"], **more):
        stored = held["arms"][f"{row.claim}.{row.test}"]
        better = max(stored, key=lambda arm: (arm[0], arm[1]))
        assert (row.better, row.better_low) == pytest.approx(better[:2], abs=2e-5)


# --- verdicts -------------------------------------------------------------------------------------


def test_a_comparison_at_the_floor_decides_nothing_and_says_what_it_would_have_said():
    row = row_of(right(0.01), right(0.0))
    assert (row.verdict, row.before, row.better) == ("floor", "contradicted", 0.01)
    assert row.said.startswith(
        "floor (without this rule contradicted; better arm 0.010, low end 0.0"
    )
    assert row.said in ledger.to_text([row])
    row = row_of(right(0.5), right(0.2))
    assert (row.verdict, row.before, row.said) == ("holds", "", "holds")


@pytest.mark.parametrize("swap", [False, True])
def test_the_better_arm_counts_whichever_it_is(swap):
    arms = right(0.5), right(0.0)
    row = row_of(*(arms[::-1] if swap else arms))
    assert (row.better, row.verdict) == (0.5, "contradicted" if swap else "holds")


@pytest.mark.parametrize(
    ("low", "wanted"),
    [(0.1, "contradicted"), (0.09999, "floor"), (0.10001, "contradicted"), (None, "floor")],
)
def test_the_low_end_is_the_edge_and_belongs_to_what_is_judged(low, wanted, tmp_path):
    values = {"C3.optimum": [Arms(right(0.5), right(0.5))]}
    path = ledger.write_evidence(
        tmp_path, "text", "small", values, command="c", settings={}, wall_seconds=0
    )
    held = json.loads(path.read_text())
    held["arms"]["C3.optimum"] = [[0.15, low, 0.2], [0.12, 0.11, 0.13]]
    path.write_text(json.dumps(held))
    (row,) = ledger.rows_of(path)
    assert (row.verdict, row.better, row.better_low) == (wanted, 0.15, low)


def test_too_few_and_stale_come_before_floor(tmp_path):
    assert row_of(right(0.0)[:150], right(0.0)[:150]).verdict == "too few"
    values = {"C3.optimum": [Arms(right(0.0), right(0.0))]}
    made = {"command": "c", "settings": {}, "wall_seconds": 0}
    path = ledger.write_evidence(tmp_path, "text", "small", values, **made)
    held = json.loads(path.read_text())
    path.write_text(json.dumps(held | {"protocol": "text/0"}))
    assert ledger.rows_of(path)[0].verdict == "stale"
    del held["arms"]
    path.write_text(json.dumps(held))
    assert ledger.rows_of(path)[0].verdict == "stale", "evidence without arms is of before the rule"


def test_a_test_of_something_else_has_no_floor():
    values = {"C3.loss": [right(0.0) + 0.5], "C3.sooner": [right(0.0)]}
    rows = ledger.rows_of_values(values, study="text", scale="small")
    assert [row.verdict for row in rows] == ["holds", "contradicted"]
    assert {row.better for row in rows} == {None}


@pytest.mark.parametrize(
    ("verdicts", "wanted"),
    [
        (["floor", "floor", "floor"], "floor"),
        (["floor", "holds", "holds"], "floor"),
        (["floor", "contradicted", "inconclusive"], "floor"),
        (["floor", "too few", "holds"], "too few"),
        (["floor", "stale", "holds"], "stale"),
        (["floor", "holds"], "incomplete"),
    ],
)
def test_one_decisive_test_at_the_floor_leaves_the_claim_there(verdicts, wanted):
    names = [test["name"] for test in rulebook.claims()["C3"]["tests"] if test["decisive"]]
    fixed = ("e", "u", 0.0, 0.0, 0.0, 1, N, "c")
    lines = [
        ledger.Row("C3", name, "small", *fixed, True, verdict, "f")
        for name, verdict in zip(names, verdicts, strict=False)
    ]
    assert ledger.summary(lines) == {("C3", "small", "f"): wanted}


def test_a_file_of_explaining_tests_gives_no_verdict():
    fixed = ("e", "u", 0.0, 0.0, 0.0, 1, N, "c")
    line = ledger.Row("C4t", "tenth", "medium", *fixed, False, "contradicted", "f")
    assert ledger.summary([line]) == {}


# --- arms -----------------------------------------------------------------------------------------


def test_arms_are_an_array_of_differences_and_come_back_from_json():
    arms = Arms([1.0, 0.5, 1.0], [0.0, 0.5, np.nan])
    np.testing.assert_array_equal(np.asarray(arms), [1.0, 0.0, np.nan])
    again = Arms(**arms.tolist())
    np.testing.assert_array_equal(again.paired(), [[1, 0.5, np.nan], [0, 0.5, np.nan]])


def test_an_arm_counts_the_questions_of_the_pair_only(tmp_path):
    missing = np.where(np.arange(2 * N) < N, np.nan, 0.0)
    values = {"C3.optimum": [Arms(np.ones(2 * N), missing)]}
    path = ledger.write_evidence(
        tmp_path, "text", "small", values, command="c", settings={}, wall_seconds=0
    )
    held = ledger.read_evidence(path)
    assert held["arms"] == {"C3.optimum": [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]}
    assert held["values"]["C3.optimum"] == [[None] * N + [1.0] * N]


@pytest.mark.parametrize(
    "arms", [[[0.5, 0.4, 0.6]], [[0.5, 0.4], [0.5, 0.4]], [["a", 0, 1], [0, 0, 0]], 0.5, None]
)
def test_arms_of_another_form_are_refused_by_path(arms, tmp_path):
    values = {"C3.optimum": [Arms(right(0.5), right(0.5))]}
    path = ledger.write_evidence(
        tmp_path, "text", "small", values, command="c", settings={}, wall_seconds=0
    )
    held = json.loads(path.read_text())
    path.write_text(json.dumps(held | {"arms": {"C3.optimum": arms}}))
    with pytest.raises(ValueError, match=f"{path} is damaged .*estimate, low and high of two arms"):
        ledger.read_evidence(path)


def test_the_interval_of_an_arm_is_made_as_the_tests_own():
    """Nested, by templates, over questions: an arm beside one that is 0 is its own difference."""
    zero, some = np.zeros(N), right(0.3)
    labels = [str(k // 7) for k in range(N)]
    for more in ({}, {"templates": labels}):
        row = row_of(some, zero, **more)
        assert (row.better, row.better_low) == pytest.approx((row.estimate, row.low), abs=1e-5)
    seeds = {"C3.optimum": [Arms(np.roll(some, k), zero) for k in range(5)]}
    (row,) = ledger.rows_of_values(seeds, study="text", scale="mine", nested=True)
    assert (row.better, row.better_low) == pytest.approx((row.estimate, row.low), abs=1e-5)


# --- what the report says -------------------------------------------------------------------------


def test_the_report_lists_every_verdict_that_the_rule_changed():
    table = ledger.rows([notebooks.stored_evidence()])
    lines = report.floored(table).splitlines()[2:]
    assert sum("**" not in line for line in lines) == sum(row.verdict == "floor" for row in table)
    claims = [line for line in lines if "**" in line]
    now = ledger.summary(table)
    assert {line.split("(")[-1].split(")")[0] for line in claims} == {
        claim for (claim, _, _), verdict in now.items() if verdict == "floor"
    }
    assert all("| floor |" in line for line in lines)


def test_published_accuracies_are_compared_too():
    found = published.estimands(published.models())
    assert {type(arms) for arms in found.values()} == {Arms}
