import random

import numpy as np
import pytest
import torch

from student.evaluation import metrics
from student.evaluation.libraries.seeding import SEED, seeded


def draws() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


def test_a_block_draws_the_same_whatever_was_drawn_before():
    with seeded():
        first = draws()
    draws()
    with seeded():
        assert draws() == first
    with seeded(seed=SEED + 1):
        assert draws() != first


def test_the_callers_generators_go_on_as_if_nothing_happened():
    with seeded():  # so that this test leaves no trace
        expected = draws()
    with seeded():
        with seeded(seed=5):
            draws()
        with pytest.raises(ZeroDivisionError), seeded(seed=5):
            draws()
            raise ZeroDivisionError
        assert draws() == expected


@pytest.mark.gpu
def test_an_accelerator_is_seeded_and_given_back():
    with seeded("cuda"):
        first = torch.rand(4, device="cuda")
        with seeded("cuda", seed=5):
            assert not torch.equal(torch.rand(4, device="cuda"), first)
        second = torch.rand(4, device="cuda")
    with seeded("cuda"):
        assert torch.equal(torch.rand(4, device="cuda"), first)
        assert torch.equal(torch.rand(4, device="cuda"), second)


@pytest.fixture
def drawing_patches(monkeypatch):
    """WaDIQaM draws its patches at training only; here whenever it measures, from numpy and random beside torch."""
    from pyiqa.archs.wadiqam_arch import WaDIQaM

    def get_patches(self, x, y=None):
        patches = self._get_random_patches(x, y)
        weight = np.random.rand() + random.random()
        return tuple(patch * weight for patch in patches)

    monkeypatch.setattr(WaDIQaM, "get_patches", get_patches)


def test_a_metric_that_draws_gives_one_figure(drawing_patches):
    """pyiqa's own code on random weights: the same in every load and whatever was measured before."""
    generator = np.random.default_rng(0)
    gt = generator.integers(0, 256, (96, 112, 3), np.uint8)
    sr = np.clip(gt + generator.normal(0, 20, gt.shape), 0, 255).astype(np.uint8)
    pins: dict[str, dict[str, metrics.Setting]] = {"wadiqam_fr": {"pretrained": False}}
    state = torch.get_rng_state()
    (metric,) = metrics.load(["wadiqam_fr"], pins=pins).metrics
    first, other = metric.measure(sr, gt, 0), metric.measure(gt, sr, 0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert first != other
    assert metric.measure(sr, gt, 0) == first
    assert metrics.load(["wadiqam_fr"], pins=pins).metrics[0].measure(sr, gt, 0) == first
    assert metric.settings["random_seed"] == SEED
