"""How fast a training goes: images a second, the share of its time that it waits for data, and memory.

Steps alone count, from the wish for a batch to their end: validations and saving are left out.
"""

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from pipeline.system.device import peak_memory
from pipeline.system.progress import clock_text
from pipeline.system.words import plural

T = TypeVar("T")
RECENT = 50  # steps that a remark of the moment looks back on
FIRST = 10  # steps that a forecast goes by
NAMES = ("images_per_s", "waiting", "memory_mb")
"""What differs between two runs that are the same otherwise, as `seconds` does."""


class _Step(NamedTuple):
    images: int
    waited: float
    seconds: float


class Meter:
    """Measures the steps of a loop on its way through a stream."""

    def __init__(self, images: int, device: str, clock: Callable[[], float] = time.perf_counter) -> None:
        """Nothing is measured yet; `images` are those of a step, over all processes."""
        self._images, self._device, self._clock = images, device, clock
        self._wished = self._got = 0.0
        self._done = 0
        self._recent: deque[_Step] = deque(maxlen=RECENT)
        self._since_taken: list[_Step] = []

    def timed(self, stream: Iterator[T]) -> Iterator[T]:
        """The stream, its waits measured."""
        while True:
            self._wished = self._clock()
            try:
                batch = next(stream)
            except StopIteration:
                return
            self._got = self._clock()
            yield batch

    def step_done(self) -> None:
        """Count the step of the latest batch."""
        step = _Step(self._images, self._got - self._wished, self._clock() - self._wished)
        self._done += 1
        self._recent.append(step)
        self._since_taken.append(step)

    def take(self) -> dict[str, float]:
        """Figures of the steps since the last call, for the log; `waiting` is a share, memory this process's peak."""
        steps, self._since_taken = self._since_taken, []
        rate, waiting = _pace(steps)
        memory = peak_memory(self._device)
        found = {"images_per_s": round(rate, 2), "waiting": round(waiting, 4)}
        return found if memory is None else {**found, "memory_mb": round(memory / 1e6)}

    def forecast(self, left: int) -> str:
        """After the first `FIRST` steps, what the ones that are `left` will take, for people; else empty."""
        if self._done != FIRST or not left:
            return ""
        seconds = statistics.median(step.seconds for step in self._recent)  # the first one warms up
        rest = f"about {clock_text(seconds * left)} for the {plural(left, 'step')} left, validations and saving apart"
        memory = peak_memory(self._device)
        peak = "" if memory is None else f"; the steps need {memory / 1e9:.1f} GB of memory at most"
        return f"{seconds:.3g} s a step: {rest}{peak}"

    def note(self) -> str:
        """The latest steps, for people."""
        rate, waiting = _pace(list(self._recent))
        memory = peak_memory(self._device)
        parts = [f"{rate:.{0 if rate >= 100 else 1}f} images/s", f"{waiting:.0%} waiting for data"]
        return ", ".join(parts + ([] if memory is None else [f"{memory / 1e9:.1f} GB"]))


def _pace(steps: list[_Step]) -> tuple[float, float]:
    seconds = sum(step.seconds for step in steps) or 1e-9
    return sum(step.images for step in steps) / seconds, sum(step.waited for step in steps) / seconds
