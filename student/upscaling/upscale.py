"""Upscale files, folders and patterns; a picture that fails never stops the others."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import images
from pipeline.system.device import ResolvedPrecision, out_of_memory
from pipeline.system.errors import DtkdError, UsageError
from pipeline.system.files import ensure_dir
from pipeline.system.outputs import check_file
from pipeline.system.progress import OnProgress, ProgressEvent, clock_text
from pipeline.system.words import plural
from student.networks import Network
from student.upscaling import writing
from student.upscaling.memory import Batching, fit_into_memory, free_memory
from student.upscaling.names import Route, is_file_to_file, plan_names
from student.upscaling.reading import read_picture
from student.upscaling.reduction import Shape, reduce_rows
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
    scale: int | None = None
    """Result pixels to a pixel of the picture; below the network's scale its result is reduced. None is that scale."""


def tile_side(text: str) -> int | None:
    """`UpscaleSettings.tile` from what `--tile` says: auto, or LR pixels.

    Raises:
        UsageError: it is neither.
    """
    if text != "auto" and not text.isdecimal():
        raise UsageError(f"--tile must be auto or a multiple of 8, got {text}")
    return None if text == "auto" else int(text)


@dataclass(frozen=True)
class PlannedPicture:
    """A picture that will be upscaled."""

    source: Path
    target: Path
    width: int
    height: int
    """Size of the result in pixels."""
    batching: Batching

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
    precision: ResolvedPrecision
    """What the network computed in."""

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        written = [{**vars(w), "source": str(w.source), "target": str(w.target)} for w in self.written]
        reasons = {name: {str(r.source): r.reason for r in getattr(self, name)} for name in ("existing", "failed")}
        return {"written": written, **reasons, "precision": self.precision}

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
        return [*lines, "{} written, {} left alone, {} failed; {}".format(*counts, self.precision)]


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
        DtkdError: an input names no picture, or the output folder cannot be written to.
        UsageError: impossible tiles, a larger scale than the network's, or a name of the output that does not fit.
    """
    settings = settings or UpscaleSettings()
    if settings.scale is not None and not 1 <= settings.scale <= network.scale:
        raise UsageError(f"scale must be 1 to {network.scale}, that of {network.name}, got {settings.scale}")
    routes = plan_names(inputs, output, settings.suffix)
    ensure_dir(output.parent if is_file_to_file(inputs, output) else output)
    pictures, existing, failed = _plan(routes, network, settings)
    if len(routes) == 1:
        existing, failed = [], failed + existing
    written: list[Written] = []
    progress = _Progress(pictures, on_progress)
    for picture in pictures:
        began = time.monotonic()
        try:
            _upscale_one(picture, network, progress)
        except (DtkdError, OSError, MemoryError, RuntimeError) as error:  # torch's errors are RuntimeErrors
            failed.append(Refused(picture.source, _reason(error, picture.target)))
        else:
            seconds = round(time.monotonic() - began, 3)
            written.append(Written(picture.source, picture.target, picture.width, picture.height, seconds))
        progress.finish(picture)
    return UpscaleResult(tuple(written), tuple(existing), tuple(failed), network.precision)


def _plan(
    routes: Sequence[Route], network: Network, settings: UpscaleSettings
) -> tuple[list[PlannedPicture], list[Refused], list[Refused]]:
    """Pictures to upscale, those whose result exists, and those that cannot be used, by names and headers alone."""
    pictures, existing, failed = [], [], []
    sources = {source.resolve() for source, _ in routes}
    taken: dict[Path, Path] = {}
    for source, target in routes:
        try:
            if target.resolve() in sources:
                raise DtkdError(f"{target} is a picture to upscale itself: choose another output folder")
            picture = _planned(source, target, network, settings)  # first: what is no picture takes nobody's name
            if (other := taken.setdefault(target.resolve(), source)) != source:
                raise DtkdError(f"{target} is the result of {other} already: give the two different names")
            if target.is_file() and not settings.overwrite:
                existing.append(Refused(source, f"{target} exists: pass --overwrite to replace it"))
            else:
                check_file(target, "a picture", settings.overwrite)
                pictures.append(picture)
        except UsageError:
            raise
        except DtkdError as error:
            failed.append(Refused(source, _reason(error, target)))
    return pictures, existing, failed


def _planned(source: Path, target: Path, network: Network, settings: UpscaleSettings) -> PlannedPicture:
    size, scale = images.probe(source), settings.scale or network.scale
    width, height = size.width * scale, size.height * scale
    if width * height > settings.max_megapixels * 1e6:
        raise images.ImageError(
            source,
            f"its result would have {width}x{height} = {width * height / 1e6:.0f} megapixels, more than "
            f"{settings.max_megapixels}: cut it into parts, or raise --max-megapixels",
        )
    batching = fit_into_memory(network, *size, settings.tile, settings.overlap)
    return PlannedPicture(source, target, width, height, batching)


def _upscale_one(picture: PlannedPicture, network: Network, progress: "_Progress") -> None:
    pixels, metadata = read_picture(picture.source)
    form = Form(picture.width, picture.height, pixels.shape[2], pixels.dtype)
    writing.check(picture.target, form, metadata)
    needed, free = writing.memory_needed(picture.target, form), free_memory()
    if needed > 0.8 * free:
        raise DtkdError(
            f"{picture.target.suffix} needs {needed / 1e9:.1f} GB of memory for {picture.width}x{picture.height} "
            f"pixels, and {free / 1e9:.1f} GB are free: write .png or .tif, which do not hold the whole picture"
        )
    ensure_dir(picture.target.parent)
    writing.write_picture(picture.target, form, _rows(pixels, picture, network, progress), metadata)


def _rows(pixels: np.ndarray, picture: PlannedPicture, network: Network, progress: "_Progress") -> Iterator[np.ndarray]:
    """Rows of the result as they come, reduced where a smaller one is wanted than the network gives."""
    tiling, batch = picture.batching
    progress.show(picture)

    def restore(tiles: np.ndarray) -> np.ndarray:
        return restore_channels(tiles, network)

    def on_tiles(count: int) -> None:
        progress.add(count, picture)

    rows = restore_in_tiles(pixels, tiling, network.scale, restore, batch=batch, on_tiles=on_tiles)
    restored = Shape(*(side * network.scale for side in pixels.shape[:2]))
    wanted = Shape(picture.height, picture.width)
    return rows if restored == wanted else reduce_rows(rows, restored, wanted)


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


def _reason(error: Exception, target: Path) -> str:
    if isinstance(error, images.ImageError):
        return error.reason
    if out_of_memory(error):
        return "out of memory: close other programs, or pass a smaller --tile"
    if isinstance(error, RuntimeError):
        return f"the network failed: {next(iter(str(error).splitlines()), type(error).__name__)}"
    if isinstance(error, OSError):
        return f"cannot write {target} ({error.strerror or error})"
    return str(error)


class _Progress:
    """Counts tiles over all pictures; those of a picture that failed count as done."""

    def __init__(self, pictures: Sequence[PlannedPicture], on_progress: OnProgress | None) -> None:
        self._total, self._done, self._in_picture = sum(picture.batching.tiling.count for picture in pictures), 0, 0
        self._on_progress = on_progress

    def show(self, picture: PlannedPicture) -> None:
        if self._on_progress:
            self._on_progress(ProgressEvent(self._done + self._in_picture, self._total, "tiles", picture.note))

    def add(self, tiles: int, picture: PlannedPicture) -> None:
        self._in_picture += tiles
        self.show(picture)

    def finish(self, picture: PlannedPicture) -> None:
        self._done, self._in_picture = self._done + picture.batching.tiling.count, 0
