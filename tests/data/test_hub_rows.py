"""Rows as questions and questions as rows: every schema of the paper's sets, and what is refused by
row.
"""

import json

import datasets
import pytest

from tml_lib.data import gsm, hub, hub_rows
from tml_lib.lm import answers, thinking

READ = [name for name, source in hub.SETS.items() if source.read]
WITH_GOLD = ["aime24", "math500_5"]
ROLLOUTS = ["orz_14b", "orz_72b"]
pytestmark = pytest.mark.usefixtures("own_cache")


def rows_of(folder):
    return list(datasets.load_from_disk(str(folder)))


def write(rows, path):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# --- every schema ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READ)
def test_a_fixture_has_the_columns_that_are_read_and_loads_from_disk(saved, made, name):
    assert set(hub.SETS[name].columns) <= set(rows_of(saved[name])[0])
    found = hub.questions(name, source=str(saved[name]))
    assert len(found) == 8
    assert all(q.id.startswith(f"{name}/") and q.template == q.id for q in found)
    assert len({q.id for q in found}) == 8
    assert all(own.text in q.text for own, q in zip(made, found, strict=True))


@pytest.mark.parametrize("name", [name for name in READ if name != "gpqa_diamond"])
def test_answers_are_the_questions_own_and_graded_right(saved, made, name):
    found = hub.questions(name, source=str(saved[name]))
    assert [q.answer for q in found] == [q.answer for q in made]
    assert answers.grade(f"so \\boxed{{{found[0].answer}}}", found[0].answer)


@pytest.mark.parametrize("name", WITH_GOLD)
def test_a_set_s_own_solution_is_gold(saved, made, name):
    for question, own in zip(hub.questions(name, source=str(saved[name])), made, strict=True):
        assert gsm.gold(question) == gsm.gold(own)


def test_only_level_5_of_math500_is_read(saved):
    rows = rows_of(saved["math500_5"])
    assert sorted({row["level"] for row in rows}) == [1, 2, 3, 4, 5]
    found = hub.questions("math500_5", source=str(saved["math500_5"]))
    assert [q.id for q in found] == [
        f"math500_5/{k}" for k, row in enumerate(rows) if row["level"] == 5
    ][:8]


@pytest.mark.parametrize("levels", [("Level 5", "Level 4"), ("5", "15"), (5, 4)])
def test_a_level_may_be_a_number_or_written_in_words(tmp_path, levels):
    rows = [{"problem": "p", "solution": "s", "answer": "1", "level": level} for level in levels]
    assert [
        q.id for q in hub.questions("math500_5", source=write(rows, tmp_path / "math.jsonl"))
    ] == ["math500_5/0"]


@pytest.mark.parametrize("name", ROLLOUTS)
def test_labels_say_which_samples_are_right(saved, made, name):
    for question, own in zip(hub.questions(name, source=str(saved[name])), made, strict=True):
        right, wrong = question.trajectories
        assert (right.kind, right.correct, right.answer) == ("sampled", True, own.answer)
        assert (wrong.kind, wrong.correct, wrong.answer) == ("sampled", False, None)
        assert gsm.gold(own).text in right.text
        assert not set(thinking.THINK) & set(right.text.split())


def test_marked_thinking_is_the_trajectory_and_unmarked_text_all_of_it(saved):
    long, short = (
        hub.questions(name, 1, source=str(saved[name]))[0].trajectories[0].text for name in ROLLOUTS
    )
    assert "boxed" not in long
    assert short.startswith(long)
    assert short.endswith("}.")


@pytest.mark.parametrize("labels", [[1.0, 0.0], [True, False]])
def test_labels_may_be_numbers_or_truth_values(tmp_path, labels):
    row = {"problem": "p", "answer": "1", "generations": ["a", "b"], "labels": labels}
    (question,) = hub.questions("orz_72b", source=write([row], tmp_path / "orz.jsonl"))
    assert [(t.text, t.correct) for t in question.trajectories] == [("a", True), ("b", False)]


def test_a_generation_without_thinking_is_no_trajectory(tmp_path):
    row = {
        "problem": "p",
        "answer": "1",
        "generations": ["<think>\n\n</think>\n\n1", "so 1"],
        "labels": [1, 1],
    }
    (question,) = hub.questions("orz_14b", source=write([row], tmp_path / "orz.jsonl"))
    assert [t.text for t in question.trajectories] == ["so 1"]


@pytest.mark.parametrize(
    ("labels", "said"), [([1], r"2 generations and the labels \[1\]"), ([1, 2], r"labels \[1, 2\]")]
)
def test_labels_that_do_not_fit_are_refused_by_row(tmp_path, labels, said):
    row = {"problem": "p", "answer": "1", "generations": ["a", "b"], "labels": labels}
    with pytest.raises(ValueError, match=f"orz_14b/0 has .*{said}.*leave this row out"):
        hub.questions("orz_14b", source=write([row], tmp_path / "orz.jsonl"))


@pytest.mark.parametrize(
    ("written", "answer"),
    [("$\\frac{1}{2}$", "\\frac{1}{2}"), ("$$7$$", "7"), (" 7 ", "7"), ("$7", "$7")],
)
def test_an_answer_loses_the_dollars_around_it(tmp_path, written, answer):
    row = {"question": "q", "answer": written}
    (question,) = hub.questions("livemathbench_hard", source=write([row], tmp_path / "live.jsonl"))
    assert question.answer == answer


@pytest.mark.parametrize("answer", [None, "", ["1", "2"]])
def test_an_answer_that_is_no_text_is_refused_by_row(tmp_path, answer):
    rows = [{"question": "q", "answer": answer}]
    with pytest.raises(
        ValueError, match=r"livemathbench_hard/0 has .* in column 'answer', which is no text"
    ):
        hub.questions("livemathbench_hard", source=write(rows, tmp_path / "live.jsonl"))


def test_numbers_of_a_csv_file_are_written_as_in_it(tmp_path):
    file = tmp_path / "own.csv"
    file.write_text("problem,solution,answer\nA?,It is 3.,3\nB?,It is 2.5.,2.5\n")
    found = hub.questions("aime24", source=str(file))
    assert [q.answer for q in found] == ["3", "2.5"]
    assert [q.trajectories[0].answer for q in found] == ["3", "2.5"]


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("generations", None, "None in column 'generations', which is no list"),
        ("labels", None, "None in column 'labels', which is no list"),
        ("generations", ["a", None], "None in a list of column 'generations'"),
        ("labels", [1, None], "None in a list of column 'labels'"),
        ("labels", ["1", "0"], "'1' in a list of column 'labels'"),
    ],
)
def test_null_generations_and_labels_are_refused_by_file_and_row(tmp_path, column, value, said):
    row = {"problem": "?", "answer": "7", "generations": ["a", "b"], "labels": [1, 0]}
    file = tmp_path / "own.jsonl"
    source = write([row | {column: value}], file)
    with pytest.raises(ValueError, match=rf"row 0 of .*own\.jsonl: orz_14b/0 has {said}"):
        hub.questions("orz_14b", source=source)


def test_a_level_may_be_a_decimal_and_an_unknown_one_is_refused_by_row(tmp_path):
    row = {"problem": "?", "solution": "It is 7.", "answer": "7"}
    source = write([row | {"level": level} for level in (5.0, 4.0)], tmp_path / "own.jsonl")
    assert [q.id for q in hub.questions("math500_5", source=source)] == ["math500_5/0"]
    source = write([row | {"level": level} for level in (5, None)], tmp_path / "bad.jsonl")
    with pytest.raises(ValueError, match=r"row 1 of .*bad\.jsonl: .* in column 'level'"):
        hub.questions("math500_5", source=source)


@pytest.mark.parametrize("level", [-1, 5.5, "x", "", "Level Five", None, True, [5], 1e999])
def test_a_level_that_is_none_is_refused(tmp_path, level):
    row = {"problem": "p", "solution": "s", "answer": "1", "level": level}
    with pytest.raises(ValueError, match=r"row 0 of .*own\.jsonl: .* is no level, such as 5"):
        hub.questions("math500_5", source=write([row], tmp_path / "own.jsonl"))


# --- multiple choice ------------------------------------------------------------------------------


def test_gpqa_s_answer_is_the_letter_of_the_right_option(saved, made):
    found = hub.questions("gpqa_diamond", source=str(saved["gpqa_diamond"]))
    for question, own in zip(found, made, strict=True):
        options = dict(
            line.split(") ", 1)
            for line in question.text.splitlines()
            if line[:2] in ("A)", "B)", "C)", "D)")
        )
        assert sorted(options) == list(hub_rows.LETTERS)
        assert options[question.answer] == own.answer
        assert len(set(options.values())) == 4
    assert len({q.answer for q in found}) > 1


def test_gpqa_s_options_are_shuffled_by_the_seed_alone(saved):
    source = str(saved["gpqa_diamond"])
    first, again, other = (
        hub.questions("gpqa_diamond", source=source, seed=seed) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other
    assert all(q in first for q in hub.questions("gpqa_diamond", 5, source=source))


@pytest.mark.parametrize("letter", hub_rows.LETTERS)
def test_letters_are_graded(letter):
    others = hub_rows.LETTERS.replace(letter, "")
    assert answers.grade(f"so \\boxed{{{letter}}}", letter)
    assert answers.grade(f"so \\boxed{{\\text{{({letter})}}}}", letter)
    assert not any(answers.grade(f"so \\boxed{{{other}}}", letter) for other in others)
