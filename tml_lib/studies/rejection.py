"""The study behind C4t and C9t: rejection sampling. A text model is fine-tuned with LoRA on what it
wrote rightly itself, which is long; beside it stand gold trajectories, which are short, and answers
alone.

Every arm trains on the same questions, of every other template: those to which a stored sample of
`material` is right. Held out are questions of the other templates, and of two sets of reasoning-gym
that no arm trains on. Deviations from the paper: the model's own samples in place of a larger
model's, one seed, a LoRA adapter in place of all weights, equal steps only, k = 4 in place of 8.
Rates are those of `lora`; none was tuned.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tml_lib.claims import ledger
from tml_lib.claims.replay import FIRST_STEPS, Pairs, Replay
from tml_lib.claims.stats import mg_pass_at_k, pass_at_k
from tml_lib.data.tiny import Row
from tml_lib.lm import sampling
from tml_lib.lm.answers import grade, token_ids
from tml_lib.lm.models import LanguageModel
from tml_lib.records import Arms, Question
from tml_lib.studies import engine, lora, material, supervised, trajectories
from tml_lib.studies.engine import Study
from tml_lib.train import sft

ARMS = ("base", "answers", "gold", "own")
STEPS = 24
BATCH = 4
SAMPLES = 4  # of a held-out question, at TEMPERATURE
TEMPERATURE = 0.6
ACROSS = ("chain_sum", "gcd")  # sets of reasoning-gym, as they are, that no arm trains on


# --- questions and rows ---------------------------------------------------------------------------


def shown(lm: LanguageModel, written: Path) -> list[tuple[Question, str]]:
    """The questions of trained templates to which a right sample was written, each with the first.

    written: evidence of `material`. Raises ValueError where there is none.
    """
    asked, found = material.owns(lm, written)
    cases = [
        (question, own.right.text)
        for question, own in zip(asked, found, strict=True)
        if own.right is not None and lora.is_trained(question)
    ]
    if not cases:
        raise ValueError(
            f"{written} holds no right sample of a trained template: make one of more questions"
        )
    return cases


def arm_rows(
    lm: LanguageModel, arm: str, cases: Sequence[tuple[Question, str]], count: int, seed: int
) -> list[Row]:
    """`count` rows of an arm: all cases in a random order, then again. Arms share the order, and in
    every `lora.DIRECT`-th row the trajectory is left out.

    arm: one of ARMS but 'base', or 'as_written': own samples and the end token, without an answer
    in the kit's template behind them; none is left out.
    """
    rng, order = random.Random(f"rejection/{seed}"), []
    while len(order) < count:
        order += rng.sample(list(cases), len(cases))
    questions, texts = zip(*order[:count], strict=True)
    if arm == "as_written":
        return [_as_written(lm, *case) for case in order[:count]]
    direct = sft.question_rows(lm, questions, trajectories=False)
    if arm == "answers":
        return direct
    full = sft.question_rows(lm, questions, texts=None if arm == "gold" else texts)
    last = lora.DIRECT - 1
    return [direct[k] if k % lora.DIRECT == last else full[k] for k in range(count)]


def _as_written(lm: LanguageModel, question: Question, text: str) -> Row:
    prompt = token_ids(lm.tokenizer, lm.prompt(question.text))
    own = [*token_ids(lm.tokenizer, text, begins=False), lm.tokenizer.eos_token_id]
    return [*prompt, *own], len(prompt)


def learnt(rows: Sequence[Row]) -> list[int]:
    """The tokens of each row that the loss counts."""
    return [len(ids) - start for ids, start in rows]


def held_out(n: int, seed: int) -> list[Question]:
    """n questions of templates that are not trained, then as many in all of the sets ACROSS."""
    within = lora.held_out_questions(2 * n, seed)[n:]
    share = -(-n // len(ACROSS))
    across = [question for name in ACROSS for question in _of_set(name, share, seed)]
    return [*within, *across[:n]]


def _of_set(name: str, n: int, seed: int) -> list[Question]:
    import reasoning_gym

    data = reasoning_gym.create_dataset(name, size=n, seed=seed + 1000)
    return [
        Question(f"{name}/{seed}/{k}", data[k]["question"], str(data[k]["answer"]), f"{name} {k}")
        for k in range(n)
    ]


# --- arms -----------------------------------------------------------------------------------------


def arm_record(
    arm: str,
    folder: Path,
    *,
    lm: LanguageModel,
    cases: Sequence[tuple[Question, str]],
    steps: int,
    questions: int,
    seed: int,
    max_tokens: int,
) -> dict:
    """Train an arm (its adapter stays in folder/arm) and ask it the held-out questions: greedy, and
    SAMPLES times where the set is trained on; also the training's losses and its tokens a row.
    """
    log, tokens = [], []
    if arm != "base":
        rows = arm_rows(lm, arm, cases, steps * BATCH, seed)
        tokens = learnt(rows)
        lm, log = trained(lm, rows, Path(folder) / arm, steps, seed)
    asked = held_out(questions, seed)
    greedy = measured(lm, asked, seed, max_tokens, samples=1, temperature=0)
    sampled = measured(
        lm, asked[:questions], seed, max_tokens, samples=SAMPLES, temperature=TEMPERATURE
    )
    each = round(float(np.mean(tokens)), 1) if tokens else 0
    return {"arm": arm, "greedy": greedy, "sampled": sampled, "losses": log, "learnt": each}


def trained(
    lm: LanguageModel,
    rows: Sequence[Row],
    folder: Path,
    steps: int,
    seed: int,
    peak_lr: float = lora.PEAK_LR,
) -> tuple[LanguageModel, list[float]]:
    """The model with an adapter trained on the rows, and the loss of each step."""
    settings = sft.SFTSettings(
        steps=steps,
        batch=BATCH,
        peak_lr=peak_lr,
        lora_rank=lora.LORA_RANK,
        seed=seed,
        save_every=10,
        log_every=1,
    )
    run = sft.sft(lm, rows, folder, settings)
    return run.lm, [round(float(entry["loss"]), 4) for entry in run.log if "loss" in entry]


def measured(
    lm: LanguageModel, asked: Sequence[Question], seed: int, most: int, **how
) -> dict[str, object]:
    """Right samples per question, mean tokens of those that ended, and how many were cut."""
    right, tokens, ended = sampling.right_counts(
        lm, asked, grade, seed=seed, max_new_tokens=most, batch_size=64, progress=True, **how
    )
    cut = supervised.cut_of(ended, how["samples"] * len(asked))
    return {"right": right, "tokens": tokens, "cut": cut}


def estimands(records: Sequence[dict], n: int) -> dict[str, Arms]:
    """The values of C4t and C9t by question; NaN where a test does not ask it. n: the questions of
    the trained set, which come first.
    """
    arms = {record["arm"]: record for record in records}
    greedy = {arm: np.array(arms[arm]["greedy"]["right"], dtype=float) for arm in ARMS}
    inside = np.arange(len(greedy["base"])) < n

    def of_samples(statistic) -> dict[str, np.ndarray]:
        table = np.array([statistic(SAMPLES, c, SAMPLES) for c in range(SAMPLES + 1)])
        rest = np.full((~inside).sum(), np.nan)
        return {arm: np.append(table[arms[arm]["sampled"]["right"]], rest) for arm in ARMS}

    def gain(table: dict[str, np.ndarray], first: str, second: str, asked=inside) -> Arms:
        return Arms(np.where(asked, table[first], np.nan), table[second])

    passed, majority = of_samples(pass_at_k), of_samples(mg_pass_at_k)
    return {
        "C4t.greedy": gain(greedy, "own", "gold"),
        "C4t.mgpass": gain(majority, "own", "gold"),
        "C4t.pass": gain(passed, "own", "gold"),
        "C4t.over_answers": gain(greedy, "own", "answers"),
        "C4t.gold_over_answers": gain(greedy, "gold", "answers"),
        "C4t.gold_over_base": gain(greedy, "gold", "base"),
        "C9t.within": gain(greedy, "own", "base"),
        "C9t.across": gain(greedy, "own", "base", ~inside),
        "C9t.gold_across": gain(greedy, "gold", "base", ~inside),
        "C9t.answers_across": gain(greedy, "answers", "base", ~inside),
    }


# --- the study ------------------------------------------------------------------------------------


def _values(records: Sequence[dict], settings: dict) -> engine.Values:
    n = len(records[0]["sampled"]["right"])
    return {test: [arms] for test, arms in estimands(records, n).items()}


def _arms(evidence: dict) -> list[str]:
    return list(ARMS[1:]) if engine.questions_of(evidence) else []


def first_step(evidence: dict, name: str, arm: str, seed: int) -> Pairs:
    """The loss of the first step of a record's training, on the texts that evidence keeps; how fast
    the rate rises afterwards depends on the number of steps. The texts that the arms write are not
    compared: in bfloat16 one that is asked for alone differs.
    """
    settings = evidence["settings"]
    asked = trajectories.study_questions(*evidence["material"])
    cases = [(asked[place], text) for place, text in evidence["shown"]]
    lm = lora.replayed(settings)
    rows = arm_rows(lm, arm, cases, settings["batch"], seed)
    with tempfile.TemporaryDirectory() as folder:
        made = trained(lm, rows, Path(folder), 1, seed)[1]
    stored = next(record["losses"] for record in evidence["records"] if record["arm"] == name)
    return engine.first_steps(stored, made)


def _first_step(evidence: dict, arm: str) -> Pairs:
    return first_step(evidence, arm, arm, evidence["settings"]["seed"])


STUDY = Study(
    "rejection",
    arm_record,
    _values,
    lambda records: {"records": records},
    replays=(
        Replay(FIRST_STEPS, _arms, _first_step, 120),
        engine.values_again(lambda evidence: _values(evidence["records"], {})),
    ),
)


def make_evidence(
    lm: LanguageModel,
    written: Path,
    folder: Path,
    *,
    n: int,
    seed: int,
    max_tokens: int,
    scale: str,
    command: str,
    steps: int = STEPS,
) -> Path:
    """Write rejection.<scale>.json of n held-out questions and n of other sets; the folder keeps
    finished arms and training steps. written: evidence of `material`.
    """
    cases, asked = shown(lm, written), held_out(n, seed)
    how = {"steps": steps, "questions": n, "seed": seed, "max_tokens": max_tokens}
    made = STUDY.run(ARMS, folder, progress=True, inputs={"lm": lm, "cases": cases}, **how)
    said = {"n_questions": n, "batch": BATCH, "peak_lr": lora.PEAK_LR, "shown": len(cases)}
    said |= {"lora_rank": lora.LORA_RANK, "temperature": TEMPERATURE}
    kept = shown_again(written, cases) | {"command": command, "scale": scale}
    return STUDY.write_asked(made, lm, asked, folder, settings=said, **kept)


def shown_again(written: Path, cases: Sequence[tuple[Question, str]]) -> dict:
    """What evidence keeps of the cases, for `first_step`: which questions those of `material` are,
    and the texts by their place.
    """
    told = ledger.read_evidence(written)["settings"]
    of = trajectories.study_questions(told["n_questions"], told["seed"])
    places = {question.id: place for place, question in enumerate(of)}
    return {
        "material": [told["n_questions"], told["seed"]],
        "shown": [[places[question.id], text] for question, text in cases],
    }
