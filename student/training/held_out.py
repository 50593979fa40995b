"""The pictures that a run is validated on: the held-out samples of its cache, or those of a folder or another cache."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.corpus import Skipped
from pipeline.system.errors import DtkdError
from student.dataset import CacheDataset
from student.evaluation.examples import Example, open_examples


@dataclass(frozen=True)
class HeldOut:
    """Pictures to validate on, read when they are asked for."""

    name: str
    """What `data.val` names; empty for the held-out samples of the training's own cache."""
    scale: int
    count: int
    has: frozenset[str]
    """What there is to compare with: `lr`, `gt`, `teacher`."""
    skipped: tuple[Skipped, ...]
    """Files that could not be used, by their headers: a pair of wrong size for example."""
    read: Callable[[int], Example]
    """One of them by its number; DtkdError where it is damaged."""

    def __len__(self) -> int:
        """Number of pictures."""
        return self.count

    @property
    def label(self) -> str:
        """For people."""
        return self.name or "the held-out samples"


def open_held_out(own: CacheDataset, val: str) -> HeldOut:
    """Look at the pictures that `data.val` names.

    Args:
        own: held-out samples of the training's cache, which an empty `val` stands for; there may be none.
        val: as `dtkd evaluate --data` takes it.

    Raises:
        DtkdError: no such folder, nothing in it that can be used, or a cache of another scale.
    """
    if not val:

        def read(index: int) -> Example:
            return Example(own.key(index), *own.images(index))

        return HeldOut("", own.scale, len(own), frozenset(("lr", "gt", "teacher")), (), read)
    try:
        found = open_examples(Path(val).expanduser(), own.scale)
    except DtkdError as error:
        raise DtkdError(f"data.val: {error}") from error
    more = {"LR": (), "cache": ("gt", "teacher")}.get(found.kind, ("gt",))
    return HeldOut(val, found.scale, len(found), frozenset(("lr", *more)), found.skipped, found.read)
