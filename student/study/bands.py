"""Figures of one tile's sub-bands: mean squares, products and distances, whose means over tiles an audit is made of.

H W height and width of the HR tile, h w of the LR tile, s scale.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.fidelity import psnr_y
from pipeline.images import to_image
from pipeline.wavelet import decompose


class Figures(NamedTuple):
    """Means over one tile's coefficients of a band; T' and S0 are NaN where there is none."""

    bicubic: float  # mean squares
    gt: float
    teacher: float
    student: float
    again: float  # of T'
    product: float  # mean T T'
    added: float  # mean square of T - bicubic, then of T' - bicubic, then mean product
    added_again: float
    added_product: float
    size: float  # mean |T|
    from_gt: float  # mean |T - GT|
    from_student: float  # mean |T - S0|


class Pictures(NamedTuple):
    """One tile, (1, 3, H, W) each."""

    bicubic: Tensor
    gt: Tensor
    teacher: Tensor
    student: Tensor | None
    again: Tensor | None


def bicubic(lr: Tensor, scale: int) -> Tensor:
    """Bicubic upscaling of (B, 3, h, w) in [0, 1] to (B, 3, s h, s w) in [0, 1]."""
    up = torch.nn.functional.interpolate(lr, scale_factor=scale, mode="bicubic", align_corners=False)
    return up.clamp(0, 1)


def inside(image: Tensor, margin: int) -> Tensor:
    """An image (1, 3, H, W) without `margin` pixels on every side."""
    return image[..., margin : image.shape[-2] - margin, margin : image.shape[-1] - margin]


def _bands(image: Tensor, levels: int, wavelet: str) -> list[Tensor]:
    """LL_J, then LH, HL, HH of every level, the coarsest first; LL_J is divided by 2^J, as in the loss."""
    low, details = decompose(image, levels, wavelet)
    return [low / 2**levels, *(band for detail in reversed(details) for band in detail.unbind(2))]


def band_names(levels: int) -> list[tuple[str, str]]:
    """(name, group) of every band, in the order of `measure`."""
    names = [(f"LL{levels}", "low")]
    for level in range(levels, 0, -1):
        names += [(f"{band}{level}", "mid" if level > 1 else "high") for band in ("LH", "HL", "HH")]
    return names


@torch.inference_mode()
def measure(pictures: Pictures, levels: int, wavelet: str) -> NDArray[np.float64]:
    """(bands, figures) of a tile."""
    parts = [None if p is None else _bands(p, levels, wavelet) for p in pictures]
    nothing = torch.full((1,), float("nan"))
    rows = []
    for number in range(len(band_names(levels))):
        base, gt, t, s, again = (nothing if part is None else part[number].double() for part in parts)
        more, more_again = t - base, again - base
        values = (
            base.square(), gt.square(), t.square(), s.square(), again.square(), t * again,
            more.square(), more_again.square(), more * more_again, t.abs(), (t - gt).abs(), (t - s).abs(),
        )  # fmt: skip
        rows.append(Figures(*(value.mean().item() for value in values)))
    return np.array(rows)


def measure_whole(pictures: Pictures, lr: Tensor, scale: int) -> tuple[float, float, float]:
    """Drift, L-STD (levels of 255) and G-STD (dB) of a tile; two values deviate by |a - b| / sqrt 2."""
    drift = 255 * (pictures.teacher.mean((2, 3)) - lr.mean((2, 3))).abs().mean().item()
    if pictures.again is None:
        return drift, float("nan"), float("nan")
    gt, *both = (to_image(p[0]) for p in (pictures.gt, pictures.teacher, pictures.again))
    first, second = (psnr_y(image, gt, scale) for image in both)
    apart = 255 * (pictures.teacher - pictures.again).abs().mean().item()
    return drift, apart / 2**0.5, abs(first - second) / 2**0.5
