"""Is bfloat16 good enough? L̂ of one model in bfloat16 and in float32, at equal positions, along
gold and the model's own trajectories, and what the difference does to the estimands of C1 and C2.

Deviation from `trajectories`: of another question's trajectory only the two positions are probed
that `C1.content` needs, and estimands whose conditions are not probed are left out.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from tml_lib.claims import ledger
from tml_lib.claims.replay import RECORD, Pairs, Replay
from tml_lib.claims.stats import Interval, bootstrap_interval
from tml_lib.data import gsm, gsm_variants
from tml_lib.lm.answers import encode
from tml_lib.lm.models import LanguageModel
from tml_lib.measure.probe import probe
from tml_lib.records import ProbeCurve, Question, Trajectory
from tml_lib.studies import engine, lora, material, own_trajectories, probed_curves, trajectories
from tml_lib.studies.engine import Study
from tml_lib.studies.own_trajectories import Own

DTYPES = ("bfloat16", "float32")
KINDS = ("gold", "own_right", "sampled")
PERCENT = (50, 95, 100)  # of the absolute differences


def question_record(
    case: tuple[Question, Own],
    folder: Path,
    *,
    models: dict[str, LanguageModel],
    seed: int,
    stride: int,
) -> dict:
    """One question's curves by trajectory and dtype, and its estimands by dtype."""
    question, own = case
    found = {"gold": gsm.gold(question), "own_right": own.right, "sampled": own.wrong}
    found = {kind: one for kind, one in found.items() if one is not None}
    curves = {
        name: {
            kind: probe(lm, lm.prompt(question.text), one.text, question.answer, stride=stride)
            for kind, one in found.items()
        }
        for name, lm in models.items()
    }
    values = {}
    for name, lm in models.items():
        gold = curves[name]["gold"]
        end = gold.unstated
        strange = gsm_variants.foreign(question, trajectories.strangers(seed), seed)
        fall = _fall(lm, question, strange, end)
        values[name] = _estimands(curves[name], fall, stride)
    plain = {
        kind: {
            "positions": curves[DTYPES[0]][kind].positions.tolist(),
            **{name: np.round(curves[name][kind].answer_nll, 4).tolist() for name in models},
        }
        for kind in found
    }
    texts = {kind: one.text for kind, one in found.items() if kind != "gold"}
    return {"id": question.id, "curves": plain, "values": values, "texts": texts}


def _fall(lm: LanguageModel, question: Question, strange: Trajectory, end: int) -> float:
    """The fall of L̂ over the first `end` tokens of another question's trajectory."""
    prompt = lm.prompt(question.text)
    length = len(encode(lm.tokenizer, prompt, strange.text, [question.answer]).trajectory)
    places = [0, max(min(end, length), 1)]
    curve = probe(lm, prompt, strange.text, question.answer, positions=places)
    return float(curve.answer_nll[0] - curve.answer_nll[-1])


def _estimands(curves: dict[str, ProbeCurve], foreign: float, stride: int) -> dict[str, float]:
    """The estimands of C1 and C2 that these curves give, by their names in claims.toml."""
    gold, right, wrong = (probed_curves.alone(curves.get(kind), stride) for kind in KINDS)
    found = {f"C1.{name}": value for name, value in gold.items()}
    found["C1.content"] = gold["unstated"] - foreign
    found |= {f"C1.own_{name}": right[name] for name in ("trend", "trend_unstated", "unstated")}
    return found | {f"C2.sampled_{name}": wrong[name] for name in ("trend", "fall")}


# --- the study ------------------------------------------------------------------------------------


def differences(evidence: dict) -> dict[str, list[float]]:
    """By kind of trajectory, and over all ('all'): median, 95th percentile and worst of
    |L̂ in bfloat16 - L̂ in float32|, in nats per token.
    """
    found = {kind: [] for kind in KINDS}
    for record in evidence["records"]:
        for kind, curve in record["curves"].items():
            found[kind] += np.abs(np.subtract(*(curve[name] for name in DTYPES))).tolist()
    found["all"] = [x for kind in KINDS for x in found[kind]]
    return {kind: np.percentile(all_, PERCENT).tolist() for kind, all_ in found.items() if all_}


def estimates(evidence: dict) -> dict[str, dict[str, Interval]]:
    """Per estimand its mean in each dtype, and of the difference bfloat16 - float32."""
    tests, found = evidence["records"][0]["values"][DTYPES[0]], {}
    for test in tests:
        pairs = [
            [record["values"][name][test] for name in DTYPES] for record in evidence["records"]
        ]
        pairs = np.array([pair for pair in pairs if None not in pair], dtype=float)
        if len(pairs) > 1:
            columns = {
                **dict(zip(DTYPES, pairs.T, strict=True)),
                "difference": -np.diff(pairs)[:, 0],
            }
            found[test] = {name: bootstrap_interval(x, seed=0) for name, x in columns.items()}
    return found


def _again(evidence: dict, name: str) -> Pairs:
    """A question's estimands in both dtypes, from the texts that evidence keeps."""
    settings, place = evidence["settings"], engine.place_of(name)
    question = trajectories.study_questions(settings["n_questions"], settings["seed"])[place]
    stored = evidence["records"][place]
    models = {name: lora.known(settings["model"], name) for name in DTYPES}
    own = own_trajectories.first_own(models[DTYPES[0]], stored["texts"].values(), question)
    how = {name: settings[name] for name in ("seed", "stride")}
    made = question_record((question, own), Path(), models=models, **how)
    return {
        f"{test} in {dtype}": (math.nan if value is None else value, made["values"][dtype][test])
        for dtype in DTYPES
        for test, value in stored["values"][dtype].items()
    }


STUDY = Study(
    "precision",
    question_record,
    lambda records, settings: {},
    lambda records: {"records": list(records)},
    replays=(Replay(RECORD, engine.questions_of, _again, 300),),
)


def make_evidence(
    models: dict[str, LanguageModel],
    written: Path,
    folder: Path,
    *,
    scale: str,
    command: str,
    stride: int,
) -> Path:
    """Write precision.<scale>.json. models: one model by dtype. written: evidence of `material`."""
    lm, told = models[DTYPES[0]], ledger.read_evidence(written)
    seed, cut = told["settings"]["seed"], told["cut"]
    asked, own = material.owns(lm, written)
    cases = list(zip(asked, own, strict=True))
    how = {"seed": seed, "stride": stride}
    made = STUDY.run(cases, folder, progress=True, inputs={"models": models}, **how)
    said = {"max_tokens": told["settings"]["max_tokens"]}
    more = {"command": command, "scale": scale, "settings": said, "cut": cut}
    return STUDY.write_asked(made, lm, asked, folder, **more)
