"""The studies behind C4b, C5 and C8: DPO and GRPO on the tiny reasoner beside SFT, and the samples
that GRPO's gradient is of.

All arms of a seed start from the same base, `tiny-base`, take as many optimiser steps with as many
sequences each (64), and answer the same held-out questions as the study of C4a does. A *cold start*
is a short SFT on long trajectories; DPO and one of the GRPO arms start from it, the other GRPO arm
starts at the base. Training on trajectories is `tiny.train`, the rest trl.
Deviations from the paper: a reward by exact match (Eq. 21), rates tuned on a grid with a seed of
their own, no KL term.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tml_lib.claims.replay import FIRST_STEPS, Replay
from tml_lib.data import program_grading, programs
from tml_lib.data.rewards import program_reward
from tml_lib.lm import models
from tml_lib.lm.models import LanguageModel
from tml_lib.records import Arms, Question
from tml_lib.studies import engine
from tml_lib.studies.engine import Study
from tml_lib.studies.supervised import (
    arm_rows,
    checkpoint_digest,
    compared,
    greedy,
    kept_whole,
    measured,
    tuned,
)
from tml_lib.train import dpo, grpo
from tml_lib.train.runs import OuterRun

LOGGED = {  # what evidence keeps of trl's log, a number per step
    "reward": "reward",
    "flat": "frac_reward_zero_std",
    "tokens": "completions/mean_length",
    "entropy": "entropy",
    "clipped": "completions/clipped_ratio",  # share of the step's samples that were cut
}
STEPS = 600  # of an arm, cold start included
COLD_STEPS = 150
PROMPTS = 4
GROUP = 16  # 64 samples a step, as many as rows of SFT
PAIRS = 32  # of a DPO step: 64 sequences
PAIR_QUESTIONS = 2000  # whose samples are paired
QUESTIONS = 300
SIZES = (1, 2, 4, 8, 16)  # samples of a group that the gradient is of
SIZE_STEPS = 200
RATES = (3e-5, 1e-4, 3e-4, 6e-4)  # among which GRPO's is chosen, for each start and size its own
DPO_RATES = (3e-5, 1e-4, 3e-4)
RATE_SEED = 1000  # which no study uses
LAST = 0.2  # share of a run at its end over which rewards are compared


def questions(count: int, seed: int) -> list[Question]:
    """`count` trained questions of 1..STEPS statements a chain, as SFT's arms draw them."""
    found = []
    for k in range(count):
        rng = random.Random(f"rl/{seed}/{k}")
        program = programs.split_program(rng, "train", rng.randint(1, programs.STEPS))
        found.append(programs.question(program, f"rl/{seed}/{k}", rng))
    return found


def rewarded(
    lm: LanguageModel, seed: int, steps: int, *, update: int = 0, peak_lr: float
) -> OuterRun:
    """GRPO for `steps` steps, each on PROMPTS questions of its own."""
    with tempfile.TemporaryDirectory() as folder:
        settings = grpo.GRPOSettings(
            steps=steps, prompts=PROMPTS, group=GROUP, update=update, peak_lr=peak_lr, seed=seed
        )
        asked = questions(steps * PROMPTS, seed)
        return grpo.grpo(lm, asked, program_reward, Path(folder), settings)


def preferred(
    lm: LanguageModel, seed: int, steps: int, *, peak_lr: float
) -> tuple[OuterRun, list[int]]:
    """DPO for `steps` steps on pairs of the model's own samples, a right and a wrong one of the
    same question; and (samples that were cut, samples).
    """
    asked = questions(PAIR_QUESTIONS, seed)
    pairs, _, cut = dpo.sampled_pairs(
        lm, asked, program_grading.graded, samples=8, seed=seed, batch_size=512
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = dpo.passes(pairs, steps * PAIRS, seed)
        settings = dpo.DPOSettings(steps=steps, batch=PAIRS, peak_lr=peak_lr, seed=seed)
        return dpo.dpo(lm, rows, Path(folder), settings), cut


def logged(run: OuterRun) -> dict[str, list[float]]:
    """Per step the reward, the share of flat groups, tokens, entropy and the share of cut samples,
    and the seconds since the first.
    """
    rows = [entry for entry in run.log if "reward" in entry]
    spent = [
        sum(row[f"seconds_{part}"] for part in ("sampling", "scoring", "update")) for row in rows
    ]
    found = {name: [round(float(row[key]), 4) for row in rows] for name, key in LOGGED.items()}
    return found | {"seconds": np.cumsum(spent).round(3).tolist()}


def last_reward(curve: dict[str, list[float]], until: float | None = None) -> np.ndarray:
    """Rewards of the last LAST of the steps, or of as many steps up to a time `until`, in
    seconds.
    """
    count = max(round(LAST * len(curve["reward"])), 1)
    end = (
        len(curve["reward"])
        if until is None
        else int(np.searchsorted(curve["seconds"], until, side="right"))
    )
    end = min(max(end, count), len(curve["reward"]))
    return np.array(curve["reward"][end - count : end])


# --- C4b and C5 -----------------------------------------------------------------------------------


def rl_record(
    seed: int, folder: Path, *, steps: int, cold_steps: int, questions: int, rates: dict[str, float]
) -> dict:
    """One seed: each arm's answers to held-out questions and wall time (sampling included), and the
    logs of GRPO.

    rates: of 'warm', 'zero' and 'dpo'. 'zero_wall' is GRPO from the base, stopped at the wall time
    that SFT on long trajectories takes.
    """
    base, tested = (
        models.load("tiny", device="cpu"),
        programs.questions(questions, seed, "held_out"),
    )
    arms, curves, rest = (
        {"base": {"seconds": 0.0, "steps": 0} | measured(base, tested, seed)},
        {},
        steps - cold_steps,
    )

    def keep(name: str, lm: LanguageModel, seconds: float, count: int = steps) -> None:
        arms[name] = {"seconds": round(seconds, 2), "steps": count} | measured(lm, tested, seed)

    for name, style, count in (
        ("long", "long", steps),
        ("short", "short", steps),
        ("cold", "long", cold_steps),
    ):
        began = time.perf_counter()
        lm, _ = tuned(base, arm_rows(seed, style), count)
        keep(name, lm, time.perf_counter() - began, count)
    cold = lm  # the last of them
    before, began = arms["cold"]["seconds"], time.perf_counter()
    run, cut = preferred(cold, seed, rest, peak_lr=rates["dpo"])
    keep("dpo", run.lm, before + time.perf_counter() - began)
    arms["dpo"]["drawn"] = {"cut": cut}

    def reward(name: str, start: LanguageModel, count: int, rate: float) -> None:
        """Train an arm by GRPO, keep its curve, and measure it with what its start took."""
        run = rewarded(start, seed, count, peak_lr=rate)
        curves[name] = logged(run)
        done, spent = (cold_steps, before) if start is cold else (0, 0.0)
        keep(name, run.lm, spent + run.seconds, done + count)

    reward("warm", cold, rest, rates["warm"])
    reward("zero", base, steps, rates["zero"])
    # as many steps of `zero` as end within the time of SFT on long trajectories
    ended = curves["zero"]["seconds"]
    few = int(np.searchsorted(ended, arms["long"]["seconds"], side="right"))
    reward("zero_wall", base, max(few, 1), rates["zero"])
    return {"arms": arms, "curves": curves}


def rl_estimands(record: dict) -> dict[str, Arms]:
    """One seed's accuracies in every test of C4b and C5, by question."""
    gain = functools.partial(compared, record["arms"])
    found = {}
    for test, name in (("pass", "pass@1.0"), ("mgpass", "mgpass@0.6"), ("greedy", "greedy")):
        for other in ("short", "zero", "dpo"):
            found[f"C4b.{test}_over_{other}"] = gain("long", other, name)
        found[f"C4b.{test}_over_zero_wall"] = gain("long", "zero_wall", name)
        found[f"C5.{test}"] = gain("warm", "zero", name)
        found[f"C5.{test}_over_long"] = gain("warm", "long", name)
    found["C4b.dpo"] = gain("dpo", "cold", "greedy")
    found["C4b.zero"] = gain("zero", "base", "greedy")
    found["C5.cold"] = gain("warm", "cold", "greedy")
    return found


# --- C8 -------------------------------------------------------------------------------------------


def cold_start(seed: int, steps: int) -> LanguageModel:
    """tiny-base after a short SFT on long trajectories."""
    return tuned(models.load("tiny", device="cpu"), arm_rows(seed, "long"), steps)[0]


def rate_record(tried: list, folder: Path, *, steps: int, cold_steps: int) -> dict:
    """Mean reward at the end of a run with each of RATES, on RATE_SEED; 'best' is the rate with the
    highest.

    tried: where the run starts, 'cold' or 'base', and the samples of a group that its gradient is
    of.
    """
    start, size = tried
    lm = cold_start(RATE_SEED, cold_steps) if start == "cold" else models.load("tiny", device="cpu")
    found = {}
    for rate in RATES:
        curve = logged(rewarded(lm, RATE_SEED, steps, update=size, peak_lr=rate))
        found[rate] = round(float(last_reward(curve).mean()), 4)
    rates = {str(rate): reward for rate, reward in found.items()}
    return {"start": start, "size": size, "rates": rates, "best": max(found, key=found.get)}


def dpo_rate_record(rate: float, folder: Path, *, steps: int, cold_steps: int) -> dict:
    """Share of right greedy answers to fresh trained questions after DPO at a rate, on
    RATE_SEED.
    """
    run, _ = preferred(cold_start(RATE_SEED, cold_steps), RATE_SEED, steps, peak_lr=rate)
    right = greedy(run.lm, questions(300, RATE_SEED + 1))["right"]
    return {"dpo": rate, "right": round(float(np.mean(right)), 4)}


def size_record(
    seed: int, folder: Path, *, steps: int, cold_steps: int, questions: int, rates: dict[str, float]
) -> dict:
    """One seed: GRPO from the same cold start with the gradient on 1, 2, 4, 8, 16 of 16 samples,
    each at a rate of its own.
    """
    cold, tested = (
        cold_start(seed, cold_steps),
        programs.questions(questions, seed + 2000, "held_out"),
    )
    found = {"cold": measured(cold, tested, seed)}
    for size in SIZES:
        run = rewarded(cold, seed, steps, update=size, peak_lr=rates[str(size)])
        found[str(size)] = measured(run.lm, tested, seed) | {"curve": logged(run)}
    return {"sizes": found}


def size_estimands(record: dict) -> dict[str, Arms | np.ndarray]:
    """One seed's values of every test of C8: accuracies by question, or one number per step where
    rewards are compared.
    """
    sizes = record["sizes"]
    found = {}
    for test, name in (("pass", "pass@1.0"), ("mgpass", "mgpass@0.6"), ("greedy", "greedy")):
        found[f"C8.{test}"] = compared(sizes, "16", "1", name)
        found[f"C8.{test}_late"] = compared(sizes, "16", "4", name)
    curves = {size: sizes[size]["curve"] for size in map(str, SIZES)}
    done = curves["1"]["seconds"][-1]  # when the cheapest has taken all its steps
    found["C8.reward_steps"] = last_reward(curves["16"]) - last_reward(curves["1"])
    found["C8.reward_wall"] = last_reward(curves["16"], done) - last_reward(curves["1"])
    found["C8.learns"] = compared(sizes, "16", "cold", "greedy")
    return found


# --- the studies ----------------------------------------------------------------------------------


RATE = Study(
    "rl-rates", rate_record, settings={"steps": SIZE_STEPS, "cold_steps": COLD_STEPS}, protocol="rl"
)
DPO_RATE = dataclasses.replace(RATE, name="dpo-rates", record=dpo_rate_record)


def tried_rates(folder: Path, **settings) -> list[dict]:
    """A `rate_record` per size from the cold start, one from the base, and a `dpo_rate_record` per
    rate of DPO; the folder keeps them.
    """
    grid = [*(["cold", size] for size in SIZES), ["base", GROUP]]
    return [
        record
        for study, items in ((RATE, grid), (DPO_RATE, DPO_RATES))
        for record in study.run(items, folder, progress=True, **settings).records
    ]


def best(tried: Sequence[dict], start: str, size: int) -> float:
    """The rate of GRPO that did best from a start with a size."""
    return next(
        row["best"] for row in tried if (row.get("start"), row.get("size")) == (start, size)
    )


def chosen_rates(tried: Sequence[dict], study: str) -> dict[str, float]:
    """The best rate for each arm of 'rl' or size of 'sizes'."""
    if study == "sizes":
        return {str(size): best(tried, "cold", size) for size in SIZES}
    dpo_rate = max((row for row in tried if "dpo" in row), key=lambda row: row["right"])["dpo"]
    rates = {"warm": best(tried, "cold", GROUP), "zero": best(tried, "base", GROUP)}
    return rates | {"dpo": dpo_rate}


def make_evidence(
    study: Study, seeds: int, folder: Path, *, command: str, rate_settings=None, **settings
) -> Path | None:
    """Evidence of `RL` or `SIZE` from so many seeds, at the rates that do best; None for 0 seeds.

    rate_settings: of `tried_rates`, settings: of the study, where they are not its own.
    """
    if not seeds:
        return None
    tried = tried_rates(folder, **(rate_settings or {}))
    settings["rates"] = chosen_rates(tried, study.name)
    made = study.run(range(seeds), folder, progress=True, **settings)
    return study.write(made, folder, command=command, rates=tried)


# --- replays --------------------------------------------------------------------------------------


def _rl_again(evidence: dict, name: str) -> dict:
    seed, rate = engine.place_of(name), best(evidence["rates"], "base", GROUP)
    run = rewarded(models.load("tiny", device="cpu"), seed, engine.FIRST, peak_lr=rate)
    stored = evidence["records"][seed]["curves"]["zero"]["reward"]
    return _first_rewards(stored, logged(run)["reward"], "reward")


def _sizes_again(evidence: dict, name: str) -> dict:
    seed, size = engine.place_of(name), random.Random(name).choice(SIZES)
    cold, rate = cold_start(seed, COLD_STEPS), best(evidence["rates"], "cold", size)
    curve = logged(rewarded(cold, seed, engine.FIRST, update=size, peak_lr=rate))
    stored = evidence["records"][seed]["sizes"][str(size)]["curve"]["reward"]
    return _first_rewards(stored, curve["reward"], f"reward, n = {size},")


def _first_rewards(stored: Sequence[float], made: Sequence[float], what: str) -> engine.Pairs:
    """The reward of the first step and the mean. A processor that rounds otherwise draws another
    token somewhere, and from then on the samples are others: single later steps do not compare.
    """
    pairs = engine.first_steps(stored, made, what)
    return {
        name: pair for name, pair in pairs.items() if name.endswith("of step 1") or "mean" in name
    }


def _said() -> dict:
    return {"prompts": PROMPTS, "group": GROUP, "base_sha256": checkpoint_digest()}


_rl_values, _size_values = map(engine.by_seed, (rl_estimands, size_estimands))
RL = Study(
    "rl",
    rl_record,
    _rl_values,
    kept_whole,
    settings={"steps": STEPS, "cold_steps": COLD_STEPS, "questions": QUESTIONS},
    said=_said,
    replays=(Replay(FIRST_STEPS, engine.seeds_of, _rl_again, 20), engine.records_again(_rl_values)),
)
SIZE = Study(
    "sizes",
    size_record,
    _size_values,
    kept_whole,
    settings={"steps": SIZE_STEPS, "cold_steps": COLD_STEPS, "questions": QUESTIONS},
    said=_said,
    replays=(
        Replay(FIRST_STEPS, engine.seeds_of, _sizes_again, 50),
        engine.records_again(_size_values),
    ),
)
