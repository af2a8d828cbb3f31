"""The path study of the tiny reasoner: does a trajectory's own parameter path descend on its own
landscape? (C12)

For each question the exact path θ'_0, …, θ'_|t| of `parameter_paths` is projected on the plane of
its largest spread (`landscape`). The loss of the answer without the trajectory is read off that
plane at the projected points: the picture that the paper could not draw. The same is done for the
control trajectories, each in its own plane. Reasoners are those of `reasoners`, questions and
trajectories those of `program_probes`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tml_lib import runtime
from tml_lib.claims.stats import trend
from tml_lib.data import gsm, programs
from tml_lib.lm import models
from tml_lib.lm.answers import encode
from tml_lib.lm.models import LanguageModel
from tml_lib.measure.landscape import path_losses, path_plane
from tml_lib.measure.parameter_paths import parameter_path
from tml_lib.records import Question
from tml_lib.studies import engine, lora, program_probes, reasoners, trajectories
from tml_lib.studies.engine import Study
from tml_lib.studies.own_trajectories import Own

KINDS = ("gold", "corrupted", "foreign", "shuffled")
QUESTIONS = 200


def material(
    preset: str, model: str, n: int, seed: int
) -> tuple[LanguageModel, list[tuple[Question, dict[str, str]]]]:
    """A preset's model and n questions, each with its gold trajectory and another question's,
    equally long, by kind.

    `tiny` takes the shipped reasoner and programs, unless a model is named; the others
    gsm_symbolic, cut to gold's tokens. The model has the preset's dtype, and paths need float32:
    at a lower precision no update is exact. Raises ValueError for n < 1.
    """
    if n < 1:
        raise ValueError(f"n={n} questions have no path to draw: ask for at least 1")
    if models.preset(preset).task == "programs":
        asked = programs.questions(n + 1, seed, "held_out")
        found = [
            program_probes.conditions(
                asked[k], asked[k + 1], random.Random(f"conditions/{seed}/{k}")
            )
            for k in range(n)
        ]
        texts = [{kind: " ".join(words[kind]) for kind in ("gold", "foreign")} for words in found]
        return models.load(preset, model=model or models.shipped("tiny-long")), list(
            zip(asked[:n], texts, strict=True)
        )
    lm = models.load(preset, model=model)
    return lm, text_material(lm, n, seed)


def text_material(
    lm: LanguageModel, n: int, seed: int, data: str = ""
) -> list[tuple[Question, dict[str, str]]]:
    """n questions of text, as `trajectories.chosen_questions` reads them, each with gold and
    another question's trajectory by kind.
    """
    asked = trajectories.chosen_questions(data, n, seed)
    others, nothing = trajectories.strangers(seed), Own()
    texts = [trajectories.build_conditions(lm, q, others, nothing, seed) for q in asked]
    return [
        (q, {kind: found[kind].text for kind in ("gold", "foreign")})
        for q, found in zip(asked, texts, strict=True)
    ]


def path_values(
    lm: LanguageModel, question: Question, words: dict[str, list[str]], end: int
) -> tuple[dict, dict]:
    """The values of C12 for one question, and by kind its losses: 'true' L̂ along the path and
    'plane', at its projection.

    end: words of gold before the first of the answer's. NaN where a path has no exact updates or
    spans no plane.
    """
    prompt, losses, explained = lm.prompt(question.text), {}, {}
    for kind, own in words.items():
        path = parameter_path(lm, prompt, " ".join(own), question.answer)
        try:
            plane = path_plane(path)
        # rows that are not independent, or points on a line: nothing to draw for this question
        except ValueError:
            continue
        losses[kind] = {
            "true": path.answer_nll,
            "plane": path_losses(lm.model, path, plane, plane.points),
        }
        explained[kind] = float(plane.explained.sum())
    tau = {kind: trend(found["plane"]) for kind, found in losses.items()} | {
        kind: math.nan for kind in KINDS if kind not in losses
    }
    gold = losses.get("gold")
    values = {
        "C12.descends": tau["gold"],
        "C12.descends_unstated": _trend_until(losses, "gold", end),
        "C12.over_foreign": tau["gold"] - tau["foreign"],
        "C12.unstated_over_foreign": (
            _trend_until(losses, "gold", end) - _trend_until(losses, "foreign", end)
        ),
        "C12.over_shuffled": tau["gold"] - tau["shuffled"],
        "C12.wrong": tau["corrupted"],
        "C12.explained": explained.get("gold", math.nan),
        "C12.gap": float(np.abs(gold["plane"] - gold["true"]).mean()) if gold else math.nan,
        "C12.fall": gold["plane"][0] - gold["plane"][-1] if gold else math.nan,
    }
    return {name: float(number) for name, number in values.items()}, losses


def _trend_until(losses: dict[str, dict], kind: str, end: int) -> float:
    """Tau of the loss in a path's plane over its first `end` words; NaN where there is no such
    path.
    """
    return trend(losses[kind]["plane"][: end + 1]) if kind in losses else math.nan


def descents(
    lm: LanguageModel, question: Question, texts: dict[str, str], stride: int = 1
) -> dict[str, dict[str, float]]:
    """By kind of trajectory: tau of the loss in the path's plane, the same over the prefixes that
    have no more tokens than gold before it states a word of the answer, tau of L̂ itself, and the
    share of the variance in the plane. The updates leave the prompt's rows alone where such exist
    (T ≤ d_ff). A path that spans no plane is left out.
    """
    prompt, found = lm.prompt(question.text), {}
    places = [
        k
        for word in question.answer.split()
        if (k := gsm.first_mention(texts["gold"], word)) is not None
    ]
    encoded = encode(lm.tokenizer, prompt, texts["gold"], [question.answer])
    end = encoded.tokens_before(min(places, default=len(texts["gold"])))
    for kind, text in texts.items():
        path = parameter_path(lm, prompt, text, question.answer, stride=stride)
        try:
            plane = path_plane(path, protect=path.exact(protect=True))
        except ValueError:
            continue
        losses = path_losses(lm.model, path, plane, plane.points)
        found[kind] = {
            "plane": trend(losses),
            "unstated": trend(losses[path.positions <= end]),
            "true": trend(path.answer_nll),
        }
        found[kind]["explained"] = float(plane.explained.sum())
    return found


def text_record(
    asked: tuple[Question, dict[str, str]], folder: Path, *, lm: LanguageModel, stride: int
) -> dict[str, float]:
    """The values of C12 for one question of text, as far as `descents` gives them; NaN where a path
    spans no plane.
    """
    found = descents(lm, *asked, stride)
    lost = dict.fromkeys(("plane", "unstated", "explained"), math.nan)
    gold, foreign = (found.get(kind, lost) for kind in ("gold", "foreign"))
    return {
        "C12.descends": gold["plane"],
        "C12.descends_unstated": gold["unstated"],
        "C12.over_foreign": gold["plane"] - foreign["plane"],
        "C12.unstated_over_foreign": gold["unstated"] - foreign["unstated"],
        "C12.explained": gold["explained"],
    }


def path_record(seed: int, folder: Path, *, questions: int, steps: int = reasoners.STEPS) -> dict:
    """One seed: 'values', test -> one number per question; 'curves', kind -> mean loss after each
    word, 'true' and 'plane'.
    """
    lm = reasoners.reasoner(seed, folder, steps=steps)
    asked, rows, curves = programs.questions(questions, seed, "held_out"), [], {}
    for k, question in enumerate(asked):
        found = program_probes.conditions(
            question, asked[(k + 1) % len(asked)], random.Random(f"conditions/{seed}/{k}")
        )
        end = program_probes.stated(found["gold"], question.answer)
        values, losses = path_values(lm, question, {kind: found[kind] for kind in KINDS}, end)
        rows.append(values)
        for kind, pair in losses.items():
            curves.setdefault(kind, []).append([pair["true"], pair["plane"]])
    means = {kind: np.mean(table, 0).round(4).tolist() for kind, table in curves.items()}
    return {
        "values": {name: [row[name] for row in rows] for name in rows[0]},
        "curves": {kind: {"true": true, "plane": plane} for kind, (true, plane) in means.items()},
        "drawn": {kind: len(table) for kind, table in curves.items()},
    }


STUDY = reasoners.of_reasoners("paths", path_record, QUESTIONS)


def _text_again(evidence: dict, place: int) -> dict[str, float]:
    settings, n = evidence["settings"], len(evidence["templates"])
    lm = lora.known(settings["model"], "float32")
    asked = text_material(lm, n, settings["seed"])
    return text_record(asked[place], Path(), lm=lm, stride=settings["stride"])


TEXT = Study(
    "paths",
    text_record,
    engine.by_question(lambda record, settings: record),
    lambda records: {},
    replays=(engine.question_again(_text_again, 40),),
)


def make_evidence(
    preset: str,
    lm: LanguageModel,
    asked: Sequence[tuple],
    *,
    seeds: int,
    stride: int,
    folder: Path,
    settings: dict,
) -> Path | None:
    """The evidence of C12 at a preset: from `seeds` tiny reasoners (0: none), or from the questions
    of text that are asked anyway.

    settings: the notebook's parameters, for the command that makes it again.
    """
    if models.preset(preset).task == "programs":
        command = runtime.run_command("06", {"study_seeds": seeds})
        return STUDY.evidence(range(seeds), folder, command=command)
    scale = trajectories.scale_name(preset, "", lm.name)
    said = {"scale": scale, "command": runtime.run_command("06", settings)}
    return text_evidence(lm, asked, folder, stride=stride, seed=settings["seed"], **said)


def text_evidence(
    lm: LanguageModel,
    asked: Sequence[tuple[Question, dict[str, str]]],
    folder: Path,
    *,
    stride: int,
    seed: int,
    scale: str,
    command: str,
) -> Path:
    """Write paths.<scale>.json of a text model; the folder keeps finished questions."""
    made = TEXT.run(asked, folder, progress=True, inputs={"lm": lm}, stride=stride)
    questions = [question for question, _ in asked]
    settings = {"stride": stride, "seed": seed} | engine.said_of(lm, questions)
    templates = [question.template for question in questions]
    more = {"settings": settings, "templates": templates}
    return TEXT.write(made, folder, command=command, scale=scale, **more)
