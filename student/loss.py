"""The DTKD loss: L1 toward the ground truth plus a frequency-group-weighted L1 toward the teacher.

    L = mean |S - GT| + lambda * L_FG,    L_FG = sum_g w_g * mean over bands b in g of mean |W_b(S) - W_b(T)|

S student (sr), T teacher, W orthonormal wavelet transform of RGB in [0, 1] with J levels, level 1 the finest.

Groups, for any J:  low {LL_J};  mid {LH, HL, HH of levels 2..J};  high {LH, HL, HH of level 1}.
So `high` is always the last octave, and `mid` every octave between it and LL: at x4 and J = 2 those are LL2, the first
octave beyond the LR image's own band, and the last. J = 1 has no `mid`. J = 0 is pixel distillation:
`low` is the image itself.

`energy` is an extension of this project, off by default: beside L_FG it compares how much texture there is, not where,

    L_E = sum over g in {mid, high} of w_g * mean over bands b in g, windows v of |R_v(W_b(S)) - R_v(W_b(T))|,

R_v the root mean square of the coefficients in window v, 16x16 pixels of the image at every level. Why: where the
teacher's detail x is random given the LR image, E|s - x| is smallest at the median of x, about 0 for texture, so that a
student that minimises L_FG draws none. R_v(x) hardly varies from one sample to the next, and E|R_v(s) - R_v(x)| is
smallest where the student's detail has the teacher's local energy, at any phase. L becomes L + lambda * energy * L_E.
`energy_floor` f takes f^2 from the teacher's mean square before its root: its stored pictures are rounded to 8 bits,
which alone is an RMS of .29 levels in every band, and a student meets that in flat areas with a pattern that is the
same everywhere (LOG.md, 2026-11-28).

`gt = low` keeps the ground truth out of the details, whose median it pulls the student to as well: the first term is
then mean |LL_J(S) - LL_J(GT)| / 2^J, and the teacher has the rest.

`cycle_spinning` moves the grid of W and of the windows by a random number of pixels every step, the same for all images
(after Coifman & Donoho, "Translation-invariant de-noising", 1995). A decimated transform on a fixed grid never compares
pixels on both sides of a block's border: at x4 and J = 2 a student may then have its detail inside LR pixels and none
between them, which shows as stepped diagonals. Off by default: the method as published has one grid.

LL_J is divided by 2^J, which makes it the local pixel mean in [0, 1] (orthonormal coefficients are 2^J times that);
the detail bands keep the orthonormal scale.

Scale of the weights: the settings give an *allocation*. `scale_weights` multiplies it by one number so that, on the
cache at hand, L_FG equals the mean pixel difference |S0 - T|, S0 being the bicubic upscaling of the LR image. Whatever
the mode, the levels or the wavelet, lambda then means the same: at 1, distillation starts out as strong as an L1 toward
the teacher, and an ablation moves weight between groups without changing the total.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.system.errors import DtkdError
from pipeline.wavelet import Pyramid, check_wavelet, decompose

GROUPS = ("low", "mid", "high")
ENERGY_WINDOW = 16
"""Side of the windows of L_E in pixels of the image: 8 coefficients at level 1, 4 at level 2."""
LEAST_RMS = 1e-4
"""Least local RMS, so that its gradient stays finite in flat areas; a fortieth of a level of 255."""
MODES = {"uniform": (1.0, 1.0, 1.0), "mid": (0.25, 1.0, 0.5), "low": (1.0, 0.5, 0.25), "high": (0.25, 0.5, 1.0)}


@dataclass(frozen=True)
class LossSettings:
    """Distillation loss and its schedule; TOML section [loss]."""

    levels: int = 2
    """Wavelet levels J, 0 to 3; log2(scale) is natural. 0 is pixel distillation."""
    wavelet: str = "haar"
    """haar (fast), or any discrete wavelet of PyWavelets such as db2."""
    weights: tuple[float, float, float] | str = "mid"
    """uniform, mid, low, high, or three numbers (low, mid, high), such as `dtkd audit` calibrates."""
    lambda_max: float = 1.0
    """Highest weight of L_FG; 0 trains on the ground truth only."""
    schedule: Literal["linear", "cosine", "constant", "reversed"] = "linear"
    """How lambda rises from 0 to lambda_max; constant is lambda_max throughout, reversed falls as linear rises."""
    start: float = 0.1
    """Fraction of the run at which lambda begins to rise."""
    length: float = 0.5
    """Fraction of the run over which it rises."""

    energy: float = 0.0
    """Weight of the energy distance L_E relative to L_FG; 0 leaves it out."""
    energy_floor: float = 0.0
    """RMS of the teacher's detail that is not asked of the student, in levels of 255; rounding alone is .29."""
    gt: Literal["all", "low"] = "all"
    """Where the ground truth counts: in the whole image, or in the low group only."""
    cycle_spinning: bool = False
    """Move the grid of the transform by a random number of pixels every step."""

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
        if self.energy < 0 or (self.energy and not self.levels):
            raise DtkdError(
                f"loss.energy must not be negative and needs loss.levels of 1 or more, got {self.energy} with "
                f"loss.levels={self.levels}"
            )
        if not 0 <= self.energy_floor <= 255:
            raise DtkdError(f"loss.energy_floor is a share of 255 levels, 0 to 255, got {self.energy_floor}")
        check_wavelet(self.wavelet)
        if isinstance(self.weights, str):
            if self.weights not in MODES:
                modes = ", ".join(MODES)
                hint = "; `dtkd audit` writes calibrated ones to OUT/weights.toml, a file for --config"
                raise DtkdError(f"loss.weights must be {modes} or three numbers, got {self.weights!r}{hint}")
        elif not all(0 <= w < float("inf") for w in self.weights) or not sum(self.weights):
            raise DtkdError(f"loss.weights must be three numbers, none negative and not all zero, got {self.weights}")


class GroupWeights(NamedTuple):
    """What `distillation_loss` needs to know: the weight of each group and the transform that defines them."""

    low: float
    mid: float
    high: float
    levels: int = 2
    wavelet: str = "haar"
    energy: float = 0.0
    """Weight of the energy distance, relative to the group weights."""
    gt: str = "all"
    energy_floor: float = 0.0
    """In levels of 255."""


class GroupDistance(NamedTuple):
    """Mean |W_b(S) - W_b(T)| of each frequency group, zero for a group that has no bands."""

    low: Tensor
    mid: Tensor
    high: Tensor


class LossParts(NamedTuple):
    """The loss and what it is made of, all scalars; `energy` is L_E, the groups are unweighted distances."""

    total: Tensor
    l1: Tensor
    fg: Tensor
    energy: Tensor
    low: Tensor
    mid: Tensor
    high: Tensor


class Magnitudes(NamedTuple):
    """Mean |S0 - T| over a cache: of the pixels, and of each frequency group."""

    pixel: float
    low: float
    mid: float
    high: float


def distillation_loss(
    sr: Tensor, gt: Tensor, teacher: Tensor, weights: GroupWeights, lam: float, shift: tuple[int, int] = (0, 0)
) -> LossParts:
    """L1(sr, gt) + lam * (L_FG + energy * L_E)(sr, teacher) of images (B, C, H, W) in [0, 1], in float32.

    `shift` moves the images under the grid of the transform, down and to the right in pixels, around their borders.
    """

    def transform(image: Tensor) -> Pyramid:
        moved = torch.roll(image, shift, (-2, -1)) if any(shift) else image
        return decompose(moved, weights.levels, weights.wavelet)

    sr = sr.float()
    ours, theirs = transform(sr), transform(teacher)
    l1 = F.l1_loss(sr, gt) if weights.gt == "all" else group_distances(ours, transform(gt)).low
    low, mid, high = group_distances(ours, theirs)
    fg = weights.low * low + weights.mid * mid + weights.high * high
    energy = fg.new_zeros(())
    if weights.energy:
        distance = energy_distances(ours, theirs, weights.energy_floor / 255)
        energy = weights.mid * distance.mid + weights.high * distance.high
    return LossParts(l1 + lam * (fg + weights.energy * energy), l1, fg, energy, low, mid, high)


def group_distances(ours: Pyramid, theirs: Pyramid) -> GroupDistance:
    """Mean absolute difference of each frequency group between two decompositions."""
    details = [F.l1_loss(s, t) for s, t in zip(ours.details, theirs.details, strict=True)]
    return _grouped(F.l1_loss(ours.low, theirs.low) / 2 ** len(details), details)


def energy_distances(ours: Pyramid, theirs: Pyramid, floor: float = 0.0) -> GroupDistance:
    """Mean absolute difference of the local RMS of the detail bands of two decompositions; `low` is 0.

    `floor`, in [0, 1], is the RMS that is taken from theirs, as the root of a difference of squares.
    """
    distances = []
    for level, (s, t) in enumerate(zip(ours.details, theirs.details, strict=True), 1):
        side = max(ENERGY_WINDOW >> level, 1)
        distances.append(F.l1_loss(local_rms(s, side), local_rms(t, side, floor)))
    return _grouped(ours.low.new_zeros(()), distances)


def local_rms(band: Tensor, side: int, floor: float = 0.0) -> Tensor:
    """RMS in windows of side x side coefficients: (B, C, 3, h, w) to (B, 3 C, h / side, w / side), rest left out.

    Of the mean square that is above `floor` squared, where that is given.

    Raises:
        DtkdError: the band is smaller than a window.
    """
    if min(band.shape[-2:]) < side:
        raise DtkdError(
            f"loss.energy compares windows of {ENERGY_WINDOW} pixels: expected bands of {side} coefficients a side or "
            f"more, got {band.shape[-1]}x{band.shape[-2]}; use a larger train.patch"
        )
    mean_square = F.avg_pool2d(band.flatten(1, 2).square(), side)
    return ((mean_square - floor**2).clamp(min=0) + LEAST_RMS**2).sqrt()


def _grouped(low: Tensor, levels: list[Tensor]) -> GroupDistance:
    """Levels, finest first, to groups; a level's three bands have one size, so its mean is theirs."""
    mid = torch.stack(levels[1:]).mean() if len(levels) > 1 else low.new_zeros(())
    return GroupDistance(low, mid, levels[0] if levels else low.new_zeros(()))


@torch.no_grad()
def measure(pairs: Iterable[tuple[Tensor, Tensor]], levels: int, wavelet: str = "haar") -> Magnitudes:
    """Measure |S0 - T| over (lr, teacher) pairs of shapes (B, C, h, w) and (B, C, H, W), S0 the bicubic upscaling."""
    rows = []
    for lr, teacher in pairs:
        s0 = F.interpolate(lr, size=teacher.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)
        distances = group_distances(decompose(s0, levels, wavelet), decompose(teacher, levels, wavelet))
        rows.append(torch.stack([F.l1_loss(s0, teacher), *distances]).double())
    return Magnitudes(*torch.stack(rows).mean(0).tolist())


def allocation(settings: LossSettings) -> tuple[float, float, float]:
    """The settings' weights of low, mid and high, before scaling."""
    return MODES[settings.weights] if isinstance(settings.weights, str) else settings.weights


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
    groups = (scale * low, scale * mid, scale * high)
    return GroupWeights(*groups, settings.levels, settings.wavelet, settings.energy, settings.gt, settings.energy_floor)
