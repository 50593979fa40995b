"""The embedded teacher: conditional diffusion of wavelet coefficients at the resolution of the LR image.

B batch, h w height and width of the LR image, s scale, J = log2(s) wavelet levels, K = 3 s^2 coefficient channels.

What is diffused is the J-level Haar transform of the residual HR - bicubic(LR), all sub-bands folded to LR resolution,
so one network evaluation at x4 costs a sixteenth of one in pixels. The network predicts the clean coefficients
("sample" prediction) from the noisy ones and the LR image; at the first, pure-noise step that is the regression to the
mean, and the steps after it refine. The scheduler is a DDIMScheduler with zero terminal SNR, so sampling with eta 0 is a
function of the LR image and the initial noise alone.

The residual start follows the idea of ResShift (Yue et al., 2023: carry structure by the LR image, diffuse the rest);
zero terminal SNR is from Lin et al., 2024 (arXiv:2305.08891).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DModel
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from pipeline.errors import DtkdError
from pipeline.wavelet import Pyramid, decompose, reconstruct


def fold(x: Tensor, levels: int) -> Tensor:
    """Haar coefficients of images (B, 3, s h, s w), folded to LR resolution: (B, 3 s^2, h, w), coarse bands first."""
    low, details = decompose(x, levels)
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
    return reconstruct(Pyramid(low, tuple(details)))


def upsample(lr: Tensor, scale: int) -> Tensor:
    """The bicubic base (B, 3, s h, s w) that the diffused residual is added to."""
    return F.interpolate(lr, scale_factor=scale, mode="bicubic", align_corners=False)


class HaarDiffusionPipeline(DiffusionPipeline):
    """A diffusers pipeline of a UNet2DModel over (noisy coefficients, LR image) and a DDIMScheduler.

    Args:
        unet: `in_channels` = 3 s^2 + 3, `out_channels` = 3 s^2, predicts the clean scaled coefficients.
        scheduler: prediction_type "sample", trailing spacing, zero terminal SNR, no clipping.
        scale: 2, 4 or 8.
        band_scale: one factor a wavelet level, LL first, then coarse to fine (J + 1 numbers): coefficients are divided
            by it before diffusion, so that their spread relative to the unit noise is what training chose.
        temperature: standard deviation of the initial noise. 1 samples the model; less trades texture for cleanness.
        steps: default number of network evaluations (NFE).
    """

    def __init__(
        self,
        unet: UNet2DModel,
        scheduler: DDIMScheduler,
        scale: int = 4,
        band_scale: Sequence[float] = (1.0, 1.0, 1.0),
        temperature: float = 1.0,
        steps: int = 15,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(scale=scale, band_scale=list(band_scale), temperature=temperature, steps=steps)
        self.levels = int(math.log2(scale))
        if len(band_scale) != self.levels + 1 or unet.config.in_channels != 3 * scale**2 + 3:
            raise DtkdError(
                f"a x{scale} teacher needs {self.levels + 1} band scales and {3 * scale**2 + 3} UNet inputs, "
                f"got {len(band_scale)} and {unet.config.in_channels}"
            )
        factors = [band_scale[0]] * 3
        for j in range(1, self.levels + 1):
            factors += [band_scale[j]] * (9 * 4 ** (j - 1))
        self._factors = torch.tensor(factors).view(1, -1, 1, 1)

    def encode(self, hr: Tensor, lr: Tensor) -> Tensor:
        """Scaled coefficients (B, K, h, w) of the residual between HR (B, 3, s h, s w) and bicubic LR (B, 3, h, w)."""
        return fold(hr - upsample(lr, self.config.scale), self.levels) / self._factors.to(hr.device)

    def decode(self, z: Tensor, lr: Tensor) -> Tensor:
        """Images (B, 3, s h, s w), not clipped, from scaled coefficients (B, K, h, w) and the LR image."""
        return unfold(z * self._factors.to(z.device), self.levels) + upsample(lr, self.config.scale)

    def predict(self, noisy: Tensor, t: Tensor, lr: Tensor) -> Tensor:
        """The clean scaled coefficients that the network sees in the noisy ones at timesteps t (B,)."""
        return self.unet(torch.cat((noisy, lr * 2 - 1), 1), t, return_dict=False)[0]

    @torch.inference_mode()
    def __call__(
        self, lr: Tensor, generator: Sequence[torch.Generator], num_inference_steps: int | None = None
    ) -> Tensor:
        """Restore LR images (B, 3, h, w) in [0, 1] to (B, 3, s h, s w) in [0, 1], one generator an image.

        h and w must be multiples of the UNet's total downsampling; `teachers.load` pads for its callers.
        """
        self.scheduler.set_timesteps(num_inference_steps or self.config.steps, device=lr.device)
        shape = (lr.shape[0], 3 * self.config.scale**2, *lr.shape[-2:])
        z = randn_tensor(shape, generator=list(generator), device=lr.device, dtype=torch.float32) * self.config.temperature
        for t in self.progress_bar(self.scheduler.timesteps):
            with torch.autocast(lr.device.type, torch.bfloat16, enabled=self.unet.dtype == torch.bfloat16):
                clean = self.predict(z, t.expand(lr.shape[0]), lr).float()
            z, clean = self.scheduler.step(clean, t, z, eta=0.0, return_dict=False)
        # The clean prediction, not z: where 1000 is no multiple of the steps, DDIMScheduler leaves some noise in z.
        return self.decode(clean, lr).clamp(0, 1)
