"""The trajectory study (C1, C2): L̂ along right and wrong trajectories of a text, with controls.

For each question it probes the gold trajectory, two kinds of wrong ones and the controls that tell
reasoning from copying (the answer's likelihood rises by copying alone once a trajectory has stated
it).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from tml_lib.data import gsm, gsm_variants, hub
from tml_lib.lm import models, presets
from tml_lib.lm.answers import encode, token_ids
from tml_lib.lm.models import LanguageModel
from tml_lib.measure.probe import probe
from tml_lib.records import ProbeCurve, Question, Trajectory
from tml_lib.studies import engine, lora, own_trajectories, probed_curves
from tml_lib.studies.engine import Made, Study
from tml_lib.studies.own_trajectories import Own

_STRANGERS = 64  # questions from which the trajectories of other questions are drawn
# compared with another over as many tokens
_BESIDE = {"foreign": "gold", "sampled": "own_right", "foreign_own": "own_right"}
TEXTS = ("sampled", "own_right")  # of the model's own, which evidence keeps
# what tells reasoning from length, order and copying
CONTROLS = ("foreign", "shuffled", "copying", "foreign_own")
KINDS = ("gold", "corrupted", "own_right", "sampled", *CONTROLS)
_GROUP = 8  # questions sampled together, and so lost at most when a run is interrupted


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


# --- conditions, and the curves along them --------------------------------------------------------


@functools.cache
def strangers(seed: int) -> list[Question]:
    """The questions from which the trajectories of other questions are drawn."""
    return gsm.gsm_symbolic(_STRANGERS, seed)


def build_conditions(
    lm: LanguageModel, question: Question, others: list[Question], own: Own, seed: int
) -> dict[str, Trajectory]:
    """The trajectories of one question by condition; one that cannot be built for this question is
    left out.

    foreign and copying are cut to the gold trajectory's length in tokens, foreign_own to that of
    the own right one; copying ends by stating the right answer.
    """
    prompt, gold = lm.prompt(question.text), gsm.gold(question)
    strange = gsm_variants.foreign(question, others, seed)
    length = len(encode(lm.tokenizer, prompt, gold.text, [question.answer]).trajectory)
    ending = f"\nThe result is {question.answer}."
    room = length - len(token_ids(lm.tokenizer, ending, begins=False))
    copying = _cut(lm, prompt, strange.text, max(room, 1)) + ending
    found = {
        "gold": gold,
        "corrupted": gsm_variants.corrupt(question, seed),
        "own_right": own.right,
        "sampled": own.wrong,
        "foreign": Trajectory(_cut(lm, prompt, strange.text, length), "foreign"),
        "shuffled": gsm_variants.shuffle_steps(question, seed),
        "copying": Trajectory(copying, "copying", question.answer, None),
    }
    if own.right and own.foreign:
        length = len(encode(lm.tokenizer, prompt, own.right.text, [question.answer]).trajectory)
        found["foreign_own"] = Trajectory(_cut(lm, prompt, own.foreign.text, length), "foreign_own")
    return {kind: trajectory for kind, trajectory in found.items() if trajectory is not None}


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


# --- the study ------------------------------------------------------------------------------------


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
        "curves": {kind: probed_curves.plain(by_answer) for kind, by_answer in curves.items()},
        "sampled": own.wrong and own.wrong.text,
        "own_right": own.right and own.right.text,
        "cut": [own.cut, own.samples],
    }


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
    written = own_trajectories.own_samples(lm, questions, **how) if given is None else given
    written = own_trajectories.with_foreign(questions, written)
    few = [kind for kind in kinds or KINDS if kind not in CONTROLS]
    found = []
    for place, (question, own) in enumerate(zip(questions, written, strict=True), start):
        chosen = kinds if controls is None or place < controls else few
        how = {"seed": seed, "stride": stride, "kinds": chosen}
        found.append(question_record(lm, question, own, **how))
    return found


def record_again(evidence: dict, place: int) -> dict:
    """A question's record from the texts that evidence keeps of it and of its group, under the
    conditions that it has there.
    """
    settings, start = evidence["settings"], place - place % _GROUP
    lm = lora.replayed(settings)
    asked = study_questions(settings["n_questions"], settings["seed"])[start : start + _GROUP]
    texts = [evidence[kind][start : start + _GROUP] for kind in TEXTS if kind in evidence]
    found = [
        own_trajectories.first_own(lm, [text for text in held if text is not None], question)
        for question, held in zip(asked, zip(*texts, strict=True), strict=bool(texts))
    ]
    own = own_trajectories.with_foreign(asked, found)[place - start] if found else Own()
    how = {"seed": settings["seed"], "stride": settings["stride"]}
    how["kinds"] = tuple(evidence["curves"][place])
    return question_record(lm, asked[place - start], own, **how)


def _again(evidence: dict, place: int) -> dict[str, float]:
    """A question's estimands from the texts that evidence keeps of the model's own. Evidence of an
    earlier version lacks some, and says nothing of them.
    """
    stride = evidence["settings"]["stride"]
    found = probed_curves.estimands(record_again(evidence, place), stride)
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
    engine.by_question(
        lambda record, settings: probed_curves.estimands(record, settings["stride"])
    ),
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
    max_tokens: int = own_trajectories.MOST_TOKENS,
    written: Sequence[Own] | None = None,
    progress: bool = False,
    of: Study | None = None,
    **more,
) -> Made:
    """One `question_record` per question, every condition probed; the folder keeps finished groups
    of questions.

    tries, max_tokens: as `own_trajectories.own_samples` takes them; with tries=0 the samples are
    those that come with the questions. written: what was written before, one entry a question.
    of: the study whose records these are, and `more` its own settings.
    """
    if written is None and tries == 0:
        written = [own_trajectories.given_samples(question) for question in questions]
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
