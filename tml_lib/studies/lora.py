"""The study behind C4s: a pretrained LLM, fine-tuned with LoRA on gold trajectories of
`gsm_symbolic`.

Three arms answer the same held-out questions: the model as it is, the model after as many steps on
answers alone, and the model after steps on trajectories and answers. Half of the held-out questions
come from templates that were trained on, with other numbers; half from templates that were not. A
template with few numbers may ask a trained question again: such a one is not counted. Deviations
from the paper: one small model, one seed, gold solutions in place of a teacher's rollouts, a LoRA
adapter in place of all weights.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tml_lib.claims.stats import pass_at_k
from tml_lib.data import gsm
from tml_lib.data.tiny import Row
from tml_lib.lm import adapters, fetching, models, presets, sampling
from tml_lib.lm.answers import grade
from tml_lib.lm.models import LanguageModel
from tml_lib.measure.probe import probe
from tml_lib.records import Arms, Question
from tml_lib.studies import engine, supervised
from tml_lib.studies.engine import Study
from tml_lib.train import sft

ARMS = ("base", "answers", "gold")
STEPS = 100
BATCH = 8
LORA_RANK = 4
PEAK_LR = 1e-3
# in the arm 'gold' every eighth row leaves the trajectory out, so that answering at once stays
# possible
DIRECT = 8
SAMPLES = 8
K = 8
TEMPERATURE = 0.6
MOST_TOKENS = 160  # nine in ten gold trajectories, answer included, are shorter
# the adapter of the arm 'gold' in the stored evidence
STORED = Path(models.shipped("tiny-base")).parent / "smollm2-gold"


def is_trained(question: Question) -> bool:
    """Whether the question's template is among those trained on: every other one."""
    return int(question.template) % 2 == 0


def _first(n: int, seed: int, trained: bool) -> list[Question]:
    found = [q for q in gsm.gsm_symbolic(3 * n + 32, seed) if is_trained(q) == trained]
    return engine.first_of(found, n, seed)


def training_questions(n: int, seed: int) -> list[Question]:
    """n questions of trained templates."""
    return _first(n, seed, True)


def held_out_questions(n: int, seed: int) -> list[Question]:
    """n questions of another seed: half of the templates that are trained, half of others. See
    `fresh`.
    """
    return _first(n - n // 2, seed + 1000, True) + _first(n // 2, seed + 1000, False)


def fresh(questions: Sequence[Question], steps: int, seed: int) -> list[bool]:
    """Whether each question is none of those that a training of that many steps shows."""
    shown = {question.text for question in training_questions(steps * BATCH, seed)}
    return [question.text not in shown for question in questions]


def arm_rows(lm: LanguageModel, arm: str, count: int, seed: int) -> list[Row]:
    """`count` training rows of an arm, the same questions in the same order for each."""
    questions = training_questions(count, seed)
    direct = sft.question_rows(lm, questions, trajectories=False)
    if arm == "answers":
        return direct
    if arm != "gold":
        raise ValueError(f"arm {arm!r} is not trained: choose 'answers' or 'gold'")
    full = sft.question_rows(lm, questions)
    return [direct[k] if k % DIRECT == DIRECT - 1 else full[k] for k in range(count)]


def limit(preset: str, stored: int) -> int:
    """Tokens that a text may have at a preset: the preset's, but at `small` as many as the stored
    evidence had, so that its command makes it again.
    """
    return {"small": stored}.get(preset) or models.preset(preset).max_tokens


def measured(
    lm: LanguageModel,
    questions: Sequence[Question],
    seed: int,
    most_tokens: int,
    *,
    progress: bool = False,
) -> dict:
    """Greedy and sampled answers of at most so many tokens, with how many were cut; and L̂ without
    the gold trajectory and after it, up to where it states the answer.
    """
    settings = {
        "max_new_tokens": most_tokens,
        "batch_size": 128,
        "seed": seed,
        "progress": progress,
    }
    right, tokens, ended = sampling.right_counts(
        lm, questions, grade, samples=1, temperature=0, **settings
    )
    sampled = sampling.right_counts(
        lm, questions, grade, samples=SAMPLES, temperature=TEMPERATURE, **settings
    )
    nll = []
    for question in questions:
        text = gsm.gold(question).text
        curve = probe(lm, lm.prompt(question.text), text, question.answer, stride=len(text))
        nll.append([curve.at(0), curve.at(curve.unstated)])
    found: dict[str, object] = {"nll": nll}
    for name, count, values in (
        ("greedy", 1, (right, tokens, ended)),
        ("sampled", SAMPLES, sampled),
    ):
        found[name] = dict(zip(("right", "tokens", "ended"), values, strict=True))
        found[name]["cut"] = supervised.cut_of(values[2], count * len(questions))
    return found


def arm_record(
    arm: str,
    folder: Path,
    *,
    lm: LanguageModel,
    steps: int,
    questions: int,
    seed: int,
    most_tokens: int,
) -> dict:
    """Train one arm (its adapter stays in folder/arm), ask it the held-out questions; also its
    training's log.
    """
    log: list[dict] = []
    if arm != "base":
        rows = arm_rows(lm, arm, steps * BATCH, seed)
        settings = sft.SFTSettings(
            steps=steps,
            batch=BATCH,
            peak_lr=PEAK_LR,
            lora_rank=LORA_RANK,
            seed=seed,
            save_every=5,
            log_every=1,
        )
        run = sft.sft(lm, rows, Path(folder) / arm, settings)
        lm, log = (
            run.lm,
            [
                {"step": entry["step"], "loss": entry["loss"]}
                for entry in run.log
                if "loss" in entry
            ],
        )
    held_out = held_out_questions(questions, seed)
    return measured(lm, held_out, seed, most_tokens, progress=True) | {"arm": arm, "log": log}


def estimands(
    records: Sequence[dict], questions: Sequence[Question], counted: Sequence[bool]
) -> dict[str, Arms | np.ndarray]:
    """The values of every test of C4s, by question: accuracies, or differences of L̂; NaN where a
    test does not ask it or it is not counted.
    """
    arms = {record["arm"]: record for record in records}
    greedy = {arm: np.array(arms[arm]["greedy"]["right"], dtype=float) for arm in ARMS}
    table = np.array([pass_at_k(SAMPLES, right, K) for right in range(SAMPLES + 1)])
    passed = {arm: table[np.array(arms[arm]["sampled"]["right"])] for arm in ARMS}
    at_once, after = (
        np.array([[pair[k] for pair in arms[arm]["nll"]] for arm in ARMS]) for k in (0, 1)
    )
    seen = np.array([is_trained(question) for question in questions])
    counted = np.array(counted)

    def gain(table: dict[str, np.ndarray], first: str, second: str, asked=counted) -> Arms:
        return Arms(np.where(asked, table[first], np.nan), table[second])

    falls = {
        "C4s.after": after[0] - after[2],
        "C4s.after_over_answers": after[1] - after[2],
        "C4s.descent": (at_once[2] - after[2]) - (at_once[0] - after[0]),
    }
    return {
        "C4s.greedy": gain(greedy, "gold", "base"),
        "C4s.pass": gain(passed, "gold", "base"),
        "C4s.greedy_over_answers": gain(greedy, "gold", "answers"),
        "C4s.pass_over_answers": gain(passed, "gold", "answers"),
        "C4s.answers": gain(greedy, "answers", "base"),
        "C4s.seen": gain(greedy, "gold", "base", counted & seen),
        "C4s.unseen": gain(greedy, "gold", "base", counted & ~seen),
    } | {test: np.where(counted, fall, np.nan) for test, fall in falls.items()}


def adapter_folder(lm: LanguageModel, otherwise: Path) -> Path:
    """Where the adapter of the stored evidence lies, if it was trained on this very model; else the
    other folder.
    """
    return STORED if adapters.belongs(lm, STORED) else otherwise


def load(
    preset: str,
    *,
    model: str = "",
    adapter: str = "",
    reasoner: str = "tiny-long",
    dtype: str = "",
    thinking: bool = False,
) -> LanguageModel:
    """A preset's model, with a LoRA adapter put on it. adapter: a folder, or 'stored' for the kit's
    own; empty: none.

    reasoner: the shipped model that preset 'tiny' takes where none is named. dtype: in place of the
    preset's. thinking: whether a model that thinks apart from its answer is asked to. Raises
    FileNotFoundError where the folder holds no adapter, ValueError where it was trained on another
    model, or is asked for at preset 'tiny'.
    """
    programs = models.preset(preset).task == "programs"
    if programs and adapter:
        raise ValueError(
            f"adapter={adapter!r} is for text models: leave it empty at preset {preset!r}"
        )
    chosen = model or (models.shipped(reasoner) if programs else "")
    lm = models.load(preset, model=chosen, dtype=dtype or None)
    if adapter == "stored":
        lm = adapters.adapted(lm, STORED, "sft")  # as its evidence calls it
    elif adapter:
        lm = adapters.adapted(lm, Path(adapter))
    return lm.asked(thinking)


# --- the study ------------------------------------------------------------------------------------


def _values(records: Sequence[dict], settings: dict) -> engine.Values:
    questions = held_out_questions(len(records[0]["greedy"]["right"]), settings["seed"])
    return _table(records, questions, fresh(questions, settings["steps"], settings["seed"]))


def _values_kept(evidence: dict) -> engine.Values:
    """The values from what evidence keeps, with the questions that it counted."""
    questions = held_out_questions(len(evidence["fresh"]), evidence["settings"]["seed"])
    return _table(evidence["records"], questions, evidence["fresh"])


def _table(records: Sequence[dict], questions: Sequence[Question], counted) -> engine.Values:
    return engine.by_seed(lambda held: estimands(held, questions, counted))([records], {})


@functools.lru_cache(maxsize=2)
def known(name: str, dtype: str) -> LanguageModel:
    """A model that the kit knows by its content, by its name in evidence: one that `fetch` brings,
    or SmolLM2, with the shipped adapter where the name ends in '+sft'.
    """
    if name in fetching.known():
        return load("medium", model=name, dtype=dtype)
    return load("small", adapter="stored" if name.endswith("+sft") else "", dtype=dtype)


def replayed(settings: dict) -> LanguageModel:
    """The model that settings of evidence name, in the dtype that they say it computed in: float32
    where they say none.
    """
    return known(settings["model"], settings.get("dtype", "float32"))


def _again(evidence: dict, place: int) -> dict[str, float]:
    """A held-out question before training and with the shipped adapter: greedy answers and L̂, not
    the samples.
    """
    seed, most = (evidence["settings"][name] for name in ("seed", "most_tokens"))
    questions = held_out_questions(len(evidence["templates"]), seed)
    records = copy.deepcopy(evidence["records"])
    for record in records:
        if record["arm"] != "answers":
            arm = presets.EMBEDDED_NAME + ("+sft" if record["arm"] == "gold" else "")
            found = measured(known(arm, "float32"), [questions[place]], seed, most)
            record["greedy"]["right"][place] = found["greedy"]["right"][0]
            record["nll"][place] = found["nll"][0]
    values = estimands(records, questions, evidence["fresh"])
    return {test: np.asarray(column)[place] for test, column in values.items()}


STUDY = Study(
    "lora",
    arm_record,
    _values,
    lambda records: {"records": records},
    settings={"steps": STEPS, "questions": 200, "seed": 0},
    replays=(engine.question_again(_again, 90), engine.values_again(_values_kept)),
)


def make_evidence(lm: LanguageModel, scale: str, folder: Path, *, command: str, **settings) -> Path:
    """Write lora.<scale>.json; checkpoints in the folder keep finished arms and training steps.

    settings: steps, questions and seed, where they are not the study's, and most_tokens of an
    answer, where it is not the `limit` of the scale's preset.
    """
    settings = {"most_tokens": limit(scale, MOST_TOKENS)} | settings
    made = STUDY.run(ARMS, folder, progress=True, inputs={"lm": lm}, **settings)
    seed, steps = made.settings["seed"], made.settings["steps"]
    questions = held_out_questions(made.settings["questions"], seed)
    said = {
        "model": lm.name,
        "steps": steps,
        "batch": BATCH,
        "peak_lr": PEAK_LR,
        "seed": seed,
        "lora_rank": LORA_RANK,
        "temperature": TEMPERATURE,
        "most_tokens": made.settings["most_tokens"],
    }
    return STUDY.write(
        made,
        folder,
        command=command,
        scale=scale,
        settings=said,
        fresh=fresh(questions, steps, seed),
        templates=[question.template for question in questions],
    )
