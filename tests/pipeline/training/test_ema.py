"""The moving average against its definition."""

import pytest
import torch

from pipeline.training.ema import average, ema_decay


def test_the_average_is_its_recurrence():
    averaged, network = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    pair = (averaged.parameters(), network.parameters())
    expected = [0.9 * a.detach() + 0.1 * b.detach() for a, b in zip(*pair, strict=True)]
    average(averaged, network, 0.9)
    for got, want in zip(averaged.parameters(), expected, strict=True):
        torch.testing.assert_close(got.detach(), want)


def test_the_decay_warms_up_to_its_limit():
    decays = [ema_decay(step, 0.999) for step in range(20_000)]
    assert decays[0] == 0.1
    assert decays == sorted(decays)
    assert decays[90] == pytest.approx(0.91)
    assert decays[-1] == 0.999
