"""Shortened trajectories at any preset (C10, RaML §4.3): what notebook 11 shows live, and the study
of a text model.

For programs the ways are those of `efficiency`. For text the model's own sample is shortened:
*withheld* is what stands before the sentence that states its result (the right answer's, where it
boxes none), and the *summary* of that is the model's own, cut likewise before the result. Beside it
stand as many words of the beginning, at random, and of another question's summary. From there the
model has room for its ending and no more (`ROOM`): with the room of a whole trajectory it would
think anew from any text. Text has no *pruned* way: what a class of its words is worth was not
learnt.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tml_lib.data import gsm, programs
from tml_lib.lm import models, sampling
from tml_lib.lm.answers import extract, grade
from tml_lib.lm.models import LanguageModel
from tml_lib.records import Question
from tml_lib.studies import efficiency, engine, lora, trajectories
from tml_lib.studies.engine import Study
from tml_lib.studies.program_probes import renamed
from tml_lib.studies.roles import MOST_TOKENS, forced

TEMPERATURE = 0.6
GROUP = 16  # questions of a record
# the part of a trajectory's greatest number of tokens that may follow a shortened one. From where
# its result is withheld, the median sample of `material.medium` has 46 tokens, of at most 400
ROOM = 1 / 4
ASK = (
    "Here is a question and the beginning of its solution. Summarise the beginning in one or two"
    " sentences, with the numbers that it has found, for someone who will finish it. Do not state"
    " the final result.\n\nQuestion: {question}\n\nBeginning: {text}"
)


@dataclass(frozen=True, eq=False)
class Shortened:
    """Questions, and per question its trajectory in each way, by name, as text."""

    lm: LanguageModel
    questions: list[Question]
    ways: list[dict[str, str]]
    programs: bool
    max_tokens: int = MOST_TOKENS  # of what is written for text
    cut: list[bool] | None = None  # per question whether its own sample was cut

    def right(self, way: str) -> list[bool]:
        """Per question whether the model comes to the right answer from there; after 'full' and
        'at_once' it must answer.
        """
        return self.finished([way])[0][way]

    def finished(
        self, ways: Sequence[str]
    ) -> tuple[dict[str, list[bool]], dict[str, list[int]], dict[str, list[bool]]]:
        """By way and per question whether the answer is right, as `right`, the words of trajectory,
        and whether what was written on was cut. The words are those given and those written on
        before the answer. A text model writes on from all ways in one batch, ROOM of `max_tokens`.
        An answer that must be given at once is not cut, nor are a program's last statements, which
        have a room of their own.
        """
        texts = {way: [found[way] for found in self.ways] for way in ways}
        right, words = {}, {way: [len(text.split()) for text in texts[way]] for way in ways}
        n = len(self.questions)
        cut = {way: [False] * n for way in ways}
        at_once = [way for way in ways if way in ("full", "at_once")]
        if self.programs:
            for way in ways:
                given = [text.split() for text in texts[way]]
                right[way], words[way] = efficiency.finished(
                    self.lm, self.questions, given, at_once=way in at_once
                )
            return right, words, cut
        right |= {way: forced(self.lm, self.questions, texts[way]) for way in at_once}
        others = [way for way in ways if way not in at_once]
        rows = [
            (question, text)
            for way in others
            for question, text in zip(self.questions, texts[way], strict=True)
        ]
        prompts = [self.lm.prompt(question.text) + text for question, text in rows]
        room = max(int(ROOM * self.max_tokens), 1)
        endings, unended = _written(self.lm, prompts, 0, 0, room) if rows else ([], [])
        graded = [
            not cut_short and grade(text + ending, question.answer)
            for (question, text), ending, cut_short in zip(rows, endings, unended, strict=True)
        ]
        right |= {way: graded[k * n : (k + 1) * n] for k, way in enumerate(others)}
        cut |= {way: unended[k * n : (k + 1) * n] for k, way in enumerate(others)}
        added = [len(own_text(self.lm, ending).split()) for ending in endings]
        for k, way in enumerate(others):
            more = added[k * n : (k + 1) * n]
            words[way] = [given + own for given, own in zip(words[way], more, strict=True)]
        return {way: right[way] for way in ways}, words, cut

    def values(self) -> tuple[engine.Values, dict[str, dict], dict[str, list[bool]]]:
        """The values of C10, as evidence has them; by way the share right and mean words; and by
        way and question whether the answer is right.
        """
        right, words, _ = self.finished(list(self.ways[0]))
        tables = (
            {way: np.array(column, dtype=float)[:, None] for way, column in table.items()}
            for table in (right, words)
        )
        found = efficiency.summed(*tables)
        # of a sample that did not end nothing is left, and so nothing can be saved
        saved = zip(words["full"], found["values"]["C10.saved"], strict=True)
        found["values"]["C10.saved"] = [x if whole else math.nan for whole, x in saved]
        values = {test: [numbers] for test, numbers in found["values"].items()}
        return values, found["modes"], right


def material(
    preset: str,
    *,
    n: int,
    seed: int,
    worth: dict[str, float],
    data: str = "",
    max_tokens: int = MOST_TOKENS,
    **chosen,
) -> Shortened:
    """A preset's model, n questions and their trajectories in every way. worth: of word classes,
    for programs. max_tokens: of a text model's own trajectory. chosen: the model, as `lora.load`
    takes it.

    data: a set of the paper in place of gsm_symbolic, as `trajectories.chosen_questions` reads it.
    Raises ValueError for n < 2 (the other question's summary needs another question), or data given
    for programs.
    """
    trajectories.check_data(data, preset)
    if n < 2:
        raise ValueError(
            f"n={n} questions leave no other question to compare with: ask for at least 2"
        )
    lm = lora.load(preset, **chosen)
    if models.preset(preset).task == "programs":
        asked = programs.questions(n, seed, "held_out")
        found, cut = efficiency.own_trajectories(lm, asked, seed, 1)
        ways = [_program_ways(asked, found, k, worth, seed) for k in range(n)]
        return Shortened(lm, asked, ways, True, cut=cut)
    asked = trajectories.chosen_questions(data, n, seed)
    ways, cut, _ = text_ways(lm, asked, seed, max_tokens)
    return Shortened(lm, asked, ways, False, max_tokens, cut)


def _program_ways(
    asked: Sequence[Question], found: Sequence[list[str]], k: int, worth: dict, seed: int
) -> dict[str, str]:
    rng, j = random.Random(f"shortened/{seed}/{k}"), (k + 1) % len(asked)
    other = efficiency.summary(found[j], efficiency.asked_letters(asked[j]))
    other = renamed(other, programs.parse(asked[k].text), rng)
    ways = efficiency.shortened(found[k], asked[k], other, worth, rng)
    return {name: " ".join(words) for name, words in ways.items()}


def text_ways(
    lm: LanguageModel, asked: Sequence[Question], seed: int, max_tokens: int, samples: int = 1
) -> tuple[list[dict[str, str]], list[bool], list[bool]]:
    """Per question the model's own sample in every way, and whether that sample and its summary
    were cut.

    asked: each question `samples` times in a row, and at least two questions.
    """
    prompts = [lm.prompt(question.text) for question in asked]
    written, cut = _written(lm, prompts, seed, TEMPERATURE, max_tokens)
    full = [own_text(lm, text) for text in written]
    results, withheld = _withheld(asked, full)
    short, cut_short = summaries(lm, asked, withheld, results, max_tokens // 2)
    return _ways(full, withheld, short, seed, samples), cut, cut_short


def _withheld(asked: Sequence[Question], full: Sequence[str]) -> tuple[list[str], list[str]]:
    """The results that texts state, and the texts before them."""
    results = [extract(text) or question.answer for text, question in zip(full, asked, strict=True)]
    return results, [before_result(text, end) for text, end in zip(full, results, strict=True)]


def _ways(
    full: Sequence[str], withheld: Sequence[str], short: Sequence[str], seed: int, samples: int
) -> list[dict[str, str]]:
    """The ways of whole samples, their texts before the result and their summaries; the last sample
    is followed by the first.
    """
    ways = []
    for k in range(len(full)):
        other = short[(k + samples) % len(full)]
        rng = random.Random(f"{seed}/{k}")
        ways.append(_same_length(full[k], withheld[k], short[k], other, rng))
    return ways


def own_text(lm: LanguageModel, text: str) -> str:
    """What a model thought, up to where it gives its answer in the kit's template."""
    return lm.unanswered(text)


def summaries(
    lm: LanguageModel,
    asked: Sequence[Question],
    withheld: Sequence[str],
    results: Sequence[str],
    most: int,
) -> tuple[list[str], list[bool]]:
    """The model's own summaries of texts, greedy, of at most so many tokens, cut before the first
    sentence that states the result; and whether each had not ended.

    withheld: the texts without their results, as `before_result` leaves them.
    """
    requests = [
        lm.asked(think=False).prompt(ASK.format(question=q.text, text=text), "")
        for q, text in zip(asked, withheld, strict=True)
    ]
    written, cut = _written(lm, requests, 0, 0, most)
    short = [
        before_result(text.strip(), result) for text, result in zip(written, results, strict=True)
    ]
    return short, cut


def _written(
    lm: LanguageModel, prompts: Sequence[str], seed: int, temperature: float, most: int
) -> tuple[list[str], list[bool]]:
    """What the model writes after each prompt, and whether it was cut after `most` tokens."""
    settings = {"temperature": temperature, "max_new_tokens": most, "batch_size": 32}
    found = sampling.sample(lm, prompts, sampling.row_seeds(seed, len(prompts)), **settings)
    return sampling.texts(lm, found), [one.cut for one in found]


def before_result(text: str, result: str) -> str:
    """The sentences and lines before the first that states the result; all of them where
    none does.
    """
    at = gsm.first_mention(text, result)
    if at is None:
        return text
    ends = [m.end() for m in re.finditer(r"[.!?]\s|\n", text[:at])]
    return text[: ends[-1]].rstrip() if ends else ""


def _same_length(
    full: str, withheld: str, summary: str, other: str, rng: random.Random
) -> dict[str, str]:
    """The ways, the last three with as many words as the summary where there are so many."""
    words = withheld.split()
    count = min(len(summary.split()), len(words))
    return {
        "full": full,
        "withheld": withheld,
        "summary": summary,
        "begun": " ".join(words[:count]),
        "random": " ".join(words[k] for k in sorted(rng.sample(range(len(words)), count))),
        "foreign": " ".join(other.split()[:count]),
        "at_once": "",
    }


# --- the study of a text model --------------------------------------------------------------------


def text_record(
    group: tuple[int, list[Question]],
    folder: Path,
    *,
    lm: LanguageModel,
    seed: int,
    samples: int,
    max_tokens: int,
) -> dict:
    """The values of C10 for a group of questions, of which the first has the place group[0]; per
    mode the share right, Pass@k, mean words and the share of continuations that were cut; the
    samples and their summaries, per question how many samples were cut, and how many summaries.
    """
    start, questions = group
    asked = [question for question in questions for _ in range(samples)]
    ways, cut, cut_short = text_ways(lm, asked, seed + start, max_tokens, samples)
    given = Shortened(lm, asked, ways, False, max_tokens, cut)
    shape = len(questions), samples
    right, words, cut_on = given.finished(list(ways[0]))
    right, words = (
        {mode: np.reshape(column, shape).astype(float) for mode, column in table.items()}
        for table in (right, words)
    )
    counts = [[int(table.sum()), samples] for table in np.reshape(cut, shape)]
    kept = {"texts": [way["full"] for way in ways], "summaries": [way["summary"] for way in ways]}
    found = efficiency.summed(right, words)
    for mode, column in cut_on.items():
        found["modes"][mode]["cut"] = float(np.mean(column))
    short = [sum(cut_short), len(cut_short)]
    return found | kept | {"cut": counts, "cut_summaries": [short]}


def _kept(records: Sequence[dict]) -> dict:
    """The modes' means over all questions, the texts and their summaries, per question how many
    texts were cut, and of each group how many summaries.
    """
    sizes = [len(next(iter(record["values"].values()))) for record in records]
    modes = {
        mode: {
            name: float(np.average([record["modes"][mode][name] for record in records], 0, sizes))
            for name in held
        }
        for mode, held in records[0]["modes"].items()
    }
    kept = ("texts", "summaries", "cut", "cut_summaries")
    flat = {key: [x for record in records for x in record[key]] for key in kept}
    return {"modes": modes} | flat


def _groups(asked: Sequence[Question]) -> list[tuple[int, list[Question]]]:
    """The questions of each record, and the place of its first."""
    starts = list(range(0, len(asked), GROUP))
    if len(asked) % GROUP == 1 and len(starts) > 1:  # another question's summary needs another
        starts.pop()
    ends = [*starts[1:], len(asked)]
    return [(start, list(asked[start:end])) for start, end in zip(starts, ends, strict=True)]


def _again(evidence: dict, place: int) -> dict[str, float]:
    """A question's values, from its samples and summaries as evidence keeps them: the model
    finishes them again.
    """
    settings = evidence["settings"]
    samples = settings["samples"]
    lm = lora.replayed(settings)
    asked = trajectories.chosen_questions("", settings["n_questions"], settings["seed"])
    engine.check_asked(evidence, asked)
    start, group = next(g for g in reversed(_groups(asked)) if g[0] <= place)
    held = slice(start * samples, (start + len(group)) * samples)
    full, short = (evidence[key][held] for key in ("texts", "summaries"))
    repeated = [question for question in group for _ in range(samples)]
    _, withheld = _withheld(repeated, full)
    ways = _ways(full, withheld, short, settings["seed"] + start, samples)
    own = slice((place - start) * samples, (place - start + 1) * samples)
    given = Shortened(lm, repeated[own], ways[own], False, settings["max_tokens"])
    right, words, _ = given.finished(list(ways[0]))
    tables = ({way: np.array([t[way]], dtype=float) for way in t} for t in (right, words))
    values = efficiency.summed(*tables)["values"]
    return {test: float(np.asarray(column)[0]) for test, column in values.items()}


TEXT = Study(
    "efficiency", text_record, engine.by_group, _kept, replays=(engine.question_again(_again, 65),)
)


def make_evidence(
    lm: LanguageModel,
    asked: Sequence[Question],
    folder: Path,
    *,
    scale: str,
    command: str,
    seed: int,
    samples: int = 4,
    max_tokens: int = MOST_TOKENS,
) -> Path:
    """Write efficiency.<scale>.json of a text model; the folder keeps finished groups."""
    how = {"seed": seed, "samples": samples, "max_tokens": max_tokens}
    made = TEXT.run(_groups(asked), folder, progress=True, inputs={"lm": lm}, **how)
    return TEXT.write_asked(made, lm, asked, folder, command=command, scale=scale)
