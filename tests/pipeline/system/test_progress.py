import io

import pytest

from pipeline.system import progress
from pipeline.system.progress import Pace, ProgressEvent, clock_text, plain_line, rate_text


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_pace_counts_from_the_first_event_so_that_a_resumed_run_tells_the_truth():
    clock = Clock()
    pace = Pace(clock)
    assert pace.observe(ProgressEvent(90, 100, "tiles")) == (None, None)
    clock.now += 10
    rate, left = pace.observe(ProgressEvent(95, 100, "tiles"))
    assert rate == 0.5
    assert left == 10


def test_another_unit_is_other_work_with_a_pace_of_its_own():
    clock = Clock()
    pace = Pace(clock)
    for done in (0, 1000):
        pace.observe(ProgressEvent(done, 1000, "steps"))
        clock.now += 500
    assert pace.observe(ProgressEvent(0, 10, "images")) == (None, None)
    clock.now += 2
    assert pace.observe(ProgressEvent(1, 10, "images")) == (0.5, 18)


def test_a_part_of_a_longer_work_counts_on():
    seen = []
    progress.part_of(seen.append, before=20, total=50, name="second")(ProgressEvent(3, 10, "steps", "loss 1"))
    assert seen == [ProgressEvent(23, 50, "steps", "second, loss 1")]


def test_plain_lines_are_few_and_the_last_one_is_never_missing():
    clock, stream = Clock(), io.StringIO()
    show = progress._plain("work", stream, clock)
    for done in range(1, 101):
        clock.now += 0.25
        show(ProgressEvent(done, 100, "steps", f"loss {done}"))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 6  # one at once, then one per five seconds of 25, the last one included
    assert lines[0].startswith("work: 1/100 steps")
    assert lines[-1] == "work: 100/100 steps, 4.0 steps/s, loss 100"


def test_quiet_shows_nothing_and_plain_goes_to_the_stream():
    stream = io.StringIO()
    with progress.report("work", quiet=True, stream=stream) as show:
        show(ProgressEvent(1, 1, "steps"))
    assert stream.getvalue() == ""
    with progress.report("work", stream=stream) as show:
        show(ProgressEvent(1, 1, "steps"))
        show(ProgressEvent(1, 1, "steps"))
    assert stream.getvalue() == "work: 1/1 steps\n", "the same news twice is one line"


@pytest.fixture
def terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    return Terminal()


def test_bar_on_a_terminal_shows_count_and_note(terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with progress.report("stage one", stream=terminal) as show:
        show(ProgressEvent(1, 3, "tiles"))
        show(ProgressEvent(3, 3, "tiles", "no errors"))
    text = terminal.getvalue()
    assert "stage one" in text
    assert "3/3 tiles" in text
    assert "no errors" in text


def test_a_summary_is_a_line_of_its_own(terminal):
    plain = io.StringIO()
    for stream in (plain, terminal):
        with progress.report("stage one", stream=stream) as show:
            show(ProgressEvent(0, 2, "tiles", summary="2 tiles of 1 photo, [none] skipped"))
            show(ProgressEvent(2, 2, "tiles"))
    first, *rest = plain.getvalue().splitlines()
    assert first == "stage one: 2 tiles of 1 photo, [none] skipped"
    assert first in terminal.getvalue()
    assert [line.startswith("stage one: 2/2 tiles") for line in rest] == [False, True]


def test_work_that_is_refused_leaves_no_empty_bar(terminal):
    with pytest.raises(ValueError), progress.report("stage one", stream=terminal):
        raise ValueError
    assert terminal.getvalue() == ""


def test_texts():
    assert [clock_text(s) for s in (0.4, 59.4, 61, 3599, 8100)] == ["0 s", "59 s", "1:01 min", "59:59 min", "2:15 h"]
    assert rate_text(None, "tiles") == ""
    assert rate_text(3.21, "tiles") == "3.2 tiles/s"
    assert rate_text(0.25, "tiles") == "4.0 s a tile"
    assert plain_line("x", ProgressEvent(7, 0, "photos"), None, None) == "x: 7 photos"
