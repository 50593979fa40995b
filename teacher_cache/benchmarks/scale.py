"""What a cache of any size takes beside its pictures: plan, records, manifest and index, simulated and measured.

Photos, places in tars and CRCs are made up, and the tars are holes in the disk; everything else is what stage one and
stage two run.
"""

import hashlib
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.corpus import Corpus, Source
from pipeline.schema import AROUND, SCHEMA, Member, Sample, ShardRecord, canonical_bytes
from pipeline.shards import done_path, load_index, load_manifest, shard_path
from pipeline.system.device import measuring_memory
from pipeline.system.errors import UsageError
from pipeline.system.results import plain
from teacher_cache.benchmarks.cache import StandIn
from teacher_cache.benchmarks.teacher import timed
from teacher_cache.building.frozen import freeze
from teacher_cache.building.manifest import FOLDERS, finalize
from teacher_cache.building.plan import Plan, PlannedShard, lay_out, load_plan, make_plan
from teacher_cache.building.settings import BuildSettings

PHOTO = (2048, 1408)
"""Width and height of a made-up photo, about those of DIV2K."""
SIZES = {AROUND: 6013, "gt": 64_298, "json": 186, "lr": 4793, "teacher": 59_290}
"""Bytes of the members of a tile of 256 pixels, means over 2,560 tiles of 280 photos with the embedded teacher; in the
order of a tar."""


class Step(NamedTuple):
    """One piece of work, in a process of its own."""

    name: str
    seconds: float
    peak_bytes: int | None
    """Beyond what the process had before; None where the system does not tell."""


@dataclass(frozen=True)
class ScaleBench:
    """A simulated cache."""

    samples: int
    photos: int
    shards: int
    bytes: dict[str, int]
    """Of files; `tars` as they would be."""
    steps: tuple[Step, ...]

    failure = None
    """See `pipeline.system.results.Result`."""

    def lines(self) -> list[str]:
        """For people."""
        lines = [f"{self.samples} samples of {self.photos} made-up photos in {self.shards} shards", ""]
        lines += [f"{name:<16}  {size / 1e6:>12.1f} MB" for name, size in self.bytes.items()]
        lines += ["", "work                         seconds  peak MB"]
        for step in self.steps:
            peak = "-" if step.peak_bytes is None else f"{step.peak_bytes / 1e6:.0f}"
            lines.append(f"{step.name:<27}  {step.seconds:>7.2f}  {peak:>7}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        steps = [step._asdict() for step in self.steps]
        return {"bench": "plan", **plain(self), "steps": steps}


def bench_plan(samples: int, settings: BuildSettings) -> ScaleBench:
    """Simulate a cache of at least so many training samples, and measure each step in a process of its own.

    Raises:
        UsageError: `samples` is below 1.
    """
    if samples < 1:
        raise UsageError(f"expected a plan of at least 1 sample, got {samples}")
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        plan = _elsewhere("plan", _write_plan, cache, samples, settings)
        _elsewhere("records", _write_records, cache)
        steps = (
            plan,
            _elsewhere("read plan.json", load_plan, cache),
            _elsewhere("finalize", finalize, cache),
            _elsewhere("open by manifest.index", load_index, cache, "train"),
            _elsewhere("open by manifest.json", load_manifest, cache),
        )
        frozen = load_plan(cache)
        sizes = {name: (cache / name).stat().st_size for name in ("plan.json", "manifest.json", "manifest.index")}
        sizes["done records"] = sum(path.stat().st_size for path in (cache / "done").iterdir())
        sizes["tars"] = sum(path.stat().st_size for path in cache.glob("*.tar"))
    return ScaleBench(frozen.planned, len(frozen.sources), len(frozen.shards), sizes, steps)


def _elsewhere(name: str, work: Callable[..., object], *about: object) -> Step:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, name, work, about).result()


def _measured(name: str, work: Callable[..., object], about: Sequence[object]) -> Step:
    with measuring_memory("cpu") as peak:
        _, seconds = timed(lambda: work(*about))
    return Step(name, seconds, peak.bytes)


def _write_plan(cache: Path, samples: int, settings: BuildSettings) -> None:
    for name in FOLDERS:
        (cache / name).mkdir()
    width, height = PHOTO
    tiles = -(-width // settings.tile) * -(-height // settings.tile)
    count = -(-samples // tiles) + settings.hold_out
    sources = tuple(Source(f"photo-{n:09d}.png", Path(f"photo-{n:09d}.png"), width, height) for n in range(count))
    layout = lay_out(Corpus("simulated", sources, ()), settings, _made_up_identity)
    freeze(cache, make_plan(layout, StandIn(settings.degradation.scale, 0.0), settings))


def _made_up_identity(path: Path) -> str:
    return f"4000000:{hashlib.blake2b(path.name.encode(), digest_size=12).hexdigest()}"


def _write_records(cache: Path) -> None:
    plan = load_plan(cache)
    for shard in plan.shards:
        record = _record(plan, shard)
        done_path(cache, shard.name).write_bytes(canonical_bytes(record.to_json()))
        shard_path(cache, shard.name).touch()
        os.truncate(shard_path(cache, shard.name), record.bytes)


def _record(plan: Plan, shard: PlannedShard) -> ShardRecord:
    offset, samples = 0, []
    for sample in shard.samples:
        members = {}
        for name, size in SIZES.items():
            members[name] = Member(offset + 512, size, int(sample.key[:8], 16))
            offset += 512 + -(-size // 512) * 512
        samples.append(Sample(sample.key, shard.split, "ok", members, drift=0.1234))
    sha256 = hashlib.sha256(shard.name.encode()).hexdigest()
    return ShardRecord(
        SCHEMA, shard.name, shard.split, plan.fingerprint_digest, tuple(samples), sha256, offset, 60.0, 50.0, 64
    )
