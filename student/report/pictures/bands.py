"""Where and at which frequencies a picture differs from the ground truth: |W_b(S) - W_b(GT)| of all sub-bands b.

H W height and width, b one of LL2, LH2, HL2, HH2, LH1, HL1, HH1 of the two-level Haar transform.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.images import Rgb, to_tensor
from pipeline.wavelet import Pyramid, decompose
from student.loss import GROUPS
from student.report.pictures import encoding

LEVELS = 2
SIDE = 256
"""Pixels of a map, at most; the transform has as many coefficients as the picture has pixels."""

Map = NDArray[np.float32]


class BandMap(NamedTuple):
    """The errors of one picture."""

    picture: bytes
    """The sub-bands side by side as grey WebP, LL2 at the top left, the finest to the right and below."""
    means: dict[str, float]
    """Mean error of a group of sub-bands, in levels of 255."""


class BandMaps(NamedTuple):
    """The errors of all candidates on one image."""

    white: float
    """Error in levels of 255 from which on a map is white."""
    maps: dict[str, BandMap]


def band_maps(pictures: Mapping[str, Rgb], gt: Rgb) -> BandMaps:
    """Maps on one common scale, on which the 99.5th percentile of the largest errors is white.

    A coefficient of level j is divided by 2^j, so that an error of one level over a whole area is 1 in LL2.

    Args:
        pictures: (H, W, 3) by candidate; rows and columns beyond a multiple of 4 are left out.
        gt: the ground truth, (H, W, 3).
    """
    truth = transform(gt)
    errors = {name: band_errors(picture, truth) for name, picture in pictures.items()}
    white = max([1.0, *(float(np.percentile(mosaic, 99.5)) for mosaic, _ in errors.values())])
    maps = {
        name: BandMap(encoding.small_webp(grey(mosaic, white), quality=80), means)
        for name, (mosaic, means) in errors.items()
    }
    return BandMaps(white, maps)


def band_errors(picture: Rgb, truth: Pyramid) -> tuple[Map, dict[str, float]]:
    """Errors of one picture (H, W, 3) to a transformed one of its size, in levels of 255.

    Returns:
        all sub-bands side by side, no side above SIDE; and the mean of each group of them.
    """
    low, details = errors = _errors(transform(picture), truth)
    means = (low, *(details[level] for level in reversed(range(LEVELS))))
    return _smaller(_mosaic(errors)), {group: float(mean.mean()) for group, mean in zip(GROUPS, means, strict=True)}


def grey(mosaic: Map, white: float) -> NDArray[np.uint8]:
    """Errors (H, W) as brightness, `white` and above it being white; the root shows weak errors, too."""
    return np.rint(np.sqrt(np.clip(mosaic / white, 0, 1)) * 255).astype(np.uint8)


def can_be_mapped(picture: Rgb) -> bool:
    """Whether a picture is large enough for the transform."""
    return min(picture.shape[:2]) >= 2**LEVELS


def transform(picture: Rgb) -> Pyramid:
    """Sub-bands of a picture (H, W, 3) in levels of 255; rows and columns beyond a multiple of 4 are left out."""
    step = 2**LEVELS
    height, width = (side // step * step for side in picture.shape[:2])
    return decompose(to_tensor(picture[:height, :width])[None] * 255, LEVELS)


def _errors(ours: Pyramid, truth: Pyramid) -> tuple[Map, list[Map]]:
    """Mean over the channels of LL_J (h, w), and of each level's details (3, h, w), the finest first."""
    low = (ours.low - truth.low).abs().mean(1)[0] / 2**LEVELS
    pairs = zip(ours.details, truth.details, strict=True)
    details = [(a - b).abs().mean(1)[0] / 2**level for level, (a, b) in enumerate(pairs, start=1)]
    return low.numpy(), [detail.numpy() for detail in details]


def _mosaic(error: tuple[Map, list[Map]]) -> Map:
    """(H, W): at every level the coarser bands, HL to their right, LH below, HH at the bottom right."""
    mosaic, details = error
    for lh, hl, hh in reversed(details):
        mosaic = np.block([[mosaic, hl], [lh, hh]])
    return mosaic


def _smaller(mosaic: Map) -> Map:
    """Means of areas, so that no side is above SIDE; the seams between the bands stay where they are."""
    height, width = mosaic.shape
    factor = min(1.0, SIDE / max(height, width))
    size = tuple(max(4, round(side * factor / 4) * 4) for side in (height, width))
    small = torch.nn.functional.interpolate(torch.from_numpy(mosaic)[None, None], size=size, mode="area")
    return small[0, 0].numpy()
