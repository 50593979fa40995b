"""The wavelet transform against two independent implementations, and its own promises."""

import numpy as np
import pytest
import pywt
import torch

from pipeline.system.errors import DtkdError
from pipeline.wavelet import check_wavelet, decompose, reconstruct

SIZES = [(8, 8), (48, 80), (192, 64)]


def images(height: int, width: int, dtype=torch.float32) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(height * width), dtype=dtype)


def assert_same(got: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-6) -> None:
    assert got.shape == expected.shape
    error = (got - expected).abs()
    where = np.unravel_index(int(error.argmax()), error.shape)
    assert error.max() <= tolerance, f"mean {error.mean():.2e}, max {error.max():.2e} at {where}"


@pytest.mark.filterwarnings("ignore:pkg_resources")
@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("size", SIZES)
def test_haar_equals_pytorch_wavelets(size, levels):
    from pytorch_wavelets import DWTForward

    x = images(*size)
    got = decompose(x, levels)
    low, details = DWTForward(J=levels, wave="haar", mode="symmetric")(x)
    assert_same(got.low, low, 1e-6 * 2**levels)  # LL grows by 2 a level, and its rounding with it
    for one, other in zip(got.details, details, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("levels", [1, 2, 3])
@pytest.mark.parametrize("size", SIZES)
def test_haar_equals_pywavelets(size, levels):
    x = images(*size)
    got = decompose(x, levels)
    low, *coarse_first = pywt.wavedec2(x.double().numpy(), "haar", mode="symmetric", level=levels)
    assert_same(got.low.double(), torch.from_numpy(low), 1e-6 * 2**levels)
    for one, (lh, hl, hh) in zip(got.details, reversed(coarse_first), strict=True):
        assert_same(one.double(), torch.from_numpy(np.stack((lh, hl, hh), axis=2)))


@pytest.mark.parametrize("wavelet", ["db2", "bior2.2", "sym4"])
def test_other_wavelets_equal_pywavelets(wavelet):
    x = images(40, 56)
    got = decompose(x, 2, wavelet)
    low, *coarse_first = pywt.wavedec2(x.double().numpy(), wavelet, mode="symmetric", level=2)
    assert_same(got.low.double(), torch.from_numpy(low), 5e-6)
    for one, bands in zip(got.details, reversed(coarse_first), strict=True):
        assert_same(one.double(), torch.from_numpy(np.stack(bands, axis=2)), 5e-6)


@pytest.mark.parametrize("wavelet", ["haar", "db2"])
@pytest.mark.parametrize("levels", [0, 1, 2, 3])
def test_reconstruct_inverts_decompose(wavelet, levels):
    x = images(64, 48)
    assert_same(reconstruct(decompose(x, levels, wavelet), wavelet), x, 2e-6)


def test_haar_is_orthonormal():
    basis = torch.eye(64).reshape(64, 1, 8, 8)
    low, details = decompose(basis, 3)
    matrix = torch.cat([low.flatten(1), *(d.flatten(1) for d in details)], dim=1)
    assert_same(matrix @ matrix.T, torch.eye(64))


def test_bands_are_named_as_in_the_literature():
    rows = torch.tensor([1.0, -1.0]).repeat(4).reshape(1, 1, 8, 1).expand(1, 1, 8, 8)  # changes from row to row
    detail = decompose(rows, 1).details[0][0, 0]
    assert detail.abs().amax((1, 2)).tolist() == [2, 0, 0]  # LH: low along the rows, high across them
    detail = decompose(rows.mT, 1).details[0][0, 0]
    assert detail.abs().amax((1, 2)).tolist() == [0, 2, 0]


def test_zero_levels_are_the_image():
    x = images(5, 7)
    low, details = decompose(x, 0)
    assert torch.equal(low, x)
    assert details == ()


@pytest.mark.parametrize(("size", "levels"), [((7, 8), 1), ((8, 10), 2), ((12, 12), 3)])
def test_sizes_that_do_not_divide_are_refused(size, levels):
    with pytest.raises(DtkdError, match=f"divisible by {2**levels}, got {size[0]}x{size[1]}"):
        decompose(images(*size), levels)


def test_unknown_wavelet_is_refused():
    with pytest.raises(DtkdError, match="unknown wavelet 'har'"):
        check_wavelet("har")
    with pytest.raises(DtkdError, match="unknown wavelet 'morl'"):  # continuous: no filter bank
        decompose(images(8, 8), 1, "morl")


@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_autocast_does_not_lower_the_precision(wavelet):
    x = images(32, 32)
    expected = decompose(x, 2, wavelet)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = decompose(x, 2, wavelet)
        back = reconstruct(got, wavelet)
        half = decompose(x.bfloat16(), 2, wavelet)
    assert half.low.dtype == back.dtype == torch.float32
    assert torch.equal(got.low, expected.low)
    assert all(torch.equal(a, b) for a, b in zip(got.details, expected.details, strict=True))


@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_gradients(wavelet):
    """W is linear, so the gradient of <W(x), y> in x is W's adjoint of y: <W(z), y> = <z, gradient> for any z."""
    x, other = images(16, 16).requires_grad_(), images(16, 16) - 0.5
    weights = [torch.randn_like(t) for t in (decompose(x, 2, wavelet).low, *decompose(x, 2, wavelet).details)]

    def product(image):
        low, details = decompose(image, 2, wavelet)
        return sum((a * b).sum() for a, b in zip((low, *details), weights, strict=True))

    (gradient,) = torch.autograd.grad(product(x), x)
    assert torch.allclose((other * gradient).sum(), product(other), atol=1e-4)
