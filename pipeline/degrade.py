"""How a high-resolution (HR) image becomes a low-resolution (LR) one: `bicubic`, or the `real` second-order model.

`real` is the model of Real-ESRGAN (Wang et al., "Training real-world blind super-resolution with pure synthetic data",
ICCVW 2021): blur, resize, noise and JPEG, twice, then a sinc filter for ringing; the defaults are its published ones.
The HR image is not sharpened first (Real-ESRGAN's USM option): LR and GT show the same photo.

Between the steps an image is planes (3, H, W) of float64 levels, 0..255, on the grid of `pipeline.filters`: the result
depends on the image, the settings and the generator's seed only, not on the machine.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image

from pipeline import filters
from pipeline.errors import DtkdError
from pipeline.filters import Array, Interpolation, resize_bicubic

__all__ = ["Degradation", "RealSettings", "RoundSettings", "SecondRoundSettings", "degrade", "resize_bicubic"]

REVISION = 1
"""Goes into `Degradation.config`; raised when the same settings and seed give other bytes."""

Range = tuple[float, float]
T = TypeVar("T")

_INTERPOLATIONS: tuple[Interpolation, ...] = ("area", "bilinear", "bicubic")
_LUMA = np.array([0.2989, 0.587, 0.114])  # as torchvision's rgb_to_grayscale, which Real-ESRGAN's Poisson noise uses


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise DtkdError(f"{name} must be a probability (0..1), got {value}")


def _check_distribution(name: str, values: Sequence[float]) -> None:
    if min(values) < 0 or not math.isclose(sum(values), 1, abs_tol=1e-6):
        raise DtkdError(f"{name} must be probabilities that add up to 1, got {tuple(values)} = {sum(values):g}")


def _check_range(name: str, value: Range | tuple[int, int], lowest: float, highest: float) -> None:
    if not lowest <= value[0] <= value[1] <= highest:
        raise DtkdError(f"{name} must be a range within {lowest:g}..{highest:g}, lower end first, got {tuple(value)}")


@dataclass(frozen=True)
class RoundSettings:
    """One round of the `real` model: blur, resize, noise, JPEG. Defaults: Real-ESRGAN's first round.

    A pair of numbers is a range that is drawn from uniformly; probabilities of alternatives add up to 1.
    """

    blur_prob: float = 1.0
    """Probability that the image is blurred at all."""
    kernel_side: tuple[int, int] = (7, 21)
    """Side of the blur kernel in pixels, odd, from a range that includes both ends."""
    sinc_prob: float = 0.1
    """Probability that the blur kernel is a sinc instead of one of the following shapes."""
    kernel_probs: tuple[float, float, float, float, float, float] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    """Of Gaussian, generalised Gaussian and plateau kernels, each first isotropic, then anisotropic."""
    sigma: Range = (0.2, 3.0)
    """Standard deviation of a kernel, pixels; an anisotropic kernel draws one for each axis and an angle."""
    gaussian_beta: Range = (0.5, 4.0)
    """Exponent of a generalised Gaussian: half of the draws below 1, half above."""
    plateau_beta: Range = (1.0, 2.0)
    """Exponent of a plateau kernel: half of the draws below 1, half above."""
    resize_probs: tuple[float, float, float] = (0.2, 0.7, 0.1)
    """Of enlarging, shrinking and keeping the size; the interpolation is area, bilinear or bicubic alike."""
    resize: Range = (0.15, 1.5)
    """Smallest factor when shrinking and largest when enlarging; the second round's refers to the LR size."""
    gaussian_prob: float = 0.5
    """Probability of Gaussian noise; Poisson noise otherwise."""
    noise_sigma: Range = (1.0, 30.0)
    """Standard deviation of Gaussian noise, levels of 255."""
    poisson_scale: Range = (0.05, 3.0)
    """Strength of Poisson noise; 1 is a photon count equal to the number of levels that the image has."""
    gray_prob: float = 0.4
    """Probability that the noise is the same in the three channels."""
    jpeg_quality: Range = (30.0, 95.0)
    """Quality of the JPEG compression, 1..95."""

    def __post_init__(self) -> None:
        """Check every field, so that a wrong setting fails before the first image."""
        for name in ("blur_prob", "sinc_prob", "gaussian_prob", "gray_prob"):
            _check_probability(name, getattr(self, name))
        for name in ("kernel_probs", "resize_probs"):
            _check_distribution(name, getattr(self, name))
        _check_range("kernel_side", self.kernel_side, 1, 99)
        if not all(isinstance(side, int) and side % 2 for side in self.kernel_side):
            raise DtkdError(f"kernel_side must be two odd whole numbers, got {self.kernel_side}")
        _check_range("sigma", self.sigma, 0.01, 50)
        for name, value in (("gaussian_beta", self.gaussian_beta), ("plateau_beta", self.plateau_beta)):
            _check_range(name, value, 0.05, 20)
            if not value[0] <= 1 <= value[1]:
                raise DtkdError(f"{name} must be a range around 1, got {value}")
        _check_range("resize", self.resize, 0.05, 4)
        if not self.resize[0] <= 1 <= self.resize[1]:
            raise DtkdError(f"resize must be a range around 1, got {self.resize}")
        _check_range("noise_sigma", self.noise_sigma, 0, 255)
        _check_range("poisson_scale", self.poisson_scale, 0, 100)
        _check_range("jpeg_quality", self.jpeg_quality, 1, 95)


@dataclass(frozen=True)
class SecondRoundSettings(RoundSettings):
    """The second round: the same settings with the defaults of Real-ESRGAN's second, milder one."""

    blur_prob: float = 0.8
    sigma: Range = (0.2, 1.5)
    resize_probs: tuple[float, float, float] = (0.3, 0.4, 0.3)
    resize: Range = (0.3, 1.2)
    noise_sigma: Range = (1.0, 25.0)
    poisson_scale: Range = (0.05, 2.5)


@dataclass(frozen=True)
class RealSettings:
    """The `real` model: two rounds and a final sinc filter, with Real-ESRGAN's published defaults."""

    first: RoundSettings = RoundSettings()
    """The round at the size of the HR image."""
    second: SecondRoundSettings = SecondRoundSettings()
    """The round near the size of the LR image."""
    final_sinc_prob: float = 0.8
    """Probability of the last sinc filter, at the size of the LR image."""
    final_kernel_side: tuple[int, int] = (7, 21)
    """Side of the last sinc kernel in pixels, odd, from a range that includes both ends."""
    final_cutoff: Range = (math.pi / 3, math.pi)
    """Cutoff of the last sinc filter, radians a pixel."""
    jpeg_last_prob: float = 0.5
    """Probability that the second JPEG compression follows the last resize and sinc filter; else it precedes them."""

    def __post_init__(self) -> None:
        """Check the fields of the last filter."""
        for name in ("final_sinc_prob", "jpeg_last_prob"):
            _check_probability(name, getattr(self, name))
        _check_range("final_kernel_side", self.final_kernel_side, 1, 99)
        if not all(isinstance(side, int) and side % 2 for side in self.final_kernel_side):
            raise DtkdError(f"final_kernel_side must be two odd whole numbers, got {self.final_kernel_side}")
        _check_range("final_cutoff", self.final_cutoff, 0.1, math.pi)


@dataclass(frozen=True)
class Degradation:
    """What makes the LR image: `bicubic`, `real`, or nothing because the corpus is `paired`."""

    kind: Literal["bicubic", "real", "paired"] = "real"
    scale: int = 4
    """HR pixels to an LR pixel, along a side."""
    real: RealSettings = RealSettings()
    """Used by `real` only."""

    def __post_init__(self) -> None:
        """Check kind and scale."""
        if self.kind not in ("bicubic", "real", "paired"):
            raise DtkdError(f"degradation must be bicubic, real or paired, got {self.kind!r}")
        if not 1 <= self.scale <= 16:
            raise DtkdError(f"scale must be in 1..16, got {self.scale}")

    @property
    def margin(self) -> int:
        """HR pixels around a tile that its LR image depends on: a multiple of `scale`.

        Exact for `bicubic`. `real` takes the 18 LR pixels that Real-ESRGAN cuts off (400 down to 256 HR pixels at x4):
        enough to keep the image's border, and what filters make of it, out of the tile.
        """
        return {"bicubic": 2, "real": 18, "paired": 0}[self.kind] * self.scale

    def config(self) -> dict[str, Any]:
        """All that the LR image depends on apart from image and seed, for keys and fingerprints (JSON types only)."""
        settings = {"real": _as_json(asdict(self.real))} if self.kind == "real" else {}
        return {"kind": self.kind, "scale": self.scale, "revision": REVISION, **settings}


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
    lr = _degrade_real(planes, h, w, degradation.real, rng)
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
        noise = rng.standard_normal(shape) * sigma
    else:
        strength = rng.uniform(*settings.poisson_scale)
        noise = _poisson_noise(x, rng.random() < settings.gray_prob, rng) * strength
    return filters.snap(np.clip(x + noise, 0, 255))


def _poisson_noise(x: Array, gray: bool, rng: Generator) -> Array:
    """Shot noise in levels, with as many photons at full white as the image has distinct levels (a power of two)."""
    if gray:
        x = (_LUMA[0] * x[:1] + _LUMA[1] * x[1:2]) + _LUMA[2] * x[2:]  # (1, H, W), in a fixed order
    levels = _to_uint8(x)
    distinct = np.count_nonzero(np.bincount(levels.ravel(), minlength=256))
    photons = 2.0 ** math.ceil(math.log2(distinct)) / 255
    return rng.poisson(levels * photons) / photons - levels


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


def _as_json(value: Any) -> Any:
    """Tuples to lists, all the way down."""
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, (tuple, list)) else value
