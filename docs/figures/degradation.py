"""Draws docs/degradation.jpg: `python docs/figures/degradation.py`."""

import dataclasses
from pathlib import Path

import numpy as np
import skimage.data
from PIL import Image, ImageDraw

from pipeline.degradation import Degradation
from pipeline.degrade import degrade_inside

SIDE, MARGIN, SCALE = 192, 100, 4  # HR pixels of a tile and around it
REAL = Degradation("real", SCALE)
COLUMNS = [("GT", None), ("bicubic", Degradation("bicubic", SCALE))]
COLUMNS += [(f"mild, seed {seed}", dataclasses.replace(REAL, mild_share=1.0)) for seed in range(3)]
COLUMNS += [(f"full, seed {seed}", dataclasses.replace(REAL, mild_share=0.0)) for seed in range(3)]
PLACES = [("astronaut", 150, 90), ("coffee", 110, 180), ("chelsea", 100, 140)]  # y, x of the tile's surroundings


def main() -> None:
    """Write the picture."""
    sheet = Image.new("RGB", (len(COLUMNS) * (SIDE + 4), len(PLACES) * (SIDE + 4) + 18), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (name, y, x) in enumerate(PLACES):
        photo = np.pad(getattr(skimage.data, name)(), ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), "symmetric")
        whole = np.ascontiguousarray(photo[y : y + SIDE + 2 * MARGIN, x : x + SIDE + 2 * MARGIN])
        for column, (label, degradation) in enumerate(COLUMNS):
            draw.text((column * (SIDE + 4) + 2, 2), label, "black")
            tile = whole[MARGIN:-MARGIN, MARGIN:-MARGIN]
            if degradation is not None:
                seed = int(label[-1]) if label[-1].isdigit() else 0
                tile = degrade_inside(whole, MARGIN // SCALE, degradation, np.random.default_rng(10 * row + seed))
            picture = Image.fromarray(tile).resize((SIDE, SIDE), Image.Resampling.NEAREST)
            sheet.paste(picture, (column * (SIDE + 4), row * (SIDE + 4) + 18))
    sheet.save(Path(__file__).parents[1] / "degradation.jpg", quality=88)


if __name__ == "__main__":
    main()
