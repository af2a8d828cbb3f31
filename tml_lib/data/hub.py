"""The paper's question sets, from the Hugging Face hub or from a folder or file with the same
columns.

`questions("aime24", 30)` reads a set of SETS; `questions("aime24", source="folder")` the same
columns from disk, without a network; `questions("own", source="mine.jsonl")` problems with their
answers, generations and labels, sampled wherever you like; `fixture` writes such a folder from the
kit's own questions.
Data are read as Arrow, JSON or CSV: no code of a set is run and nothing is unpickled. `hub_rows`
says how a row becomes a question with its trajectories.
Deviation from the paper: LiveCodeBench is refused, for there is no safe way here to run the code
that a model writes.
"""

from __future__ import annotations

import itertools
import json
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tml_lib import checks, files
from tml_lib.data import gsm, hub_rows
from tml_lib.lm.thinking import THINK
from tml_lib.records import Question

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


# --- the sets -------------------------------------------------------------------------------------

# Where the columns were looked up: aime24 on its card; math500_5 and gpqa_diamond on copies' cards
# and in evaluation code; the rollouts in RaML's own script for SFT data; LiveMathBench in its
# authors' evaluation code, its config name in other projects'. Not seen: a row of the rollouts
# (whether their thinking is marked) or of LiveMathBench's hard part, and the gated set GPQA itself.
# A set whose columns have changed is refused by name.
_ORZ = ("problem", "answer", "generations", "labels")
_MATH = ("problem", "solution", "answer")
_GPQA = ("Question", "Correct Answer", *hub_rows.WRONG_ANSWERS)
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
        hub_rows.read_rollouts,
        hub_rows.rollout_writer(*_MARKED),
        _LARGE,
    ),
    "orz_72b": Source(
        "jnanliu/orz-math-filtered-qwen-72b-rollout",
        "",
        "train",
        _ORZ,
        hub_rows.read_rollouts,
        hub_rows.rollout_writer("", "\n\n"),
        _LARGE,
    ),
    "aime24": Source(
        "HuggingFaceH4/aime_2024",
        "",
        "train",
        _MATH,
        hub_rows.solved_reader("problem"),
        hub_rows.aime_rows,
    ),
    "math500_5": Source(
        "HuggingFaceH4/MATH-500",
        "",
        "test",
        (*_MATH, "level"),
        hub_rows.solved_reader("problem"),
        hub_rows.math_rows,
        keep=hub_rows.is_level_5,
    ),
    "livemathbench_hard": Source(
        "opencompass/LiveMathBench",
        "v202412_hard_en",
        "test",
        ("question", "answer"),
        hub_rows.solved_reader("question"),
        hub_rows.live_rows,
    ),
    "gpqa_diamond": Source(
        "Idavidrein/gpqa",
        "gpqa_diamond",
        "train",
        _GPQA,
        hub_rows.read_choice,
        hub_rows.choice_rows,
        _GATED,
    ),
    "own": Source(
        "",
        "",
        "train",
        _ORZ,
        hub_rows.read_rollouts,
        hub_rows.rollout_writer("", "\n\n"),
        "a file of your own",
    ),
    "livecodebench": Source("livecodebench/code_generation_lite", "", "test", (), note=_CODE),
}
