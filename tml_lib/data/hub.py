"""The paper's question sets, from the Hugging Face hub or from a folder or file with the same
columns.

`questions("aime24", 30)` reads a set of SETS; `questions("aime24", source="folder")` the same
columns from disk, without a network; `questions("own", source="mine.jsonl")` problems with their
answers, generations and labels, sampled wherever you like; `fixture` writes such a folder from the
kit's own questions.
Data are read as Arrow, JSON or CSV: no code of a set is run and nothing is unpickled. A set's own
solutions become 'gold' trajectories, what a model wrote becomes 'sampled' ones.
Deviation from the paper: LiveCodeBench is refused, for there is no safe way here to run the code
that a model writes.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

from tml_lib import checks, files
from tml_lib.data import gsm
from tml_lib.lm.thinking import THINK, divide
from tml_lib.records import Question, Trajectory

LETTERS = "ABCD"
_WRONG = ("Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")
LARGEST = 4 << 30  # bytes of a data file of text, which is read line by line
_FILES = "give a folder, or a parquet, JSON or CSV file"
_STEP = "give a part of it, or the folder that `save_to_disk` of `datasets` wrote, which is mapped"
_KINDS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}


@dataclass(frozen=True)
class Source:
    """Where a question set is public, which of its columns are read, and how a row becomes a
    question.
    """

    hub: str
    config: str  # the hub's name of a part; '' where there is only one
    split: str
    columns: tuple[str, ...]
    # (row, id, seed); None: the set is refused
    read: Callable[[Mapping, str, int], Question] | None = None
    # rows of this schema, from a gsm_symbolic question
    example: Callable[[Question, int], list[dict]] | None = None
    note: str = ""  # what to know, or to do instead
    keep: Callable[[Mapping], bool] = lambda row: True


def questions(
    name: str,
    n: int | None = None,
    *,
    seed: int = 0,
    split: str = "",
    source: str = "",
    stream: bool = False,
) -> list[Question]:
    """n questions of a set of SETS, with trajectories where the set has them; all of them, in its
    own order, without n.

    seed: which n (the first n of a seed are the same whatever n is), and the order of GPQA's
    options. split: another part of the set. source: read a folder, a parquet, JSON or CSV file, or
    another hub name of the same columns. stream: take the first n as they come instead of keeping
    the whole set on disk; the rollouts are large. Raises ValueError naming the set, what is wrong
    and the next step, NotImplementedError for LiveCodeBench.
    """
    checks.whole(seed=seed, **({} if n is None else {"n": n}))
    if n is not None and n < 1:
        raise ValueError(f"n={n} questions make no set: ask for at least 1, or leave n out for all")
    found = list(
        itertools.islice(_draw(name, seed, split, source, stream, shuffled=n is not None), n)
    )
    if not found or len(found) < (n or 1):
        place = source or SETS[name].hub
        raise ValueError(
            f"{place} has {len(found)} questions for {name}, {n or 'some'} are wanted: ask for"
            " fewer, or no n"
        )
    return found


def draw(name: str, *, seed: int = 0, source: str = "", stream: bool = False) -> Iterator[Question]:
    """The questions of a set one by one, in the seed's order (stream: as they come), for a caller
    who passes some over.

    Parameters and errors as of `questions`.
    """
    return _draw(name, seed, "", source, stream, shuffled=True)


def _draw(
    name: str, seed: int, split: str, source: str, stream: bool, *, shuffled: bool
) -> Iterator[Question]:
    chosen = _source(name)
    checks.texts(split=split)
    source = checks.place("give a folder, a file or a hub name", source=source)
    data, place = _open(name, chosen, split, source, stream)
    for k, row in _rows(data, name, place, seed if shuffled else None):
        try:
            question = chosen.read(row, f"{name}/{k}", seed)
        except ValueError as error:
            where = f"line {row['line']}" if "line" in row else f"row {k}"
            raise ValueError(f"{where} of {place}: {error}") from error
        yield question


def right_as_gold(asked: Sequence[Question]) -> list[Question]:
    """The questions with a right trajectory, the first one as 'gold': what `gsm.gold`, and so the
    studies, look for.
    """
    chosen = []
    for question in asked:
        first = next((t for t in question.trajectories if t.correct), None)
        if first is not None:
            rest = tuple(t for t in question.trajectories if t is not first)
            chosen.append(replace(question, trajectories=(replace(first, kind="gold"), *rest)))
    return chosen


def fixture(name: str, folder: str | Path, n: int = 8, seed: int = 0) -> Path:
    """Save a set of that schema with n questions of gsm_symbolic, for trying a loader without a
    network.

    Its columns are the public ones that are read, its contents the kit's; rollouts come one right
    and one wrong. Returns the folder. Raises ValueError for n < 1 or an unknown set,
    NotImplementedError for LiveCodeBench.
    """
    from datasets import Dataset

    example, folder = _source(name).example, checks.path(folder=folder)
    rows = [
        row for k, question in enumerate(gsm.gsm_symbolic(n, seed)) for row in example(question, k)
    ]
    Dataset.from_list(rows).save_to_disk(str(folder))
    return folder


def _source(name: str) -> Source:
    if not isinstance(name, str) or name not in SETS:
        raise ValueError(
            f"{name!r} is no question set of the paper: choose one of {', '.join(SETS)}"
        )
    if SETS[name].read is None:
        raise NotImplementedError(f"{name} is not read here: {SETS[name].note}")
    return SETS[name]


def _open(name: str, chosen: Source, split: str, source: str, stream: bool):
    """The rows as a `datasets` set, and how messages call the place."""
    import datasets

    if not source and not chosen.hub:
        raise ValueError(f"{name} is {chosen.note}: give data='{name}=FILE.jsonl', or source=")
    place, wanted = Path(source).expanduser(), split or chosen.split
    local = bool(source) and (
        place.exists() or source.startswith((".", "/", "~")) or place.suffix in _KINDS
    )
    if local and not os.path.lexists(place):
        raise ValueError(
            f"{name}: {source!r} does not exist; give a folder or file, or leave source out for"
            f" {chosen.hub}"
        )
    if local and not place.is_dir():
        text = place.suffix in _KINDS and place.suffix != ".parquet"
        files.check(place, _STEP if text else _FILES, most=LARGEST if text and not stream else None)
    if not chosen.hub and place.suffix == ".jsonl":
        return list(_lines(place)), source
    whole = place.is_file() or (place / "state.json").is_file()
    if local and whole and split:
        raise ValueError(
            f"{name}: {source!r} has no parts, so that split={split!r} names none; leave split out"
        )
    try:
        if local and ((place / "state.json").is_file() or (place / "dataset_dict.json").is_file()):
            data = datasets.load_from_disk(str(place))
            data = data if whole else data[wanted]
        elif local and whole:
            data = datasets.load_dataset(
                _KINDS[place.suffix], data_files=str(place), split="train", streaming=stream
            )
        else:
            config = chosen.config if not source else ""
            data = datasets.load_dataset(
                source or chosen.hub, config or None, split=wanted, streaming=stream
            )
    # a wrong name or split, no network, no login, files that cannot be read
    except Exception as error:
        step = (
            "check the path and the split"
            if local
            else "check the name, the split, the network and your hub login"
        )
        raise ValueError(
            f"{name} cannot be read from {source or chosen.hub!r}, split {wanted!r}"
            f" ({_cause(error)}); {step}, or give source=, a folder that"
            f" `save_to_disk` wrote. {chosen.note}"
        ) from error
    return data, source or chosen.hub


def _lines(place: Path) -> Iterator[dict]:
    """The objects of a JSONL file, a line each; ValueError names the first line that is none."""
    with place.open(encoding="utf8", errors="replace") as held:
        for number, line in enumerate(held, 1):
            try:
                row = json.loads(line) if line.strip() else None
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"line {number} of {place} is no JSON ({error}): fix the line, or leave it out"
                ) from error
            if row is not None and not isinstance(row, dict):
                raise ValueError(
                    f"line {number} of {place} holds a {type(row).__name__}: give one object a"
                    f" line, with {', '.join(_ORZ)}"
                )
            if row is not None:
                yield row | {"line": number}


def _cause(error: BaseException) -> str:
    """What began an error, in words: `datasets` says only that there was one."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error)[:300]}"


def _rows(data, name: str, place: str, seed: int | None) -> Iterator[tuple[int, Mapping]]:
    """(place in the set, row) of the rows that count: shuffled by a seed where any row can be
    reached.
    """
    chosen, order = SETS[name], enumerate(data)
    if seed is not None and hasattr(data, "__len__"):
        places = list(range(len(data)))
        random.Random(f"hub/{seed}").shuffle(places)
        order = ((k, data[k]) for k in places)
    for k, row in order:
        if missing := [column for column in chosen.columns if column not in row]:
            raise ValueError(
                f"{name} needs the columns {', '.join(chosen.columns)}; {place} has"
                f" {', '.join(row)} and lacks {', '.join(missing)}: give a set with these columns,"
                " or rename its own with `datasets`' rename_columns"
            )
        try:
            kept = chosen.keep(row)
        except ValueError as error:
            raise ValueError(f"row {k} of {place}: {error}") from error
        if kept:
            yield k, row


# --- rows to questions ----------------------------------------------------------------------------


def _text(row: Mapping, column: str, name: str) -> str:
    """A column's text; an answer loses the dollars around it, for the answer template is
    mathematics already.
    """
    value = row[column]
    number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    if not (number or isinstance(value, str)) or not str(value).strip():
        raise ValueError(
            f"{name} has {value!r} in column {column!r}, which is no text: leave this row out of"
            " the set"
        )
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # a column with one 2.5 in it turns 3 into 3.0
    text = str(value).strip()
    return text.strip("$").strip() if column == "answer" and text[0] == text[-1] == "$" else text


def _solved(text: str) -> Callable[[Mapping, str, int], Question]:
    """A reader of rows with the question in column `text`, the answer in 'answer' and, where there
    is one, a 'solution'.
    """

    def read(row: Mapping, name: str, seed: int) -> Question:
        answer = _text(row, "answer", name)
        gold = (
            (Trajectory(_text(row, "solution", name), "gold", answer, True),)
            if row.get("solution")
            else ()
        )
        return Question(name, _text(row, text, name), answer, name, gold)

    return read


def _is_level_5(row: Mapping) -> bool:
    """Whether a row is of level 5, written as 5, 5.0, '5' or 'Level 5'; 'Level ?' is of none."""
    level = row["level"]
    found = str(level).strip().lower().removeprefix("level").strip().removesuffix(".0")
    if not re.fullmatch(r"\d+|\?", found):  # of 'None', 'True', '[5]', 'nan' too
        raise ValueError(
            f"{level!r} in column 'level' is no level, such as 5 or 'Level 5': leave this row out"
            " of the set"
        )
    return found == "5"


def _rollouts(row: Mapping, name: str, seed: int) -> Question:
    """A row of generations with labels, 1 for right: the thinking of each, where it is marked, else
    all that was written.
    """
    written, labels, answer = row["generations"], row["labels"], _text(row, "answer", name)
    for column, found, kind in (("generations", written, str), ("labels", labels, int | float)):
        if not isinstance(found, Sequence) or isinstance(found, str):
            raise ValueError(
                f"{name} has {found!r} in column {column!r}, which is no list: leave this row out"
                " of the set"
            )
        if strange := [one for one in found if not isinstance(one, kind)]:
            raise ValueError(
                f"{name} has {strange[0]!r} in a list of column {column!r}: leave this row out of"
                " the set"
            )
    if len(written) != len(labels) or not set(labels) <= {0, 1}:
        raise ValueError(
            f"{name} has {len(written)} generations and the labels {list(labels)[:8]}: each needs"
            " its own, 0 or 1; leave this row out of the set"
        )
    pairs = [(divide(text)[0], bool(label)) for text, label in zip(written, labels, strict=True)]
    found = tuple(
        Trajectory(text, "sampled", answer if right else None, right)
        for text, right in pairs
        if text
    )
    return Question(name, _text(row, "problem", name), answer, name, found)


def _choice(row: Mapping, name: str, seed: int) -> Question:
    """A multiple-choice row: options in an order of the seed, the right one's letter as answer;
    `answers.grade` grades it.
    """
    options = [_text(row, column, name) for column in ("Correct Answer", *_WRONG)]
    order = random.Random(f"{name}/{seed}").sample(range(4), 4)
    lines = [f"{letter}) {options[k]}" for letter, k in zip(LETTERS, order, strict=True)]
    ask = "Put nothing but the letter of the right option in the box."
    text = "\n".join([_text(row, "Question", name), "", *lines, "", ask])
    return Question(name, text, LETTERS[order.index(0)], name)


# --- questions to rows of the same schema ---------------------------------------------------------


def _wrong(question: Question) -> Trajectory:
    answer = f"{gsm.value(question.answer) + 1}"
    return gsm.corrupt(question) or Trajectory(
        f"I guess that it is {answer}.", "corrupted", answer, False
    )


def _rollout_rows(begin: str, end: str) -> Callable[[Question, int], list[dict]]:
    def rows(question: Question, k: int) -> list[dict]:
        both = [gsm.gold(question), _wrong(question)]
        written = [f"{begin}{t.text}{end}The answer is \\boxed{{{t.answer}}}." for t in both]
        row = {
            "problem": question.text,
            "answer": question.answer,
            "generations": written,
            "labels": [1, 0],
        }
        return [row]

    return rows


def _aime_rows(question: Question, k: int) -> list[dict]:
    text = {
        "problem": question.text,
        "solution": gsm.gold(question).text,
        "answer": question.answer,
    }
    return [{"id": k, **text, "url": "", "year": "2024"}]


def _math_rows(question: Question, k: int) -> list[dict]:
    """The question at level 5, and again at a lower level, which is not read."""
    text = {
        "problem": question.text,
        "solution": gsm.gold(question).text,
        "answer": question.answer,
    }
    return [
        {**text, "subject": "Prealgebra", "level": level, "unique_id": f"{k}/{level}"}
        for level in (k % 4 + 1, 5)
    ]


def _live_rows(question: Question, k: int) -> list[dict]:
    return [
        {
            "question": question.text,
            "answer": f"${question.answer}$",
            "question_type": "problem-solving",
        }
    ]


def _choice_rows(question: Question, k: int) -> list[dict]:
    wrong = {column: str(gsm.value(question.answer) + j) for j, column in enumerate(_WRONG, 1)}
    return [{"Question": question.text, "Correct Answer": question.answer, **wrong}]


# Where the columns were looked up: aime24 on its card; math500_5 and gpqa_diamond on copies' cards
# and in evaluation code; the rollouts in RaML's own script for SFT data; LiveMathBench in its
# authors' evaluation code, its config name in other projects'. Not seen: a row of the rollouts
# (whether their thinking is marked) or of LiveMathBench's hard part, and the gated set GPQA itself.
# A set whose columns have changed is refused by name.
_ORZ = ("problem", "answer", "generations", "labels")
_MATH = ("problem", "solution", "answer")
_GPQA = ("Question", "Correct Answer", *_WRONG)
_MARKED = (f"{THINK[0]}\n", f"\n{THINK[1]}\n\n")
_LARGE = "64 long generations a question: take a small n and stream=True."
_GATED = (
    "GPQA is gated: accept its terms at https://huggingface.co/datasets/Idavidrein/gpqa, then run"
    " `hf auth login`."
)
_CODE = (
    "an answer is right when code that a model wrote passes hidden tests, which needs a sandbox,"
    " and those tests are pickled; score it with LiveCodeBench's own lcb_runner inside a container,"
    " and use gpqa_diamond for the other domain of C9"
)
SETS = {
    "orz_14b": Source(
        "jnanliu/orz-math-filtered-distill-14b-rollout",
        "",
        "train",
        _ORZ,
        _rollouts,
        _rollout_rows(*_MARKED),
        _LARGE,
    ),
    "orz_72b": Source(
        "jnanliu/orz-math-filtered-qwen-72b-rollout",
        "",
        "train",
        _ORZ,
        _rollouts,
        _rollout_rows("", "\n\n"),
        _LARGE,
    ),
    "aime24": Source("HuggingFaceH4/aime_2024", "", "train", _MATH, _solved("problem"), _aime_rows),
    "math500_5": Source(
        "HuggingFaceH4/MATH-500",
        "",
        "test",
        (*_MATH, "level"),
        _solved("problem"),
        _math_rows,
        keep=_is_level_5,
    ),
    "livemathbench_hard": Source(
        "opencompass/LiveMathBench",
        "v202412_hard_en",
        "test",
        ("question", "answer"),
        _solved("question"),
        _live_rows,
    ),
    "gpqa_diamond": Source(
        "Idavidrein/gpqa", "gpqa_diamond", "train", _GPQA, _choice, _choice_rows, _GATED
    ),
    "own": Source(
        "", "", "train", _ORZ, _rollouts, _rollout_rows("", "\n\n"), "a file of your own"
    ),
    "livecodebench": Source("livecodebench/code_generation_lite", "", "test", (), note=_CODE),
}
