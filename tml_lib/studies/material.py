"""What a model writes to a set of questions, made once, stored, and shared by the studies of it.

Every sample says how many tokens it has, whether it was cut, and whether it is right. What a study
needs beside samples (greedy texts, summaries, answers without thinking) it asks for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from tml_lib.claims import ledger
from tml_lib.claims.replay import ESTIMANDS, RECORD, Pairs, Replay
from tml_lib.lm import sampling
from tml_lib.lm.answers import grade, token_ids
from tml_lib.lm.models import LanguageModel
from tml_lib.lm.placed import device_of
from tml_lib.records import Question
from tml_lib.studies import engine, lora, own_trajectories, trajectories
from tml_lib.studies.engine import Study
from tml_lib.studies.own_trajectories import Own

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
    """What the model wrote to one question."""

    id: str  # of the question
    samples: tuple[Text, ...]
    # nats per token of the first sample, for the first question of a group: what a replay compares
    first_nll: float | None


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


def owns(lm: LanguageModel, path: Path) -> tuple[list[Question], list[Own]]:
    """The questions of an evidence file of this study, and the first right and wrong of each one's
    samples, as the other studies take them; a sample that was cut is neither.
    """
    asked, found = stored(path)
    return asked, [
        replace(
            own_trajectories.first_own(
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
    found = [
        Written(**one | {"samples": tuple(Text(**text) for text in one["samples"])})
        for one in evidence["written"]
    ]
    engine.check_asked(evidence, asked)
    return asked, found


def group_record(
    group: tuple[int, list[Question]],
    folder: Path,
    *,
    lm: LanguageModel,
    seed: int,
    samples: int,
    max_tokens: int,
) -> list[dict]:
    """What the model writes to a group of questions, of which the first has the place group[0].

    A question's seeds come from its place, so its first samples depend neither on the group nor on
    how many there are.
    """
    start, questions = group
    prompts = [lm.prompt(question.text) for question in questions for _ in range(samples)]
    places = range(start, start + len(questions))
    seeds = [one for place in places for one in sampling.row_seeds([seed, place], samples)]
    how = {"temperature": TEMPERATURE, "top_k": TOP_K, "batch_size": BATCH, "progress": True}
    found = sampling.sample(lm, prompts, seeds, max_new_tokens=max_tokens, **how)
    texts = sampling.texts(lm, found)
    written = []
    for k, question in enumerate(questions):
        here = slice(k * samples, (k + 1) * samples)
        own = tuple(
            Text(text, len(one.ids), one.cut, not one.cut and grade(text, question.answer))
            for one, text in zip(found[here], texts[here], strict=True)
        )
        nll = None if k else round(mean_nll(lm, question, own[0].text), 4)
        written.append(asdict(Written(question.id, own, nll)))
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
        return float("nan")
    row = torch.tensor([[*prompt, *ids]], device=device_of(lm.model))
    logits = lm.model(input_ids=row, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
    return float(torch.nn.functional.cross_entropy(logits, row[0, len(prompt) :]))


def _graded_again(evidence: dict, name: str) -> Pairs:
    """Of a question, the texts graded right: as stored, and by today's grader."""
    asked, found = _held(evidence)
    question, one = asked[engine.place_of(name)], found[engine.place_of(name)]
    now = [not text.cut and grade(text.text, question.answer) for text in one.samples]
    return {"right samples": (sum(text.right for text in one.samples), sum(now))}


def _read_again(evidence: dict, name: str) -> Pairs:
    """Of a question, the loss of its first sample, read by the model again."""
    asked, found = _held(evidence)
    lm, place = lora.replayed(evidence["settings"]), engine.place_of(name)
    again = mean_nll(lm, asked[place], found[place].samples[0].text)
    return {"nats per token of the first sample": (engine.number(found[place].first_nll), again)}


def _all_questions(evidence: dict) -> list[str]:
    return [f"question {k}" for k in range(len(evidence["written"]))]


def _first_questions(evidence: dict) -> list[str]:
    """The first question of every group, whose first sample was read when it was written."""
    read = [one["first_nll"] is not None for one in evidence["written"]]
    return [name for name in engine.questions_of(evidence) if read[engine.place_of(name)]]


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
        Replay(RECORD, _first_questions, _read_again, 90),
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
