"""Checkers for the exercises of the outer loop's notebooks: tiny reasoner, LoRA, support-set size, generalisation.

As in `exercises`, a checker returns True for a right solution, False for a wrong one and None for one not attempted.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from tml_lib.claims.stats import mg_pass_at_k
from tml_lib.data import programs
from tml_lib.lessons.exercises.first_lessons import say


def check_orders(attempt: Callable | None) -> bool | None:
    """Exercise: orders(steps), the number of valid orders of the statements of two independent chains of `steps` each."""
    if attempt is None:
        return say("not attempted")
    wanted = {steps: math.comb(2 * steps, steps) for steps in (1, 2, 3, 5)}
    got = {steps: attempt(steps) for steps in wanted}
    if got == wanted:
        return say("right: choose the places of one chain's statements, C(2n, n); the rest is forced", True)
    bad = next(steps for steps in wanted if got[steps] != wanted[steps])
    hints = {
        math.factorial(2 * bad): "that counts orders in which a chain runs backwards",
        math.factorial(2 * bad) // math.factorial(bad): "only one of the chains keeps its order in your count",
        2**bad: "at each step either chain may go on, but there are 2n steps, and both must end",
        2 ** (2 * bad): "at each step either chain may go on, but each must be taken exactly n times",
    }
    hint = hints.get(got[bad], "list them for n = 2: AABB, ABAB, ...")
    return say(f"not yet: for {bad} statements a chain you return {got[bad]}, expected {wanted[bad]}; {hint}", False)


def check_outer_loss(attempt: Callable | None) -> bool | None:
    """Exercise: outer_loss(log_probs, starts) of a batch: minus the mean log-probability of all learnt tokens.

    log_probs: list of (T,) arrays, the log-probability of every token of a row, nats; starts: where I ⊕ q ends in each.
    """
    if attempt is None:
        return say("not attempted")
    rows = [np.array([-9.0, -1.0, -3.0]), np.array([-5.0, -7.0, -2.0, -2.0, -2.0, -2.0])]
    got = float(attempt(rows, [1, 2]))
    if np.isclose(got, 2.0):
        return say("right: every learnt token counts once, the question not at all", True)
    hints = {
        33 / 9: "that counts the question's tokens too; the model is not trained to write questions",
        -2.0: "the sign: a loss is minus a log-probability",
        12.0: "that is the sum; divide by the number of learnt tokens",
        6.0: "that is a sum over tokens and a mean over rows",
    }
    hint = next(
        (text for wrong, text in hints.items() if np.isclose(got, wrong)), "which tokens are learnt, and how many are they?"
    )
    return say(f"not yet: you return {got:.3g}, expected 2; {hint}", False)


def check_repeats(attempt: Callable | None) -> bool | None:
    """Exercise: repeats(steps, batch, questions, size), how often each distinct trajectory is trained on."""
    if attempt is None:
        return say("not attempted")
    cases = {(400, 64, 400, 1): 64.0, (400, 64, 400, 32): 2.0, (100, 8, 40, 4): 5.0}
    for case, wanted in cases.items():
        got = float(attempt(*case))
        if not np.isclose(got, wanted):
            hint = (
                "are the steps' batches counted?"
                if np.isclose(got * case[1], wanted)
                else "rows, by questions, by trajectories"
            )
            if np.isclose(got, wanted * case[3]):
                hint = "that is how often a *question* is seen; its visits are shared among its trajectories"
            return say(f"not yet: for {case} you return {got:g}, expected {wanted:g}; {hint}", False)
    return say("right: every question is visited equally often; only the repeats change", True)


def check_majority(attempt: Callable | None) -> bool | None:
    """Exercise: majority(right, n, k), mG-Pass@k of one question from `right` right ones of n samples (RaML Eq. 23)."""
    if attempt is None:
        return say("not attempted")
    for right in (0, 5, 8, 12, 16):
        got, wanted = float(attempt(right, 16, 8)), mg_pass_at_k(16, right, 8)
        if not np.isclose(got, wanted):
            hint = "the outer sum runs over the thresholds k/2 + 1, ..., k and has the factor 2/k in front"
            if np.isclose(got, wanted * 8 / 2):
                hint = "the factor 2/k is missing"
            return say(f"not yet: for {right} right of 16 and k = 8 you return {got:.4f}, expected {wanted:.4f}; {hint}", False)
    return say("right: one right sample is not enough, a majority of the k must be", True)


def check_same_program(attempt: Callable | None) -> bool | None:
    """Exercise: same(text, other), whether two questions are one program but for letters and the order of lines."""
    if attempt is None:
        return say("not attempted")
    base = "a=1 b=2\nc:= a+3\nd:= b*2\n?c ?d"
    cases = (
        ("c=1 e=2\na:= c+3\nf:= e*2\n?a ?f", True, "letters are only names"),
        ("a=1 b=2\nd:= b*2\nc:= a+3\n?d ?c", True, "the order of lines and of the letters asked for does not matter"),
        ("a=2 b=1\nd:= b+3\nc:= a*2\n?c ?d", True, "which chain stands first does not matter"),
        ("a=1 b=2\nc:= a+4\nd:= b*2\n?c ?d", False, "another literal is another program"),
        ("a=1 b=2\nc:= b+3\nd:= a*2\n?c ?d", False, "the operations belong to the other start values there"),
    )
    for other, wanted, why in cases:
        if bool(attempt(base, other)) != wanted:
            return say(f"not yet: {other!r} is {'the same as' if wanted else 'another than'} {base!r}: {why}", False)
    held_out = {programs.is_held_out(programs.parse(text)) for text in (base, cases[0][0], cases[1][0], cases[2][0])}
    assert len(held_out) == 1  # what the kit's own splits rest on
    return say("right: compare what is left of each chain, its start and operations, as sets", True)


def check_nested(attempt: Callable | None) -> bool | None:
    """Exercise: resampled_mean(groups, rng): draw as many groups with replacement, resample within each, mean of the means.

    groups: list of (n,) arrays, one per seed; rng: numpy Generator. Checked by the spread of 2000 such means.
    """
    if attempt is None:
        return say("not attempted")
    draw = np.random.default_rng(0)
    groups = [draw.normal(centre, 6.0, 20) for centre in (-1.0, 0.0, 1.0, 2.0)]
    rng = np.random.default_rng(1)
    got = float(np.std([attempt(groups, rng) for _ in range(2000)]))
    centres = np.array([group.mean() for group in groups])
    between, within = centres.var() / 4, float(np.mean([group.var() / 20 for group in groups])) / 4
    if abs(got - np.sqrt(between + within)) < 0.03 * np.sqrt(between + within) + 0.01:
        return say("right: both the choice of seeds and the choice of questions vary", True)
    hint = "resample groups first, then values within each drawn group"
    if abs(got - np.sqrt(within)) < 0.03:
        hint = "only the questions vary; another lab would also have other seeds"
    elif abs(got - np.sqrt(between)) < 0.02:
        hint = "only the seeds vary; draw the values within each again"
    return say(f"not yet: your means spread by {got:.3f}, expected {np.sqrt(between + within):.3f}; {hint}", False)


def check_adapter_size(attempt: Callable | None) -> bool | None:
    """Exercise: adapter_size(shapes, rank), the parameters of a LoRA adapter on matrices of (outputs, inputs)."""
    if attempt is None:
        return say("not attempted")
    shapes, rank = [(576, 576), (192, 576), (1536, 576)], 4
    got, wanted = attempt(shapes, rank), 4 * (1152 + 768 + 2112)
    if got == wanted:
        return say("right: A is (rank, inputs) and B is (outputs, rank), so a matrix costs rank * (outputs + inputs)", True)
    hints = {
        sum(out * into for out, into in shapes): "those are the matrices themselves, which stay frozen",
        rank * sum(out * into for out, into in shapes): "a factor is long in one direction only: outputs or inputs, not both",
        rank * sum(out for out, _ in shapes): "that is B alone; A maps the inputs down to the rank",
        rank * sum(into for _, into in shapes): "that is A alone; B maps the rank up to the outputs",
        wanted // rank: "that is a single rank's worth",
    }
    return say(f"not yet: you return {got}, expected {wanted}; {hints.get(got, 'write down the shapes of A and B')}", False)


def check_merged(attempt: Callable | None) -> bool | None:
    """Exercise: merged(weight, a, b, alpha), the matrix that does what weight and adapter do together.

    weight (outputs, inputs), a (rank, inputs), b (outputs, rank); alpha scales as in peft, alpha / rank.
    """
    if attempt is None:
        return say("not attempted")
    draw = np.random.default_rng(0)
    weight, a, b, alpha = draw.normal(size=(5, 3)), draw.normal(size=(2, 3)), draw.normal(size=(5, 2)), 6.0
    got, wanted = np.asarray(attempt(weight, a, b, alpha)), weight + 3.0 * b @ a
    if got.shape == wanted.shape and np.allclose(got, wanted):
        return say("right: W + (alpha / rank) B A; after merging nothing of the adapter is left to compute", True)
    wrong = {
        "you left out the scale alpha / rank": weight + b @ a,
        "the scale is alpha / rank, not alpha": weight + 6.0 * b @ a,
    }
    wrong |= {"that is the change alone; the frozen matrix is still there": 3.0 * b @ a}
    close = (text for text, table in wrong.items() if got.shape == table.shape and np.allclose(got, table))
    hint = next(close, f"expected shape {wanted.shape}, got {got.shape}; which product of a and b has the shape of the weight?")
    return say(f"not yet: {hint}", False)
