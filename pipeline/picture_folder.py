"""A folder of finished pictures that another system made, one for each photo, found by the photo's name.

A photo `a/b` is looked up as `a/b.*`, then as `b.*` at the folder's top level, where that is the only picture of this
stem in the whole folder.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from pipeline.images import SUFFIXES
from pipeline.system.errors import DtkdError, UsageError


class PictureFolder:
    """The pictures below a folder; `kind` is what the user wrote before the folder's name, such as `import`.

    Attributes:
        paths: by the picture's path without suffix, relative to the folder.
        label: for people.
    """

    paths: Mapping[str, Path]

    def __init__(self, kind: str, where: str | Path) -> None:
        """Index the pictures.

        Raises:
            UsageError: no folder is named.
            DtkdError: no such folder, no picture in it, or two that differ in their suffix only.
        """
        if not str(where):
            raise UsageError(f"{kind}: names no folder: give {kind}:FOLDER, the folder with the other system's outputs")
        folder = Path(where).expanduser()
        if not folder.is_dir():
            raise DtkdError(f"{kind}:{folder}: no such folder; give the folder with the other system's outputs")
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not files:
            raise DtkdError(f"{kind}:{folder}: no picture in it; expected one for each photo, with the same name")
        paths: dict[str, Path] = {}
        for path in files:
            name = path.relative_to(folder).with_suffix("").as_posix()
            if (other := paths.setdefault(name, path)) != path:
                raise DtkdError(f"{kind}:{folder}: {other.name} and {path.name} are both for photo {name}: remove one")
        self.paths, self.label = paths, f"{kind}:{folder.name}"
        self._stems = Counter(path.stem for path in files)

    def find(self, name: str) -> Path | None:
        """The picture for a photo's name, which is its relative path without suffix; None where there is none."""
        stem = Path(name).name
        alone = self.paths.get(stem) if self._stems[stem] == 1 else None
        return self.paths.get(name) or alone

    def refuse_shared(self, photos: Mapping[str, str]) -> None:
        """Refuse photos of which two have the same picture, which then is not known to be of either.

        Args:
            photos: names as `find` takes them, by what the user knows the photos as.

        Raises:
            DtkdError: two of them find one picture.
        """
        taken: dict[Path, str] = {}
        for photo, name in photos.items():
            found = self.find(name)
            if found and (other := taken.setdefault(found, photo)) != photo:
                raise DtkdError(
                    f"{self.label}: {found.name} would serve {other} and {photo}: "
                    "name the pictures by the photos' relative paths, one for each"
                )

    def has_several(self, name: str) -> bool:
        """Whether several pictures have the stem of this name."""
        return self._stems[Path(name).name] > 1
