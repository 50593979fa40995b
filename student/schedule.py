"""The weight of the distillation loss as a pure function of the step.

No state to save, and a resumed run needs nothing but its step. `step` counts finished optimiser steps,
0 <= step < total.
"""

import math

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
