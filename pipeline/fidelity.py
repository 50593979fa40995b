"""Fidelity of 8-bit images to a reference, and to the LR image that they were made of.

psnr_y and ssim_y are as the super-resolution literature takes them: BT.601 luma, a border left out.

Letters: H W height and width in pixels. Images are uint8 (H, W, 3) RGB.
"""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from pipeline.filters import resize_bicubic
from pipeline.images import Rgb
from pipeline.system.errors import DtkdError

SSIM_RADIUS, SSIM_SIGMA = 5, 1.5  # an 11x11 window


def luma(image: Rgb) -> NDArray[np.float64]:
    """BT.601 studio-range luma of an 8-bit RGB image: (H, W, 3) -> (H, W), 16 to 235, not rounded."""
    return image.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255 + 16


def psnr_y(sr: Rgb, gt: Rgb, crop_border: int) -> float:
    """Peak signal-to-noise ratio on luma in dB, higher is better; infinite for equal images.

    Args:
        sr: (H, W, 3) uint8.
        gt: of the same shape.
        crop_border: pixels left out on every side.

    Raises:
        DtkdError: if the shapes differ or nothing is left inside the border.
    """
    a, b = _luma_pair(sr, gt, crop_border, at_least=1)
    error = np.mean((a - b) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else math.inf


def ssim_y(sr: Rgb, gt: Rgb, crop_border: int) -> float:
    """Structural similarity on luma, higher is better (Wang et al. 2004: 11x11 Gaussian window, sigma 1.5, valid part).

    Args:
        sr: (H, W, 3) uint8.
        gt: of the same shape.
        crop_border: pixels left out on every side.

    Raises:
        DtkdError: if the shapes differ or less than 11x11 pixels are left inside the border.
    """
    a, b = _luma_pair(sr, gt, crop_border, at_least=2 * SSIM_RADIUS + 1)
    inside = slice(SSIM_RADIUS, -SSIM_RADIUS)

    def smooth(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return gaussian_filter(x, SSIM_SIGMA, radius=SSIM_RADIUS)[inside, inside]

    mean_a, mean_b = smooth(a), smooth(b)
    var_a, var_b = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2
    covariance = smooth(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return float(np.mean(luminance * structure))


def lr_psnr(sr: Rgb, lr: Rgb) -> float:
    """PSNR of the restored image, brought back to the LR image's size, toward the LR image: dB, higher is better.

    MATLAB-compatible bicubic with antialiasing, rounded to 8 bits, all three channels, whole image (LR-PSNR of Lugmayr
    et al., NTIRE 2021). Infinite for equal images. An LR image with noise or blur of its own is not to be met exactly.

    Args:
        sr: (s h, s w, 3) uint8.
        lr: (h, w, 3) uint8.
    """
    reduced = np.clip(np.rint(resize_bicubic(sr.astype(np.float64), *lr.shape[:2])), 0, 255)
    error = np.mean((reduced - lr) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else math.inf


def colour_drift(sr: Rgb, lr: Rgb) -> float:
    """Mean over the colour channels of |mean of the restored image - mean of the LR image|, 8-bit levels.

    Means over the whole image, because finer ones would count the noise of a `real` LR image that was removed.
    """
    return float(np.abs(sr.mean(axis=(0, 1)) - lr.mean(axis=(0, 1))).mean())


def _luma_pair(sr: Rgb, gt: Rgb, crop_border: int, at_least: int) -> tuple[NDArray, NDArray]:
    if sr.shape != gt.shape:
        raise DtkdError(f"an image must have its reference's size, got {_size(sr)} against {_size(gt)}")
    height, width = sr.shape[0] - 2 * crop_border, sr.shape[1] - 2 * crop_border
    if min(height, width) < at_least:
        raise DtkdError(
            f"an image of {_size(sr)} leaves less than {at_least}x{at_least} pixels inside a border of {crop_border}: "
            "use a smaller --crop-border or larger images"
        )
    inside = slice(crop_border, crop_border + height), slice(crop_border, crop_border + width)
    return luma(sr)[inside], luma(gt)[inside]


def _size(image: Rgb) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
