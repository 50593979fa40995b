"""How a run stands when its training returns, as text and JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.system.device import ResolvedPrecision
from pipeline.system.errors import INTERRUPTED
from pipeline.system.progress import clock_text
from pipeline.system.results import plain
from pipeline.system.words import decibels, plural
from student.training.run import BEST, STUDENT
from student.training.state import Best, TrainState


@dataclass(frozen=True)
class TrainResult:
    """How a run stands when `train` returns."""

    run: Path
    step: int
    steps: int
    """Planned ones: below these, a signal has stopped the run, and it can go on."""
    student: Path
    """Averaged weights, ready for `evaluate` and `upscale`."""
    reused: bool
    """The run had been finished before; nothing was trained now."""
    validation: Mapping[str, float]
    """Latest figures on the held-out samples, by measure; empty without held-out samples."""
    best: Best | None
    """What best.safetensors holds."""
    skipped: int
    """Steps left out because loss or gradient was not finite."""
    seconds: float
    """Wall-clock seconds of training, earlier processes of the same run included."""
    precision: ResolvedPrecision | None
    """What the network computed in; None where the run was finished before that was recorded."""
    compiled: bool
    """Whether its latest steps went through torch.compile."""

    @property
    def finished(self) -> bool:
        """Whether all planned steps are done."""
        return self.step >= self.steps

    @property
    def failure(self) -> str | None:
        """See `pipeline.system.results.Result`."""
        return None if self.finished else INTERRUPTED

    def lines(self) -> list[str]:
        """For people: how far the run is and how good, and where its students are."""
        if self.reused:
            state = f"finished before, {plural(self.step, 'step')}; reused as it is (--fresh trains anew)"
        else:
            state = f"{self.step} of {plural(self.steps, 'step')} in {clock_text(self.seconds)} of training"
            state += f" in {self.precision}" + (", compiled" if self.compiled else "")
        parts = [f"{self.run}: {state}"]
        figures = [figure_text(name, figure) for name, figure in self.validation.items()]
        parts += [f"{', '.join(figures)} on held-out samples"] if figures else []
        parts += [f"{plural(self.skipped, 'step')} left out, not finite"] if self.skipped else []
        lines = [", ".join(parts), f"student: {self.student}"]
        if self.best:
            best = f"{figure_text(self.best.metric, self.best.figure)} at step {self.best.step}"
            lines.append(f"best by {best}: {self.run / BEST}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return {**plain(self), "finished": self.finished}


def figure_text(name: str, figure: float) -> str:
    """`psnr_y 28.53 dB`, `dss 0.8512`."""
    return f"{name} {decibels(figure)}" if "psnr" in name else f"{name} {figure:.4f}"


def result_of(run: Path, state: TrainState, steps: int, reused: bool) -> TrainResult:
    """How a run stands."""
    return TrainResult(
        run, state.step, steps, run / STUDENT, reused, state.validation, state.best, state.skipped, state.seconds,
        state.precision, state.compiled,
    )  # fmt: skip
