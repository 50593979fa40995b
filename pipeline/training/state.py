"""What every run remembers beside its tensors, and the rule for steps that are not finite.

A step whose loss or gradient is NaN or infinite is left out and counted; `PATIENCE` of them in a row end the run with
an error, and the last checkpoint stays as it is.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from pipeline.system.device import Precision, ResolvedPrecision, autocast, resolve_precision
from pipeline.system.errors import DtkdError
from pipeline.training.processes import Seen

PATIENCE = 10  # steps in a row that may be left out


@dataclass(kw_only=True)
class RunState:
    """How far a run is; what a kind of run remembers beyond that, it adds in a class of its own."""

    settings: dict[str, Any]
    """The run's settings (`pipeline.config.to_dict`)."""
    data: str
    """Identity of the training data."""
    precision: ResolvedPrecision | None = None
    """What the networks compute in: settled before the first step, and kept wherever the run goes on."""
    step: int = 0
    """Finished steps."""
    seconds: float = 0.0
    """Wall-clock seconds of training, interruptions left out."""
    sums: dict[str, float] = field(default_factory=dict)
    """Sums of the logged quantities since the last log line."""
    summed: int = 0
    """Steps in these sums."""
    skipped: int = 0
    """Steps that were left out because loss or gradient was not finite."""
    skipped_in_a_row: int = 0
    """Of these, the latest ones without a good step in between."""

    def settle_precision(self, wanted: Precision, device: torch.device) -> None:
        """Decide what the run computes in, unless an earlier process of it has."""
        self.precision = self.precision or resolve_precision(wanted, device.type)

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """Context in which forward passes have the run's precision, once that is settled."""
        assert self.precision is not None
        return autocast(self.precision, device.type)

    def count(self, seen: Seen, seconds: float, hint: str = "") -> None:
        """Take in a step that has been done or left out; `hint` says what is known about one that was not finite.

        Raises:
            DtkdError: `PATIENCE` steps in a row were not finite.
        """
        self.step += 1
        self.seconds = seconds
        if seen.finite:
            self.sums = {name: self.sums.get(name, 0.0) + value for name, value in seen.values.items()}
            self.summed += 1
            self.skipped_in_a_row = 0
            return
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= PATIENCE:
            raise DtkdError(
                f"training diverged: loss or gradient was not finite in steps {self.step - PATIENCE + 1} to "
                f"{self.step}; the last checkpoint is kept: go on from it, or start afresh with a lower train.lr or "
                f"train.precision=fp32{hint}"
            )

    def take_means(self) -> dict[str, float]:
        """Means since the last call, and the counters, as a line of the log; empties the sums."""
        means = {name: total / self.summed for name, total in self.sums.items()}
        self.sums, self.summed = {}, 0
        return {**means, "skipped": self.skipped, "seconds": round(self.seconds, 3)}
