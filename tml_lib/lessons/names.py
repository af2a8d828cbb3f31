"""What every arm, condition, method and verdict is called, and in which colour it is drawn: the one
table of the kit.

A group maps the keys that evidence uses to a style: key -> name in words, colour, dash, marker.
Entries of a group that meet in a figure differ in colour or, where they are variants of one thing,
in dash and marker. Colours are those of Okabe and Ito, which readers with any colour vision can
tell apart, and greys for what a result is compared with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK = "#E69F00", "#56B4E9", "#000000"
GREY, DARK, LIGHT = "#7F7F7F", "#595959", "#D9D9D9"  # of references, notes and grids
PAPER = "#F5F5F0"  # under figures of stored evidence
REFERENCE = {"color": GREY, "lw": 0.8}  # a line to compare with: 0, chance, a threshold
DOTTED = REFERENCE | {"ls": ":"}
DASHED = REFERENCE | {"ls": "--"}
LIVE = {"color": DARK, "lw": 1, "ls": "--"}  # what this run measured, beside stored evidence
# from few to many: of numbers of trajectories, samples, shots or steps
_RAMP = ("#440154", "#3E4A89", "#25838E", "#22A884", "#7AD151", "#C8B400")


@dataclass(frozen=True)
class Style:
    """How a thing is called and drawn."""

    name: str  # in words, as a legend prints it
    colour: str  # '#RRGGBB'
    dash: str = "-"  # matplotlib's line style
    marker: str = "o"

    @property
    def line(self) -> dict:
        """Keyword arguments of matplotlib's `plot` for a line with its name."""
        return {"color": self.colour, "ls": self.dash, "label": self.name}

    def called(self, name: str) -> Style:
        """The same look under a name that says more."""
        return replace(self, name=name)

    @property
    def short(self) -> str:
        """The name without its kind ('control: ', 'wrong: ')."""
        return self.name.rpartition(": ")[2]


Group = Mapping[str, Style]

CONDITIONS: Group = {  # trajectories that a model reads
    "gold": Style("gold", BLUE),
    "corrupted": Style("wrong: gold with one value corrupted", VERMILION, "--", "s"),
    "sampled": Style("wrong: the model's own sample", PURPLE, ":", "^"),
    "own_wrong": Style("wrong: the model's own sample", PURPLE, ":", "^"),
    "own_right": Style("right: the model's own sample", SKY, "-", "v"),
    "foreign": Style("control: another question's trajectory", BLACK, "-.", "D"),
    "foreign_own": Style("control: its right sample of another question", GREY, "-.", "D"),
    "shuffled": Style("control: gold steps shuffled", GREEN, "--", "p"),
    "copying": Style("control: unrelated text ending in the answer", ORANGE, ":", "h"),
    "own_text": Style("a text of your own", GREEN, "-", "P"),
}
_RANDOM = Style("random steps", GREY, ":", "x")
_GRADIENT = Style("gradient step, equally long", ORANGE, "--", "s")
UPDATES: Group = {  # implicit updates: whose they are, and the gradient steps beside them
    "whole": Style("gold, whole", BLUE),
    "gold": Style("gold, before the statement", BLUE, "--", "s"),
    "foreign": CONDITIONS["foreign"].called("another question's"),
    "shuffled": CONDITIONS["shuffled"].called("shuffled"),
    "corrupted": CONDITIONS["corrupted"].called("corrupted"),
    "random": _RANDOM,
    "protected": Style("gold, prompt untouched", SKY, "-", "v"),
    "ceiling": Style("ceiling with the prompt untouched", SKY, ":", "^"),
    "downhill": Style("counting uphill steps as 0", BLUE, ":", "^"),
}
FALLS: Group = {  # of L by one step
    "drop": Style("the trajectory's step", BLUE),
    "gradient_drop": _GRADIENT,
    "best_gradient_drop": Style("best gradient step, no longer", ORANGE, ":", "^"),
}
TRANSFER: Group = {  # updates whose effect on other questions is measured
    "gold": CONDITIONS["gold"].called("gold"),
    "foreign": CONDITIONS["foreign"].called("another's"),
    "shuffled": CONDITIONS["shuffled"].called("shuffled"),
    "corrupted": CONDITIONS["corrupted"].called("corrupted"),
    "gradient": _GRADIENT.called("gradient, as long"),
    "matched_gradient": Style("gradient, same effect", ORANGE, "-", "v"),
}
ARMS: Group = {  # models by what they were trained on
    "base": Style("base model", GREY, "--", "o"),
    "none": Style("SFT, answers alone", ORANGE, ":", "^"),
    "answers": Style("SFT, answers alone", ORANGE, ":", "^"),
    "short": Style("SFT, short trajectories", VERMILION, "--", "s"),
    "plain": Style("SFT, plain trajectories", SKY, "-.", "v"),
    "long": Style("SFT, long trajectories", BLUE, "-", "D"),
    "long_whole": Style("SFT, long, whole rows only", BLUE, "--", "d"),
    "no_thinking": Style("SFT, long; asked without thinking", BLUE, ":", "x"),
    "short_tokens": Style("SFT, short, equal tokens", VERMILION, ":", "s"),
    "none_tokens": Style("SFT, answers, equal tokens", ORANGE, "--", "^"),
    "gold": Style("SFT, gold trajectories", BLUE, "-.", "p"),
    "own": Style("SFT, its own right samples", SKY, "-", "v"),
    "as_written": Style("SFT, own samples as written", SKY, ":", "h"),
    "cold": Style("cold start: few steps of SFT", BLACK, "-", "P"),
    "warm": Style("GRPO after the cold start", GREEN, "-", "h"),
    "zero": Style("GRPO from the base", PURPLE, "--", "X"),
    "zero_wall": Style("GRPO from the base, time of long SFT", PURPLE, ":", "*"),
    "dpo": Style("DPO after the cold start", GREEN, ":", "<"),
    # live trainings of notebook 12
    "before": Style("before", GREY, "--", "o"),
    "GRPO": Style("GRPO", PURPLE, "--", "X"),
    "DPO": Style("DPO", GREEN, ":", "<"),
    "DPO, rate × 3": Style("DPO, rate × 3", ORANGE, "-.", ">"),
}
METHODS: Group = {  # of meta-learning
    "maml": Style("MAML", BLUE),
    "fomaml": Style("FOMAML", VERMILION, "--", "s"),
    "reptile": Style("Reptile", PURPLE, ":", "^"),
    "anil": Style("ANIL", BLACK, "-.", "D"),
    "joint": Style("joint", GREEN, "--", "p"),
    "maml_large": Style("MAML, large step", SKY, "-", "v"),
    "untrained": Style("no training", GREY, ":", "x"),
}
OPTIMISERS: Group = {
    "learned": Style("learned", BLUE),
    "sgd": Style("SGD, tuned", VERMILION, "--", "s"),
    "adam": Style("Adam, tuned", PURPLE, ":", "^"),
    "foreign": Style("learned, another task's support", BLACK, "-.", "D"),
}
WRITTEN: Group = {  # the decoder that writes gradient descent
    "written": Style("written by the decoder", BLUE),
    "explicit": Style("gradient descent itself", VERMILION, "--", "s"),
    "maml": Style("MAML, k gradient steps", VERMILION, "--", "s"),
    "readout": Style("readout", BLUE),
    "answer": Style("answer, asked after every iterate", PURPLE, ":", "^"),
    "late": Style("answer, asked at the end only", GREEN, "--", "p"),
    "direct": Style("answer, no trajectory at all", ORANGE, ":", "h"),
    "foreign": Style("readout, another task's iterates", BLACK, "-.", "D"),
    "straight": Style("readout, straight line", GREEN, "--", "p"),
    "random": _RANDOM,
    "writer": Style("trained from random starts", BLUE),
    "reciter": Style("trained from one start only", ORANGE, ":", "h"),
}
MODES: Group = {  # of being given a shortened trajectory
    "full": Style("whole trajectory", BLUE),
    "withheld": Style("whole, asked values withheld", BLUE, "--", "s"),
    "summary": Style("its own summary", VERMILION, "--", "s"),
    "pruned": Style("pruned by learnt worth", GREEN, "--", "p"),
    "begun": Style("its beginning, as many words", PURPLE, ":", "^"),
    "random": Style("random words, as many", GREY, ":", "x"),
    "foreign": Style("another question's summary", BLACK, "-.", "D"),
    "at_once": Style("answer without thinking", ORANGE, ":", "h"),
}
_PLAIN = {  # classes of words that are no reflections
    "name": "name",
    "operation": "operation",
    "operand": "operand",
    "value": "value",
    "answer": "value of the answer",
    "slip": "slip",
    "number": "number",
    ".": "end of step",  # full stops; in text also question marks and line breaks
    "?": "question mark",
    "newline": "line break",
    "other": "other",
}
CLASSES: Group = {  # of tokens
    "Wait": Style("Wait", VERMILION, "-", "s"),
    "Alternatively": Style("Alternatively", PURPLE, "-", "^"),
    "Hold on": Style("Hold on", GREEN, "-", "p"),
    "However": Style("However", ORANGE, "-", "h"),
    "Therefore": Style("Therefore", SKY, "-", "v"),
    "Since": Style("Since", BLACK, "-", "D"),
    "So": Style("So", DARK, "-", "X"),
    **{key: Style(name, BLUE) for key, name in _PLAIN.items()},
}
FAULTS: Group = {  # the first one of a written-out trajectory
    "none": Style("none", LIGHT),
    "garbled": Style("garbled", BLUE),
    "recital": Style("recital", VERMILION),
    "operand": Style("operand", PURPLE),
    "value": Style("value", BLACK),
    "too early": Style("too early", GREEN),
    "incomplete": Style("incomplete", ORANGE),
    "answer": Style("answer", SKY),
}
METRICS: Group = {  # of answers
    "greedy": Style("greedy", BLUE),
    "pass": Style("Pass@8", VERMILION, "--", "s"),
    "mgpass": Style("mG-Pass@8", PURPLE, ":", "^"),
    "pass@1.0": Style("Pass@8, T = 1", VERMILION, "--", "s"),
    "mgpass@0.6": Style("mG-Pass@8, T = 0.6", PURPLE, ":", "^"),
    "mgpass@1.0": Style("mG-Pass@8, T = 1", PURPLE, ":", "^"),
    "sampled": Style("a sample", ORANGE, ":", "h"),
    "boxed": Style("a sample ends in a box", SKY, "-", "v"),
}
TEMPERATURES: Group = {
    "greedy": METRICS["greedy"],
    "0.5": Style("T = 0.5", GREEN, "--", "p"),
    "0.6": Style("T = 0.6", GREEN, "--", "p"),
    "1.0": Style("T = 1", ORANGE, ":", "h"),
}
SCALES: Group = {  # models that claims are asked of
    "tiny": Style("tiny: 0.2 M, made by the kit", BLUE),
    "small": Style("small: SmolLM2, 135 M", VERMILION, "--", "s"),
    "small-sft": Style("small-sft: SmolLM2 after LoRA", PURPLE, ":", "^"),
    "half": Style("half: Qwen2.5-Coder, 0.5 B", SKY, "--", "v"),
    "medium": Style("medium: Qwen2.5-Coder, 1.5 B", GREEN, "-.", "D"),
    "gpu": Style("gpu: a model of yours", BLACK, "-", "p"),
    "published": Style("published: others' numbers", ORANGE, ":", "h"),
}
READINGS: Group = {  # of Proposition 2.1, and rivals
    "fit of the token": Style("fit of the token", BLACK, "-.", "D"),
    "printed, no softmax": Style("printed, no softmax", GREEN, "--", "p"),
    "printed, softmax": Style("printed, softmax", VERMILION, "--", "s"),
    "new query only": Style("new query only", ORANGE, ":", "h"),
    "value-side rank one": Style("value-side rank one", BLUE),
}
TASKS: Group = {  # of one parameter
    "steep task": Style("steep task", BLUE),
    "flat task": Style("flat task", VERMILION, "--", "s"),
    "mean": Style("mean", BLACK, "-.", "D"),
}
STEPS: Group = {  # of adapting to a question
    "no step": Style("no step", GREY, ":", "x"),
    "one support for all": Style("one support for all", VERMILION, "--", "s"),
    "its sibling's support": Style("its sibling's support", BLUE),
}
WHEN: Group = {  # the same model before and after a training
    "before": Style("before", BLUE),
    "after": Style("after SFT", VERMILION, "--", "s"),
}
SOURCES: Group = {  # whose trajectories a published model learnt from
    "off-policy": Style("off-policy", BLUE, "-", "o"),
    "on-policy": Style("on-policy", VERMILION, "-", "s"),
    "both": Style("both: own and others'", PURPLE, "-", "^"),
}
VERDICTS: Group = {
    "holds": Style("holds", GREEN, "-", "o"),
    "inconclusive": Style("inconclusive", DARK, "-", "D"),
    "contradicted": Style("contradicted", VERMILION, "-", "X"),
    "floor": Style("floor", PURPLE, "-", "v"),
    "too few": Style("too few", ORANGE, "-", "s"),
    "stale": Style("stale", ORANGE, "-", "p"),
    "incomplete": Style("incomplete", ORANGE, "-", "h"),
}
# by what evidence calls the place where the keys stand
GROUPS: dict[str, Group] = {
    "conditions": CONDITIONS,
    "updates": UPDATES,
    "falls": FALLS,
    "transfer": TRANSFER,
    "arms": ARMS,
    "methods": METHODS,
    "optimisers": OPTIMISERS,
    "written": WRITTEN,
    "modes": MODES,
    "classes": CLASSES,
    "faults": FAULTS,
    "metrics": METRICS,
    "temperatures": TEMPERATURES,
    "scales": SCALES,
    "readings": READINGS,
    "tasks": TASKS,
    "steps": STEPS,
    "when": WHEN,
    "sources": SOURCES,
    "verdicts": VERDICTS,
}


def style(group: Group, key: str) -> Style:
    """A key's entry; ValueError names the key, what the group has, and where to add one."""
    if key not in group:
        raise ValueError(
            f"{key!r} has no name and colour among {', '.join(group)}: add it to"
            " tml_lib/lessons/names.py, or give the figure another group"
        )
    return group[key]


def by_name(group: Group) -> Group:
    """The group with its names for keys."""
    return {style.name: style for style in group.values()}


def only(name: str) -> Group:
    """A group for a figure that shows one thing."""
    return {name: Style(name, BLUE)}


def ramp(keys: Sequence, name: str = "{}") -> Group:
    """Styles from dark to light for up to six keys that have an order, such as numbers of shots.

    name: what a key is called, as 'K = {}'.
    """
    if len(keys) > len(_RAMP):
        raise ValueError(
            f"{len(keys)} ordered keys have {len(_RAMP)} colours that a reader can tell apart: draw"
            " fewer"
        )
    last = max(len(keys) - 1, 1)
    places = [round(k * (len(_RAMP) - 1) / last) for k in range(len(keys))]
    marks = "os^Dvp"
    return {
        key: Style(name.format(key), _RAMP[place], ("-", "--", ":", "-.")[k % 4], marks[k])
        for k, (key, place) in enumerate(zip(keys, places, strict=True))
    }
