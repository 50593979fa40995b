"""Colours of a teacher's picture set right by its LR image, as StableSR's `wavelet_color_fix.py` does.

B batch, C channels, h w height and width of the LR image, H W of the picture.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.teacher import Place, Teacher
from teacher_cache.teachers.settings import ColourFix

LEVELS = 5
"""Of the wavelet: the smoothing's reach doubles at each, so that what is left is coarser than 2**5 pixels."""
_EPSILON = 1e-5  # added to variances, so that a flat picture can be divided by its deviation


class ColourFixed(Teacher):
    """A teacher whose pictures get the colours of their LR images."""

    def __init__(self, teacher: Teacher, fix: ColourFix) -> None:
        """Take over what the teacher is, but for its pictures."""
        self._teacher = teacher
        self._fix: ColourFix = fix
        self.name, self.scale, self.sees_context = teacher.name, teacher.scale, teacher.sees_context
        self.parameters, self.trained_on, self.about = teacher.parameters, teacher.trained_on, teacher.about

    @property
    def steps(self) -> int:
        """See Teacher."""
        return self._teacher.steps

    @steps.setter
    def steps(self, steps: int) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._teacher.steps = steps  # as `dtkd bench teacher` does

    def restore(self, lr: Tensor, seeds: Sequence[int]) -> Tensor:
        """See Teacher."""
        return fix_colour(self._teacher.restore(lr, seeds), lr, self._fix)

    def restore_at(self, lr: Tensor, seeds: Sequence[int], places: Sequence[Place]) -> Tensor:
        """See Teacher."""
        return fix_colour(self._teacher.restore_at(lr, seeds, places), lr, self._fix)

    def fingerprint(self) -> dict[str, Any]:
        """The teacher's, and the fix."""
        return self._teacher.fingerprint() | {"colour": self._fix}

    def check_photos(self, photos: Iterable[str]) -> None:
        """See Teacher."""
        self._teacher.check_photos(photos)

    def unsuited(self, degradation: str) -> str | None:
        """See Teacher."""
        return self._teacher.unsuited(degradation)


def fix_colour(picture: Tensor, lr: Tensor, fix: ColourFix) -> Tensor:
    """A picture with colours of its LR image.

    Args:
        picture: (B, 3, H, W) in [0, 1].
        lr: (B, 3, h, w) in [0, 1], scaled up to the picture's size with bicubic interpolation.
        fix: `adain`: mean and standard deviation of each channel become the LR image's. `wavelet`: what is coarser
            than 2**LEVELS pixels does, finer detail stays the picture's own.

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    if fix == "none":
        return picture
    up = F.interpolate(lr.to(picture), size=picture.shape[-2:], mode="bicubic", antialias=False)  # (B, 3, H, W)
    fixed = _adain(picture, up) if fix == "adain" else picture - _low(picture) + _low(up)
    return fixed.clamp(0, 1)


def _adain(picture: Tensor, up: Tensor) -> Tensor:
    (mean, deviation), (wanted, spread) = _statistics(picture), _statistics(up)
    return (picture - mean) / deviation * spread + wanted


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, (B, C, 1, 1)."""
    variance, mean = torch.var_mean(x, dim=(2, 3), keepdim=True)
    return mean, (variance + _EPSILON).sqrt()


def _low(x: Tensor) -> Tensor:
    """What the a-trous wavelet transform leaves of (B, C, H, W): (1, 2, 1) / 4 along both sides, its taps spread."""
    taps = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
    channels = x.shape[1]
    rows, columns = (taps.view(1, 1, *side).expand(channels, 1, *side) for side in ((3, 1), (1, 3)))
    for reach in (2**level for level in range(LEVELS)):
        padded = F.pad(x, (reach, reach, reach, reach), mode="replicate")
        x = F.conv2d(F.conv2d(padded, rows, dilation=(reach, 1), groups=channels), columns,
                     dilation=(1, reach), groups=channels)  # fmt: skip
    return x
