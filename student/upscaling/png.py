"""Write PNG files row by row (W3C PNG, third edition): 8 and 16 bits a sample, colour profile, EXIF.

An upscaled photo of 24 megapixels has 384. Pillow would hold all of it, at 4 bytes a pixel, and cannot hold 16-bit
colour at all; a writer of rows holds a few of them.
"""

import struct
import zlib
from collections.abc import Iterable
from typing import IO, NamedTuple

import numpy as np

_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # channels -> grey, grey with alpha, RGB, RGBA
_AVERAGE = 3  # on photos this filter alone is as good as choosing among all five for each row, and cheaper (LOG.md)
_LEVEL = 3  # zlib; level 6 takes three times as long for files 9% smaller (LOG.md)
_IDAT_BYTES = 1 << 20


class Metadata(NamedTuple):
    """What a picture file holds beside its pixels."""

    icc: bytes | None = None
    """Colour profile."""
    exif: bytes | None = None
    """EXIF data, from its TIFF header on."""
    dpi: tuple[float, float] | None = None
    """Horizontal and vertical pixels per inch."""


def write_png(file: IO[bytes], width: int, height: int, rows: Iterable[np.ndarray], metadata: Metadata) -> None:
    """Write a PNG; `rows` are consecutive pieces uint8 or uint16 (rows, W, C) with 1 to 4 channels."""
    filtered = _Filter()
    deflate = zlib.compressobj(_LEVEL)
    pending, written = bytearray(), 0
    for piece in rows:
        if not written:
            file.write(b"\x89PNG\r\n\x1a\n")
            header = width, height, 8 * piece.itemsize, _COLOUR_TYPES[piece.shape[2]], 0, 0, 0
            _chunk(file, b"IHDR", struct.pack(">IIBBBBB", *header))
            _write_metadata(file, metadata)
        pending += deflate.compress(filtered(piece))
        written += len(piece)
        if len(pending) >= _IDAT_BYTES:
            _chunk(file, b"IDAT", bytes(pending))
            pending.clear()
    assert written == height, f"{written} rows of {height}"
    _chunk(file, b"IDAT", bytes(pending) + deflate.flush())
    _chunk(file, b"IEND", b"")


class _Filter:
    """PNG's Average filter: each byte less the mean of its left and upper neighbours, a pixel being the distance."""

    def __init__(self) -> None:
        self._above: np.ndarray | None = None

    def __call__(self, piece: np.ndarray) -> bytes:
        """Filtered rows with their filter bytes."""
        count, _, channels = piece.shape
        if piece.dtype == np.uint16:
            piece = piece.astype(">u2")
        raw = np.ascontiguousarray(piece).view(np.uint8).reshape(count, -1)
        distance = channels * piece.itemsize
        above = np.zeros_like(raw[:1]) if self._above is None else self._above
        self._above = raw[-1:].copy()
        mean = np.concatenate([above, raw[:-1]]).astype(np.uint16)
        mean[:, distance:] += raw[:, :-distance]
        out = np.empty((count, 1 + raw.shape[1]), np.uint8)
        out[:, 0] = _AVERAGE
        np.subtract(raw, (mean >> 1).astype(np.uint8), out=out[:, 1:])
        return out.tobytes()


def _write_metadata(file: IO[bytes], metadata: Metadata) -> None:
    if metadata.icc:
        _chunk(file, b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc))
    if metadata.dpi:
        per_metre = [round(value / 0.0254) for value in metadata.dpi]
        _chunk(file, b"pHYs", struct.pack(">IIB", *per_metre, 1))
    if metadata.exif:
        _chunk(file, b"eXIf", metadata.exif)


def _chunk(file: IO[bytes], kind: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))
