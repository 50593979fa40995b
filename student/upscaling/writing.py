"""Write pictures from rows as they come: PNG and TIFF hold a few rows in memory, JPEG and WebP the whole picture.

H W height and width, C channels: 1 grey, 2 grey with alpha, 3 RGB, 4 RGBA.
"""

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import Image

from pipeline.system.errors import DtkdError
from pipeline.system.files import fsync_dir
from student.upscaling import tiff
from student.upscaling.png import Metadata, write_png

WRITABLE = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
"""What can be written, in lower case."""
_JPEG_EXIF = 65_533 - len(b"Exif\0\0")  # bytes of a segment
_MAX_SIDE = {".jpg": 65_500, ".jpeg": 65_500, ".webp": 16_383}


class Form(NamedTuple):
    """What a picture file will hold."""

    width: int
    height: int
    channels: int
    dtype: np.dtype
    """uint8 or uint16."""

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return self.width * self.height * self.channels * self.dtype.itemsize

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is alpha."""
        return self.channels in (2, 4)


def memory_needed(path: Path, form: Form) -> int:
    """Bytes that `write_picture` holds at its peak, as far as they grow with the picture."""
    if path.suffix.lower() not in _MAX_SIDE:
        return 0
    return form.width * form.height * (1 if form.channels == 1 else 4)  # Pillow pads RGB to four bytes


def check(path: Path, form: Form, metadata: Metadata) -> None:
    """Make sure before the work that `path` can hold such a picture.

    Raises:
        DtkdError: unknown suffix, alpha in a JPEG, 16 bits in a format of 8, or picture or EXIF too large for it.
    """
    suffix = path.suffix.lower()
    if suffix not in WRITABLE:
        kind = suffix or "a file without a suffix"
        raise DtkdError(f"{path}: cannot write pictures as {kind}: use {', '.join(WRITABLE)}")
    if form.has_alpha and suffix in (".jpg", ".jpeg"):
        raise DtkdError(f"{path}: JPEG holds no transparency: write .png, .webp or .tif")
    if form.dtype == np.uint16 and suffix in _MAX_SIDE:
        raise DtkdError(f"{path}: {suffix} holds 8 bits a channel, and this picture has 16: write .png or .tif")
    limit = _MAX_SIDE.get(suffix)
    if limit and max(form.width, form.height) > limit:
        size = f"{form.width}x{form.height}"
        raise DtkdError(f"{path}: {suffix} holds at most {limit} pixels a side, got {size}: write .png or .tif")
    if suffix in (".jpg", ".jpeg") and len(metadata.exif or b"") > _JPEG_EXIF:
        size = len(metadata.exif or b"")
        raise DtkdError(
            f"{path}: JPEG holds 64 KB of EXIF, and this picture has {size >> 10}: write .png, .webp or .tif"
        )
    if suffix in (".tif", ".tiff") and form.bytes > tiff.MAX_BYTES:
        raise DtkdError(f"{path}: TIFF holds at most 4 GB, and this picture has {form.bytes / 1e9:.1f}: write .png")


def write_picture(path: Path, form: Form, rows: Iterable[np.ndarray], metadata: Metadata) -> None:
    """Write a picture in the format of the suffix, all of it or nothing.

    JPEG is written with quality 95, 4:4:4; WebP without loss. `check` refuses what a format cannot hold.

    Args:
        path: where to; what was there is replaced when everything is written.
        form: what is written.
        rows: consecutive pieces (rows, W, C) of the form's type, together H rows.
        metadata: kept in every format (WebP holds no dpi).
    """
    suffix = path.suffix.lower()
    with _replacing(path) as file:
        if suffix == ".png":
            write_png(file, form.width, form.height, rows, metadata)
        elif suffix in (".tif", ".tiff"):
            tiff.write_tiff(file, form.width, form.height, rows, metadata)
        else:
            _write_whole(file, suffix, form, rows, metadata)


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the name `path` when the block ends well, and is gone when it does not."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def _write_whole(file: IO[bytes], suffix: str, form: Form, rows: Iterable[np.ndarray], metadata: Metadata) -> None:
    """JPEG or WebP, through Pillow."""
    image, top = Image.new({1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[form.channels], (form.width, form.height)), 0
    for piece in rows:
        image.paste(Image.fromarray(piece.squeeze(2) if form.channels == 1 else piece), (0, top))
        top += len(piece)
    options: dict[str, Any] = {"icc_profile": metadata.icc}
    if metadata.exif:
        options["exif"] = b"Exif\0\0" + metadata.exif
    if suffix == ".webp":
        image.save(file, "WEBP", lossless=True, quality=0, method=0, exact=True, **options)
    else:
        image.save(file, "JPEG", quality=95, subsampling=0, dpi=metadata.dpi or (0, 0), **options)
