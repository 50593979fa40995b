"""The pace of a loop, on a clock of its own."""

import pytest

from pipeline.training.pace import NAMES, Meter


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_waiting_and_working_are_told_apart_and_what_lies_between_steps_is_left_out():
    clock = Clock()

    def stream():
        for batch in range(4):
            clock.now += 1  # reading
            yield batch

    meter, taken = Meter(8, "cpu", clock), []
    for batch in meter.timed(stream()):
        clock.now += 3  # the step
        meter.step_done()
        clock.now += 100  # validation
        if batch == 1:
            taken.append(meter.take())
    taken.append(meter.take())
    assert [(row["images_per_s"], row["waiting"]) for row in taken] == [(2, 0.25), (2, 0.25)]
    assert {name for row in taken for name in row} <= set(NAMES)
    assert taken[0].get("memory_mb", 1) > 0
    assert meter.note().startswith("2.0 images/s, 25% waiting for data")


def test_ten_steps_tell_what_the_rest_will_take_once():
    clock, told = Clock(), {}
    meter = Meter(8, "cpu", clock)
    for batch in meter.timed(iter(range(40))):
        clock.now += 60 if batch == 0 else 2  # the first step warms up
        meter.step_done()
        told[batch + 1] = meter.forecast(left=900)
    assert [step for step, text in told.items() if text] == [10]
    assert told[10].startswith("2 s a step: about 30:00 min for the 900 steps left, validations and saving apart")


def test_the_moment_looks_back_on_the_latest_steps_and_the_log_on_all_since_its_last_line():
    clock = Clock()
    meter = Meter(10, "cpu", clock)
    for batch in meter.timed(iter(range(100))):
        clock.now += 1 if batch < 50 else 0.125
        meter.step_done()
    assert meter.note().startswith("80.0 images/s, 0% waiting")
    assert meter.take()["images_per_s"] == pytest.approx(1000 / 56.25, abs=0.01)
