"""The trajectory study (C1, C2): L̂ along right and wrong trajectories of a text, with controls.

For each question it probes the gold trajectory, two kinds of wrong ones and the controls that tell
reasoning from copying (the answer's likelihood rises by copying alone once a trajectory has stated
it).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tml_lib.claims.stats import trend
from tml_lib.data import gsm, hub
from tml_lib.lm import models, presets, sampling
from tml_lib.lm.answers import encode, extract, grade, token_ids
from tml_lib.lm.models import LanguageModel
from tml_lib.measure.probe import probe
from tml_lib.records import ProbeCurve, Question, Trajectory
from tml_lib.studies import engine, lora
from tml_lib.studies.engine import Made, Study

MOST_TOKENS = 200  # of a sample
_STRANGERS = 64  # questions from which the trajectories of other questions are drawn
# compared with another over as many tokens
_BESIDE = {"foreign": "gold", "sampled": "own_right", "foreign_own": "own_right"}
TEXTS = ("sampled", "own_right")  # of the model's own, which evidence keeps
KINDS = (
    "gold",
    "corrupted",
    "own_right",
    "sampled",
    "foreign",
    "shuffled",
    "copying",
    "foreign_own",
)
# what tells reasoning from length, order and copying; as costly together as all the rest
CONTROLS = ("foreign", "shuffled", "copying", "foreign_own")
_GROUP = 8  # questions sampled together, and so lost at most when a run is interrupted


@dataclass(frozen=True)
class Own:
    """What a model wrote to a question: the first right and the first wrong of its samples."""

    right: Trajectory | None = None
    wrong: Trajectory | None = None
    samples: int = 0
    cut: int = 0  # of them, how many had not ended at the greatest number of tokens
    foreign: Trajectory | None = None  # what it wrote rightly to another question


def study_questions(n: int, seed: int) -> list[Question]:
    """n gsm_symbolic questions whose answer does not already stand in the question (it could be
    copied from there).
    """
    wanted = n + 32 + n // 8  # about one question in twenty-three is passed over
    found = [
        q for q in gsm.gsm_symbolic(wanted, seed) if gsm.first_mention(q.text, q.answer) is None
    ]
    return found[:n]


def chosen_questions(
    data: str, n: int, seed: int, keep: Callable[[Question], object] = bool
) -> list[Question]:
    """n questions of a set of the paper: `data` names one of `hub.SETS`, or `name=place` the same
    columns from elsewhere.

    Taken are those with a right trajectory and a number as answer, which the question does not
    state: what the controls against copying need. keep: others are passed over too. data='':
    `study_questions`. Raises ValueError where the set has fewer.
    """
    if not data:
        return study_questions(n, seed)
    name, _, source = data.partition("=")
    # 64 long generations a question: not the whole set onto the disk
    stream = name.startswith("orz") and not source
    found = []
    for drawn in hub.draw(name, seed=seed, source=source, stream=stream):
        number = (
            gsm.NUMBER.fullmatch(drawn.answer)
            and gsm.first_mention(drawn.text, drawn.answer) is None
        )
        found += [question for question in hub.right_as_gold([drawn]) if number and keep(question)]
        if len(found) == n:
            return found
    raise ValueError(
        f"{data} has {len(found)} of {n} questions with what this study needs (a right trajectory,"
        " and a number as answer, which the question does not state): ask for fewer, or take"
        " another set"
    )


def check_data(data: str, preset: str) -> None:
    """Raise ValueError where a set of questions in text is given to a preset that reads
    programs.
    """
    if data and models.preset(preset).task == "programs":
        raise ValueError(
            f"data={data!r} is text, and preset {preset!r} reads programs: take preset 'small',"
            " 'medium' or 'gpu', or no data"
        )


def scale_name(preset: str, data: str = "", name: str = "") -> str:
    """What evidence calls its scale: that of the model where the kit knows it by name, else the
    preset; the set where it is one of the paper's; the adapter, as the model's name has it.
    """
    model, _, adapter = name.partition("+")
    scale = {known: scale for scale, known in presets.REPLAYED}.get(model, preset)
    return "-".join(filter(None, [scale, data.partition("=")[0], adapter]))


def build_conditions(
    lm: LanguageModel, question: Question, others: list[Question], own: Own, seed: int
) -> dict[str, Trajectory]:
    """The trajectories of one question by condition; one that cannot be built for this question is
    left out.

    foreign and copying are cut to the gold trajectory's length in tokens, foreign_own to that of
    the own right one; copying ends by stating the right answer.
    """
    prompt, gold = lm.prompt(question.text), gsm.gold(question)
    strange = gsm.foreign(question, others, seed)
    length = len(encode(lm.tokenizer, prompt, gold.text, [question.answer]).trajectory)
    ending = f"\nThe result is {question.answer}."
    room = length - len(token_ids(lm.tokenizer, ending, begins=False))
    copying = _cut(lm, prompt, strange.text, max(room, 1)) + ending
    found = {
        "gold": gold,
        "corrupted": gsm.corrupt(question, seed),
        "own_right": own.right,
        "sampled": own.wrong,
        "foreign": Trajectory(_cut(lm, prompt, strange.text, length), "foreign"),
        "shuffled": gsm.shuffle_steps(question, seed),
        "copying": Trajectory(copying, "copying", question.answer, None),
    }
    if own.right and own.foreign:
        length = len(encode(lm.tokenizer, prompt, own.right.text, [question.answer]).trajectory)
        found["foreign_own"] = Trajectory(_cut(lm, prompt, own.foreign.text, length), "foreign_own")
    return {kind: trajectory for kind, trajectory in found.items() if trajectory is not None}


def given_samples(question: Question) -> Own:
    """The first right and the first wrong of the samples that come with a question of a set."""
    found = [t for t in question.trajectories if t.kind == "sampled"]
    right = next((replace(t, kind="own_right") for t in found if t.correct), None)
    return Own(right, next((t for t in found if t.correct is False), None))


def samples_of(record: dict, questions: Sequence[Question]) -> list[Own]:
    """What the model of an evidence file of this study wrote to its questions, for another model to
    read. ValueError where it keeps no texts, or was made for other questions.
    """
    texts = [record.get(kind) for kind in ("own_right", "sampled")]
    if None in texts or len(texts[0]) != len(questions):
        raise ValueError(
            f"this evidence of {record['settings'].get('model')!r} keeps no sampled texts for these"
            " questions: make it again with `python -m tml_lib study trajectories`"
        )
    engine.check_asked(record, questions)
    counts = record.get("cut", [(0, 0)] * len(questions))
    return [
        Own(
            right and Trajectory(right, "own_right", question.answer, True),
            wrong and Trajectory(wrong, "sampled", extract(wrong), False),
            samples=samples,
            cut=cut,
        )
        for question, right, wrong, (cut, samples) in zip(questions, *texts, counts, strict=True)
    ]


def with_foreign(questions: Sequence[Question], found: Sequence[Own]) -> list[Own]:
    """Each with the right sample of the next question that has one, in which its own answer is not
    stated; after the last question comes the first.
    """
    whole = []
    for k, (question, own) in enumerate(zip(questions, found, strict=True)):
        later = [one.right for one in (*found[k + 1 :], *found[:k]) if one.right]
        free = (t for t in later if gsm.first_mention(t.text, question.answer) is None)
        whole.append(replace(own, foreign=next(free, None)))
    return whole


def own_samples(
    lm: LanguageModel,
    questions: Sequence[Question],
    *,
    seed: int,
    tries: int = 4,
    max_tokens: int = MOST_TOKENS,
    progress: bool = False,
    **settings,
) -> list[Own]:
    """Per question what the model writes in `tries` samples of at most `max_tokens` tokens.

    Right is a sample that is graded so; wrong is one that states an answer, a wrong one, and never
    the right value. A sample that was cut is neither, and is counted. settings: passed to
    `sampling.sample`, in place of temperature 0.7 and top-k 50 (the paper's, Table 5).
    """
    prompts = [lm.prompt(q.text) for q in questions for _ in range(tries)]
    settings = {"temperature": 0.7, "top_k": 50, "batch_size": 32} | settings
    settings |= {"max_new_tokens": max_tokens, "progress": progress}
    written = sampling.sample(lm, prompts, sampling.row_seeds(seed, len(prompts)), **settings)
    texts = [text.strip() for text in sampling.texts(lm, written, whole=True)]
    found = []
    for k, question in enumerate(questions):
        here = slice(k * tries, (k + 1) * tries)
        cut = sum(one.cut for one in written[here])
        own = first_own(lm, texts[here], question)
        found.append(replace(own, samples=tries, cut=cut))
    return found


def first_own(lm: LanguageModel, texts: Iterable[str], question: Question) -> Own:
    """The first right and the first wrong of texts that a model wrote to the end."""
    found = [one for text in texts if (one := _own(lm, text, question))]
    right = next((one for one in found if one.correct), None)
    return Own(right, next((one for one in found if not one.correct), None))


def _own(lm: LanguageModel, text: str, question: Question) -> Trajectory | None:
    """A sample as a right or a wrong trajectory; None where it is neither."""
    stated, thoughts = extract(text) if text else None, lm.thoughts(text)
    if stated is None or not thoughts:
        return None
    if grade(text, question.answer):
        return Trajectory(thoughts, "own_right", stated, True)
    if gsm.first_mention(text, question.answer) is not None:
        return None
    return Trajectory(thoughts, "sampled", stated, False)


def _cut(lm: LanguageModel, prompt: str, text: str, tokens: int) -> str:
    """The first so many tokens of a text, as text."""
    ends = encode(lm.tokenizer, prompt, text, ["0"]).ends
    return text[: ends[min(tokens, len(ends)) - 1]]


def probe_question(
    lm: LanguageModel, question: Question, conditions: dict[str, Trajectory], *, stride: int
) -> dict[str, dict[str, ProbeCurve]]:
    """Curves by condition and by whose answer is scored: 'right', and for corrupted gold also its
    'own' wrong one.

    Probed are every stride-th prefix, the last one, the one before the statement; in a wrong sample
    and another question's text also the one where the right sample or gold first states the answer;
    and, for the order control, the one after the steps that were shuffled (`meta['shuffled_end']`,
    in gold and in shuffled).
    """
    prompt = lm.prompt(question.text)
    curves: dict[str, dict[str, ProbeCurve]] = {}
    for kind, trajectory in conditions.items():
        answers = {"right": question.answer}
        if kind == "corrupted":
            answers["own"] = trajectory.answer
        encoded = encode(lm.tokenizer, prompt, trajectory.text, list(answers.values()))
        also, meta = [], {}
        if (beside := curves.get(_BESIDE.get(kind))) is not None:
            also.append(min(beside["right"].unstated, len(encoded.trajectory)))
        if kind in ("gold", "shuffled") and "shuffled" in conditions:
            meta["shuffled_end"] = encoded.tokens_before(free_end(question))
            also.append(meta["shuffled_end"])
        how = {"stride": stride, "also": also}
        found = probe(lm, prompt, trajectory.text, list(answers.values()), **how)
        for curve in found:
            curve.meta.update(meta)
        curves[kind] = dict(zip(answers, found, strict=True))
    return curves


def free_end(question: Question) -> int:
    """Character offset at which gold's steps before the one that states the answer end."""
    text = gsm.gold(question).text
    mention = gsm.first_mention(text, question.answer)
    return text.rfind("\n", 0, len(text) if mention is None else mention)


def question_record(
    lm: LanguageModel,
    question: Question,
    own: Own,
    *,
    seed: int,
    stride: int,
    kinds: Sequence[str] = (),
) -> dict:
    """One question's curves under every condition, or those of `kinds`; the texts that the model
    wrote itself, and how many samples were cut: enough to make it again.
    """
    conditions = build_conditions(lm, question, strangers(seed), own, seed)
    conditions = {kind: t for kind, t in conditions.items() if not kinds or kind in kinds}
    curves = probe_question(lm, question, conditions, stride=stride)
    return {
        "id": question.id,
        "curves": {kind: _plain(by_answer) for kind, by_answer in curves.items()},
        "sampled": own.wrong and own.wrong.text,
        "own_right": own.right and own.right.text,
        "cut": [own.cut, own.samples],
    }


@functools.cache
def strangers(seed: int) -> list[Question]:
    """The questions from which the trajectories of other questions are drawn."""
    return gsm.gsm_symbolic(_STRANGERS, seed)


def group_record(
    group: tuple[int, list[Question], list[Own] | None],
    folder: Path,
    *,
    lm: LanguageModel,
    seed: int,
    stride: int,
    tries: int,
    max_tokens: int,
    kinds: Sequence[str] = (),
    controls: int | None = None,
) -> list[dict]:
    """The `question_record`s of a group of questions, of which the first has the place group[0].
    The model samples `tries` trajectories a question, unless samples are given.

    controls: questions, from the first one of the study on, that have the CONTROLS too; None: all.
    """
    start, questions, given = group
    how = {"seed": seed + start, "tries": tries, "max_tokens": max_tokens}
    written = own_samples(lm, questions, **how) if given is None else given
    written = with_foreign(questions, written)
    few = [kind for kind in kinds or KINDS if kind not in CONTROLS]
    found = []
    for place, (question, own) in enumerate(zip(questions, written, strict=True), start):
        chosen = kinds if controls is None or place < controls else few
        how = {"seed": seed, "stride": stride, "kinds": chosen}
        found.append(question_record(lm, question, own, **how))
    return found


def _plain(curves: dict[str, ProbeCurve]) -> dict[str, dict]:
    """Curves as JSON, rounded to 1e-4 nats."""
    return {
        whose: {
            "positions": curve.positions.tolist(),
            "answer_nll": np.round(curve.answer_nll, 4).tolist(),
            "length": curve.length,
            "stated_at": curve.stated_at,
            "answer": curve.answer,
            **curve.meta,
        }
        for whose, curve in curves.items()
    }


def curve_of(record: dict, kind: str, whose: str = "right") -> ProbeCurve | None:
    """One curve of a study record, or None where the question has no such condition."""
    held = record["curves"].get(kind, {}).get(whose)
    if held is None:
        return None
    meta = {"shuffled_end": held["shuffled_end"]} if "shuffled_end" in held else {}
    numbers = np.array(held["positions"]), np.array(held["answer_nll"], dtype=float)
    return ProbeCurve(
        *numbers, held["length"], held["answer"], stated_at=held["stated_at"], meta=meta
    )


def by_condition(
    tables: Sequence[dict[str, dict]], kinds: Sequence[str]
) -> dict[str, list[ProbeCurve]]:
    """The curves of the right answer by kind, of the questions that have it. tables: the 'curves'
    of records, or of evidence. A corrupted text that states the right answer by chance is left out,
    as in the tests.
    """
    found = {kind: [curve_of({"curves": held}, kind) for held in tables] for kind in kinds}
    return {
        kind: [c for c in curves if c and (kind != "corrupted" or c.stated_at is None)]
        for kind, curves in found.items()
    }


def paired_before_statement(record: dict, kind: str) -> tuple[ProbeCurve, ProbeCurve] | None:
    """Curves of the right answer along gold and along another condition, both cut before any answer
    is stated.

    foreign: cut to as many tokens as gold; shuffled: both at the end of the shuffled steps;
    corrupted: where it first states its own wrong answer. None where the question lacks the
    condition.
    """
    gold, other = curve_of(record, "gold"), curve_of(record, kind)
    own = curve_of(record, kind, "own")
    # it states the right answer by chance
    if other is None or (own is not None and other.stated_at is not None):
        return None
    stated = gold.unstated
    if kind == "shuffled":
        ends = gold.meta["shuffled_end"], other.meta["shuffled_end"]
    elif own is not None:
        ends = stated, own.unstated
    else:
        ends = stated, min(stated, other.length)
    return _until(gold, ends[0]), _until(other, ends[1])


def before_last_step(record: dict) -> tuple[float, float]:
    """Fall of L̂ (nats per token) along gold until the step begins that states the answer, and this
    minus the fall over as many tokens of another question's text, read off between probed prefixes.

    It tells a model that only works out gold's last calculation from one that has come nearer
    before. NaN where gold has no steps to shuffle before that one.
    """
    gold, foreign = curve_of(record, "gold"), curve_of(record, "foreign")
    if "shuffled_end" not in gold.meta:
        return math.nan, math.nan
    end = gold.meta["shuffled_end"]
    fall = float(gold.answer_nll[0] - gold.at(end))
    beside = np.interp(min(end, foreign.length), foreign.positions, foreign.answer_nll)
    return fall, fall - float(foreign.answer_nll[0] - beside)


def _until(curve: ProbeCurve, end: int) -> ProbeCurve:
    keep = curve.positions <= end
    return ProbeCurve(curve.positions[keep], curve.answer_nll[keep], end, curve.answer)


def estimands(record: dict, stride: int) -> dict[str, float]:
    """The estimands of C1 and C2 for one question, NaN where its conditions lack (claims.toml says
    what each one is).
    """
    gold, foreign, copying = (curve_of(record, kind) for kind in ("gold", "foreign", "copying"))
    shuffled, corrupted, sampled = (
        curve_of(record, kind) for kind in ("shuffled", "corrupted", "sampled")
    )
    own, own_right = curve_of(record, "corrupted", "own"), curve_of(record, "own_right")
    foreign_own = curve_of(record, "foreign_own")
    end = gold.unstated
    along, along_own = alone(gold, stride), alone(own_right, stride)
    unstated = along["unstated"]
    values = {
        "C1.trend": along["trend"],
        "C1.trend_unstated": along["trend_unstated"],
        "C1.trend_over_foreign": math.nan,
        "C1.fall": gold.fall,
        "C1.unstated": unstated,
        "C1.content": math.nan,
        "C1.order": math.nan,
        "C1.copying": gold.fall - copying.fall if copying else math.nan,
        "C1.own_trend": along_own["trend"],
        "C1.own_trend_unstated": along_own["trend_unstated"],
        "C1.own_unstated": along_own["unstated"],
        "C1.own_content": fall_beside(own_right, foreign_own),
        "C2.sampled_trend": _trend(sampled, stride),
        "C2.corrupted_trend": math.nan,
        "C2.corrupted_over_foreign": math.nan,
        "C2.sampled_fall": sampled.fall if sampled else math.nan,
        "C2.corrupted_fall": math.nan,
        "C2.contrast": math.nan,
        "C2.own_answer": math.nan,
        "C2.pair": fall_beside(own_right, sampled),
    }
    if foreign is not None:
        drift = _trend(_until(foreign, end), stride)
        foreign_fall = foreign.answer_nll[0] - foreign.at(min(end, foreign.length))
        values["C1.trend_over_foreign"] = along["trend_unstated"] - drift
        values["C1.content"] = unstated - foreign_fall
    if shuffled is not None:
        in_order, in_disorder = gold.meta["shuffled_end"], shuffled.meta["shuffled_end"]
        values["C1.order"] = shuffled.at(in_disorder) - gold.at(in_order)
    # it never states the right answer, not even by chance
    if corrupted is not None and corrupted.stated_at is None:
        wrong_end = own.unstated
        values["C2.corrupted_trend"] = _trend(corrupted, stride)
        values["C2.corrupted_over_foreign"] = _trend(corrupted, stride) - _trend(foreign, stride)
        values["C2.corrupted_fall"] = corrupted.fall
        values["C2.contrast"] = unstated - (corrupted.answer_nll[0] - corrupted.at(wrong_end))
        values["C2.own_answer"] = own.fall
    return {name: float(number) for name, number in values.items()}


def alone(curve: ProbeCurve | None, stride: int) -> dict[str, float]:
    """Trend (tau) and fall (nats) of one curve, whole and before the answer is stated; NaN without
    a curve.
    """
    if curve is None:
        return dict.fromkeys(("trend", "trend_unstated", "fall", "unstated"), math.nan)
    end = curve.unstated
    return {
        "trend": _trend(curve, stride),
        "trend_unstated": _trend(_until(curve, end), stride),
        "fall": curve.fall,
        "unstated": float(curve.answer_nll[0] - curve.at(end)),
    }


def fall_beside(curve: ProbeCurve | None, other: ProbeCurve | None) -> float:
    """Fall of L̂ before a curve states the answer, minus the fall over as many tokens of another
    curve after the same prompt (all of it where it is shorter); NaN where one is missing.
    """
    if curve is None or other is None:
        return math.nan
    end = curve.unstated
    return float(other.at(min(end, other.length)) - curve.at(end))


def _trend(curve: ProbeCurve | None, stride: int) -> float:
    """Kendall's tau over every stride-th prefix and the last."""
    if curve is None:
        return math.nan
    regular = (curve.positions % stride == 0) | (curve.positions == curve.length)
    return trend(curve.answer_nll[regular])


# --- the study ------------------------------------------------------------------------------------


def record_again(evidence: dict, place: int) -> dict:
    """A question's record from the texts that evidence keeps of it and of its group, under the
    conditions that it has there.
    """
    settings, start = evidence["settings"], place - place % _GROUP
    lm = lora.replayed(settings["model"])
    asked = study_questions(settings["n_questions"], settings["seed"])[start : start + _GROUP]
    texts = [evidence[kind][start : start + _GROUP] for kind in TEXTS if kind in evidence]
    found = [
        first_own(lm, [text for text in held if text is not None], question)
        for question, held in zip(asked, zip(*texts, strict=True), strict=bool(texts))
    ]
    own = with_foreign(asked, found)[place - start] if found else Own()
    how = {"seed": settings["seed"], "stride": settings["stride"]}
    how["kinds"] = tuple(evidence["curves"][place])
    return question_record(lm, asked[place - start], own, **how)


def _again(evidence: dict, place: int) -> dict[str, float]:
    """A question's estimands from the texts that evidence keeps of the model's own. Evidence of an
    earlier version lacks some, and says nothing of them.
    """
    found = estimands(record_again(evidence, place), evidence["settings"]["stride"])
    # without the texts nothing is said of what was sampled
    unsaid = () if "sampled" in evidence else ("C2.sampled",)
    return {
        test: x
        for test, x in found.items()
        if test in evidence["values"] and not test.startswith(unsaid)
    }


STUDY = Study(
    "trajectories",
    group_record,
    engine.by_question(lambda record, settings: estimands(record, settings["stride"])),
    lambda records: {
        part: [record[part] for record in records]
        for part in ("curves", "sampled", "own_right", "cut")
    },
    replays=(engine.question_again(_again, 40),),
)


def study(
    lm: LanguageModel,
    questions: list[Question],
    folder: Path,
    *,
    seed: int,
    stride: int,
    tries: int = 2,
    max_tokens: int = MOST_TOKENS,
    written: Sequence[Own] | None = None,
    progress: bool = False,
    of: Study | None = None,
    **more,
) -> Made:
    """One `question_record` per question, every condition probed; the folder keeps finished groups
    of questions.

    tries, max_tokens: as `own_samples` takes them; with tries=0 the samples are those that come
    with the questions. written: what was written before, one entry a question. of: the study whose
    records these are, and `more` its own settings.
    """
    if written is None and tries == 0:
        written = [given_samples(question) for question in questions]
    groups = [
        (k, questions[k : k + _GROUP], None if written is None else list(written[k : k + _GROUP]))
        for k in range(0, len(questions), _GROUP)
    ]
    settings = {"seed": seed, "stride": stride, "tries": tries, "max_tokens": max_tokens} | more
    made = (of or STUDY).run(groups, folder, progress=progress, inputs={"lm": lm}, **settings)
    return dataclasses.replace(made, records=[one for group in made.records for one in group])


def write_evidence(
    made: Made,
    questions: list[Question],
    folder: Path,
    *,
    scale: str,
    command: str,
    settings: dict,
    of: Study | None = None,
) -> Path:
    """Write trajectories.<scale>.json: values of C1 and C2, all curves, and the sampled texts. of:
    as `study` takes it.
    """
    templates = [question.template for question in questions]
    more = {"settings": settings, "templates": templates}
    return (of or STUDY).write(made, folder, command=command, scale=scale, **more)
