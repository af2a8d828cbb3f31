"""The study of C3 and C6 for text models: thinking cut short, and what reflections do; the same
tests as on the tiny reasoner.

`material` gives notebook 07 its model and trajectories at any preset. Deviations from the paper:
gsm_symbolic's gold solutions with reflections written into them by rule (a small model writes
none), and greedy trajectories cut after `max_tokens` tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tml_lib import runtime
from tml_lib.claims import rulebook
from tml_lib.data import gsm, gsm_variants, programs
from tml_lib.data.gsm_variants import Reflecting
from tml_lib.lm import models, sampling
from tml_lib.lm.answers import ANSWER_TEMPLATE, grade
from tml_lib.lm.models import LanguageModel
from tml_lib.measure import token_roles
from tml_lib.measure.probe import probe
from tml_lib.records import Arms, Question
from tml_lib.studies import engine, lora, program_probes, trajectories
from tml_lib.studies.engine import Study
from tml_lib.studies.program_probes import settled

SHARES = (0.0, 0.25, 0.5, 0.75)  # of a trajectory's steps after which thinking is cut
MOST_TOKENS = 160  # of a trajectory
ANSWER_TOKENS = 12
STRIDE = 8
GROUP = 20  # questions of a record
# C6 takes one of every so many questions: each of their tokens is probed, which costs ten times as
# much as C3
EVERY = 4
PIECES = 30  # of a gold trajectory, which are left out one by one: a program's has 30 words
_STEP_END = re.compile(r"(?<=[.!?])\s+|\n+")


@dataclass(frozen=True, eq=False)
class Material:
    """What notebook 07 works on."""

    lm: LanguageModel
    questions: list[Question]
    found: list[list[Reflecting]]  # per question
    pieces: Callable  # a trajectory's tokens and their classes
    words: list[list[str]]  # per question the gold trajectory's, at most PIECES pieces

    def values(self, found: Sequence[tuple[dict, list]]) -> dict[str, list[list[float]]]:
        """The values of C6, as evidence has them, of what `token_roles.role_values` found."""
        return {test: [[row[test] for row, _ in found]] for test in found[0][0]}


def material(preset: str, *, n: int, seed: int, data: str = "", **chosen) -> Material:
    """A preset's model, n of its questions and their reflecting trajectories by rule. chosen: the
    model, as `lora.load` takes it.

    data: a set of the paper in place of gsm_symbolic, as `trajectories.chosen_questions` reads it.
    Raises ValueError for n < 1, or where an adapter or data are given for the tiny reasoner.
    """
    if n < 1:
        raise ValueError(f"n={n} questions have no tokens: ask for at least 1")
    trajectories.check_data(data, preset)
    lm = lora.load(preset, **chosen)
    if models.preset(preset).task == "programs":
        asked, pieces = programs.questions(n, seed, "held_out"), token_roles.program_pieces
        found = [token_roles.reflecting(q, seed) for q in asked]
    else:
        asked, pieces = questions(n, seed, data), token_roles.text_pieces
        found = [gsm_variants.reflecting(q, seed) for q in asked]
    return Material(lm, asked, found, pieces, [_pieces(gsm.gold(q).text.split()) for q in asked])


def _pieces(words: Sequence[str]) -> list[str]:
    """At most PIECES pieces of a text, of equally many words."""
    size = math.ceil(len(words) / PIECES)
    return [" ".join(words[k : k + size]) for k in range(0, len(words), size)]


def questions(n: int, seed: int, data: str = "") -> list[Question]:
    """n questions into whose gold solution both reflections can be written, none shown to the
    stored adapter.

    data: a set of the paper in place of gsm_symbolic; ValueError where it or the seed gives fewer.
    """
    if data:
        return trajectories.chosen_questions(
            data, n, seed, lambda question: gsm_variants.reflecting(question, seed)
        )
    wanted = trajectories.study_questions(n + 16 + n // 8, seed)
    trained = lora.fresh(wanted, lora.STEPS, 0)
    found = [
        q
        for q, fresh in zip(wanted, trained, strict=True)
        if fresh and gsm_variants.reflecting(q, seed)
    ]
    return engine.first_of(found, n, seed)


# --- C3 -------------------------------------------------------------------------------------------


def cut_values(
    lm: LanguageModel,
    asked: Sequence[Question],
    seed: int,
    max_tokens: int = MOST_TOKENS,
    texts: Sequence[str] | None = None,
) -> tuple[dict[str, Arms | np.ndarray], dict]:
    """The values of C3 per question, and beside them: share right and mean L̂ by the share of steps
    that thinking has, and the texts, with which of them were cut at `max_tokens` tokens.

    The model's own greedy trajectory, up to where it gives its answer in the kit's template, is cut
    and the model made to answer. NaN where it writes nothing before that. As a control it answers
    after as much text of another question's solution. texts: its trajectories, where they were
    written before.
    """
    prompts, unended = [lm.prompt(question.text) for question in asked], []
    if texts is None:
        how = {"temperature": 0, "max_new_tokens": max_tokens, "batch_size": 32}
        written = sampling.sample(lm, prompts, [0] * len(prompts), **how)
        texts = [lm.unanswered(text) for text in sampling.texts(lm, written)]
        unended = [one.cut for one in written]
    others = gsm.gsm_symbolic(64, seed)
    foreign = [
        gsm_variants.foreign(q, others, seed).text[: len(text)]
        for q, text in zip(asked, texts, strict=True)
    ]
    last = [cut(text, 1.0, less=1) for text in texts]
    groups = [*([cut(text, share) for text in texts] for share in SHARES), last, texts, foreign]
    right = np.array([forced(lm, asked, group) for group in groups], dtype=float)
    curves = [
        probe(lm, prompt, text, question.answer, stride=STRIDE) if text else None
        for prompt, text, question in zip(prompts, texts, asked, strict=True)
    ]
    whole = len(groups) - 2
    values = {
        "C3.optimum": Arms(right[whole], right[0]),
        "C3.loss": np.array([math.nan if c is None else c.fall for c in curves]),
        "C3.sooner": np.array(
            [math.nan if c is None else settled(c.answer_nll, c.positions) for c in curves]
        ),
        "C3.half": Arms(right[SHARES.index(0.5)], right[0]),
        "C3.last": Arms(right[whole], right[whole - 1]),
        "C3.foreign": Arms(right[-1], right[0]),
    }
    drawn = [
        np.interp(np.multiply((*SHARES, 1.0), c.length), c.positions, c.answer_nll)
        for c in curves
        if c is not None
    ]
    nll = np.mean(drawn, 0).tolist() if drawn else []
    shares = {
        "right": [*right[: len(SHARES)].mean(1).tolist(), float(right[whole].mean())],
        "nll": nll,
    }
    shares |= {"shares": [*SHARES, 1.0], "empty": texts.count("")}
    return values, shares | {"texts": texts, "cut": unended}


def cut(text: str, share: float, less: int = 0) -> str:
    """The text's first steps: that share of them, and `less` steps less. A step ends with a
    sentence or a line.
    """
    ends = [match.start() for match in _STEP_END.finditer(text)] + [len(text)]
    kept = max(math.floor(share * len(ends)) - less, 0)
    return text[: ends[kept - 1]] if kept else ""


def forced(lm: LanguageModel, asked: Sequence[Question], thoughts: Sequence[str]) -> list[bool]:
    """Whether the model answers rightly when made to answer after these texts."""
    prompts = [
        lm.prompt(q.text) + text + ANSWER_TEMPLATE for q, text in zip(asked, thoughts, strict=True)
    ]
    written = sampling.sample(
        lm, prompts, [0] * len(prompts), temperature=0, max_new_tokens=ANSWER_TOKENS, batch_size=32
    )
    boxes = [f"\\boxed{{{text.partition('}')[0]}}}" for text in sampling.texts(lm, written)]
    return [grade(box, question.answer) for box, question in zip(boxes, asked, strict=True)]


# --- the study ------------------------------------------------------------------------------------


def text_record(
    group: list[Question],
    folder: Path,
    *,
    lm: LanguageModel,
    seed: int,
    max_tokens: int,
    every: int = EVERY,
) -> dict:
    """The values of C3 and C6 for a group of questions, their curves by share of steps, and the
    tokens' rows.

    C6 takes of every `every` questions the first into which reflections can be written, and is NaN
    for the others; with 0 it takes none, and has no values.
    """
    cut_found, shares = cut_values(lm, group, seed, max_tokens)
    tests = [f"C6.{test['name']}" for test in rulebook.claims()["C6"]["tests"]] if every else []
    values = {name: [math.nan] * len(group) for name in tests}
    tokens = []
    for start in range(0, len(group), every) if every else ():
        for place in range(start, min(start + every, len(group))):
            if reflecting := gsm_variants.reflecting(group[place], seed):
                found, rows = token_roles.role_values(
                    lm, group[place], reflecting, token_roles.text_pieces
                )
                tokens += rows
                for name, value in found.items():
                    values[name][place] = value
                break
    table = {name: column.tolist() for name, column in cut_found.items()}
    return {"values": table | values, "cuts": shares, "tokens": tokens}


def _kept(records: Sequence[dict]) -> dict:
    """Share right and mean L̂ by the share of steps, over all groups, the texts with which of them
    were cut, and the token classes.
    """
    asked = np.array([len(r["values"]["C3.loss"]) for r in records])
    # a group that writes nothing has no L̂ to show
    drawn = asked - np.array([r["cuts"]["empty"] for r in records])
    cuts = {"shares": [*SHARES, 1.0], "empty": int(asked.sum() - drawn.sum())}
    for name, weights in (("right", asked), ("nll", drawn)):
        rows = [r["cuts"][name] for r, weight in zip(records, weights, strict=True) if weight]
        mean = np.average(rows, 0, weights[weights > 0]).round(4).tolist() if rows else []
        cuts[name] = mean
    texts = [text for record in records for text in record["cuts"]["texts"]]
    cut = [[int(one), 1] for record in records for one in record["cuts"]["cut"]]
    tokens = [row for record in records for row in record["tokens"]]
    classes = token_roles.by_class(tokens)
    return {"cuts": cuts, "classes": classes, "texts": texts, "cut": cut}


def _again(evidence: dict, place: int) -> dict[str, float]:
    settings, n = evidence["settings"], len(evidence["templates"])
    seed, most = settings["seed"], settings.get("max_tokens", MOST_TOKENS)
    question = questions(n, seed)[place]
    lm = lora.replayed(settings)
    # in bfloat16 a question that is asked alone is continued otherwise than among others
    written = evidence["texts"][place : place + 1] if "dtype" in settings else None
    again = cut_values(lm, [question], seed, most, written)[0]
    found = {test: np.asarray(column)[0] for test, column in again.items()}
    roles_of = evidence["values"].get("C6.absolute")  # none where C6 was left out
    if roles_of and roles_of[0][place] is not None:
        reflecting = gsm_variants.reflecting(question, seed)
        found |= token_roles.role_values(lm, question, reflecting, token_roles.text_pieces)[0]
    return found


STUDY = Study(
    "text", text_record, engine.by_group, _kept, replays=(engine.question_again(_again, 60),)
)


def make_evidence(
    preset: str,
    made: Material,
    *,
    n: int,
    seeds: int,
    seed: int,
    folder: Path,
    settings: dict,
    data: str = "",
    max_tokens: int = MOST_TOKENS,
) -> Path | None:
    """The evidence at a preset: C1, C2, C3 and C6 from `seeds` tiny reasoners, or C3 and C6 from n
    questions of text, GROUP at a time; the folder keeps finished groups.

    seeds=0 makes none. settings: the notebook's parameters, for the command that makes it again.
    """
    if models.preset(preset).task == "programs":
        command = runtime.run_command("07", {"study_seeds": seeds})
        return program_probes.STUDY.evidence(range(seeds), folder, command=command)
    if not seeds:
        return None
    said = {
        "command": runtime.run_command("07", settings),
        "scale": trajectories.scale_name(preset, data, made.lm.name),
    }
    asked = questions(n, seed, data)
    return text_evidence(made.lm, asked, folder, seed=seed, max_tokens=max_tokens, **said)


def text_evidence(
    lm: LanguageModel,
    asked: Sequence[Question],
    folder: Path,
    *,
    seed: int,
    max_tokens: int,
    scale: str,
    command: str,
    every: int = EVERY,
) -> Path:
    """Write text.<scale>.json; the folder keeps finished groups of questions. every: as
    `text_record` takes it.
    """
    groups = [list(asked[start : start + GROUP]) for start in range(0, len(asked), GROUP)]
    how = {"seed": seed, "max_tokens": max_tokens, "every": every}
    found = STUDY.run(groups, folder, progress=True, inputs={"lm": lm}, **how)
    more = {"command": command, "scale": scale}
    return STUDY.write_asked(found, lm, asked, folder, **more)
