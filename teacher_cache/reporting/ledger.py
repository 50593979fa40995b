"""What a teacher costs once, and what it would cost inside the training loop: the reason why there is a cache."""

from dataclasses import dataclass
from typing import Any

from pipeline.system.progress import clock_text
from pipeline.system.results import plain

PRESENTATIONS = 320_000
"""Samples that a training is shown: 20,000 steps of 16, what `dtkd train-student` does by default."""


@dataclass(frozen=True)
class Ledger:
    """Times of the teacher, in seconds."""

    so_far: float
    """All processes together."""
    an_image: float
    """For one output of a tile, on average."""
    images: int
    """Outputs that the whole cache will hold."""
    presentations: int
    """Samples that a training is shown."""

    @property
    def once(self) -> float:
        """For the whole cache, at the pace so far."""
        return self.an_image * self.images

    @property
    def in_the_loop(self) -> float:
        """For a training without a cache, which asks the teacher for every tile that it is shown."""
        return self.an_image * self.presentations

    @property
    def ratio(self) -> float:
        """How many times as much."""
        return self.presentations / self.images

    def lines(self) -> list[str]:
        """For people."""
        asked = f"asked for each of {self.presentations} tiles shown, {clock_text(self.in_the_loop)}"
        return [
            f"teacher: {clock_text(self.so_far)} so far, {self.an_image:.3g} s an output",
            f"cost: {clock_text(self.once)} of the teacher once, for this cache; inside the training loop, {asked}: "
            f"{self.ratio:.{1 if self.ratio < 10 else 0}f} times as much",
        ]

    def to_json(self) -> dict[str, Any]:
        """Seconds, and the ratio."""
        return {**plain(self), "once": self.once, "in_the_loop": self.in_the_loop, "ratio": self.ratio}
