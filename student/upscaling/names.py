"""Which pictures an input means, and where each one's result goes."""

import glob
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline import images
from pipeline.system.errors import DtkdError, UsageError
from pipeline.system.outputs import check_suffix
from student.upscaling import writing

_SEARCHED = images.SUFFIXES | {".gif"}  # no GIF is upscaled, but whoever has one shall read why


class Route(NamedTuple):
    """A picture and where its result goes."""

    source: Path
    target: Path


def plan_names(inputs: Sequence[str], output: Path, suffix: str | None) -> list[Route]:
    """Give every picture of `inputs` its result, in the order of the inputs, folders sorted.

    Args:
        inputs: files, folders (with everything below them) and patterns (`photos/**/*.png`).
        output: a file, where one file goes in and this has a suffix; else a folder, which keeps names and sub-folders.
        suffix: of results in a folder; None keeps the picture's where it can be written, else takes .png.

    Raises:
        DtkdError: an input names no picture.
        UsageError: `suffix` is none that can be written, or not that of the output file; the output file has none that
            can be written, or has one and there are several pictures.
    """
    if suffix and suffix not in writing.WRITABLE:
        raise UsageError(f"cannot write pictures as {suffix}: use one of {', '.join(writing.WRITABLE)}")
    if is_file_to_file(inputs, output):
        if suffix and output.suffix.lower() != suffix:
            raise UsageError(f"{output} is no {suffix} file: leave out --format, or name a file of that format")
        check_suffix(output, writing.WRITABLE, "a picture that can be written")
        return [Route(Path(inputs[0]), output)]
    if output.suffix.lower() in _SEARCHED and not output.is_dir():
        raise UsageError(f"{output} is a picture's name, and there may be several results: name a folder for them")
    found = (route for name in inputs for route in _expand(name, output))
    routes: dict[Path, Route] = {}
    for source, target in found:
        own = source.suffix.lower()
        ending = suffix or (source.suffix if own in writing.WRITABLE else ".png")
        routes.setdefault(source.resolve(), Route(source, target.with_name(target.stem + ending)))
    return list(routes.values())


def is_file_to_file(inputs: Sequence[str], output: Path) -> bool:
    """Whether `output` is the name of the one result, and no folder."""
    return (
        len(inputs) == 1
        and bool(output.suffix)
        and not output.is_dir()
        and not Path(inputs[0]).is_dir()
        and (Path(inputs[0]).exists() or not glob.has_magic(inputs[0]))
    )


def _expand(name: str, output: Path) -> Iterator[Route]:
    """Pictures of one input, and their places below `output`, with their own suffix."""
    path = Path(name)
    if path.is_dir():
        base, files = path, _pictures(path.rglob("*"))
    elif path.exists() or not glob.has_magic(name):
        base, files = path.parent, [path]  # what does not exist is reported like other unreadable files
    else:
        base, files = _before_magic(path), _pictures(map(Path, glob.glob(name, recursive=True)))
    folder = output.resolve()
    if base.resolve() in folder.parents:  # results of an earlier run lie below the input
        files = [file for file in files if folder not in file.resolve().parents]
    if not files:
        raise DtkdError(f"{name}: no picture there (looked for {', '.join(sorted(_SEARCHED))})")
    yield from (Route(file, output / file.relative_to(base)) for file in files)


def _pictures(paths: Iterable[Path]) -> list[Path]:
    return sorted(path for path in paths if path.suffix.lower() in _SEARCHED and path.is_file())


def _before_magic(pattern: Path) -> Path:
    """The folder that a pattern starts from."""
    parts = itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts[:-1])
    return Path(*parts)
