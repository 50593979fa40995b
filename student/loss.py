"""The DTKD loss: L1 toward the ground truth plus a frequency-group-weighted L1 toward the teacher.

    L = mean |S - GT| + lambda * L_FG,    L_FG = sum_g w_g * mean over bands b in g of mean |W_b(S) - W_b(T)|

S student (sr), T teacher, W orthonormal wavelet transform of RGB in [0, 1] with J levels, level 1 the finest.

Groups, for any J:  low {LL_J};  mid {LH, HL, HH of levels 2..J};  high {LH, HL, HH of level 1}.
So `high` is always the last octave, and `mid` every octave between it and LL: at x4 and J = 2 those are LL2, the first
octave beyond the LR image's own band, and the last. J = 1 has no `mid`. J = 0 is pixel distillation:
`low` is the image itself.

LL_J is divided by 2^J, which makes it the local pixel mean in [0, 1] (orthonormal coefficients are 2^J times that);
the detail bands keep the orthonormal scale.

Scale of the weights: the settings give an *allocation*. `scale_weights` multiplies it by one number so that, on the
cache at hand, L_FG equals the mean pixel difference |S0 - T|, S0 being the bicubic upscaling of the LR image. Whatever
the mode, the levels or the wavelet, lambda then means the same: at 1, distillation starts out as strong as an L1 toward
the teacher, and an ablation moves weight between groups without changing the total.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.system.errors import DtkdError
from pipeline.system.files import read_json
from pipeline.wavelet import check_wavelet, decompose

GROUPS = ("low", "mid", "high")
MODES = {"uniform": (1.0, 1.0, 1.0), "mid": (0.25, 1.0, 0.5), "low": (1.0, 0.5, 0.25), "high": (0.25, 0.5, 1.0)}


@dataclass(frozen=True)
class LossSettings:
    """Distillation loss and its schedule; TOML section [loss]."""

    levels: int = 2
    """Wavelet levels J, 0 to 3; log2(scale) is natural. 0 is pixel distillation."""
    wavelet: str = "haar"
    """haar (fast), or any discrete wavelet of PyWavelets such as db2."""
    weights: tuple[float, float, float] | str = "mid"
    """uniform, mid, low, high, three numbers (low, mid, high), or calibrated (read from `calibration`)."""
    calibration: str = ""
    """JSON file {"weights": {"low": ..., "mid": ..., "high": ...}} that weights=calibrated reads."""
    lambda_max: float = 1.0
    """Highest weight of L_FG; 0 trains on the ground truth only."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How lambda rises from 0 to lambda_max; constant is lambda_max throughout."""
    start: float = 0.1
    """Fraction of the run at which lambda begins to rise."""
    length: float = 0.5
    """Fraction of the run over which it rises."""

    def __post_init__(self) -> None:
        """Refuse values that no run can have."""
        if not 0 <= self.levels <= 3:
            raise DtkdError(f"loss.levels must be 0 to 3, got {self.levels}")
        if self.lambda_max < 0:
            raise DtkdError(f"loss.lambda_max must not be negative, got {self.lambda_max}")
        if not 0 <= self.start <= 1 or not 0 <= self.length <= 1:
            raise DtkdError(
                f"loss.start and loss.length are fractions of the run, 0 to 1, got {self.start}, {self.length}"
            )
        check_wavelet(self.wavelet)
        if self.weights == "calibrated" and not self.calibration:
            raise DtkdError("loss.weights=calibrated needs loss.calibration=FILE, the file with the weights")
        if isinstance(self.weights, str) and self.weights not in (*MODES, "calibrated"):
            modes = ", ".join((*MODES, "calibrated"))
            raise DtkdError(f"loss.weights must be {modes} or three numbers, got {self.weights!r}")
        if not isinstance(self.weights, str):
            _check_weights(self.weights, "loss.weights")


class GroupWeights(NamedTuple):
    """What `distillation_loss` needs to know: the weight of each group and the transform that defines them."""

    low: float
    mid: float
    high: float
    levels: int = 2
    wavelet: str = "haar"


class GroupDistance(NamedTuple):
    """Mean |W_b(S) - W_b(T)| of each frequency group, zero for a group that has no bands."""

    low: Tensor
    mid: Tensor
    high: Tensor


class LossParts(NamedTuple):
    """The loss and what it is made of, all scalars; the groups are unweighted distances."""

    total: Tensor
    l1: Tensor
    fg: Tensor
    low: Tensor
    mid: Tensor
    high: Tensor


class Magnitudes(NamedTuple):
    """Mean |S0 - T| over a cache: of the pixels, and of each frequency group."""

    pixel: float
    low: float
    mid: float
    high: float


def distillation_loss(sr: Tensor, gt: Tensor, teacher: Tensor, weights: GroupWeights, lam: float) -> LossParts:
    """L1(sr, gt) + lam * L_FG(sr, teacher) of images (B, C, H, W) in [0, 1], in float32."""
    sr = sr.float()
    l1 = F.l1_loss(sr, gt)
    low, mid, high = group_distances(sr, teacher, weights.levels, weights.wavelet)
    fg = weights.low * low + weights.mid * mid + weights.high * high
    return LossParts(l1 + lam * fg, l1, fg, low, mid, high)


def group_distances(sr: Tensor, teacher: Tensor, levels: int, wavelet: str = "haar") -> GroupDistance:
    """Mean absolute difference of each frequency group between images (B, C, H, W); W is linear, so W(S - T)."""
    low, details = decompose(sr - teacher, levels, wavelet)
    bands = [detail.abs().mean() for detail in details]  # a level's three bands have one size: their mean is the mean
    return GroupDistance(
        low=low.abs().mean() / 2**levels,
        mid=torch.stack(bands[1:]).mean() if levels > 1 else low.new_zeros(()),
        high=bands[0] if levels > 0 else low.new_zeros(()),
    )


@torch.no_grad()
def measure(pairs: Iterable[tuple[Tensor, Tensor]], levels: int, wavelet: str = "haar") -> Magnitudes:
    """Measure |S0 - T| over (lr, teacher) pairs of shapes (B, C, h, w) and (B, C, H, W), S0 the bicubic upscaling."""
    rows = []
    for lr, teacher in pairs:
        s0 = F.interpolate(lr, size=teacher.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)
        distances = group_distances(s0, teacher, levels, wavelet)
        rows.append(torch.stack([F.l1_loss(s0, teacher), *distances]).double())
    return Magnitudes(*torch.stack(rows).mean(0).tolist())


def allocation(settings: LossSettings) -> tuple[float, float, float]:
    """The settings' weights of low, mid and high, before scaling.

    Raises:
        DtkdError: the calibration file is missing, damaged, or holds other than three weights.
    """
    if settings.weights != "calibrated":
        return MODES[settings.weights] if isinstance(settings.weights, str) else settings.weights
    path = Path(settings.calibration)
    try:
        content = read_json(path)
    except OSError as error:
        raise DtkdError(f"cannot read loss.calibration {path}: {error.strerror}") from error
    weights = content.get("weights") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or sorted(weights) != sorted(GROUPS):
        raise DtkdError(f'{path} must hold {{"weights": {{"low": ..., "mid": ..., "high": ...}}}}')
    return _check_weights(tuple(weights[group] for group in GROUPS), str(path))


def scale_weights(settings: LossSettings, measured: Magnitudes) -> GroupWeights:
    """Scale an allocation so that L_FG of the measured magnitudes equals their mean pixel difference.

    Raises:
        DtkdError: all weight is on groups that `levels` does not have.
    """
    low, mid, high = allocation(settings)
    present = low + (mid if settings.levels > 1 else 0) + (high if settings.levels > 0 else 0)
    if not present:
        raise DtkdError(f"loss.weights={(low, mid, high)} puts nothing on a group that {settings.levels} levels have")
    total = low * measured.low + mid * measured.mid + high * measured.high
    scale = measured.pixel / total if total > 0 else 1 / present
    return GroupWeights(scale * low, scale * mid, scale * high, settings.levels, settings.wavelet)


def _check_weights(weights: tuple, name: str) -> tuple[float, float, float]:
    numbers = [isinstance(w, int | float) and math.isfinite(w) and w >= 0 for w in weights]
    if len(weights) != 3 or not all(numbers) or not sum(weights) > 0:
        raise DtkdError(f"{name} must be three numbers, none negative and not all zero, got {weights}")
    return weights
