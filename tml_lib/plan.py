"""What a claim's runs cost: tokens, floating-point operations, memory and GPU-hours, from stated formulas.

`plan.toml` holds models, devices, the assumed lengths of trajectories and what each claim runs, each with its source. A stage
falls into phases. A phase of F operations that streams B bytes of weights and keys, and whose element-wise operations write V
values, lasts on G devices

    max(F / (use · peak), B / (memory_use · bandwidth)) / G + V · value / G + launches · launch   seconds.

Training passes, and so their launches, are shared out among the devices; a forward pass runs on all of them. On a GPU V is part
of `use`. On `cpu` every rate is measured here (`calibrate`). Left out: waiting for the longest sample where a serving engine
refills its rows, talk between devices, loading, grading, failed runs. So a plan is a floor.
"""

from __future__ import annotations

import functools
import json
import math
import time
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from tml_lib.probe import ROWS_PER_PASS

MEMORY_USE = 0.6  # of a GPU's peak bandwidth while decoding; ASSUMED, not measured here
FILL = 0.9  # of a device's memory that may be filled (vLLM's default): the rest is the driver's, and fragments
STATE_BYTES = 16  # a trained parameter's weight, gradient, copy and two moments of Adam (Rajbhandari et al. 2020, §3.1)
STEP_BYTES = 28  # what Adam reads and writes of it in a step, in float32
BATCH = 256  # rows sampled side by side at most: vLLM's default `max_num_seqs`, and the kit's own batch
FEWEST = 16  # rows that must find room beside one another: fewer would read all weights for next to nothing
LOGIT_VALUES = 6  # written per logit by sampling or loss: widened, scaled, softmax, running sum or gradient, ...
SERVING = 3e-5  # seconds of a layer's launch under a serving engine with captured graphs; ASSUMED
EAGER = 5e-4  # the same in transformers' own loop; ASSUMED, above the 2e-4 to 3e-4 that a layer takes on this kit's CPU
MACHINE = {"paper": "A100-80GB", "colab": "T4"}  # where a scale runs unless told otherwise
CONFIG = {"layers": "num_hidden_layers", "width": "hidden_size", "heads": "num_attention_heads"}  # ours: config.json's
CONFIG |= {"ffn": "intermediate_size", "vocabulary": "vocab_size"}
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")  # model types whose blocks the formulas describe


@dataclass(frozen=True)
class Shape:
    """A decoder's dimensions: pre-norm blocks of grouped attention and a gated feed-forward net (Llama, Mistral, Qwen).

    Raises ValueError where the count of parameters differs from a published one.
    """

    name: str
    layers: int
    width: int  # d
    heads: int
    kv_heads: int
    head: int  # size of one head
    ffn: int  # f
    vocabulary: int
    tied: bool = False  # input and output embeddings are one
    bias: bool = False  # on queries, keys and values
    qk_norm: bool = False  # Qwen3
    published: int = 0

    def __post_init__(self):
        if self.published not in (0, self.parameters):
            raise ValueError(f"{self.name} has {self.parameters} parameters, published are {self.published}: mend plan.toml")

    @property
    def query(self) -> int:
        """Width of all query heads, q."""
        return self.heads * self.head

    @property
    def key(self) -> int:
        """Width of all key heads, k; as many for values."""
        return self.kv_heads * self.head

    @property
    def matrices(self) -> int:
        """Parameters in the matrices of all blocks: layers · (2dq + 2dk + 3df)."""
        return self.layers * self.width * (2 * self.query + 2 * self.key + 3 * self.ffn)

    @property
    def parameters(self) -> int:
        """All parameters: matrices, norms and biases of blocks, the last norm, embeddings (once where tied)."""
        norms = 2 * self.width + self.bias * (self.query + 2 * self.key) + self.qk_norm * 2 * self.head
        return self.matrices + self.layers * norms + self.width + (2 - self.tied) * self.vocabulary * self.width

    def adapter(self, rank: int) -> int:
        """Parameters of a LoRA adapter on the seven linear layers of every block: layers · rank · Σ (in + out)."""
        return self.layers * rank * (7 * self.width + 2 * self.query + 2 * self.key + 3 * self.ffn)


@dataclass(frozen=True)
class Device:
    """One GPU or processor; rates a second."""

    name: str
    flops: float  # peak of dense matrix products
    memory: float  # bytes
    bandwidth: float  # bytes
    use: float = 1.0  # share of the peak that is reached
    memory_use: float = 1.0
    number: int = 2  # bytes of a weight or activation
    eager: bool = True  # transformers' own loops; else a serving engine
    launch: float = EAGER  # seconds that a layer takes in a forward pass beside its arithmetic
    train_launch: float = 3 * EAGER  # the same in a training step: forward, backward, optimiser
    pass_launch: float = 2 * EAGER  # a forward pass's own, beside its layers
    value: float = 0.0  # seconds per value that an element-wise operation writes


@dataclass(frozen=True)
class Stage:
    """One piece of a claim's work: `runs` · `questions` · `each` trajectories of one kind."""

    kind: str  # 'probe', 'sample', 'sft', 'dpo', 'grpo', 'landscape'
    questions: int
    each: int = 1  # trajectories a question; 'dpo': pairs; 'grpo': the group
    length: float = 0.0  # mean tokens of a trajectory
    longest: int = 0  # limit of its tokens
    prompt: int = 200  # tokens of I ⊕ q, chat template included; ASSUMED
    suffix: int = 13  # tokens of template ⊕ answer, of which the answer is scored
    answer: int = 3
    positions: int = 0  # prefixes probed; 0: all
    points: int = 0  # of a landscape's grid
    rows: int = 1  # side by side in a training or landscape pass
    batch: int = 0  # rows ('grpo': questions) of an optimiser step
    update: float = 1.0  # share of a group that the gradient is of
    lora_rank: int = 0  # 0: all weights
    recompute: bool = False  # activations are computed again in the backward pass
    runs: int = 1
    model: str = ""  # where it is another than the claim's
    note: str = ""

    @property
    def count(self) -> int:
        return self.runs * self.questions * self.each

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        rows = self.questions * (1 if self.kind == "grpo" else self.each)
        return self.runs * math.ceil(rows / self.batch) if self.batch else 0

    @property
    def whole(self) -> float:
        """Tokens of a training row: prompt, trajectory, answer (which a sample already holds)."""
        return self.prompt + self.length + (self.kind != "grpo") * self.suffix

    @property
    def side(self) -> int:
        """Trajectories that could be sampled side by side."""
        return min(BATCH, self.batch * self.each if self.kind == "grpo" else self.count)


@dataclass(frozen=True)
class Phase:
    """Work of one nature: tokens, operations, bytes streamed, values written, forward passes, training passes."""

    tokens: float
    flops: float
    streamed: float
    values: float
    passes: float
    trained: float = 0.0


@dataclass(frozen=True)
class Cost:
    """What one stage of a claim costs; `limit_gpu_hours`: were every trajectory as long as its limit."""

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
    hours: float
    gpu_hours: float
    limit_gpu_hours: float
    note: str


# --- figures ---------------------------------------------------------------------------------------------------------


@functools.cache
def _tables() -> dict:
    return tomllib.loads((Path(__file__).parent / "plan.toml").read_text(encoding="utf8"))


def shape(name: str) -> Shape:
    """The shape of a model by name (with or without its hub's owner and '-Instruct'), or of a folder with config.json.

    Raises ValueError for a name that is not known and for a folder whose model the formulas do not describe.
    """
    folder = Path(__file__).parent / "weights" / name if name.startswith("tiny-") else Path(name).expanduser()
    if (folder / "config.json").is_file():
        return _read_shape(folder / "config.json")
    short, known = name.split("/")[-1].removesuffix("-Instruct"), _tables()["models"]
    if short not in known:
        names = ", ".join([*known, "tiny-base"])
        raise ValueError(f"the shape of {name!r} is not known: choose one of {names}, or give a folder with config.json")
    return Shape(short, **known[short])


def _read_shape(file: Path) -> Shape:
    config = json.loads(file.read_text(encoding="utf8"))
    if (kind := config.get("model_type")) not in FAMILIES:
        raise ValueError(f"{file} is of a {kind!r} model; the formulas are for {', '.join(FAMILIES)}: take one of those")
    if missing := [key for key in CONFIG.values() if not config.get(key)]:
        raise ValueError(f"{file} lacks {missing[0]!r}: give the folder that `save_pretrained` wrote")
    found = {ours: config[theirs] for ours, theirs in CONFIG.items()}
    heads = {"kv_heads": config.get("num_key_value_heads") or found["heads"]}
    heads["head"] = config.get("head_dim") or found["width"] // found["heads"]
    flags = {"tied": config.get("tie_word_embeddings", False), "qk_norm": kind == "qwen3"}
    return Shape(file.parent.name, **found, **heads, **flags, bias=config.get("attention_bias", False) or kind == "qwen2")


def device(name: str, *, eager: bool = True) -> Device:
    """A device by name; 'cpu' is this machine's, one thread, measured now. eager=False: a serving engine does the launching.

    Raises ValueError for a name that is not known.
    """
    known = _tables()["devices"]
    if name == "cpu":
        return _this_machine()
    if name not in known:
        raise ValueError(f"gpu={name!r} is not known: choose one of {', '.join(known)}, or cpu for this machine")
    found, launch = known[name], EAGER if eager else SERVING
    rates = found["tflops"] * 1e12, found["memory_gb"] * 1e9, found["bandwidth_gbs"] * 1e9
    return Device(name, *rates, found["use"], MEMORY_USE, 2, eager, launch, 3 * EAGER, 2 * launch)


# --- formulas --------------------------------------------------------------------------------------------------------


def forward_flops(model: Shape, tokens: float, context: float, scored: float) -> float:
    """2 · matrices · tokens + 4 · layers · q · context · tokens + 2 · d · vocabulary · scored.

    context: keys that a token sees, in the mean (half a text's length where it is read causally). scored: tokens whose logits
    are computed. A multiplication and an addition count as two (Kaplan et al. 2020, arXiv 2001.08361, Table 1).
    """
    attention = 4 * model.layers * model.query * context * tokens
    return 2 * model.matrices * tokens + attention + 2 * model.width * model.vocabulary * scored


def written(model: Shape, tokens: float, context: float, *, lora: bool = False) -> float:
    """Values that a forward pass's element-wise operations write: layers · tokens · (8d + 4.5(q + k) + 2f + heads · context).

    Counted in transformers' Llama block: norms 6d, residual sums 2d, rotation of queries and keys 4.5(q + k), gate 2f, softmax
    of scores. LoRA: three more per output of its seven layers. A backward pass writes twice as many.
    """
    block = 8 * model.width + 4.5 * (model.query + model.key) + 2 * model.ffn + model.heads * context
    adapted = 3 * (2 * model.width + model.query + 2 * model.key + 2 * model.ffn)
    return model.layers * tokens * (block + lora * adapted)


def phases(stage: Stage, model: Shape, on: Device, rows: int = BATCH) -> list[Phase]:
    """A stage's phases; rows: trajectories sampled side by side. Raises ValueError for an unknown kind.

    probe: the trajectory is read once, and a copy of the suffix per prefix, in passes of ROWS_PER_PASS tokens whose mask is
    dense, so that each sees the cache and the whole pass (see probe.py).
    landscape: weights are written anew at each point, three reads and one write. dpo: two texts a pair, and the same two under
    the model that it started from. grpo: samples, their log-probabilities under the sampling weights, a step on those kept.
    """
    n, phase = stage.count, functools.partial(_phase, model, on)
    if stage.kind == "probe":
        prefixes, side = stage.positions or stage.length + 1, ROWS_PER_PASS["cpu" if on.name == "cpu" else "cuda"]
        tokens = stage.prompt + stage.length + prefixes * (stage.suffix - 1)
        context = stage.prompt + stage.length / 2 + min(side, tokens)
        return [phase(n * tokens, context, n * prefixes * stage.answer, n * math.ceil(tokens / side))]
    if stage.kind == "landscape":
        tokens, passes = stage.prompt + stage.suffix, stage.points * math.ceil(n / stage.rows)
        found = phase(stage.points * n * tokens, tokens / 2, stage.points * n * (stage.answer + 1), passes)
        return [replace(found, streamed=found.streamed + 4 * stage.points * model.parameters * on.number)]
    if stage.kind == "sample":
        return _sampled(stage, model, on, rows)
    if stage.kind == "sft":
        return [_trained(stage, model, on, n)]
    reading = functools.partial(phase, context=stage.whole / 2)
    if stage.kind == "dpo":
        tokens = 2 * n * stage.whole
        return [reading(tokens, scored=tokens, passes=2 * n / stage.rows), _trained(stage, model, on, 2 * n)]
    if stage.kind == "grpo":
        tokens = n * stage.whole
        scoring = reading(tokens, scored=tokens, passes=n / stage.rows)
        return [*_sampled(stage, model, on, rows), scoring, _trained(stage, model, on, n * stage.update)]
    raise ValueError(f"stage {stage.kind!r} is unknown: choose probe, sample, sft, dpo, grpo or landscape")


def _phase(model: Shape, on: Device, tokens: float, context: float, scored: float, passes: float) -> Phase:
    """Forward passes, each of which reads all weights once."""
    values = written(model, tokens, context) + LOGIT_VALUES * model.vocabulary * scored
    return Phase(tokens, forward_flops(model, tokens, context, scored), passes * model.parameters * on.number, values, passes)


def _sampled(stage: Stage, model: Shape, on: Device, rows: int) -> list[Phase]:
    """Prompts are read; then each decoded step reads the weights, and the keys and values of its rows (`cache_bytes`).

    A serving engine refills its rows; the kit's own loop goes on to a batch's longest row, and copies its cache at every step.
    """
    n, batches = stage.count, stage.count / min(rows, stage.side)
    steps, context = batches * (stage.longest if on.eager else stage.length), stage.prompt + stage.length / 2
    prompts = _phase(model, on, n * stage.prompt, stage.prompt / 2, n, batches)
    decoded = _phase(model, on, n * stage.length, context, n * stage.length, steps)
    cached = n * stage.length * cache_bytes(model, context, 1)  # numbers, over all steps
    streamed = decoded.streamed + (1 + on.eager) * cached * on.number
    return [prompts, replace(decoded, streamed=streamed, values=decoded.values + on.eager * cached)]


def _trained(stage: Stage, model: Shape, on: Device, rows: float) -> Phase:
    """Three forward passes' worth (backward: by activations, by weights), with LoRA two and three of the adapter's.

    Recomputation adds one (Korthikanti et al. 2022, arXiv 2205.05198, §5). All tokens' logits are computed.
    """
    lora, tokens, passes = stage.lora_rank > 0, rows * stage.whole, rows / stage.rows
    one, times = _phase(model, on, tokens, stage.whole / 2, tokens, passes), 3 + stage.recompute
    flops = (times - lora) * one.flops + 6 * model.adapter(stage.lora_rank) * tokens
    values = one.values + (times * written(model, tokens, stage.whole / 2, lora=lora) - written(model, tokens, stage.whole / 2))
    trained = model.adapter(stage.lora_rank) if lora else model.parameters
    return Phase(tokens, flops, times * one.streamed + stage.steps * STEP_BYTES * trained, values, 0, passes)


def predicted_seconds(stage: Stage, model: Shape, on: Device, gpus: int = 1, rows: int = BATCH) -> float:
    """Seconds of a stage on `gpus` devices (see this module's formula)."""
    total = 0.0
    for phase in phases(stage, model, on, rows):
        work = max(phase.flops / (on.use * on.flops), phase.streamed / (on.memory_use * on.bandwidth))
        forward = phase.passes * (model.layers * on.launch + on.pass_launch)
        trained = phase.trained * (model.layers * on.train_launch + 3 * on.pass_launch)
        total += (work + phase.values * on.value + trained) / gpus + forward
    return total


def cache_bytes(model: Shape, tokens: float, number: int = 2) -> float:
    """Keys and values of a text: 2 · layers · k numbers a token."""
    return 2 * model.layers * model.key * number * tokens


def training_bytes(model: Shape, stage: Stage, number: int = 2) -> float:
    """Weights, gradients and Adam's states, and the activations of `rows` rows of the longest length.

    All weights: STATE_BYTES each; LoRA: `number` a weight, STATE_BYTES an adapter's. A block keeps 4d + 2q + 2k + 4f values a
    token for its backward pass (inputs of norms, projections, attention, gate); with recomputation its input only, and one
    block's values at a time. Logits: one in `number` bytes, one widened and one gradient in 4 (after Korthikanti et al. 2022,
    §4, for a gated net, without attention scores, which fused kernels do not keep).
    """
    lora = number * model.parameters + STATE_BYTES * model.adapter(stage.lora_rank)
    states = lora if stage.lora_rank else STATE_BYTES * model.parameters
    tokens = stage.rows * (stage.prompt + max(stage.longest, stage.length) + stage.suffix)
    block = 4 * model.width + 2 * model.query + 2 * model.key + 4 * model.ffn
    kept = model.layers * model.width + block if stage.recompute else model.layers * block
    return states + tokens * (kept * number + model.vocabulary * (number + 8))


def memory_bytes(stage: Stage, model: Shape, on: Device, gpus: int = 1) -> tuple[float, int]:
    """Bytes that a stage needs in all, and how many trajectories are sampled side by side in what `gpus` devices leave free.

    Sampling: weights and the caches of those rows, at the mean length under a serving engine and at the limit in the kit's own
    loop, FEWEST rows at least, and one of the longest. Landscape: weights, two directions and the place written to.
    """
    weights, longest = model.parameters * on.number, cache_bytes(model, stage.prompt + stage.longest + stage.suffix, on.number)
    row = longest if on.eager else cache_bytes(model, stage.prompt + stage.length, on.number)
    room = int((gpus * FILL * on.memory - weights) / max(row, 1))
    rows = max(min(stage.side, FEWEST), min(stage.side, room))
    needed = (4 if stage.kind == "landscape" else 1) * weights
    if stage.kind in ("sft", "dpo", "grpo"):
        start = needed if stage.kind == "dpo" and not stage.lora_rank else 0  # the model that it started from
        needed = training_bytes(model, stage, on.number) + start
    if stage.kind in ("sample", "grpo"):
        return max(needed, weights + max(rows * row, longest)), rows
    return needed + longest * (stage.kind == "probe"), rows


# --- plans -----------------------------------------------------------------------------------------------------------


def matching(claim: str) -> list[str]:
    """The plans of a claim: its own, or those of its parts ('C4': C4a and C4b). ValueError names the known ones."""
    known = _tables()["claims"]
    found = [name for name in known if claim in (name, name.rstrip("ab"))]
    if not found:
        raise ValueError(f"claim {claim!r} has no plan (the kit's own run on a CPU): choose one of {', '.join(known)}, or C4")
    return found


def stages(claim: str, scale: str = "paper") -> list[Stage]:
    """What one claim (one of `matching`'s) runs at a scale; ValueError for an unknown scale."""
    if scale not in MACHINE:
        raise ValueError(f"scale={scale!r} is unknown: choose one of {', '.join(MACHINE)}")
    lengths, common = _tables()["lengths"], _tables()["common"][scale]
    given = [common[fields["kind"]] | fields for fields in _tables()["claims"][claim][scale]]
    return [Stage(**(fields | {"length": lengths.get(fields.get("length"), 0)})) for fields in given]


def plan(claim: str, model: str = "", gpu: str = "", scale: str = "paper") -> list[Cost]:
    """The costs of a claim, a row a stage. model, gpu: in place of the claim's own and the scale's.

    Raises ValueError for a claim, model, device or scale that is not known.
    """
    rows = []
    for name in matching(claim):
        made, held = stages(name, scale), _tables()["claims"][name]
        own = shape(model or held["model" if scale == "paper" else "colab_model"])
        on = device(gpu or MACHINE[scale], eager=scale == "colab")
        rows += [_cost(name, stage, shape(stage.model) if stage.model else own, on) for stage in made]
    return rows


def _cost(claim: str, stage: Stage, model: Shape, on: Device) -> Cost:
    needed, gpus, seconds, work = _fitted(stage, model, on)
    limit = _fitted(replace(stage, length=max(stage.length, stage.longest)), model, on)
    counts = stage.questions, stage.count, stage.steps, sum(part.tokens for part in work), sum(part.flops for part in work)
    hours = seconds / 3600, gpus * seconds / 3600, limit[1] * limit[2] / 3600
    return Cost(claim, stage.kind, model.name, on.name, *counts, needed / 1e9, gpus, *hours, stage.note)


def _fitted(stage: Stage, model: Shape, on: Device) -> tuple[float, int, float, list[Phase]]:
    """Bytes, least number of devices that hold them, seconds there, phases."""
    gpus, least = 0, 1
    while least > gpus:
        gpus = least
        needed, rows = memory_bytes(stage, model, on, gpus)
        least = math.ceil(needed / (FILL * on.memory))
    return needed, gpus, predicted_seconds(stage, model, on, gpus, rows), phases(stage, model, on, rows)


def table() -> str:
    """Both plans as a Markdown table, a row a claim: the paper's scale on A100-80GB, the reduced plan on a free Colab T4."""
    names = ["claim", "model", "tokens", "operations", "memory, GB", "GPUs", "A100 hours", "at the limit of length"]
    lines, totals = [[*names, "Colab plan", "T4 hours"], ["---"] * 10], [0.0, 0.0, 0.0]
    for claim, held in _tables()["claims"].items():
        paper, colab = plan(claim), plan(claim, scale="colab")
        if not paper:
            lines.append([claim, held["note"], *"000000", "none", "0"])
            continue
        hours = [sum(c.gpu_hours for c in paper), sum(c.limit_gpu_hours for c in paper), sum(c.gpu_hours for c in colab)]
        totals = [total + more for total, more in zip(totals, hours, strict=True)]
        work = f"{sum(c.tokens for c in paper):.1e}", f"{sum(c.flops for c in paper):.1e}"
        room = f"{max(c.memory_gb for c in paper):.0f}", str(max(c.gpus for c in paper))
        reduced = f"{colab[0].model}, {max(c.questions for c in colab)} questions"
        lines.append([claim, paper[0].model, *work, *room, _few(hours[0]), _few(hours[1]), reduced, _few(hours[2])])
    lines.append(["all", *[""] * 5, _few(totals[0]), _few(totals[1]), "", _few(totals[2])])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _few(number: float) -> str:
    """Two significant digits, whole from 10 on."""
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def run(options) -> int:
    """Print the plans that the command line asks for: text, or with `json` a list of rows and nothing else; 0."""
    claims = dict.fromkeys(name for claim in options.claim or _tables()["claims"] for name in matching(claim))
    costs = {claim: plan(claim, options.model, options.gpu, options.scale) for claim in claims}
    if options.json:
        print(json.dumps([asdict(cost) for rows in costs.values() for cost in rows], indent=1, ensure_ascii=False))
        return 0
    for claim, rows in costs.items():
        held = _tables()["claims"][claim]
        print(f"{claim} ({held['figure']}): {held['note'] if options.scale == 'paper' or not rows else 'a reduced plan'}")
        for c in rows:
            steps, note = f" in {c.steps} steps" if c.steps else "", f" ({c.note})" if c.note else ""
            work = f"{c.tokens:.1e} tokens, {c.flops:.1e} operations, {_few(c.memory_gb)} GB on {c.gpus} × {c.gpu}"
            print(f"  {c.stage}{note}: {c.model}, {c.trajectories} trajectories{steps}, {work}, {_few(c.gpu_hours)} GPU-hours")
        total, limit = sum(c.gpu_hours for c in rows), sum(c.limit_gpu_hours for c in rows)
        print(f"  in all {_few(total)} GPU-hours; {_few(limit)} if every trajectory were as long as its limit")
    print("Mean lengths are assumed (plan.toml); waiting, talk between devices and failed runs are left out: a floor.")
    return 0


# --- this machine ----------------------------------------------------------------------------------------------------


@functools.cache
def _this_machine() -> Device:
    return measured_device(calibrate())


def measured_device(rates: dict) -> Device:
    """The device that a calibration describes: float32, transformers' own loops, all of this machine's memory."""
    import psutil

    launches = (rates[name] * 1e-6 for name in ("launch_us", "train_launch_us", "pass_launch_us"))
    peaks = rates["gflops"] * 1e9, psutil.virtual_memory().total, rates["bandwidth_gbs"] * 1e9
    return Device("cpu", *peaks, 1.0, 1.0, 4, True, *launches, rates["value_ns"] * 1e-9)


def calibrate() -> dict:
    """This machine's rates, one thread, float32, in processor time, which other processes distort less than wall time; 3 s.

    gflops: of a matrix product of a small model's size. bandwidth_gbs: of reading 128 MB. value_ns: per value that element-wise
    operations write to fresh memory. launch_us, train_launch_us: what a layer so narrow that it computes nothing takes in a
    decoded step and in a training step; pass_launch_us: a decoded step's own, beside its layers.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        left, right, long = torch.randn(256, 576), torch.randn(576, 1536), torch.ones(2**25)
        several = [torch.randn(2**20) for _ in range(8)]
        one, five = _launches(1), _launches(5)
        layer, trained = ((b - a) / 4 for a, b in zip(one, five, strict=True))
        return {
            "gflops": 2e-9 * 256 * 576 * 1536 / _processor_seconds(lambda: left @ right),
            "bandwidth_gbs": 4e-9 * len(long) / _processor_seconds(long.sum),
            "value_ns": 1e9 * _processor_seconds(lambda: [torch.nn.functional.silu(v) * v + v for v in several]) / 3 / 2**23,
            "launch_us": 1e6 * layer,
            "train_launch_us": 1e6 * trained,
            "pass_launch_us": 1e6 * (one[0] - layer),
        }
    finally:
        torch.set_num_threads(threads)


def _launches(layers: int) -> tuple[float, float]:
    """Seconds of a decoded step and of a training step of a model of width 16 on two tokens."""
    import torch
    from transformers import DynamicCache

    from tml_lib import models

    size = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16}
    model = models.random_model("llama", **size, num_hidden_layers=layers, vocab_size=32)
    optimiser, ids = torch.optim.AdamW(model.parameters()), torch.zeros(2, 2, dtype=torch.long)
    given = {"input_ids": ids[:, :1], "attention_mask": ids[:, :1] + 1, "position_ids": ids[:, :1], "use_cache": True}

    @torch.inference_mode()
    def decode():
        model(**given, past_key_values=DynamicCache(config=model.config), logits_to_keep=1)

    def step():
        optimiser.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    return _processor_seconds(decode), _processor_seconds(step)


def _processor_seconds(call: Callable[[], object], least: float = 0.25) -> float:
    """Mean processor seconds of a call, after a warm-up, over at least `least` of them."""
    call()
    count, began = 0, time.process_time()
    while time.process_time() - began < least:
        call()
        count += 1
    return (time.process_time() - began) / count


def benchmark(rounds: int = 3, say: Callable[[str], None] = print) -> list[dict]:
    """Predicted by measured processor time of small runs on this machine, one thread: rows of name, value, unit, bar, setting.

    Each round calibrates anew and then runs every case once; values are medians over rounds of the ratio within a round.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cases, ratios = _cases(), {}
        for turn in range(rounds):
            here = measured_device(calibrate())
            for name, setting, stage, model, call in cases:
                began = time.process_time()
                call()
                ratio = predicted_seconds(stage, model, here) / (time.process_time() - began)
                ratios.setdefault((name, setting), []).append(ratio)
                say(f"plan, {name}, {setting}, round {turn + 1}/{rounds}: predicted by measured {ratio:.2f}")
    finally:
        torch.set_num_threads(threads)
    fixed, title = {"unit": "×", "bar": "0.5 to 2"}, "plan: predicted by measured time"
    return [
        {"name": f"{title}, {name}", "value": round(median(found), 2), **fixed, "setting": f"{setting}, one thread, float32"}
        for (name, setting), found in ratios.items()
    ]


def _cases() -> list[tuple[str, str, Stage, Shape, Callable[[], object]]]:
    """Name, setting, stage, shape and the call that is timed; each is called once here, which warms up and tells lengths."""
    from tml_lib import models, outer, outer_study, programs, tasks, tiny
    from tml_lib.answers import chat_prompt, encode
    from tml_lib.probe import prefix_nll

    lm, reasoner = models.load("small", device="cpu"), models.load("tiny", model=models.shipped("tiny-long"), device="cpu")
    asked = tasks.gsm_symbolic(16, 0)
    prompts = [chat_prompt(lm.tokenizer, q.text) for q in asked]
    found = encode(lm.tokenizer, prompts[0], "\n".join(tasks.gold(q).text for q in asked), ["42"])
    suffix, given = found.suffixes[0], (lm.model, found.prompt, found.trajectory[:64], found.suffixes, range(65))
    prefix_nll(*given)
    probe = Stage("probe", 1, 1, 64, 64, len(found.prompt), len(suffix.ids), len(suffix.ids) - suffix.start)
    rows, adapted = outer.question_rows(lm, asked[:4]), outer._copy(lm, 4, 0)
    stream = outer_study.arm_rows(0, "long")
    steps = [stream(k) for k in range(5)]
    programmed = [chat_prompt(reasoner.tokenizer, q.text) for q in programs.questions(64, 0, "held_out")]
    small, own = shape("SmolLM2-135M"), shape("tiny-long")
    return [
        ("probe", f"{small.name}, 64 tokens, all prefixes", probe, small, lambda: prefix_nll(*given)),
        _sampling(lm, small, prompts, 32),
        _training(small, [rows], lambda: tiny.train(adapted, lambda _: rows, steps=1, peak_lr=1e-3), lora_rank=4),
        _sampling(reasoner, own, programmed * 4, 128),
        _training(own, steps, lambda: outer_study.tuned(reasoner, steps.__getitem__, len(steps))),
    ]


def _sampling(lm, model: Shape, prompts: list[str], most: int) -> tuple:
    """A case of `_cases`: one batch sampled at temperature 1."""
    from tml_lib import rollouts

    def call():
        return rollouts.continuations(lm, prompts, range(len(prompts)), max_new_tokens=most)

    tokens = [most if ids is None else len(ids) + 1 for ids in call()]
    widest = max(len(lm.tokenizer(prompt, add_special_tokens=False)["input_ids"]) for prompt in prompts)
    stage = Stage("sample", len(prompts), 1, sum(tokens) / len(tokens), max(tokens), widest)
    return "sampling", f"{model.name}, {len(prompts)} rows of up to {most} tokens", stage, model, call


def _training(model: Shape, batches: list[list], call: Callable[[], object], *, lora_rank: int = 0) -> tuple:
    """A case of `_cases`: a training step a batch of rows, padded to their longest."""
    call()
    side, width = len(batches[0]), sum(max(len(ids) for ids, _ in rows) for rows in batches) / len(batches)
    counts = {"rows": side, "batch": side, "lora_rank": lora_rank}
    stage = Stage("sft", side * len(batches), 1, width, prompt=0, suffix=0, **counts)
    what = f"LoRA of rank {lora_rank}" if lora_rank else "all weights"
    return "training", f"{model.name}, {what}, {len(batches)} × {side} rows of {width:.0f} tokens", stage, model, call
