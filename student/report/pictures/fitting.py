"""The large pictures of a page: the best way to store them that its size allows."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pipeline.images import Rgb
from student.report.pictures.encoding import STEPS, Step, decode, encode, uri_length
from student.report.pictures.spool import SpooledImage
from student.report.pictures.windows import Window, around


class StoredImage(NamedTuple):
    """One image in the page."""

    window: Window
    """The part that is shown."""
    pictures: Mapping[str, bytes]
    """By candidate."""


class Stored(NamedTuple):
    """All of them."""

    step: Step
    images: list[StoredImage]
    psnr: float
    """Between a picture and what is stored of it, in dB, the lowest; infinite where nothing is lost."""


def fit(images: Sequence[SpooledImage], budget: int, steps: Sequence[Step] = STEPS) -> Stored | None:
    """Store images in the first of `steps` whose addresses take no more than `budget` bytes; None where none does."""
    for step in steps:
        stored = _store(images, step, budget)
        if stored:
            return stored
    return None


def _store(images: Sequence[SpooledImage], step: Step, budget: int) -> Stored | None:
    """None as soon as it is too much."""
    done, psnr = [], math.inf
    for image in images:
        window = around(image.detail, image.kept, step.side)
        pictures = {}
        for name, path in image.pictures.items():
            data = path.read_bytes()
            if step.lossless != "fast":
                original = np.ascontiguousarray(window.inside(image.kept).of(decode(data)))
                data = encode(original, step)
                psnr = min(psnr, math.inf if step.lossless else _psnr(decode(data), original))
            pictures[name] = data
            budget -= uri_length(data)
            if budget < 0:
                return None
        done.append(StoredImage(window, pictures))
    return Stored(step, done, psnr)


def _psnr(stored: Rgb, original: Rgb) -> float:
    error = float(np.mean((stored.astype(np.float32) - original) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf
