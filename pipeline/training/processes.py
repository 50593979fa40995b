"""Training on one process or several: the device, and what all processes must agree on.

`accelerate launch` or `torchrun` starts the processes; every function here is called on all of them.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from pipeline.system.device import keep_freed_memory, leave_at_exit
from pipeline.system.errors import DtkdError

if TYPE_CHECKING:
    from pipeline.training.state import RunState

DeviceChoice = Literal["auto", "cpu"]
T = TypeVar("T")


class Seen(NamedTuple):
    """What all processes agree on after a backward pass."""

    values: dict[str, float]
    """Means over the processes."""
    finite: bool
    """Whether all of them are: else no process takes the step."""
    stop: bool
    """A process was asked to."""


def launch(device: DeviceChoice) -> Accelerator:
    """This process's share of the training.

    The accelerator leaves precision to the run's state: it can have one precision for the life of a process only, and a
    teacher and a student may be trained in one.

    Raises:
        DtkdError: the CPU is asked for, and this process computes on another device already.
    """
    cpu = device == "cpu" or not torch.accelerator.is_available()
    try:
        accelerator = Accelerator(cpu=cpu, mixed_precision="no")
    except ValueError as error:
        used = torch.accelerator.current_accelerator()
        raise DtkdError(f"this process trains on {used} already: train on the CPU in a process of its own") from error
    if accelerator.num_processes > 1:
        leave_at_exit()
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator


def agree(accelerator: Accelerator, values: Mapping[str, Tensor], stop: bool) -> Seen:
    """Average over the processes, so that all skip a step and all stop, or none (one small all-reduce)."""
    scalars = list(values.values())
    row = torch.stack([*scalars, scalars[0].new_tensor(float(stop))]).detach()
    *means, stopping = reduce(accelerator, row, "mean").tolist()
    return Seen(dict(zip(values, means, strict=True)), all(map(math.isfinite, means)), stopping > 0)


def reduce(accelerator: Accelerator, values: Tensor, how: Literal["sum", "mean"]) -> Tensor:
    """Sum or mean of a tensor over the processes."""
    reduced = accelerator.reduce(values, how)
    assert isinstance(reduced, Tensor)
    return reduced


def seed_step(seed: int, step: int, process: int) -> None:
    """Make torch's own random numbers a function of the step, so that a resumed run draws the same."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, process]).generate_state(1, np.uint64)[0]))


def main_first(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Do `work` on the main process, then on the others; a mistake that one of them finds is raised on all."""
    done: list[T] = []
    mistake = ""
    with accelerator.main_process_first():
        try:
            done.append(work())
        except DtkdError as error:
            if accelerator.num_processes == 1:
                raise
            mistake = str(error)
    mistakes: list[str] = [found for found in gather_object([mistake]) if found]
    if mistakes:
        raise DtkdError(mistakes[0])
    return done[0]


def refuse_other_starts(state: "RunState", run: Path) -> None:
    """Refuse to train where the processes would go on from different steps, settings or data: they would wait forever.

    Raises:
        DtkdError: says where they stand.
    """
    identity = json.dumps([state.settings, state.data], sort_keys=True).encode()
    starts: list[tuple[int, str]] = gather_object([(state.step, hashlib.blake2b(identity).hexdigest())])
    steps = sorted({step for step, _ in starts})
    if len(steps) > 1:
        raise DtkdError(
            f"the processes would go on from different steps ({', '.join(map(str, steps))}): {run} must be one folder "
            "that all machines share"
        )
    if len({identity for _, identity in starts}) > 1:
        raise DtkdError("the processes have different settings or data: give all of them the same command and files")
