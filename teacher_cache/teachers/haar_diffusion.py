"""The embedded teacher: predict, then refine by conditional diffusion of wavelet coefficients at LR resolution.

B batch, h w height and width of the LR image, s scale, J = log2(s) wavelet levels, K = 3 s^2 coefficient channels.

Both networks work on the J-level Haar transform of a picture in luma and two colour differences, all sub-bands folded
to LR resolution, so that one evaluation at x4 costs a sixteenth of one in pixels. The predictor turns the LR image into
the expected picture at once. What is left, HR - prediction, is diffused: the network (`unet`) predicts the clean
residual ("sample" prediction) from the noisy one, the prediction and the LR image. The scheduler is a DDIMScheduler
with zero terminal SNR, so sampling with eta 0 is a function of the LR image and the initial noise alone. The coarsest
band takes the network's first answer, which is the mean of what it may be: a sample's would shift each tile's tone.

To carry structure deterministically and diffuse only a small residual follows ResShift (Yue et al., 2023) and SRDiff
(Li et al., 2022); zero terminal SNR is from Lin et al., 2024 (arXiv:2305.08891). Why: LOG.md, 2026-11-23.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from pipeline.system.errors import DtkdError
from pipeline.wavelet import Pyramid, decompose, reconstruct

_OPPONENT = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
_OPPONENT = _OPPONENT / _OPPONENT.norm(dim=1, keepdim=True)  # orthonormal: luma, red - blue, green against both


def fold(x: Tensor, levels: int) -> Tensor:
    """Haar coefficients of images (B, 3, s h, s w), folded to LR resolution: (B, 3 s^2, h, w).

    Coarse bands come first; within a level, luma before the two colour differences. The transform is orthonormal.
    """
    low, details = decompose(torch.einsum("dc,bchw->bdhw", _OPPONENT.to(x.device), x), levels)
    parts = [low]
    for j in range(levels, 0, -1):
        parts.append(F.pixel_unshuffle(details[j - 1].flatten(1, 2), 2 ** (levels - j)))
    return torch.cat(parts, 1)


def unfold(z: Tensor, levels: int) -> Tensor:
    """Invert `fold`: (B, 3 s^2, h, w) to images (B, 3, s h, s w)."""
    low, rest, details = z[:, :3], z[:, 3:], []
    for j in range(levels, 0, -1):
        step = 2 ** (levels - j)
        band, rest = rest[:, : 9 * step**2], rest[:, 9 * step**2 :]
        details.insert(0, F.pixel_shuffle(band, step).unflatten(1, (3, 3)))
    return torch.einsum("dc,bdhw->bchw", _OPPONENT.to(z.device), reconstruct(Pyramid(low, tuple(details))))


def band_channels(levels: int) -> list[int]:
    """How many of `fold`'s channels LL and each level, coarse to fine, take; the first third of each is luma."""
    return [3, *(9 * 4**k for k in range(levels))]


def upsample(lr: Tensor, scale: int) -> Tensor:
    """The bicubic base (B, 3, s h, s w) that prediction and diffused residual are added to."""
    return F.interpolate(lr, scale_factor=scale, mode="bicubic", align_corners=False)


class HaarDiffusionPipeline(DiffusionPipeline):
    """A diffusers pipeline of a predictor, a refining network and a DDIMScheduler.

    Args:
        predictor: a UNet2DModel from the LR image (3 channels, timestep 0) to K coefficients of HR - bicubic(LR).
        unet: a UNet2DModel from 2 K + 3 channels (noisy residual, prediction, LR image) to the K clean ones.
        scheduler: prediction_type "sample", trailing spacing, zero terminal SNR, no clipping.
        scale: 2, 4 or 8.
        band_scale: (luma, colour) for LL, then for each level from coarse to fine (J + 1 pairs): the residual's
            coefficients are divided by these before diffusion, which sets their spread relative to the unit noise;
            all 1 where None.
        temperature: standard deviation of the initial noise. 1 samples the model; less trades texture for cleanness.
        steps: default number of network evaluations of the refinement (NFE).
    """

    predictor: UNet2DModel
    unet: UNet2DModel
    scheduler: DDIMScheduler

    def __init__(
        self,
        predictor: UNet2DModel,
        unet: UNet2DModel,
        scheduler: DDIMScheduler,
        scale: int = 4,
        band_scale: list[list[float]] | None = None,
        temperature: float = 1.0,
        steps: int = 10,
    ) -> None:
        """Take networks, scheduler and settings; see the class."""
        super().__init__()
        self.register_modules(predictor=predictor, unet=unet, scheduler=scheduler)
        pairs = [list(pair) for pair in band_scale or [[1.0, 1.0]] * (int(math.log2(scale)) + 1)]
        self.register_to_config(scale=scale, band_scale=pairs, temperature=temperature, steps=steps)
        self.scale, self.levels = scale, int(math.log2(scale))
        inputs, expected = unet.config["in_channels"], 6 * scale**2 + 3
        if len(pairs) != self.levels + 1 or inputs != expected:
            raise DtkdError(
                f"a x{scale} teacher needs {self.levels + 1} band scales and {expected} UNet inputs, "
                f"got {len(pairs)} and {inputs}"
            )

    def predict(self, lr: Tensor, predictor: torch.nn.Module | None = None) -> Tensor:
        """Coefficients (B, K, h, w) of what HR is expected to have beyond bicubic(LR), LR (B, 3, h, w) in [0, 1].

        `predictor` stands in for the pipeline's own, for a wrapped one in training.
        """
        t = torch.zeros(lr.shape[0], dtype=torch.long, device=lr.device)
        return (predictor or self.predictor)(lr * 2 - 1, t, return_dict=False)[0].float()

    def refine(
        self, noisy: Tensor, t: Tensor, prediction: Tensor, lr: Tensor, unet: torch.nn.Module | None = None
    ) -> Tensor:
        """The clean scaled residual that the network sees in the noisy one at timesteps t (B,)."""
        seen = torch.cat((noisy, prediction / self.band_factors(lr.device), lr * 2 - 1), 1)
        return (unet or self.unet)(seen, t, return_dict=False)[0].float()

    def encode(self, hr: Tensor, lr: Tensor) -> Tensor:
        """Coefficients (B, K, h, w) of HR (B, 3, s h, s w) beyond bicubic(LR), LR (B, 3, h, w)."""
        return fold(hr - upsample(lr, self.scale), self.levels)

    def decode(self, z: Tensor, lr: Tensor) -> Tensor:
        """Images (B, 3, s h, s w), not clipped, from coefficients (B, K, h, w) beyond bicubic(LR)."""
        return unfold(z, self.levels) + upsample(lr, self.scale)

    def band_factors(self, device: torch.device) -> Tensor:
        """`band_scale` for every channel, (1, K, 1, 1)."""
        factors = []
        for (luma, colour), count in zip(self.config["band_scale"], band_channels(self.levels), strict=True):
            factors += [luma] * (count // 3) + [colour] * (count // 3 * 2)
        return torch.tensor(factors, device=device).view(1, -1, 1, 1)

    @torch.inference_mode()
    def __call__(
        self, lr: Tensor, generator: Sequence[torch.Generator], num_inference_steps: int | None = None
    ) -> Tensor:
        """Restore LR images (B, 3, h, w) in [0, 1] to (B, 3, s h, s w) in [0, 1], one generator an image.

        h and w must be multiples of the networks' total downsampling; `teachers.load` pads for its callers.
        """
        self.scheduler.set_timesteps(num_inference_steps or self.config["steps"], device=lr.device)
        shape = (lr.shape[0], 3 * self.scale**2, *lr.shape[-2:])
        z = randn_tensor(shape, generator=list(generator), device=lr.device, dtype=torch.float32)
        z = z * self.config["temperature"]
        clean = torch.zeros_like(z)
        low = clean[:, :3]
        with torch.autocast(lr.device.type, torch.bfloat16, enabled=self.unet.dtype == torch.bfloat16):
            prediction = self.predict(lr)
            for number, t in enumerate(self.scheduler.timesteps):
                clean = self.refine(z, t.expand(lr.shape[0]), prediction, lr)
                if number == 0:
                    low = clean[:, :3].clone()
                z, clean = self.scheduler.step(clean, int(t), z, eta=0.0, return_dict=False)
        clean[:, :3] = low
        # The clean residual, not z: where 1000 is no multiple of the steps, DDIMScheduler leaves some noise in z.
        return self.decode(prediction + clean * self.band_factors(lr.device), lr).clamp(0, 1)
