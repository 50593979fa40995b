"""Progress of long work: the event that a stage reports, and the reporter that shows it to people.

A stage takes `on_progress: OnProgress | None` and calls it with a `ProgressEvent` after every unit of work; it prints
nothing itself. `report` turns the events into a bar with rate and time left on a terminal, into a plain line every few
seconds elsewhere (log files, CI), and into nothing when it is quiet.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Task

PLAIN_SECONDS = 5.0


@dataclass(frozen=True)
class ProgressEvent:
    """How far a piece of work is.

    Attributes:
        done: units finished, the ones of an earlier run included.
        total: units planned; 0 when it is not known yet.
        unit: what is counted, in the plural ("tiles", "steps").
        note: a short remark of the moment ("loss .0312", "2 errors").
        summary: a line of its own, which stays: what will be done, told with the first event, or what went wrong.
    """

    done: int
    total: int
    unit: str
    note: str = ""
    summary: str = ""


OnProgress = Callable[[ProgressEvent], None]


def part_of(on_progress: OnProgress, before: int, total: int, name: str = "") -> OnProgress:
    """For a part of a longer work, of which `before` units were done ahead of it; `name` is remarked."""

    def show(event: ProgressEvent) -> None:
        note = ", ".join(text for text in (name, event.note) if text)
        on_progress(replace(event, done=before + event.done, total=total, note=note))

    return show


class Pace:
    """Units per second and seconds left, counted from the first event: what an earlier run did costs nothing now.

    Another unit is other work, which is counted from its own first event.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with nothing observed; `clock` returns seconds."""
        self._clock = clock
        self._first: tuple[float, int, str] | None = None

    def observe(self, event: ProgressEvent) -> tuple[float | None, float | None]:
        """Take an event in.

        Returns:
            units per second and seconds left; None while they cannot be known.
        """
        now = self._clock()
        if self._first is None or self._first[2] != event.unit:
            self._first = (now, event.done, event.unit)
        began, done_before, _ = self._first
        elapsed, done = now - began, event.done - done_before
        if elapsed <= 0 or done <= 0:
            return None, None
        rate = done / elapsed
        return rate, (event.total - event.done) / rate if event.total else None


def clock_text(seconds: float) -> str:
    """Seconds as people read them: `42 s`, `3:07 min`, `2:15 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def rate_text(rate: float | None, unit: str) -> str:
    """A rate in the direction that is easy to read: `3.2 tiles/s` or `4.1 s a tile`."""
    if not rate:
        return ""
    one = unit[:-1] if unit.endswith("s") else unit
    return f"{rate:.1f} {unit}/s" if rate >= 1 else f"{1 / rate:.1f} s a {one}"


def plain_line(title: str, event: ProgressEvent, rate: float | None, left: float | None) -> str:
    """One line of a log: `teacher-cache: 12/40 tiles, 3.1 s a tile, 1:27 min left, 0 errors`."""
    share = f"{event.done}/{event.total} {event.unit}" if event.total else f"{event.done} {event.unit}"
    parts = [share, rate_text(rate, event.unit), f"{clock_text(left)} left" if left else "", event.note]
    return f"{title}: " + ", ".join(part for part in parts if part)


@contextmanager
def report(title: str, *, quiet: bool = False, stream: IO[str] | None = None) -> Iterator[OnProgress]:
    """Show the events of one piece of work while the block runs.

    Args:
        title: name of the work, first on the line.
        quiet: show nothing (the caller wants machine-readable output only).
        stream: where to write; standard error by default, so that standard output holds results only.
    """
    target = stream or sys.stderr
    if quiet or target is None:
        yield lambda event: None
    elif target.isatty():
        with _bar(title, target) as show:
            yield show
    else:
        yield _plain(title, target)


def _plain(title: str, stream: IO[str], clock: Callable[[], float] = time.monotonic) -> OnProgress:
    pace, shown, last = Pace(clock), -PLAIN_SECONDS, None

    def show(event: ProgressEvent) -> None:
        nonlocal shown, last
        rate, left = pace.observe(event)
        complete = event.done >= event.total > 0
        if event.summary:
            print(f"{title}: {event.summary}", file=stream, flush=True)
        if event != last and (complete or clock() - shown >= PLAIN_SECONDS):
            shown, last = clock(), event
            print(plain_line(title, event, rate, left), file=stream, flush=True)

    return show


@contextmanager
def _bar(title: str, stream: IO[str]) -> Iterator[OnProgress]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
    from rich.text import Text

    class Live(ProgressColumn):
        def render(self, task: "Task") -> Text:
            return Text(task.fields["live"], overflow="ellipsis", no_wrap=True)

    columns = (TextColumn("{task.description}"), BarColumn(), Live())
    progress, pace = Progress(*columns, console=Console(file=stream)), Pace()
    task = progress.add_task(title, total=None, live="")

    def show(event: ProgressEvent) -> None:
        progress.start()  # with the first event: work that is refused leaves no empty bar
        if event.summary:
            progress.console.print(f"{title}: {event.summary}", markup=False, highlight=False, soft_wrap=True)
        rate, left = pace.observe(event)
        live = plain_line("", event, rate, left).removeprefix(": ")
        progress.update(task, completed=event.done, total=event.total or None, live=live)

    try:
        yield show
    finally:
        if progress.live.is_started:
            progress.stop()
