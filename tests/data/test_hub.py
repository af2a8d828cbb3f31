"""The paper's question sets: from disk and from the hub, what is asked for, and what is refused by
name.
"""

import json
import os
import random

import datasets
import pytest

from tml_lib.data import gsm, hub
from tml_lib.lm.answers import chat_prompt, encode
from tml_lib.studies import own_trajectories, trajectories

READ = [name for name, source in hub.SETS.items() if source.read]
ROLLOUTS = ["orz_14b", "orz_72b"]
pytestmark = pytest.mark.usefixtures("own_cache")


def rows_of(folder):
    return list(datasets.load_from_disk(str(folder)))


def write(rows, path):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# --- which questions ------------------------------------------------------------------------------


def test_n_questions_are_random_fixed_and_nested(saved):
    source = str(saved["math500_5"])
    three, five = (hub.questions("math500_5", n, seed=1, source=source) for n in (3, 5))
    whole = hub.questions("math500_5", source=source)
    assert three == five[:3]
    assert all(q in whole for q in five)
    assert five != whole[:5]
    assert {q.id for q in five} != {
        q.id for q in hub.questions("math500_5", 5, seed=2, source=source)
    }


def test_the_caller_s_random_numbers_are_left_alone(saved):
    random.seed(5)
    state = random.getstate()
    hub.questions("gpqa_diamond", 3, source=str(saved["gpqa_diamond"]))
    assert random.getstate() == state


@pytest.mark.parametrize(
    ("n", "said"),
    [(0, "n=0 questions make no set"), (9, "has 8 questions for aime24, 9 are wanted")],
)
def test_too_few_or_too_many_are_refused(saved, n, said):
    with pytest.raises(ValueError, match=said):
        hub.questions("aime24", n, source=str(saved["aime24"]))


def test_a_set_without_a_question_is_refused(tmp_path):
    row = {"problem": "p", "solution": "s", "answer": "1", "level": 4}
    with pytest.raises(ValueError, match="has 0 questions for math500_5, some are wanted"):
        hub.questions("math500_5", source=write([row], tmp_path / "math.jsonl"))


# --- where from -----------------------------------------------------------------------------------


def test_an_empty_cell_of_a_csv_file_is_refused_by_file_and_row(tmp_path):
    file = tmp_path / "own.csv"
    file.write_text("problem,solution,answer\nA?,It is 3.,3\nB?,It is 2.5.,\n")
    with pytest.raises(ValueError, match=r"row 1 of .*own\.csv: aime24/1 has .* 'answer'"):
        hub.questions("aime24", source=str(file))


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_file_reads_as_the_folder_does(saved, tmp_path, kind, stream):
    data = datasets.load_from_disk(str(saved["gpqa_diamond"]))
    file = tmp_path / f"gpqa.{kind}"
    {"jsonl": data.to_json, "parquet": data.to_parquet, "csv": data.to_csv}[kind](str(file))
    wanted = hub.questions("gpqa_diamond", source=str(saved["gpqa_diamond"]))
    assert hub.questions("gpqa_diamond", source=str(file), stream=stream) == wanted


def test_streaming_takes_the_first_questions(saved, tmp_path):
    file = write(rows_of(saved["math500_5"]), tmp_path / "math.jsonl")
    found = hub.questions("math500_5", 3, source=file, stream=True, seed=4)
    assert found == hub.questions("math500_5", source=str(saved["math500_5"]))[:3]


def test_parts_of_a_saved_set_are_chosen_by_split(saved, tmp_path):
    data = datasets.load_from_disk(str(saved["aime24"]))
    datasets.DatasetDict(train=data, few=data.select(range(2))).save_to_disk(str(tmp_path / "both"))
    assert len(hub.questions("aime24", source=str(tmp_path / "both"))) == 8
    assert len(hub.questions("aime24", source=str(tmp_path / "both"), split="few")) == 2
    with pytest.raises(ValueError, match=r"split 'many' \(KeyError.*check the path and the split"):
        hub.questions("aime24", source=str(tmp_path / "both"), split="many")
    with pytest.raises(ValueError, match=r"has no parts, so that split='few' names none"):
        hub.questions("aime24", source=str(saved["aime24"]), split="few")


def test_a_folder_of_files_is_read_by_its_parts(saved, tmp_path):
    data = datasets.load_from_disk(str(saved["aime24"]))
    data.to_parquet(str(tmp_path / "set" / "train-00000-of-00001.parquet"))
    assert hub.questions("aime24", source=str(tmp_path / "set")) == hub.questions(
        "aime24", source=str(saved["aime24"])
    )


@pytest.mark.parametrize("name", [name for name in READ if hub.SETS[name].hub])
def test_the_hub_is_asked_for_data_only(monkeypatch, saved, name):
    asked = []

    def load_dataset(*place, **settings):
        asked.append((place, settings))
        return datasets.load_from_disk(str(saved[name]))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = hub.SETS[name]
    assert hub.questions(name) == hub.questions(name, source=str(saved[name]))
    assert asked == [
        ((source.hub, source.config or None), {"split": source.split, "streaming": False})
    ]
    hub.questions(name, 2, source="someone/copy", split="other", stream=True)
    assert asked[1] == (("someone/copy", None), {"split": "other", "streaming": True})


def test_a_hub_that_does_not_answer_is_an_error_with_the_next_step(monkeypatch):
    def load_dataset(*place, **settings):
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        ValueError,
        match=r"gpqa_diamond cannot be read.*ConnectionError: no route.*hub login.*GPQA is gated",
    ):
        hub.questions("gpqa_diamond")


def test_a_missing_path_is_refused_before_the_hub_is_asked(tmp_path):
    for place in (tmp_path / "nowhere", "aime.parquet"):
        with pytest.raises(ValueError, match="does not exist; give a folder or file"):
            hub.questions("aime24", source=str(place))


def test_a_file_that_cannot_be_read_is_refused_by_path(tmp_path):
    (tmp_path / "aime.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match=r"aime24 cannot be read from .*aime\.parquet"):
        hub.questions("aime24", source=str(tmp_path / "aime.parquet"))


KINDS = {
    "a named pipe": (os.mkfifo, "is a named pipe"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "is a device"),
    "a circle": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
    "empty": (lambda path: path.touch(), "cannot be read from"),
    "cut": (lambda path: path.write_text('{"problem":'), "cannot be read from"),
    "binary": (lambda path: path.write_bytes(b"\xff\x00\x80" * 9), "cannot be read from"),
    "deep": (lambda path: path.write_text("[" * 10_000), "cannot be read from"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.parquet"])
def test_a_file_of_another_kind_or_damaged_is_refused_by_path(tmp_path, name, kind):
    make, said = KINDS[kind]
    make(tmp_path / name)
    with pytest.raises(ValueError, match=said) as caught:
        hub.questions("aime24", source=str(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value)
    assert "An error occurred while generating" not in str(caught.value), "the cause is said"


@pytest.mark.parametrize("name", ["own", "aime24"])
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "json"])
def test_a_data_file_of_many_gigabytes_is_refused_before_it_is_read(tmp_path, name, suffix):
    file = tmp_path / f"a.{suffix}"
    file.touch()
    os.truncate(file, 20 << 30)  # takes no room on the disk
    with pytest.raises(ValueError, match=f"{20 << 30} bytes, {hub.LARGEST} at most.* a part of it"):
        hub.questions(name, source=str(file))


@pytest.mark.parametrize("value", [3, 1.5, None, True, b"x", ["x"]], ids=repr)
@pytest.mark.parametrize("name", ["name", "source", "split", "n", "seed"])
def test_an_argument_of_another_type_is_refused_by_name(name, value):
    if name in ("n", "seed") and (value is None or value == 3):
        return  # a number may stand there, and n may be left out
    with pytest.raises((TypeError, ValueError)) as caught:
        hub.questions(**{"name": "aime24", "n": 1, "seed": 0} | {name: value})
    assert repr(value) in str(caught.value)
    assert name == "name" or str(caught.value).startswith(f"{name} is ")


def test_a_source_may_be_a_path(tmp_path):
    hub.fixture("aime24", tmp_path / "set", 2)
    assert len(hub.questions("aime24", source=tmp_path / "set")) == 2


@pytest.mark.parametrize("stream", [False, True])
def test_missing_columns_are_named_with_those_found(tmp_path, stream):
    file = write([{"question": "q", "answer": "1"}], tmp_path / "other.jsonl")
    said = (
        r"aime24 needs the columns problem, solution, answer; .*other\.jsonl has question, answer"
        r" and lacks problem, solution"
    )
    with pytest.raises(ValueError, match=f"{said}: give a set.*rename_columns"):
        hub.questions("aime24", source=file, stream=stream)


@pytest.mark.parametrize("ask", [hub.questions, lambda name: hub.fixture(name, "unused")])
def test_what_is_no_set_or_cannot_be_graded_is_refused(ask):
    with pytest.raises(
        ValueError, match=r"'aime' is no question set of the paper: choose one of orz_14b"
    ):
        ask("aime")
    with pytest.raises(
        NotImplementedError,
        match=r"livecodebench is not read here.*sandbox.*lcb_runner.*gpqa_diamond",
    ):
        ask("livecodebench")


@pytest.mark.parametrize("stream", [False, True])
def test_questions_are_drawn_one_by_one_in_the_order_of_questions(saved, stream):
    place = f"{saved['aime24']}"
    if stream:
        place = f"{saved['aime24']}.jsonl"
        datasets.load_from_disk(str(saved["aime24"])).to_json(place)
    drawn = hub.draw("aime24", seed=5, source=place, stream=stream)
    assert [next(drawn), next(drawn)] == hub.questions(
        "aime24", 2, seed=5, source=place, stream=stream
    )


# --- what the kit does with them ------------------------------------------------------------------


@pytest.mark.parametrize("name", ROLLOUTS)
def test_a_right_sample_serves_as_gold(saved, name):
    asked = hub.questions(name, source=str(saved[name]))
    found = hub.right_as_gold(asked)
    assert [q.id for q in found] == [q.id for q in asked]
    assert [(gsm.gold(q).text, gsm.gold(q).correct) for q in found] == [
        (q.trajectories[0].text, True) for q in asked
    ]
    assert [q.trajectories[1:] for q in found] == [q.trajectories[1:] for q in asked]


def test_questions_without_a_right_sample_are_left_out(saved):
    assert (
        hub.right_as_gold(
            hub.questions("livemathbench_hard", source=str(saved["livemathbench_hard"]))
        )
        == []
    )


@pytest.mark.parametrize("name", READ)
def test_prompt_trajectory_and_answer_meet_at_token_boundaries(saved, tokenizer, name):
    for question in hub.questions(name, source=str(saved[name])):
        texts = [t.text for t in question.trajectories] or [""]
        assert all(
            encode(tokenizer, chat_prompt(tokenizer, question.text), text, [question.answer])
            for text in texts
        )


@pytest.mark.parametrize("name", ["math500_5", "orz_14b"])
def test_the_trajectory_study_s_conditions_are_built_and_probed(saved, tiny_lm, made, name):
    (question,) = hub.right_as_gold(hub.questions(name, 1, source=str(saved[name])))
    found = trajectories.build_conditions(tiny_lm, question, made, own_trajectories.Own(), 0)
    assert {"gold", "foreign", "copying"} <= set(found)
    curves = trajectories.probe_question(tiny_lm, question, found, stride=64)
    assert all(curves[kind]["right"].length > 0 for kind in found)


# --- a file of one's own --------------------------------------------------------------------------


def own_file(folder, *lines):
    path = folder / "mine.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf8")
    return path


ROW = {
    "problem": "What is 6 times 7?",
    "answer": "42",
    "generations": ["Six sevens are 42. \\boxed{42}", "It is 41.", "6 * 7 = 42, so \\boxed{42}"],
    "labels": [1, 0, 1],
}


def test_a_jsonl_file_of_ones_own_is_read_with_its_samples(tmp_path):
    place = own_file(tmp_path, json.dumps(ROW), "", json.dumps(ROW | {"answer": 42}))
    found = hub.questions("own", source=str(place))
    assert [question.answer for question in found] == ["42", "42"]
    assert [t.correct for t in found[0].trajectories] == [True, False, True]
    (asked, *_) = trajectories.chosen_questions(f"own={place}", 2, 0)
    assert gsm.gold(asked).text == ROW["generations"][0]
    own = own_trajectories.given_samples(asked)
    assert (own.right.text, own.wrong.text) == (ROW["generations"][2], ROW["generations"][1])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{broken", "line 2 of .* is no JSON"),
        ("[1, 2]", "line 2 of .* holds a list: give one object a line, with problem, answer"),
        (json.dumps({"problem": "?"}), "own needs the columns problem, answer, generations"),
        (json.dumps(ROW | {"labels": [1]}), "line 2 of .*3 generations and the labels"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path, line, said):
    place = own_file(tmp_path, json.dumps(ROW), line)
    with pytest.raises(ValueError, match=said):
        hub.questions("own", source=str(place))


def test_own_needs_a_file():
    with pytest.raises(ValueError, match=r"own is a file of your own: give data='own=FILE\.jsonl'"):
        hub.questions("own")
