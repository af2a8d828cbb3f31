"""The studies behind C4a, C7 and C9: supervised fine-tuning of the tiny base on trajectories, five
seeds each.

All arms of a seed start from the same base checkpoint and see the same questions at the same step;
each seed has its own questions, trained and held out, and its own trajectories. They train by
`tiny.train`, which gives the same weights as `sft.sft` (a test compares them) in about half of its
time (`bench sft`). Deviations from the paper: accuracy is exact match; the greedy answer is
reported beside its Pass@8 and mG-Pass@8.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tml_lib import files
from tml_lib.claims.replay import FIRST_STEPS, Replay
from tml_lib.claims.stats import mg_pass_at_k, pass_at_k
from tml_lib.data import program_grading, programs, tiny
from tml_lib.data.tiny import Row
from tml_lib.lm import models, sampling
from tml_lib.lm.adapters import copy_to_train
from tml_lib.lm.answers import ANSWER_TEMPLATE
from tml_lib.lm.models import LanguageModel
from tml_lib.records import Arms, Question
from tml_lib.studies import engine
from tml_lib.studies.engine import Study

BATCH = 64
PEAK_LR = 1.5e-3
SFT_STEPS = 600
TEST_QUESTIONS = 500
SAMPLES = 16
K = 8
TEMPERATURES = (0.6, 1.0)
# the longest gold trajectory of the harder split, reflections included, takes about 90
MOST_TOKENS = 128


def arm_rows(seed: int, style: str | None, *, whole: bool = False) -> Callable[[int], list[Row]]:
    """Step -> its batch: questions of 1..STEPS statements a chain, the same for every style; None
    leaves trajectories out.

    whole: no trajectory is cut short or left out (see `tiny.sft_row`).
    """

    def rows(step: int) -> list[Row]:
        return [one(random.Random(f"sft/{seed}/{step}/{k}")) for k in range(BATCH)]

    def one(rng: random.Random) -> Row:
        program = programs.split_program(rng, "train", rng.randint(1, programs.STEPS))
        words = programs.trajectory(program, style, rng).text.split() if style else []
        return (
            tiny.row(program.text, words, program.answer())
            if whole
            else tiny.sft_row(program, words, rng)
        )

    return rows


def mean_tokens(style: str | None) -> float:
    """Mean length of a training row of a style, in tokens, over ten batches of seed 0."""
    rows = arm_rows(0, style)
    return float(np.mean([len(ids) for step in range(10) for ids, _ in rows(step)]))


def tuned(
    base: LanguageModel,
    rows: Callable[[int], Sequence[Row]],
    steps: int,
    *,
    stop: int | None = None,
    progress: bool = False,
) -> tuple[LanguageModel, list[float]]:
    """A copy of the base after `steps` steps, and its losses. stop: leave off after that many of
    them.
    """
    model = copy_to_train(base, lora_rank=0, seed=0)
    losses = tiny.train(model, rows, steps=steps, stop=stop, peak_lr=PEAK_LR, progress=progress)
    return LanguageModel(model, base.tokenizer, base.name), losses


# --- measuring ------------------------------------------------------------------------------------


def greedy(lm: LanguageModel, questions: list[Question], begin: str = "") -> dict:
    """Greedy answers: right or not per question, mean number of tokens of those that ended, share
    that did, and how many were cut, of how many.
    """
    settings = {"temperature": 0, "max_new_tokens": MOST_TOKENS, "batch_size": 512}
    right, tokens, ended = sampling.right_counts(
        lm, questions, program_grading.graded, samples=1, seed=0, begin=begin, **settings
    )
    found = {"right": right, "tokens": round(tokens, 2), "ended": round(ended, 4)}
    return found | {"cut": cut_of(ended, len(questions))}


def cut_of(ended: float, written: int) -> list[int]:
    """(samples that were cut, samples), from the share that ended."""
    return [written - round(ended * written), written]


def sampled(lm: LanguageModel, questions: list[Question], seed: int) -> dict[str, list[int]]:
    """Right ones among SAMPLES samples per question, by temperature; 'cut': how many of all were
    cut, of how many.
    """
    settings = {"max_new_tokens": MOST_TOKENS, "batch_size": 512, "samples": SAMPLES, "seed": seed}
    found, ended = {}, []
    for t in TEMPERATURES:
        how = settings | {"temperature": t}
        found[str(t)], _, share = sampling.right_counts(
            lm, questions, program_grading.graded, **how
        )
        ended.append(share)
    return found | {"cut": cut_of(float(np.mean(ended)), len(ended) * SAMPLES * len(questions))}


def measured(lm: LanguageModel, questions: list[Question], seed: int) -> dict:
    """Greedy and sampled answers of a model."""
    return {"greedy": greedy(lm, questions), "sampled": sampled(lm, questions, seed)}


def metric(arm: dict, name: str) -> np.ndarray:
    """One number per question: 'greedy', or 'pass@1.0' and 'mgpass@1.0' with the temperature behind
    the '@' (k = 8).
    """
    if name == "greedy":
        return np.array(arm["greedy"]["right"], dtype=float)
    kind, _, temperature = name.partition("@")
    function = {"pass": pass_at_k, "mgpass": mg_pass_at_k}[kind]
    table = np.array([function(SAMPLES, right, K) for right in range(SAMPLES + 1)])
    return table[np.array(arm["sampled"][temperature])]


# --- C4a and C9 -----------------------------------------------------------------------------------


ARMS = {  # name: (style, equal to long in, whole rows only)
    "long": ("long", "steps", False),
    "short": ("short", "steps", False),
    "none": (None, "steps", False),
    "short_tokens": ("short", "tokens", False),
    "none_tokens": (None, "tokens", False),
    "plain": ("plain", "steps", False),
    "long_whole": ("long", "steps", True),
}
SAMPLED = ("long", "short", "none", "short_tokens", "none_tokens")
ACROSS = ("long", "short", "none", "long_whole")  # arms that answer every split


def sft_record(seed: int, folder: Path, *, steps: int, questions: int) -> dict:
    """One seed: SFT on long, plain, short and no trajectories, at equal steps or with as many
    tokens of whole rows as long.

    'arms': per arm the measurements on held-out questions and the loss by 20 steps; 'splits':
    greedy answers of the base, some arms and, without thinking, long, on each split.
    """
    base = models.load("tiny", device="cpu")
    sets = {
        split: programs.questions(questions, seed, split)
        for split in programs.SPLITS
        if split != "train"
    }
    lengths = {style: mean_tokens(style) for style in ("long", "short", None)}
    arms: dict[str, dict] = {"base": measured(base, sets["held_out"], seed)}
    splits: dict[str, dict] = {split: {"base": greedy(base, sets[split])} for split in sets}
    for name, (style, equal, whole) in ARMS.items():
        taken = steps if equal == "steps" else round(steps * lengths["long"] / lengths[style])
        lm, losses = tuned(base, arm_rows(seed, style, whole=whole), taken)
        answered = {
            split: greedy(lm, sets[split]) for split in (sets if name in ACROSS else ("held_out",))
        }
        arms[name] = {"greedy": answered["held_out"], "steps": taken, "loss": thinned(losses)}
        if name in SAMPLED:
            arms[name]["sampled"] = sampled(lm, sets["held_out"], seed)
        if name in ACROSS:
            for split in sets:
                splits[split][name] = answered[split]
        if name == "long":
            for split in sets:
                splits[split]["no_thinking"] = greedy(lm, sets[split], begin=ANSWER_TEMPLATE)
    return {
        "arms": arms,
        "splits": splits,
        "row_tokens": {str(style): round(n, 2) for style, n in lengths.items()},
    }


def thinned(losses: list[float]) -> list[float]:
    """Means over 20 steps each."""
    return [round(float(np.mean(losses[k : k + 20])), 4) for k in range(0, len(losses), 20)]


# --- C7 -------------------------------------------------------------------------------------------

SIZES = (1, 2, 4, 8, 16, 32)
SUPPORT_QUESTIONS = 300  # with 300 steps each is visited 64 times
SUPPORT_STEPS = 300


def support_rows(seed: int, size: int, count: int) -> Callable[[int], list[Row]]:
    """Step -> its batch: `count` questions in turn, visit v of a question with its trajectory v
    modulo `size`.

    Whatever the size, a question is visited equally often and at the same steps, so fewer
    trajectories are repeated more often (RaML Fig. 8).
    """
    made = []
    for k in range(count):
        program = programs.split_program(
            rng := random.Random(f"support/{seed}/{k}"), "train", rng.randint(1, programs.STEPS)
        )
        found = programs.trajectories(program, max(SIZES), "long", seed)
        # drawn likeliest first: every size gets the same style
        random.Random(f"support/{seed}/pool/{k}").shuffle(found)
        made.append((program, [t.text.split() for t in found[:size]]))

    def rows(step: int) -> list[Row]:
        return [one(step * BATCH + k) for k in range(BATCH)]

    @functools.cache
    def order(visit: int) -> list[int]:
        return random.Random(f"support/{seed}/order/{visit}").sample(range(count), count)

    def one(index: int) -> Row:
        visit, place = divmod(index, count)
        program, found = made[order(visit)[place]]
        return tiny.sft_row(
            program, found[visit % size], random.Random(f"support/{seed}/row/{index}")
        )

    return rows


def support_record(seed: int, folder: Path, *, steps: int, count: int, questions: int) -> dict:
    """One seed: SFT with 1, 2, ..., 32 distinct long trajectories per question; measurements and
    losses by size.
    """
    base, found = models.load("tiny", device="cpu"), {}
    tested = programs.questions(questions, seed + 1000, "held_out")
    for size in SIZES:
        lm, losses = tuned(base, support_rows(seed, size, count), steps)
        found[str(size)] = measured(lm, tested, seed) | {"loss": thinned(losses)}
    return {"sizes": found}


# --- values and evidence --------------------------------------------------------------------------

_METRICS = {
    "greedy": "greedy",
    "mgpass": "mgpass@1.0",
    "pass": "pass@1.0",
    "mgpass_cool": "mgpass@0.6",
    "pass_cool": "pass@0.6",
}


def compared(arms: dict[str, dict], first: str, second: str, name: str) -> Arms:
    """A metric of two of the arms, question by question."""
    return Arms(metric(arms[first], name), metric(arms[second], name))


def sft_estimands(record: dict) -> dict[str, Arms]:
    """One seed's accuracies in every test of C4a and C9, by question."""
    arms, found = record["arms"], {}
    for equal, tail in (("steps", ""), ("tokens", "_tokens")):
        short, none = f"short{tail}", f"none{tail}"
        for test, name in _METRICS.items():
            found[f"C4a.{equal}_{test}"] = compared(arms, "long", short, name)
        found[f"C4a.over_none_{equal}"] = compared(arms, "long", none, "greedy")
        found[f"C4a.short_over_none_{equal}"] = compared(arms, short, none, "greedy")
    found["C4a.plain_over_short"] = compared(arms, "plain", "short", "greedy")
    found["C4a.over_plain"] = compared(arms, "long", "plain", "greedy")
    for split, by_model in record["splits"].items():
        right = {name: np.array(by_model[name]["right"], dtype=float) for name in by_model}
        found[f"C9.{split}"] = Arms(right["long"], right["base"])
        found[f"C9.short_{split}"] = Arms(right["short"], right["base"])
        found[f"C9.thinking_{split}"] = Arms(right["long"], right["no_thinking"])
        found[f"C9.none_{split}"] = Arms(right["none"], right["base"])
        found[f"C9.whole_{split}"] = Arms(right["long_whole"], right["base"])
    return found


def support_estimands(record: dict) -> dict[str, Arms]:
    """One seed's accuracies in every test of C7, by question."""
    sizes, found = record["sizes"], {}
    for test, name in _METRICS.items():
        found[f"C7.{test}"] = compared(sizes, "32", "1", name)
        if test in ("pass", "mgpass", "greedy"):
            found[f"C7.{test}_late"] = compared(sizes, "32", "8", name)
    return found


def checkpoint_digest(name: str = "tiny-base") -> str:
    """sha256 of a shipped checkpoint's weights, by default of the base that all arms start from."""
    return files.digest(Path(models.shipped(name)) / "model.safetensors", files.COMMITTED)


def _said() -> dict:
    return {"batch": BATCH, "peak_lr": PEAK_LR, "base_sha256": checkpoint_digest()}


def kept_whole(records: list[dict]) -> dict:
    """What evidence holds of a study of several seeds whose figures need the whole records."""
    return {"nested": True, "records": records}


def _first_steps(evidence: dict, seed: int, what: str, rows: dict[str, Callable], steps: int):
    """The mean loss of the first steps of several trainings of a seed, stored and made again."""
    found = {}
    for name, made in rows.items():
        losses = tuned(models.load("tiny", device="cpu"), made, steps, stop=engine.FIRST)[1]
        stored = evidence["records"][seed][what][name]["loss"][0]
        found[f"mean loss, {name}"] = (stored, float(np.mean(losses)))
    return found


def _sft_again(evidence: dict, name: str) -> dict:
    seed = engine.place_of(name)
    rows = {arm: arm_rows(seed, ARMS[arm][0]) for arm in ("long", "short", "none")}
    return _first_steps(evidence, seed, "arms", rows, SFT_STEPS)


def _support_again(evidence: dict, name: str) -> dict:
    seed = engine.place_of(name)
    rows = {str(size): support_rows(seed, size, SUPPORT_QUESTIONS) for size in (1, 32)}
    return _first_steps(evidence, seed, "sizes", rows, SUPPORT_STEPS)


_sft_values, _support_values = map(engine.by_seed, (sft_estimands, support_estimands))
SFT = Study(
    "sft",
    sft_record,
    _sft_values,
    kept_whole,
    settings={"steps": SFT_STEPS, "questions": TEST_QUESTIONS},
    said=_said,
    replays=(
        Replay(FIRST_STEPS, engine.seeds_of, _sft_again, 15),
        engine.records_again(_sft_values),
    ),
)
SUPPORT = Study(
    "support",
    support_record,
    _support_values,
    kept_whole,
    settings={"steps": SUPPORT_STEPS, "count": SUPPORT_QUESTIONS, "questions": TEST_QUESTIONS},
    said=_said,
    replays=(
        Replay(FIRST_STEPS, engine.seeds_of, _support_again, 10),
        engine.records_again(_support_values),
    ),
)
