"""What a claim's runs cost: tokens, operations, memory and GPU-hours, by the formulas of
`plan_formulas`.

`plan.toml` holds models, devices, the assumed lengths of trajectories and what each claim runs,
each with its source. On `cpu` every rate is measured here (`plan_cpu`). A plan is a floor:
`plan_formulas` says what is left out.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace

from tml_lib.tools.plan_formulas import FILL, Phase, Stage, memory_bytes, phases, predicted_seconds
from tml_lib.tools.plan_shapes import Device, Shape, shape, tables

MEMORY_USE = 0.6  # of a GPU's peak bandwidth while decoding; ASSUMED, not measured here
SERVING = 3e-5  # seconds of a layer's launch under a serving engine with captured graphs; ASSUMED
# the same in transformers' own loop; ASSUMED, above the 2e-4 to 3e-4 that a layer takes on this
# kit's CPU
EAGER = 5e-4
MACHINE = {"paper": "A100-80GB", "colab": "T4"}  # where a scale runs unless told otherwise
# how work is spread where one device does not hold it: training, and all that only reads a model
SHARDED, PLACED = "accelerate launch with FSDP", 'models.load(..., device="auto")'


@dataclass(frozen=True)
class Cost:
    """What one stage of a claim costs; `limit_gpu_hours`: were every trajectory as long as its
    limit.
    """

    claim: str
    stage: str
    model: str
    gpu: str
    questions: int
    trajectories: int
    steps: int
    tokens: float
    flops: float
    memory_gb: float  # on all devices together
    gpus: int  # the least that hold it
    spread: str  # how it comes onto several devices; '' where one holds it
    hours: float
    gpu_hours: float
    limit_gpu_hours: float
    note: str


def device(name: str, *, eager: bool = True) -> Device:
    """A device by name; 'cpu' is this machine's, one thread, measured once. eager=False: a serving
    engine does the launching.

    Raises ValueError for a name that is not known.
    """
    if name == "cpu":
        from tml_lib.tools import plan_cpu  # imports torch, which no other device needs

        return plan_cpu.device()
    known = tables()["devices"]
    if name not in known:
        raise ValueError(
            f"gpu={name!r} is not known: choose one of {', '.join(known)}, or cpu for this machine"
        )
    found, launch = known[name], EAGER if eager else SERVING
    return Device(
        name,
        flops=found["tflops"] * 1e12,
        memory=found["memory_gb"] * 1e9,
        bandwidth=found["bandwidth_gbs"] * 1e9,
        launch=launch,
        train_launch=3 * EAGER,
        pass_launch=2 * launch,
        use=found["use"],
        memory_use=MEMORY_USE,
        eager=eager,
    )


def matching(claim: str) -> list[str]:
    """The plans of a claim: its own, or those of its parts ('C4': C4a and C4b). ValueError names
    the known ones.
    """
    known = tables()["claims"]
    found = [name for name in known if claim in (name, name.rstrip("ab"))]
    if not found:
        raise ValueError(
            f"claim {claim!r} has no plan (the kit's own run on a CPU): choose one of"
            f" {', '.join(known)}, or C4"
        )
    return found


def stages(claim: str, scale: str = "paper") -> list[Stage]:
    """What one claim (one of `matching`'s) runs at a scale; ValueError for an unknown scale."""
    if scale not in MACHINE:
        raise ValueError(f"scale={scale!r} is unknown: choose one of {', '.join(MACHINE)}")
    lengths, common = tables()["lengths"], tables()["common"][scale]
    settings = [common[fields["kind"]] | fields for fields in tables()["claims"][claim][scale]]
    return [
        Stage(**(fields | {"length": lengths.get(fields.get("length"), 0)})) for fields in settings
    ]


def plan(claim: str, model: str = "", gpu: str = "", scale: str = "paper") -> list[Cost]:
    """The costs of a claim, a row a stage. model, gpu: in place of the claim's own and the scale's.

    Raises ValueError for a claim, model, device or scale that is not known.
    """
    rows = []
    for name in matching(claim):
        made, held = stages(name, scale), tables()["claims"][name]
        own = shape(model or held["model" if scale == "paper" else "colab_model"])
        on = device(gpu or MACHINE[scale], eager=scale == "colab")
        rows += [
            _cost(name, stage, shape(stage.model) if stage.model else own, on) for stage in made
        ]
    return rows


def _cost(claim: str, stage: Stage, model: Shape, on: Device) -> Cost:
    needed, gpus, seconds, work = _fitted(stage, model, on)
    _, limit_gpus, limit_seconds, _ = _fitted(
        replace(stage, length=max(stage.length, stage.longest)), model, on
    )
    return Cost(
        claim,
        stage.kind,
        model.name,
        on.name,
        questions=stage.questions,
        trajectories=stage.count,
        steps=stage.steps,
        tokens=sum(phase.tokens for phase in work),
        flops=sum(phase.flops for phase in work),
        memory_gb=needed / 1e9,
        gpus=gpus,
        spread="" if gpus == 1 else SHARDED if stage.batch else PLACED,
        hours=seconds / 3600,
        gpu_hours=gpus * seconds / 3600,
        limit_gpu_hours=limit_gpus * limit_seconds / 3600,
        note=stage.note,
    )


def _fitted(stage: Stage, model: Shape, on: Device) -> tuple[float, int, float, list[Phase]]:
    """Bytes, least number of devices that hold them, seconds there, phases."""
    gpus, least = 0, 1
    while least > gpus:
        gpus = least
        needed, rows = memory_bytes(stage, model, on, gpus)
        least = math.ceil(needed / (FILL * on.memory))
    return (
        needed,
        gpus,
        predicted_seconds(stage, model, on, gpus, rows),
        phases(stage, model, on, rows),
    )


# --- texts ----------------------------------------------------------------------------------------


def table() -> str:
    """Both plans as a Markdown table, a row a claim: the paper's scale on A100-80GB, the reduced
    plan on a free Colab T4.
    """
    names = [
        "claim",
        "model",
        "tokens",
        "operations",
        "memory, GB",
        "GPUs",
        "A100 hours",
        "at the limit of length",
    ]
    plans = {claim: (plan(claim), plan(claim, scale="colab")) for claim in tables()["claims"]}
    paper, colab = ([cost for costs in plans.values() for cost in costs[k]] for k in range(2))
    lines = [[*names, "Colab plan", "T4 hours"], ["---"] * 10]
    lines += [_cells(claim, *costs) for claim, costs in plans.items()]
    lines.append(["all", *[""] * 5, *_hours(paper), "", _hours(colab)[0]])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(claim: str, paper: list[Cost], colab: list[Cost]) -> list[str]:
    if not paper:
        return [claim, tables()["claims"][claim]["note"], *"000000", "none", "0"]
    work = f"{sum(c.tokens for c in paper):.1e}", f"{sum(c.flops for c in paper):.1e}"
    room = f"{max(c.memory_gb for c in paper):.0f}", str(max(c.gpus for c in paper))
    reduced = f"{colab[0].model}, {max(c.questions for c in colab)} questions"
    return [claim, paper[0].model, *work, *room, *_hours(paper), reduced, _hours(colab)[0]]


def _hours(costs: list[Cost]) -> tuple[str, str]:
    """GPU-hours of stages together, as planned and were every trajectory as long as its limit."""
    return _few(sum(c.gpu_hours for c in costs)), _few(sum(c.limit_gpu_hours for c in costs))


def _few(number: float) -> str:
    """Two significant digits, whole from 10 on."""
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def run(options) -> int:
    """Print the plans that the command line asks for: text, or with `json` a list of rows and
    nothing else; 0.
    """
    claims = dict.fromkeys(
        name for claim in options.claim or tables()["claims"] for name in matching(claim)
    )
    plans = {claim: plan(claim, options.model, options.gpu, options.scale) for claim in claims}
    if options.json:
        print(
            json.dumps(
                [asdict(cost) for costs in plans.values() for cost in costs],
                indent=1,
                ensure_ascii=False,
            )
        )
        return 0
    for claim, costs in plans.items():
        print(_text(claim, costs, options.scale))
    print(_several([cost for costs in plans.values() for cost in costs]))
    print(
        "Mean lengths are assumed (plan.toml); waiting, talk between devices and failed runs are"
        " left out: a floor."
    )
    return 0


def _text(claim: str, costs: list[Cost], scale: str) -> str:
    held, (total, limit) = tables()["claims"][claim], _hours(costs)
    note = held["note"] if scale == "paper" or not costs else "a reduced plan"
    last = f"  in all {total} GPU-hours; {limit} if every trajectory were as long as its limit"
    return "\n".join([f"{claim} ({held['figure']}): {note}", *map(_line, costs), last])


def _several(costs: list[Cost]) -> str:
    """Which claims need several devices, and how their work is spread over them."""
    lines = []
    for what, spread in (("to train", SHARDED), ("to sample and read", PLACED)):
        needed = [cost for cost in costs if cost.spread == spread]
        most = {c.claim: max(o.gpus for o in needed if o.claim == c.claim) for c in needed}
        if most:
            named = ", ".join(f"{claim} ({gpus})" for claim, gpus in most.items())
            lines.append(f"  {what}, by {spread}: {named}")
    if not lines:
        return "Every stage fits on one device."
    return "\n".join(["Several devices (how many) are needed; all else fits on one:", *lines])


def _line(c: Cost) -> str:
    note, steps = f" ({c.note})" if c.note else "", f" in {c.steps} steps" if c.steps else ""
    work = (
        f"{c.tokens:.1e} tokens, {c.flops:.1e} operations, {_few(c.memory_gb)} GB on {c.gpus} ×"
        f" {c.gpu}"
    )
    return (
        f"  {c.stage}{note}: {c.model}, {c.trajectories} trajectories{steps}, {work},"
        f" {_few(c.gpu_hours)} GPU-hours"
    )
