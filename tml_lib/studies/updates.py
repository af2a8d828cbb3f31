"""The update study (C11): existence, size, direction and transfer of the parameter updates that
trajectories equal.

`update_cases` makes the cases, `update_measures` measures them. Deviation from the paper: it
measures none of this.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tml_lib.claims.stats import trend
from tml_lib.data import toy
from tml_lib.lm.models import LanguageModel
from tml_lib.studies import engine, lora, trajectories
from tml_lib.studies.engine import Made, Study
from tml_lib.studies.update_cases import Case, gsm_case, toy_case
from tml_lib.studies.update_measures import exactness, measure, wide_copy

# --- estimands ------------------------------------------------------------------------------------


def estimands(exact: dict[str, float], record: dict) -> dict[str, float]:
    """The estimands of C11, C11g and C11t for one question (claims.toml says what each is), NaN
    where its conditions lack; those of all layers only where they were measured.
    """
    values = {
        "C11.exact": _log10(exact["last"]),
        "C11.size": record["size"],
        "C11.rank": record["rank"] / record["answer_tokens"],
        "C11.content": record["content"],
    }
    values |= _direction(record["steps"], record["ends"]) | _transfer(record["losses"]["last"])
    if "all" in exact:
        values["C11.exact_all"] = _log10(exact["all"])
    if whole := record["losses"].get("all"):
        others = {"same": "theta", "over_foreign": "foreign"}
        others |= {f"over_{kind}": kind for kind in ("best_gradient", "matched_gradient")}
        values |= {
            f"C11t.{test}_all": whole[under]["same"] - whole["gold"]["same"]
            for test, under in others.items()
        }
    return {name: float(number) for name, number in values.items()}


def _direction(steps: dict[str, dict], ends: dict) -> dict[str, float]:
    """C11g: the steps beside the gradient."""
    gold = steps["gold"]
    drop, norm = np.array(gold["drop"]), np.array(gold["norm"])
    by_size = [k for k in np.argsort(norm, kind="stable") if np.isfinite(drop[k])]
    total = float(np.nansum(gold["best_gradient_drop"]))
    values = {
        "C11g.cosine": _mean(gold["cosine"]),
        "C11g.cosine_unstated": _mean_until(gold, ends["gold"][0]),
        "C11g.over_random": _mean(gold["cosine"]) - _mean(gold["cosine_random"]),
        "C11g.abs_over_random": (
            _mean(np.abs(gold["cosine"])) - _mean(np.abs(gold["cosine_random"]))
        ),
        "C11g.downhill": _mean(np.clip(gold["cosine"], 0, None)),
        "C11g.share": float(np.nansum(drop)) / total if total > 0 else math.nan,
        "C11g.over_gradient": _mean(drop - np.array(gold["gradient_drop"])),
        "C11g.tokens": trend(np.abs(drop)[by_size]),
    }
    for kind in ("foreign", "shuffled", "corrupted"):
        held = steps.get(kind)
        ours, theirs = ends.get(kind, (0, 0))
        over = math.nan if held is None else _mean_until(gold, ours) - _mean_until(held, theirs)
        values[f"C11g.over_{kind}"] = over
    return values


def _transfer(last: dict[str, dict[str, float]]) -> dict[str, float]:
    """C11t: losses of sibling questions under updates of the last layer."""
    return {
        "C11t.same": last["theta"]["same"] - last["gold"]["same"],
        "C11t.over_foreign": last["foreign"]["same"] - last["gold"]["same"],
        "C11t.over_other": (
            (last["theta"]["same"] - last["gold"]["same"])
            - (last["theta"]["other"] - last["gold"]["other"])
        ),
        "C11t.over_gradient": last["gradient"]["same"] - last["gold"]["same"],
        "C11t.over_best_gradient": last["best_gradient"]["same"] - last["gold"]["same"],
        "C11t.over_matched_gradient": last["matched_gradient"]["same"] - last["gold"]["same"],
    }


def _log10(error: float) -> float:
    return math.log10(max(error, 1e-17))


def _mean(values) -> float:
    values = np.asarray(values, dtype=float)
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def _mean_until(steps: dict, end: int) -> float:
    """Mean cosine of the steps that end at or before a position."""
    return _mean(np.array(steps["cosine"])[np.array(steps["positions"][1:]) <= end])


# --- what figures need ----------------------------------------------------------------------------


def summary(record: dict) -> dict:
    """A record without its token-by-token steps: mean cosines by kind, mean falls per step, sizes
    by layer, losses.
    """
    gold, ends = record["steps"]["gold"], record["ends"]
    cosines = {kind: _mean_until(held, ends[kind][1]) for kind, held in record["steps"].items()}
    cosines |= {"whole": _mean(gold["cosine"]), "random": _mean(gold["cosine_random"])}
    cosines |= {"protected": _mean(gold["cosine_protected"]), "ceiling": _mean(gold["ceiling"])}
    # uphill steps count as 0: bounds every exact step
    cosines["downhill"] = _mean(np.clip(gold["cosine"], 0, None))
    falls = {name: _mean(gold[name]) for name in ("drop", "gradient_drop", "best_gradient_drop")}
    names = ("id", "by_layer", "by_kind", "losses", "answer_tokens")
    return {"cosines": cosines, "falls": falls} | {k: record[k] for k in names if k in record}


def by_token(records: list[dict], kind: str, name: str) -> list[float]:
    """The mean over equally long trajectories of one quantity of their paths ('answer_nll',
    'cosine', 'drop').
    """
    return engine.rounded(np.nanmean([r["steps"][kind][name] for r in records], axis=0), 4)


# --- the studies ----------------------------------------------------------------------------------


def study_cases(lm: LanguageModel, n: int, seed: int) -> list[Case]:
    """n gsm_symbolic questions as cases, with the trajectory study's choice of questions and
    controls.
    """
    others = trajectories.strangers(seed)
    return [
        gsm_case(lm, question, others, seed)
        for question in (trajectories.study_questions(n, seed) if n else [])
    ]


def exactness_record(case: Case, folder: Path, *, lm: LanguageModel) -> dict:
    """`exactness` of a case."""
    return exactness(lm.model, case)


def case_record(
    case: Case, folder: Path, *, lm: LanguageModel, stride: int, seed: int, layers: str
) -> dict:
    """`measure` of a case."""
    return measure(lm.model, case, stride=stride, seed=seed, layers=layers)


def toy_record(seed: int, folder: Path, *, questions: int, steps: int) -> dict:
    """A reasoner trained, and (exactness, record) of each of its chains."""
    model, _ = toy.train_reasoner(seed, steps=steps)
    wide = wide_copy(model)
    cases = [toy_case(question, seed) for question in toy.chains(questions, seed)]
    return {
        "made": [
            [exactness(wide, case), measure(model, case, stride=1, seed=seed)] for case in cases
        ]
    }


def _again(evidence: dict, place: int) -> dict[str, float]:
    settings = evidence["settings"]
    lm = lora.known(settings["model"], "float32")
    case = study_cases(lm, settings["n_questions"], settings["seed"])[place]
    layers = settings.get("layers", "all")
    wide = lora.known(settings["model"], "float64") if layers == "all" else lm
    found = measure(lm.model, case, stride=settings["stride"], seed=settings["seed"], layers=layers)
    return estimands(exactness(wide.model, case), found)


def _toy_estimands(record: dict) -> dict[str, list[float]]:
    rows = [estimands(exact, found) for exact, found in record["made"]]
    return {test: [row[test] for row in rows] for test in rows[0]}


def _toy_kept(records: Sequence[dict]) -> dict:
    """Means by token, for the figure."""
    seeds = [[found for _, found in record["made"]] for record in records]
    means = {
        kind: {
            name: [by_token(found, kind, name) for found in seeds]
            for name in ("answer_nll", "cosine")
        }
        for kind in ("gold", "foreign", "corrupted", "shuffled")
    }
    return {"by_token": means}


def _first_losses(seed: int) -> list[float]:
    return toy.train_reasoner(seed, stop=engine.FIRST)[1]


EXACT = Study("exact", exactness_record, protocol="updates")
MEASURED = Study("measured", case_record, protocol="updates")
STUDY = Study(
    "updates",
    case_record,
    engine.by_question(lambda record, settings: estimands(record["exact"], record)),
    lambda records: {"records": [summary(record) for record in records]},
    replays=(engine.question_again(_again, 120),),
)
TOY = Study(
    "updates",
    toy_record,
    engine.by_seed(_toy_estimands),
    _toy_kept,
    settings={"questions": 64, "steps": 1500},
    first_losses=_first_losses,
    replays=(engine.losses_again(_first_losses, 15),),
)


def write_evidence(
    exact: Made,
    measured: Made,
    cases: Sequence[Case],
    folder: Path,
    *,
    scale: str,
    command: str,
    settings: dict,
) -> Path:
    """Write updates.<scale>.json from the records of `EXACT` and `MEASURED`."""
    pairs = zip(exact.records, measured.records, strict=True)
    made = dataclasses.replace(
        measured,
        records=[record | {"exact": one} for one, record in pairs],
        seconds=exact.seconds + measured.seconds,
    )
    more = {"settings": settings, "templates": [case.template for case in cases]}
    return STUDY.write(made, folder, command=command, scale=scale, **more)
