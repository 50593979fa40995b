"""Draws docs/demo.jpg, what the shipped student does to mildly degraded photos: `python docs/figures/demo.py`."""

from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image

from pipeline.degradation import Degradation
from pipeline.degrade import degrade_inside
from pipeline.images import to_image, to_tensor
from student.checkpoint import load
from student.study.bands import bicubic
from teacher_cache.teachers import load as load_teacher

SIDE, MARGIN, SCALE, GAP = 232, 100, 4, 6  # HR pixels of a square and around it
PLACES = [("astronaut", 0, 110), ("coffee", 110, 180), ("chelsea", 60, 120)]  # y, x; none was ever trained on


def main() -> None:
    """Write the picture: bicubic, student, teacher, photo."""
    student, teacher = load("tiny-x4"), load_teacher("embedded")
    mild = Degradation("real", SCALE, mild_share=1.0)
    sheet = Image.new("RGB", (4 * (SIDE + GAP) - GAP, len(PLACES) * (SIDE + GAP) - GAP), "white")
    for row, (name, y, x) in enumerate(PLACES):
        photo = np.pad(getattr(skimage.data, name)(), ((MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0)), "symmetric")
        whole = np.ascontiguousarray(photo[y : y + SIDE + 2 * MARGIN, x : x + SIDE + 2 * MARGIN])
        lr = to_tensor(degrade_inside(whole, MARGIN // SCALE, mild, np.random.default_rng(row)))[None]
        with torch.inference_mode():
            versions = [bicubic(lr, SCALE), student(lr).clamp(0, 1), teacher.restore(lr, [row])]
        squares = [to_image(version[0]) for version in versions] + [whole[MARGIN:-MARGIN, MARGIN:-MARGIN]]
        for column, square in enumerate(squares):
            sheet.paste(Image.fromarray(square), (column * (SIDE + GAP), row * (SIDE + GAP)))
    sheet.save(Path(__file__).parents[1] / "demo.jpg", quality=90)


if __name__ == "__main__":
    main()
