"""The update study (C11): existence, size, direction and transfer of the parameter updates that
trajectories equal.

One question is a *case* in token ids, so that the same measurements run on gsm_symbolic with an LLM
and on chains with a tiny decoder. Deviation from the paper: it measures none of this.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch

from tml_lib.claims.stats import trend
from tml_lib.data import gsm, toy
from tml_lib.lm.answers import Suffix
from tml_lib.lm.answers import encode as encode_text
from tml_lib.lm.blocks import wide_tail
from tml_lib.lm.models import LanguageModel, widen_norms
from tml_lib.measure.implicit import Update, cosine, gradient_update, logit_error, update_from_ids
from tml_lib.measure.parameter_paths import (
    LINE_SEARCH,
    PathSteps,
    last_layer,
    path_from_ids,
    path_steps,
    updated_loss,
)
from tml_lib.measure.probe import naive_nll
from tml_lib.records import Question
from tml_lib.studies import engine, lora
from tml_lib.studies import trajectories as trajectory_study
from tml_lib.studies.engine import Made, Study
from tml_lib.studies.trajectories import Own, build_conditions

# of gradient steps in the transfer test, in the update's norm
STEP_LENGTHS = (1.0, 0.25, 0.0625, 0.015625, 0.00390625, 0.0)
FRACTIONS = (0.25, 0.5, 0.75, 1.0)  # of the trajectory, at which updates of all layers are made
_POOL = 600  # questions among which siblings are looked for


@dataclass(frozen=True)
class Case:
    """One question in token ids: its trajectories, where each stops being comparable, and two
    siblings.
    """

    id: str
    template: str
    prompt: tuple[int, ...]
    suffix: Suffix
    # by kind: gold, foreign and, where they exist, shuffled and corrupted
    trajectories: dict[str, tuple[int, ...]]
    # kind -> tokens of gold and of that kind before any answer is stated
    ends: dict[str, tuple[int, int]]
    # 'same' and 'other' template -> prompt and suffix
    siblings: dict[str, tuple[tuple[int, ...], Suffix]]


def gsm_case(lm: LanguageModel, question: Question, others: list[Question], seed: int) -> Case:
    """A gsm_symbolic question as a case, with the controls of the trajectory study. LookupError
    where it has no sibling.
    """
    prompt, answer = lm.prompt(question.text), question.answer
    conditions = build_conditions(lm, question, others, Own(), seed)
    conditions.pop("copying")
    wrong = conditions.get("corrupted")
    if wrong is not None and gsm.first_mention(wrong.text, answer) is not None:
        del conditions["corrupted"]  # it states the right answer by chance
    encoded = {
        kind: encode_text(lm.tokenizer, prompt, t.text, [answer]) for kind, t in conditions.items()
    }

    def before(kind: str, stated: str) -> int:
        offset = gsm.first_mention(conditions[kind].text, stated)
        return (
            len(encoded[kind].trajectory) if offset is None else encoded[kind].tokens_before(offset)
        )

    gold_end = before("gold", answer)
    ends = {
        "gold": (gold_end, gold_end),
        "foreign": (gold_end, min(gold_end, len(encoded["foreign"].trajectory))),
    }
    if "shuffled" in conditions:
        ends["shuffled"] = tuple(
            encoded[kind].tokens_before(trajectory_study.free_end(question))
            for kind in ("gold", "shuffled")
        )
    if "corrupted" in conditions:
        ends["corrupted"] = (gold_end, before("corrupted", wrong.answer))
    siblings = {}
    for name in ("same", "other"):
        found = _sibling(question, name == "same", seed)
        side = encode_text(lm.tokenizer, lm.prompt(found.text), "", [found.answer])
        siblings[name] = (side.prompt, side.suffixes[0])
    trajectories = {kind: item.trajectory for kind, item in encoded.items()}
    gold = encoded["gold"]
    return Case(
        question.id, question.template, gold.prompt, gold.suffixes[0], trajectories, ends, siblings
    )


def _sibling(question: Question, same: bool, seed: int) -> Question:
    """A question of another seed with the same (or another) template and another answer, which does
    not stand in it.
    """
    pool = [q for q in _pool(_POOL, seed + 1000) if (q.template == question.template) == same]
    pool = [q for q in pool if gsm.first_mention(q.text, q.answer) is None]
    pool = [q for q in pool if gsm.value(q.answer) != gsm.value(question.answer)]
    if not pool:
        raise LookupError(
            f"no sibling of {question.id} (template {question.template}) among {_POOL} questions:"
            " enlarge _POOL"
        )
    return random.Random(f"{seed}/{question.id}/{same}").choice(pool)


@functools.cache
def _pool(n: int, seed: int) -> list[Question]:
    return gsm.gsm_symbolic(n, seed)


def toy_case(question: Question, seed: int) -> Case:
    """A chain as a case."""
    pair = {
        name: toy.sibling(question, seed, same_template=name == "same")
        for name in ("same", "other")
    }
    made = toy.altered_trajectories(question, seed, avoid=pair["same"].answer)
    stated = toy.TERMS * toy.STEP_TOKENS - 2  # the last value's two digits state the answer
    ends = dict.fromkeys(made, (stated, stated)) | {
        "shuffled": ((toy.TERMS - 1) * toy.STEP_TOKENS,) * 2
    }
    return Case(
        question.id,
        question.template,
        tuple(toy.prompt_ids(question)),
        toy.suffix(question.answer),
        {kind: tuple(toy.encode(t.text)) for kind, t in made.items()},
        ends,
        {name: (tuple(toy.prompt_ids(q)), toy.suffix(q.answer)) for name, q in pair.items()},
    )


# --- measurements ---------------------------------------------------------------------------------


def exactness(model, case: Case) -> dict[str, float]:
    """Largest logit error of the last layer's update, applied to the weights, and of all layers',
    as they are made in order: the latter only for a float64 model.

    The updated layer, and what follows it, compute in float64 whatever the model's dtype.
    """
    settings = (case.prompt, case.trajectories["gold"], case.suffix)
    with wide_tail(model):
        found = {"last": logit_error(model, update_from_ids(model, *settings), *settings)}
    if next(model.parameters()).dtype == torch.float64:
        found["all"] = update_from_ids(model, *settings, layers="all").logit_error
    return found


def wide_copy(model):
    """A float64 copy of a (small) model, its norms included."""
    wide = copy.deepcopy(model).double()
    widen_norms(wide)
    return wide


def measure(model, case: Case, *, stride: int, seed: int, layers: str = "all") -> dict:
    """Everything but exactness for one case, as JSON-ready numbers: steps by kind, sizes by layer,
    losses under updates.

    A step is that of one token; with a stride, every stride-th token's is measured, and NaN stands
    for what lies between. layers: 'last' leaves out the updates of all layers, each of which costs
    several passes.
    """
    steps, paths = {}, {}
    targets = {"own": (case.prompt, case.suffix), **case.siblings}
    bases = {name: last_layer(model, *target) for name, target in targets.items()}
    for kind, trajectory in case.trajectories.items():
        length, end = len(trajectory), case.ends[kind][1]
        starts = range(0, length, stride)
        places = {*starts, *(start + 1 for start in starts), length, min(end, length)}
        if kind == "gold":
            places |= {gold for gold, _ in case.ends.values()}
        paths[kind] = path_from_ids(
            model, case.prompt, trajectory, case.suffix, sorted(places), without=bases["own"]
        )
        single = np.diff(paths[kind].positions) == 1
        draw = int(hashlib.sha256(f"{seed}/{case.id}/{kind}".encode()).hexdigest()[:8], 16)
        found = path_steps(
            model, paths[kind], seed=draw, fractions=LINE_SEARCH if kind == "gold" else ()
        )
        steps[kind] = {
            "positions": paths[kind].positions.tolist(),
            "answer_nll": _rounded(paths[kind].answer_nll),
        }
        kept = (
            fields(PathSteps)
            if kind == "gold"
            else [f for f in fields(PathSteps) if f.name in ("cosine", "drop")]
        )
        steps[kind] |= {
            field.name: _rounded(np.where(single, getattr(found, field.name), np.nan))
            for field in kept
        }
    last = {kind: path.update(-1) for kind, path in paths.items()}
    item = last["gold"].layers[0]
    record = {
        "id": case.id,
        "ends": case.ends,
        "answer_tokens": len(case.suffix.ids) - case.suffix.start,
        "steps": steps,
        "size": item.relative_norm,
        "rank": item.effective_rank,
        "by_kind": {
            k: [u.layers[0].relative_norm, u.layers[0].effective_rank] for k, u in last.items()
        },
        "content": 1 - cosine(last["gold"], last["foreign"]),
        "losses": {
            "last": _losses(
                model,
                case,
                last,
                "last",
                lambda update, name: updated_loss(model, bases[name], update),
            )
        },
    }
    if layers == "last":
        return record
    whole, record["by_layer"] = _by_layer(model, case)
    foreign = update_from_ids(
        model, case.prompt, case.trajectories["foreign"], case.suffix, layers="all"
    )
    updates = {"gold": whole, "foreign": foreign}

    def loss(update: Update, name: str) -> float:
        with update.applied(model):
            return naive_nll(model, targets[name][0], [], targets[name][1], 0, few_logits=True)

    record["losses"]["all"] = _losses(model, case, updates, "all", loss)
    return record


def _by_layer(model, case: Case) -> tuple[Update, dict[str, list[list[float]]]]:
    """The update of all layers for the whole gold trajectory; sizes and effective ranks (fractions,
    layers) on the way.
    """
    gold = case.trajectories["gold"]
    found = []
    for fraction in FRACTIONS:
        prefix = gold[: round(fraction * len(gold))]
        found.append(update_from_ids(model, case.prompt, prefix, case.suffix, layers="all"))
    sizes = [_rounded([item.relative_norm for item in update.layers]) for update in found]
    ranks = [_rounded([item.effective_rank for item in update.layers]) for update in found]
    return found[-1], {"relative_norm": sizes, "effective_rank": ranks}


def _losses(
    model, case: Case, updates: dict[str, Update], layers: str, loss: Callable[[Update, str], float]
) -> dict[str, dict[str, float]]:
    """L of the question itself and its siblings, without their trajectories, under θ, the updates
    and gradient steps; `loss` gives one of them.

    Gradient steps go along -∇L of the question's own answer: one as long as gold's update, the best
    of STEP_LENGTHS for the question itself, and the shortest that makes its answer as likely as
    gold's update does (else the best).
    """

    def under(update: Update) -> dict[str, float]:
        return {name: loss(update, name) for name in ("own", *case.siblings)}

    found = {"theta": under(Update(()))}
    found |= {kind: under(update) for kind, update in updates.items()}
    gradient = gradient_update(model, case.prompt, case.suffix, layers=layers)
    gradient = gradient.scaled(updates["gold"].norm / gradient.norm)
    tried = {fraction: loss(gradient.scaled(fraction), "own") for fraction in STEP_LENGTHS}
    best = min(tried, key=tried.get)
    found["gradient"] = under(gradient)
    found["best_gradient"] = under(gradient.scaled(best)) | {"fraction": best}
    wanted = found["gold"]["own"]
    matched = _matched(tried, wanted, lambda length: loss(gradient.scaled(length), "own"))
    found["matched_gradient"] = under(gradient.scaled(matched)) | {"fraction": matched}
    return found


def _matched(tried: dict[float, float], wanted: float, loss: Callable[[float], float]) -> float:
    """The shortest gradient step that reaches a loss, to a few per cent in length; the best one
    tried where none does.
    """
    reaching = [fraction for fraction, value in tried.items() if value <= wanted]
    high = min(reaching, default=min(tried, key=tried.get))
    if not reaching or high == 0:
        return high
    low = max((fraction for fraction in tried if 0 < fraction < high), default=high / 4)
    for _ in range(5):
        middle = (low * high) ** 0.5
        low, high = (low, middle) if loss(middle) <= wanted else (middle, high)
    return high


def _rounded(values) -> list[float]:
    """To four significant digits: the records are for figures and means."""
    return engine.rounded(values, 4)


# --- estimands ------------------------------------------------------------------------------------


def estimands(exact: dict[str, float], record: dict) -> dict[str, float]:
    """The estimands of C11, C11g and C11t for one question (claims.toml says what each is), NaN
    where its conditions lack; those of all layers only where they were measured.
    """
    gold, ends = record["steps"]["gold"], record["ends"]
    drop, norm = np.array(gold["drop"]), np.array(gold["norm"])
    by_size = [k for k in np.argsort(norm, kind="stable") if np.isfinite(drop[k])]
    total = float(np.nansum(gold["best_gradient_drop"]))
    values = {
        "C11.exact": _log10(exact["last"]),
        "C11.size": record["size"],
        "C11.rank": record["rank"] / record["answer_tokens"],
        "C11.content": record["content"],
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
        held = record["steps"].get(kind)
        ours, theirs = ends.get(kind, (0, 0))
        over = math.nan if held is None else _mean_until(gold, ours) - _mean_until(held, theirs)
        values[f"C11g.over_{kind}"] = over
    last = record["losses"]["last"]
    values |= {
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


def _log10(error: float) -> float:
    return math.log10(max(error, 1e-17))


def _mean(values) -> float:
    values = np.asarray(values, dtype=float)
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


def _mean_until(steps: dict, end: int) -> float:
    """Mean cosine of the steps that end at or before a position."""
    return _mean(np.array(steps["cosine"])[np.array(steps["positions"][1:]) <= end])


# --- whole studies, resumable ---------------------------------------------------------------------


def study_cases(lm: LanguageModel, n: int, seed: int) -> list[Case]:
    """n gsm_symbolic questions as cases, with the trajectory study's choice of questions and
    controls.
    """
    others = trajectory_study.strangers(seed)
    return [
        gsm_case(lm, question, others, seed)
        for question in (trajectory_study.study_questions(n, seed) if n else [])
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
    return _rounded(np.nanmean([record["steps"][kind][name] for record in records], axis=0))


# --- the studies ----------------------------------------------------------------------------------


def _again(evidence: dict, place: int) -> dict[str, float]:
    settings = evidence["settings"]
    lm = lora.replayed(settings["model"], "float32")
    case = study_cases(lm, settings["n_questions"], settings["seed"])[place]
    layers = settings.get("layers", "all")
    wide = lora.replayed(settings["model"], "float64") if layers == "all" else lm
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
