"""Samples of a cache once more, by the teacher: whether what is stored is what it makes on this machine."""

import json
import random
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import images
from pipeline.images import Rgb
from pipeline.schema import AROUND, TEACHERS, Sample, SampleError, ShardRecord, difference, sample_seed
from pipeline.shards import read_member
from pipeline.storage.places import Place, whole_file
from pipeline.system.errors import DtkdError
from pipeline.system.words import plural
from pipeline.teacher import Teacher
from teacher_cache.building import samples
from teacher_cache.building.plan import Plan
from teacher_cache.building.samples import Request, restore

TOLERANCE = 1
"""Largest difference in 8-bit levels that a recomputed sample may show: another machine rounds floats differently."""


@dataclass(frozen=True)
class Recomputed:
    """One sample whose outputs the teacher made again."""

    key: str
    max_difference: int  # 8-bit levels
    mean_difference: float  # 8-bit levels


def refuse_other_teacher(plan: Plan, recompute: int, teacher: Teacher | None) -> None:
    """Refuse to make `recompute` samples without a teacher, or with another one than the plan's (`DtkdError`)."""
    if recompute and teacher is None:
        raise DtkdError(
            f"recomputing {plural(recompute, 'sample')} needs the teacher that made the cache: {plan.teacher}"
        )
    if teacher and recompute:
        changes = difference(plan.fingerprint.get("teacher"), json.loads(json.dumps(teacher.fingerprint())), "teacher")
        if changes:
            raise DtkdError(f"this is not the teacher that made the cache ({'; '.join(changes)})")


def make_again(
    cache: Place, plan: Plan, records: Sequence[ShardRecord], bad: Collection[str | None], count: int, teacher: Teacher
) -> Iterator[Recomputed]:
    """Make `count` samples again whose keys are not `bad`, in batches of the shape that made them."""
    shards = {shard.name: shard for shard in plan.shards}
    tiles = {planned.key: planned.tile for shard in plan.shards for planned in shard.samples}
    sizes = {photo: (width, height) for photo, width, height, _ in plan.sources}
    sound = [(record, sample) for record in records for sample in record.ok if sample.key not in bad]
    for record, sample in random.Random(plan.seed).sample(sound, min(count, len(sound))):
        names = TEACHERS[: plan.outputs]
        with whole_file(cache, f"{record.name}.tar") as path:
            seen, *cached = (read_picture(path, sample, name) for name in (AROUND if plan.context else "lr", *names))
        tile = tiles[sample.key]
        place = samples.place_of(tile, *sizes[tile.source])
        batch, found = plan.batch(shards[record.name]), []
        for name, picture in zip(names, cached, strict=True):
            request = Request(seen, sample_seed(plan.seed, sample.key, name), place)
            again = restore(teacher, [request], batch, plan.context)[0]
            found.append(_gap(sample.key, picture, again))
        gap = np.stack(found)  # (outputs, H, W, 3)
        yield Recomputed(sample.key, int(gap.max()), round(float(gap.mean()), 4))


def read_picture(path: Path, sample: Sample, name: str) -> Rgb:
    """A picture of a sample from its tar, the bytes checked by their CRC."""
    return images.decode_webp(read_member(path, sample.members[name]))


def _gap(key: str, cached: Rgb, again: Rgb | SampleError) -> NDArray[np.int16]:
    if isinstance(again, SampleError):
        raise DtkdError(f"{key}: the teacher failed: {again.type}: {again.message}")
    return np.abs(cached.astype(np.int16) - again)
