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

ENOUGH = 64  # questions that a verdict needs at a scale of one's own


@dataclass(frozen=True)
class Subject:
    """What a study asks, how it answers in three sentences, and what makes its evidence."""

    question: str
    method: str
    make: Callable[[LanguageModel, object, Path, dict], Path]  # (lm, options, folder, said)
    # the options that it reads beside those of every subject, with their defaults
    options: dict[str, object] = field(default_factory=dict)
    dtype: str = ""  # in place of the preset's; at a lower precision no update is exact


def _trajectories(lm, options, folder: Path, said: dict) -> Path:
    from tml_lib.studies import trajectories, transfer

    how = {"seed": options.seed, "stride": options.stride, "tries": options.samples}
    how |= {"max_tokens": options.max_tokens}
    if options.trajectories_of is None:
        asked = trajectories.chosen_questions(options.data, options.n, options.seed)
        settings = how | {"n_questions": options.n, "data": options.data, "model": lm.name}
        made = trajectories.study(lm, asked, folder, progress=True, **how)
        return trajectories.write_evidence(made, asked, folder, settings=settings, **said)
    asked, written, writer = _written_before(lm, options)
    how |= {"max_tokens": writer["max_tokens"], "tries": writer["samples"]}
    settings = how | {"n_questions": len(asked), "data": options.data}
    settings |= {"model": lm.name, "trajectories_of": writer["model"]}
    more = {} if writer["model"] == lm.name else {"of": transfer.STUDY}
    kinds = {"kinds": transfer.KINDS} if more else {}
    made = trajectories.study(
        lm, asked, folder, written=written, progress=True, **how, **more, **kinds
    )
    return trajectories.write_evidence(made, asked, folder, settings=settings, **said, **more)


def _written_before(lm, options) -> tuple[list, list, dict]:
    """The first questions of `--trajectories-of`, what its model wrote, and its settings."""
    from tml_lib.claims import ledger
    from tml_lib.studies import material, trajectories

    evidence = ledger.read_evidence(options.trajectories_of)
    writer = evidence["settings"]
    if evidence["study"] == material.STUDY.name:
        asked, written = material.owns(lm, options.trajectories_of)
    else:
        n = writer["n_questions"]
        asked = trajectories.chosen_questions(options.data, n, options.seed)
        written = trajectories.samples_of(evidence, asked)
        writer = writer | {"samples": writer["tries"]}
    return asked[: options.n], written[: options.n], writer


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
    from tml_lib.studies import updates

    if options.data:
        raise ValueError(
            f"data={options.data!r}: updates are tried on sibling questions, which only"
            " gsm_symbolic has; leave --data out"
        )
    cases = updates.study_cases(lm, options.n, options.seed)
    how = {"stride": options.stride, "seed": options.seed, "layers": options.layers}
    exact = updates.EXACT.run(cases, folder, progress=True, inputs={"lm": lm})
    measured = updates.MEASURED.run(cases, folder, progress=True, inputs={"lm": lm}, **how)
    settings = how | {"n_questions": options.n, "model": lm.name}
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


_SAMPLES = {"samples": 2, "max_tokens": None}  # None: the preset's
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
        _SAMPLES | {"stride": 4, "trajectories_of": None},
    ),
    "roles": Subject(
        "What does thinking bring when it is cut short, and what do words such as 'Wait' bring?",
        "The model's own greedy trajectory is cut after a share of its steps, and the model made"
        " to answer; as a control it answers after another question's text. Reflections are"
        " written into gold solutions by rule, and the change of L̂ at each kind of token is"
        " compared. Each test's interval is taken over questions.",
        _roles,
        {"max_tokens": None, "every": 4},
    ),
    "efficiency": Subject(
        "How much of what thinking gains is left when the trajectory is shortened?",
        "The model's own samples are cut before their result, summarised by the model itself, and"
        " cut to as many words from the beginning, at random, or from another question. From each"
        " of them the model finishes its answer, which is graded. Each test compares shares of"
        " right answers per question, and its interval is taken over questions.",
        _efficiency,
        _SAMPLES,
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
        "float32",
    ),
    "precision": Subject(
        "Is bfloat16 good enough to measure L̂?",
        "The model writes to each question, as in `material`. L̂ is measured along the gold solution"
        " and the model's own right and wrong texts, in bfloat16 and in float32, at the same"
        " positions. Differences are shown in nats, and by what they do to each estimate.",
        _precision,
        _SAMPLES | {"stride": 4},
        "bfloat16",
    ),
    "strides": Subject(
        "What does a stride hide, and which tokens make L̂ jump?",
        "L̂ is measured after every token of the gold solution and of the model's own right and"
        " wrong texts. A spike is a rise of at least one nat of which half is gone again within"
        " eight tokens; spikes are counted by kind of token. Trends at wider strides are compared"
        " with that of every token.",
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
        {"stride": 4},
        "float32",
    ),
}


def run(options) -> int:
    """Make a subject's evidence and its page; 0 where both are written."""
    from tml_lib.claims import ledger
    from tml_lib.lessons import explorer, page
    from tml_lib.lm import presets
    from tml_lib.studies import lora, trajectories

    subject = SUBJECTS[options.subject]
    if options.n < 2:
        raise ValueError(f"n={options.n} questions give no interval: ask for at least 2")
    _fill(options, subject)
    least = 0 if options.subject == "trajectories" else 1
    if "samples" in subject.options and options.samples < least:
        raise ValueError(f"samples={options.samples}: {options.subject} needs at least {least}")
    if presets.preset(options.preset).task == "programs":
        raise ValueError(
            f"preset {options.preset!r} reads programs, and this command text: take another preset"
        )
    options.max_tokens = options.max_tokens or presets.preset(options.preset).max_tokens
    chosen = {"model": options.model, "adapter": options.adapter, "dtype": subject.dtype}
    chosen["thinking"] = options.thinking
    lm = lora.load(options.preset, **chosen)
    if options.trajectories_of:  # its questions, of its set
        told = ledger.read_evidence(options.trajectories_of)["settings"]
        options.seed, options.data = told["seed"], told.get("data", "")
    scale = trajectories.scale_name(options.preset, options.data, lm.name)
    folder = Path(options.out or _folder(options.subject, lm.name))
    folder.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "-m", "tml_lib", *options.words])
    if options.n < ENOUGH:
        print(
            f"{options.n} questions are too few for a verdict ({ENOUGH} are enough); estimates and"
            " intervals are shown",
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


def _fill(options, subject: Subject) -> None:
    """Put the subject's defaults where nothing was said; ValueError for an option that it does not
    read.
    """
    for name in sorted({name for one in SUBJECTS.values() for name in one.options}):
        given = getattr(options, name)
        if given is None:
            setattr(options, name, subject.options.get(name))
        elif name not in subject.options:
            readers = [key for key, one in SUBJECTS.items() if name in one.options]
            raise ValueError(
                f"{name}={given}: {options.subject} does not read it, only"
                f" {', '.join(readers)} do; leave --{name.replace('_', '-')} out"
            )


def _folder(subject: str, model: str) -> Path:
    name = re.sub(r"[^\w.+-]+", "_", Path(model).name)
    return runtime.project_root() / "runs" / "studies" / f"{subject}-{name}"
