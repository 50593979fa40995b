"""Where photos are cut into tiles, and how a tile becomes a pair of LR and GT images.

All tiles of a photo lie on the LR pixel grid of the whole photo, whose sides count down to a multiple of the scale.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pipeline.corpus import Source
from pipeline.degradation import Degradation
from pipeline.degrade import degrade_inside
from pipeline.filters import cut_mirrored
from pipeline.images import ImageError, Rgb, load_rgb
from pipeline.schema import Json, Split, sample_key, sample_seed
from pipeline.system.errors import DtkdError

VAL_SIDE = 512
"""Largest side of the crop of a held-out photo, HR pixels."""
VAL_MULTIPLE = 8
"""Sides of that crop are multiples of this many LR pixels: SwinIR's window, and what teachers divide by."""

MOST_CONTEXT = 8
"""LR pixels of context: ten more are left of `real`'s margin, half the width of its largest filter at this size."""


@dataclass(frozen=True)
class Tile:
    """A rectangle of a photo, in HR pixels that are multiples of the scale."""

    source: str
    """Id of the photo."""
    x: int
    y: int
    width: int
    height: int
    split: Split


class TileImages(NamedTuple):
    """A tile as images, uint8 RGB."""

    key: str
    """24 hex digits: source, rectangle and degradation, not the seed."""
    lr: Rgb
    """(H / scale, W / scale, 3)."""
    gt: Rgb
    """(H, W, 3)."""
    around: Rgb
    """The LR image and `context` pixels of its surroundings on every side: (H / scale + 2 c, W / scale + 2 c, 3)."""


def tiles_of(source: Source, tile: int, scale: int, split: Split) -> list[Tile]:
    """Cut a photo into tiles.

    Training: squares of side `tile` that cover the photo; the last row and column are shifted in, so they overlap their
    neighbours. Validation: one crop of the centre, up to 512x512, its sides multiples of 8 LR pixels where they can be.

    Raises:
        DtkdError: `tile` is no positive multiple of the scale, or the photo is smaller than a tile (an LR pixel in
            validation).
    """
    if tile <= 0 or tile % scale:
        raise DtkdError(f"tile must be a positive multiple of the scale {scale}, got {tile}")
    width, height = source.width // scale * scale, source.height // scale * scale
    smallest = tile if split == "train" else scale
    if min(width, height) < smallest:
        raise DtkdError(f"{source.id} is too small: expected {smallest} a side, got {source.width}x{source.height}")
    if split == "train":
        tops, lefts = _starts(height, tile), _starts(width, tile)
        return [Tile(source.id, x, y, tile, tile, split) for y in tops for x in lefts]
    w, h = _val_side(width, scale), _val_side(height, scale)
    x, y = (width - w) // 2 // scale * scale, (height - h) // 2 // scale * scale
    return [Tile(source.id, x, y, w, h, split)]


def tile_key(tile: Tile, degradation: Json) -> str:
    """Key of the tile's sample, 24 hex digits; `degradation` is a `Degradation.config`."""
    return sample_key(tile.source, (tile.x, tile.y, tile.width, tile.height), degradation)


def load_source(source: Source) -> tuple[Rgb, Rgb | None]:
    """Decode a photo, and its LR photo where the corpus is paired.

    Raises:
        ImageError: damaged, or no longer as large as when the corpus was scanned.
    """
    hr = load_rgb(source.path)
    if hr.shape[:2] != (source.height, source.width):
        raise ImageError(
            source.path,
            f"changed since it was listed: expected {source.width}x{source.height}, got {hr.shape[1]}x{hr.shape[0]}",
        )
    return hr, load_rgb(source.lr_path) if source.lr_path else None


def cut_tile(hr: Rgb, lr: Rgb | None, tile: Tile, degradation: Degradation, seed: int, context: int = 0) -> TileImages:
    """Cut a tile out of a photo and make its LR image; the same key and seed give the same bytes.

    The degradation sees the photo around the tile, mirrored where it ends, so that `bicubic` equals the same part of
    the whole photo's downscale.

    Args:
        hr: the photo, uint8 (H, W, 3).
        lr: its LR photo, for the `paired` degradation.
        tile: what to cut.
        degradation: how LR comes about.
        seed: of the run; the tile's own seed follows from it and the key.
        context: LR pixels around the tile that `TileImages.around` has, mirrored where the photo ends; 8 at most.

    Raises:
        DtkdError: the context is too large, the tile lies outside the photo or off the LR grid, or `paired` without a
            fitting LR photo.
    """
    if not 0 <= context <= MOST_CONTEXT:
        raise DtkdError(f"context must be within 0..{MOST_CONTEXT} LR pixels, got {context}")
    scale = degradation.scale
    height, width = hr.shape[0] // scale * scale, hr.shape[1] // scale * scale
    _check_inside(tile, width, height, scale)
    key = tile_key(tile, degradation.config())
    gt = _cut(hr, tile.x, tile.y, tile.width, tile.height)
    if degradation.kind == "paired":
        if lr is None or lr.shape[:2] != (height // scale, width // scale):
            got = f"{lr.shape[1]}x{lr.shape[0]}" if lr is not None else "none"
            raise DtkdError(f"{tile.source} needs an LR image of {width // scale}x{height // scale}, got {got}")
        x, y, w, h = (n // scale for n in (tile.x, tile.y, tile.width, tile.height))
        small = Tile(tile.source, x, y, w, h, tile.split)
        around = _grown(lr, small, context, height // scale, width // scale)
    else:
        rng = np.random.default_rng(sample_seed(seed, key, "degrade"))
        # Of `real` always the same part of the photo: its draws, and so the LR image, must not depend on the context.
        margin = max(degradation.margin // scale, context + 2)
        grown = _grown(hr, tile, margin * scale, height, width)
        around = degrade_inside(grown, margin - context, degradation, rng)
    return TileImages(key, inside(around, context), gt, around)


def inside(image: Rgb, margin: int) -> Rgb:
    """An image without `margin` pixels on every side."""
    height, width = image.shape[:2]
    return _cut(image, margin, margin, width - 2 * margin, height - 2 * margin)


def _starts(length: int, tile: int) -> list[int]:
    starts = list(range(0, length - tile + 1, tile))
    return starts if starts[-1] == length - tile else [*starts, length - tile]


def _val_side(length: int, scale: int) -> int:
    step = VAL_MULTIPLE * scale
    return min(VAL_SIDE, length) // step * step or length


def _check_inside(tile: Tile, width: int, height: int, scale: int) -> None:
    box = (tile.x, tile.y, tile.width, tile.height)
    if min(box[:2]) < 0 or min(box[2:]) <= 0 or tile.x + tile.width > width or tile.y + tile.height > height:
        raise DtkdError(f"tile {box} (x, y, width, height) lies outside the photo {tile.source}, {width}x{height}")
    if any(n % scale for n in box):
        raise DtkdError(f"tile {box} (x, y, width, height) must consist of multiples of the scale {scale}")


def _grown(image: Rgb, tile: Tile, margin: int, height: int, width: int) -> Rgb:
    """The tile and `margin` pixels around it, mirrored where the image, of this height and width, ends."""
    rows = range(tile.y - margin, tile.y + tile.height + margin)
    columns = range(tile.x - margin, tile.x + tile.width + margin)
    return cut_mirrored(image, rows, columns, (height, width))


def _cut(image: Rgb, x: int, y: int, width: int, height: int) -> Rgb:
    return np.ascontiguousarray(image[y : y + height, x : x + width])
