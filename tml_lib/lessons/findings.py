"""What the kit has found, in three findings: sentences that rest on verdicts of the ledger, and the
tests that a picture of them shows.

A sentence that the stored evidence does not bear out is refused, so README never says it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tml_lib.claims import report, rulebook
from tml_lib.claims.ledger import Row
from tml_lib.lessons import names

DISAGREE = "disagree"  # models have different verdicts
NO_RUN = "no run"  # at the paper's scale


@dataclass(frozen=True)
class Sentence:
    """A sentence, the claims that it rests on, and the verdict that each has wherever it was
    tested.
    """

    text: str
    claims: tuple[str, ...]
    verdict: str  # of the ledger, DISAGREE or NO_RUN

    def decided(self, found: list[report.Settled]) -> list[report.Settled]:
        """What the ledger says of its claims, where it says anything."""
        nothing = "floor", "too few"
        return [x for x in found if x.claim in self.claims and x.verdict not in nothing]

    def tested(self, found: list[report.Settled]) -> str:
        """The sizes of the models that it was tested on, in brackets; where they disagree, the
        models by verdict.
        """
        scales = _scales(found, self)
        if self.verdict != DISAGREE:
            sizes = ", ".join(dict.fromkeys(size(scale) for scale in scales))
            return f" ({sizes})" if sizes else ""
        said = {item.scale: item.verdict for item in self.decided(found)}
        groups = {
            v: [bracketed(s) for s in scales if said[s] == v] for v in dict.fromkeys(said.values())
        }
        return ": " + "; ".join(f"*{v}* for {' and '.join(m)}" for v, m in groups.items())

    def faults(self, found: list[report.Settled]) -> list[str]:
        """What of the ledger speaks against the sentence; none where it is borne out."""
        own = self.decided(found)
        if self.verdict == NO_RUN:
            return [f"{item.claim} has a run at {item.scale}" for item in found if _large(item)]
        if self.verdict == DISAGREE:
            agree = [c for c in self.claims if len({x.verdict for x in own if x.claim == c}) < 2]
            return [f"the models agree on {claim}" for claim in agree]
        missing = set(self.claims) - {item.claim for item in own}
        return [f"{claim} has no evidence" for claim in sorted(missing)] + [
            f"{item.claim} is {item.verdict} at {item.scale}"
            for item in own
            if item.verdict != self.verdict
        ]


def _large(item: report.Settled) -> bool:
    return item.scale.startswith("gpu")


@dataclass(frozen=True)
class Finding:
    """Sentences under one head, and a picture of some tests of theirs."""

    head: str
    verdict: str  # whose colour the picture's title has
    sentences: tuple[Sentence, ...]
    title: str  # of the picture
    axis: str  # what the picture measures, with its unit
    # test -> what its row is called; '{}' stands for the model
    tests: dict[str, str]
    compared: tuple[str, ...] = ()  # tests that are shown for comparison only
    reach: tuple[float, ...] = ()  # numbers that the axis reaches, whatever was found


FINDINGS = (
    Finding(
        "What holds.",
        "holds",
        (
            Sentence(
                "A trajectory in the context equals a change of the model's weights, and the kit"
                " constructs this change exactly",
                ("C11",),
                "holds",
            ),
            Sentence(
                "Drawn on the loss landscape, the path of these changes goes down on the whole,"
                " which does not mean that each step follows the gradient",
                ("C12",),
                "holds",
            ),
            Sentence(
                "Fine-tuning on trajectories works as the paper says: long ones teach more than"
                " short ones, and many per question teach more than one",
                ("C4a", "C7"),
                "holds",
            ),
            Sentence(
                "A model that reasons answers more after training on its own right trajectories"
                " than after training on short gold ones; but this is because the short ones harm"
                " it, and it is not so where it learns its samples exactly as it wrote them",
                ("C4t",),
                "holds",
            ),
            Sentence(
                "Imitation first, then learning by reward, beats reward alone",
                ("C5", "C5s"),
                "holds",
            ),
        ),
        "Holds: training on trajectories works as the paper says",
        "gain in right answers to new questions (share of questions)",
        {
            "C4a.tokens_greedy": "long trajectories instead of short ones\n({})",
            "C7.greedy": "32 trajectories per question instead of one\n({})",
            "C5.greedy": "imitation before reward, not reward alone\n({})",
            "C5s.greedy": "imitation before reward, not reward alone\n({})",
        },
    ),
    Finding(
        "What does not hold.",
        "contradicted",
        (
            Sentence(
                "*Each step of a trajectory is a gradient step.* The change of the weights hardly"
                " points along the gradient of the answer's loss, and it does not help similar"
                " questions",
                ("C11g", "C11t"),
                "contradicted",
            ),
            Sentence(
                "*Words of reflection, such as 'Wait', do more than others.* By the paper's"
                " measure, the relative change of the answer's loss, they do less; counted in nats,"
                " 'Wait' by itself does more in some models",
                ("C6",),
                "contradicted",
            ),
            Sentence(
                "*Training on its own right trajectories makes a model better.* After it the model"
                " answers fewer questions of other kinds than before",
                ("C9t",),
                "contradicted",
            ),
        ),
        "Does not hold: the steps of a trajectory follow the gradient",
        "cosine of a trajectory's steps with gradient steps (1: the same direction)",
        {
            "G3.cosine": "for comparison: a model that is trained\nto write gradient descent",
            "C11g.cosine": "{}",
        },
        compared=("G3.cosine",),
        reach=(0, 1),
    ),
    Finding(
        "What is open.",
        "inconclusive",
        (
            Sentence(
                "Does the right answer become likelier along a right trajectory, before the answer"
                " is stated? The models tested disagree",
                ("C1",),
                DISAGREE,
            ),
            Sentence(
                "Does a wrong trajectory leave it unlikely? Here they disagree too",
                ("C2",),
                DISAGREE,
            ),
            Sentence(
                "Is any of this true of the large models that the paper is about? No run of that"
                " size is stored",
                (),
                NO_RUN,
            ),
        ),
        "Not known: does the answer become likelier along the way? The models disagree",
        "fall of the answer's loss before the trajectory states it (nats per token)",
        {"C1.unstated": "{}"},
    ),
)


def words(scale: str) -> str:
    """The model of a scale in words, without the scale's name."""
    name = names.SCALES[scale].name if scale in names.SCALES else scale
    return name.rpartition(": ")[2]


def bracketed(scale: str) -> str:
    """The same with its size or maker in brackets, for a list of models in a sentence."""
    name, _, more = words(scale).partition(", ")
    return f"{name} ({more})" if more else name


def size(scale: str) -> str:
    """The number of parameters of a scale's model, as '135 M'; where none is known, the model."""
    model = words(scale.removesuffix("-sft"))
    found = re.search(r"[\d.]+ [MB]", model)
    return found[0].replace(" ", "\u00a0") if found else model  # a line does not break there


def text(table: list[Row]) -> str:
    """Markdown, a numbered line per finding; each sentence with the sizes of the models that it was
    tested on.

    ValueError where the table does not bear a sentence out.
    """
    found, lines = report.settled(table), []
    for number, finding in enumerate(FINDINGS, 1):
        said = [f"{number}. **{finding.head}**"]
        for sentence in finding.sentences:
            if faults := sentence.faults(found):
                raise ValueError(
                    f"the ledger does not bear out {sentence.text!r} ({'; '.join(faults)}): say in"
                    " tml_lib/lessons/findings.py what it does"
                )
            said.append(f"{sentence.text}{sentence.tested(found)}.")
        lines.append(" ".join(said))
    every = [sentence for finding in FINDINGS for sentence in finding.sentences]
    tested = {scale for sentence in every for scale in _scales(found, sentence)}
    models = "; ".join(words(scale) for scale in names.SCALES if scale in tested)
    return "\n".join([*lines, "", f"In brackets: parameters of the models tested ({models})."])


def _scales(found: list[report.Settled], sentence: Sentence) -> list[str]:
    return report.ordered(item.scale for item in sentence.decided(found))


def rows(finding: Finding, table: list[Row]) -> list[tuple[str, Row]]:
    """What the picture of a finding shows: each test at each scale, with its name in words."""
    scales, shown = report.ordered(row.scale for row in table), []
    for test, name in finding.tests.items():
        own = [row for row in table if f"{row.claim}.{row.test}" == test]
        own.sort(key=lambda row: scales.index(row.scale))
        shown += [(name.format(words(row.scale)), row) for row in own]
    return shown


def threshold(finding: Finding) -> float:
    """The smallest effect that matters in a finding's picture; ValueError where its tests have
    several.
    """
    rules = rulebook.rules()
    tests = [tuple(test.split(".")) for test in finding.tests]
    found = {rules[test]["threshold"] for test in tests}
    if len(found) != 1 or {rules[test]["side"] for test in tests} != {"above"}:
        raise ValueError(
            f"the tests {', '.join(finding.tests)} have thresholds {sorted(found)}: show tests that"
            " share one, above it"
        )
    return found.pop()
