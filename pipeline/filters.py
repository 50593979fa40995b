"""Resizing, blurring and noise whose results are the same bits on every machine.

H W height and width, C channels, K kernel side (odd), h w height and width after a resize.

Floating-point sums depend on their order, so on the processor, the BLAS and the FFT; one last bit then flips a pixel,
and a JPEG block after it. Here pixels lie on a grid of 2^-12 levels (0..255) and filter weights on a power-of-two grid,
which makes every product and every partial sum an exact float64: order and fused multiply-adds no longer matter, nor
does the kind of FFT, whose error stays far below half a grid step and is rounded away. What remains is the last bit of
exp and Bessel functions in a blur kernel, which reaches a rounded weight less than once in ten million kernels, and of
the distributions behind the tables of noise, which are rounded as well.
"""

import math
from functools import lru_cache
from typing import Literal, cast

import numpy as np
import scipy.fft
import scipy.sparse
import scipy.special
from numpy.random import Generator
from numpy.typing import NDArray

Array = NDArray[np.float64]
Interpolation = Literal["area", "bilinear", "bicubic"]

PIXEL_GRID = 2.0**12
"""Pixels (in levels, 0..255) between two filters are multiples of 1 / PIXEL_GRID."""
RESIZE_GRID = 2.0**22
"""Resize weights: 9 bits of pixel and twice 22 of weight fit float64, so two passes over 8-bit pixels are exact."""
KERNEL_GRID = 2.0**22
"""Blur weights: with PIXEL_GRID a product is a multiple of 2^-34, some thirty times above the FFT's error."""

_NORMAL_DRAWS, _POISSON_DRAWS = 2**16, 2**12


def snap(pixels: Array) -> Array:
    """Round pixels to multiples of 1 / PIXEL_GRID."""
    pixels = pixels * PIXEL_GRID
    np.rint(pixels, out=pixels)
    pixels *= 1 / PIXEL_GRID  # exact: a power of two
    return pixels


# Resizing ----------------------------------------------------------------------------------------------------------


def resize_bicubic(image: Array, out_h: int, out_w: int) -> Array:
    """Resize (H, W, C) to (out_h, out_w, C) as MATLAB's imresize does by default, in float64 without rounding.

    Bicubic with a = -1/2, stretched by the reduction when downscaling (antialiasing), mirrored borders. Values outside
    the input's range (overshoot) are kept: clip and round as you need. Exact on any machine for 8-bit levels.
    """
    x = _along_first(bicubic_matrix(image.shape[0], out_h), image)  # (h, W, C)
    x = _along_first(bicubic_matrix(image.shape[1], out_w), x.swapaxes(0, 1))  # (w, h, C)
    return np.ascontiguousarray(x.swapaxes(0, 1))


def bicubic(lr: NDArray[np.uint8], scale: int) -> NDArray[np.uint8]:
    """The baseline: MATLAB-compatible bicubic upscaling, (h, w, 3) -> (s h, s w, 3), rounded to 8 bits once."""
    up = resize_bicubic(lr.astype(np.float64), lr.shape[0] * scale, lr.shape[1] * scale)
    return np.clip(np.rint(up), 0, 255).astype(np.uint8)


def resize_bicubic_uint8(image: NDArray[np.uint8], out_h: int, out_w: int) -> NDArray[np.uint8]:
    """Resize (H, W, C) as `resize_bicubic`, rounding and clipping after each direction, as MATLAB does with uint8.

    Reproduces the published LR images of Set5 and Set14 to the bit, but for two pixels at the border: the MATLAB that
    made them still repeated the border pixel instead of mirroring.
    """
    x = _half_up(_along_first(bicubic_matrix(image.shape[0], out_h), image.astype(np.float64)))  # (h, W, C)
    x = _half_up(_along_first(bicubic_matrix(image.shape[1], out_w), x.swapaxes(0, 1)))  # (w, h, C)
    return np.ascontiguousarray(x.swapaxes(0, 1), dtype=np.uint8)


def _half_up(levels: Array) -> Array:
    return np.clip(np.floor(levels + 0.5), 0, 255)


def resize(planes: Array, out_h: int, out_w: int, mode: Interpolation) -> Array:
    """Resize planes (C, H, W) to (C, out_h, out_w) as torch.nn.functional.interpolate(size=...): no antialiasing."""
    if planes.shape[1:] == (out_h, out_w):
        return planes
    x = planes.transpose(2, 0, 1)  # (W, C, H)
    x = snap(_along_first(_interpolation_matrix(planes.shape[2], out_w, mode), x))  # (w, C, H)
    x = snap(_along_first(_interpolation_matrix(planes.shape[1], out_h, mode), x.transpose(2, 1, 0)))  # (h, C, w)
    return np.ascontiguousarray(x.swapaxes(0, 1))  # (C, h, w)


def _along_first(matrix: scipy.sparse.csr_array, x: Array) -> Array:
    flat = np.ascontiguousarray(x).reshape(x.shape[0], -1)
    return np.asarray(matrix @ flat).reshape(-1, *x.shape[1:])


@lru_cache(maxsize=64)
def bicubic_matrix(size: int, out: int) -> scipy.sparse.csr_array:
    """What `resize_bicubic` does along one axis, as a matrix (out, size)."""
    ratio = size / out
    stretch = max(ratio, 1.0)
    centres = (np.arange(out) + 0.5) * ratio - 0.5
    taps = math.ceil(4 * stretch) + 2
    positions = np.floor(centres - 2 * stretch).astype(np.int64)[:, None] + np.arange(taps)  # (out, taps)
    weights = cubic((positions - centres[:, None]) / stretch, a=-0.5)
    return _sparse((_exact_rows(weights), mirrored(positions, size)), size)


@lru_cache(maxsize=512)
def _interpolation_matrix(size: int, out: int, mode: Interpolation) -> scipy.sparse.csr_array:
    if mode == "area":
        return _sparse(_area_weights(size, out), size)
    centres = (np.arange(out) + 0.5) * (size / out) - 0.5
    if mode == "bilinear":
        positions = np.floor(centres).astype(np.int64)[:, None] + np.arange(2)
        weights = np.maximum(1 - np.abs(positions - centres[:, None]), 0)
    else:
        positions = np.floor(centres).astype(np.int64)[:, None] + np.arange(-1, 3)
        weights = cubic(positions - centres[:, None], a=-0.75)
    return _sparse((_exact_rows(weights), np.clip(positions, 0, size - 1)), size)


def _area_weights(size: int, out: int) -> tuple[Array, NDArray[np.int64]]:
    """Mean of the input pixels that an output pixel touches, wholly or in part (adaptive average pooling)."""
    i = np.arange(out)
    first, last = i * size // out, ((i + 1) * size + out - 1) // out  # [first, last)
    positions = first[:, None] + np.arange((last - first).max())
    weights = (positions < last[:, None]).astype(np.float64)
    return _exact_rows(weights), np.minimum(positions, size - 1)


def cubic(x: Array, a: float) -> Array:
    """Keys' cubic convolution kernel (1981), support [-2, 2]; a = -1/2 is MATLAB's, -3/4 is PyTorch's and OpenCV's."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def mirrored(positions: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Fold positions outside [0, size) back in, the border pixel repeated: -1 is 0, -2 is 1, size is size - 1."""
    folded = positions % (2 * size)
    return np.minimum(folded, 2 * size - 1 - folded)


def cut_mirrored(image: NDArray[np.uint8], rows: range, columns: range, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Cut out of the first `size` (height, width) pixels of an image (H, W, C), mirrored beyond them."""
    y, x = (mirrored(np.arange(r.start, r.stop), side) for r, side in zip((rows, columns), size, strict=True))
    left = int(x.min())
    return np.take(image[y, left : int(x.max()) + 1], x - left, axis=1)  # whole rows first: four times as fast


def _exact_rows(weights: Array) -> Array:
    """Normalise each row, round it to RESIZE_GRID, give the rounding error to its largest weight: the sum is 1."""
    units = np.rint(weights / weights.sum(axis=1, keepdims=True) * RESIZE_GRID)
    largest = np.argmax(np.abs(units), axis=1)
    units[np.arange(len(units)), largest] += RESIZE_GRID - units.sum(axis=1)
    return units / RESIZE_GRID


def _sparse(weights_at: tuple[Array, NDArray[np.int64]], size: int) -> scipy.sparse.csr_array:
    weights, positions = weights_at
    rows = np.repeat(np.arange(len(weights)), weights.shape[1])
    kept = weights.ravel() != 0
    entries = (weights.ravel()[kept], (rows[kept], positions.ravel()[kept]))
    return scipy.sparse.csr_array(entries, shape=(len(weights), size))


# Blurring ----------------------------------------------------------------------------------------------------------


def blur(planes: Array, kernel: Array) -> Array:
    """Correlate planes (C, H, W) with a kernel (K, K) from `exact_kernel`; borders reflected, the edge not repeated.

    The planes lie on the grid of `snap`, and so does the result.
    """
    side = kernel.shape[0]
    if side == 1:
        return planes
    h, w = planes.shape[1:]
    shape = [cast(int, scipy.fft.next_fast_len(n + side - 1, real=True)) for n in (h, w)]
    scaled = kernel[::-1, ::-1] * (PIXEL_GRID * KERNEL_GRID)  # exact: a power of two
    response = np.asarray(scipy.fft.rfft2(scaled, shape))
    padded, blurred = np.zeros(shape), np.empty_like(planes)
    for plane, out in zip(planes, blurred, strict=True):  # one at a time: it stays in the processor's cache
        _reflect(plane, side // 2, padded)
        spectrum = np.asarray(scipy.fft.rfft2(padded))
        spectrum *= response
        full = np.asarray(scipy.fft.irfft2(spectrum, shape, overwrite_x=True))
        np.rint(full[side - 1 : side - 1 + h, side - 1 : side - 1 + w], out=out)  # the exact sums, in units of 2^-34
        out *= 1 / KERNEL_GRID
        np.rint(out, out=out)
        out *= 1 / PIXEL_GRID
    return blurred


def _reflect(plane: Array, pad: int, out: Array) -> None:
    """Write a plane (H, W) and `pad` reflected pixels on every side into the corner of `out`."""
    h, w = plane.shape
    rows, columns = _reflected(h, pad), _reflected(w, pad)
    tall = plane[rows]
    out = out[: h + 2 * pad]
    out[:, pad : pad + w] = tall
    out[:, :pad] = tall[:, columns[:pad]]
    out[:, pad + w : w + 2 * pad] = tall[:, columns[pad + w :]]


def exact_kernel(kernel: Array) -> Array:
    """Normalise a kernel (K, K), round it to KERNEL_GRID and give the rounding error to the centre: the sum stays 1."""
    units = np.rint(kernel / kernel.sum() * KERNEL_GRID)
    centre = kernel.shape[0] // 2
    units[centre, centre] += KERNEL_GRID - units.sum()
    return units / KERNEL_GRID


def gaussian(side: int, sigma: tuple[float, float], angle: float = 0.0, beta: float = 1.0) -> Array:
    """Gaussian kernel (K, K), generalised by the exponent `beta` of its quadratic form (1 is the Gaussian itself).

    Args:
        side: K, odd.
        sigma: standard deviations along the two main axes, pixels.
        angle: of the first main axis against x, radians.
        beta: below 1 a sharper peak and longer tails, above 1 a flatter top (Liu et al., 2020).
    """
    return exact_kernel(np.exp(-0.5 * _quadratic_form(side, sigma, angle) ** beta))


def plateau(side: int, sigma: tuple[float, float], angle: float = 0.0, beta: float = 1.0) -> Array:
    """Plateau-shaped kernel (K, K): 1 / (1 + q^beta), q the Gaussian's quadratic form; arguments as for `gaussian`."""
    return exact_kernel(1 / (1 + _quadratic_form(side, sigma, angle) ** beta))


def sinc(side: int, cutoff: float) -> Array:
    """Circular low-pass kernel (K, K): a 2-D sinc cut to K, so with ringing; cutoff in radians a pixel."""
    y, x = _centred_grid(side)
    r = np.hypot(x, y)
    r[side // 2, side // 2] = 1
    kernel = cutoff * scipy.special.j1(cutoff * r) / (2 * np.pi * r)
    kernel[side // 2, side // 2] = cutoff**2 / (4 * np.pi)  # the limit at r = 0
    return exact_kernel(kernel)


def _quadratic_form(side: int, sigma: tuple[float, float], angle: float) -> Array:
    """Squared distance from the centre in units of sigma, along axes turned by angle."""
    y, x = _centred_grid(side)
    c, s = math.cos(angle), math.sin(angle)
    return ((c * x + s * y) / sigma[0]) ** 2 + ((c * y - s * x) / sigma[1]) ** 2


@lru_cache(maxsize=32)
def _centred_grid(side: int) -> tuple[Array, Array]:
    axis = np.arange(side, dtype=np.float64) - side // 2
    return axis[:, None], axis[None, :]


@lru_cache(maxsize=512)
def _reflected(size: int, pad: int) -> NDArray[np.int64]:
    """Positions -pad .. size + pad - 1 folded into [0, size), the border pixel not repeated: -1 is 1."""
    period = max(2 * size - 2, 1)
    folded = np.arange(-pad, size + pad) % period
    return np.minimum(folded, period - folded)


# Noise -------------------------------------------------------------------------------------------------------------


def normal(shape: tuple[int, ...], rng: Generator) -> Array:
    """Standard normal draws, from a table of 2^16 equally likely ones: no draw is beyond 4.3."""
    return _normal_draws().take(rng.integers(_NORMAL_DRAWS, size=shape, dtype=np.uint16))


def shot_noise(levels: NDArray[np.uint8], photons: int, rng: Generator) -> Array:
    """What Poisson noise adds to 8-bit levels, any shape, if white (255) is so many photons, 1..256; in levels.

    From tables of 2^12 equally likely draws a level, whose ends are 3.7 standard deviations apart from the mean.
    """
    which = rng.integers(_POISSON_DRAWS, size=levels.shape, dtype=np.uint16).astype(np.int32)
    which += levels.astype(np.int32) * _POISSON_DRAWS
    return _shot_draws(photons).take(which).astype(np.float64)


@lru_cache(maxsize=1)
def _normal_draws() -> Array:
    quantiles = scipy.special.ndtri((np.arange(_NORMAL_DRAWS) + 0.5) / _NORMAL_DRAWS)
    return np.rint(quantiles * _NORMAL_DRAWS) / _NORMAL_DRAWS  # so that the last bit of ndtri does not matter


@lru_cache(maxsize=9)
def _shot_draws(photons: int) -> NDArray[np.float32]:
    """(256 levels, draws): photons counted less photons expected, in levels, on the grid of `snap`."""
    expected = np.arange(256) * (photons / 255)
    counts = np.arange(photons + 8 * math.isqrt(photons) + 16)
    likelihoods = (np.arange(_POISSON_DRAWS) + 0.5) / _POISSON_DRAWS
    at_most = scipy.special.pdtr(counts, expected[:, None])  # (256, counts): probability of so many or fewer
    drawn = np.stack([np.searchsorted(row, likelihoods) for row in at_most])
    return snap((drawn - expected[:, None]) * (255 / photons)).astype(np.float32)
