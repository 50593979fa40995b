"""The losses of a teacher's two networks, and what scales the second one.

B batch of this process, h w LR patch, s scale, K coefficient channels (see `haar_diffusion`).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from teacher_cache.teachers.haar_diffusion import HaarDiffusionPipeline, band_channels
from teacher_cache.training.patches import PatchDataset, generator
from teacher_cache.training.state import TRAIN_TIMESTEPS

SNR_CAP = 5.0
"""Largest loss weight: errors of the clean coefficients count 1 / (1 - alpha_bar), as in v-prediction, up to this."""
WHITENING_PATCHES = 96


def prediction_loss(pipe: HaarDiffusionPipeline, lr: Tensor, hr: Tensor, predictor: nn.Module) -> Tensor:
    """Mean absolute error of the predicted pictures."""
    return (pipe.decode(pipe.predict(lr, predictor), lr) - hr).abs().mean()


def refinement_loss(
    pipe: HaarDiffusionPipeline, lr: Tensor, hr: Tensor, t: Tensor, noise: Tensor, unet: nn.Module
) -> Tensor:
    """Weighted squared error of the clean scaled residual, seen through `noise` (B, K, h, w) at timesteps t (B,)."""
    with torch.no_grad():
        prediction = pipe.predict(lr)
    clean = (pipe.encode(hr, lr) - prediction) / pipe.band_factors(lr.device)  # (B, K, h, w)
    a = pipe.scheduler.alphas_cumprod.to(lr.device)[t].view(-1, 1, 1, 1)
    seen = pipe.refine(a.sqrt() * clean + (1 - a).sqrt() * noise, t, prediction, lr, unet)
    return ((1 / (1 - a)).clamp(max=SNR_CAP) * (seen - clean).square()).mean()


def draw(step: int, seed: int, lr: Tensor, scale: int, rank: int, world: int) -> tuple[Tensor, Tensor]:
    """This rank's timesteps (b,), spread evenly over the schedule within the global batch, and noise (b, K, h, w)."""
    share = lr.shape[0]
    source = torch.Generator().manual_seed(int(generator(seed, "noise", step).integers(2**62)))
    spread = (torch.rand(1, generator=source) + torch.arange(share * world) / (share * world)) % 1
    noise = torch.randn((share * world, 3 * scale**2, *lr.shape[-2:]), generator=source)
    mine = slice(rank * share, (rank + 1) * share)
    return (spread[mine] * TRAIN_TIMESTEPS).long().to(lr.device), noise[mine].to(lr.device)


@torch.no_grad()
def band_scale(
    pipe: HaarDiffusionPipeline, patches: PatchDataset, whitening: float, autocast: Callable[[], AbstractContextManager]
) -> list[list[float]]:
    """Divisors of the refinement's coefficients, (luma, colour) for each band, from what the predictor leaves.

    A divisor is the residual's spread in luma or colour of a level to the power `whitening`, normalised so that the
    largest spread becomes 1. Measured on patches of negative indices, which training never sees; `autocast` gives the
    precision of the prediction.
    """
    residuals = []
    for start in range(-WHITENING_PATCHES, 0, 8):
        lr, hr = (images.to(pipe.device) for images in patches.batch(range(start, start + 8)))
        with autocast():
            prediction = pipe.predict(lr)
        residuals.append((pipe.encode(hr, lr) - prediction).cpu())
    spread = []
    for band in torch.cat(residuals).split(band_channels(pipe.levels), 1):
        third = band.shape[1] // 3
        spread.append([band[:, :third].std().item(), band[:, third:].std().item()])
    top = max(max(pair) for pair in spread)
    return [[round(top * (s / top) ** whitening, 6) for s in pair] for pair in spread]
