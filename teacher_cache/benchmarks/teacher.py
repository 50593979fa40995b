"""Where stage one's time goes: cutting and degrading a tile, the teacher's start and its steps, encoding."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pipeline.corpus import scan
from pipeline.degradation import Degradation
from pipeline.images import Rgb
from pipeline.schema import SampleError
from pipeline.system.device import cpu_threads
from pipeline.system.errors import DtkdError
from pipeline.system.results import plain
from pipeline.teacher import Teacher
from teacher_cache.building.build import build_cache, prepare
from teacher_cache.building.crops import TileImages
from teacher_cache.building.plan import PlannedSample
from teacher_cache.building.samples import Request, SampleMaker, restore
from teacher_cache.building.settings import BuildSettings
from teacher_cache.teachers import load

PHOTOS = 8
"""Of a temporary cache."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Part:
    """One part of the work on a training tile."""

    name: str
    seconds: float
    """Of one tile: median over the rounds."""
    share: float
    """Of the sum of all parts."""


@dataclass(frozen=True)
class TeacherBench:
    """All parts, and how they were measured."""

    teacher: str
    steps: int
    rounds: int
    device: str
    threads: int
    rows: tuple[Part, ...]

    failure = None
    """See `pipeline.system.results.Result`."""

    def lines(self) -> list[str]:
        """For people."""
        return bench_lines(self.rows)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"bench": "teacher", **plain(self)}


@contextmanager
def temporary_cache(corpus: str) -> Iterator[Path]:
    """A small cache of a corpus within the block, in which the photos stand in for a teacher's pictures.

    For measuring those who read it: the work of reading is that of any cache of these photos.

    Raises:
        DtkdError: nothing usable in the corpus.
    """
    sources = scan(corpus).sources
    photos = sources[0].path.parent if corpus == "sample" else Path(corpus)
    settings = BuildSettings(degradation=Degradation("bicubic"), limit=PHOTOS, hold_out=0)
    with tempfile.TemporaryDirectory() as folder:
        build_cache(corpus, folder, load(f"import:{photos}"), settings)
        yield Path(folder)


def bench_teacher(
    corpus: str,
    teacher: Teacher,
    settings: BuildSettings,
    rounds: int = 5,
    threads: int = 2,
    device: str = "cpu",
) -> TeacherBench:
    """Take the first tiles of a corpus through stage one, part by part, `rounds` times, on `threads` CPU threads.

    `device` is where the teacher is, for the record.

    A build cuts the next tiles while the teacher works, so it takes less than the sum where there is a second core.

    Raises:
        DtkdError: a teacher without a network, `rounds` below 1, an unusable corpus, or a tile that fails.
    """
    if not teacher.steps:
        raise DtkdError(f"{teacher.name} computes nothing: there is nothing to measure")
    if rounds < 1:
        raise DtkdError(f"rounds must be at least 1, got {rounds}")
    with ExitStack() as stack:
        work = prepare(corpus, Path(stack.enter_context(tempfile.TemporaryDirectory())), teacher, settings)
        stack.enter_context(cpu_threads(threads))
        stack.callback(setattr, teacher, "steps", teacher.steps)
        shard = next(shard for shard in work.plan.shards if shard.split == "train")
        turns = [
            _turn(work.maker, teacher, shard.samples[: settings.micro_batch], teacher.steps) for _ in range(rounds + 1)
        ]
    medians = [statistics.median(seconds) for seconds in zip(*turns[1:], strict=True)]  # the first one warms up
    cut, one, many, encode = medians
    start, step = start_and_step(one, many, teacher.steps)
    seconds = {
        "load, cut, degrade": cut,
        "teacher, before its steps": start,
        f"teacher, {teacher.steps} steps of {step:.4f} s": teacher.steps * step,
        "encode": encode,
    }
    parts = tuple(Part(name, value, value / sum(seconds.values())) for name, value in seconds.items())
    return TeacherBench(teacher.name, teacher.steps, rounds, device, threads, parts)


def start_and_step(one: float, many: float, steps: int) -> tuple[float, float]:
    """Seconds that a teacher takes before its steps, and of each step, from calls with 1 and with 1 + `steps` steps.

    On a machine that is busy with other things the long call may look the shorter one; no part takes less than nothing.
    """
    step = min(max((many - one) / steps, 0.0), one)
    return one - step, step


def bench_lines(parts: Sequence[Part]) -> list[str]:
    """The parts as a table for people."""
    lines = [f"{'part of a tile':<40}  seconds  share"]
    lines += [f"{part.name:<40}  {part.seconds:>7.4f}  {part.share:>5.0%}" for part in parts]
    return [*lines, f"{'sum':<40}  {sum(part.seconds for part in parts):>7.4f}"]


def _turn(
    maker: SampleMaker, teacher: Teacher, tiles: Sequence[PlannedSample], steps: int
) -> tuple[float, float, float, float]:
    """Seconds a tile of: cutting, the teacher with one step, with one more than `steps`, encoding."""
    cuts, cut = timed(lambda: [maker.cut(tile) for tile in tiles])
    failed = next((item for item in cuts if isinstance(item, SampleError)), None)
    if failed:
        raise DtkdError(f"a tile cannot be cut: {failed.message}")
    requests = [
        Request(images.around, seed, maker.photos.place(sample.tile))
        for seed, (sample, images) in enumerate(zip(tiles, cuts, strict=True))
        if isinstance(images, TileImages)
    ]

    def teach(count: int) -> list[Rgb | SampleError]:
        teacher.steps = count
        restored = restore(teacher, requests, len(requests), maker.context)
        if failed := next((item for item in restored if isinstance(item, SampleError)), None):
            raise DtkdError(f"the teacher fails with {count} steps: {failed.message}")
        return restored

    _, one = timed(lambda: teach(1))
    restored, many = timed(lambda: teach(steps + 1))
    _, encode = timed(lambda: [maker.encode(*item, 0.0) for item in zip(tiles, cuts, zip(restored), strict=True)])
    return cut / len(tiles), one / len(tiles), many / len(tiles), encode / len(tiles)


def timed(work: Callable[[], _T]) -> tuple[_T, float]:
    """What some work returns, and its wall-clock seconds."""
    start = time.perf_counter()
    return work(), time.perf_counter() - start
