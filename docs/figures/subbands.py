"""Draws docs/subbands.jpg, a tile's two-level Haar sub-bands: `python docs/figures/subbands.py`."""

from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image, ImageDraw

from pipeline.degradation import Degradation
from pipeline.degrade import degrade_inside
from pipeline.images import to_tensor
from pipeline.wavelet import decompose
from student.study.bands import bicubic
from teacher_cache.teachers import load

SIDE, MARGIN, SCALE, GAIN = 256, 100, 4, 4.0  # HR pixels; details are drawn GAIN times as strong


def mosaic(image: torch.Tensor) -> np.ndarray:
    """LL2 top left, the bands of level 2 around it, those of level 1 around all; uint8 (H, W, 3)."""
    low, (fine, coarse) = decompose(image, 2)
    corner = low / 4
    for detail in (coarse, fine):
        lh, hl, hh = (GAIN * band + 0.5 for band in detail.unbind(2))
        corner = torch.cat((torch.cat((corner, hl), 3), torch.cat((lh, hh), 3)), 2)
    return (corner[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def main() -> None:
    """Write the picture."""
    photo = np.pad(skimage.data.astronaut(), ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), "symmetric")
    whole = np.ascontiguousarray(photo[: SIDE + 2 * MARGIN, 110 : 110 + SIDE + 2 * MARGIN])
    lr = degrade_inside(whole, MARGIN // SCALE, Degradation("real", SCALE, mild_share=1.0), np.random.default_rng(0))
    gt, small = to_tensor(np.ascontiguousarray(whole[MARGIN:-MARGIN, MARGIN:-MARGIN]))[None], to_tensor(lr)[None]
    columns = {"bicubic": bicubic(small, SCALE), "teacher": load("embedded").restore(small, [0]), "GT": gt}
    sheet = Image.new("RGB", (3 * (SIDE + 6), 2 * (SIDE + 6) + 16), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (label, image) in enumerate(columns.items()):
        x = column * (SIDE + 6)
        draw.text((x + 2, 2), label, "black")
        pixels = (image[0].clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
        for row, picture in enumerate((pixels, mosaic(image))):
            sheet.paste(Image.fromarray(picture), (x, 16 + row * (SIDE + 6)))
    sheet.save(Path(__file__).parents[1] / "subbands.jpg", quality=90)


if __name__ == "__main__":
    main()
