"""Which photos there are: a folder, HR/ and LR/ folders, or those inside scikit-image; and which are held out."""

import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pipeline.images import SUFFIXES, ImageError, Size, probe
from pipeline.system.errors import DtkdError

SAMPLE = (
    "astronaut.png",
    "brick.png",
    "chelsea.png",
    "coffee.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",  # motorcycle_right shows the same
    "retina.jpg",
    "rocket.jpg",
)
"""The photos in scikit-image's wheel: colour, and three textures; no drawings, no near-duplicates."""
MAX_DEPTH = 100
"""Folders within folders that are searched."""


@dataclass(frozen=True)
class Source:
    """One photo of a corpus."""

    id: str
    """Path relative to the corpus (to HR/ of a paired one) with forward slashes: the same on every machine."""
    path: Path
    width: int
    """Pixels, after EXIF orientation, as `height`."""
    height: int
    lr_path: Path | None = None
    """The LR photo of a paired corpus."""


@dataclass(frozen=True)
class Skipped:
    """A file that cannot be used, and why."""

    id: str
    reason: str


@dataclass(frozen=True)
class Corpus:
    """What `scan` found, both parts sorted by id."""

    name: str
    """`sample`, or the folder's name."""
    sources: tuple[Source, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class Partition:
    """Sources to learn from and held-out ones, both in the order that they came in."""

    train: tuple[Source, ...]
    val: tuple[Source, ...]


def scan(
    corpus: str | Path,
    *,
    paired: bool = False,
    scale: int = 4,
    min_side: int = 1,
    size_of: Callable[[Path], Size] = probe,
) -> Corpus:
    """List the photos of a corpus, from their headers.

    Folders are searched MAX_DEPTH deep; hidden names (leading dot) are passed over. Symbolic links are followed inside
    the corpus, which may be a link itself (HR/ and LR/ of a paired one, too); one that leads out of it is skipped: who
    fills a corpus shall not reach what else its user can read. A file that shows up again under another name is
    skipped, lest one photo be both trained on and held out.

    Args:
        corpus: a folder, or the word `sample` for the photos inside scikit-image (`./sample` for a folder).
        paired: the folder holds HR/ and LR/ with the same names below; also paired are `N_HR` with `N_LR4` or `N_LR`
            (RealSR, DRealSR) and `N` with `Nx4` (DIV2K), 4 being the scale. Ids are paths below HR/; of LR images that
            are skipped, they begin with `LR/`.
        scale: HR pixels to an LR pixel. HR may have up to scale - 1 pixels more than scale times LR.
        min_side: photos with a smaller side are skipped, HR pixels.
        size_of: width and height of a photo; raises as `probe` does.

    Raises:
        DtkdError: missing, no folder, or no photo that can be used.
    """
    if corpus == "sample":
        if paired:
            raise DtkdError("the sample photos have no LR images of their own: take another degradation than paired")
        candidates = [_Candidate(path.name, path) for path in _sample_paths()]
        skipped = []
    else:
        candidates, skipped = _find_pairs(Path(corpus), scale) if paired else _find(Path(corpus))
    sources = []
    for candidate in candidates:
        try:
            sources.append(_checked(candidate, scale, min_side, size_of))
        except ImageError as error:
            where = "LR image " if candidate.lr_path and error.path == str(candidate.lr_path) else ""
            skipped.append(Skipped(candidate.id, where + error.reason))
    skipped.sort(key=lambda skip: skip.id)
    if not sources:
        raise DtkdError(_nothing_usable(corpus, skipped))
    return Corpus(_name(corpus), tuple(sorted(sources, key=lambda source: source.id)), tuple(skipped))


def split_photos(sources: Sequence[Source], hold_out: int) -> Partition:
    """Hold `hold_out` photos out of training: those whose ids have the smallest hashes.

    The choice depends on ids alone, so it is the same for teacher and student, and photos that are added change it
    little; a smaller `hold_out` takes a part of what a larger one takes.

    Raises:
        DtkdError: nothing would be left to train on.
    """
    if not 0 <= hold_out < max(len(sources), 1):
        raise DtkdError(f"hold_out must leave a photo to train on: expected 0..{len(sources) - 1}, got {hold_out}")
    ranked = sorted((source.id for source in sources), key=lambda name: (_hash(name), name))
    held = set(ranked[:hold_out])
    return Partition(tuple(s for s in sources if s.id not in held), tuple(s for s in sources if s.id in held))


@dataclass(frozen=True)
class _Candidate:
    id: str
    path: Path
    lr_path: Path | None = None


def _checked(candidate: _Candidate, scale: int, min_side: int, size_of: Callable[[Path], Size]) -> Source:
    width, height = size_of(candidate.path)
    if min(width, height) < min_side:
        raise ImageError(candidate.path, f"{width}x{height} pixels, smaller than {min_side} on a side")
    if candidate.lr_path is not None:
        lr = size_of(candidate.lr_path)
        if (width // scale, height // scale) != lr:
            raise ImageError(
                candidate.path, f"{width}x{height} pixels, expected {scale} times its LR image, {lr.width}x{lr.height}"
            )
    return Source(candidate.id, candidate.path, width, height, candidate.lr_path)


def _sample_paths() -> list[Path]:
    spec = find_spec("skimage")  # found, not imported: that would take half a second
    if spec is None or spec.origin is None:
        raise DtkdError("the sample photos are part of scikit-image, which is not installed: pip install scikit-image")
    folder = Path(spec.origin).parent / "data"
    paths = [folder / name for name in SAMPLE if (folder / name).exists()]
    if not paths:
        raise DtkdError(f"this scikit-image has no photos in {folder}: install scikit-image 0.24 or newer from a wheel")
    return paths


def _find(root: Path) -> tuple[list[_Candidate], list[Skipped]]:
    """Image files below a folder in the order of their ids, the first of several names for one file."""
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise DtkdError(f"the corpus {root} {what}: give a folder of images, or the word sample")
    skipped: list[Skipped] = []
    candidates: list[_Candidate] = []
    first_name: dict[tuple[int, int], str] = {}
    for name, path in sorted((path.relative_to(root).as_posix(), path) for path in _walk(root, root, skipped)):
        if (printable := _printable(name)) != name:
            skipped.append(Skipped(printable, "its name is not valid UTF-8: rename it"))
            continue
        try:
            status = path.stat()
        except OSError as error:
            skipped.append(Skipped(name, f"cannot be read ({error.strerror})"))
            continue
        if not stat.S_ISREG(status.st_mode):
            skipped.append(Skipped(name, "no regular file"))
            continue
        other = first_name.setdefault((status.st_dev, status.st_ino), name)
        if other != name:
            skipped.append(Skipped(name, f"the same file as {other}"))
        else:
            candidates.append(_Candidate(name, path))
    return candidates, skipped


def _walk(folder: Path, root: Path, skipped: list[Skipped], inside: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Image files below `folder`; a link to a folder that we are in, or out of the corpus, is not followed."""
    real = os.path.realpath(folder)
    if real in inside:
        return
    if len(inside) == MAX_DEPTH:
        skipped.append(Skipped(_printable(folder.relative_to(root).as_posix()), f"below {MAX_DEPTH} folders"))
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        skipped.append(Skipped(_printable(folder.relative_to(root).as_posix()), f"cannot be read ({error.strerror})"))
        return
    for entry in entries:
        path = folder / entry.name
        if entry.name.startswith("."):
            continue
        if entry.is_symlink() and _leads_out(path, root):
            name = _printable(path.relative_to(root).as_posix())
            skipped.append(Skipped(name, "a link that leads out of the corpus: put the photos themselves there"))
        elif os.path.isdir(path):  # entry.is_dir raises where a link leads to itself
            yield from _walk(path, root, skipped, inside | {real})
        elif path.suffix.lower() in SUFFIXES:
            yield path


def _leads_out(link: Path, root: Path) -> bool:
    """Whether a link's target exists outside of the corpus; of one that leads nowhere another reason is told."""
    return os.path.exists(link) and not Path(os.path.realpath(link)).is_relative_to(os.path.realpath(root))


def _find_pairs(root: Path, scale: int) -> tuple[list[_Candidate], list[Skipped]]:
    if missing := [name for name in ("HR", "LR") if not (root / name).is_dir()]:
        raise DtkdError(f"a paired corpus is a folder with HR/ and LR/: {root} has no {' and no '.join(missing)}")
    (high, skipped), (low, skipped_lr) = _find(root / "HR"), _find(root / "LR")
    skipped += [Skipped(f"LR/{item.id}", item.reason) for item in skipped_lr]
    by_name = {candidate.id: candidate.path for candidate in low}
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for candidate in low:
        by_stem[_without_suffix(candidate.id)].append(candidate.path)
    candidates = []
    wanted: set[Path] = set()
    for candidate in high:
        exact = by_name.get(candidate.id)
        found = [exact] if exact else [path for stem in _lr_stems(candidate.id, scale) for path in by_stem[stem]]
        if len(found) == 1:
            candidates.append(_Candidate(candidate.id, candidate.path, found[0]))
        else:
            several = " and ".join(path.name for path in found)
            skipped.append(Skipped(candidate.id, f"has several LR images, {several}" if found else "has no LR image"))
        wanted.update(found)
    skipped += [Skipped(f"LR/{item.id}", "has no HR image") for item in low if item.path not in wanted]
    return candidates, skipped


def _lr_stems(name: str, scale: int) -> list[str]:
    stem = _without_suffix(name)
    stems = [stem, f"{stem}x{scale}"]
    if stem.endswith("_HR"):
        stems += [f"{stem[:-3]}_LR{scale}", f"{stem[:-3]}_LR"]
    return stems


def _without_suffix(name: str) -> str:
    return name.removesuffix(Path(name).suffix)


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _hash(name: str) -> bytes:
    return hashlib.blake2b(f"0\n{name}".encode(), digest_size=16).digest()


def _name(corpus: str | Path) -> str:
    return "sample" if corpus == "sample" else _printable(Path(corpus).resolve().name)


def _nothing_usable(corpus: str | Path, skipped: Sequence[Skipped]) -> str:
    if not skipped:
        return f"no image in {corpus}: expected {', '.join(sorted(s[1:] for s in SUFFIXES))} files, at any depth"
    more = f" and {len(skipped) - 1} more" if len(skipped) > 1 else ""
    return f"no usable image in {corpus}: {skipped[0].id} {skipped[0].reason}{more}"
