"""Batches from reader processes: torch's DataLoader, with errors and signals as people need them.

A `DtkdError` crosses the border between processes as a value and is raised in the training process: the loader itself
would bury its one line under the traceback of a worker. Readers leave signals to the training process.
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from pipeline.system.errors import DtkdError

T = TypeVar("T")


def read_ahead(
    read: Callable[[Any], T],
    plan: Sampler | Sequence[Sequence[Any]],
    *,
    workers: int,
    device: torch.device,
    ahead: int = 2,
) -> Iterator[T]:
    """Yield `read(draws)` for each of the plan's lists of draws, in order, read by processes beside this one.

    Args:
        read: makes a batch; must survive pickling.
        plan: iterable of what makes up each batch.
        workers: reader processes, at most one a core; 0 reads in this process.
        device: where the batches will go; batches for a GPU come in pinned memory.
        ahead: batches that each reader prepares in advance.

    Raises:
        DtkdError: what a reader raised.
    """
    workers = min(workers, os.cpu_count() or 1)
    loader = DataLoader(
        _Reads(read),
        batch_sampler=plan,  # pyright: ignore[reportArgumentType]  # any iterable of lists will do
        num_workers=workers,
        prefetch_factor=ahead if workers else None,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_signals_to_parent,
        pin_memory=device.type == "cuda",
    )
    for batch in loader:
        if isinstance(batch, DtkdError):
            raise batch
        yield batch


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
