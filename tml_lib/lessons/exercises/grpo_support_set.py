"""Checkers for the exercises on GRPO's support set: the noise of a part of a group, and the time
that it saves.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tml_lib.lessons.exercises.checking import checker, say


@checker
def check_kept_variance(attempt: Callable | None) -> bool | None:
    """Exercise: variance(values, n), of the mean of n of the G values, drawn without replacement:
    S²/n (1 - n/G).

    values: (G,) array; S² is their variance with G - 1 below.
    """
    if attempt is None:
        return say("not attempted")
    values = np.array([3.0, -1.0, 0.5, 0.0, -2.0, 1.0])
    size = len(values)
    for n in (2, 1, size):
        spread, whole = values.var(ddof=1), values.var()
        got, wanted = float(attempt(values.copy(), n)), spread / n * (1 - n / size)
        if np.isclose(got, wanted, atol=1e-6):
            continue
        replaced = (
            "that is for draws *with* replacement; of all G there is only one choice, so the"
            " variance there is 0"
        )
        hints = {
            whole
            / n
            * (
                1 - n / size
            ): "without replacement the variance has G - 1 below: numpy wants ddof=1",
            spread / n: replaced,
            whole / n: replaced,
            spread * (1 - n / size): "divide by n: a mean of more varies less",
            wanted**0.5: "that is the standard deviation; square it",
        }
        hint = next(
            (text for value, text in hints.items() if np.isclose(got, value)),
            "compare with many random draws",
        )
        return say(
            f"not yet: for {values.tolist()} and n={n} you return {got:.3g}, not {wanted:.3g};"
            f" {hint}",
            False,
        )
    return say(
        "right: on average it is the whole mean, and all that a larger n buys is less noise", True
    )


@checker
def check_speedup(attempt: Callable | None) -> bool | None:
    """Exercise: speedup(sampling, update, n), how many steps on n of 16 samples take the time of
    one on all 16.

    sampling, update: seconds of a step on all 16; a step on n takes all of the former and n/16 of
    the latter.
    """
    if attempt is None:
        return say("not attempted")
    for sampling, update, n in ((3.0, 1.0, 4), (1.0, 1.0, 1), (2.0, 3.0, 16)):
        got, wanted = (
            float(attempt(sampling, update, n)),
            (sampling + update) / (sampling + update * n / 16),
        )
        if np.isclose(got, wanted, atol=1e-6):
            continue
        hints = {
            16 / n: "only the update gets shorter; all 16 are still written",
            1 / wanted: (
                "that is the share of the time that is left; how many such steps fit into the old"
                " time?"
            ),
        }
        hint = next(
            (text for value, text in hints.items() if np.isclose(got, value)),
            "old time of a step over the new one",
        )
        shown = f"sampling={sampling:g}, update={update:g}, n={n}"
        return say(f"not yet: for {shown} you return {got:.3g}, not {wanted:.3g}; {hint}", False)
    return say(
        "right: where writing the samples takes most of the time, following fewer of them saves"
        " little",
        True,
    )
