"""Batches from reader processes: torch's DataLoader, with errors and signals as people need them.

A `DtkdError` crosses the border between processes as a value and is raised in the training process: the loader itself
would bury its one line under the traceback of a worker. Readers leave signals to the training process. One that hangs
in a read, of a network drive for example, or dies ends the training with a line that says what it was reading.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from pipeline.system.errors import DtkdError

T = TypeVar("T")


class Marks:
    """What every reader is at, a number each, in memory that the training process shares with them."""

    def __init__(self, workers: int) -> None:
        """No reader has begun."""
        self._at = torch.full((max(workers, 1),), -1).share_memory_()

    def put(self, number: int) -> None:
        """Say what this reader, or the training process where it reads, begins with."""
        reader = get_worker_info()
        self._at[reader.id if reader else 0] = number

    def of(self, reader: int) -> int | None:
        """What a reader has said last; None where it has not begun."""
        number = int(self._at[reader])
        return None if number < 0 else number


def read_ahead(
    read: Callable[[Any], T],
    plan: Sampler | Sequence[Sequence[Any]],
    *,
    workers: int,
    device: torch.device,
    ahead: int = 2,
    stall_seconds: int = 0,
    at: Callable[[int], str] | None = None,
) -> Iterator[T]:
    """Yield `read(draws)` for each of the plan's lists of draws, in order, read by processes beside this one.

    Args:
        read: makes a batch; must survive pickling.
        plan: iterable of what makes up each batch.
        workers: reader processes, at most one a core; 0 reads in this process.
        device: where the batches will go; batches for a GPU come in pinned memory.
        ahead: batches that each reader prepares in advance.
        stall_seconds: how long a batch of a reader process is waited for; 0: without an end.
        at: what a reader, by its number, is at, for the error.

    Raises:
        DtkdError: what a reader raised; or it stalled, or died.
    """
    workers = min(workers, os.cpu_count() or 1)
    loader = _loader(read, plan, workers, device, ahead, stall_seconds)
    before = set(multiprocessing.active_children())
    stream = iter(loader)
    readers = set(multiprocessing.active_children()) - before
    number = 0  # of batches that came
    try:
        while (batch := _next(stream)) is not None and not isinstance(batch, DtkdError | _Lost):
            yield batch
            number += 1
    finally:
        del stream  # takes leave of the readers that can hear it, also where a traceback keeps this frame
    if isinstance(batch, _Lost):
        for reader in readers:
            reader.kill()
            reader.join(5)  # they leave SIGTERM to this process, which would wait for them at its end
        raise batch.error(stall_seconds, at(number % workers) if at else "its photos")  # batches go to readers in turn
    if isinstance(batch, DtkdError):
        raise batch


def _loader(
    read: Callable[[Any], Any],
    plan: Sampler | Sequence[Sequence[Any]],
    workers: int,
    device: torch.device,
    ahead: int,
    stall_seconds: int,
) -> DataLoader:
    return DataLoader(
        _Reads(read),
        batch_sampler=plan,  # pyright: ignore[reportArgumentType]  # any iterable of lists will do
        num_workers=workers,
        prefetch_factor=ahead if workers else None,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_signals_to_parent,
        pin_memory=device.type == "cuda",
        timeout=stall_seconds if workers else 0,
    )


class _Lost(NamedTuple):
    """A batch that will not come."""

    stalled: bool
    """Else its reader died."""

    def error(self, seconds: int, place: str) -> DtkdError:
        if self.stalled:
            return DtkdError(
                f"no batch came for {seconds} s: a reader waits for {place}; see to its disk or network, or raise "
                "data.stall_seconds (0 waits without an end)"
            )
        return DtkdError(f"a reader died at {place} (killed, or out of memory): lower data.workers or train.batch_size")


def _next(stream: Iterator[T]) -> T | _Lost | None:
    """The next batch, None after the last one."""
    try:
        return next(stream, None)
    except RuntimeError as error:  # torch has no other type for these
        if "timed out" in str(error) or "DataLoader worker" in str(error):
            return _Lost("timed out" in str(error))
        raise


class _Reads(Dataset, Generic[T]):
    """What a loader asks for batches, with errors as values."""

    def __init__(self, read: Callable[[Any], T]) -> None:
        self._read = read

    def __getitems__(self, draws: Any) -> T | DtkdError:
        try:
            return self._read(draws)
        except DtkdError as error:
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_signals_to_parent(worker: int) -> None:
    """Ctrl-C reaches the whole process group; the parent decides when its readers end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
