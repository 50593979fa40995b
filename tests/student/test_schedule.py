"""lambda(t) at the points where its definition fixes it."""

import math

import pytest

from student.loss import LossSettings
from student.schedule import distill_weight, grid_shift

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


def test_grid_shift_is_any_place_of_a_window_and_a_function_of_the_step():
    spinning = LossSettings(cycle_spinning=True)
    shifts = [grid_shift(step, 3, spinning) for step in range(400)]
    assert {down for down, _ in shifts} == {right for _, right in shifts} == set(range(16))
    assert len(set(shifts)) > 150
    assert shifts == [grid_shift(step, 3, spinning) for step in range(400)]
    assert shifts != [grid_shift(step, 4, spinning) for step in range(400)]
    assert {grid_shift(step, 3, LossSettings()) for step in range(9)} == {(0, 0)}
