"""Pictures of an evaluation on disk, so that memory does not grow with their number.

Which pictures a page shows is known only when all is measured. Until then every picture lies in a folder of its own:
lossless, where it is large the part of it around its busiest square, and beside it a small detail and a thumbnail.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline import images
from pipeline.images import Rgb, Size
from student.report.pictures import encoding
from student.report.pictures.windows import Window, around, busiest_square

DETAIL = 128
"""Side of the square that is kept of every picture."""
THUMBNAIL = 96
"""Height of a thumbnail."""


@dataclass(frozen=True)
class SpooledImage:
    """One image as the candidates restored it.

    Attributes:
        id: its name.
        size: of the image, in HR pixels.
        kept: the part that is kept of every version, all of it where it is no larger than `encoding.LARGEST`.
        detail: the busiest square.
        thumbnail: file of the whole image, small.
        details: file of each candidate's detail, lossless.
        pictures: file of each candidate's kept part, lossless.
        resized: candidates whose pictures had another size, which they had to be brought from.
    """

    id: str
    size: Size
    kept: Window
    detail: Window
    thumbnail: Path
    details: Mapping[str, Path]
    pictures: Mapping[str, Path]
    resized: Mapping[str, Size]


class Spool:
    """Takes the pictures as an evaluation makes them, all versions of an image one after the other."""

    def __init__(self, folder: Path) -> None:
        """Write into `folder`, which its owner removes."""
        self.images: dict[tuple[str, str], SpooledImage] = {}
        """By the names of set and image."""
        self._folder = folder
        self._at: tuple[str, str] | None = None
        self._versions: dict[str, Rgb] = {}

    def add(self, set_name: str, candidate: str, image_id: str, picture: Rgb) -> None:
        """Keep a candidate's version of an image."""
        if self._at != (set_name, image_id):
            self.finish()
        self._at = (set_name, image_id)
        self._versions[candidate] = picture

    def finish(self) -> None:
        """Write what is still in memory; to be called after the last picture."""
        if self._at:
            self.images[self._at] = self._write(self._at[1], self._versions)
        self._at, self._versions = None, {}

    def _write(self, image_id: str, versions: Mapping[str, Rgb]) -> SpooledImage:
        leading = versions.get("gt", next(iter(versions.values())))
        size = Size(leading.shape[1], leading.shape[0])
        resized = {name: Size(p.shape[1], p.shape[0]) for name, p in versions.items() if p.shape != leading.shape}
        detail = busiest_square(leading, DETAIL)
        kept = around(detail, Window(0, 0, *size), encoding.LARGEST)
        folder = self._folder / str(len(self.images))  # never a name of the user's
        folder.mkdir()
        details, pictures = {}, {}
        for index, (name, version) in enumerate(versions.items()):
            picture = _resized(version, size) if name in resized else version
            details[name] = folder / f"{index}.detail"
            details[name].write_bytes(images.encode_webp(np.ascontiguousarray(detail.of(picture))))
            pictures[name] = folder / f"{index}.picture"
            pictures[name].write_bytes(images.encode_webp(kept.of(picture)))
        thumbnail = folder / "thumbnail"
        thumbnail.write_bytes(encoding.thumbnail(leading, THUMBNAIL))
        return SpooledImage(image_id, size, kept, detail, thumbnail, details, pictures, resized)


def _resized(picture: Rgb, size: Size) -> Rgb:
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
