"""Upscale files, folders and patterns; a picture that fails never stops the others."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import images
from pipeline.system.device import out_of_memory
from pipeline.system.errors import DtkdError
from pipeline.system.files import ensure_dir
from pipeline.system.progress import OnProgress, ProgressEvent, clock_text
from pipeline.system.words import plural
from student.networks import Network
from student.upscaling import writing
from student.upscaling.memory import Cut, free_memory, plan_tiles
from student.upscaling.names import Pair, is_file_to_file, plan_names
from student.upscaling.reading import read_picture
from student.upscaling.tiles import restore_in_tiles
from student.upscaling.writing import Form


@dataclass(frozen=True)
class UpscaleSettings:
    """How to upscale."""

    tile: int | None = None
    """Largest tile in LR pixels, a multiple of 8; None chooses it by the free memory."""
    overlap: int = 32
    """LR pixels that neighbouring tiles share, a multiple of 8: a quarter is thrown away on each side."""
    overwrite: bool = False
    """Replace results that exist."""
    suffix: str | None = None
    """Format of results in a folder (`.png`); None keeps the picture's where it can be written, else PNG."""
    max_megapixels: int = 1100
    """Largest result; a 64-megapixel photo has 1024 at scale 4. More takes hours, and few programs open it."""


@dataclass(frozen=True)
class Job:
    """A picture that will be upscaled."""

    source: Path
    target: Path
    width: int
    height: int
    """Size of the result in pixels."""
    cut: Cut

    @property
    def note(self) -> str:
        """The picture and the size of its result, for people."""
        return f"{self.source.name} to {self.width}x{self.height} ({self.width * self.height / 1e6:.1f} megapixels)"


@dataclass(frozen=True)
class Written:
    """A result that was written."""

    source: Path
    target: Path
    width: int
    height: int
    """Size of the result in pixels."""
    seconds: float


@dataclass(frozen=True)
class Refused:
    """A picture without a result: `reason` is one line."""

    source: Path
    reason: str


@dataclass(frozen=True)
class UpscaleResult:
    """What became of every picture."""

    written: tuple[Written, ...]
    existing: tuple[Refused, ...]
    """Of several pictures, those left alone because their result is there already."""
    failed: tuple[Refused, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        written = [{**vars(w), "source": str(w.source), "target": str(w.target)} for w in self.written]
        reasons = {name: {str(r.source): r.reason for r in getattr(self, name)} for name in ("existing", "failed")}
        return {"written": written, **reasons}

    @property
    def failure(self) -> str | None:
        """See `pipeline.system.results.Result`."""
        return f"{plural(len(self.failed), 'picture')} could not be upscaled" if self.failed else None

    def lines(self) -> list[str]:
        """For people: every picture, then the counts."""
        lines = [f"{w.source} -> {w.target}: {w.width}x{w.height}, {clock_text(w.seconds)}" for w in self.written]
        lines += [f"left alone {item.source}: {item.reason}" for item in self.existing]
        lines += [f"failed {item.source}: {item.reason}" for item in self.failed]
        counts = (len(self.written), len(self.existing), len(self.failed))
        return [*lines, "{} written, {} left alone, {} failed".format(*counts)]


def upscale(
    inputs: Sequence[str],
    output: Path,
    network: Network,
    settings: UpscaleSettings | None = None,
    on_progress: OnProgress | None = None,
) -> UpscaleResult:
    """Upscale pictures of any mode: alpha, 16 bits, EXIF and colour profile are kept.

    Args:
        inputs: files, folders (with everything below them) and patterns (`photos/**/*.png`).
        output: a file, where one file goes in and this has a suffix; else a folder, made where missing.
        network: what upscales.
        settings: how.
        on_progress: called when a picture begins and after every batch of tiles.

    Raises:
        DtkdError: an input names no picture, the output folder cannot be written to, or impossible tiles.
    """
    settings = settings or UpscaleSettings()
    pairs = plan_names(inputs, output, settings.suffix)
    ensure_dir(output.parent if is_file_to_file(inputs, output) else output)
    jobs, existing, failed = _plan(pairs, network, settings)
    if len(pairs) == 1:
        existing, failed = [], failed + existing
    written: list[Written] = []
    progress = _Progress(jobs, on_progress)
    for job in jobs:
        began = time.monotonic()
        try:
            _upscale_one(job, network, progress)
        except (DtkdError, OSError, MemoryError, RuntimeError) as error:  # torch's errors are RuntimeErrors
            failed.append(Refused(job.source, _reason(error, job)))
        else:
            seconds = round(time.monotonic() - began, 3)
            written.append(Written(job.source, job.target, job.width, job.height, seconds))
        progress.finish(job)
    return UpscaleResult(tuple(written), tuple(existing), tuple(failed))


def _plan(
    pairs: Sequence[Pair], network: Network, settings: UpscaleSettings
) -> tuple[list[Job], list[Refused], list[Refused]]:
    """Jobs, pictures whose result exists, and pictures that cannot be used, by names and headers alone."""
    jobs, existing, failed = [], [], []
    sources = {source.resolve() for source, _ in pairs}
    taken: dict[Path, Path] = {}
    for source, target in pairs:
        other = taken.setdefault(target.resolve(), source)
        if target.resolve() in sources:
            failed.append(Refused(source, f"{target} is a picture to upscale itself: choose another output folder"))
        elif other != source:
            failed.append(Refused(source, f"{target} is the result of {other} already: give the two different names"))
        elif target.exists() and not settings.overwrite:
            existing.append(Refused(source, f"{target} exists: pass --overwrite to replace it"))
        else:
            try:
                jobs.append(_job(source, target, network, settings))
            except images.ImageError as error:
                failed.append(Refused(source, error.reason))
    return jobs, existing, failed


def _job(source: Path, target: Path, network: Network, settings: UpscaleSettings) -> Job:
    size = images.probe(source)
    width, height = size.width * network.scale, size.height * network.scale
    if width * height > settings.max_megapixels * 1e6:
        raise images.ImageError(
            source,
            f"its result would have {width}x{height} = {width * height / 1e6:.0f} megapixels, more than "
            f"{settings.max_megapixels}: cut it into parts, or raise --max-megapixels",
        )
    return Job(source, target, width, height, plan_tiles(network, *size, settings.tile, settings.overlap))


def _upscale_one(job: Job, network: Network, progress: "_Progress") -> None:
    pixels, metadata = read_picture(job.source)
    form = Form(job.width, job.height, pixels.shape[2], pixels.dtype)
    writing.check(job.target, form, metadata)
    needed, free = writing.memory_needed(job.target, form), free_memory()
    if needed > 0.8 * free:
        raise DtkdError(
            f"{job.target.suffix} needs {needed / 1e9:.1f} GB of memory for {job.width}x{job.height} pixels, and "
            f"{free / 1e9:.1f} GB are free: write .png or .tif, which do not hold the whole picture"
        )
    ensure_dir(job.target.parent)
    writing.write_picture(job.target, form, _rows(pixels, job, network, progress), metadata)


def _rows(pixels: np.ndarray, job: Job, network: Network, progress: "_Progress") -> Iterator[np.ndarray]:
    grid, batch = job.cut
    progress.show(job)

    def restore(tiles: np.ndarray) -> np.ndarray:
        return restore_channels(tiles, network)

    return restore_in_tiles(pixels, grid, network.scale, restore, batch=batch, on_tiles=lambda n: progress.add(n, job))


def restore_channels(tiles: np.ndarray, network: Network) -> np.ndarray:
    """Upscale tiles float32 (n, C, h, w) of 1 to 4 channels: colour or grey, and alpha by itself, as a grey picture."""
    channels = tiles.shape[1]
    colours = channels - 1 if channels in (2, 4) else channels
    restored = _as_rgb(tiles[:, :colours], network)
    if colours == channels:
        return restored
    alpha = tiles[:, colours:]
    flat = alpha.min() == alpha.max()  # mostly opaque everywhere: nothing to restore, and no rounding either
    shape = (*restored.shape[:1], 1, *restored.shape[2:])
    restored_alpha = np.full(shape, alpha.flat[0], np.float32) if flat else _as_rgb(alpha, network)
    return np.concatenate([restored, restored_alpha], axis=1)


def _as_rgb(tiles: np.ndarray, network: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    if tiles.shape[1] == 3:
        return network(tiles)
    return network(np.repeat(tiles, 3, axis=1)).mean(axis=1, keepdims=True)


def _reason(error: Exception, job: Job) -> str:
    if isinstance(error, images.ImageError):
        return error.reason
    if out_of_memory(error):
        return "out of memory: close other programs, or pass a smaller --tile"
    if isinstance(error, RuntimeError):
        return f"the network failed: {next(iter(str(error).splitlines()), type(error).__name__)}"
    if isinstance(error, OSError):
        return f"cannot write {job.target} ({error.strerror or error})"
    return str(error)


class _Progress:
    """Counts tiles over all pictures; those of a picture that failed count as done."""

    def __init__(self, jobs: Sequence[Job], on_progress: OnProgress | None) -> None:
        self._total, self._done, self._in_job = sum(job.cut.grid.count for job in jobs), 0, 0
        self._on_progress = on_progress

    def show(self, job: Job) -> None:
        if self._on_progress:
            self._on_progress(ProgressEvent(self._done + self._in_job, self._total, "tiles", job.note))

    def add(self, tiles: int, job: Job) -> None:
        self._in_job += tiles
        self.show(job)

    def finish(self, job: Job) -> None:
        self._done, self._in_job = self._done + job.cut.grid.count, 0
