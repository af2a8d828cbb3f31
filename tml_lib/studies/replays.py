"""How each study's evidence is made again: see `claims.replay`.

A record that cost a training run is replayed by the first steps of that training. The evidence
keeps their losses, and says where they were made after the run. Where the trained weights are
shipped (SmolLM2's adapter), the record itself is.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Sequence

import numpy as np

from tml_lib.claims.replay import ESTIMANDS, FIRST_STEPS, RECORD, Pairs, Replay
from tml_lib.data import gsm, toy
from tml_lib.lm import models
from tml_lib.lm.answers import extract
from tml_lib.lm.models import LanguageModel
from tml_lib.measure import token_roles
from tml_lib.records import Trajectory
from tml_lib.studies import (
    chain,
    efficiency,
    lora,
    paths,
    program_probes,
    published,
    rl,
    roles,
    supervised,
    toy_maml,
    trajectories,
    updates,
)

STEPS = 20  # of a training that is begun again


@functools.cache
def _model(name: str, dtype: str = "float32") -> LanguageModel:
    """SmolLM2 by the name that evidence gives it, with the shipped adapter where the name ends in
    '+sft'.
    """
    return (
        lora.load("small", adapter="stored")
        if name.endswith("+sft")
        else models.load("small", dtype=dtype)
    )


def _by_question(evidence: dict) -> Sequence[str]:
    """The questions of a study of the embedded model on `gsm_symbolic`; evidence of another model
    has none.
    """
    known = evidence["scale"] in ("small", "small-sft")
    return [f"question {k}" for k in range(len(evidence["templates"]))] if known else []


def _place(name: str) -> int:
    """'question 7' -> 7."""
    return int(name.split()[-1])


def _stored(evidence: dict, test: str, place: int, seed: int = 0) -> float:
    value = evidence["values"][test][seed][place]
    return math.nan if value is None else value


def _pairs(evidence: dict, place: int, found: dict[str, float]) -> Pairs:
    return {test: (_stored(evidence, test, place), float(value)) for test, value in found.items()}


# --- a question of the embedded model -------------------------------------------------------------


def _trajectory(evidence: dict, name: str) -> Pairs:
    settings, k = evidence["settings"], _place(name)
    question = trajectories.study_questions(settings["n_questions"], settings["seed"])[k]
    # evidence of an earlier version does not hold the texts that the model wrote
    kept = "sampled" in evidence
    text = evidence["sampled"][k] if kept else None
    sampled = None if text is None else Trajectory(text, "sampled", extract(text), False)
    record = trajectories.question_record(
        _model(settings["model"]),
        question,
        sampled,
        seed=settings["seed"],
        stride=settings["stride"],
    )
    found = trajectories.estimands(record, settings["stride"])
    return _pairs(
        evidence,
        k,
        {test: x for test, x in found.items() if kept or not test.startswith("C2.sampled")},
    )


def _roles(evidence: dict, name: str) -> Pairs:
    seed, k = evidence["settings"]["seed"], _place(name)
    lm, question = (
        _model(evidence["settings"]["model"]),
        roles.questions(len(evidence["templates"]), seed)[k],
    )
    values, _ = roles.cut_values(lm, [question], seed)
    found = {test: column[0] for test, column in values.items()}
    if k % roles.EVERY == 0:
        found |= token_roles.role_values(
            lm, question, gsm.reflecting(question, seed), token_roles.text_pieces
        )[0]
    return _pairs(evidence, k, found)


def _path(evidence: dict, name: str) -> Pairs:
    settings, k = evidence["settings"], _place(name)
    lm, asked = paths.material("small", "", len(evidence["templates"]), settings["seed"])
    return _pairs(evidence, k, paths.text_record(asked[k], lm, settings["stride"]))


def _update(evidence: dict, name: str) -> Pairs:
    settings, k = evidence["settings"], _place(name)
    lm = _model(settings["model"])
    case = updates.study_cases(lm, settings["n_questions"], settings["seed"])[k]
    exact = updates.exactness(_model(settings["model"], "float64").model, case)
    found = updates.measure(lm.model, case, stride=settings["stride"], seed=settings["seed"])
    return _pairs(evidence, k, updates.estimands(exact, found))


def _lora(evidence: dict, name: str) -> Pairs:
    """A held-out question before training and with the shipped adapter: greedy answers and L̂, not
    the samples.
    """
    seed, k = evidence["settings"]["seed"], _place(name)
    questions = lora.held_out_questions(len(evidence["templates"]), seed)
    records = [dict(record) for record in evidence["records"]]
    for record in records:
        if record["arm"] != "answers":
            arm = "SmolLM2-135M-Instruct" + ("+sft" if record["arm"] == "gold" else "")
            found = lora.measured(_model(arm), [questions[k]], seed)
            record["greedy"] = {
                "right": _with(record["greedy"]["right"], k, found["greedy"]["right"][0])
            }
            record["nll"] = _with(record["nll"], k, found["nll"][0])
    values = lora.estimands(records, questions, evidence["fresh"])
    return _pairs(evidence, k, {test: column[k] for test, column in values.items()})


def _with(numbers: Sequence, place: int, value) -> list:
    return [*numbers[:place], value, *numbers[place + 1 :]]


# --- estimands of stored records ------------------------------------------------------------------


def _seeds(evidence: dict) -> Sequence[str]:
    return [f"seed {k}" for k in range(len(next(iter(evidence["values"].values()))))]


def _from_records(estimands: Callable[[dict], dict]) -> Replay:
    """The values of a seed, computed from its record; each test's mean, and its value that lies
    farthest, are compared.
    """

    def again(evidence: dict, name: str) -> Pairs:
        seed, found = _place(name), {}
        for test, values in estimands(evidence, seed).items():
            stored = np.array(
                [math.nan if x is None else x for x in evidence["values"][test][seed]]
            )
            apart = np.where(
                np.isnan(stored) != np.isnan(values),
                math.inf,
                np.nan_to_num(np.abs(stored - values)),
            )
            far = int(apart.argmax())
            found[test] = (float(stored[far]), float(values[far]))
        return found

    return Replay(ESTIMANDS, _seeds, again, 1)


def _lora_estimands(evidence: dict, seed: int) -> dict:
    questions = lora.held_out_questions(len(evidence["templates"]), evidence["settings"]["seed"])
    return lora.estimands(evidence["records"], questions, evidence["fresh"])


# --- the first steps of a training ----------------------------------------------------------------


def _losses(stored: Sequence[float], replayed: Sequence[float], what: str = "loss") -> Pairs:
    """First, middle and last of the losses, and their mean."""
    last = len(replayed) - 1
    pairs = {f"{what} of step {k + 1}": (stored[k], replayed[k]) for k in (0, last // 2, last)}
    return pairs | {f"mean {what}": (float(np.mean(stored[: last + 1])), float(np.mean(replayed)))}


_TRAININGS = {
    "descent": lambda seed: toy_maml.first_losses("descent", seed, STEPS),
    "efficiency": lambda seed: program_probes.first_losses(seed, efficiency.mixed_rows, STEPS),
    "paths": lambda seed: program_probes.first_losses(seed, steps=STEPS),
    "probes": lambda seed: program_probes.first_losses(seed, steps=STEPS),
    "sinusoids": lambda seed: toy_maml.first_losses("sinusoids", seed, STEPS),
    "updates": lambda seed: toy.train_reasoner(seed, stop=STEPS)[1],
}


def _first_losses(evidence: dict, name: str) -> Pairs:
    return _losses(
        evidence["first_losses"][_place(name)], _TRAININGS[evidence["study"]](_place(name))
    )


def _kept_losses(evidence: dict) -> Sequence[str]:
    return [f"seed {k}" for k in range(len(evidence.get("first_losses", ())))]


def _sft(evidence: dict, name: str) -> Pairs:
    seed, found = _place(name), {}
    for arm in ("long", "short", "none"):
        rows = supervised.arm_rows(seed, supervised.ARMS[arm][0])
        losses = supervised.tuned(
            models.load("tiny", device="cpu"), rows, supervised.SFT_STEPS, stop=STEPS
        )[1]
        found[f"mean loss, {arm}"] = (
            evidence["records"][seed]["arms"][arm]["loss"][0],
            float(np.mean(losses)),
        )
    return found


def _support(evidence: dict, name: str) -> Pairs:
    seed, found = _place(name), {}
    for size in (1, 32):
        rows = supervised.support_rows(seed, size, supervised.SUPPORT_QUESTIONS)
        losses = supervised.tuned(
            models.load("tiny", device="cpu"), rows, supervised.SUPPORT_STEPS, stop=STEPS
        )[1]
        stored = evidence["records"][seed]["sizes"][str(size)]["loss"][0]
        found[f"mean loss, {size} trajectories"] = (stored, float(np.mean(losses)))
    return found


def _rl(evidence: dict, name: str) -> Pairs:
    seed, rate = _place(name), rl.best(evidence["rates"], "base", rl.GROUP)
    curve = rl.logged(rl.rewarded(models.load("tiny", device="cpu"), seed, STEPS, peak_lr=rate))
    return _losses(evidence["records"][seed]["curves"]["zero"]["reward"], curve["reward"], "reward")


def _sizes(evidence: dict, name: str) -> Pairs:
    seed, size = _place(name), random.Random(name).choice(rl.SIZES)
    cold, rate = rl.cold_start(seed, rl.COLD_STEPS), rl.best(evidence["rates"], "cold", size)
    curve = rl.logged(rl.rewarded(cold, seed, STEPS, update=size, peak_lr=rate))
    return _losses(
        evidence["records"][seed]["sizes"][str(size)]["curve"]["reward"],
        curve["reward"],
        f"reward, n = {size},",
    )


# --- all of them ----------------------------------------------------------------------------------


def _published(evidence: dict, name: str) -> Pairs:
    found, stored = published.estimands(published.models()), evidence["values"]
    return {
        f"{test}, {k + 1}": (stored[test][0][k], x)
        for test, column in found.items()
        for k, x in enumerate(column)
    }


def _seed_values(estimands: Callable[[dict], dict]) -> Callable[[dict, int], dict]:
    return lambda evidence, seed: estimands(evidence["records"][seed])


_FROM_LOSSES = Replay(FIRST_STEPS, _kept_losses, _first_losses, 15)
REPLAYS: dict[str, tuple[Replay, ...]] = {
    "chain": (_from_records(lambda evidence, seed: chain.estimands(evidence["records"])),),
    "descent": (_FROM_LOSSES,),
    "efficiency": (_FROM_LOSSES,),
    "lora": (Replay(RECORD, _by_question, _lora, 60), _from_records(_lora_estimands)),
    "paths": (
        Replay(RECORD, lambda e: _by_question(e) if "templates" in e else [], _path, 40),
        _FROM_LOSSES,
    ),
    "probes": (_FROM_LOSSES,),
    "published": (Replay(RECORD, lambda evidence: ["all models"], _published, 1),),
    "rl": (Replay(FIRST_STEPS, _seeds, _rl, 20), _from_records(_seed_values(rl.rl_estimands))),
    "sft": (
        Replay(FIRST_STEPS, _seeds, _sft, 15),
        _from_records(_seed_values(supervised.sft_estimands)),
    ),
    "sinusoids": (_FROM_LOSSES,),
    "sizes": (
        Replay(FIRST_STEPS, _seeds, _sizes, 50),
        _from_records(_seed_values(rl.size_estimands)),
    ),
    "support": (
        Replay(FIRST_STEPS, _seeds, _support, 10),
        _from_records(_seed_values(supervised.support_estimands)),
    ),
    "text": (Replay(RECORD, _by_question, _roles, 60),),
    "trajectories": (Replay(RECORD, _by_question, _trajectory, 40),),
    "updates": (
        Replay(RECORD, lambda e: _by_question(e) if "templates" in e else [], _update, 120),
        _FROM_LOSSES,
    ),
}
