"""The gradient of a step: forward and backward passes over its batch, whole or in parts one after the other.

Parts (`train.accumulate`) let a large batch fit in a small memory. Every term of the loss is a mean over samples and
parts are of equal size, so that the mean over the parts is the batch's up to rounding, and so is its gradient.
Processes add up their gradients once, in the last part.

B batch of this process.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from pipeline.system.device import out_of_memory
from pipeline.system.errors import DtkdError
from pipeline.system.stop import StopSignals
from student.loss import LossParts
from student.model import SwinIR
from student.stream import Batch
from student.training.state import TrainState

Loss = Callable[[Tensor, Tensor, Tensor], LossParts]
"""(sr, gt, teacher), each (b, 3, H, W), to means over their samples."""


class Passed(NamedTuple):
    """What the forward passes of a step made, without its graph."""

    sr: Tensor
    """(B, 3, H, W)."""
    losses: dict[str, Tensor]
    """Means over the batch, by the names of `LossParts`."""


def compile_steps(student: SwinIR) -> None:
    """Have torch.compile take over what the student does in training; its first step then takes a minute or more.

    It is done in place, so that tensors keep their names; for one size, because torch's CPU back end fails on the
    padded size's strides with dynamic ones (LOG.md, 2026-11-23); and with eager random numbers, so that the same paths
    are dropped.
    """
    student.compile(dynamic=False, options={"fallback_random": True})


@contextmanager
def interruptible(signals: StopSignals, compiled: bool) -> Iterator[None]:
    """Ctrl-C reaches the compiler of the first step as well: that it fails then is an interruption, and no bug."""
    try:
        yield
    except RuntimeError as error:  # the kind of all errors of torch.compile
        if compiled and signals.requested:
            raise KeyboardInterrupt from error
        raise


def add_gradient(
    model: nn.Module, batch: Batch, parts: int, loss: Loss, state: TrainState, accelerator: Accelerator
) -> Passed:
    """Add the gradient of the batch's mean loss to that of the model's parameters.

    Args:
        model: the student, which may be compiled and joined with those of other processes.
        batch: this process's share.
        parts: how many it is computed in; they divide it.
        loss: of a part.
        state: knows the precision.
        accelerator: of this process.

    Raises:
        DtkdError: memory gave out.
    """
    passed: list[tuple[Tensor, Tensor]] = []
    for number, part in enumerate(_parts(batch, parts), 1):
        with nullcontext() if number == parts else accelerator.no_sync(model):
            try:
                with state.autocast(accelerator.device):
                    sr = model(part.lr)
                found = loss(sr, part.gt, part.teacher)
                accelerator.backward(found.total / parts)
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                raise DtkdError(_advice(len(batch.keys), parts)) from error
        passed.append((sr.detach(), torch.stack(found).detach()))
    pictures, losses = zip(*passed, strict=True)
    means = torch.stack(losses).mean(0)
    return Passed(torch.cat(pictures), dict(zip(LossParts._fields, means, strict=True)))


def _parts(batch: Batch, parts: int) -> Iterator[Batch]:
    size = len(batch.keys) // parts
    for start in range(0, size * parts, size):
        one = slice(start, start + size)
        yield Batch(batch.lr[one], batch.gt[one], batch.teacher[one], batch.keys[one])


def _advice(share: int, parts: int) -> str:
    """The way out of a lack of memory that changes least."""
    more = next((count for count in range(parts + 1, share + 1) if share % count == 0), None)
    if more is None:
        return "out of memory with one patch at a time: lower train.patch, or take another device"
    return (
        f"out of memory with {share // parts} patches at a time: the same command with --set train.accumulate={more} "
        f"goes on with {share // more}, to the same weights up to rounding; or lower train.patch"
    )
