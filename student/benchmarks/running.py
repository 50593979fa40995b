"""A real training on a real cache: how long its steps wait for data, and whether its memory grows."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from pipeline import config
from pipeline.system.device import ResolvedPrecision, held_memory
from pipeline.system.errors import UsageError
from pipeline.system.progress import ProgressEvent
from pipeline.training.log import read_log
from student.training.loop import RunSettings, train

WARM = 10
"""Steps that warm up, and lines of the log that a measured training has beside the one of those."""


@dataclass(frozen=True)
class Running:
    """What a training took."""

    steps: int
    precision: ResolvedPrecision
    images_per_second: float
    waiting: float
    """Share of the time of its steps that went by without data, the first steps left out."""
    early_step: int
    """A tenth of the steps."""
    early_memory: int | None
    """Bytes that this process holds after it; on CPUs resident ones; None where the system does not tell."""
    late_memory: int | None
    """The same after the last step."""

    def lines(self) -> list[str]:
        """For people."""
        pace = f"{self.images_per_second:.1f} images/s, {100 * self.waiting:.1f} % waiting for data"
        lines = [f"training of {self.steps} steps in {self.precision}: {pace}"]
        if self.early_memory is not None and self.late_memory is not None:
            early, late = self.early_memory / 1e6, self.late_memory / 1e6
            lines += [f"memory: {early:.0f} MB after step {self.early_step}, {late:.0f} MB after step {self.steps}"]
        return lines


def measure_running(
    cache: Path, preset: str, scale: int, device: str, batch: int, patch: int, steps: int, compiled: bool = False
) -> Running:
    """Train a preset in a temporary folder, with the usual readers, and tell how it went.

    Args:
        cache: finished teacher cache.
        preset: of the student.
        scale: that of the cache.
        device: `cpu`, or whatever accelerator there is.
        batch: patches a step.
        patch: side of an LR patch, LR pixels.
        steps: of the training, a multiple of 10 that is more than 10.
        compiled: train through torch.compile.

    Raises:
        UsageError: there are too few steps, or no multiple of 10.
        DtkdError: as `train`.
    """
    if steps <= WARM or steps % WARM:
        raise UsageError(f"the steps of a training to measure must be a multiple of {WARM} above it, got {steps}")
    chosen = {"model.preset": preset, "model.scale": scale, "train.device": "cpu" if device == "cpu" else "auto"}
    chosen |= {"train.steps": steps, "train.batch_size": batch, "train.patch": patch, "train.log_every": WARM}
    chosen |= {"train.compile": str(compiled).lower()}
    settings = config.load(RunSettings, None, [f"{key}={value}" for key, value in chosen.items()])
    held: dict[int, int | None] = {}

    def look(event: ProgressEvent) -> None:
        if event.done in (steps // WARM, steps):
            held[event.done] = held_memory(device)

    with tempfile.TemporaryDirectory() as folder:
        result = train(cache, Path(folder) / "run", settings, on_progress=look)
        rows = [row for row in read_log(result.run) if "waiting" in row and row["step"] > WARM]
    seconds = [batch * WARM / row["images_per_s"] for row in rows]
    waited = sum(row["waiting"] * time for row, time in zip(rows, seconds, strict=True))
    rate = batch * WARM * len(rows) / sum(seconds)
    assert result.precision is not None
    return Running(
        steps, result.precision, rate, waited / sum(seconds), steps // WARM, held[steps // WARM], held[steps]
    )
