"""Settings of a degradation: how strong each step of the `real` model is, and which share of the images is `mild`.

The defaults are Real-ESRGAN's published ones (Wang et al., ICCVW 2021).
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pipeline.system.errors import DtkdError

REVISION = 3
"""Goes into `Degradation.config`; raised when the same settings and seed give other bytes."""
JPEG_BLOCK = 8
"""Side of the blocks that JPEG compresses, pixels."""

Range = tuple[float, float]


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
    mild_share: float = 0.6
    """Share of the images that `real` degrades as a camera does (`mild`) instead of by the two full rounds."""

    def __post_init__(self) -> None:
        """Check kind and scale."""
        if self.kind not in ("bicubic", "real", "paired"):
            raise DtkdError(f"degradation must be bicubic, real or paired, got {self.kind!r}")
        if not 1 <= self.scale <= 16:
            raise DtkdError(f"scale must be in 1..16, got {self.scale}")
        _check_probability("mild_share", self.mild_share)

    @property
    def margin(self) -> int:
        """HR pixels around a tile that its LR image depends on: a multiple of `scale`.

        Exact for `bicubic`. `real` takes the 18 LR pixels that Real-ESRGAN cuts off (400 down to 256 HR pixels at x4),
        enough to keep the image's border, and what filters make of it, out of the tile, and up to 7 more, so that the
        tile may lie at any phase of JPEG's blocks.
        """
        return {"bicubic": 2, "real": 18 + JPEG_BLOCK - 1, "paired": 0}[self.kind] * self.scale

    def config(self) -> dict[str, Any]:
        """All that the LR image depends on apart from image and seed, for keys and fingerprints (JSON types only)."""
        settings = {}
        if self.kind == "real":
            settings = {"real": _as_json(asdict(self.real)), "mild_share": self.mild_share}
        return {"kind": self.kind, "scale": self.scale, "revision": REVISION, **settings}


def mild(real: RealSettings) -> RealSettings:
    """The camera's share of the `real` model: one blur, one reduction, little noise, light JPEG.

    Real LR photos (RealSR, DRealSR, what people own) are nearer to this than to two full rounds; a network that saw
    only those would smooth them.
    """
    first = dataclasses.replace(
        real.first,
        sigma=(real.first.sigma[0], 2.4),
        resize_probs=(0.0, 0.0, 1.0),
        noise_sigma=(0.0, 4.0),
        poisson_scale=(0.0, 0.2),
        jpeg_quality=(85.0, 95.0),
    )
    second = dataclasses.replace(
        real.second,
        blur_prob=0.1,
        sigma=(0.2, 0.8),
        resize_probs=(0.0, 0.0, 1.0),
        noise_sigma=(0.0, 3.0),
        poisson_scale=(0.0, 0.15),
        jpeg_quality=(75.0, 95.0),
    )
    return dataclasses.replace(real, first=first, second=second, final_sinc_prob=0.1)


def _as_json(value: Any) -> Any:
    """Tuples to lists, all the way down."""
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    return [_as_json(item) for item in value] if isinstance(value, (tuple, list)) else value
