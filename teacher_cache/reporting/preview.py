"""A few tiles of a cache before the money is spent: how the pictures look, how good they are, what the rest will cost.

The tiles are a shard of their own that is made in a temporary folder by what makes a cache, so they look and cost as
they will there. Of the cache itself nothing is written.
"""

import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.fidelity import psnr_y
from pipeline.filters import bicubic
from pipeline.images import Rgb, decode_webp
from pipeline.schema import Drift, Sample, ShardRecord, shard_name
from pipeline.shards import read_member, shard_path
from pipeline.system.errors import DtkdError
from pipeline.system.files import ensure_dir
from pipeline.system.progress import OnProgress, ProgressEvent, clock_text
from pipeline.system.results import plain
from pipeline.system.words import bytes_text, decibels, plural
from pipeline.teacher import Teacher
from teacher_cache.building.build import plan_for, process_shard, work_on
from teacher_cache.building.manifest import FOLDERS, drift_of
from teacher_cache.building.plan import Plan, PlannedSample, PlannedShard
from teacher_cache.building.survey import Survey
from teacher_cache.building.tally import Failure, drift_warning, failures
from teacher_cache.reporting.sheet import Column, check_sheet, save_sheet, sheet_path


@dataclass(frozen=True)
class Scores:
    """One tile."""

    photo: str
    x: int  # HR pixels, as y
    y: int
    bicubic: float  # psnr_y in dB, a border of `scale` pixels left out
    teacher: float  # as well, of the first output
    drift: float  # colour drift, 8-bit levels


@dataclass(frozen=True)
class Estimate:
    """What the whole cache will be, by the pixels of all its tiles."""

    tiles: int
    photos: int
    seconds: float  # of one process
    device: str  # that these are seconds of, "CPU" or "GPU"
    bytes: int


@dataclass(frozen=True)
class Preview:
    """The tiles that were made, and what follows from them."""

    sheet: Path
    teacher: str
    tiles: tuple[Scores, ...]
    failures: tuple[Failure, ...]
    seconds: float  # a tile, all work on it
    teacher_seconds: float  # a tile, inside the teacher
    drift: Drift | None
    warnings: tuple[str, ...]
    estimate: Estimate

    @property
    def failure(self) -> str | None:
        """See `pipeline.system.results.Result`."""
        return None

    @property
    def bicubic(self) -> float:
        """Mean psnr_y, dB."""
        return sum(tile.bicubic for tile in self.tiles) / len(self.tiles)

    @property
    def psnr_y(self) -> float:
        """Mean of the teacher, dB."""
        return sum(tile.teacher for tile in self.tiles) / len(self.tiles)

    def lines(self) -> list[str]:
        """For people."""
        lines = [f"failed in {item.stage}: {item.source}: {item.message}" for item in self.failures]
        for tile in self.tiles:
            scores = f"bicubic {decibels(tile.bicubic)}, teacher {decibels(tile.teacher)}, drift {tile.drift:.1f}"
            lines.append(f"{tile.photo} at {tile.x}, {tile.y}: {scores}")
        drift = f", colour drift {self.drift.mean:.1f} of 255" if self.drift else ""
        lines.append(f"psnr_y: bicubic {decibels(self.bicubic)}, {self.teacher} {decibels(self.psnr_y)}{drift}")
        lines.append(f"{self.seconds:.3g} s a tile, {self.teacher_seconds:.3g} s of them the teacher's")
        whole = self.estimate
        what = f"{plural(whole.tiles, 'tile')} of {plural(whole.photos, 'photo')}"
        hours = f"{clock_text(whole.seconds)} on one {whole.device}"
        lines.append(f"the whole corpus: {what}, about {hours} and {bytes_text(whole.bytes)}")
        lines += [f"warning: {text}" for text in self.warnings]
        return [*lines, f"preview: {self.sheet}"]

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values, and the mean scores."""
        return {**plain(self), "mean": plain({"bicubic": self.bicubic, "teacher": self.psnr_y})}


class _Made(NamedTuple):
    """A tile as its members say."""

    planned: PlannedSample
    lr: Rgb
    """Enlarged: bicubic."""
    gt: Rgb
    teacher: Rgb
    drift: float


def preview_tiles(
    surveyed: Survey, teacher: Teacher, count: int, device: str = "cpu", on_progress: OnProgress | None = None
) -> Preview:
    """Restore `count` training tiles and write a sheet of them beside the cache.

    Args:
        surveyed: corpus, cache and settings; the cache itself is not written.
        teacher: as for `build`.
        count: of tiles, at most 64, spread over the photos; there may be fewer.
        device: that the teacher runs on.
        on_progress: called after every micro-batch.

    Raises:
        DtkdError: as `build`; no tile could be made; or another file has the sheet's name.
    """
    path = sheet_path(surveyed.place)
    check_sheet(path)
    whole = plan_for(surveyed, teacher)
    shard = PlannedShard(shard_name("train", 0), "train", spread(whole, count))
    plan = replace(whole, shards=(shard,))
    with tempfile.TemporaryDirectory(prefix="dtkd-preview-") as name:
        record, made = _make(Path(name), plan, surveyed, teacher, on_progress)
    told = failures(plan, [record])
    if not made:
        raise DtkdError(f"none of {plural(len(shard.samples), 'tile')} could be made, for example {told[0].source}: "
                        f"{told[0].stage}: {told[0].message}")  # fmt: skip
    tiles = tuple(_scores(item, plan.scale) for item in made)
    columns = [
        Column(s.photo, decibels(s.bicubic), f"{decibels(s.teacher)}, drift {s.drift:.1f}", m.lr, m.teacher, m.gt)
        for s, m in zip(tiles, made, strict=True)
    ]
    save_sheet(path, columns, teacher.name)
    drift = drift_of(record.ok)
    warnings = (teacher.unsuited(surveyed.settings.degradation.kind), drift_warning(drift))
    restored = -(-len(shard.samples) // plan.micro_batch) * plan.micro_batch  # the last micro-batch is filled up
    seconds = record.seconds / restored
    return Preview(
        sheet=path,
        teacher=teacher.name,
        tiles=tiles,
        failures=told,
        seconds=seconds,
        teacher_seconds=record.teacher_seconds / restored,
        drift=drift,
        warnings=tuple(text for text in warnings if text),
        estimate=_estimate(whole, seconds, record.bytes / len(made), device),
    )


def spread(plan: Plan, count: int) -> tuple[PlannedSample, ...]:
    """The first training tiles in the order of their keys: one of every photo, then a second one, and so on."""
    seen: dict[str, int] = defaultdict(int)
    ranked = []
    for sample in (sample for shard in plan.shards if shard.split == "train" for sample in shard.samples):
        ranked.append((seen[sample.tile.source], sample.key, sample))
        seen[sample.tile.source] += 1
    return tuple(sample for _, _, sample in sorted(ranked, key=lambda item: item[:2])[:count])


def _make(
    folder: Path, plan: Plan, surveyed: Survey, teacher: Teacher, on_progress: OnProgress | None
) -> tuple[ShardRecord, list[_Made]]:
    for name in FOLDERS:
        ensure_dir(folder / name)
    (shard,) = plan.shards
    work = work_on(folder, plan, surveyed, teacher)
    record = process_shard(work, 0, _counting(on_progress, len(shard.samples)))
    assert record is not None, "nobody else knows the folder"
    made = []
    for planned, sample in zip(shard.samples, record.samples, strict=True):
        if sample.status == "ok":
            lr, gt, output = (
                decode_webp(read_member(shard_path(folder, shard.name), sample.members[member]))
                for member in ("lr", "gt", "teacher")
            )
            made.append(_Made(planned, bicubic(lr, plan.scale), gt, output, sample.drift or 0.0))
    return record, made


def _counting(on_progress: OnProgress | None, total: int) -> Callable[[Sequence[Sample]], None]:
    def show(samples: Sequence[Sample]) -> None:
        if on_progress:
            on_progress(ProgressEvent(len(samples), total, "tiles", "preview"))

    return show


def _scores(made: _Made, scale: int) -> Scores:
    tile = made.planned.tile
    low, high = (psnr_y(picture, made.gt, scale) for picture in (made.lr, made.teacher))
    return Scores(tile.source, tile.x, tile.y, low, high, made.drift)


def _estimate(plan: Plan, seconds: float, size: float, device: str) -> Estimate:
    """`seconds` and `size` in bytes are of one training tile."""
    tiles = [sample.tile for shard in plan.shards for sample in shard.samples]
    share = sum(tile.width * tile.height for tile in tiles) / plan.tile**2  # held-out crops are larger
    name = "CPU" if device == "cpu" else "GPU"
    return Estimate(len(tiles), len(plan.sources), round(share * seconds, 1), name, round(share * size))
