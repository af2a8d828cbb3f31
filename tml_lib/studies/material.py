"""What a model writes to a set of questions, made once, stored, and shared by the studies of it.

Per question: samples, the greedy text, the model's own summary of it where it is right (the result
withheld by rule), and what it answers without thinking. Every text says how many tokens it has,
whether it was cut, and whether it is right.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from tml_lib.claims import ledger
from tml_lib.claims.replay import ESTIMANDS, RECORD, Pairs, Replay
from tml_lib.lm import sampling
from tml_lib.lm.answers import ANSWER_TEMPLATE, grade, token_ids
from tml_lib.lm.models import LanguageModel
from tml_lib.lm.placed import device_of
from tml_lib.records import Question
from tml_lib.studies import engine, lora, shortened, trajectories
from tml_lib.studies.engine import Study
from tml_lib.studies.roles import ANSWER_TOKENS

SAMPLES = 8  # of a question; what Pass@8 needs
TEMPERATURE, TOP_K = 0.7, 50  # the paper's (RaML Table 5)
GROUP = 32  # questions of a record, sampled together
BATCH = 64  # rows


@dataclass(frozen=True)
class Text:
    """One text that the model wrote to a question."""

    text: str
    tokens: int
    cut: bool  # it had not ended at the greatest number of tokens
    right: bool


@dataclass(frozen=True)
class Written:
    """All that the model wrote to one question."""

    id: str  # of the question
    samples: tuple[Text, ...]  # with thinking
    greedy: Text
    greedy_nll: float  # nats per token of the greedy text; what a replay compares
    summary: Text | None  # of the greedy text before its result; None where that is wrong or cut
    at_once: tuple[Text, ...]  # without thinking, as many as samples
    greedy_at_once: Text


def stored(path: Path) -> tuple[list[Question], list[Written]]:
    """The questions of an evidence file of this study, and what was written to each.

    Raises ValueError where the file is none, or its questions are no longer made as they were.
    """
    evidence = ledger.read_evidence(path)
    if evidence["study"] != STUDY.name:
        raise ValueError(
            f"{path} is evidence of {evidence['study']!r}: give a material.<scale>.json, as"
            " `python -m tml_lib study material` writes it"
        )
    return _held(evidence)


def owns(lm: LanguageModel, path: Path) -> tuple[list[Question], list[trajectories.Own]]:
    """The questions of an evidence file of this study, and the first right and wrong of each one's
    samples, as the other studies take them; a sample that was cut is neither.
    """
    asked, found = stored(path)
    return asked, [
        replace(
            trajectories.first_own(
                lm, [t.text.strip() for t in one.samples if not t.cut], question
            ),
            samples=len(one.samples),
            cut=sum(text.cut for text in one.samples),
        )
        for question, one in zip(asked, found, strict=True)
    ]


def _held(evidence: dict) -> tuple[list[Question], list[Written]]:
    settings = evidence["settings"]
    asked = trajectories.chosen_questions(
        settings["data"], settings["n_questions"], settings["seed"]
    )
    found = [_parsed(record) for record in evidence["written"]]
    if [question.id for question in asked] != [one.id for one in found]:
        raise ValueError(
            f"this evidence holds other questions than seed {settings['seed']} gives now: make it"
            f" again with `{evidence['command']}`"
        )
    return asked, found


def _parsed(record: dict) -> Written:
    many = {name: tuple(Text(**one) for one in record[name]) for name in ("samples", "at_once")}
    ones = {name: Text(**record[name]) for name in ("greedy", "greedy_at_once")}
    summary = record["summary"] and Text(**record["summary"])
    return Written(**record | many | ones | {"summary": summary})


def group_record(
    group: tuple[int, list[Question]],
    folder: Path,
    *,
    lm: LanguageModel,
    seed: int,
    samples: int,
    max_tokens: int,
) -> list[dict]:
    """What the model writes to a group of questions, of which the first has the place group[0]."""
    start, questions = group
    write = functools.partial(_write, lm, max_tokens=max_tokens)
    draws = {"temperature": TEMPERATURE, "top_k": TOP_K, "seed": seed + start}
    many = [question for question in questions for _ in range(samples)]
    short = {"begin": ANSWER_TEMPLATE, "max_tokens": ANSWER_TOKENS}
    sampled, at_once = write(many, **draws), write(many, **draws, **short)
    greedy, greedy_at_once = write(questions), write(questions, **short)
    summary = _summaries(lm, questions, greedy, max_tokens // 2)
    return [
        asdict(
            Written(
                question.id,
                tuple(sampled[k * samples : (k + 1) * samples]),
                greedy[k],
                round(mean_nll(lm, question, greedy[k].text), 4),
                summary.get(k),
                tuple(at_once[k * samples : (k + 1) * samples]),
                greedy_at_once[k],
            )
        )
        for k, question in enumerate(questions)
    ]


def _summaries(
    lm: LanguageModel, questions: Sequence[Question], greedy: Sequence[Text], most: int
) -> dict[int, Text]:
    """By a question's place, the model's summary of its right text, in which the result is
    withheld.
    """
    right = [k for k, one in enumerate(greedy) if one.right]
    if not right:
        return {}
    asked, results = [questions[k] for k in right], [questions[k].answer for k in right]
    withheld = [
        shortened.before_result(shortened.own_text(lm, greedy[k].text), result)
        for k, result in zip(right, results, strict=True)
    ]
    found = zip(right, *shortened.summaries(lm, asked, withheld, results, most), strict=True)
    return {
        k: Text(text, len(token_ids(lm.tokenizer, text)), cut, right=True) for k, text, cut in found
    }


def _write(
    lm: LanguageModel,
    questions: Sequence[Question],
    *,
    max_tokens: int,
    seed: int = 0,
    temperature: float = 0,
    top_k: int = 0,
    begin: str = "",
) -> list[Text]:
    """One text per question; begin: words put into the model's mouth, which the text lacks."""
    prompts = [lm.prompt(question.text) + begin for question in questions]
    how = {"temperature": temperature, "top_k": top_k, "batch_size": BATCH, "progress": True}
    seeds = sampling.row_seeds(seed, len(prompts))
    found = sampling.sample(lm, prompts, seeds, max_new_tokens=max_tokens, **how)
    written = []
    for question, one, text in zip(questions, found, sampling.texts(lm, found), strict=True):
        # an answer without thinking ends with its box, whatever comes then
        whole = f"\\boxed{{{text.partition('}')[0]}}}" if begin else text
        cut = "}" not in text if begin else one.cut
        written.append(Text(text, len(one.ids), cut, not cut and grade(whole, question.answer)))
    return written


# --- the study ------------------------------------------------------------------------------------


@torch.inference_mode()
def mean_nll(lm: LanguageModel, question: Question, text: str) -> float:
    """Mean negative log-probability of a text's tokens after its question, in nats per token; NaN
    for an empty text.
    """
    prompt = token_ids(lm.tokenizer, lm.prompt(question.text))
    ids = token_ids(lm.tokenizer, text, begins=False)
    if not ids:
        return math.nan
    row = torch.tensor([[*prompt, *ids]], device=device_of(lm.model))
    logits = lm.model(input_ids=row, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    return float(torch.nn.functional.cross_entropy(logits, row[0, len(prompt) :]))


def _graded_again(evidence: dict, name: str) -> Pairs:
    """Of a question, the texts graded right: as stored, and by today's grader."""
    asked, found = _held(evidence)
    question, one = asked[engine.place_of(name)], found[engine.place_of(name)]
    now = [not text.cut and grade(text.text, question.answer) for text in one.samples]
    greedy = not one.greedy.cut and grade(one.greedy.text, question.answer)
    return {
        "right samples": (sum(text.right for text in one.samples), sum(now)),
        "greedy right": (one.greedy.right, greedy),
    }


def _read_again(evidence: dict, name: str) -> Pairs:
    """Of a question, the loss of its greedy text, read by the model again."""
    asked, found = _held(evidence)
    lm, place = lora.replayed(evidence["settings"]["model"]), engine.place_of(name)
    again = mean_nll(lm, asked[place], found[place].greedy.text)
    return {"nats per token of the greedy text": (found[place].greedy_nll, again)}


def _all_questions(evidence: dict) -> list[str]:
    return [f"question {k}" for k in range(len(evidence["written"]))]


STUDY = Study(
    "material",
    group_record,
    lambda records, settings: {},
    lambda records: {
        "written": [one for group in records for one in group],
        "cut": [
            [sum(text["cut"] for text in one["samples"]), len(one["samples"])]
            for group in records
            for one in group
        ],
    },
    replays=(
        Replay(ESTIMANDS, _all_questions, _graded_again, 1),
        Replay(RECORD, engine.questions_of, _read_again, 90),
    ),
)


def make_evidence(
    lm: LanguageModel,
    asked: Sequence[Question],
    folder: Path,
    *,
    scale: str,
    command: str,
    seed: int,
    max_tokens: int,
    samples: int = SAMPLES,
    data: str = "",
) -> Path:
    """Write material.<scale>.json; the folder keeps finished groups."""
    groups = [(k, list(asked[k : k + GROUP])) for k in range(0, len(asked), GROUP)]
    how = {"seed": seed, "samples": samples, "max_tokens": max_tokens}
    made = STUDY.run(groups, folder, progress=True, inputs={"lm": lm}, **how)
    said = {"data": data, "temperature": TEMPERATURE, "top_k": TOP_K}
    more = {"command": command, "scale": scale, "settings": said}
    return STUDY.write_asked(made, lm, asked, folder, **more)
