"""Multi-level two-dimensional wavelet transform, in float32 whatever the surrounding autocast says.

B batch, C channels, H W height and width, J number of levels, j level (1 is the finest).

Haar has a path of its own (sums and differences of 2x2 blocks, several times faster than a filter bank); every other
wavelet goes through pytorch-wavelets, which is also what the Haar path is tested against.
"""

import warnings
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.system.errors import DtkdError


class Pyramid(NamedTuple):
    """A J-level decomposition, laid out as pytorch_wavelets.DWTForward returns it."""

    low: Tensor
    """LL_J, (B, C, H / 2^J, W / 2^J)."""
    details: tuple[Tensor, ...]
    """One tensor a level, finest first: (B, C, 3, H / 2^j, W / 2^j), sub-bands in the order LH, HL, HH."""


def decompose(x: Tensor, levels: int, wavelet: str = "haar") -> Pyramid:
    """Transform images (B, C, H, W) into `levels` levels of sub-bands; 0 levels give the image itself as `low`.

    The Haar transform is orthonormal: LL_J coefficients are 2^J times the local pixel mean. It needs H and W divisible
    by 2^J; other wavelets extend the border symmetrically and accept any size.

    Raises:
        DtkdError: the size does not divide, or the wavelet is unknown.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = x.float()
        if wavelet == "haar":
            _check_divisible(x, levels)
        details = []
        for _ in range(levels):
            x, detail = _haar_step(x) if wavelet == "haar" else _filter_bank_step(x, wavelet)
            details.append(detail)
        return Pyramid(x, tuple(details))


def reconstruct(pyramid: Pyramid, wavelet: str = "haar") -> Tensor:
    """Invert `decompose`: a Pyramid back to images (B, C, H, W)."""
    low, details = pyramid
    with torch.autocast(low.device.type, enabled=False):
        if wavelet != "haar":
            return _inverse_filter_bank(wavelet).to(low.device)((low.float(), list(details))) if details else low
        x = low.float()
        for detail in reversed(details):
            x = _inverse_haar_step(x, detail.float())
        return x


def check_wavelet(name: str) -> None:
    """Refuse a name that `decompose` does not know.

    Raises:
        DtkdError: it is neither haar nor a discrete wavelet of PyWavelets.
    """
    from pywt import wavelist  # pyright: ignore[reportAttributeAccessIssue] (pywt ships no types)

    if name != "haar" and name not in wavelist(kind="discrete"):
        raise DtkdError(f"unknown wavelet {name!r}: take haar, or a name that pywt.wavelist(kind='discrete') lists")


def _haar_step(x: Tensor) -> tuple[Tensor, Tensor]:
    # Pairs by unbind, whose backward is one stack; that of a slice with a step fills and adds an image for each slice.
    left, right = x.unflatten(-1, (-1, 2)).unbind(-1)  # (B, C, H, W/2)
    (top, bottom), (top_diff, bottom_diff) = (
        rows.unflatten(-2, (-1, 2)).unbind(-2) for rows in (left + right, left - right)
    )  # (B, C, H/2, W/2)
    detail = torch.stack((top - bottom, top_diff + bottom_diff, top_diff - bottom_diff), dim=2)  # (B, C, 3, H/2, W/2)
    return (top + bottom) / 2, detail / 2


def _inverse_haar_step(low: Tensor, detail: Tensor) -> Tensor:
    lh, hl, hh = detail.unbind(2)
    top, bottom, top_diff, bottom_diff = low + lh, low - lh, hl + hh, hl - hh
    upper = torch.stack((top + top_diff, top - top_diff), -1).flatten(-2)  # (B, C, H, 2W)
    lower = torch.stack((bottom + bottom_diff, bottom - bottom_diff), -1).flatten(-2)
    return torch.stack((upper, lower), -2).flatten(-3, -2) / 2  # (B, C, 2H, 2W)


def _check_divisible(x: Tensor, levels: int) -> None:
    step = 2**levels
    if x.shape[-2] % step or x.shape[-1] % step:
        raise DtkdError(
            f"a {levels}-level Haar transform needs sides divisible by {step}, got {x.shape[-2]}x{x.shape[-1]}: "
            "crop the images or use fewer levels"
        )


def _filter_bank_step(x: Tensor, wavelet: str) -> tuple[Tensor, Tensor]:
    # Not DWTForward: its hand-written backward is wrong at symmetric borders, and this is what its forward computes.
    bands = _lowlevel().afb2d(x, _analysis_filters(wavelet, x.device), mode="symmetric").unflatten(1, (x.shape[1], 4))
    return bands[:, :, 0], bands[:, :, 1:]


@lru_cache(maxsize=16)
def _analysis_filters(wavelet: str, device: torch.device) -> tuple[Tensor, ...]:
    from pywt import Wavelet  # pyright: ignore[reportAttributeAccessIssue]

    check_wavelet(wavelet)
    bank = Wavelet(wavelet)
    return _lowlevel().prep_filt_afb2d(bank.dec_lo, bank.dec_hi, device=device)


@lru_cache(maxsize=16)
def _inverse_filter_bank(wavelet: str) -> torch.nn.Module:
    check_wavelet(wavelet)
    _lowlevel()
    from pytorch_wavelets import DWTInverse

    return DWTInverse(wave=wavelet, mode="symmetric")


def _lowlevel() -> ModuleType:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "pkg_resources is deprecated")  # nothing that its user could do about it
        from pytorch_wavelets.dwt import lowlevel
    return lowlevel
