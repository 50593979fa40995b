"""What stage one costs beside its teacher: over the bare teacher, with one that costs next to nothing, and in memory.

On a shared machine absolute times mean little: what is compared takes turns in one process.
"""

import math
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.images import to_tensor
from pipeline.schema import sample_seed
from pipeline.system.device import cpu_threads, peak_memory, processors
from pipeline.system.errors import DtkdError, UsageError
from pipeline.system.results import plain
from pipeline.teacher import Teacher
from teacher_cache.benchmarks.teacher import timed
from teacher_cache.building.build import Build, prepare, process_shard
from teacher_cache.building.crops import TileImages
from teacher_cache.building.lease import acquire
from teacher_cache.building.plan import PlannedSample
from teacher_cache.building.settings import BuildSettings
from teacher_cache.building.writer import ShardWriter

STAND_IN_SECONDS = 0.005
"""A tile, of the stand-in teacher."""
THREADS = (1, 2, 4, 8)
"""Numbers of threads that are compared, as far as the machine has processors for half of them."""
MEMORY_SAMPLES = (100, 2000)
MEMORY_SETTINGS = BuildSettings(tile=48, samples_per_shard=50, hold_out=0)
"""The sample photos make more than 2,000 such tiles."""


class StandIn(Teacher):
    """A teacher of a known price: bicubic pictures with grain, so that they are as long as real ones when encoded."""

    name, steps = "stand-in", 1

    def __init__(self, scale: int, seconds: float) -> None:
        """`seconds` a tile, its own work included."""
        self.scale, self._seconds = scale, seconds

    def restore(self, lr: Tensor, seeds: Sequence[int]) -> Tensor:
        """See Teacher."""
        end = time.perf_counter() + self._seconds * len(lr)
        up = F.interpolate(lr, scale_factor=self.scale, mode="bicubic")
        grain = torch.randn(up.shape[1:], generator=torch.Generator().manual_seed(0))
        pictures = (up + 0.02 * grain).clamp(0, 1)
        time.sleep(max(0.0, end - time.perf_counter()))
        return pictures

    def fingerprint(self) -> dict[str, Any]:
        """See Teacher."""
        return {"name": self.name, "seconds": self._seconds}


@dataclass(frozen=True)
class Overhead:
    """Stage one beside `for batch: teacher.restore(batch)` on the same images."""

    teacher: str
    tiles: int
    bare_seconds: float
    """Median of the rounds."""
    seconds: float
    """Median of the rounds, of the finished shard."""
    ratio: float
    """Median over the rounds."""
    spread: tuple[float, float]
    """Lowest and highest of the rounds."""


@dataclass(frozen=True)
class Pace:
    """Stage one with the stand-in teacher and a number of threads."""

    threads: int
    tiles_a_second: float
    """Median of the rounds."""
    limit: float
    """Tiles a second that the slower side could make if the other one cost nothing."""
    bound: str
    """What that side does, the longest part first."""


@dataclass(frozen=True)
class Memory:
    """Peak of a process of its own that makes so many samples of one plan."""

    samples: int
    resident_bytes: int | None
    """None where the system does not tell."""


@dataclass(frozen=True)
class CacheBench:
    """All figures, and how they were measured."""

    rounds: int
    device: str
    processors: int
    torch_threads: int
    overhead: Overhead
    parts: dict[str, float]
    """Seconds a tile, each alone, in one thread."""
    stand_in_seconds: float
    paces: tuple[Pace, ...]
    memory: tuple[Memory, ...]

    failure = None
    """See `pipeline.system.results.Result`."""

    def lines(self) -> list[str]:
        """For people."""
        o = self.overhead
        lines = [
            f"{o.teacher}, {o.tiles} tiles: bare {o.bare_seconds:.2f} s, stage one {o.seconds:.2f} s, "
            f"{o.ratio:.3f} times ({o.spread[0]:.3f} to {o.spread[1]:.3f})",
            "",
            f"{'part of a tile, alone':<28}  ms",
            *(f"{name:<28}  {1000 * seconds:.2f}" for name, seconds in self.parts.items()),
            "",
            f"teacher of {1000 * self.stand_in_seconds:g} ms a tile, {self.processors} processors",
            "threads  tiles a second  limit  bound by",
        ]
        lines += [f"{p.threads:>7}  {p.tiles_a_second:>14.1f}  {p.limit:>5.0f}  {p.bound}" for p in self.paces]
        known = [(m.samples, m.resident_bytes / 1e6) for m in self.memory if m.resident_bytes is not None]
        return [*lines, "", *(f"{samples} samples: {megabytes:.0f} MB at the peak" for samples, megabytes in known)]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"bench": "cache", **plain(self)}


def bench_cache(
    corpus: str,
    teacher: Teacher,
    settings: BuildSettings,
    rounds: int = 5,
    threads: int = 2,
    device: str = "cpu",
    tiles: int = 64,
    memory_samples: Sequence[int] = MEMORY_SAMPLES,
) -> CacheBench:
    """Measure stage one on the first `tiles` training tiles of a corpus, `rounds` times after one to warm up.

    Args:
        corpus: folder of photos, or `sample`.
        teacher: with whose bare calls stage one is compared.
        settings: of stage one; the shard has all tiles.
        rounds: turns of each.
        threads: of torch's CPU operators.
        device: where the teacher is, for the record.
        tiles: a multiple of `settings.micro_batch`.
        memory_samples: for each, a process makes so many tiles of the sample photos with the stand-in.

    Raises:
        DtkdError: an unusable corpus or one of fewer tiles, a tile that fails, a teacher without a network.
        UsageError: `rounds` is below 1, or `tiles` no multiple of the micro-batch.
    """
    if rounds < 1 or tiles < 1 or tiles % settings.micro_batch:
        multiple = f"tiles a multiple of micro_batch {settings.micro_batch}"
        raise UsageError(f"expected rounds of at least 1 and {multiple}, got {rounds} and {tiles}")
    if not teacher.steps:
        raise DtkdError(f"{teacher.name} computes nothing: there is nothing to compare with")
    stand_in = StandIn(settings.degradation.scale, STAND_IN_SECONDS)
    with cpu_threads(threads):
        overhead = _overhead(_Shard(corpus, teacher, settings, tiles), rounds)
        parts = _parts(_Shard(corpus, stand_in, settings, tiles))
        paces = _paces(corpus, stand_in, settings, tiles, rounds, parts)
    memory = tuple(Memory(count, _peak(count)) for count in memory_samples)
    return CacheBench(rounds, device, processors(), threads, overhead, parts, STAND_IN_SECONDS, paces, memory)


@dataclass(frozen=True)
class _Shard:
    """The first training shard of a corpus, which can be made again and again."""

    corpus: str
    teacher: Teacher
    settings: BuildSettings
    tiles: int

    def prepared(self, folder: str) -> Build:
        """All that it takes to make it, in a new cache."""
        work = prepare(self.corpus, Path(folder), self.teacher, replace(self.settings, samples_per_shard=self.tiles))
        if len(work.plan.shards[0].samples) < self.tiles or work.plan.shards[0].split != "train":
            raise DtkdError(f"{self.corpus} has fewer than {self.tiles} training tiles: take a smaller --tiles")
        return work

    def seconds(self) -> float:
        """Of making it, from photos to the done record."""
        with tempfile.TemporaryDirectory() as folder:
            work = self.prepared(folder)
            record, seconds = timed(lambda: process_shard(work, 0))
        if record is None or record.errors:
            raise DtkdError(f"a tile fails: {record.errors[0].error}" if record else "the shard was not made")
        return seconds


def _overhead(shard: _Shard, rounds: int) -> Overhead:
    with tempfile.TemporaryDirectory() as folder:
        batches = _batches(shard.prepared(folder), shard)

    def bare() -> None:
        with torch.inference_mode():
            for lr, seeds in batches:
                shard.teacher.restore(lr, seeds)

    turns = [(timed(bare)[1], shard.seconds()) for _ in range(rounds + 1)][1:]
    ratios = [whole / alone for alone, whole in turns]
    alone, whole = (statistics.median(column) for column in zip(*turns, strict=True))
    spread = (min(ratios), max(ratios))
    return Overhead(shard.teacher.name, shard.tiles, alone, whole, statistics.median(ratios), spread)


def _batches(work: Build, shard: _Shard) -> list[tuple[Tensor, list[int]]]:
    """What the teacher is asked while the shard is made: LR images (B, 3, h, w) and seeds."""
    samples, size = work.plan.shards[0].samples, shard.settings.micro_batch
    lrs = [to_tensor(_cut(work, sample).around) for sample in samples]
    seeds = [sample_seed(shard.settings.seed, sample.key, "teacher") for sample in samples]
    return [(torch.stack(lrs[a : a + size]), seeds[a : a + size]) for a in range(0, len(samples), size)]


def _cut(work: Build, sample: PlannedSample) -> TileImages:
    cut = work.maker.cut(sample)
    if not isinstance(cut, TileImages):
        raise DtkdError(f"a tile cannot be cut: {cut.message}")
    return cut


def _parts(shard: _Shard) -> dict[str, float]:
    """Seconds a tile of every part but the teacher, each alone in this thread."""
    with tempfile.TemporaryDirectory() as folder:
        work = shard.prepared(folder)
        maker, planned, size = work.maker, work.plan.shards[0], shard.settings.micro_batch
        _, decode = timed(lambda: [maker.photos.images(sample.tile.source) for sample in planned.samples])
        cuts, degrade = timed(lambda: [_cut(work, sample) for sample in planned.samples])
        tensors, restored, spent = 0.0, [], 0.0
        for start in range(0, shard.tiles, size):
            part = slice(start, start + size)
            made, seconds = timed(lambda: maker.restore(planned.samples[part], cuts[part], size))  # noqa: B023
            lr = torch.stack([to_tensor(cut.around) for cut in cuts[part]])
            spent += timed(lambda: shard.teacher.restore(lr, [0] * size))[1]  # noqa: B023
            tensors, restored = tensors + seconds, restored + made.outputs
        triples = zip(planned.samples, cuts, restored, strict=True)
        outcomes, encode = timed(lambda: [maker.encode(*triple, 0.0) for triple in triples])
        lease = acquire(work.cache / "leases", planned.name)
        assert lease is not None, "nobody else knows this folder"
        with lease, ShardWriter(work.cache, planned, work.plan.fingerprint_digest, lease) as writer:
            _, write = timed(lambda: [writer.add(outcome) for outcome in outcomes])
            _, commit = timed(writer.commit)
    seconds = {"decode": decode, "degrade": degrade, "tensors": max(0.0, tensors - spent), "encode": encode}
    return {name: value / shard.tiles for name, value in (seconds | {"write": write, "commit": commit}).items()}


def _paces(
    corpus: str, stand_in: StandIn, settings: BuildSettings, tiles: int, rounds: int, parts: dict[str, float]
) -> tuple[Pace, ...]:
    counts = [count for count in THREADS if count <= 2 * processors()]
    shards = [_Shard(corpus, stand_in, replace(settings, threads=count), tiles) for count in counts]
    turns = [[shard.seconds() for shard in shards] for _ in range(rounds + 1)][1:]
    medians = [statistics.median(column) for column in zip(*turns, strict=True)]
    return tuple(
        Pace(count, tiles / seconds, *limit(parts, count, processors(), STAND_IN_SECONDS))
        for count, seconds in zip(counts, medians, strict=True)
    )


def limit(parts: dict[str, float], threads: int, cores: int, teacher: float) -> tuple[float, str]:
    """Tiles a second that the slower side could make: the teacher's thread, or those that cut and encode.

    Args:
        parts: seconds a tile, alone in one thread.
        threads: that cut and encode.
        cores: processors.
        teacher: seconds a tile.
    """
    helping = {name: parts[name] for name in ("decode", "degrade", "encode")}
    own = {name: parts[name] for name in ("tensors", "write", "commit")} | {"teacher": teacher}
    apart, alone = sum(helping.values()) / min(threads, cores), sum(own.values())
    slower = helping if apart > alone else own
    return 1 / max(apart, alone), ", ".join(sorted(slower, key=lambda name: -slower[name]))


def _peak(samples: int) -> int | None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_own_peak, samples).result()


def _own_peak(samples: int) -> int | None:
    """Peak bytes of this process after making so many samples."""
    settings = MEMORY_SETTINGS
    with tempfile.TemporaryDirectory() as folder:
        work = prepare("sample", Path(folder), StandIn(settings.degradation.scale, 0.0), settings)
        count = math.ceil(samples / settings.samples_per_shard)
        records = [process_shard(work, index) for index in range(count)]  # kept, as a run keeps them
        made = sum(len(record.ok) for record in records if record)
    assert made >= samples, f"{made} samples were made, expected {samples}"
    return peak_memory("cpu")
