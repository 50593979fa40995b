import numpy as np
import pytest
from scipy.stats import bootstrap

from student.evaluation.statistics import crossed_interval, mean_interval, paired_difference, statistic_interval


def test_the_interval_is_that_of_scipy():
    values = np.random.default_rng(3).gamma(2.0, 1.5, 60)
    ours = mean_interval(values)
    theirs = bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert ours.value == pytest.approx(values.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=0.02)
    assert ours == mean_interval(values), "the same figures, the same interval"


def test_tiles_of_one_photo_are_drawn_together():
    photos = np.random.default_rng(0).normal(size=12)
    values, names = np.repeat(photos, 50), np.repeat([f"p{i}" for i in range(12)], 50).tolist()
    apart, together = mean_interval(values), mean_interval(values, names)
    alone = mean_interval(photos)
    assert np.allclose(together, alone, atol=0.05)
    assert apart.high - apart.low < 0.3 * (together.high - together.low)


def test_paired_differences_are_surer_than_the_figures():
    rng = np.random.default_rng(5)
    hard = rng.normal(25, 4, 40)
    ours, theirs = hard + 0.2 + rng.normal(0, 0.1, 40), hard
    difference = paired_difference(ours, theirs)
    assert difference.is_clear_of_zero and 0.1 < difference.low < difference.high < 0.3
    assert not paired_difference(theirs, theirs).is_clear_of_zero
    with pytest.raises(ValueError, match="of the same images"):
        paired_difference(ours, theirs[1:])


def test_ratios_are_of_the_means():
    rows = np.array([[1.0, 2.0], [3.0, 4.0], [8.0, 2.0]])
    found = statistic_interval(rows, lambda mean: mean[..., 0] / mean[..., 1])
    assert found.value == pytest.approx(12 / 8)
    assert 0.5 <= found.low < found.value < found.high <= 4
    with pytest.raises(ValueError, match="expected rows"):
        statistic_interval(rows, lambda mean: mean[..., 0], ["a"])


def test_seeds_count_as_well_as_images():
    rng = np.random.default_rng(2)
    images, seeds = rng.normal(0, 0.1, (40, 1)), np.array([[-1.0, 0.0, 1.0]])
    one, three = crossed_interval(images + 0.5), crossed_interval(images + 0.5 + seeds)
    assert one == pytest.approx(mean_interval(images[:, 0] + 0.5), abs=0.01)
    assert one.is_clear_of_zero and not three.is_clear_of_zero
    assert three.value == pytest.approx(one.value)
    with pytest.raises(ValueError, match="expected a table"):
        crossed_interval(np.zeros((0, 3)))
