"""Restore a picture of any size in overlapping tiles, handing out finished rows as they come.

H W height and width in LR pixels, C channels, S scale, n tiles of a batch.

Along each axis all tiles have one size and start at multiples of the network's window, so that they see the same
windows as the whole picture would. Two neighbours overlap; the outer quarters of the overlap, where one of them lacks
context, are thrown away, and the middle half is blended. Memory is that of one row of tiles, however large the picture.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.system.errors import UsageError

Restore = Callable[[np.ndarray], np.ndarray]
"""Tiles float32 (n, C, h, w) in [0, 1] to (n, C, S * h, S * w); values outside [0, 1] are clipped later."""
ROWS_AT_ONCE = 64
"""Output rows converted to integers at a time: what keeps the converted copy small."""


@dataclass(frozen=True)
class Axis:
    """How one axis is cut; everything in LR pixels.

    Attributes:
        size: of the picture.
        padded: the next multiple of the network's window; the rest is mirrored, as the network itself does it.
        tile: size of every tile.
        starts: where they begin, ascending; the last one ends at `padded`.
    """

    size: int
    padded: int
    tile: int
    starts: tuple[int, ...]

    def seam(self, index: int) -> tuple[int, int]:
        """Where the blend between tiles `index` and `index + 1` begins and ends."""
        begin, end = self.starts[index + 1], self.starts[index] + self.tile
        quarter = (end - begin) // 4
        return begin + quarter, end - quarter

    def support(self, index: int) -> tuple[int, int]:
        """The part of tile `index` that has any weight."""
        begin = self.seam(index - 1)[0] if index else 0
        end = self.seam(index)[1] if index + 1 < len(self.starts) else self.padded
        return begin, end

    def weights(self, index: int, scale: int) -> np.ndarray:
        """Weight of each output pixel of `support(index)`; over all tiles they sum to 1 everywhere."""
        begin, end = self.support(index)
        position = (np.arange(begin * scale, end * scale, dtype=np.float32) + 0.5) / scale
        entered = self._passed(index - 1, position) if index else np.ones_like(position)
        return entered - self._passed(index, position) if index + 1 < len(self.starts) else entered

    def _passed(self, index: int, position: np.ndarray) -> np.ndarray:
        begin, end = self.seam(index)
        return np.clip((position - begin) / (end - begin), 0, 1)


def cut(size: int, tile: int, overlap: int, multiple: int) -> Axis:
    """Cut an axis into as few tiles of at most `tile` as possible, and make these as small as they then can be.

    Raises:
        UsageError: `tile` or `overlap` is no multiple of `multiple`, or `tile` is less than twice the overlap.
    """
    for name, value in (("tile", tile), ("overlap", overlap)):
        if value % multiple or value <= 0:
            raise UsageError(f"{name} must be a positive multiple of {multiple}, got {value}")
    if tile < 2 * overlap:
        raise UsageError(
            f"tile must be at least twice the overlap of {overlap}, got {tile}: choose {2 * overlap} or more"
        )
    padded = _up(size, multiple)
    if padded <= tile:
        return Axis(size, padded, padded, (0,))
    count = -(-(padded - overlap) // (tile - overlap))
    tile = _up(-(-(padded + (count - 1) * overlap) // count), multiple)
    room = (padded - tile) // multiple
    return Axis(size, padded, tile, tuple(room * i // (count - 1) * multiple for i in range(count)))


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class Tiling:
    """The tiles of a picture."""

    rows: Axis
    columns: Axis

    @property
    def count(self) -> int:
        """Number of tiles."""
        return len(self.rows.starts) * len(self.columns.starts)


def restore_in_tiles(
    pixels: np.ndarray,
    tiling: Tiling,
    scale: int,
    restore: Restore,
    *,
    batch: int = 1,
    on_tiles: Callable[[int], None] | None = None,
) -> Iterator[np.ndarray]:
    """Restore `pixels`, uint8 or uint16 (H, W, C), tile by tile.

    Args:
        pixels: the picture; its integers' full range means [0, 1].
        tiling: how to cut it.
        scale: output pixels per input pixel.
        restore: the network.
        batch: tiles given to `restore` at once.
        on_tiles: called with the number of tiles that were finished, after every batch.

    Yields:
        the next finished rows (rows, S * W, C), same type as `pixels`; all together S * H of them.
    """
    rows, columns = tiling.rows, tiling.columns
    width = columns.padded * scale
    carry = np.zeros((pixels.shape[2], 0, width), dtype=np.float32)  # begun by the row of tiles above
    for r in range(len(rows.starts)):
        begin, end = rows.support(r)
        band = np.zeros((pixels.shape[2], (end - begin) * scale, width), dtype=np.float32)  # (C, rows, S * W)
        band[:, : carry.shape[1]] = carry
        for first in range(0, len(columns.starts), batch):
            indices = range(first, min(first + batch, len(columns.starts)))
            tiles = np.stack([_tile(pixels, tiling, r, c) for c in indices])  # (n, C, h, w)
            for c, tile in zip(indices, restore(tiles), strict=True):
                _add(band, tile, tiling, r, c, scale)
            if on_tiles:
                on_tiles(len(indices))
        done = (rows.support(r + 1)[0] - begin if r + 1 < len(rows.starts) else rows.size - begin) * scale
        carry = band[:, done:].copy()
        yield from _integers(band[:, :done, : columns.size * scale], pixels.dtype)


def _tile(pixels: np.ndarray, tiling: Tiling, row: int, column: int) -> np.ndarray:
    """Tile as float32 (C, h, w) in [0, 1]."""
    y, x = (_mirrored(axis, index) for axis, index in ((tiling.rows, row), (tiling.columns, column)))
    tile = np.take(np.take(pixels, y, axis=0), x, axis=1).transpose(2, 0, 1)
    return tile.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)


def _mirrored(axis: Axis, index: int) -> np.ndarray:
    """Source positions of a tile; beyond the end of the picture it goes back, without repeating the edge itself."""
    position = np.arange(axis.starts[index], axis.starts[index] + axis.tile)
    period = max(2 * axis.size - 2, 1)
    return np.minimum(position % period, period - position % period) if axis.size > 1 else position * 0


def _add(band: np.ndarray, tile: np.ndarray, tiling: Tiling, row: int, column: int, scale: int) -> None:
    """Add the weighted support of a restored tile (C, S * h, S * w) to the band."""
    (top, bottom), (left, right) = tiling.rows.support(row), tiling.columns.support(column)
    y0, x0 = tiling.rows.starts[row], tiling.columns.starts[column]
    part = tile[:, (top - y0) * scale : (bottom - y0) * scale, (left - x0) * scale : (right - x0) * scale]
    weights = tiling.rows.weights(row, scale)[:, None] * tiling.columns.weights(column, scale)[None, :]
    band[:, :, left * scale : right * scale] += part * weights


def _integers(band: np.ndarray, dtype: np.dtype) -> Iterator[np.ndarray]:
    """Rows (C, rows, S * W) in [0, 1] as integers (few rows, S * W, C)."""
    peak = np.float32(np.iinfo(dtype).max)
    for top in range(0, band.shape[1], ROWS_AT_ONCE):
        part = band[:, top : top + ROWS_AT_ONCE].transpose(1, 2, 0)
        yield np.rint(np.clip(part, 0, 1) * peak).astype(dtype)
