"""How fast the student is and what memory it takes, side by side with other programs: same weights, turns taken.

On a shared machine absolute times mean little; turns in one process expose all to the same disturbances, so that the
medians of their ratios hold. Peak memory is measured in a fresh process for each network and case.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.system.device import ResolvedPrecision, cpu_threads, measuring_memory, refuse_without_compiler
from pipeline.system.errors import DtkdError
from pipeline.system.results import plain
from student.benchmarks.contenders import (
    AbsentError,
    Contender,
    ExportedStudent,
    InputSize,
    Setup,
    Task,
    Turn,
    contenders_of,
    prepare_turn,
    random_student,
)

__all__ = ["BenchRow", "Setup", "StudentBench", "bench_lines", "bench_student"]

CASES: tuple[tuple[Task, InputSize], ...] = (
    ("inference", (1, 128, 128)),
    ("inference", (1, 180, 320)),
    ("inference", (8, 64, 64)),
    ("training", (8, 48, 48)),
)
"""A crop, a small photo, and tiles; a usual training step."""


@dataclass(frozen=True)
class BenchRow:
    """One program in one case."""

    task: Task
    size: str
    """LR batch as BxHxW."""
    program: str
    precision: ResolvedPrecision
    absent: str | None = None
    """Why nothing was measured; None otherwise."""
    seconds: float | None = None
    """Median time of a forward pass, or of forward and backward."""
    speed: float | None = None
    """How many times faster than ours in fp32: median over the rounds."""
    spread: tuple[float, float] | None = None
    """Lowest and highest of the rounds."""
    memory: int | None = None
    """Peak bytes beyond the weights; None where the system does not tell (only Linux and CUDA do), and for programs
    outside PyTorch."""
    max_difference: float | None = None
    """Largest absolute difference from ours in fp32: of the outputs (inference) or of the gradients (training)."""


@dataclass(frozen=True)
class StudentBench:
    """All cases, and how they were measured."""

    setup: Setup
    rounds: int
    rows: tuple[BenchRow, ...]

    failure = None
    """See `pipeline.system.results.Result`."""

    def lines(self) -> list[str]:
        """For people."""
        return bench_lines(self.rows)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"bench": "student", "rounds": self.rounds, **plain(self.setup), "rows": plain(self.rows)}


def bench_student(setup: Setup, rounds: int = 5) -> StudentBench:
    """Measure the student in both precisions, and the other programs that are installed, in turns.

    Each takes `rounds` turns in each case, after one to warm up.

    Raises:
        DtkdError: there is no such preset or scale, `rounds` is below 1, or torch.compile does not work here.
    """
    if rounds < 1:
        raise DtkdError(f"rounds must be at least 1, got {rounds}")
    if setup.compiled:
        refuse_without_compiler(torch.device(setup.device))
    with cpu_threads(setup.threads), random_student(setup) as student:
        rows = [row for task, size in CASES for row in _measure(setup, task, size, student, rounds)]
    return StudentBench(setup, rounds, tuple(rows))


def bench_lines(rows: Sequence[BenchRow]) -> list[str]:
    """The rows as a table for people."""
    columns = "{:<10}  {:<10}  {:<17}  {:>8}  {:>6}  {:>12}  {:>7}  {:>14}"
    lines = [columns.format("task", "BxHxW", "program", "seconds", "speed", "spread", "MB", "max difference")]
    for row in rows:
        head = (row.task, row.size, f"{row.program} {row.precision}")
        if row.absent is not None:
            lines.append(columns.format(*head, "-", "-", "-", "-", "-") + f"  {row.absent}")
            continue
        assert row.seconds is not None and row.speed is not None and row.spread is not None
        cells = (
            f"{row.seconds:.4f}",
            f"{row.speed:.2f}",
            "{:.2f} to {:.2f}".format(*row.spread),
            "-" if row.memory is None else f"{row.memory / 1e6:.0f}",
            f"{row.max_difference:.1e}",
        )
        lines.append(columns.format(*head, *cells))
    return lines


def _measure(setup: Setup, task: Task, size: InputSize, student: ExportedStudent, rounds: int) -> list[BenchRow]:
    """All contenders in one case."""
    turns: dict[Contender, Turn] = {}
    absent: dict[Contender, str] = {}
    for contender in contenders_of(setup, task):
        try:
            turns[contender] = prepare_turn(contender, setup, task, size, student)
        except AbsentError as error:
            absent[contender] = str(error)
    results = [turn() for turn in turns.values()]
    times = [[seconds_of(turn, setup.device) for turn in turns.values()] for _ in range(rounds)]
    measured = iter(zip(results, zip(*times, strict=True), strict=True))
    ours, expected = [row[0] for row in times], results[0]
    size_text, rows = "x".join(map(str, size)), []
    for contender in contenders_of(setup, task):
        if contender in absent:
            rows.append(BenchRow(task, size_text, *contender, absent=absent[contender]))
            continue
        result, seconds = next(measured)
        memory = _peak_memory(setup, task, size, contender) if setup.memory and contender.in_pytorch else None
        rows.append(_row(task, size_text, contender, seconds, ours, memory, _difference(result, expected)))
    return rows


def _row(
    task: Task,
    size: str,
    contender: Contender,
    seconds: Sequence[float],
    ours: Sequence[float],
    memory: int | None,
    difference: float,
) -> BenchRow:
    ratios = [reference / own for reference, own in zip(ours, seconds, strict=True)]
    spread = (min(ratios), max(ratios))
    return BenchRow(
        task, size, *contender, None, statistics.median(seconds), statistics.median(ratios), spread, memory, difference
    )


def _difference(result: Tensor, expected: Tensor) -> float:
    return float((result - expected).abs().max())


def seconds_of(turn: Callable[[], object], device: str) -> float:
    """Wall-clock seconds of a turn on a torch device."""
    _synchronise(device)
    start = time.perf_counter()
    turn()
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize(device)


def _peak_memory(setup: Setup, task: Task, size: InputSize, contender: Contender) -> int | None:
    """Peak bytes of a contender in PyTorch, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_own_peak_memory, setup, task, size, contender).result()


def _own_peak_memory(setup: Setup, task: Task, size: InputSize, contender: Contender) -> int | None:
    """Peak bytes of a turn, beyond what is there before it; an earlier one has compiled and warmed up."""
    with cpu_threads(setup.threads), random_student(setup) as student:
        turn = prepare_turn(contender, setup, task, size, student)
        turn()
        with measuring_memory(setup.device) as peak:
            turn()
    return peak.bytes
