"""How fast the student is and what memory it takes, side by side with spandrel's SwinIR: same weights, turns taken.

On a shared machine absolute times mean little; turns in one process expose both networks to the same disturbances, so
that the median of their ratios holds. Peak memory is measured in a fresh process for each network and case.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipeline.system import torchvision_guard
from pipeline.system.device import cpu_threads
from pipeline.system.errors import DtkdError
from pipeline.system.results import plain
from student.model import build
from student.model.swinir import SwinIR

Task = Literal["inference", "training"]
InputSize = tuple[int, int, int]
CASES: tuple[tuple[Task, InputSize], ...] = (
    ("inference", (1, 128, 128)),
    ("inference", (1, 180, 320)),
    ("inference", (8, 64, 64)),
    ("training", (8, 48, 48)),
)
"""(B, H, W) of the LR batches: a crop, a small photo, and tiles; a usual training step."""


@dataclass(frozen=True)
class Setup:
    """What is measured."""

    preset: str = "light"
    scale: int = 4
    device: str = "cpu"
    threads: int | None = 2
    """Threads of CPU operators; None leaves torch's own choice."""
    compiled: bool = False
    """Whether both networks go through torch.compile."""
    bf16: bool = False
    """Whether both run under bf16 autocast instead of in float32."""


@dataclass(frozen=True)
class BenchRow:
    """One case."""

    task: Task
    size: str
    """LR batch as BxHxW."""
    seconds: float
    """Median time of the student for a forward pass, or for forward and backward."""
    peer_seconds: float | None
    """The same of spandrel's SwinIR; None where spandrel is not installed."""
    ratio: float | None
    """How many times faster the student is: median over the rounds."""
    spread: tuple[float, float] | None
    """Lowest and highest ratio of a round."""
    memory: int | None
    """Peak bytes of the student beyond its weights; None where the system does not tell (only Linux and CUDA do)."""
    peer_memory: int | None
    max_difference: float | None
    """Largest absolute difference of the outputs (inference) or of the gradients (training)."""


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


def bench_student(setup: Setup, rounds: int = 5) -> list[BenchRow]:
    """Measure the student, and spandrel's SwinIR with the same weights where it is installed.

    Each takes `rounds` turns in each case, after one to warm up.

    Raises:
        DtkdError: there is no such preset or scale, or `rounds` is below 1.
    """
    if rounds < 1:
        raise DtkdError(f"rounds must be at least 1, got {rounds}")
    networks = _networks(setup)
    with cpu_threads(setup.threads):
        return [_measure(setup, task, size, networks, rounds) for task, size in CASES]


def bench_lines(rows: Sequence[BenchRow]) -> list[str]:
    """The rows as a table for people."""
    columns = "{:<10}  {:<10}  {:>8}  {:>8}  {:>6}  {:>12}  {:>7}  {:>7}  {:>14}"
    titles = ("task", "BxHxW", "seconds", "peer", "ratio", "spread", "MB", "peer MB", "max difference")
    lines = [columns.format(*titles)]
    for row in rows:
        cells = [
            row.task,
            row.size,
            f"{row.seconds:.4f}",
            "-" if row.peer_seconds is None else f"{row.peer_seconds:.4f}",
            "-" if row.ratio is None else f"{row.ratio:.2f}",
            "-" if row.spread is None else "{:.2f} to {:.2f}".format(*row.spread),
            *("-" if memory is None else f"{memory / 1e6:.0f}" for memory in (row.memory, row.peer_memory)),
            "-" if row.max_difference is None else f"{row.max_difference:.1e}",
        ]
        lines.append(columns.format(*cells))
    if any(row.peer_seconds is None for row in rows):
        lines.append("no peer: spandrel is not installed")
    return lines


def _networks(setup: Setup) -> list[nn.Module]:
    """The student, and its twin where spandrel is installed."""
    torch.manual_seed(0)
    model = build(setup.preset, setup.scale).to(setup.device)
    peer = _spandrel_twin(model)
    return [model] if peer is None else [model, peer]


def _spandrel_twin(model: SwinIR) -> nn.Module | None:
    torchvision_guard.apply()
    try:
        import spandrel
    except ImportError:
        return None
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model_of_spandrel = spandrel.ModelLoader(model.mean.device).load_from_state_dict(state).model
    return model_of_spandrel.eval()  # also in training: its stochastic depth would make the gradients differ


def _measure(setup: Setup, task: Task, size: InputSize, networks: list[nn.Module], rounds: int) -> BenchRow:
    networks[0].train(task == "training")
    runs = [_run(setup, task, size, network) for network in networks]
    results = [run() for run in runs]
    times = [[_seconds(run, setup.device) for run in runs] for _ in range(rounds)]
    medians = [statistics.median(turns) for turns in zip(*times, strict=True)]
    ratios = [turn[1] / turn[0] for turn in times if len(turn) == 2]
    memory = [_peak_memory(setup, task, size, index) for index in range(len(networks))]
    return BenchRow(
        task,
        "x".join(map(str, size)),
        medians[0],
        medians[1] if ratios else None,
        statistics.median(ratios) if ratios else None,
        (min(ratios), max(ratios)) if ratios else None,
        memory[0],
        memory[1] if ratios else None,
        float((results[0] - results[1]).abs().max()) if ratios else None,
    )


def _run(setup: Setup, task: Task, size: InputSize, network: nn.Module) -> Callable[[], Tensor]:
    """One turn of a network, always on the same random LR batch."""
    batch, height, width = size
    lr = torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(0)).to(setup.device)
    step = _infer if task == "inference" else _train_step
    # Static sizes: torch's CPU back end fails on the padded size's strides with dynamic ones (LOG.md, 2026-11-23).
    forward = torch.compile(network, dynamic=False) if setup.compiled else network
    return lambda: step(forward, network, lr, setup.bf16)


def _infer(forward: Callable[[Tensor], Tensor], network: nn.Module, lr: Tensor, bf16: bool) -> Tensor:
    with torch.inference_mode(), _autocast(lr, bf16):
        return forward(lr).float()


def _train_step(forward: Callable[[Tensor], Tensor], network: nn.Module, lr: Tensor, bf16: bool) -> Tensor:
    """Forward, L1 loss against grey, backward; returns the first layer's gradient, which depends on everything."""
    network.zero_grad()
    with _autocast(lr, bf16):
        loss = (forward(lr).float() - 0.5).abs().mean()
    loss.backward()
    gradient = network.get_parameter("conv_first.weight").grad
    assert gradient is not None
    return gradient.clone()


def _autocast(lr: Tensor, bf16: bool) -> torch.autocast | nullcontext[None]:
    return torch.autocast(lr.device.type, torch.bfloat16) if bf16 else nullcontext()


def _seconds(run: Callable[[], Tensor], device: str) -> float:
    _synchronise(device)
    start = time.perf_counter()
    run()
    _synchronise(device)
    return time.perf_counter() - start


def _synchronise(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize(device)


def _peak_memory(setup: Setup, task: Task, size: InputSize, index: int) -> int | None:
    """Peak bytes of the student (0) or the peer (1) in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_own_peak_memory, setup, task, size, index).result()


def _own_peak_memory(setup: Setup, task: Task, size: InputSize, index: int) -> int | None:
    """Peak bytes of the second turn, beyond what is there before the first one."""
    model = build(setup.preset, setup.scale).to(setup.device).train(task == "training")
    network = model if index == 0 else _spandrel_twin(model)
    assert network is not None
    run = _run(setup, task, size, network)
    with cpu_threads(setup.threads):
        before = _memory(setup.device, peak=False)
        run()
        if setup.device == "cpu":
            with suppress(OSError):  # compilation may have taken more than the network does
                Path("/proc/self/clear_refs").write_text("5")
        elif setup.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats(setup.device)
        run()
        peak = _memory(setup.device, peak=True)
    return None if before is None or peak is None else peak - before


def _memory(device: str, *, peak: bool) -> int | None:
    """Bytes that this process has, or has had at most, on the device."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) if peak else torch.cuda.memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    name = "VmHWM:" if peak else "VmRSS:"
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(name)), None)
