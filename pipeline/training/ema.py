"""The moving average of a network's weights, which is what is validated and exported."""

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn


def ema_decay(step: int, limit: float) -> float:
    """Decay of the weights' moving average after `step` steps: warm-up (1 + step) / (10 + step), at most `limit`."""
    return min(limit, (1 + step) / (10 + step))


@torch.no_grad()
def average(averaged: torch.nn.Module, network: torch.nn.Module, decay: float) -> None:
    """Take one step of the average: averaged = decay * averaged + (1 - decay) * network."""
    get_ema_multi_avg_fn(decay)(list(averaged.parameters()), list(network.parameters()), None)
