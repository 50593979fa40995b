"""Multi-level two-dimensional wavelet transform, in float32 whatever the surrounding autocast says.

B batch, C channels, H W height and width, J number of levels, j level (1 is the finest).

Haar has a path of its own (sums and differences of 2x2 blocks, several times faster than a filter bank); every other
wavelet goes through pytorch-wavelets, which is also what the Haar path is tested against.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.errors import DtkdError


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
        if wavelet != "haar":
            low, details = _filter_bank(wavelet, levels).to(x.device)(x) if levels else (x, ())
            return Pyramid(low, tuple(details))
        _check_divisible(x, levels)
        details = []
        for _ in range(levels):
            x, detail = _haar_step(x)
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


def _haar_step(x: Tensor) -> tuple[Tensor, Tensor]:
    a, b = x[..., 0::2, 0::2], x[..., 0::2, 1::2]  # (B, C, H/2, W/2)
    c, d = x[..., 1::2, 0::2], x[..., 1::2, 1::2]
    top, bottom, top_diff, bottom_diff = a + b, c + d, a - b, c - d
    detail = torch.stack((top - bottom, top_diff + bottom_diff, top_diff - bottom_diff), dim=2)  # (B, C, 3, H/2, W/2)
    return (top + bottom) / 2, detail / 2


def _inverse_haar_step(low: Tensor, detail: Tensor) -> Tensor:
    lh, hl, hh = detail.unbind(2)
    top, bottom, top_diff, bottom_diff = low + lh, low - lh, hl + hh, hl - hh
    rows = (torch.stack((top + top_diff, top - top_diff), -1), torch.stack((bottom + bottom_diff, bottom - bottom_diff), -1))
    b, c, h, w = low.shape
    return (torch.stack([r.flatten(-2) for r in rows], -2) / 2).reshape(b, c, 2 * h, 2 * w)


def _check_divisible(x: Tensor, levels: int) -> None:
    step = 2**levels
    if x.shape[-2] % step or x.shape[-1] % step:
        raise DtkdError(
            f"a {levels}-level Haar transform needs sides divisible by {step}, got {x.shape[-2]}x{x.shape[-1]}: "
            "crop the images or use fewer levels"
        )


@lru_cache(maxsize=16)
def _filter_bank(wavelet: str, levels: int) -> torch.nn.Module:
    from pytorch_wavelets import DWTForward

    _check_known(wavelet)
    return DWTForward(J=levels, wave=wavelet, mode="symmetric")


@lru_cache(maxsize=16)
def _inverse_filter_bank(wavelet: str) -> torch.nn.Module:
    from pytorch_wavelets import DWTInverse

    _check_known(wavelet)
    return DWTInverse(wave=wavelet, mode="symmetric")


def _check_known(wavelet: str) -> None:
    import pywt

    if wavelet not in pywt.wavelist(kind="discrete"):
        raise DtkdError(f"unknown wavelet {wavelet!r}: take haar, or a name that pywt.wavelist(kind='discrete') lists")
