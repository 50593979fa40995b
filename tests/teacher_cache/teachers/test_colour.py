"""The colour fix against SciPy's convolutions, and what it is for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cache_support import NoisyBicubic, make_corpus, samples, settings, tars
from scipy import ndimage

from pipeline.images import load_rgb, to_tensor
from pipeline.system.errors import UsageError
from pipeline.teacher import Place
from teacher_cache import teachers
from teacher_cache.building.build import build_cache
from teacher_cache.building.settings import StageOneSettings
from teacher_cache.building.verify import load_teacher, verify_cache
from teacher_cache.teachers.colour import LEVELS, ColourFixed, fix_colour
from teacher_cache.teachers.settings import TeacherSettings


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    folder = make_corpus(tmp_path_factory.mktemp("corpus"))
    return to_tensor(load_rgb(folder / "coffee.png"))[None]  # (1, 3, 128, 128)


@pytest.fixture(scope="module")
def pair(photo):
    """A picture with a cast and a false texture, and its LR image without them."""
    noise = torch.randn(photo.shape, generator=torch.Generator().manual_seed(0)) * 0.05
    cast = torch.tensor([0.06, -0.04, 0.02]).view(1, 3, 1, 1)
    return (photo * 0.9 + cast + noise).clamp(0, 1), F.avg_pool2d(photo, 4)


def upscaled(lr):
    return F.interpolate(lr, scale_factor=4, mode="bicubic", antialias=False)


def low_of(picture):
    """The a-trous smoothing, one image plane and one direction at a time, with SciPy."""
    out = picture.double().numpy()
    for level in range(LEVELS):
        taps = np.zeros(2 ** (level + 1) + 1)
        taps[[0, 2**level, -1]] = 0.25, 0.5, 0.25
        for axis in (2, 3):
            out = ndimage.correlate1d(out, taps, axis=axis, mode="nearest")
    return out


def test_wavelet_takes_the_low_band_of_the_lr_image_and_the_rest_of_the_picture(pair):
    picture, lr = pair
    expected = (picture.double().numpy() - low_of(picture) + low_of(upscaled(lr))).clip(0, 1)
    np.testing.assert_allclose(fix_colour(picture, lr, "wavelet").numpy(), expected, atol=2e-6)


def test_adain_takes_mean_and_deviation_of_the_lr_image(pair):
    picture, lr = pair
    up = upscaled(lr)
    a, b = picture.double().numpy(), up.double().numpy()
    mean_a, mean_b = (x.mean((2, 3), keepdims=True) for x in (a, b))
    std_a, std_b = (np.sqrt(x.var((2, 3), ddof=1, keepdims=True) + 1e-5) for x in (a, b))
    expected = ((a - mean_a) / std_a * std_b + mean_b).clip(0, 1)
    np.testing.assert_allclose(fix_colour(picture, lr, "adain").numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("fix", ["adain", "wavelet"])
def test_a_cast_goes_and_the_detail_stays(pair, photo, fix):
    picture, lr = pair
    fixed = fix_colour(picture, lr, fix)
    assert (
        (fixed.mean((2, 3)) - photo.mean((2, 3))).abs().max() < 0.2 / 255 < (picture - photo).mean((2, 3)).abs().max()
    )
    detail, kept = (x - F.avg_pool2d(x, 3, 1, 1) for x in (picture, fixed))
    assert torch.corrcoef(torch.stack([detail.flatten(), kept.flatten()]))[0, 1] > 0.99


@pytest.mark.parametrize("fix", ["none", "adain", "wavelet"])
def test_what_has_no_cast_is_left_alone_whatever_its_size(fix):
    lr = torch.rand(2, 3, 3, 5, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.25
    up = upscaled(lr)
    torch.testing.assert_close(fix_colour(up, lr, fix), up, atol=1e-6, rtol=0)
    flat = torch.full((1, 3, 8, 8), 0.3)
    assert (fix_colour(flat, torch.full((1, 3, 2, 2), 0.4), fix) - (0.3 if fix == "none" else 0.4)).abs().max() < 1e-6


def test_a_teacher_with_it_is_another_one_and_otherwise_itself(haar_folder):
    plain = teachers.load(str(haar_folder))
    fixed = teachers.load(str(haar_folder), settings=TeacherSettings(colour="wavelet"))
    lr = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    places = [Place("a", 32, 32, 0, 0, 32, 32)] * 2
    torch.testing.assert_close(fixed.restore(lr, [1, 2]), fix_colour(plain.restore(lr, [1, 2]), lr, "wavelet"))
    torch.testing.assert_close(fixed.restore_at(lr, [1, 2], places), fixed.restore(lr, [1, 2]))
    assert fixed.fingerprint() == plain.fingerprint() | {"colour": "wavelet"}
    assert (fixed.name, fixed.scale, fixed.steps, fixed.parameters) == (
        plain.name, plain.scale, plain.steps, plain.parameters,
    )  # fmt: skip
    fixed.steps = 1
    assert fixed.fingerprint()["steps"] == 1


def test_a_cache_made_with_it_drifts_less_and_is_checked_with_it(tmp_path, haar_folder):
    class Warm(NoisyBicubic):
        def restore(self, lr, seeds):
            return (super().restore(lr, seeds) + torch.tensor([0.05, 0, -0.05]).view(3, 1, 1)).clamp(0, 1)

    corpus, how = make_corpus(tmp_path / "corpus"), settings()
    one = build_cache(str(corpus), tmp_path / "one", Warm(), how)
    two = build_cache(str(corpus), tmp_path / "two", ColourFixed(Warm(), "wavelet"), how)
    assert one.drift.mean > 5 > 1 > two.drift.mean
    assert tars(tmp_path / "one") != tars(tmp_path / "two")
    assert [meta["key"] for meta, _ in samples(tmp_path / "one")] == [m["key"] for m, _ in samples(tmp_path / "two")]

    colour = TeacherSettings(colour="adain")
    build_cache(str(corpus), tmp_path / "three", teachers.load(str(haar_folder), settings=colour), how)
    again = load_teacher(tmp_path / "three", None, "cpu")
    assert verify_cache(tmp_path / "three", recompute=2, teacher=again).ok


def test_it_is_a_setting_of_stage_one():
    assert StageOneSettings().teacher == TeacherSettings()
    with pytest.raises(UsageError, match=r"the teacher embedded has no teacher\.noise_level and teacher\.prompt"):
        teachers.check_name("embedded", TeacherSettings(prompt="a photo", noise_level=10, colour="adain"))
