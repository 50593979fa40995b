"""`import:FOLDER`: pictures that another system made, one for each photo of the corpus, as large as the HR photo.

A photo `a/b.png` is looked up as `a/b.*`, then as `b.*` at the folder's top level, where that is the only picture of
this stem in the whole folder.

B batch, h w height and width of the LR image, s scale.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.images import SUFFIXES, RecentImages, Rgb, load_rgb, to_tensor
from pipeline.system.errors import DtkdError, UsageError
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
        if not str(where):
            raise UsageError("import: names no folder: give import:FOLDER, the folder with the other system's outputs")
        folder = Path(where).expanduser()
        if not folder.is_dir():
            raise DtkdError(f"import:{folder}: no such folder; give the folder with the other system's outputs")
        self.name, self.scale, self.steps = f"import:{folder_name(folder)}", scale, 0
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not files:
            raise DtkdError(f"import:{folder}: no picture in it; expected one for each photo, with the same name")
        self._by_path: dict[str, Path] = {}
        for path in files:
            name = path.relative_to(folder).with_suffix("").as_posix()
            if (other := self._by_path.setdefault(name, path)) != path:
                raise DtkdError(f"import:{folder}: {other.name} and {path.name} are both for photo {name}: remove one")
        self._stems = Counter(path.stem for path in files)
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
        found = self._find(photo)
        if found is None:
            several = self._stems[Path(photo).stem] > 1
            raise DtkdError(f"{'several imported outputs' if several else 'no imported output'} for {photo}")
        return found

    def check_photos(self, photos: Iterable[str]) -> None:
        """Refuse photos of which two have the same picture."""
        taken: dict[Path, str] = {}
        for photo in photos:
            found = self._find(photo)
            if found and (other := taken.setdefault(found, photo)) != photo:
                raise DtkdError(
                    f"{self.name}: {found.name} would serve {other} and {photo}: "
                    "name the imported pictures by the photos' relative paths, one for each"
                )

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
        for name, path in sorted(self._by_path.items()):
            digest.update(f"{name}:{sha256_file(path)}\n".encode())
        return {"name": self.name, "scale": self.scale, "pictures": len(self._by_path), "content": digest.hexdigest()}

    def _crop(self, place: Place) -> Rgb:
        path = self.lookup(place.photo)
        picture = self._pictures.get(path)
        size = (place.photo_height, place.photo_width)
        if picture.shape[:2] != size:
            expected, got = (f"{width}x{height}" for height, width in (size, picture.shape[:2]))
            raise DtkdError(f"{path.name} must be as large as the photo, {expected}, got {got}")
        return picture[place.y : place.y + place.height, place.x : place.x + place.width]

    def _find(self, photo: str) -> Path | None:
        name = Path(photo).with_suffix("")
        alone = self._by_path.get(name.name) if self._stems[name.name] == 1 else None
        return self._by_path.get(name.as_posix()) or alone
