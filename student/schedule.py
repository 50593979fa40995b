"""Schedules as pure functions of the step: no state to save, and a resumed run needs nothing but its step.

`step` counts finished optimiser steps, 0 <= step < total.
"""

import math
from collections.abc import Sequence
from typing import Literal

from student.loss import LossSettings


def distill_weight(step: int, total: int, settings: LossSettings) -> float:
    """lambda(t) = lambda_max * r(clip((t / T - start) / length, 0, 1)) with r linear, cosine, constant or reversed.

    A constant schedule is lambda_max from the first step on, whatever `start` and `length` say (r = 1); with length 0
    the others step from 0 to lambda_max at `start`. Reversed is 1 - linear: from the teacher to the ground truth.
    """
    if settings.schedule == "constant":
        return settings.lambda_max
    past_start = step / total - settings.start
    progress = min(max(past_start / settings.length, 0.0), 1.0) if settings.length else float(past_start >= 0)
    if settings.schedule == "cosine":
        progress = (1 - math.cos(math.pi * progress)) / 2
    ramp = 1 - progress if settings.schedule == "reversed" else progress
    return settings.lambda_max * ramp


def learning_rate(
    step: int,
    total: int,
    *,
    peak: float,
    kind: Literal["cosine", "multistep"] = "cosine",
    warmup: int = 0,
    floor: float = 0.0,
    milestones: Sequence[float] = (),
    gamma: float = 0.5,
) -> float:
    """Learning rate of a step.

    Args:
        step: finished optimiser steps.
        total: steps of the whole run.
        peak: learning rate after the warm-up.
        kind: `cosine` falls from `peak` to `floor * peak` at `total`; `multistep` is multiplied by `gamma` at each of
            the `milestones`, fractions of the run, as SwinIR's and BasicSR's recipes do.
        warmup: steps over which it first rises linearly, from peak / warmup.
        floor: last learning rate of the cosine, as a fraction of `peak`.
        milestones: fractions of `total` in (0, 1).
        gamma: factor at each milestone.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if kind == "multistep":
        return peak * gamma ** sum(step >= fraction * total for fraction in milestones)
    progress = (step - warmup) / max(total - warmup, 1)
    return peak * (floor + (1 - floor) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2)


def ema_decay(step: int, limit: float) -> float:
    """Decay of the weights' moving average after `step` steps: warm-up (1 + step) / (10 + step), at most `limit`."""
    return min(limit, (1 + step) / (10 + step))
