"""`import:FOLDER`: pictures that another system made, one for each photo of the corpus, as large as the HR photo.

B batch, h w height and width of the LR image, s scale.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.images import RecentImages, Rgb, load_rgb, to_tensor
from pipeline.picture_folder import PictureFolder
from pipeline.system.errors import DtkdError
from pipeline.system.files import sha256_file
from pipeline.teacher import Place, Teacher
from teacher_cache.teachers.diffusers_teacher import folder_name


class ImportedTeacher(Teacher):
    """Finished pictures as a teacher: it looks up where others compute."""

    sees_context = False

    def __init__(self, where: str | Path, scale: int) -> None:
        """Index the pictures below the folder `where`.

        Raises:
            UsageError: no folder is named.
            DtkdError: no such folder, no picture in it, or two that differ in their suffix only.
        """
        self._folder = PictureFolder("import", where)
        self.name, self.scale, self.steps = f"import:{folder_name(Path(where).expanduser())}", scale, 0
        self._pictures = RecentImages(load_rgb, lambda picture: picture[..., 0].size)

    def restore(self, lr: Tensor, seeds: Sequence[int]) -> Tensor:
        """Refuse: of an LR image alone there is nothing to look up."""
        raise DtkdError(f"{self.name} holds finished pictures of certain photos: no model is there to restore others")

    def restore_at(self, lr: Tensor, seeds: Sequence[int], places: Sequence[Place]) -> Tensor:
        """The places' rectangles of the pictures, (B, 3, s h, s w).

        Raises:
            ImageError: a picture cannot be read.
            DtkdError: there is none for a photo, several, or one of another size than the photo's.
        """
        return torch.stack([to_tensor(self._crop(place)) for place in places])

    def lookup(self, photo: str) -> Path:
        """The picture for a photo's id.

        Raises:
            DtkdError: there is none, or several have its stem.
        """
        found = self._folder.find(_name(photo))
        if found is None:
            several = self._folder.has_several(_name(photo))
            raise DtkdError(f"{'several imported outputs' if several else 'no imported output'} for {photo}")
        return found

    def check_photos(self, photos: Iterable[str]) -> None:
        """Refuse photos of which two have the same picture."""
        self._folder.refuse_shared({photo: _name(photo) for photo in photos})

    def unsuited(self, degradation: str) -> str | None:
        """See Teacher."""
        if degradation == "paired":
            return None
        seen = "random LR images, which no other system has seen"
        seen = seen if degradation == "real" else f"{degradation} LR images made here"
        return (
            "imported pictures must have been made from the same LR images as this cache has, but --degradation "
            f"{degradation} gives {seen}: give the LR images that the other system saw, with --degradation paired"
        )

    def fingerprint(self) -> dict[str, Any]:
        """Names and contents of all pictures."""
        digest = hashlib.sha256()
        paths = self._folder.paths
        for name, path in sorted(paths.items()):
            digest.update(f"{name}:{sha256_file(path)}\n".encode())
        return {
            "name": self.name,
            "scale": self.scale,
            "pictures": len(paths),
            "content": digest.hexdigest(),
        }

    def _crop(self, place: Place) -> Rgb:
        path = self.lookup(place.photo)
        picture = self._pictures.get(path)
        size = (place.photo_height, place.photo_width)
        if picture.shape[:2] != size:
            expected, got = (f"{width}x{height}" for height, width in (size, picture.shape[:2]))
            raise DtkdError(f"{path.name} must be as large as the photo, {expected}, got {got}")
        return picture[place.y : place.y + place.height, place.x : place.x + place.width]


def _name(photo: str) -> str:
    return Path(photo).with_suffix("").as_posix()
