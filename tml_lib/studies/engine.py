"""The frame of every study, stated once: items -> records -> values -> evidence -> replay.

An item is what one record is about: a seed, an arm, a question. A study says how a record is made,
what its values are, what figures need of it, and how a stored record is made again; the rest is
here. Records are kept in a `checkpoint` one by one, so an interrupted study resumes, and several
processes may share its work.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tml_lib import checks, files, runtime
from tml_lib.claims import ledger, rulebook
from tml_lib.claims.replay import ESTIMANDS, FIRST_STEPS, RECORD, Pairs, Replay
from tml_lib.lm import adapters, presets
from tml_lib.lm.models import LanguageModel
from tml_lib.records import Arms, Question
from tml_lib.studies import checkpoint

FIRST = 20  # first losses of a training that evidence keeps, for replays

# test ('C1.trend') -> seeds -> questions, or the accuracies that it compares
Values = dict[str, list[list[float] | Arms]]


@dataclass(frozen=True)
class Made:
    """The records of a study's items, in their order."""

    records: list[dict]
    seconds: float  # spent on these records, in earlier runs too
    settings: dict  # that they were made with


@dataclass(frozen=True)
class Study:
    """What a subject adds to the common frame."""

    name: str  # in protocols.toml; evidence is <name>.<scale>.json
    record: Callable[..., dict]  # (item, folder, **settings, **inputs) -> JSON can hold it
    # (records, settings) -> values; None: a study that only keeps records, and is never written
    values: Callable[[Sequence[dict], dict], Values] | None = None
    keep: Callable[[Sequence[dict]], dict] = lambda records: {}  # evidence beside the values
    settings: dict = dataclasses.field(default_factory=dict)  # of `record`, where none are said
    said: Callable[[], dict] = dict  # constants that evidence names beside the settings
    # seed -> the FIRST losses of its training, which is begun for them; record k is then seed k
    first_losses: Callable[[int], list[float]] | None = None
    replays: tuple[Replay, ...] = ()
    protocol: str = ""  # in protocols.toml, where it is not the name

    def run(
        self, items: Sequence, folder: Path, *, progress: bool = False, inputs=None, **settings
    ) -> Made:
        """One record per item; the folder keeps each, and anything that `record` puts there.

        settings: what JSON can hold, in place of the study's. inputs: by name, what `record` needs
        beside them (a model, questions). A checkpoint is found again by study, protocol, settings
        and inputs. Processes that share a folder divide the items: each makes those that are
        neither kept nor being made, then waits for the others' records. progress: print a line
        per record. Raises ValueError for a damaged checkpoint.
        """
        settings, inputs = self.settings | settings, inputs or {}
        key = {"study": self.name, "protocol": rulebook.protocol(self.protocol or self.name)}
        key |= {"said": self.said(), "settings": _identity(settings), "inputs": _identity(inputs)}
        folder = checks.path(folder=folder)
        kept = checkpoint.place(folder, self.name, key)
        names = [checkpoint.digest(_identity(item)) for item in items]
        held, start, done = checkpoint.read(kept), time.perf_counter(), 0
        # twice: first what no other process is making, then what another left unfinished
        for wait, (item, name) in itertools.product((False, True), zip(items, names, strict=True)):
            if name in held["records"]:
                continue
            with checkpoint.claim(kept, name, wait=wait) as mine:
                held = checkpoint.read(kept)  # other processes may have kept theirs since
                if not mine or name in held["records"]:
                    continue
                began = time.perf_counter()
                record = self.record(item, folder, **settings, **inputs)
                record = files.plain(record, f"a record of {self.name}")
                held = checkpoint.keep(kept, name, record, time.perf_counter() - began)
            done += 1
            if progress:
                here = sum(name in held["records"] for name in names)
                left = (time.perf_counter() - start) / done * (len(items) - here)
                print(f"{self.name}: {here} of {len(items)}{_left(left)}", flush=True)
        records = [held["records"][name] for name in names]
        return Made(records, checkpoint.seconds(held, names), settings)

    def write(self, made: Made, folder: Path, *, command: str, scale: str = "tiny", **more) -> Path:
        """Write <name>.<scale>.json. more: further parts of the evidence, 'settings' among them.

        Where the study has `first_losses`, this trains: `losses_of` begins every seed's training
        once more, which may take minutes. Raises ValueError for a study without values.
        """
        if self.values is None:
            raise ValueError(f"study {self.name} has no values: its records make no evidence")
        settings = more.pop("settings", {"seeds": len(made.records)} | made.settings)
        kept = self.keep(made.records) | more
        if "cut" not in kept and (counts := cut_counts(made.records)):
            kept["cut"] = counts
        if self.first_losses:
            kept["first_losses"] = self.losses_of(made)
        return ledger.write_evidence(
            folder,
            self.name,
            scale,
            self.values(made.records, made.settings),
            command=command,
            settings=self.said() | settings,
            wall_seconds=made.seconds,
            extra=kept,
        )

    def losses_of(self, made: Made) -> list[list[float]]:
        """(seeds, FIRST): the first losses of the training behind each record, record k being seed
        k. They are not in the records: each training is begun again, as a replay begins it.
        """
        return [self.first_losses(seed) for seed in range(len(made.records))]

    def write_asked(
        self, made: Made, lm: LanguageModel, asked: Sequence[Question], folder: Path, **more
    ) -> Path:
        """`write` for questions of text: with the model's name, their number and their templates.
        settings: beside those that the records were made with.
        """
        settings = said_of(lm, asked) | made.settings
        settings |= more.pop("settings", {})
        templates = [question.template for question in asked]
        return self.write(made, folder, settings=settings, templates=templates, **more)

    def evidence(self, items: Sequence, folder: Path, *, command: str, **settings) -> Path | None:
        """`run` with a line per record, then `write`, at scale `tiny`; None without items."""
        if not items:
            return None
        made = self.run(items, folder, progress=True, **settings)
        return self.write(made, folder, command=command)


def _left(seconds: float) -> str:
    """The time left in words; nothing below half a minute."""
    return f", about {seconds / 60:.0f} min left" if seconds >= 30 else ""


def _identity(value):
    """What tells a model, questions or plain data from others, as JSON can hold it."""
    if isinstance(value, LanguageModel):
        weights = adapters.fingerprint(value.model)
        # None: a model that was never asked; checkpoints of such models stay valid
        return weights if value.thinking is None else [weights, value.thinking]
    if dataclasses.is_dataclass(value):
        return checkpoint.digest(dataclasses.asdict(value))
    if isinstance(value, list | tuple):
        return [_identity(part) for part in value]
    if isinstance(value, dict):
        return {str(key): _identity(part) for key, part in value.items()}
    return files.plain(value, "a setting")


def said_of(lm: LanguageModel, asked: Sequence[Question]) -> dict:
    """What settings say of a model and its questions: `said_of_model`, how many questions, and a
    digest of what they ask.
    """
    return said_of_model(lm) | {"n_questions": len(asked), "asked": digest_of(asked)}


def said_of_model(lm: LanguageModel) -> dict:
    """What settings say of a model: its name; where it can think, whether it was asked to; and that
    it computes in bfloat16, where it does.
    """
    said = {"model": lm.name} | ({} if lm.thinking is None else {"thinking": lm.thinking})
    half = str(lm.model.dtype) == "torch.bfloat16"
    return said | ({"dtype": "bfloat16"} if half else {})


def digest_of(asked: Sequence[Question]) -> str:
    """What tells questions from others that have the same places: their texts and answers."""
    return checkpoint.digest([[question.text, question.answer] for question in asked])


def check_asked(evidence: dict, asked: Sequence[Question]) -> None:
    """ValueError where the questions that settings give today are not those of the evidence.

    Evidence made before digests were kept has its templates compared, where it keeps these.
    """
    settings = evidence["settings"]
    pairs = [
        (settings.get("asked"), digest_of(asked)),
        (evidence.get("templates"), [question.template for question in asked]),
    ]
    if any(then is not None and then != now for then, now in pairs):
        raise ValueError(
            f"the evidence of {settings.get('model')!r} was made for other questions than its"
            f" settings give now: make it again with `{evidence['command']}`"
        )


def first_of(found: Sequence[Question], n: int, seed: int) -> list[Question]:
    """The first n of a seed's questions; ValueError where it gave fewer."""
    if len(found) < n:
        raise ValueError(
            f"seed {seed} gives {len(found)} of {n} questions: take another seed, or fewer"
            " questions"
        )
    return list(found[:n])


# --- values ---------------------------------------------------------------------------------------


def by_seed(estimands: Callable[[dict], dict[str, Sequence[float] | Arms]]) -> Callable:
    """Values where a record is a seed. estimands: record -> test -> a number per question, or
    `Arms`.
    """

    def values(records: Sequence[dict], settings: dict) -> Values:
        seeds = [estimands(record) for record in records]
        return {test: [_floats(seed[test]) for seed in seeds] for test in seeds[0]}

    return values


def by_question(estimands: Callable[[dict, dict], dict[str, float]]) -> Callable:
    """Values where a record is a question of one seed. estimands: (record, settings) -> test -> a
    number.
    """

    def values(records: Sequence[dict], settings: dict) -> Values:
        rows = [estimands(record, settings) for record in records]
        return {test: [_floats([row[test] for row in rows])] for test in rows[0]}

    return values


def by_group(records: Sequence[dict], settings: dict) -> Values:
    """Values where a record is a group of questions of one seed, and holds them under 'values'; no
    estimands are needed, so this is itself a study's `values`.
    """
    tests = records[0]["values"]
    return {test: [_joined([record["values"][test] for record in records])] for test in tests}


def _joined(parts: Sequence) -> list[float] | Arms:
    parts = [_floats(part) for part in parts]
    if isinstance(parts[0], Arms):
        return Arms(*np.concatenate([part.paired() for part in parts], axis=1))
    return [x for part in parts for x in part]


def _floats(numbers) -> list[float] | Arms:
    """Numbers as a list; `Arms` as they are, or made again of what a record holds of them."""
    if isinstance(numbers, dict):
        return Arms(**numbers)
    return numbers if isinstance(numbers, Arms) else np.asarray(numbers, dtype=float).tolist()


def cut_counts(record) -> list[list[int]]:
    """The pairs (samples that were cut, samples) under the key 'cut' of records or their parts."""
    if isinstance(record, list | tuple):
        return [pair for part in record for pair in cut_counts(part)]
    if not isinstance(record, dict):
        return []
    own = [record["cut"]] if "cut" in record else []
    return own + cut_counts([part for key, part in record.items() if key != "cut"])


def rounded(numbers, digits: int = 5) -> list[float]:
    """To so many significant digits, for records that evidence keeps."""
    return [float(f"{x:.{digits}g}") for x in np.asarray(numbers, dtype=float)]


def mean_rounded(table) -> list[float]:
    """The mean over the rows of a (n, m) tensor, `rounded`."""
    return rounded(table.mean(0))


# --- replays --------------------------------------------------------------------------------------


def seeds_of(evidence: dict) -> list[str]:
    """The records of evidence with one record per seed."""
    return [f"seed {k}" for k in range(len(next(iter(evidence["values"].values()))))]


def questions_of(evidence: dict) -> list[str]:
    """The questions of a text model's evidence; none where that model cannot be loaded here, or
    was read in bfloat16 and this machine does not compute in it: its rounding would be another.
    """
    asked, settings = evidence.get("templates", ()), evidence["settings"]
    known = presets.is_replayed(evidence["scale"], settings.get("model", ""))
    alike = settings.get("dtype") in (None, runtime.hardware_dtype()[0])
    return [f"question {k}" for k in range(len(asked))] if known and alike else []


def question_again(restore: Callable[[dict, int], dict[str, float]], seconds: float) -> Replay:
    """A question is measured again. restore: (evidence, its place) -> test -> value."""

    def again(evidence: dict, name: str) -> Pairs:
        place = place_of(name)
        return {
            test: (number(evidence["values"][test][0][place]), float(value))
            for test, value in restore(evidence, place).items()
        }

    return Replay(RECORD, questions_of, again, seconds)


def values_again(values: Callable[[dict], Values], seconds: float = 1) -> Replay:
    """The values of a seed are computed again from the records that evidence keeps.

    For each test one pair is reported: the value that differs most between stored and made again.
    A value that is missing (NaN) on one side only counts as infinitely far. Where a test compares
    two arms, the means of both arms over all seeds are reported as well. values: evidence -> as
    `Study.values`.
    """

    def again(evidence: dict, name: str) -> Pairs:
        seed = place_of(name)
        pairs = {}
        for test, seeds in values(evidence).items():
            pairs |= _arms_again(evidence, test, seeds)
            stored = np.array([number(x) for x in evidence["values"][test][seed]])
            made = np.array(seeds[seed], dtype=float)
            missing = np.isnan(stored) != np.isnan(made)
            distance = np.where(missing, math.inf, np.nan_to_num(np.abs(stored - made)))
            farthest = int(distance.argmax())
            pairs[test] = (float(stored[farthest]), float(made[farthest]))
        return pairs

    return Replay(ESTIMANDS, seeds_of, again, seconds)


def _arms_again(evidence: dict, test: str, seeds: Sequence) -> Pairs:
    stored = [estimate for estimate, _, _ in evidence.get("arms", {}).get(test, ())]
    if not stored:
        return {}
    means = np.mean([np.nanmean(arms.paired(), axis=1) for arms in seeds], axis=0)
    return {
        f"{test}, {arm} arm": (number(was), float(mean))
        for arm, was, mean in zip(("first", "second"), stored, means, strict=True)
    }


def records_again(values: Callable[[Sequence[dict], dict], Values]) -> Replay:
    """`values_again` from a study's `values` alone."""
    return values_again(lambda evidence: values(evidence["records"], evidence["settings"]))


def losses_again(first_losses: Callable[[int], list[float]], seconds: float) -> Replay:
    """A seed's training is begun again, and its FIRST losses are compared with those kept."""

    def again(evidence: dict, name: str) -> Pairs:
        seed = place_of(name)
        return first_steps(evidence["first_losses"][seed], first_losses(seed))

    def names(evidence: dict) -> list[str]:
        return [f"seed {k}" for k in range(len(evidence.get("first_losses", ())))]

    return Replay(FIRST_STEPS, names, again, seconds)


def first_steps(stored: Sequence[float], made: Sequence[float], what: str = "loss") -> Pairs:
    """First, middle and last of the losses, and their mean."""
    last = len(made) - 1
    pairs = {f"{what} of step {k + 1}": (stored[k], made[k]) for k in (0, last // 2, last)}
    return pairs | {f"mean {what}": (float(np.mean(stored[: last + 1])), float(np.mean(made)))}


def place_of(name: str) -> int:
    """'question 7' -> 7."""
    return int(name.split()[-1])


def number(value: float | None) -> float:
    """A stored value; evidence holds null where none was measured."""
    return math.nan if value is None else value
