"""The degradations, against independent implementations, and to the byte."""

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
from PIL import Image

from pipeline import filters
from pipeline.degradation import Degradation, RealSettings, RoundSettings, SecondRoundSettings
from pipeline.degrade import degrade
from pipeline.filters import resize_bicubic
from pipeline.system.errors import DtkdError

EVAL = Path(__file__).parents[3] / "shared" / "data" / "eval"


QUIET = {"blur_prob": 0.0, "resize_probs": (0.0, 0.0, 1.0), "noise_sigma": (0.0, 0.0), "gaussian_prob": 1.0}


def picture(h: int = 96, w: int = 128) -> np.ndarray:
    """Edges, ramps and texture by integer arithmetic: the same on every machine."""
    y, x = np.mgrid[:h, :w]
    r = (x * 2 + y) % 256
    g = ((x // 16 + y // 16) % 2) * 180 + (x * y) % 64
    b = np.where((x - w // 2) ** 2 + (y - h // 2) ** 2 < (h // 3) ** 2, 220, 40) + (x * 7 + y * 13) % 32
    return np.stack([r, g, b], axis=2).clip(0, 255).astype(np.uint8)


def assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert actual.shape == expected.shape
    difference = np.abs(actual.astype(np.float64) - expected)
    where = np.unravel_index(difference.argmax(), difference.shape)
    assert difference.max() <= tolerance, f"mean {difference.mean():g}, max {difference.max():g} at {where}"


def matlab_imresize(image: np.ndarray, out_h: int, out_w: int) -> np.ndarray:
    """imresize(image, [out_h out_w], "bicubic") pixel by pixel, from its published definition."""

    def weight(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0

    def one_axis(lines: np.ndarray, out: int) -> np.ndarray:
        size = len(lines)
        scale = out / size
        shrink = min(scale, 1.0)
        result = np.zeros((out, *lines.shape[1:]))
        for i in range(1, out + 1):  # MATLAB counts from 1
            u = i / scale + 0.5 * (1 - 1 / scale)
            left = math.floor(u - 2 / shrink)
            total = 0.0
            for j in range(left, left + math.ceil(4 / shrink) + 2):
                share = shrink * weight(shrink * (u - j))
                mirror = [*range(1, size + 1), *range(size, 0, -1)]
                result[i - 1] += share * lines[mirror[(j - 1) % (2 * size)] - 1]
                total += share
            result[i - 1] /= total
        return result

    return one_axis(one_axis(image, out_h).swapaxes(0, 1), out_w).swapaxes(0, 1)


@pytest.mark.parametrize("size", [(24, 32), (8, 12), (32, 43), (96, 128), (100, 131), (192, 200), (1, 2)])
def test_bicubic_is_matlabs(size):
    image = picture().astype(np.float64)
    assert_close(resize_bicubic(image, *size), matlab_imresize(image, *size), 1e-3)


def test_bicubic_by_powers_of_two_is_exact():
    image = picture().astype(np.float64)
    for size in ((24, 32), (48, 64), (192, 256)):
        assert_close(resize_bicubic(image, *size), matlab_imresize(image, *size), 1e-11)
    assert_close(resize_bicubic(image / 255, 24, 32), matlab_imresize(image / 255, 24, 32), 1e-13)  # any range


@pytest.mark.parametrize("name", ["Set5", "Set14"])
def test_bicubic_makes_the_published_lr_images(name):
    """To the bit, where the border is repeated as the MATLAB of 2015 did; mirrored, but for two pixels there."""
    folder = EVAL / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    for path in sorted((folder / "HR").iterdir()):
        hr = np.asarray(Image.open(path).convert("RGB"))
        expected = np.asarray(Image.open(folder / "LR" / path.name).convert("RGB"))
        hr = hr[: expected.shape[0] * 4, : expected.shape[1] * 4]
        repeated = np.pad(hr, ((8, 8), (8, 8), (0, 0)), mode="edge")
        assert_close(degrade(repeated, Degradation("bicubic"), np.random.default_rng(0))[2:-2, 2:-2], expected, 0)
        mirrored = degrade(hr, Degradation("bicubic"), np.random.default_rng(0))
        assert_close(mirrored[2:-2, 2:-2], expected[2:-2, 2:-2], 0)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_of_8_bits_stays_close_to_the_unrounded(scale):
    hr = picture(96, 132) // 2 + 64  # no overshoot beyond 0..255 that the rounding between the directions would clip
    expected = matlab_imresize(hr.astype(np.float64), 96 // scale, 132 // scale)
    assert_close(degrade(hr, Degradation("bicubic", scale), np.random.default_rng(0)), expected, 1.2)


def test_bicubic_draws_nothing():
    rng, untouched = np.random.default_rng(5), np.random.default_rng(5)
    degrade(picture(), Degradation("bicubic"), rng)
    assert rng.random() == untouched.random()


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(24, 32), (15, 20), (95, 127), (97, 140), (144, 192), (96, 60), (1, 1)])
def test_resize_is_torchs_interpolate(mode, size):
    import torch  # here, so that the other process of a test below starts without it

    planes = picture().transpose(2, 0, 1).astype(np.float64)
    kwargs = {} if mode == "area" else {"align_corners": False}
    expected = torch.nn.functional.interpolate(torch.from_numpy(planes)[None], size, mode=mode, **kwargs)[0].numpy()
    assert_close(filters.resize(planes, *size, mode), expected, 1e-3)


@pytest.mark.parametrize("shape", [(3, 40, 51), (1, 7, 9), (3, 3, 2), (3, 1, 1), (3, 200, 210)])
@pytest.mark.parametrize("side", [1, 7, 21])
def test_blur_is_exact(shape, side):
    """Bit by bit what a direct correlation gives: the sums are exact, so their order and the FFT leave no trace."""
    rng = np.random.default_rng(side)
    planes = filters.snap(rng.uniform(0, 255, shape))
    kernel = filters.exact_kernel(rng.uniform(-0.2, 1, (side, side)))
    if min(shape[1:]) > side // 2:
        direct = np.stack([scipy.ndimage.correlate(plane, kernel, mode="mirror") for plane in planes])
        assert np.array_equal(filters.blur(planes, kernel), filters.snap(direct))
    assert_close(filters.blur(np.full(shape, 77.0), kernel), np.full(shape, 77.0), 0)  # weights add up to 1


def test_resize_does_not_depend_on_the_order_of_sums():
    planes = picture().transpose(2, 0, 1).astype(np.float64)
    matrix = filters._interpolation_matrix(128, 53, "bicubic").toarray()
    backwards = planes[:, :, ::-1] @ matrix[:, ::-1].T  # BLAS, the terms the other way round
    assert np.array_equal(filters.resize(planes, 96, 53, "bicubic"), filters.snap(backwards))


def test_gaussian_is_the_normal_density():
    axis = np.arange(-10, 11)
    profile = np.exp(-(axis**2) / (2 * 1.7**2))
    expected = np.outer(profile, profile) / profile.sum() ** 2
    assert_close(filters.gaussian(21, (1.7, 1.7)), expected, 1e-6)
    assert_close(filters.gaussian(21, (1.7, 1.7), angle=0.8), expected, 1e-6)  # isotropic: no direction


def test_anisotropic_kernels_turn():
    for shape in (filters.gaussian, filters.plateau):
        wide = shape(21, (3.0, 0.8), 0.0, 1.3)
        assert wide[10, 15] > wide[15, 10]
        assert_close(shape(21, (3.0, 0.8), math.pi / 2, 1.3), wide.T, 1e-6)
        assert_close(shape(21, (3.0, 0.8), -0.6, 1.3), shape(21, (3.0, 0.8), 0.6, 1.3)[::-1], 1e-6)
        covariance = np.linalg.inv([[2.0, 0.7], [0.7, 1.0]])
        widths, axes = np.linalg.eigh(np.linalg.inv(covariance))
        y, x = np.mgrid[-10:11, -10:11]
        form = np.einsum("iyx,ij,jyx->yx", np.stack([x, y]), covariance, np.stack([x, y]))
        values = np.exp(-0.5 * form**1.3) if shape is filters.gaussian else 1 / (1 + form**1.3)
        angle = math.atan2(axes[1, 0], axes[0, 0])
        turned = shape(21, (math.sqrt(widths[0]), math.sqrt(widths[1])), angle, 1.3)
        assert_close(turned, values / values.sum(), 1e-5)


def test_sinc_passes_low_frequencies_only():
    kernel = filters.sinc(99, math.pi / 2)
    response = np.abs(np.fft.fft2(kernel, (256, 256)))[0, :128]
    assert_close(response[:50], np.ones(50), 0.1)
    assert response[80:].max() < 0.1


def real(**settings: object) -> Degradation:
    """Only what the settings switch on, at scale 1 and JPEG 95."""
    first = RoundSettings(**{**QUIET, "jpeg_quality": (95.0, 95.0), **settings})
    second = SecondRoundSettings(**{**QUIET, "jpeg_quality": (95.0, 95.0)})
    return Degradation("real", 1, RealSettings(first, second, final_sinc_prob=0.0), mild_share=0.0)


GOLDEN = {
    "bicubic x4": "3c1059a1841bbc87",
    "bicubic x3": "2675c1251d7c8a10",
    "real x4 seed 0": "0de75d0e96d1b83e",
    "real x4 seed 1": "60ad327d183d62bc",
    "real x4 seed 2": "e3ec8e0f08fcd120",
    "real x4 seed 3": "a9d11b615cd8e77c",
    "real x4 seed 4": "0f962f0e305b88ca",
    "real x2 seed 5": "9742e2b92afcd72f",
}


def golden_hashes() -> dict[str, str]:
    hashes = {}
    for name in GOLDEN:
        kind, scale, *rest = name.split()
        hr, seed = picture(96, 132), int(rest[-1]) if rest else 0
        lr = degrade(hr, Degradation(kind, int(scale[1:])), np.random.default_rng(seed))
        hashes[name] = hashlib.sha256(lr.tobytes()).hexdigest()[:16]
    return hashes


def test_bytes_are_the_golden_ones():
    """They change with the model (raise REVISION), and perhaps with numpy's generators or another libjpeg."""
    assert golden_hashes() == GOLDEN


def test_bytes_are_the_same_in_another_process():
    code = "import json, test_degrade; print(json.dumps(test_degrade.golden_hashes()))"
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    script = f"import sys; sys.path[:0] = {folders!r}; {code}"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == golden_hashes()


def test_seeds_give_different_images_and_calls_do_not_interfere():
    hr, degradation = picture(), Degradation("real")
    forward = {seed: degrade(hr, degradation, np.random.default_rng(seed)).tobytes() for seed in range(25)}
    np.random.seed(3)  # global state must not matter either
    backward = {seed: degrade(hr, degradation, np.random.default_rng(seed)).tobytes() for seed in reversed(range(25))}
    assert forward == backward
    assert len(set(forward.values())) == 25


@pytest.mark.parametrize("size", [(4, 4), (4, 400), (8, 12), (36, 20), (64, 64)])
def test_small_and_long_images(size):
    hr = picture(*size)
    for seed in range(30):
        lr = degrade(hr, Degradation("real"), np.random.default_rng(seed))
        assert lr.shape == (size[0] // 4, size[1] // 4, 3) and lr.dtype == np.uint8


def test_a_grey_plane_survives_all_but_noise():
    settings = RealSettings(
        RoundSettings(noise_sigma=(0, 0), gaussian_prob=1, jpeg_quality=(95, 95)),
        SecondRoundSettings(noise_sigma=(0, 0), gaussian_prob=1, jpeg_quality=(95, 95)),
    )
    hr = np.full((64, 64, 3), 128, np.uint8)
    for seed in range(20):
        assert np.unique(degrade(hr, Degradation("real", 4, settings, 0.0), np.random.default_rng(seed))).tolist() == [
            128
        ]


def test_content_stays_where_it_is():
    """No step shifts the image: its centre of mass stays within a quarter of an LR pixel on average."""
    hr = np.full((256, 256, 3), 20, np.uint8)
    hr[96:160, 96:160] = 220
    y, x = np.mgrid[:64, :64] - 31.5
    shifts = []
    for seed in range(60):
        lr = degrade(hr, Degradation("real"), np.random.default_rng(seed)).mean(axis=2)
        mass = np.clip(lr - 90, 0, None)
        shifts.append([(mass * y).sum() / mass.sum(), (mass * x).sum() / mass.sum()])
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.25


@pytest.mark.parametrize("gray", [0.0, 1.0])
def test_gaussian_noise_has_its_sigma(gray):
    hr = np.full((128, 128, 3), 128, np.uint8)
    # chroma is averaged by JPEG, so that colour noise is judged by its luma
    expected = 12.0 if gray else 12.0 * math.sqrt(0.299**2 + 0.587**2 + 0.114**2)
    noisy = degrade(hr, real(noise_sigma=(12.0, 12.0), gray_prob=gray), np.random.default_rng(1)).astype(float)
    luma = noisy @ [0.299, 0.587, 0.114]
    assert luma.std() == pytest.approx(expected, rel=0.05)
    assert luma.mean() == pytest.approx(128, abs=0.5)
    assert (np.ptp(noisy, axis=2).mean() < 2) == bool(gray)


def test_poisson_noise_grows_with_brightness():
    hr = np.repeat(np.repeat(np.arange(256, dtype=np.uint8), 2)[None, :, None], 96, axis=0).repeat(3, axis=2)
    noisy = degrade(hr, real(gaussian_prob=0.0, poisson_scale=(1.0, 1.0), gray_prob=1.0), np.random.default_rng(2))
    noise = noisy[..., 1].astype(float) - hr[..., 1]
    for level in (50, 100, 200):  # 256 levels are 256 photons at 255: variance level * 255 / 256
        column = slice(2 * level - 16, 2 * level + 16)
        assert noise[:, column].std() == pytest.approx(math.sqrt(level * 255 / 256), rel=0.1)


def test_normal_draws_are_normal():
    draws = filters.normal((3, 500, 400), np.random.default_rng(3))
    assert abs(draws.mean()) < 0.005 and draws.std() == pytest.approx(1, rel=0.005)
    assert (draws**4).mean() == pytest.approx(3, rel=0.03)
    assert 4 < np.abs(draws).max() < 4.4
    for inside, share in ((1, 0.6827), (2, 0.9545), (3, 0.9973)):
        assert (np.abs(draws) < inside).mean() == pytest.approx(share, abs=0.002)


@pytest.mark.parametrize("photons", [1, 8, 128, 256])
@pytest.mark.parametrize("level", [0, 3, 60, 255])
def test_shot_noise_has_poissons_moments(photons, level):
    levels = np.full((3, 300, 400), level, np.uint8)
    counts = (filters.shot_noise(levels, photons, np.random.default_rng(photons)) + level) * photons / 255
    expected = level * photons / 255
    assert_close(counts, np.rint(counts), 0.01)  # whole photons
    assert counts.min() > -0.01
    assert counts.mean() == pytest.approx(expected, abs=0.01 * math.sqrt(expected) + 1e-3)
    assert counts.std() == pytest.approx(math.sqrt(expected), rel=0.02)
    one = 1 - math.exp(-expected)  # probability of a photon at all
    assert (counts > 0.5).mean() == pytest.approx(one, abs=0.005)


def test_jpeg_quality_is_obeyed():
    hr = np.repeat(picture(128, 128)[..., 2:], 3, axis=2)  # grey: 4:2:0 costs it nothing
    errors = []
    for quality in (95.0, 60.0, 30.0):
        lr = degrade(hr, real(jpeg_quality=(quality, quality)), np.random.default_rng(0))
        errors.append(np.abs(lr.astype(int) - hr).mean())
    assert errors[0] < errors[1] / 2 < errors[2] / 2


def test_wrong_degradations_and_images():
    with pytest.raises(DtkdError, match="bicubic, real or paired"):
        Degradation("blurry")  # type: ignore[arg-type]
    with pytest.raises(DtkdError, match="scale"):
        Degradation("bicubic", 0)
    rng = np.random.default_rng(0)
    for image in (picture(96, 130), picture().astype(np.float32), picture()[..., 0], picture()[:0]):
        with pytest.raises(ValueError, match=r"expected|multiples"):
            degrade(image, Degradation("bicubic"), rng)
    with pytest.raises(ValueError, match="paired"):
        degrade(picture(), Degradation("paired"), rng)
