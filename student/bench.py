"""How fast the student is, side by side with spandrel's SwinIR: same weights, same process, turns taken.

On a shared machine absolute times mean little; turns expose both networks to the same disturbances, so ratios of
medians hold.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline import torchvision_guard
from pipeline.errors import DtkdError
from student.model import build
from student.swinir import SwinIR

Task = Literal["inference", "training"]
CASES: tuple[tuple[Task, tuple[int, int, int]], ...] = (
    ("inference", (1, 128, 128)),
    ("inference", (1, 180, 320)),
    ("inference", (8, 64, 64)),
    ("training", (8, 48, 48)),
)
"""(B, H, W) of the LR batches: a crop, a small photo, and tiles; a usual training step."""


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
    max_difference: float | None
    """Largest absolute difference of the outputs (inference) or of the gradients (training)."""


def bench_student(
    preset: str = "light", *, scale: int = 4, rounds: int = 5, device: str = "cpu", threads: int | None = 2
) -> list[BenchRow]:
    """Measure the student, and spandrel's SwinIR with the same weights where it is installed.

    Args:
        preset: which student.
        scale: its scale.
        rounds: how often both take a turn in each case, after one to warm up.
        device: where to run, float32 in any case.
        threads: threads of CPU operators; None leaves torch's own choice.

    Raises:
        DtkdError: there is no such preset or scale, or `rounds` is below 1.
    """
    if rounds < 1:
        raise DtkdError(f"rounds must be at least 1, got {rounds}")
    model = build(preset, scale).to(device)
    peer = _spandrel_twin(model)
    with _threads(threads):
        return [_measure(task, size, model, peer, rounds) for task, size in CASES]


def _spandrel_twin(model: SwinIR) -> nn.Module | None:
    torchvision_guard.apply()
    try:
        import spandrel
    except ImportError:
        return None
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model_of_spandrel = spandrel.ModelLoader(model.mean.device).load_from_state_dict(state).model
    return model_of_spandrel.eval()  # also in training: its stochastic depth would make the gradients differ


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measure(task: Task, size: tuple[int, int, int], model: SwinIR, peer: nn.Module | None, rounds: int) -> BenchRow:
    batch, height, width = size
    lr = torch.rand(batch, 3, height, width, device=model.mean.device)
    run = _infer if task == "inference" else _train_step
    networks = [model] if peer is None else [model, peer]
    model.train(task == "training")
    results = [run(network, lr) for network in networks]
    times = [[_seconds(run, network, lr) for network in networks] for _ in range(rounds)]
    ours = statistics.median(turn[0] for turn in times)
    name = f"{batch}x{height}x{width}"
    if peer is None:
        return BenchRow(task, name, ours, None, None, None, None)
    ratios = [theirs / own for own, theirs in times]
    return BenchRow(
        task,
        name,
        ours,
        statistics.median(turn[1] for turn in times),
        statistics.median(ratios),
        (min(ratios), max(ratios)),
        float((results[0] - results[1]).abs().max()),
    )


def _infer(network: nn.Module, lr: Tensor) -> Tensor:
    with torch.inference_mode():
        return network(lr)


def _train_step(network: nn.Module, lr: Tensor) -> Tensor:
    """Forward, L1 loss against grey, backward; returns the first layer's gradient, which depends on everything."""
    network.zero_grad()
    (network(lr) - 0.5).abs().mean().backward()
    gradient = network.get_parameter("conv_first.weight").grad
    assert gradient is not None
    return gradient.clone()


def _seconds(run: Callable[[nn.Module, Tensor], Tensor], network: nn.Module, lr: Tensor) -> float:
    _synchronise(lr)
    start = time.perf_counter()
    run(network, lr)
    _synchronise(lr)
    return time.perf_counter() - start


def _synchronise(x: Tensor) -> None:
    if x.device.type != "cpu":
        torch.accelerator.synchronize(x.device)
