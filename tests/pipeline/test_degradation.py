"""Settings of the degradations: defaults, files, and what is refused."""

import json
import math

import pytest

from pipeline import config
from pipeline.degradation import Degradation, RealSettings, RoundSettings
from pipeline.system.errors import DtkdError


def test_defaults_are_real_esrgans():
    """Against options/train_realesrgan_x4plus.yml of the Real-ESRGAN repository."""
    first, second = RealSettings().first, RealSettings().second
    for settings in (first, second):
        assert settings.kernel_side == (7, 21) and settings.sinc_prob == 0.1
        assert settings.kernel_probs == (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
        assert settings.gaussian_beta == (0.5, 4) and settings.plateau_beta == (1, 2)
        assert settings.gaussian_prob == 0.5 and settings.gray_prob == 0.4 and settings.jpeg_quality == (30, 95)
    assert (first.blur_prob, second.blur_prob) == (1, 0.8)
    assert (first.sigma, second.sigma) == ((0.2, 3), (0.2, 1.5))
    assert (first.resize_probs, second.resize_probs) == ((0.2, 0.7, 0.1), (0.3, 0.4, 0.3))
    assert (first.resize, second.resize) == ((0.15, 1.5), (0.3, 1.2))
    assert (first.noise_sigma, second.noise_sigma) == ((1, 30), (1, 25))
    assert (first.poisson_scale, second.poisson_scale) == ((0.05, 3), (0.05, 2.5))
    assert RealSettings().final_sinc_prob == 0.8


def test_config_is_json_and_tells_settings_apart():
    real_config = Degradation("real").config()
    assert json.loads(json.dumps(real_config)) == real_config
    milder = RealSettings(first=RoundSettings(noise_sigma=(1.0, 10.0)))
    assert Degradation("real", 4, milder).config() != real_config
    assert Degradation("bicubic", 4, milder).config() == Degradation("bicubic").config()  # it does not use them
    assert Degradation("bicubic", 2).config() != Degradation("bicubic", 4).config()


def test_settings_load_from_overrides():
    settings = config.load(RealSettings, overrides=["second.noise_sigma=[0, 5]", "final_sinc_prob=0"])
    assert settings.second.noise_sigma == (0, 5) and settings.final_sinc_prob == 0
    assert settings.second.blur_prob == 0.8 and settings.first == RoundSettings()


@pytest.mark.parametrize("kind", ["bicubic", "real", "paired"])
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_margin_is_a_multiple_of_the_scale(kind, scale):
    assert Degradation(kind, scale).margin % scale == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("blur_prob", 1.5),
        ("kernel_probs", (0.5, 0.4, 0, 0, 0, 0)),
        ("resize_probs", (1.2, -0.2, 0)),
        ("sigma", (3.0, 0.2)),
        ("sigma", (0.0, 1.0)),
        ("kernel_side", (7, 20)),
        ("gaussian_beta", (1.5, 2.0)),
        ("resize", (0.2, 0.9)),
        ("jpeg_quality", (0.0, 101.0)),
        ("noise_sigma", (math.nan, 1.0)),
    ],
)
def test_wrong_settings_are_named(field, value):
    with pytest.raises(DtkdError, match=field):
        RoundSettings(**{field: value})
