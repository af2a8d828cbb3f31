"""`python -m tml_lib study SUBJECT`: a study of a reader's own model, without a notebook.

It writes the subject's evidence and one HTML page that needs no other file. An interrupted study
resumes with the same command.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tml_lib import runtime
from tml_lib.lm.models import LanguageModel


@dataclass(frozen=True)
class Subject:
    """What a study asks, how it answers in three sentences, and what makes its evidence."""

    question: str
    method: str
    make: Callable[[LanguageModel, object, Path, dict], Path]  # (lm, options, folder, said)
    # the options that it reads beside those of every subject, with their defaults
    options: dict[str, object] = field(default_factory=dict)
    claims: tuple[str, ...] = ()  # that its evidence decides
    dtype: str = ""  # in place of the preset's; at a lower precision no update is exact


def _trajectories(lm, options, folder: Path, said: dict) -> Path:
    from tml_lib.studies import engine, trajectories, transfer

    how = {"seed": options.seed, "stride": options.stride, "tries": options.samples}
    how |= {"max_tokens": options.max_tokens}
    how |= {} if options.controls is None else {"controls": options.controls}
    if options.trajectories_of is None:
        asked = trajectories.chosen_questions(options.data, options.n, options.seed)
        settings = how | {"data": options.data} | engine.said_of(lm, asked)
        made = trajectories.study(lm, asked, folder, progress=True, **how)
        return trajectories.write_evidence(made, asked, folder, settings=settings, **said)
    asked, written, writer = _written_before(lm, options)
    settings = how | {"data": options.data, "trajectories_of": writer}
    settings |= engine.said_of(lm, asked)
    more = {} if writer == lm.name else {"of": transfer.STUDY}
    kinds = {"kinds": transfer.KINDS} if more else {}
    made = trajectories.study(
        lm, asked, folder, written=written, progress=True, **how, **more, **kinds
    )
    return trajectories.write_evidence(made, asked, folder, settings=settings, **said, **more)


def _written_before(lm, options) -> tuple[list, list, str]:
    """The first questions of `--trajectories-of`, what its model wrote, and that model's name."""
    from tml_lib.claims import ledger
    from tml_lib.studies import material, own_trajectories, trajectories

    evidence = ledger.read_evidence(options.trajectories_of)
    settings = evidence["settings"]
    if evidence["study"] == material.STUDY.name:
        asked, written = material.owns(lm, options.trajectories_of)
    else:
        n = settings["n_questions"]
        asked = trajectories.chosen_questions(options.data, n, options.seed)
        written = own_trajectories.samples_of(evidence, asked)
    return asked[: options.n], written[: options.n], settings["model"]


def _roles(lm, options, folder: Path, said: dict) -> Path:
    from tml_lib.studies import roles

    asked = roles.questions(options.n, options.seed, options.data)
    how = {"seed": options.seed, "max_tokens": options.max_tokens, "every": options.every}
    return roles.text_evidence(lm, asked, folder, **how, **said)


def _efficiency(lm, options, folder: Path, said: dict) -> Path:
    from tml_lib.studies import shortened, trajectories

    asked = trajectories.chosen_questions(options.data, options.n, options.seed)
    how = {"seed": options.seed, "samples": options.samples, "max_tokens": options.max_tokens}
    return shortened.make_evidence(lm, asked, folder, **how, **said)


def _updates(lm, options, folder: Path, said: dict) -> Path:
    from tml_lib.studies import engine, lora, updates

    cases = updates.study_cases(lm, options.n, options.seed)
    how = {"stride": options.stride, "seed": options.seed, "layers": options.layers}
    chosen = {"model": options.model, "adapter": options.adapter, "thinking": options.thinking}
    with_all = options.layers == "all"
    wide = lora.load(options.preset, **chosen, dtype="float64") if with_all else lm
    exact = updates.EXACT.run(cases, folder, progress=True, inputs={"lm": wide})
    del wide
    measured = updates.MEASURED.run(cases, folder, progress=True, inputs={"lm": lm}, **how)
    settings = how | {"n_questions": options.n} | engine.said_of_model(lm)
    return updates.write_evidence(exact, measured, cases, folder, settings=settings, **said)


def _paths(lm, options, folder: Path, said: dict) -> Path:
    from tml_lib.studies import paths

    asked = paths.text_material(lm, options.n, options.seed, options.data)
    how = {"stride": options.stride, "seed": options.seed}
    return paths.text_evidence(lm, asked, folder, **how, **said)


def _material(lm, options, folder: Path, said: dict) -> Path:
    from tml_lib.studies import material, trajectories

    asked = trajectories.chosen_questions(options.data, options.n, options.seed)
    how = {"seed": options.seed, "samples": options.samples, "max_tokens": options.max_tokens}
    return material.make_evidence(lm, asked, folder, data=options.data, **how, **said)


def _precision(lm, options, folder: Path, said: dict) -> Path:
    from tml_lib.studies import lora, precision

    written = _material(lm, options, folder, said)
    chosen = {"model": options.model, "adapter": options.adapter, "thinking": options.thinking}
    wide = lora.load(options.preset, **chosen, dtype="float32")
    pair = dict(zip(precision.DTYPES, (lm, wide), strict=True))
    return precision.make_evidence(pair, written, folder, stride=options.stride, **said)


def _strides(lm, options, folder: Path, said: dict) -> Path:
    from tml_lib.studies import strides

    written = options.trajectories_of or _material(lm, options, folder, said)
    return strides.make_evidence(lm, written, folder, n=options.n, **said)


def _rejection(lm, options, folder: Path, said: dict) -> Path:
    from tml_lib.studies import rates, rejection

    make = {"rejection": rejection, "rates": rates}[options.subject].make_evidence
    how = {"n": options.n, "seed": options.seed, "max_tokens": options.max_tokens}
    return make(lm, options.trajectories_of, folder, **how, **said)


_DATA = {"data": ""}
_SAMPLES = _DATA | {"samples": 2, "max_tokens": None}  # None: the preset's
SUBJECTS = {
    "material": Subject(
        "What does the model write to these questions?",
        "It samples texts to each question. Every text is graded, and says how many tokens it has"
        " and whether it was cut. `trajectories` and `strides`, of this model or of another, can"
        " take their trajectories from here.",
        _material,
        _SAMPLES,
    ),
    "trajectories": Subject(
        "Does the loss of the right answer fall along a right trajectory, and only there?",
        "After every few tokens of a trajectory the answer is appended, and the mean negative"
        " log-probability of its tokens is taken (L̂, nats per token). The trajectories are the"
        " gold solution, the same with one wrong value, the model's own right and wrong samples,"
        " and controls: another question's solution, the steps shuffled, and unrelated text that"
        " ends in the answer. Each test compares questions with themselves, and its interval is"
        " taken over questions. Where another model wrote the samples, the question is whether its"
        " trajectories lead this model to the answer too.",
        _trajectories,
        _SAMPLES | {"stride": 4, "trajectories_of": None, "controls": None},
        ("C1", "C2"),
    ),
    "roles": Subject(
        "What does thinking bring when it is cut short, and what do words such as 'Wait' bring?",
        "The model's own greedy trajectory is cut after a share of its steps, and the model made"
        " to answer; as a control it answers after another question's text. Reflections are"
        " written into gold solutions by rule, and the change of L̂ at each kind of token is"
        " compared. Each test's interval is taken over questions.",
        _roles,
        _DATA | {"max_tokens": None, "every": 4},
        ("C3", "C6"),
    ),
    "efficiency": Subject(
        "How much of what thinking gains is left when the trajectory is shortened?",
        "The model's own samples are cut before their result, summarised by the model itself, and"
        " cut to as many words from the beginning, at random, or from another question. From each"
        " of them the model finishes its answer, which is graded. Each test compares shares of"
        " right answers per question, and its interval is taken over questions.",
        _efficiency,
        _SAMPLES,
        ("C10",),
    ),
    "rejection": Subject(
        "Does a model learn more from its own right trajectories than from gold ones?",
        "With LoRA the model is trained on its own right samples, on gold solutions, and on answers"
        " alone: the same questions, and as many steps. Held out are questions of other templates,"
        " and of two sets that are not trained on. Each test compares right answers per question,"
        " and its interval is taken over questions.",
        _rejection,
        {"max_tokens": None, "trajectories_of": None},
        ("C4t", "C9t"),
    ),
    "rates": Subject(
        "Does what `rejection` finds hang on the learning rate, the seed or the number of tokens?",
        "The trainings of `rejection` on own right samples and on gold are made again: with two"
        " other seeds, at a third and at a tenth of the learning rate, on as many tokens of gold"
        " as of own samples, and on own samples as they were written. Held out are its questions"
        " of other templates, answered greedily. Each test compares right answers per question,"
        " and its interval is taken over questions.",
        _rejection,
        {"max_tokens": None, "trajectories_of": None},
        ("C4t", "C9t"),
    ),
    "updates": Subject(
        "Is a trajectory in the context the same as an update of the weights, and is that update a"
        " step down the gradient?",
        "For every prefix the exact change of the weights is computed that does without context"
        " what the prefix does in it. Its size, rank and direction are compared with the gradient"
        " of the answer's loss, and the update is tried on sibling questions. Controls are the"
        " same for other trajectories and random directions, and intervals are taken over"
        " questions.",
        _updates,
        {"stride": 4, "layers": "last"},
        ("C11", "C11g", "C11t"),
        "float32",
    ),
    "precision": Subject(
        "Is bfloat16 good enough to measure L̂?",
        "The model writes to each question, as in `material`. L̂ is measured along the gold solution"
        " and the model's own right and wrong texts, in bfloat16 and in float32, at the same"
        " positions. Differences are shown in nats, and by what they do to each estimate.",
        _precision,
        _SAMPLES | {"stride": 4},
        dtype="bfloat16",
    ),
    "strides": Subject(
        "What does a stride hide, and which tokens make L̂ jump?",
        "L̂ is measured after every token of the gold solution and of a right and a wrong sample,"
        " the model's own or another's. A spike is a rise of at least one nat of which half is gone"
        " again within eight tokens; spikes are counted by kind of token. Trends at wider strides"
        " are compared with that of every token.",
        _strides,
        _SAMPLES | {"trajectories_of": None},
    ),
    "paths": Subject(
        "On the true landscape of its own parameter path, does a trajectory go down?",
        "The exact updates of a trajectory's prefixes are a path in the space of the weights, and"
        " its first two principal directions span a plane. The loss is read off that plane at the"
        " projected path. The control is the path of another question's trajectory in its own"
        " plane, and intervals are taken over questions.",
        _paths,
        _DATA | {"stride": 4},
        ("C12",),
        "float32",
    ),
}


def run(options) -> int:
    """Make a subject's evidence and its page; 0 where both are written."""
    from tml_lib.claims import ledger, rulebook
    from tml_lib.lessons import explorer, page
    from tml_lib.studies import lora, trajectories

    subject = SUBJECTS[options.subject]
    _check(options, subject)
    chosen = {"model": options.model, "adapter": options.adapter, "dtype": subject.dtype}
    lm = lora.load(options.preset, **chosen, thinking=options.thinking)
    scale = trajectories.scale_name(options.preset, options.data or "", lm.name)
    folder = Path(options.out or _folder(options.subject, scale, options.seed, lm.name))
    folder.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "-m", "tml_lib", *options.words])
    known = rulebook.claims()
    rules = [known[claim]["scales"].get(scale, rulebook.ENOUGH) for claim in subject.claims]
    needed = max((rule["questions"] for rule in rules), default=0)
    if options.n < needed:
        print(
            f"{options.n} questions are too few for a verdict on {', '.join(subject.claims)}"
            f" ({needed} are enough at {scale}); estimates and intervals are shown",
            file=sys.stderr,
        )
    evidence = subject.make(lm, options, folder, {"scale": scale, "command": command})
    shown = folder / f"{options.subject}.html"
    look = None
    if options.subject == "trajectories":
        look = explorer.of_study(lm, ledger.read_evidence(evidence))
    page.write(shown, evidence, subject.question, subject.method, look)
    print(f"{evidence}\n{shown}")
    return 0


def _check(options, subject: Subject) -> None:
    """Refuse, before a model is loaded, what the subject cannot do, and fill in what was not said.

    What was written before says its own questions and samples. ValueError names the option.
    """
    from tml_lib import parameters
    from tml_lib.lm import presets

    if options.n < 2:
        raise ValueError(f"n={options.n} questions give no interval: ask for at least 2")
    if presets.preset(options.preset).task == "programs":
        raise ValueError(
            f"preset {options.preset!r} reads programs, and this command text: take another preset"
        )
    if subject.make is _rejection and not options.trajectories_of:
        raise ValueError(
            f"trajectories_of=None: {options.subject} trains on what the model wrote rightly"
            " before; give --trajectories-of FILE, as `python -m tml_lib study material` writes it"
        )
    told = {}
    if options.trajectories_of and "trajectories_of" in subject.options:
        told = _told(options.trajectories_of, options.subject)
    _fill(options, subject, told)
    least = 0 if options.subject == "trajectories" else 1
    if "samples" in subject.options and options.samples < least:
        raise ValueError(f"samples={options.samples}: {options.subject} needs at least {least}")
    rule = parameters.RULES["data"]
    if options.data and (reason := rule.refusal(options.data, Path.cwd())):
        raise ValueError(f"data={options.data!r}: {reason}; --data takes {rule.allowed}")
    options.max_tokens = options.max_tokens or presets.preset(options.preset).max_tokens


def _told(path: Path, subject: str) -> dict:
    """The options that evidence of what a model wrote says for itself; ValueError for evidence that
    the subject does not read.
    """
    from tml_lib.claims import ledger

    evidence = ledger.read_evidence(path)
    read = ("material", "trajectories") if subject == "trajectories" else ("material",)
    if evidence["study"] not in read:
        raise ValueError(
            f"trajectories_of={path} is evidence of {evidence['study']!r}, and {subject} reads that"
            f" of {' or '.join(read)}: make one with `python -m tml_lib study material`"
        )
    settings = evidence["settings"]
    samples = settings["samples" if evidence["study"] == "material" else "tries"]
    told = {"seed": settings["seed"], "data": settings.get("data", ""), "samples": samples}
    limit = settings.get("max_tokens")  # older evidence does not say it
    return told if limit is None else told | {"max_tokens": limit}


def _fill(options, subject: Subject, told: dict) -> None:
    """Put what was written before, or the subject's defaults, where nothing was said; ValueError
    for an option that is not read.
    """
    own = {"seed": 0} | subject.options
    for name in sorted({"seed"} | {name for one in SUBJECTS.values() for name in one.options}):
        given = getattr(options, name)
        word = f"--{name.replace('_', '-')}"
        if given is None:
            setattr(options, name, told.get(name, own.get(name)))
        elif name in told:
            raise ValueError(
                f"{name}={given}: {options.trajectories_of} says it ({told[name]!r}); leave"
                f" {word} out"
            )
        elif name not in own:
            readers = [key for key, one in SUBJECTS.items() if name in one.options]
            raise ValueError(
                f"{name}={given}: {options.subject} does not read it, only {', '.join(readers)}"
                f" do; leave {word} out"
            )


def _folder(subject: str, scale: str, seed: int, model: str) -> Path:
    """One for each subject, scale, model and seed, so that no study replaces another's evidence."""
    name = re.sub(r"[^\w.+-]+", "_", f"{subject}-{scale}-{model}").strip("_")
    return runtime.project_root() / "runs" / "studies" / (name + (f"-seed{seed}" if seed else ""))
