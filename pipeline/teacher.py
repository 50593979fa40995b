"""Placeholder of this branch only; the stage-one branch defines it."""

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor


class Teacher(Protocol):
    """See the stage-one branch."""

    name: str
    scale: int
    steps: int

    def restore(self, lr: Tensor, seeds: Sequence[int]) -> Tensor:
        """See there."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """See there."""
        ...
