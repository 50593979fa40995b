"""How a high-resolution (HR) image becomes a low-resolution (LR) one: `bicubic`, or the `real` second-order model.

`real` is the model of Real-ESRGAN (Wang et al., "Training real-world blind super-resolution with pure synthetic data",
ICCVW 2021): blur, resize, noise and JPEG, twice, then a sinc filter for ringing. A share of the images gets the
`mild` form of it, one such round as in a camera. The HR image is not sharpened first (Real-ESRGAN's USM option): LR and
GT show the same photo.

Between the steps an image is planes (3, H, W) of float64 levels, 0..255, on the grid of `pipeline.filters`: the result
depends on the image, the settings and the generator's seed only, not on the machine.
"""

import io
import math
from collections.abc import Sequence
from itertools import accumulate
from typing import TypeVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from pipeline import filters
from pipeline.degradation import JPEG_BLOCK, Degradation, Range, RealSettings, RoundSettings, mild
from pipeline.filters import Array, Interpolation

T = TypeVar("T")

_INTERPOLATIONS: tuple[Interpolation, ...] = ("area", "bilinear", "bicubic")
_LUMA = np.array([0.2989, 0.587, 0.114])  # as torchvision's rgb_to_grayscale, which Real-ESRGAN's Poisson noise uses


def degrade_inside(hr: NDArray[np.uint8], margin: int, degradation: Degradation, rng: Generator) -> NDArray[np.uint8]:
    """LR image of the middle of an HR image: without `margin` LR pixels on every side, which are degraded as well.

    What surrounds a tile decides what filters make of its border, and where JPEG's blocks lie: for `real` up to 7 LR
    pixels at the top and at the left are drawn to be left out, so that the middle lies at any phase of the blocks, as
    a crop of a photo does. At the bottom and at the right all 7 are left out.

    Args:
        hr: uint8 RGB (H, W, 3), sides multiples of the scale.
        margin: LR pixels; at least `degradation.margin / degradation.scale` for a border without artefacts.
        degradation: `bicubic` or `real`.
        rng: where all randomness comes from.

    Raises:
        ValueError: as `degrade`, nothing is left inside the margin, or it is narrower than what may be left out.
    """
    scale = degradation.scale
    h, w = hr.shape[0] // scale - 2 * margin, hr.shape[1] // scale - 2 * margin
    if h < 1 or w < 1:
        raise ValueError(f"expected more than {2 * margin * scale} pixels a side, got {hr.shape[1]}x{hr.shape[0]}")
    spare = JPEG_BLOCK - 1 if degradation.kind == "real" else 0
    if margin < spare:
        raise ValueError(f"expected a margin of at least {spare} LR pixels, got {margin}")
    y, x = (int(n) for n in rng.integers(spare + 1, size=2)) if spare else (0, 0)
    bottom, right = (side - spare * scale for side in hr.shape[:2])
    lr = degrade(hr[y * scale : bottom, x * scale : right], degradation, rng)
    return np.ascontiguousarray(lr[margin - y :, margin - x :][:h, :w])


def degrade(hr: NDArray[np.uint8], degradation: Degradation, rng: Generator) -> NDArray[np.uint8]:
    """Make the LR image (H / scale, W / scale, 3) of an HR image (H, W, 3), both uint8 RGB.

    All randomness comes from `rng`; `bicubic` draws none.

    Raises:
        ValueError: H or W is no multiple of the scale, the image is not uint8 RGB, or the degradation is `paired`.
    """
    scale = degradation.scale
    if hr.dtype != np.uint8 or hr.ndim != 3 or hr.shape[2] != 3:
        raise ValueError(f"expected a uint8 image (H, W, 3), got {hr.dtype} {hr.shape}")
    h, w = hr.shape[0] // scale, hr.shape[1] // scale
    if hr.shape[:2] != (h * scale, w * scale) or not h or not w:
        raise ValueError(f"image sides must be multiples of the scale {scale}, got {hr.shape[1]}x{hr.shape[0]}")
    if degradation.kind == "paired":
        raise ValueError("a paired corpus has LR images of its own: read them instead of degrading")
    if degradation.kind == "bicubic":
        return filters.resize_bicubic_uint8(hr, h, w)
    planes = np.ascontiguousarray(hr.transpose(2, 0, 1), dtype=np.float64)  # (3, H, W)
    settings = mild(degradation.real) if rng.random() < degradation.mild_share else degradation.real
    lr = _degrade_real(planes, h, w, settings, rng)
    return np.ascontiguousarray(_to_uint8(lr).transpose(1, 2, 0))


# The real model ----------------------------------------------------------------------------------------------------


def _degrade_real(x: Array, h: int, w: int, settings: RealSettings, rng: Generator) -> Array:
    """Planes (3, H, W) to planes (3, h, w): the steps of the model in their order."""
    first, second = settings.first, settings.second
    x = _random_blur(x, first, rng)
    x = _random_resize(x, x.shape[1], x.shape[2], first, rng)
    x = _random_noise(x, first, rng)
    x = _random_jpeg(x, first, rng)

    x = _random_blur(x, second, rng)
    x = _random_resize(x, h, w, second, rng)
    x = _random_noise(x, second, rng)
    if rng.random() < settings.jpeg_last_prob:
        return _random_jpeg(_final_filter(x, h, w, settings, rng), second, rng)
    return _final_filter(_random_jpeg(x, second, rng), h, w, settings, rng)


def _final_filter(x: Array, h: int, w: int, settings: RealSettings, rng: Generator) -> Array:
    x = filters.resize(x, h, w, _pick(_INTERPOLATIONS, rng))
    if rng.random() >= settings.final_sinc_prob:
        return x
    return filters.blur(x, filters.sinc(_odd(settings.final_kernel_side, rng), rng.uniform(*settings.final_cutoff)))


def _random_blur(x: Array, settings: RoundSettings, rng: Generator) -> Array:
    return filters.blur(x, _random_kernel(settings, rng)) if rng.random() < settings.blur_prob else x


def _random_kernel(settings: RoundSettings, rng: Generator) -> Array:
    side = _odd(settings.kernel_side, rng)
    if rng.random() < settings.sinc_prob:
        return filters.sinc(side, rng.uniform(math.pi / 3 if side < 13 else math.pi / 5, math.pi))
    shapes = [(shape, isotropic) for shape in ("gaussian", "generalised", "plateau") for isotropic in (True, False)]
    shape, isotropic = _pick(shapes, rng, settings.kernel_probs)
    sigma = rng.uniform(*settings.sigma)
    axes, angle = (sigma, sigma), 0.0
    if not isotropic:
        axes, angle = (sigma, rng.uniform(*settings.sigma)), rng.uniform(-math.pi, math.pi)
    if shape == "gaussian":
        return filters.gaussian(side, axes, angle)
    if shape == "generalised":
        return filters.gaussian(side, axes, angle, _around_one(settings.gaussian_beta, rng))
    return filters.plateau(side, axes, angle, _around_one(settings.plateau_beta, rng))


def _random_resize(x: Array, h: int, w: int, settings: RoundSettings, rng: Generator) -> Array:
    """Resize to (h, w) times a random factor."""
    factor = _pick(("up", "down", "keep"), rng, settings.resize_probs)
    ratio = {"up": (1.0, settings.resize[1]), "down": (settings.resize[0], 1.0), "keep": (1.0, 1.0)}[factor]
    ratio = rng.uniform(*ratio)
    return filters.resize(x, max(int(h * ratio), 1), max(int(w * ratio), 1), _pick(_INTERPOLATIONS, rng))


def _random_noise(x: Array, settings: RoundSettings, rng: Generator) -> Array:
    """Add Gaussian or Poisson noise and clip to 0..255."""
    if rng.random() < settings.gaussian_prob:
        sigma = rng.uniform(*settings.noise_sigma)
        shape = (1, *x.shape[1:]) if rng.random() < settings.gray_prob else x.shape
        noise = filters.normal(shape, rng)
        noise *= sigma
    else:
        strength = rng.uniform(*settings.poisson_scale)
        noise = _poisson_noise(x, rng.random() < settings.gray_prob, rng)
        noise *= strength
    x = x + noise
    return filters.snap(np.clip(x, 0, 255, out=x))


def _poisson_noise(x: Array, gray: bool, rng: Generator) -> Array:
    """Shot noise in levels, with as many photons at full white as the image has distinct levels (a power of two)."""
    if gray:
        x = (_LUMA[0] * x[:1] + _LUMA[1] * x[1:2]) + _LUMA[2] * x[2:]  # (1, H, W), in a fixed order
    levels = _to_uint8(x)
    distinct = np.count_nonzero(np.bincount(levels.ravel(), minlength=256))
    return filters.shot_noise(levels, 2 ** math.ceil(math.log2(distinct)), rng)


def _random_jpeg(x: Array, settings: RoundSettings, rng: Generator) -> Array:
    """Compress with libjpeg's usual tables and 4:2:0 chroma."""
    quality = round(rng.uniform(*settings.jpeg_quality))
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(_to_uint8(x).transpose(1, 2, 0))).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1), dtype=np.float64)


def _to_uint8(levels: Array) -> NDArray[np.uint8]:
    return np.rint(np.clip(levels, 0, 255)).astype(np.uint8)


# Draws and helpers -------------------------------------------------------------------------------------------------


def _pick(options: Sequence[T], rng: Generator, probabilities: Sequence[float] | None = None) -> T:
    """One of the options; alike where no probabilities are given."""
    if probabilities is None:
        return options[int(rng.integers(len(options)))]
    draw = rng.random()
    return next((o for o, upto in zip(options, accumulate(probabilities), strict=True) if draw < upto), options[-1])


def _odd(sides: tuple[int, int], rng: Generator) -> int:
    return int(rng.integers(sides[0] // 2, sides[1] // 2 + 1)) * 2 + 1


def _around_one(limits: Range, rng: Generator) -> float:
    return rng.uniform(limits[0], 1) if rng.random() < 0.5 else rng.uniform(1, limits[1])
