"""A training step beside the same one with spandrel's SwinIR in plain PyTorch: same weights and batch, turns taken."""

import copy
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.system.device import ResolvedPrecision, autocast
from pipeline.training.ema import average
from student.benchmarks.contenders import AbsentError, spandrel_twin
from student.benchmarks.inference import seconds_of
from student.model import build
from student.training.step import compile_steps

Program = Literal["dtkd", "spandrel"]


class Turn(NamedTuple):
    """Whose step, and how it computes."""

    program: Program
    precision: ResolvedPrecision
    compiled: bool = False
    """Whether it goes through torch.compile, as with train.compile."""


TURNS = (Turn("spandrel", "fp32"), Turn("dtkd", "fp32"), Turn("dtkd", "bf16"))
"""The first is what the others are compared with."""
COMPILED = (Turn("dtkd", "fp32", True), Turn("dtkd", "bf16", True))


@dataclass(frozen=True)
class StepRow:
    """One network in one precision."""

    program: Program
    precision: ResolvedPrecision
    compiled: bool
    absent: str | None = None
    """Why nothing was measured; None otherwise."""
    seconds: float | None = None
    """Median time of a step: network, L1, backward pass, clipping, AdamW, average of the weights."""
    speed: float | None = None
    """How many times faster than spandrel's network in fp32, median over the rounds; None without spandrel."""
    spread: tuple[float, float] | None = None
    """Lowest and highest of the rounds."""


def measure_steps(
    preset: str, scale: int, lr: Tensor, gt: Tensor, rounds: int, compiled: bool = False
) -> tuple[StepRow, ...]:
    """Measure steps on one batch, `rounds` turns each after one that warms up.

    Args:
        preset: of the student.
        scale: HR pixels to an LR pixel.
        lr: (B, 3, h, w) in [0, 1]; its device is what is measured.
        gt: (B, 3, scale h, scale w).
        rounds: turns that are timed.
        compiled: have ours take turns through torch.compile, too.

    Raises:
        DtkdError: there is no such preset or scale.
    """
    turns = TURNS + COMPILED * compiled
    steps: dict[Turn, Callable[[], Tensor]] = {}
    absent = ""
    for turn in turns:
        torch.manual_seed(0)
        network = build(preset, scale).to(lr.device)
        try:
            trained = network.train() if turn.program == "dtkd" else spandrel_twin(network)
        except AbsentError as error:
            absent = str(error)
            continue
        if turn.compiled:
            compile_steps(network)
        steps[turn] = training_step(trained, turn.precision, lr, gt)
    for step in steps.values():
        step()  # warms up
    times = [[seconds_of(step, str(lr.device)) for step in steps.values()] for _ in range(rounds)]
    columns = dict(zip(steps, zip(*times, strict=True), strict=True))
    return tuple(_row(turn, columns, absent) for turn in turns)


def step_lines(rows: Sequence[StepRow]) -> list[str]:
    """The rows as a table for people."""
    columns = "{:<18}  {:>9}  {:>6}  {:>12}"
    lines = [columns.format("step", "step ms", "speed", "spread")]
    for row in rows:
        head = f"{row.program} {row.precision}" + " compiled" * row.compiled
        if row.seconds is None:
            lines.append(columns.format(head, "-", "-", "-") + f"  {row.absent}")
            continue
        spread = "{:.2f} to {:.2f}".format(*row.spread) if row.spread else "-"
        speed = "-" if row.speed is None else f"{row.speed:.2f}"
        lines.append(columns.format(head, f"{1000 * row.seconds:.0f}", speed, spread))
    return lines


def training_step(network: nn.Module, precision: ResolvedPrecision, lr: Tensor, gt: Tensor) -> Callable[[], Tensor]:
    """A training step with L1 of a network, which returns the SR images in float32."""
    averaged = copy.deepcopy(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def step() -> Tensor:
        with autocast(precision, lr.device.type):
            sr = network(lr)
        F.l1_loss(sr.float(), gt).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        average(averaged, network, 0.999)
        optimizer.zero_grad()
        return sr.float()

    return step


def _row(turn: Turn, columns: dict[Turn, tuple[float, ...]], absent: str) -> StepRow:
    if turn not in columns:
        return StepRow(*turn, absent=absent)
    seconds = columns[turn]
    if TURNS[0] not in columns:
        return StepRow(*turn, seconds=statistics.median(seconds))
    ratios = [plain / own for plain, own in zip(columns[TURNS[0]], seconds, strict=True)]
    return StepRow(*turn, None, statistics.median(seconds), statistics.median(ratios), (min(ratios), max(ratios)))
