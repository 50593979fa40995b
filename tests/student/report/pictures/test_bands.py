import io

import numpy as np
import pytest
import pywt
from page_support import texture
from PIL import Image

from student.report.pictures.bands import band_maps, can_be_mapped


def grey(found):
    with Image.open(io.BytesIO(found.picture)) as image:
        return np.asarray(image.convert("L")).astype(float)


def test_means_are_those_of_an_independent_transform():
    gt, ours = texture(1, 64, 96), texture(2, 64, 96)
    errors = {"low": [], "mid": [], "high": []}
    for channel in range(3):
        a, b = (pywt.wavedec2(p[..., channel].astype(float), "haar", level=2, mode="periodization") for p in (ours, gt))
        errors["low"].append(np.abs(a[0] - b[0]) / 4)
        for group, level, scale in (("mid", 1, 4), ("high", 2, 2)):
            errors[group] += [np.abs(x - y) / scale for x, y in zip(a[level], b[level], strict=True)]
    means = band_maps({"ours": ours}, gt).maps["ours"].means
    for group, expected in errors.items():
        assert means[group] == pytest.approx(np.mean(expected), rel=1e-4)


def test_bands_stand_where_the_legend_says():
    """An error of rows that alternate is in LH1 alone, below at the left; one of columns in HL1, above at the right."""
    gt = np.full((64, 64, 3), 128, np.uint8)
    rows, columns = gt.copy(), gt.copy()
    rows[::2] += 20
    rows[1::2] -= 20
    columns[:, ::2] += 20
    columns[:, 1::2] -= 20
    found = band_maps({"rows": rows, "columns": columns}, gt)
    for name, (y, x) in {"rows": (slice(32, 64), slice(0, 32)), "columns": (slice(0, 32), slice(32, 64))}.items():
        image = grey(found.maps[name])
        assert image.shape == (64, 64)
        assert image[y, x].mean() > 250
        image[y, x] = 0
        assert image.max() < 12  # what the lossy picture adds at the seams


def test_one_scale_for_all_candidates_of_an_image():
    gt = texture(3)
    weak, strong = (np.clip(gt + np.float32(amount), 0, 255).astype(np.uint8) for amount in (4, 40))
    found = band_maps({"weak": weak, "strong": strong, "equal": gt}, gt)
    assert found.white == pytest.approx(40, abs=2)
    assert grey(found.maps["strong"])[:18, :18].mean() > 240
    assert 60 < grey(found.maps["weak"])[:18, :18].mean() < 100  # the root of a tenth
    assert grey(found.maps["equal"]).max() == 0


def test_sides_that_do_not_divide_and_large_pictures():
    gt, ours = texture(1, 333, 701), texture(2, 333, 701)
    found = band_maps({"ours": ours}, gt)
    height, width = grey(found.maps["ours"]).shape
    assert max(height, width) <= 256 and height % 4 == width % 4 == 0
    assert width / height == pytest.approx(701 / 333, rel=0.03)
    assert not can_be_mapped(gt[:3]) and can_be_mapped(gt[:4, :4])
