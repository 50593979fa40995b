"""What changes in the distillation loss during training, as pure functions of the step: its weight, its grid.

No state to save, and a resumed run needs nothing but its step. `step` counts finished optimiser steps,
0 <= step < total.
"""

import math

import numpy as np

from student.loss import ENERGY_WINDOW, LossSettings


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


def grid_shift(step: int, seed: int, settings: LossSettings) -> tuple[int, int]:
    """Pixels, down and right, that the images move under the transform's grid: any of a window, for cycle spinning.

    The same on all processes of a training.
    """
    if not settings.cycle_spinning:
        return 0, 0
    down, right = np.random.default_rng([seed, step]).integers(ENERGY_WINDOW, size=2).tolist()
    return down, right
