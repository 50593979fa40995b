"""The learning rate as a pure function of the step: no state to save, and a resumed run needs nothing but its step.

`step` counts finished optimiser steps, 0 <= step < total.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch


def learning_rate(
    step: int,
    total: int,
    *,
    peak: float,
    kind: Literal["cosine", "multistep", "linear"] = "cosine",
    warmup: int = 0,
    floor: float = 0.0,
    milestones: Sequence[float] = (),
    gamma: float = 0.5,
    decay: float = 1.0,
) -> float:
    """Learning rate of a step.

    Args:
        step: finished optimiser steps.
        total: steps of the whole run.
        peak: learning rate after the warm-up.
        kind: `cosine` falls from `peak` to `floor * peak` at `total`; `multistep` is multiplied by `gamma` at each of
            the `milestones`, fractions of the run, as SwinIR's and BasicSR's recipes do; `linear` stays at `peak` and
            falls linearly to zero over the last `decay` of the run.
        warmup: steps over which it first rises linearly, from peak / warmup.
        floor: last learning rate of the cosine, as a fraction of `peak`.
        milestones: fractions of `total` in (0, 1).
        gamma: factor at each milestone.
        decay: fraction of `total` over which `linear` falls.
    """
    if kind == "linear":  # the lowest of its three parts, so that a run shorter than its warm-up falls, too
        return peak * min(1.0, (step + 1) / max(warmup, 1), (total - step) / max(decay * total, 1))
    if step < warmup:
        return peak * (step + 1) / warmup
    if kind == "multistep":
        return peak * gamma ** sum(step >= fraction * total for fraction in milestones)
    progress = (step - warmup) / max(total - warmup, 1)
    return peak * (floor + (1 - floor) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter of an optimiser this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
