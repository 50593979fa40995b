"""The sheet of a preview: for each tile its LR image enlarged, the teacher's picture and the GT below each other."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from pipeline.images import Rgb
from pipeline.storage.places import Place, Remote, place_of
from pipeline.system.files import atomic_write_bytes
from pipeline.system.outputs import check_file

COLUMNS = 4
"""Tiles beside each other."""
LEAST_SIDE = 192
"""Pixels of a tile on the sheet, at least: smaller ones are enlarged by a whole number."""
_MARK = ("Software", "dtkd teacher-cache --preview")
_GAP, _TEXT, _LABELS = 8, 18, 64  # pixels between pictures, of a line of text, of the rows' names


class Column(NamedTuple):
    """One tile; the pictures have one size, (H, W, 3)."""

    title: str
    of_lr: str
    """Said below the LR image, as `of_teacher` below the teacher's."""
    of_teacher: str
    lr: Rgb
    """Enlarged."""
    teacher: Rgb
    gt: Rgb


def sheet_path(cache: str | Path | Place) -> Path:
    """Where the sheet of a cache is: beside it, CACHE-preview.png; of one at a URL, in the current folder."""
    place = place_of(cache)
    if isinstance(place, Remote):
        return Path(f"{place.name}-preview.png")
    cache = place.path
    named = cache if cache.name not in ("", "..") else cache.resolve()
    return named.with_name(f"{named.name}-preview.png")


def check_sheet(path: Path) -> None:
    """Make sure that the sheet may take its place; an earlier one is replaced.

    Raises:
        DtkdError: another file or a folder has its name.
    """
    check_file(path, "a preview", overwrite=True, is_ours=_is_sheet)


def save_sheet(path: Path, columns: Sequence[Column], teacher: str) -> None:
    """Draw and write the sheet; the same tiles give the same bytes."""
    info = PngImagePlugin.PngInfo()
    info.add_text(*_MARK)
    file = io.BytesIO()
    draw_sheet(columns, teacher).save(file, "PNG", pnginfo=info)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, file.getvalue())


def draw_sheet(columns: Sequence[Column], teacher: str) -> Image.Image:
    """Blocks of up to four tiles, each with three rows of pictures and what is said below them."""
    side = columns[0].gt.shape[0]
    factor = max(1, -(-LEAST_SIDE // side))
    cell, row = side * factor + _GAP, side * factor + _TEXT + _GAP
    head, block = _GAP + _TEXT + _GAP, _TEXT + 3 * row
    blocks = [columns[start : start + COLUMNS] for start in range(0, len(columns), COLUMNS)]
    sheet = Image.new("RGB", (_LABELS + min(len(columns), COLUMNS) * cell, head + len(blocks) * block), "white")
    legend = f"teacher: {teacher}; numbers: psnr_y against the GT, colour drift in levels of 255"
    _write(sheet, legend, _GAP, _GAP, sheet.width - 2 * _GAP)
    for number, tiles in enumerate(blocks):
        top = head + number * block
        for line, name in enumerate(("LR,\nbicubic", "teacher", "GT")):
            _write(sheet, name, _GAP, top + _TEXT + line * row, _LABELS - _GAP)
        for place, tile in enumerate(tiles):
            left = _LABELS + place * cell
            _write(sheet, tile.title, left, top, cell - _GAP)
            rows = ((tile.lr, tile.of_lr), (tile.teacher, tile.of_teacher), (tile.gt, ""))
            for line, (picture, said) in enumerate(rows):
                at = top + _TEXT + line * row
                image = Image.fromarray(picture).resize((side * factor,) * 2, Image.Resampling.NEAREST)
                sheet.paste(image, (left, at))
                _write(sheet, said, left, at + side * factor + 1, cell - _GAP)
    return sheet


def _is_sheet(path: Path) -> bool:
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return image.info.get(_MARK[0]) == _MARK[1]
    except (OSError, SyntaxError, ValueError):
        return False


def _write(sheet: Image.Image, text: str, x: int, y: int, width: int) -> None:
    """Write lines of text, each cut to `width` pixels."""
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, line in enumerate(text.splitlines()):
        cut = line
        while draw.textlength(cut, font) > width:
            cut = f"{cut.removesuffix('...')[:-1]}..."
        draw.text((x, y + 15 * number), cut, "black", font)
