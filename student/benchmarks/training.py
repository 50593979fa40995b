"""What a training step costs: what the distillation loss adds to it, what it takes beside a plain loop, and in a run.

On a shared machine whole steps differ by more than the loss takes, so the losses take turns on one picture, forward and
backward to it, and what each takes beyond L1 is divided by the time of a whole step with L1.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.system.device import ResolvedPrecision, cpu_threads, keep_freed_memory, refuse_without_compiler
from pipeline.system.errors import UsageError
from pipeline.system.results import plain
from student.benchmarks.inference import seconds_of
from student.benchmarks.running import Running, measure_running
from student.benchmarks.steps import StepRow, measure_steps, step_lines, training_step
from student.loss import MODES, GroupWeights, distillation_loss
from student.model import build
from student.model.swinir import SwinIR

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(sr, gt, teacher) to a scalar."""


def _l1(sr: Tensor, gt: Tensor, _: Tensor) -> Tensor:
    return F.l1_loss(sr, gt)


def _distilled(energy: float = 0.0, shift: tuple[int, int] = (0, 0)) -> Loss:
    weights = GroupWeights(*MODES["mid"], energy=energy)
    return lambda sr, gt, teacher: distillation_loss(sr, gt, teacher, weights, 1.0, shift).total


LOSSES: dict[str, Loss] = {
    "L1": _l1,
    "L_FG": _distilled(),
    "L_FG, energy": _distilled(energy=1.0),
    "L_FG, energy, cycle spinning": _distilled(energy=1.0, shift=(5, 3)),
}
"""By name; the first is what the others, which have L1 as well, are compared with."""
TURNS = 10
"""Turns of the losses between two steps: they are short."""


@dataclass(frozen=True)
class Row:
    """One loss with one precision of the network."""

    precision: ResolvedPrecision
    loss: str
    seconds: float
    """Median time of the loss, forward and backward."""
    step_seconds: float
    """Median time of a whole step with L1: network, loss, backward pass, clipping, optimiser, average."""
    added: float
    """Share of such a step that the loss takes beyond L1."""


@dataclass(frozen=True)
class TrainBench:
    """All rows, and how they were measured."""

    preset: str
    batch: int
    patch: int
    device: str
    threads: int
    rounds: int
    rows: tuple[Row, ...]
    steps: tuple[StepRow, ...]
    running: Running | None
    """None where there was no cache to train on."""

    failure = None
    """See `pipeline.system.results.Result`."""

    def lines(self) -> list[str]:
        """For people."""
        columns = "{:<9}  {:<28}  {:>9}  {:>9}  {:>6}"
        lines = [columns.format("precision", "loss", "loss ms", "step ms", "adds")]
        for row in self.rows:
            times = (f"{1000 * row.seconds:.2f}", f"{1000 * row.step_seconds:.0f}")
            lines.append(columns.format(row.precision, row.loss, *times, f"{100 * row.added:.1f} %"))
        return [*lines, "", *step_lines(self.steps), *(["", *self.running.lines()] if self.running else [])]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"bench": "train", **plain(self)}


def bench_train(
    preset: str,
    device: str,
    threads: int,
    rounds: int = 5,
    batch: int = 8,
    patch: int = 48,
    scale: int = 4,
    cache: Path | None = None,
    steps: int = 100,
    compiled: bool = False,
) -> TrainBench:
    """Measure steps of a preset on random pictures, in both precisions; one step more warms up.

    Args:
        preset: of the student.
        device: torch device.
        threads: of CPU operators.
        rounds: steps that are timed.
        batch: patches a step.
        patch: side of an LR patch, LR pixels.
        scale: HR pixels to an LR pixel.
        cache: to train on for a while; None leaves that out.
        steps: of that training.
        compiled: measure steps through torch.compile, too, and train so.

    Raises:
        DtkdError: there is no such preset or scale, the cache cannot be trained on, or torch.compile does not work.
        UsageError: `rounds`, `batch` or `patch` is below 1.
    """
    if min(rounds, batch, patch) < 1:
        raise UsageError(f"rounds, batch and patch must be at least 1, got {rounds}, {batch}, {patch}")
    if compiled:
        refuse_without_compiler(torch.device(device))
    keep_freed_memory()
    torch.manual_seed(0)
    lr = torch.rand(batch, 3, patch, patch, device=device)
    gt, teacher = (torch.rand(batch, 3, scale * patch, scale * patch, device=device) for _ in range(2))
    precisions: tuple[ResolvedPrecision, ...] = ("fp32", "bf16")
    with cpu_threads(threads):
        rows = [
            row for p in precisions for row in _measure(build(preset, scale).to(device), p, (lr, gt, teacher), rounds)
        ]
        whole = measure_steps(preset, scale, lr, gt, rounds, compiled)
        running = measure_running(cache, preset, scale, device, batch, patch, steps, compiled) if cache else None
    return TrainBench(preset, batch, patch, device, threads, rounds, tuple(rows), whole, running)


def _measure(
    network: SwinIR, precision: ResolvedPrecision, images: tuple[Tensor, Tensor, Tensor], rounds: int
) -> list[Row]:
    (lr, gt, teacher), device = images, str(images[0].device)
    step = training_step(network.train(), precision, lr, gt)
    steps: list[float] = []
    losses: dict[str, list[float]] = {name: [] for name in LOSSES}
    sr = step()  # warms up
    for _ in range(rounds):
        steps.append(seconds_of(step, device))
        for _ in range(TURNS):
            for name, loss in LOSSES.items():
                picture = sr.detach().requires_grad_()
                losses[name].append(seconds_of(partial(_backward, loss, picture, gt, teacher), device))
    whole, medians = statistics.median(steps), {name: statistics.median(times) for name, times in losses.items()}
    return [Row(precision, name, loss, whole, (loss - medians["L1"]) / whole) for name, loss in medians.items()]


def _backward(loss: Loss, sr: Tensor, gt: Tensor, teacher: Tensor) -> None:
    loss(sr, gt, teacher).backward()
