"""What is shown of a picture: all of it, the part around its busiest square, or that square alone."""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import uniform_filter

from pipeline import fidelity
from pipeline.images import Rgb


class Window(NamedTuple):
    """A part of a picture, in its pixels."""

    x: int
    y: int
    width: int
    height: int

    def of(self, image: Rgb) -> Rgb:
        """This part of a picture (H, W, 3)."""
        return image[self.y : self.y + self.height, self.x : self.x + self.width]

    def inside(self, other: "Window") -> "Window":
        """The same place in the pixels of `other`, in which it lies."""
        return Window(self.x - other.x, self.y - other.y, self.width, self.height)


def busiest_square(image: Rgb, side: int) -> Window:
    """The square with the most fine detail, away from the borders; smaller where the picture is."""
    luma = fidelity.luma(image)
    side = min(side, *luma.shape)
    detail = np.abs(luma - uniform_filter(luma, 5))
    mean = uniform_filter(np.minimum(detail, 24), side)  # a few hard edges must not outweigh texture
    half = side // 2
    inner = mean[half : luma.shape[0] - side + half + 1, half : luma.shape[1] - side + half + 1]
    y, x = np.unravel_index(int(inner.argmax()), inner.shape)
    return Window(int(x), int(y), side, side)


def around(centre: Window, within: Window, side: int) -> Window:
    """The part of `within`, `side` pixels wide and high where it is as large, that has `centre` in its middle."""
    width, height = min(side, within.width), min(side, within.height)
    x = centre.x + centre.width // 2 - width // 2
    y = centre.y + centre.height // 2 - height // 2
    return Window(
        min(max(x, within.x), within.x + within.width - width),
        min(max(y, within.y), within.y + within.height - height),
        width,
        height,
    )
