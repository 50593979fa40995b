"""Pictures as bytes and as addresses of themselves, from lossless down to what a page of many pictures can afford."""

import io
from base64 import b64encode
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from pipeline import images
from pipeline.images import Rgb

Lossless = Literal["fast", "dense"]


class Step(NamedTuple):
    """How pictures of a page are stored."""

    lossless: Lossless | None
    """fast: as they lie on disk; dense: a sixth smaller, five times slower."""
    quality: int
    """Of JPEG, where it is lossy."""
    side: int
    """Pixels that are shown of a side, at most."""

    @property
    def text(self) -> str:
        """For people."""
        return "lossless WebP" if self.lossless else f"JPEG of quality {self.quality} without chroma subsampling"


LARGEST = 1024
STEPS = (
    Step("fast", 100, LARGEST),
    Step("dense", 100, LARGEST),
    *(
        Step(None, quality, side)
        for quality, side in ((98, LARGEST), (95, LARGEST), (90, LARGEST), (90, 768), (85, 768), (85, 512))
    ),
    *(Step(None, quality, side) for quality, side in ((80, 384), (75, 256), (70, 192), (60, 128), (50, 96))),
)
DETAIL_STEPS = (Step("fast", 100, LARGEST), *(Step(None, quality, LARGEST) for quality in (95, 90, 85, 75)))
"""Both best first. JPEG with full chroma is nearer to the picture than WebP of the same size: WebP halves the chroma
(RealSR100, outputs and GT, worst picture: 40.9 dB at .215 bytes a pixel against 38.2 dB at .197)."""


def encode(image: Rgb, step: Step) -> bytes:
    """A picture (H, W, 3) as `step` says."""
    if step.lossless:
        return images.encode_webp(image) if step.lossless == "fast" else _webp(image, lossless=True, quality=50)
    return _save(Image.fromarray(image), "JPEG", quality=step.quality, subsampling=0, optimize=True)


def small_webp(image: Rgb, quality: int) -> bytes:
    """A small picture (H, W, 3) or (H, W), lossy."""
    return _webp(image, quality=quality)


def thumbnail(image: Rgb, height: int) -> bytes:
    """A picture (H, W, 3) made `height` pixels high and at most three times as wide, as WebP."""
    scale = min(height / image.shape[0], 3 * height / image.shape[1], 1.0)
    size = (max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1))
    small = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    return _webp(np.asarray(small), quality=75)


def decode(data: bytes) -> Rgb:
    """The picture (H, W, 3) of what is encoded here."""
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB"))


def data_uri(data: bytes) -> str:
    """The address of a picture that holds it."""
    kind = "webp" if data[:4] == b"RIFF" else "jpeg"
    return f"data:image/{kind};base64,{b64encode(data).decode()}"


def uri_length(data: bytes) -> int:
    """Length of its address, without making it."""
    return 23 + 4 * ((len(data) + 2) // 3)


def _webp(image: Rgb, **options: int) -> bytes:
    return _save(Image.fromarray(np.ascontiguousarray(image)), "WEBP", method=4, **options)


def _save(image: Image.Image, kind: str, **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
