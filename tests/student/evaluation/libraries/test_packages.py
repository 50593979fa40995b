import inspect
import sys

import numpy as np
import piq
import pytest
import scipy.fft
import skimage.data
from PIL import Image
from scipy import ndimage
from skimage.color import rgb2yiq
from ssimulacra2 import compute_ssimulacra2

from pipeline.system.errors import UsageError
from student.evaluation import metrics
from student.evaluation.libraries import offline, packages

PACKAGED = tuple(packages.METRICS)


@pytest.fixture(scope="module")
def gt():
    return skimage.data.chelsea()[20:276, 50:321]


@pytest.fixture(scope="module")
def noisy(gt):
    """By strength."""
    noise = np.random.default_rng(0).normal(0, 1, gt.shape)
    return {strength: np.clip(gt + strength * noise, 0, 255).astype(np.uint8) for strength in (0, 6, 20)}


@pytest.mark.parametrize("name", PACKAGED)
def test_more_noise_is_worse_and_nothing_is_fetched(name, gt, noisy):
    with offline.no_network():
        (metric,) = metrics.load([name]).metrics
        best, middle, worst = (metric.measure(sr, gt, 4) for sr in noisy.values())
    if metric.lower_is_better:
        best, middle, worst = -best, -middle, -worst
    assert best > middle > worst
    assert metric.measure(noisy[6], gt, 0) == metric.measure(noisy[6], gt, 9), "the whole image is measured"


@pytest.mark.parametrize("name", PACKAGED)
def test_what_is_recorded(name):
    (metric,) = metrics.load([name]).metrics
    packaged = packages.METRICS[name]
    assert metric.reference == "gt"
    assert metric.settings["licence"] in ("Apache-2.0", "BSD-3-Clause", "MIT")
    assert metric.settings["source"].startswith(f"{packaged.package} ") and metric.settings["source"][-1].isdigit()
    assert packaged.settings.items() <= metric.settings.items()


@pytest.mark.parametrize(("name", "function"), [("dss", piq.dss), ("mdsi", piq.mdsi), ("haarpsi", piq.haarpsi)])
def test_every_parameter_of_piq_is_pinned(name, function):
    """The two of MDSI that `combination="sum"` does not look at left out."""
    parameters = inspect.signature(function).parameters.keys() - {"x", "y", "data_range", "reduction", "beta", "gamma"}
    assert packages.METRICS[name].settings.keys() == parameters


@pytest.mark.parametrize("name", PACKAGED)
def test_images_that_are_too_small_are_refused(name, gt, noisy):
    (metric,) = metrics.load([name]).metrics
    smallest = packages.METRICS[name].smallest
    assert np.isfinite(metric.measure(noisy[6][:smallest, :smallest], gt[:smallest, :smallest], 0))
    with pytest.raises(ValueError, match=rf"needs {smallest} pixels a side at least, got {smallest}x{smallest - 1}"):
        metric.measure(noisy[6][: smallest - 1, :smallest], gt[: smallest - 1, :smallest], 0)


def test_dss_equals_its_definition(gt, noisy):
    """Balanov et al. 2015: local spread of every DCT coefficient compared, correlation beside it for the mean."""
    (dss,) = metrics.load(["dss"]).metrics
    assert dss.measure(noisy[20], gt, 0) == pytest.approx(_dss(noisy[20], gt), abs=1e-4)


def _dss(sr: np.ndarray, gt: np.ndarray) -> float:
    near = np.exp(-(np.arange(-1, 2) ** 2) / (2 * 1.5**2))
    window = np.outer(near, near) / near.sum() ** 2
    rows, columns = gt.shape[0] // 8, gt.shape[1] // 8
    bands = []
    for image in (sr, gt):
        luma = 255 * rgb2yiq(image)[: 8 * rows, : 8 * columns, 0]
        bands.append(scipy.fft.dctn(luma.reshape(rows, 8, columns, 8), axes=(1, 3), norm="ortho"))
    offset = (np.arange(8) + 0.5) ** 2
    weights = np.exp(-(offset[:, None] + offset) / (2 * 1.55**2))
    weights[weights < 0.01] = 0
    worst = round(0.05 * rows * columns)

    def local(x: np.ndarray) -> np.ndarray:
        return ndimage.convolve(x, window, mode="constant")

    total = 0.0
    for m, n in np.argwhere(weights):
        x, y = (band[:, m, :, n] for band in bands)
        c = 300 if m or n else 1000
        xx, yy = (np.maximum(local(z * z) - local(z) ** 2, 0) for z in (x, y))
        similarity = np.sort((2 * np.sqrt(xx * yy) + c) / (xx + yy + c), axis=None)[:worst].mean()
        if not (m or n):
            xy = local(x * y) - local(x) * local(y)
            similarity *= np.sort((xy + c) / (np.sqrt(xx * yy) + c), axis=None)[:worst].mean()
        total += weights[m, n] * similarity
    return total / weights.sum()


def test_ssimulacra2_is_that_of_the_files(gt, noisy, tmp_path):
    for name, image in (("gt.png", gt), ("sr.png", noisy[6])):
        Image.fromarray(image).save(tmp_path / name)
    (ours,) = metrics.load(["ssimulacra2"]).metrics
    assert ours.measure(noisy[6], gt, 0) == compute_ssimulacra2(tmp_path / "gt.png", tmp_path / "sr.png")


def test_cvvdp_leaves_the_import_path_alone():
    path = list(sys.path)
    metrics.load(["cvvdp"])
    assert sys.path == path


def test_without_its_package_a_metric_is_told_apart(monkeypatch):
    monkeypatch.setitem(sys.modules, "ssimulacra2", None)
    loaded = metrics.load(["psnr_y", "ssimulacra2"])
    assert [metric.name for metric in loaded.metrics] == ["psnr_y"]
    (missing,) = loaded.unavailable
    assert missing.name == "ssimulacra2" and "ssimulacra2 cannot be imported" in missing.reason
    assert missing.remedy == "pip install ssimulacra2"


@pytest.mark.parametrize(("wrong", "near"), [("ssimulacra", "ssimulacra2"), ("HaarPSI", "haarpsi"), ("cvdp", "cvvdp")])
def test_unknown_names_are_led_to_them(wrong, near):
    with pytest.raises(UsageError, match=f"unknown metric '{wrong}': the nearest known one is '{near}'"):
        metrics.load([wrong])
