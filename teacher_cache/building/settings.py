"""What stage one makes, and how a process works on it."""

import math
import re
from dataclasses import dataclass, field

from pipeline.degradation import Degradation
from pipeline.schema import TEACHERS
from pipeline.system.errors import UsageError
from teacher_cache.building.crops import MOST_CONTEXT
from teacher_cache.building.lease import TTL
from teacher_cache.teachers.settings import TeacherSettings

MOST_THREADS = 8
"""Threads by default, at most: beside one teacher, more only decode photos too early."""

_SHARE = re.compile(r"(\d+)(-(\d+)?)?", re.ASCII)


@dataclass(frozen=True)
class BuildSettings:
    """What stage one makes (first block, fixed for a cache) and how this process works (second block)."""

    tile: int = 256
    """Side of a training tile, HR pixels."""
    degradation: Degradation = field(default_factory=Degradation)
    """How LR images are made."""
    seed: int = 0
    """Run seed; the seeds of every sample follow from it and the sample's key."""
    limit: int | None = None
    """Use this many photos at most, chosen by a hash of their names (not the first ones of the first folder)."""
    hold_out: int = 2
    """Photos that are kept out of training, one large crop of each in the `val` shards."""
    samples_per_shard: int = 64
    """Samples in a shard: the unit of work, and of loss when a disk is damaged."""
    micro_batch: int = 4
    """Training tiles that the teacher gets at once (held-out crops go one by one)."""
    samples: int = 1
    """Outputs of the teacher for each tile, each with a seed of its own, 1 to 16; training takes another one every
    epoch."""
    context: int = 4
    """LR pixels around a tile that the teacher sees as well, so that its picture is as good at the border as inside;
    without effect on imported pictures."""

    max_failure_fraction: float = 0.1
    """Share of samples that may fail before the run stops."""
    retry_errors: bool = False
    """Make finished shards with failed samples again, keeping the good samples."""
    wait: bool = True
    """Wait for shards that other processes are working on, to take over when one of them dies."""
    shards: str | None = None
    """Static share of this process: numbers of the plan's shards from 0, `A-B`, `A` or `A-`. It makes these and no
    others, and waits for nobody; None: all, in turn with the other processes."""
    local_folder: str = ""
    """Where shards of a cache at a URL are finished before the store gets them; empty: dtkd in the user's cache
    folder. It needs room for one shard of each process, and is best the same one when a killed command goes on."""
    lease_seconds: float = TTL
    """Take over a shard whose process on another machine gave no sign for so long."""
    threads: int | None = None
    """Threads that cut, degrade and encode while the teacher works; by default one for each processor, 8 at most."""

    def __post_init__(self) -> None:
        """Check ranges, and that a tile suits the scale and a two-level wavelet transform."""
        multiple = math.lcm(8, self.degradation.scale)
        if self.tile < multiple or self.tile % multiple:
            raise UsageError(
                f"tile must be a multiple of {multiple}, got {self.tile} (at scale {self.degradation.scale})"
            )
        for name in ("samples_per_shard", "micro_batch", "limit", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, got {value}")
        if not 1 <= self.samples <= len(TEACHERS):
            raise UsageError(f"samples must be 1 to {len(TEACHERS)}, got {self.samples}")
        if self.hold_out < 0:
            raise UsageError(f"hold_out must be 0 or more, got {self.hold_out}")
        if not 0 <= self.context <= MOST_CONTEXT:
            raise UsageError(f"context must be within 0..{MOST_CONTEXT} LR pixels, got {self.context}")
        if not 0 <= self.max_failure_fraction <= 1:
            raise UsageError(f"max_failure_fraction must be within 0..1, got {self.max_failure_fraction}")
        if self.lease_seconds <= 0:
            raise UsageError(f"lease_seconds must be above 0, got {self.lease_seconds}")
        self.share(None)

    def share(self, planned: int | None) -> range:
        """Numbers of the shards that this process makes, of `planned` ones; None: before their number is known.

        Raises:
            UsageError: `shards` is no share, or begins behind the last shard.
        """
        if self.shards is None:
            return range(planned or 0)
        match = _SHARE.fullmatch(self.shards)
        first = int(match[1]) if match else 0
        last = int(match[3]) if match and match[3] else None if match and match[2] else first
        if match is None or (last is not None and last < first):
            raise UsageError(f"shards must be numbers from 0, A-B with A <= B, A or A-, got {self.shards}")
        if planned is None:
            return range(0)
        if first >= planned:
            raise UsageError(
                f"shards {self.shards} begins behind the plan's last one: it has the shards 0-{planned - 1}"
            )
        return range(first, planned if last is None else min(last + 1, planned))


@dataclass(frozen=True)
class StageOneSettings(BuildSettings):
    """Those, and what is asked of a teacher that is loaded by name (`teacher_cache.teachers.load`)."""

    teacher: TeacherSettings = field(default_factory=TeacherSettings)
    """Of the teacher; what differs from its default joins the fingerprint."""
