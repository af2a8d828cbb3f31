"""What a stride hides, and which tokens make the spikes: L̂ after every token of gold and of the
model's own right and wrong samples.

A spike is a rise of L̂ by at least SPIKE nats at one token, of which half or more is gone again
within WITHIN tokens. Both numbers were chosen before any curve of every token was made. It is a
description without a verdict.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tml_lib.claims import ledger
from tml_lib.claims.replay import RECORD, Pairs, Replay
from tml_lib.claims.stats import Interval, bootstrap_interval, trend
from tml_lib.data import gsm
from tml_lib.lm.answers import Encoded, encode
from tml_lib.lm.models import LanguageModel
from tml_lib.measure import token_roles
from tml_lib.measure.probe import probe
from tml_lib.records import Question, Trajectory
from tml_lib.studies import engine, lora, material, own_trajectories, trajectories
from tml_lib.studies.engine import Study
from tml_lib.studies.own_trajectories import Own

SPIKE = 1.0  # nats per token
WITHIN = 8  # tokens
STRIDES = (1, 2, 4, 8, 16)
KINDS = ("gold", "own_right", "sampled")
TOKENS = {  # by letter, kinds of token in the order in which they are tried
    "m": "markup",  # of a LaTeX command, or a brace of it
    "d": "digit",
    "b": "line break",
    "w": "word",
    "p": "punctuation",
    "s": "sign",  # all others: + = $ …
}
_COMMAND = re.compile(r"\\[A-Za-z]+|\\.|[{}]")


def token_kinds(text: str, encoded: Encoded) -> str:
    """A letter of TOKENS for each token of a text."""
    markup = {at for match in _COMMAND.finditer(text) for at in range(*match.span())}
    found, start = [], 0
    for token, end in zip(encoded.tokens, encoded.ends, strict=True):
        # a token without an end of its own is part of the character that the next one ends
        places = {at for at in range(start, end) if not text[at].isspace()}
        found.append(_kind(token, bool(places) and places <= markup))
        start = max(start, end)
    return "".join(found)


def _kind(token: str, markup: bool) -> str:
    if markup:
        return "m"
    if any(c.isdigit() for c in token):
        return "d"
    if "\n" in token:
        return "b"
    if any(c.isalpha() for c in token):
        return "w"
    return "p" if token.strip() and all(c in ".,;:!?" for c in token.strip()) else "s"


def spikes(nll: Sequence[float]) -> list[int]:
    """The tokens, from 0, at which L̂ rises by SPIKE or more and is down by half of that rise within
    WITHIN tokens; nll: (tokens + 1,).
    """
    nll = np.asarray(nll, dtype=float)
    rises = np.diff(nll)
    return [
        int(k)
        for k in np.flatnonzero(rises >= SPIKE)
        if np.min(nll[k + 2 : k + 2 + WITHIN], initial=np.inf) <= nll[k + 1] - rises[k] / 2
    ]


def question_record(
    case: tuple[Question, Own], folder: Path, *, lm: LanguageModel
) -> dict[str, dict]:
    """One question's L̂ after every token, the tokens' kinds, where words such as 'Therefore' and
    ends of steps stand, and where the answer is first stated, by kind of trajectory; and the
    model's own texts.
    """
    question, own = case
    found = {"gold": gsm.gold(question), "own_right": own.right, "sampled": own.wrong}
    found = {kind: one for kind, one in found.items() if one is not None}
    curves = {kind: _curve(lm, question, one) for kind, one in found.items()}
    texts = {kind: one.text for kind, one in found.items() if kind != "gold"}
    return {"id": question.id, "curves": curves, "texts": texts}


def _curve(lm: LanguageModel, question: Question, trajectory: Trajectory) -> dict:
    prompt = lm.prompt(question.text)
    encoded = encode(lm.tokenizer, prompt, trajectory.text, [question.answer])
    curve = probe(lm, prompt, trajectory.text, question.answer)
    pieces = token_roles.text_pieces(trajectory.text, encoded, question.answer)
    return {
        "nll": np.round(curve.answer_nll, 3).tolist(),
        "tokens": token_kinds(trajectory.text, encoded),
        "marks": [piece for piece in pieces if piece[0] in (*token_roles.MARKS, ".", "answer")],
        "unstated": curve.unstated,
    }


# --- what is read off the records -----------------------------------------------------------------


def by_token(evidence: dict, kind: str) -> dict[str, tuple[int, int]]:
    """By kind of token, how many there are in a kind of trajectory and how many make a spike."""
    there, made = Counter(), Counter()
    for record in evidence["records"]:
        if curve := record["curves"].get(kind):
            there.update(curve["tokens"])
            made.update(curve["tokens"][k] for k in spikes(curve["nll"]))
    return {name: (there[letter], made[letter]) for letter, name in TOKENS.items() if there[letter]}


def by_mark(evidence: dict, kind: str) -> dict[str, dict[str, float]]:
    """What `token_roles.by_class` says of a kind of trajectory: words such as 'Therefore', ends of
    steps, tokens of the stated answer, and all others.
    """
    rows = []
    for record in evidence["records"]:
        if curve := record["curves"].get(kind):
            marks = [(name, first, last) for name, first, last in curve["marks"]]
            covered = {k for _, first, last in marks for k in range(first, last)}
            rest = [k for k in range(len(curve["tokens"])) if k not in covered]
            rows += token_roles.rows_of(curve["nll"], marks)
            rows += token_roles.rows_of(curve["nll"], [("other", k, k + 1) for k in rest])
    return token_roles.by_class(rows)


def seen(evidence: dict, kind: str, stride: int) -> tuple[int, int]:
    """How many spikes there are, and how many have a probed prefix on their upper half."""
    there = visible = 0
    for record in evidence["records"]:
        nll = np.array(record["curves"].get(kind, {"nll": [0.0]})["nll"])
        for k in spikes(nll):
            low, there = (nll[k] + nll[k + 1]) / 2, there + 1
            end = k + 1 + int(np.argmax(nll[k + 1 :] <= low))
            visible += any(place % stride == 0 for place in range(k + 1, end))
    return there, visible


def trends(evidence: dict, kind: str) -> dict[int, Interval]:
    """By stride, the mean over questions of tau before the answer is stated, minus that of every
    token; where a stride leaves a tau to two questions or more.
    """
    rows = []
    for record in evidence["records"]:
        if curve := record["curves"].get(kind):
            nll = curve["nll"][: curve["unstated"] + 1]
            rows.append([_trend(nll, stride) for stride in STRIDES])
    off = np.array(rows).reshape(-1, len(STRIDES))
    off -= off[:, :1].copy()
    return {
        stride: bootstrap_interval(column, seed=0)
        for stride, column in zip(STRIDES, off.T, strict=True)
        if stride > 1 and np.sum(~np.isnan(column)) > 1
    }


def _trend(nll: Sequence[float], stride: int) -> float:
    kept = [*nll[::stride], *([nll[-1]] if (len(nll) - 1) % stride else [])]
    return trend(np.array(kept))


# --- the study ------------------------------------------------------------------------------------


def _again(evidence: dict, name: str) -> Pairs:
    """A question's mean L̂ and its trend along each trajectory, from the texts that evidence
    keeps.
    """
    settings, place = evidence["settings"], engine.place_of(name)
    question = trajectories.study_questions(settings["n_questions"], settings["seed"])[place]
    stored = evidence["records"][place]
    lm = lora.replayed(settings)
    own = own_trajectories.first_own(lm, stored["texts"].values(), question)
    made = question_record((question, own), Path(), lm=lm)
    pairs = {}
    for kind, curve in stored["curves"].items():
        both = curve["nll"], made["curves"][kind]["nll"]
        pairs[f"mean along {kind}"] = tuple(float(np.mean(nll)) for nll in both)
        pairs[f"trend along {kind}"] = tuple(trend(np.array(nll)) for nll in both)
    return pairs


STUDY = Study(
    "strides",
    question_record,
    lambda records, settings: {},
    lambda records: {"records": list(records)},
    replays=(Replay(RECORD, engine.questions_of, _again, 150),),
)


def make_evidence(
    lm: LanguageModel, written: Path, folder: Path, *, n: int, scale: str, command: str
) -> Path:
    """Write strides.<scale>.json of the first n questions. written: evidence of `material`."""
    asked, found = material.owns(lm, written)
    told = ledger.read_evidence(written)["settings"]
    asked, found = asked[:n], found[:n]
    cases = list(zip(asked, found, strict=True))
    made = STUDY.run(cases, folder, progress=True, inputs={"lm": lm})
    said = {name: told[name] for name in ("seed", "max_tokens")}
    said |= {"trajectories_of": told["model"]} if told["model"] != lm.name else {}
    cut = [[own.cut, own.samples] for own in found]
    more = {"command": command, "scale": scale, "settings": said, "cut": cut}
    return STUDY.write_asked(made, lm, asked, folder, **more)
