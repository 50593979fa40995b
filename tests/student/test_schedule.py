"""Schedules at the points where their definition fixes them, and against torch's own schedulers."""

import math

import pytest
import torch

from student.loss import LossSettings
from student.schedule import distill_weight, learning_rate

TOTAL = 1000


@pytest.mark.parametrize(
    ("schedule", "middle", "quarter"),
    [("linear", 1.0, 0.5), ("cosine", 1.0, 1 - math.sqrt(0.5)), ("constant", 2.0, 2.0)],
)
def test_distill_weight_rises_between_start_and_end(schedule, middle, quarter):
    settings = LossSettings(lambda_max=2.0, schedule=schedule, start=0.1, length=0.4)
    before = 2.0 if schedule == "constant" else 0.0
    assert distill_weight(0, TOTAL, settings) == before
    assert distill_weight(100, TOTAL, settings) == pytest.approx(before)
    assert distill_weight(200, TOTAL, settings) == pytest.approx(quarter)
    assert distill_weight(300, TOTAL, settings) == pytest.approx(middle)
    assert distill_weight(500, TOTAL, settings) == pytest.approx(2.0)
    assert distill_weight(999, TOTAL, settings) == 2.0


def test_reversed_falls_as_linear_rises():
    rising, falling = LossSettings(lambda_max=2.0), LossSettings(lambda_max=2.0, schedule="reversed")
    for step in range(0, TOTAL, 37):
        assert distill_weight(step, TOTAL, rising) + distill_weight(step, TOTAL, falling) == pytest.approx(2.0)
    assert distill_weight(0, TOTAL, falling) == 2.0


def test_distill_weight_without_length_is_a_step():
    settings = LossSettings(start=0.5, length=0.0)
    assert [distill_weight(step, TOTAL, settings) for step in (0, 499, 500, 999)] == [0, 0, 1, 1]


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
