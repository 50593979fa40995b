"""What a teacher is: whatever turns an LR image into the picture that the student is to learn from.

B batch, h w height and width of the LR image, s scale.

Stage one, the audit and the evaluation know teachers by this protocol alone. A class of your own derives from `Teacher`
and needs what stands above the line; or it comes as `--teacher python:FILE:FACTORY` and need not even derive.
"""

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Place(NamedTuple):
    """Where an LR image comes from: a rectangle of a photo, in HR pixels."""

    photo: str
    """Id of the photo (`pipeline.corpus.Source.id`)."""
    photo_width: int
    photo_height: int
    x: int
    y: int
    width: int
    height: int


class Teacher(Protocol):
    """Restores LR images; the same LR image and seed give the same picture, whatever else is in the batch."""

    name: str
    """What `teacher_cache.teachers.load` finds it by."""
    scale: int
    """Pixels of the picture to an LR pixel, along a side."""
    steps: int
    """Network evaluations an image (NFE); 0 where the pictures were made elsewhere and nothing is computed."""

    @abstractmethod
    def restore(self, lr: Tensor, seeds: Sequence[int]) -> Tensor:
        """Restore (B, 3, h, w) in [0, 1] to (B, 3, s h, s w) in [0, 1]; one seed an image."""
        ...

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Everything that its pictures depend on, as JSON, with a `name` for people; no path of this machine."""
        ...

    # The line: a model leaves all of this as it is. ------------------------------------------------------------------

    sees_context: bool = True
    """Whether its pictures depend on what surrounds a tile, so that stage one should show it."""
    parameters: int | None = None
    """How many weights it has; None where that is not known."""
    trained_on: frozenset[str] = frozenset()
    """Photos that it was trained on, as `pipeline.system.files.sample_file` identifies them; empty: not known."""
    about: Mapping[str, str] = MappingProxyType({})
    """What else is known of its weights: `licence`, `repository`, `revision`. No part of the fingerprint."""

    def restore_at(self, lr: Tensor, seeds: Sequence[int], places: Sequence[Place]) -> Tensor:
        """As `restore`, for LR images whose places are known; what stage one calls."""
        return self.restore(lr, seeds)

    def check_photos(self, photos: Iterable[str]) -> None:
        """Refuse a corpus with these photos (ids), before anything is computed, with a `DtkdError` that says why."""

    def unsuited(self, degradation: str) -> str | None:
        """What is wrong with it for LR images of this kind of degradation; None where nothing is known to be."""
        return None
