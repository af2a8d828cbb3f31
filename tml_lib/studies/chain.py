"""The study behind C5s: LoRA SFT and GRPO on a small pretrained LLM, on sums that it solves now and
then.

GRPO teaches nothing where no sample is ever right, as on `gsm_symbolic` with SmolLM2 (C4s), so the
task is reasoning-gym's `chain_sum`: two to four numbers of one or two digits. A rule writes the
gold trajectory, one partial sum after another. Arms take equal steps from the same model: SFT; a
shorter SFT, the cold start; GRPO from the cold start; GRPO from the model as it is. Deviations from
the paper: one small model, one seed, a LoRA adapter, one question a step, no tuning of rates.

A text is cut after MOST_TOKENS, in training and when asked: enough for every gold trajectory, and
not for what the model writes before any training. So three arms are asked again with ROOM, where
most texts end by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tml_lib.data import rewards
from tml_lib.lm import answers, sampling
from tml_lib.lm.models import LanguageModel
from tml_lib.records import Arms, Question, Trajectory
from tml_lib.studies import engine, lora, rl
from tml_lib.studies.engine import Study
from tml_lib.train import grpo, sft

ARMS = ("base", "cold", "long", "warm", "zero")
STEPS = 40  # of an arm, cold start included
COLD_STEPS = 10
BATCH = 8  # rows of SFT's step
GROUP = 16  # samples of GRPO's, of one question
LORA_RANK = 4
SFT_RATE = 1e-3  # that of C4s
GRPO_RATE = 3e-4
MOST_TOKENS = 96  # a gold trajectory with its answer has at most about 80
SAMPLES = 4  # of a held-out question, at temperature 1
# tokens of a text of the control with room to finish, one sample at temperature 1 a question
ROOM = 512
ROOM_ARMS = ("base", "zero", "warm")
HELD_OUT = 10_000  # added to the seed


def sums(n: int, seed: int, *, avoid: Sequence[Question] = ()) -> list[Question]:
    """n different questions of `chain_sum`, none with the text of one to avoid, each with its gold
    trajectory.
    """
    import reasoning_gym

    shape = {"min_terms": 2, "max_terms": 4, "min_digits": 1, "max_digits": 2}
    data, seen, found = (
        reasoning_gym.create_dataset("chain_sum", size=10**6, seed=seed, **shape),
        {q.text for q in avoid},
        [],
    )
    for index in range(len(data)):
        if len(found) == n:
            return found
        entry = data[index]
        if entry["question"] not in seen:
            seen.add(entry["question"])
            gold = Trajectory(
                partial_sums(entry["metadata"]["expression"]), "gold", entry["answer"], True
            )
            name = f"chain_sum/{seed}/{index}"
            found.append(
                Question(
                    name,
                    entry["question"],
                    entry["answer"],
                    str(entry["metadata"]["num_terms"]),
                    (gold,),
                )
            )
    raise ValueError(
        f"chain_sum has {len(found)} of {n} questions that are not to be avoided: ask for fewer"
    )


def partial_sums(expression: str) -> str:
    """'15 - 43 - 75' -> '15 - 43 = -28' and '-28 - 75 = -103', a line each."""
    first, *rest = expression.split()
    total, lines = int(first), []
    for sign, number in zip(rest[::2], rest[1::2], strict=True):
        result = total + int(number) if sign == "+" else total - int(number)
        lines.append(f"{total} {sign} {number} = {result}")
        total = result
    return "\n".join(lines)


def trained(
    lm: LanguageModel,
    folder: Path,
    arm: str,
    seed: int,
    *,
    steps: int,
    cold_steps: int,
    most_tokens: int,
) -> tuple[LanguageModel, list]:
    """The model of an arm, and a log of rewards where it has one; what is trained stays in the
    folder, and training resumes from it. most_tokens: of a sample.
    """
    shown = sums(steps * BATCH, seed)
    if arm in ("long", "cold"):
        count = steps if arm == "long" else cold_steps
        rows = sft.question_rows(lm, shown[: count * BATCH])
        settings = sft.SFTSettings(
            steps=count, batch=BATCH, peak_lr=SFT_RATE, lora_rank=LORA_RANK, seed=seed, save_every=5
        )
        return sft.sft(lm, rows, folder / arm, settings).lm, []
    count = steps
    if arm == "warm":
        pace = {"steps": steps, "cold_steps": cold_steps, "most_tokens": most_tokens}
        lm, count = trained(lm, folder, "cold", seed, **pace)[0], steps - cold_steps
    settings = grpo.GRPOSettings(
        steps=count,
        prompts=1,
        group=GROUP,
        peak_lr=GRPO_RATE,
        lora_rank=LORA_RANK,
        seed=seed,
        save_every=2,
        most_tokens=most_tokens,
        accumulate=2,
    )
    run = grpo.grpo(lm, shown[-count:], rewards.text_reward, folder / arm, settings)
    kept = [entry for entry in run.log if "reward" in entry]
    return run.lm, [
        {name: round(float(entry[key]), 4) for name, key in rl.LOGGED.items()} for entry in kept
    ]


def asked(lm: LanguageModel, questions: Sequence[Question], seed: int, most_tokens: int) -> dict:
    """Greedy and sampled texts of each question: right or not, and whether they end in a box; and
    how many of all were cut, of how many. Here a text that was cut is right where it happens to end
    in the right number.
    """
    prompts, found = ([lm.prompt(question.text) for question in questions], {})
    for name, temperature, count in (("greedy", 0.0, 1), ("sampled", 1.0, SAMPLES)):
        repeated = [prompt for prompt in prompts for _ in range(count)]
        settings = {"temperature": temperature, "max_new_tokens": most_tokens, "batch_size": 32}
        seeds = sampling.row_seeds(seed, len(repeated))
        written = sampling.sample(lm, repeated, seeds, **settings)
        texts = sampling.texts(lm, written)
        right = [answers.grade(text, questions[k // count].answer) for k, text in enumerate(texts)]
        boxed = [rewards.boxed_at_the_end(text) for text in texts]
        found[name] = {
            key: np.reshape(values, (-1, count)).sum(1).tolist()
            for key, values in (("right", right), ("boxed", boxed))
        } | {"cut": [sum(one.cut for one in written), len(written)]}
    return found


def arm_record(
    arm: str,
    folder: Path,
    *,
    lm: LanguageModel,
    seed: int,
    steps: int,
    cold_steps: int,
    questions: int,
    most_tokens: int,
) -> dict:
    """Train an arm and ask it held-out sums; an arm of ROOM_ARMS also with `room` to finish."""
    held_out = sums(questions, seed + HELD_OUT, avoid=sums(steps * BATCH, seed))
    log: list[dict] = []
    if arm != "base":
        pace = {"steps": steps, "cold_steps": cold_steps, "most_tokens": most_tokens}
        lm, log = trained(lm, folder, arm, seed, **pace)
    more = {"room": room(lm, held_out, seed, most_tokens)} if arm in ROOM_ARMS else {}
    return {"arm": arm, "log": log} | asked(lm, held_out, seed, most_tokens) | more


def room(lm: LanguageModel, held_out: Sequence[Question], seed: int, least: int = 0) -> dict:
    """Samples with ROOM tokens, or `least` where that is more: right or not, whether they end in a
    box, their tokens, read back, and how many were cut, of how many.
    """
    prompts = [lm.prompt(question.text) for question in held_out]
    settings = {"max_new_tokens": max(ROOM, least), "batch_size": 200}
    written = sampling.sample(lm, prompts, sampling.row_seeds(seed, len(prompts)), **settings)
    texts = sampling.texts(lm, written)
    pairs = list(zip(texts, held_out, strict=True))
    return {
        "right": [answers.grade(text, question.answer) for text, question in pairs],
        "boxed": [rewards.boxed_at_the_end(text) for text in texts],
        "tokens": [len(answers.token_ids(lm.tokenizer, text, begins=False)) for text in texts],
        "cut": [sum(one.cut for one in written), len(written)],
    }


def estimands(records: Sequence[dict]) -> dict[str, Arms | np.ndarray]:
    """The values of every test of C5s, by question: accuracies, or the gain in boxes."""
    arms = {record["arm"]: record for record in records}

    def gain(first: str, second: str, of: str = "sampled", what: str = "right") -> Arms:
        count = SAMPLES if of == "sampled" else 1
        return Arms(*(np.array(arms[arm][of][what], float) / count for arm in (first, second)))

    return {
        "C5s.sampled": gain("warm", "zero"),
        "C5s.sampled_over_long": gain("warm", "long"),
        "C5s.greedy": gain("warm", "zero", "greedy"),
        "C5s.greedy_over_long": gain("warm", "long", "greedy"),
        "C5s.cold": gain("warm", "cold"),
        "C5s.zero": gain("zero", "base"),
        "C5s.zero_boxed": np.asarray(gain("zero", "base", what="boxed")),
        "C5s.long": gain("long", "base"),
        "C5s.room": gain("warm", "zero", "room"),
    }


def _values(records: Sequence[dict], settings: dict) -> engine.Values:
    return engine.by_seed(estimands)([records], settings)


STUDY = Study(
    "chain",
    arm_record,
    _values,
    lambda records: {"records": records},
    settings={"steps": STEPS, "cold_steps": COLD_STEPS, "questions": 200, "seed": 0},
    replays=(engine.records_again(_values),),
)


def make_evidence(
    lm: LanguageModel, scale: str, folder: Path, *, command: str, seed: int = 0, **settings
) -> Path:
    """Write chain.<scale>.json; the folder keeps finished arms and training steps.

    settings: steps, cold_steps and questions, where they are not the study's, and most_tokens of a
    text, where it is not the `lora.limit` of the scale's preset.
    """
    settings = {"most_tokens": lora.limit(scale, MOST_TOKENS)} | settings
    made = STUDY.run(ARMS, folder, progress=True, inputs={"lm": lm}, seed=seed, **settings)
    said = {
        "model": lm.name,
        "seed": seed,
        "batch": BATCH,
        "group": GROUP,
        "lora_rank": LORA_RANK,
        "sft_rate": SFT_RATE,
        "grpo_rate": GRPO_RATE,
        "samples": SAMPLES,
        "most_tokens": made.settings["most_tokens"],
        "room": max(ROOM, made.settings["most_tokens"]),
    }
    return STUDY.write(made, folder, command=command, scale=scale, settings=said)
