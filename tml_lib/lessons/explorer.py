"""An interactive view of one question's trajectories: the text coloured by what each step does to
L̂, a cursor along the curve, and how likely each candidate answer is there.

`measured` makes an `Explorer`, which a notebook shows; `html` and `page` write the same view for
the site and for reports, with no other file and no network. `box` adds a text of a reader's own.
The script is explorer.js; it only ever writes text, so that a trajectory may hold anything.
"""

from __future__ import annotations

import dataclasses
import html as escaping
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tml_lib import files, runtime
from tml_lib.lessons import names
from tml_lib.records import ProbeCurve, Question, Trajectory

if TYPE_CHECKING:
    from tml_lib.lm.models import LanguageModel
    from tml_lib.studies.own_trajectories import Own

MIME = "application/vnd.tml.explorer+json"
KINDS = ("gold", "own_right", "sampled", "corrupted", "foreign")  # in the order of the buttons
OWN = "own_text"
_MOST = 4  # candidates: more curves would hide one another
_DASHES = {"-": "", "--": "7 4", ":": "2 3", "-.": "8 3 2 3"}
_STILL = "This view moves where its script may run: in JupyterLab or Colab, run its cell."


@dataclass(frozen=True)
class Candidate:
    """An answer whose likelihood is followed, what it is in words, and its length."""

    answer: str
    role: str
    tokens: int  # |a|: its likelihood is exp(-|a| L̂)


@dataclass(frozen=True, eq=False)
class Explorer:
    """Curves of several candidate answers along several trajectories of one question."""

    question: Question
    model: str
    candidates: tuple[Candidate, ...]  # the right one first
    curves: Mapping[str, Sequence[ProbeCurve]]  # kind -> a curve per candidate, with its tokens

    def data(self) -> dict:
        """What the page needs, as JSON: numbers in nats per token, rounded to 1e-4."""
        right = [np.diff(found[0].answer_nll) for found in self.curves.values()]
        sizes = np.abs(np.concatenate([*right, [0.0]]))
        return {
            "question": self.question.text,
            "model": self.model,
            "span": max(float(np.quantile(sizes, 0.97)), 1e-3),
            "candidates": [dataclasses.asdict(one) for one in self.candidates],
            "conditions": [_condition(kind, found) for kind, found in self.curves.items()],
        }

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        found = self.data()
        first = found["conditions"][0]
        said = f"{self.model}: {_name(first['kind'])}, {_falls(first)}. {_STILL}"
        return {MIME: found, "text/html": html(found), "text/plain": said}


def _condition(kind: str, curves: Sequence[ProbeCurve]) -> dict:
    """One trajectory: its text in the parts between two probed prefixes, and the curves."""
    right = curves[0]
    ends = right.positions.tolist()
    if ends[0] != 0 or ends[-1] != len(right.tokens):
        raise ValueError(
            f"the curve along {kind!r} is probed at {ends[0]}..{ends[-1]} of"
            f" {len(right.tokens)} tokens: probe it with a stride, from 0 to its end"
        )
    pairs = itertools.pairwise(ends)
    return {
        "kind": kind,
        "positions": ends,
        "segments": ["".join(right.tokens[a:b]) for a, b in pairs],
        "nll": [np.round(curve.answer_nll, 4).tolist() for curve in curves],
        "stated_at": right.stated_at,
    }


def _name(kind: str) -> str:
    return names.style(names.CONDITIONS, kind).name


def _falls(condition: dict) -> str:
    nll = condition["nll"][0]
    return f"L̂ from {float(nll[0]):.2f} to {float(nll[-1]):.2f} nats per token"


# --- measuring ------------------------------------------------------------------------------------


def candidates(
    lm: LanguageModel, question: Question, texts: Mapping[str, Trajectory]
) -> tuple[Candidate, ...]:
    """The right answer, and up to three wrong ones that the trajectories suggest: the answers
    that they state, then the numbers of the gold solution, the last first.

    None begins another: the likelihood of '1' includes that of '10'.
    """
    from tml_lib.data import gsm
    from tml_lib.lm import answers

    stated = [
        (text.answer, f"stated by {names.style(names.CONDITIONS, kind).short}")
        for kind, text in texts.items()
        if text.answer
    ]
    inside = gsm.NUMBER.findall(gsm.gold(question).text)[::-1]
    roles = {question.answer: "right"}
    for answer, role in stated + [(number, "a number of gold") for number in inside]:
        wrong = gsm.NUMBER.fullmatch(answer) and gsm.first_mention(answer, question.answer) is None
        apart = not any(one.startswith(answer) or answer.startswith(one) for one in roles)
        if wrong and apart and len(roles) < _MOST:
            roles[answer] = f"wrong: {role}"
    found = answers.encode(lm.tokenizer, lm.prompt(question.text), "", list(roles)).suffixes
    return tuple(
        Candidate(answer, role, len(suffix.ids) - suffix.start)
        for (answer, role), suffix in zip(roles.items(), found, strict=True)
    )


def own_texts(
    lm: LanguageModel, questions: list[Question], *, tries: int, seed: int, max_tokens: int
) -> Own:
    """What the model wrote to the last of these questions: `tries` new samples; with tries=0 those
    that come with the question, or that stored evidence keeps of this model, if any.
    """
    from tml_lib.claims import ledger
    from tml_lib.studies import own_trajectories

    if tries:
        how = {"seed": seed, "tries": tries, "max_tokens": max_tokens}
        return own_trajectories.own_samples(lm, questions[-1:], **how)[0]
    n, drawn = len(questions), questions[-1].id.startswith(f"gsm_symbolic/{seed}/")
    stored = runtime.project_root() / "notebooks" / "evidence"
    for path in sorted(stored.glob("trajectories.*.json")) * drawn:
        record = ledger.read_evidence(path)
        said = record["settings"]
        same = (said["model"], said["seed"], said.get("data", "")) == (lm.name, seed, "")
        if same and n <= said["n_questions"] and "sampled" in record:
            held = {kind: record.get(kind, [None] * n)[:n] for kind in ("own_right", "sampled")}
            return own_trajectories.samples_of(held | {"settings": said}, questions)[-1]
    return own_trajectories.given_samples(questions[-1])


def measured(
    lm: LanguageModel, question: Question, texts: Mapping[str, Trajectory], *, stride: int
) -> Explorer:
    """Probe every trajectory of KINDS for every candidate, after each stride-th token. Raises
    ValueError as `probe` does.
    """
    kept = {kind: texts[kind] for kind in KINDS if kind in texts}
    found = candidates(lm, question, kept)
    curves = {kind: _curves(lm, question, text.text, found, stride) for kind, text in kept.items()}
    return Explorer(question, lm.name, found, curves)


def _curves(lm, question, text: str, found: Sequence[Candidate], stride: int) -> list[ProbeCurve]:
    from tml_lib.measure.probe import probe

    asked = [one.answer for one in found]
    return probe(lm, lm.prompt(question.text), text, asked, stride=stride)


def of_study(lm: LanguageModel, record: dict) -> Explorer | None:
    """A question of a trajectory study, probed for its candidates too: the first with the most
    kinds of trajectories. None where its texts cannot be made again.
    """
    from tml_lib.lm.answers import encode
    from tml_lib.studies import own_trajectories, trajectories

    said, tables = record["settings"], record["curves"]
    place = max(range(len(tables)), key=lambda k: (len(set(KINDS) & set(tables[k])), -k))
    asked = trajectories.chosen_questions(said.get("data", ""), said["n_questions"], said["seed"])
    question = asked[place]
    own = own_trajectories.samples_of(record, asked)[place]
    others = trajectories.strangers(said["seed"])
    texts = trajectories.build_conditions(lm, question, others, own, said["seed"])
    prompt, kept = lm.prompt(question.text), {}
    for kind in KINDS:
        held = tables[place].get(kind, {}).get("right")
        if held and kind in texts:
            tokens = encode(lm.tokenizer, prompt, texts[kind].text, [question.answer]).tokens
            if (len(tokens), question.answer) == (held["length"], held["answer"]):
                kept[kind] = texts[kind]
    return measured(lm, question, kept, stride=said["stride"]) if kept else None


def with_text(lm: LanguageModel, view: Explorer, text: str, *, stride: int = 1) -> Explorer:
    """The view with a trajectory of one's own in front; ValueError where it is blank."""
    if not text.strip():
        raise ValueError("there is no text in the box: write a trajectory, and probe again")
    own = _curves(lm, view.question, text, view.candidates, stride)
    rest = {kind: found for kind, found in view.curves.items() if kind != OWN}
    return dataclasses.replace(view, curves={OWN: own} | rest)


def box(lm: LanguageModel, view: Explorer, text: str, *, stride: int = 1) -> None:
    """Show a box for a trajectory of one's own, and below it the view, which a click renews."""
    import ipywidgets
    from IPython.display import display

    wide = ipywidgets.Layout(width="calc(100% - 4px)", height="9em")
    area = ipywidgets.Textarea(value=text, layout=wide)
    button = ipywidgets.Button(description="Probe this text", button_style="primary")
    said = ipywidgets.Label(f"{lm.name} reads the text after the question.")
    display(ipywidgets.VBox([area, ipywidgets.HBox([button, said])]))
    shown = display(with_text(lm, view, text, stride=stride), display_id=True)

    def renew(_) -> None:
        said.value = "Probing …"
        try:
            shown.update(found := with_text(lm, view, area.value, stride=stride))
            said.value = _falls(_condition(OWN, found.curves[OWN]))
        except ValueError as error:
            said.value = str(error)

    button.on_click(renew)


# --- writing --------------------------------------------------------------------------------------


@cache
def _script() -> str:
    return files.text(Path(__file__).with_name("explorer.js"), files.COMMITTED)


def html(data: dict) -> str:
    """The view as one element for any page. Without scripts it shows the first trajectory's text.

    Whatever the data hold, nothing of them is read as HTML. Raises ValueError for a kind of
    trajectory that has no name and colour, or a number that is not finite.
    """
    kinds = [condition["kind"] for condition in data["conditions"]]
    styles = {kind: names.style(names.CONDITIONS, kind) for kind in kinds}
    looks = {
        kind: {"name": style.name, "colour": style.colour, "dash": _DASHES[style.dash]}
        for kind, style in styles.items()
    }
    scale = {"likelier": names.BLUE, "less": names.VERMILION, "black": names.BLACK}
    # keys in order, as a stored notebook has them
    held = data | {"styles": looks, "colours": scale}
    held = json.dumps(held, allow_nan=False, sort_keys=True)
    # '<' and '&' as escapes: no text ends the script element, or begins one
    held = held.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
    first = data["conditions"][0]
    said = (data["question"], f"{_name(first['kind'])}: {_falls(first)}. {_STILL}")
    words = "".join(f"<p>{escaping.escape(str(text))}</p>" for text in said)
    text = escaping.escape("".join(map(str, first["segments"])))
    return (
        '<div class="tml-explorer tex2jax_ignore mathjax_ignore"'
        ' data-lm-suppress-shortcuts="true">'
        f'<script type="application/json">{held}</script>'
        f'<div class="tml-still">{words}<pre style="white-space: pre-wrap">{text}</pre></div>'
        f"<script>{_script()}</script></div>"
    )


def page(data: dict) -> str:
    """The view as a page of its own."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf8">'
        '<meta name="viewport" content="width=device-width">'
        "<title>One trajectory</title><style>:root { color-scheme: light dark }"
        " body { font: 16px/1.5 system-ui, sans-serif; margin: 1rem auto; max-width: 80rem;"
        f" padding: 0 1rem }}</style></head>\n<body>{html(data)}</body></html>\n"
    )
