"""Write TIFF files strip by strip (TIFF 6.0, Adobe Technote 3 for deflate): 8 and 16 bits, colour profile, EXIF."""

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import IO, Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, TiffImagePlugin

from student.upscaling.png import Metadata

MAX_BYTES = 2**32 - 2**24
"""Classic TIFF points with 32 bits: what a picture may have before compression, so that it fits in any case."""
_STRIP_ROWS = 64
_LEVEL = 3  # zlib


def write_tiff(file: IO[bytes], width: int, height: int, rows: Iterable[np.ndarray], metadata: Metadata) -> None:
    """Write deflated strips with horizontal differencing.

    Args:
        file: open for writing, seekable, at its beginning.
        width: W.
        height: H.
        rows: consecutive pieces uint8 or uint16 (rows, W, C) with 1 to 4 channels.
        metadata: what else to write.
    """
    file.write(b"II*\0\0\0\0\0")
    offsets, counts, first = [], [], None
    for strip in _strips(rows):
        first = strip if first is None else first
        offsets.append(file.tell())
        counts.append(file.write(_encoded(strip)))
    assert first is not None, "a picture without rows"
    entries = _layout(width, height, first, offsets, counts) | _metadata(file, metadata)
    at = _align(file)
    file.write(_directory(entries, at))
    file.seek(4)
    file.write(struct.pack("<I", at))


def _align(file: IO[bytes]) -> int:
    """Go to the next even offset, where directories may begin."""
    file.write(b"\0" * (file.tell() % 2))
    return file.tell()


def _strips(rows: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Rows in pieces of any size as pieces of `_STRIP_ROWS`, the last one of what is left."""
    waiting: list[np.ndarray] = []
    for piece in rows:
        waiting.append(piece)
        while sum(map(len, waiting)) >= _STRIP_ROWS:
            joined = np.concatenate(waiting)
            yield joined[:_STRIP_ROWS]
            waiting = [joined[_STRIP_ROWS:]]
    rest = np.concatenate(waiting)
    if len(rest):
        yield rest


def _encoded(strip: np.ndarray) -> bytes:
    difference = strip.astype(strip.dtype.newbyteorder("<"))
    difference[:, 1:] -= strip[:, :-1]
    return zlib.compress(difference.tobytes(), _LEVEL)


class _Entry(NamedTuple):
    """Value of a tag: TIFF's number for the type, how many, and their bytes."""

    kind: int
    length: int
    data: bytes


def _shorts(*values: int) -> _Entry:
    return _Entry(3, len(values), struct.pack(f"<{len(values)}H", *values))


def _longs(*values: int) -> _Entry:
    return _Entry(4, len(values), struct.pack(f"<{len(values)}I", *values))


def _layout(width: int, height: int, strip: np.ndarray, offsets: list[int], counts: list[int]) -> dict[int, _Entry]:
    channels = strip.shape[2]
    entries = {
        TiffImagePlugin.IMAGEWIDTH: _longs(width),
        TiffImagePlugin.IMAGELENGTH: _longs(height),
        TiffImagePlugin.BITSPERSAMPLE: _shorts(*[8 * strip.itemsize] * channels),
        TiffImagePlugin.COMPRESSION: _shorts(8),  # deflate
        TiffImagePlugin.PHOTOMETRIC_INTERPRETATION: _shorts(2 if channels >= 3 else 1),  # RGB, or black is zero
        TiffImagePlugin.STRIPOFFSETS: _longs(*offsets),
        TiffImagePlugin.SAMPLESPERPIXEL: _shorts(channels),
        TiffImagePlugin.ROWSPERSTRIP: _longs(_STRIP_ROWS),
        TiffImagePlugin.STRIPBYTECOUNTS: _longs(*counts),
        TiffImagePlugin.PLANAR_CONFIGURATION: _shorts(1),  # samples of a pixel lie together
        TiffImagePlugin.PREDICTOR: _shorts(2),  # horizontal differencing
    }
    if channels in (2, 4):
        entries[TiffImagePlugin.EXTRASAMPLES] = _shorts(2)  # alpha, colours not multiplied with it
    return entries


def _metadata(file: IO[bytes], metadata: Metadata) -> dict[int, _Entry]:
    """Entries for the metadata; EXIF's inner directories are written to the file here."""
    entries: dict[int, _Entry] = {}
    if metadata.dpi:
        for tag, value in zip((TiffImagePlugin.X_RESOLUTION, TiffImagePlugin.Y_RESOLUTION), metadata.dpi, strict=True):
            entries[tag] = _Entry(5, 1, struct.pack("<II", round(value * 1000), 1000))
        entries[TiffImagePlugin.RESOLUTION_UNIT] = _shorts(2)  # inch
    if metadata.icc:
        entries[TiffImagePlugin.ICCPROFILE] = _Entry(7, len(metadata.icc), metadata.icc)
    if metadata.exif:
        exif = Image.Exif()
        exif.load(b"Exif\0\0" + metadata.exif)
        for tag, value in exif.items():
            if isinstance(value, str):
                text = value.encode("utf-8") + b"\0"
                entries[tag] = _Entry(2, len(text), text)
        for pointer in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
            if inner := exif.get_ifd(pointer):
                entries[int(pointer)] = _longs(_write_inner(file, inner))
    return entries


def _write_inner(file: IO[bytes], values: dict[int, Any]) -> int:
    directory = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
    for tag, value in values.items():
        directory[tag] = value
    at = _align(file)
    file.write(directory.tobytes(at))
    return at


def _directory(entries: dict[int, _Entry], at: int) -> bytes:
    """A directory for offset `at`, with the values that do not fit into it behind it."""
    head, values = struct.pack("<H", len(entries)), b""
    behind = at + 2 + 12 * len(entries) + 4
    for tag, entry in sorted(entries.items()):
        value = entry.data.ljust(4, b"\0")
        if len(value) > 4:
            value, values = struct.pack("<I", behind + len(values)), values + value + b"\0" * (len(value) % 2)
        head += struct.pack("<HHI", tag, entry.kind, entry.length) + value
    return head + b"\0\0\0\0" + values
