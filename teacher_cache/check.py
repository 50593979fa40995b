"""The first look at a teacher on this machine: sizes, range, colours, and whether it repeats itself.

B micro-batch, h w height and width of an LR image with its context, s scale.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.fidelity import colour_drift
from pipeline.images import to_image, to_tensor
from pipeline.schema import SampleError
from pipeline.system.device import measuring_memory
from pipeline.system.errors import DtkdError
from pipeline.system.progress import OnProgress, ProgressEvent
from pipeline.system.results import plain
from pipeline.teacher import Place, Teacher
from teacher_cache.building.build import Build, prepare
from teacher_cache.building.settings import BuildSettings
from teacher_cache.building.tally import DRIFT_LEVELS
from teacher_cache.recompute import TOLERANCE

ODD = (33, 47)
"""Most height and width of an LR image whose sides no network's strides divide."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    found: str


@dataclass(frozen=True)
class TeacherCheck:
    """All of them."""

    teacher: str
    device: str
    findings: tuple[Finding, ...]

    @property
    def failure(self) -> str | None:
        """See `pipeline.system.results.Result`."""
        wrong = [item.name for item in self.findings if not item.ok]
        return f"{self.teacher} is no teacher to make a cache with yet: {', '.join(wrong)}" if wrong else None

    def lines(self) -> list[str]:
        """For people."""
        return [f"{'ok' if item.ok else 'WRONG':<6} {item.name:<22} {item.found}" for item in self.findings]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return plain(self)


def check_teacher(
    corpus: str, teacher: Teacher, settings: BuildSettings, device: str = "cpu", on_progress: OnProgress | None = None
) -> TeacherCheck:
    """Ask a teacher for tiles of a corpus as stage one does, several times over; nothing is kept.

    `device` is where the teacher is.

    Raises:
        DtkdError: an unusable corpus, a tile that cannot be cut, or whatever the teacher raises.
    """
    findings = []
    with tempfile.TemporaryDirectory() as folder:
        work = prepare(corpus, Path(folder), teacher, settings)
        for finding in _findings(work, teacher, device):
            findings.append(finding)
            if on_progress:
                on_progress(ProgressEvent(len(findings), 8, "checks", finding.name))
    return TeacherCheck(teacher.name, device, tuple(findings))


def _findings(work: Build, teacher: Teacher, device: str) -> Iterator[Finding]:
    lr, places = _tiles(work, "train", work.settings.micro_batch)  # (B, 3, h, w)
    seeds = list(range(len(lr)))
    with measuring_memory(device) as peak:
        began = time.perf_counter()
        first = teacher.restore_at(lr, seeds, places)  # (B, 3, s h, s w)
        seconds = (time.perf_counter() - began) / len(lr)
    memory = f", {peak.bytes / 2**30:.2f} GiB" if peak.bytes else ""
    yield Finding("cost", True, f"{seconds:.2f} s a tile in a batch of {len(lr)}{memory}")
    yield _size("a batch of tiles", lr, first, teacher.scale)
    low, high, finite = first.min().item(), first.max().item(), bool(first.isfinite().all())
    yield Finding("range", finite and 0 <= low < high <= 1, f"{low:.3f} to {high:.3f}, expected 0 to 1")
    drift = [colour_drift(to_image(picture), to_image(image)) for picture, image in zip(first, lr, strict=True)]
    mean = sum(drift) / len(drift)
    told = f"{mean:.2f} of 255 on average, {max(drift):.2f} at worst; up to {DRIFT_LEVELS} is not seen"
    yield Finding("colour drift", mean <= DRIFT_LEVELS, told)
    yield _same("the same again", first, teacher.restore_at(lr, seeds, places))
    other = teacher.restore_at(lr.flip(0), seeds[::-1], places[::-1]).flip(0)
    yield _same("in another order", first, other)
    if teacher.sees_context:  # finished pictures are of the photos' tiles alone
        height, width = ((min(side, most) - 1) // 2 * 2 + 1 for side, most in zip(lr.shape[2:], ODD, strict=True))
        odd = lr[:1, :, :height, :width]
        yield _size("sides that are odd", odd, teacher.restore(odd, seeds[:1]), teacher.scale)
    if any(shard.split == "val" for shard in work.plan.shards):
        large, place = _tiles(work, "val", 1)
        yield _size("a held-out crop", large, teacher.restore_at(large, [0], place), teacher.scale)


def _tiles(work: Build, split: str, count: int) -> tuple[Tensor, list[Place]]:
    """What stage one would show the teacher of the first tiles of a split."""
    samples = next(shard for shard in work.plan.shards if shard.split == split).samples[:count]
    shown = []
    for sample in samples:
        cut = work.maker.cut(sample)
        if isinstance(cut, SampleError):
            raise DtkdError(f"a tile of {sample.tile.source} cannot be cut: {cut.message}")
        shown.append(to_tensor(cut.around))
    return torch.stack(shown), [work.maker.photos.place(sample.tile) for sample in samples]


def _size(name: str, lr: Tensor, out: Tensor, scale: int) -> Finding:
    expected = (*lr.shape[:2], *(side * scale for side in lr.shape[2:]))
    return Finding(f"size, {name}", tuple(out.shape) == expected, f"{_text(lr.shape)} to {_text(out.shape)}")


def _same(name: str, one: Tensor, other: Tensor) -> Finding:
    gap = (one - other).abs().max().item() * 255 if one.shape == other.shape else float("inf")
    return Finding(name, gap <= TOLERANCE, f"differs by {gap:.3g} of 255 at most, {TOLERANCE} is allowed")


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
