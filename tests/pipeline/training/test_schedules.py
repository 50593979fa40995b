"""The learning rate against torch's own schedulers, and at the points where its definition fixes it."""

import pytest
import torch

from pipeline.training.schedules import learning_rate


def test_learning_rate_equals_torch_cosine():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=3e-4)
    oracle = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100, eta_min=3e-6)
    for step in range(100):
        got = learning_rate(step, 100, peak=3e-4, floor=0.01)
        assert got == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        oracle.step()


def test_learning_rate_equals_torch_multistep():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=2e-4)
    oracle = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[50, 80], gamma=0.5)
    for step in range(100):
        got = learning_rate(step, 100, peak=2e-4, kind="multistep", milestones=(0.5, 0.8), gamma=0.5)
        assert got == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        oracle.step()


def test_warm_up_is_linear_and_ends_at_the_peak():
    rates = [learning_rate(step, 100, peak=1.0, warmup=10) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * k for k in range(1, 11)])
    assert rates[10] == max(rates) == 1.0
    assert rates[99] > 0


def test_a_run_shorter_than_its_warm_up_stays_finite():
    assert [learning_rate(step, 3, peak=1.0, warmup=10) for step in range(3)] == pytest.approx([0.1, 0.2, 0.3])


def test_linear_rises_stays_and_falls():
    rates = [learning_rate(step, 1000, peak=1.0, kind="linear", warmup=200, decay=0.3) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / 200)
    assert rates[300] == 1
    assert rates[850] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(1 / 300)
