"""What a stage of work costs: tokens, floating-point operations, memory, values written and
seconds, from stated formulas.

A stage falls into phases. A phase of F operations that streams B bytes of weights and keys, and
whose element-wise operations write V values, lasts on G devices

    max(F / (use · peak), B / (memory_use · bandwidth)) / G + V · value / G + launches · launch
    seconds.

Training passes, and so their launches, are shared out among the devices; a forward pass runs on all
of them. On a GPU V is part of `use`. Left out: waiting for the longest sample where a serving
engine refills its rows, talk between devices, loading, grading, failed runs. So these are floors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tml_lib.runtime import TOKENS_PER_PASS
from tml_lib.tools.plan_shapes import Device, Shape

# of a device's memory that may be filled (vLLM's default): the rest is the driver's, and fragments
FILL = 0.9
# a trained parameter's weight, gradient, copy and two moments of Adam (Rajbhandari et al. 2020,
# §3.1)
STATE_BYTES = 16
STEP_BYTES = 28  # what Adam reads and writes of it in a step, in float32
# rows sampled side by side at most: vLLM's default `max_num_seqs`, and the kit's own batch
BATCH = 256
# rows that must find room beside one another: fewer would read all weights for next to nothing
FEWEST = 16
# written per logit by sampling or loss: widened, scaled, softmax, running sum or gradient, ...
LOGIT_VALUES = 6


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
    """Work of one nature: tokens, operations, bytes streamed, values written, forward passes,
    training passes.
    """

    tokens: float
    flops: float
    streamed: float
    values: float
    passes: float
    trained: float = 0.0


# --- formulas -------------------------------------------------------------------------------------


def forward_flops(model: Shape, tokens: float, context: float, scored: float) -> float:
    """2 · matrices · tokens + 4 · layers · q · context · tokens + 2 · d · vocabulary · scored.

    context: keys that a token sees, in the mean (half a text's length where it is read causally).
    scored: tokens whose logits are computed. A multiplication and an addition count as two (Kaplan
    et al. 2020, arXiv 2001.08361, Table 1).
    """
    attention = 4 * model.layers * model.query * context * tokens
    return 2 * model.matrices * tokens + attention + 2 * model.width * model.vocabulary * scored


def written(model: Shape, tokens: float, context: float, *, lora: bool = False) -> float:
    """Values that a forward pass's element-wise operations write: layers · tokens · (8d + 4.5(q +
    k) + 2f + heads · context).

    Counted in transformers' Llama block: norms 6d, residual sums 2d, rotation of queries and keys
    4.5(q + k), gate 2f, softmax of scores. LoRA: three more per output of its seven layers. A
    backward pass writes twice as many.
    """
    block = (
        8 * model.width + 4.5 * (model.query + model.key) + 2 * model.ffn + model.heads * context
    )
    adapted = 3 * (2 * model.width + model.query + 2 * model.key + 2 * model.ffn)
    return model.layers * tokens * (block + lora * adapted)


def phases(stage: Stage, model: Shape, on: Device, rows: int = BATCH) -> list[Phase]:
    """A stage's phases; rows: trajectories sampled side by side. Raises ValueError for an unknown
    kind.

    dpo: two texts a pair, and the same two under the model that it started from. grpo: samples,
    their log-probabilities under the sampling weights, a step on those kept.
    """
    n = stage.count
    match stage.kind:
        case "probe":
            return [_probed(stage, model, on)]
        case "landscape":
            return [_mapped(stage, model, on)]
        case "sample":
            return _sampled(stage, model, on, rows)
        case "sft":
            return [_trained(stage, model, on, n)]
        case "dpo":
            return [_scored(stage, model, on, 2 * n), _trained(stage, model, on, 2 * n)]
        case "grpo":
            sampled = _sampled(stage, model, on, rows)
            return [
                *sampled,
                _scored(stage, model, on, n),
                _trained(stage, model, on, n * stage.update),
            ]
    raise ValueError(
        f"stage {stage.kind!r} is unknown: choose probe, sample, sft, dpo, grpo or landscape"
    )


def _phase(
    model: Shape, on: Device, tokens: float, context: float, scored: float, passes: float
) -> Phase:
    """Forward passes, each of which reads all weights once."""
    values = written(model, tokens, context) + LOGIT_VALUES * model.vocabulary * scored
    return Phase(
        tokens,
        forward_flops(model, tokens, context, scored),
        passes * model.parameters * on.number,
        values,
        passes,
    )


def _probed(stage: Stage, model: Shape, on: Device) -> Phase:
    """The trajectory is read once, and a copy of the suffix per prefix.

    A pass holds TOKENS_PER_PASS tokens; each attends to the text before it and to its own copy of
    the suffix (see measure/shared_prefix.py).
    """
    prefixes = stage.positions or stage.length + 1
    side = TOKENS_PER_PASS["cpu" if on.name == "cpu" else "cuda"]
    tokens = stage.prompt + stage.length + prefixes * (stage.suffix - 1)
    context = stage.prompt + stage.length / 2 + stage.suffix
    passes = stage.count * math.ceil(tokens / side)
    return _phase(
        model, on, stage.count * tokens, context, stage.count * prefixes * stage.answer, passes
    )


def _mapped(stage: Stage, model: Shape, on: Device) -> Phase:
    """A landscape: at each point weights are written anew, three reads and one write, and every
    question is read.
    """
    tokens, reads = stage.prompt + stage.suffix, stage.points * stage.count
    passes = stage.points * math.ceil(stage.count / stage.rows)
    found = _phase(model, on, reads * tokens, tokens / 2, reads * (stage.answer + 1), passes)
    return replace(found, streamed=found.streamed + 4 * stage.points * model.parameters * on.number)


def _sampled(stage: Stage, model: Shape, on: Device, rows: int) -> list[Phase]:
    """Prompts are read; then each decoded step reads the weights, and the keys and values of its
    rows (`cache_bytes`).

    Every sample's prompt counts, though samples of a question that stand side by side share its
    reading. A serving engine refills its rows; the kit's own loop goes on to a batch's longest row,
    and copies its cache at every step.
    """
    n, batches = stage.count, stage.count / min(rows, stage.side)
    steps, context = (
        batches * (stage.longest if on.eager else stage.length),
        stage.prompt + stage.length / 2,
    )
    prompts = _phase(model, on, n * stage.prompt, stage.prompt / 2, n, batches)
    decoded = _phase(model, on, n * stage.length, context, n * stage.length, steps)
    cached = n * stage.length * cache_bytes(model, context, 1)  # numbers, over all steps
    streamed = decoded.streamed + (1 + on.eager) * cached * on.number
    return [prompts, replace(decoded, streamed=streamed, values=decoded.values + on.eager * cached)]


def _scored(stage: Stage, model: Shape, on: Device, rows: float) -> Phase:
    """Training rows are read once; all tokens' logits are computed."""
    tokens = rows * stage.whole
    return _phase(model, on, tokens, stage.whole / 2, tokens, rows / stage.rows)


def _trained(stage: Stage, model: Shape, on: Device, rows: float) -> Phase:
    """Three forward passes' worth (backward: by activations, by weights), with LoRA two and three
    of the adapter's.

    Recomputation adds one (Korthikanti et al. 2022, arXiv 2205.05198, §5). Logits are written once.
    """
    once, lora, times = _scored(stage, model, on, rows), stage.lora_rank > 0, 3 + stage.recompute
    flops = (times - lora) * once.flops + 6 * model.adapter(stage.lora_rank) * once.tokens
    stepped = (
        stage.steps * STEP_BYTES * (model.adapter(stage.lora_rank) if lora else model.parameters)
    )
    values = (
        times * written(model, once.tokens, stage.whole / 2, lora=lora)
        + LOGIT_VALUES * model.vocabulary * once.tokens
    )
    return Phase(
        once.tokens, flops, times * once.streamed + stepped, values, passes=0, trained=once.passes
    )


def predicted_seconds(
    stage: Stage, model: Shape, on: Device, gpus: int = 1, rows: int = BATCH
) -> float:
    """Seconds of a stage on `gpus` devices (see this module's formula)."""
    total = 0.0
    for phase in phases(stage, model, on, rows):
        work = max(
            phase.flops / (on.use * on.flops), phase.streamed / (on.memory_use * on.bandwidth)
        )
        forward = phase.passes * (model.layers * on.launch + on.pass_launch)
        trained = phase.trained * (model.layers * on.train_launch + 3 * on.pass_launch)
        total += (work + phase.values * on.value + trained) / gpus + forward
    return total


def cache_bytes(model: Shape, tokens: float, number: int = 2) -> float:
    """Keys and values of a text: 2 · layers · k numbers a token."""
    return 2 * model.layers * model.key * number * tokens


def training_bytes(model: Shape, stage: Stage, number: int = 2) -> float:
    """Weights, gradients and Adam's states, and the activations of `rows` rows of the longest
    length.

    Once in all: several devices share the rows as they share the states (sequence parallelism).
    With rows of its own on each, as data parallelism has them, a plan may need a third more
    devices.

    All weights: STATE_BYTES each; LoRA: `number` a weight, STATE_BYTES an adapter's. A block keeps
    4d + 2q + 2k + 4f values a token for its backward pass (inputs of norms, projections, attention,
    gate); with recomputation its input only, and one block's values at a time. Logits: one in
    `number` bytes, one widened and one gradient in 4 (after Korthikanti et al. 2022, §4, for a
    gated net, without attention scores, which fused kernels do not keep).
    """
    lora = number * model.parameters + STATE_BYTES * model.adapter(stage.lora_rank)
    states = lora if stage.lora_rank else STATE_BYTES * model.parameters
    tokens = stage.rows * (stage.prompt + max(stage.longest, stage.length) + stage.suffix)
    block = 4 * model.width + 2 * model.query + 2 * model.key + 4 * model.ffn
    kept = model.layers * model.width + block if stage.recompute else model.layers * block
    return states + tokens * (kept * number + model.vocabulary * (number + 8))


def memory_bytes(stage: Stage, model: Shape, on: Device, gpus: int = 1) -> tuple[float, int]:
    """Bytes that a stage needs in all, and how many trajectories are sampled side by side in what
    `gpus` devices leave free.

    Sampling: weights and the caches of those rows, at the mean length under a serving engine and at
    the limit in the kit's own loop, FEWEST rows at least, and one of the longest. Landscape:
    weights, two directions and the place written to.
    """
    weights, trained = model.parameters * on.number, training_bytes(model, stage, on.number)
    longest = cache_bytes(model, stage.prompt + stage.longest + stage.suffix, on.number)
    row = longest if on.eager else cache_bytes(model, stage.prompt + stage.length, on.number)
    room = int((gpus * FILL * on.memory - weights) / max(row, 1))
    rows = max(min(stage.side, FEWEST), min(stage.side, room))
    sampled = weights + max(rows * row, longest)
    needed = {
        "probe": weights + longest,
        "landscape": 4 * weights,
        "sample": sampled,
        "sft": trained,
        "dpo": trained if stage.lora_rank else trained + weights,  # the model that it started from
        "grpo": max(trained, sampled),
    }
    return needed[stage.kind], rows
