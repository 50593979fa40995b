"""What the report needs of its pictures: the square worth enlarging, and the picture inside the page."""

from base64 import b64encode

import numpy as np
from scipy.ndimage import uniform_filter

from pipeline import fidelity, images
from pipeline.images import Rgb

DETAIL = 72  # side of the enlarged square, HR pixels


def busiest_square(image: Rgb) -> tuple[int, int, int]:
    """x, y and side of the square with the most fine detail, away from the borders."""
    luma = fidelity.luma(image)
    side = min(DETAIL, *luma.shape)
    detail = np.abs(luma - uniform_filter(luma, 5))
    mean = uniform_filter(np.minimum(detail, 24), side)  # a few hard edges must not outweigh texture
    half = side // 2
    inner = mean[half : luma.shape[0] - side + half + 1, half : luma.shape[1] - side + half + 1]
    y, x = np.unravel_index(int(inner.argmax()), inner.shape)
    return int(x), int(y), side


def data_uri(image: Rgb) -> str:
    """A picture (H, W, 3) as the address of itself: lossless WebP."""
    return f"data:image/webp;base64,{b64encode(images.encode_webp(image)).decode()}"
