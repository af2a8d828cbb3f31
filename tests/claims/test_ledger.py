"""Evidence files and the replication table."""

import json
import math

import pytest

from tml_lib import runtime
from tml_lib.claims import ledger, rulebook
from tml_lib.claims.stats import bootstrap_interval
from tml_lib.lessons import notebooks

TESTS = [(claim, test) for claim, item in rulebook.claims().items() for test in item["tests"]]
MANY = [k / 64 for k in range(64)]  # as many questions as C1 asks for at scale small


def write(folder, values, **changes):
    settings = {"command": "make it", "settings": {"seed": 0}, "wall_seconds": 1.23}
    return ledger.write_evidence(folder, "trajectories", "small", values, **settings | changes)


def alter(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- evidence files -------------------------------------------------------------------------------


def test_evidence_comes_back_as_it_was_written(tmp_path):
    path = write(
        tmp_path,
        {"C1.fall": [[1.0, math.nan, 0.123456789]]},
        extra={"curves": [{"L̂": (1.0, math.nan)}]},
    )
    found = ledger.read_evidence(path)
    assert path == tmp_path / "trajectories.small.json"
    assert found["values"] == {"C1.fall": [[1.0, None, 0.12346]]}
    assert found["curves"] == [{"L̂": [1.0, None]}]
    assert (found["study"], found["scale"], found["command"], found["wall_seconds"]) == (
        "trajectories",
        "small",
        "make it",
        1.2,
    )
    assert found["settings"] == {"seed": 0}
    assert found["protocol"] == "trajectories/1"
    assert found["versions"]["torch"] == runtime.versions()["torch"]


def test_a_test_without_a_rule_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"'C1\.made_up' has no rule"):
        write(tmp_path, {"C1.fall": [[1.0]], "C1.made_up": [[1.0]]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "not json", b"\xff\xfe"], ids=repr)
def test_evidence_that_is_no_json_is_refused_by_path(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"{path} is damaged"):
        ledger.read_evidence(path)


@pytest.mark.parametrize("field", sorted(ledger._FIELDS))
def test_evidence_that_lacks_a_field_is_refused_by_path_and_field(tmp_path, field):
    path = write(tmp_path, {"C1.fall": [[1.0]]})
    held = json.loads(path.read_text())
    del held[field]
    path.write_text(json.dumps(held))
    with pytest.raises(ValueError, match=rf"{path} is damaged \(it lacks {field}\): make it again"):
        ledger.read_evidence(path)


def test_evidence_that_is_no_object_is_refused_by_path(tmp_path):
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ValueError, match=rf"{tmp_path}/list\.json is damaged \(it holds a list"):
        ledger.read_evidence(tmp_path / "list.json")


def test_evidence_of_another_schema_is_refused_by_path(tmp_path):
    path = write(tmp_path, {"C1.fall": [[1.0]]})
    alter(path, schema=99)
    with pytest.raises(ValueError, match=f"{path} has schema 99"):
        ledger.read_evidence(path)


@pytest.mark.parametrize(
    "values", [[1.0], 1.0, [], "ab", [["x"]], [[[1.0]]], [1.0, [2.0]], {"a": [1.0]}], ids=repr
)
def test_values_that_are_no_lists_of_lists_of_numbers_are_refused_by_path(tmp_path, values):
    path = write(tmp_path, {"C1.fall": [[1.0]]})
    alter(path, values={"C1.fall": values})
    with pytest.raises(
        ValueError,
        match=rf"{path} is damaged \(values\['C1\.fall'\] is no list of lists of numbers",
    ):
        ledger.read_evidence(path)


def test_values_that_are_no_object_are_refused_by_path(tmp_path):
    path = write(tmp_path, {"C1.fall": [[1.0]]})
    alter(path, values=[[1.0]])
    with pytest.raises(ValueError, match=f"{path}"):
        ledger.read_evidence(path)


def test_a_missing_evidence_file_is_refused_by_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path}/none\.json does not exist"):
        ledger.read_evidence(tmp_path / "none.json")


# --- the table ------------------------------------------------------------------------------------


def only_row(folder, values, /, **changes):
    path = write(folder, values)
    alter(path, **changes)
    (row,) = ledger.rows([folder])
    return row


def test_a_row_is_the_bootstrap_over_questions_where_there_is_one_seed(tmp_path):
    row = only_row(tmp_path, {"C1.fall": [[*MANY, math.nan]]})
    wanted = bootstrap_interval([round(x, 5) for x in MANY], seed=ledger.INTERVAL_SEED)
    assert (row.estimate, row.low, row.high) == (wanted.estimate, wanted.low, wanted.high)
    assert (row.n_questions, row.n_seeds, row.verdict) == (64, 1, "holds")
    assert (row.claim, row.test, row.scale, row.decisive) == ("C1", "fall", "small", False)


def test_a_row_is_the_bootstrap_over_seed_means_where_there_are_several(tmp_path):
    seeds = [[x + shift for x in MANY] for shift in (0.0, 1.0, 5.0)]
    row = only_row(tmp_path, {"C1.fall": [*seeds[:2], [*seeds[2], 5.0]]})
    means = [sum(round(x, 5) for x in seed) / len(seed) for seed in (*seeds[:2], [*seeds[2], 5.0])]
    wanted = bootstrap_interval(means, seed=ledger.INTERVAL_SEED)
    assert (row.estimate, row.low, row.high) == pytest.approx(
        (wanted.estimate, wanted.low, wanted.high)
    )
    assert (row.n_seeds, row.n_questions) == (3, 64)  # the smallest number of questions


@pytest.mark.parametrize(("kept", "wanted"), [(63, "too few"), (64, "holds")])
def test_below_the_asked_number_of_questions_there_is_no_verdict(tmp_path, kept, wanted):
    assert only_row(tmp_path, {"C1.fall": [[*MANY[:kept], *[math.nan] * 10]]}).verdict == wanted


def test_below_the_asked_number_of_seeds_there_is_no_verdict(tmp_path, monkeypatch):
    asked = rulebook.claims()
    asked["C1"]["scales"]["small"]["seeds"] = 2
    monkeypatch.setattr(rulebook, "claims", lambda: asked)
    assert only_row(tmp_path, {"C1.fall": [MANY]}).verdict == "too few"


@pytest.mark.parametrize("values", [[[math.nan] * 70], [[0.5]]], ids=["none", "one"])
def test_too_few_values_for_an_interval_give_nan_bounds(tmp_path, values):
    row = only_row(tmp_path, {"C1.fall": values})
    assert row.verdict == "too few"
    assert math.isnan(row.low)
    assert math.isnan(row.high)


@pytest.mark.parametrize("field", ["protocol", "rules_hash"])
def test_evidence_of_another_protocol_or_other_rules_is_stale(tmp_path, field):
    assert only_row(tmp_path, {"C1.fall": [MANY]}, **{field: "0" * 16}).verdict == "stale"


def test_evidence_of_a_study_that_is_gone_is_stale(tmp_path):
    assert (
        only_row(tmp_path, {"C1.fall": [MANY]}, study="gone", protocol="gone/1").verdict == "stale"
    )


def test_evidence_is_stale_once_its_study_has_a_new_version(tmp_path, monkeypatch):
    raised = {"trajectories": {"version": 2, "tolerance": 0.1}}
    assert only_row(tmp_path, {"C1.fall": [MANY]}).verdict != "stale"
    monkeypatch.setattr(rulebook, "protocols", lambda: raised)
    (row,) = ledger.rows([tmp_path])
    assert row.verdict == "stale"


def test_a_study_without_a_protocol_writes_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"'unknown' has no protocol.*protocols\.toml"):
        ledger.write_evidence(
            tmp_path, "unknown", "small", {}, command="c", settings={}, wall_seconds=0
        )
    assert list(tmp_path.iterdir()) == []


def test_evidence_of_a_test_that_is_gone_is_stale(tmp_path):
    gone = {"C1.fall": [MANY], "C1.gone": [MANY]}
    assert only_row(tmp_path, {"C1.fall": [MANY]}, values=gone).verdict == "stale"


@pytest.fixture
def table(tmp_path):
    """Two files: a claim whose decisive tests hold, contradict and leave open; and one with too few
    questions.
    """
    low = [-x for x in MANY]
    write(
        tmp_path,
        {"C1.copying": [low], "C1.trend": [low], "C1.unstated": [MANY], "C1.content": [low]},
    )
    ledger.write_evidence(
        tmp_path / "b",
        "text",
        "small",
        {"C2.sampled_trend": [MANY], "C2.corrupted_trend": [MANY[:5]]},
        command="c",
        settings={},
        wall_seconds=0,
    )
    return ledger.rows([tmp_path / "b", tmp_path])


def test_rows_stand_in_the_order_of_the_rules(table):
    names = [f"{claim}.{test['name']}" for claim, test in TESTS]
    found = [f"{row.claim}.{row.test}" for row in table]
    assert found == sorted(found, key=names.index)
    assert len(found) == 6


def test_the_verdicts_of_the_table(table):
    assert {f"{row.claim}.{row.test}": row.verdict for row in table} == {
        "C1.trend": "holds",
        "C1.unstated": "holds",
        "C1.content": "contradicted",
        "C1.copying": "contradicted",
        "C2.sampled_trend": "holds",
        "C2.corrupted_trend": "too few",
    }


def test_a_claim_is_contradicted_where_one_decisive_test_is_and_blocked_where_one_lacks_numbers(
    table,
):
    found = ledger.summary(table)
    assert {(claim, scale): verdict for (claim, scale, _), verdict in found.items()} == {
        ("C1", "small"): "contradicted",
        ("C2", "small"): "too few",
    }


@pytest.mark.parametrize(
    ("verdicts", "wanted"),
    [
        (["holds", "holds", "holds"], "holds"),
        (["holds", "inconclusive", "holds"], "inconclusive"),
        (["holds", "inconclusive", "contradicted"], "contradicted"),
        (["stale", "contradicted", "holds"], "stale"),
    ],
)
def test_summary_of_decisive_verdicts(verdicts, wanted):
    decisive = [test["name"] for claim, test in TESTS if claim == "C1" and test["decisive"]]
    fixed = ("e", "u", 0.0, 0.0, 0.0, 1, 64, "c")
    lines = [
        ledger.Row("C1", n, "small", *fixed, True, v, "f")
        for n, v in zip(decisive, verdicts, strict=True)
    ]
    explaining = ledger.Row("C1", "fall", "small", *fixed, False, "contradicted", "f")
    assert ledger.summary([*lines, explaining]) == {("C1", "small", "f"): wanted}


def test_a_claim_does_not_hold_on_some_of_its_decisive_tests(tmp_path):
    only = only_row(tmp_path, {"C1.unstated": [MANY]})
    assert only.verdict == "holds"
    assert "holds" not in ledger.summary([only]).values()


FIELDS = {
    "claim",
    "scale",
    "estimand",
    "estimate",
    "low",
    "high",
    "n_seeds",
    "n_questions",
    "control",
    "verdict",
    "evidence",
}


def test_json_has_the_promised_fields_and_null_for_what_does_not_exist(table, tmp_path):
    found = json.loads(ledger.to_json(table), parse_constant=pytest.fail)
    assert len(found) == len(table)
    assert all(set(row) >= FIELDS for row in found)
    assert found[0]["evidence"] == (tmp_path / "trajectories.small.json").resolve().as_posix()
    empty = only_row(tmp_path / "new", {"C1.fall": [[math.nan]]})
    assert json.loads(ledger.to_json([empty]), parse_constant=pytest.fail)[0]["estimate"] is None


def test_every_row_is_rendered_with_its_numbers(table):
    lines = ledger.to_text(table).split("\n")
    for row in table:
        test = rulebook.rules()[row.claim, row.test]
        said = f"{test['label']} ({row.test}): claimed {rulebook.wanted(test)}"
        (k,) = [k for k, line in enumerate(lines) if line.endswith(f" {said}")]
        assert ("*" in lines[k]) == row.decisive
        line = lines[k + 1]
        assert f"{row.estimate:.3f}" in line
        assert f"[{row.low:.3f}, {row.high:.3f}]" in line
        assert row.verdict in line


def test_evidence_of_the_project_is_named_from_its_folder():
    folder = runtime.project_root() / "notebooks" / "evidence"
    assert ledger._named(folder / "a.small.json") == "notebooks/evidence/a.small.json"


def test_one_template_with_values_has_an_interval_over_questions(tmp_path):
    """Of the questions that a test applies to, all may be of one template."""
    path = write(tmp_path, {"C1.fall": [[0.1, 0.3, None]]})
    alter(path, templates=["a", "a", "b"])
    (row,) = ledger.rows_of(path)
    assert (row.estimate, row.n_questions) == (pytest.approx(0.2), 2)
    assert row.low < 0.2 < row.high


def test_only_the_claims_that_are_named_have_rows():
    stored = runtime.project_root() / "notebooks" / "evidence"
    every = [row for row in ledger.rows([stored]) if row.claim in ("C7", "C1")]
    assert ledger.rows([stored], "C7", "C1") == every
    with pytest.raises(ValueError, match="unknown claim 'C99': choose among C1"):
        ledger.rows([stored], "C99")


def test_intervals_resample_whole_templates_where_the_evidence_names_them(tmp_path):
    values = [float(k // 16) for k in range(64)]
    path = write(tmp_path, {"C1.fall": [values]})
    single = ledger.rows([tmp_path])[0]
    alter(path, templates=[str(k // 16) for k in range(64)])
    whole = ledger.rows([tmp_path])[0]
    assert whole.estimate == single.estimate
    assert whole.high - whole.low > 2 * (single.high - single.low)
    assert whole.n_questions == 64


def test_the_share_of_cut_samples_stands_beside_the_estimate(tmp_path):
    kept = json.loads((notebooks.stored_evidence() / "paths.small.json").read_text())
    for counts, said in (([[1, 2], [0, 2]], "104, 25% cut"), ([[0, 0]], "104"), (None, "104")):
        held = kept if counts is None else kept | {"cut": counts}
        path = tmp_path / "paths.small.json"
        path.write_text(json.dumps(held))
        (row, *_) = ledger.rows_of(path)
        assert row.count == said
        assert f"n = {said} " in ledger.to_text([row])
