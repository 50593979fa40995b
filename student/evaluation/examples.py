"""Evaluation data: LR images, with their ground truth and teacher output where there are any.

A data folder holds `HR/` and `LR/` (real pairs), only `HR/` (the LR image is made by the bicubic degradation), or only
`LR/` (no-reference metrics only); a teacher cache gives its held-out samples. Images are read one at a time.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pipeline import corpus, images, shards
from pipeline.corpus import Skipped, Source
from pipeline.degradation import Degradation
from pipeline.degrade import degrade
from pipeline.images import Rgb
from pipeline.schema import Manifest
from pipeline.system.errors import DtkdError

Kind = Literal["HR and LR", "HR", "LR", "cache"]


@dataclass(frozen=True)
class Example:
    """One image to restore: `lr` (h, w, 3), `gt` and `teacher` (s h, s w, 3) or None; all uint8."""

    id: str
    lr: Rgb
    gt: Rgb | None
    teacher: Rgb | None = None


@dataclass(frozen=True)
class ExampleSet:
    """Images to restore, read when they are asked for.

    Attributes:
        kind: what the data folder holds.
        scale: HR pixels to an LR pixel, along a side.
        ids: names of the images in order, without suffix where that leaves them different.
        skipped: files that could not be used, by their headers.
        manifest: the manifest, where the data is a cache.
        teacher_seconds_per_pixel: pace of the teacher on these images, in output pixels; None where it did not run.
        read: one example by its index; DtkdError where the image is damaged.
    """

    kind: Kind
    scale: int
    ids: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    manifest: Manifest | None
    teacher_seconds_per_pixel: float | None
    read: Callable[[int], Example]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.ids)

    def __iter__(self) -> Iterator[Example]:
        """Read one image after the other."""
        return (self.read(i) for i in range(len(self)))


def open_examples(data: Path, scale: int | None = None, limit: int | None = None) -> ExampleSet:
    """Look at a data folder or a teacher cache.

    Args:
        data: see the module.
        scale: the scale of the networks; None takes a cache's own, else 4.
        limit: take the first `limit` images only.

    Raises:
        DtkdError: neither of the kinds, empty, or a cache of another scale.
    """
    if (data / "manifest.json").exists() or (data / "plan.json").exists():
        return _open_cache(data, scale, limit)
    hr, lr = (data / "HR").is_dir(), (data / "LR").is_dir()
    if not hr and not lr:
        found = "holds none of them" if data.is_dir() else "does not exist"
        raise DtkdError(f"{data} {found}: expected a folder with HR/ or LR/ (or both), or a teacher cache")
    scale = 4 if scale is None else scale
    if scale < 1:
        raise DtkdError(f"scale must be at least 1, got {scale}")
    kind: Kind = "HR and LR" if hr and lr else "HR" if hr else "LR"
    root = data if kind == "HR and LR" else data / kind
    found = corpus.scan(root, paired=kind == "HR and LR", scale=scale, min_side=scale if hr else 1)
    sources = found.sources[:limit]
    reader = {"HR and LR": _read_pair, "HR": _read_hr, "LR": _read_lr}[kind]
    ids = _short_names([source.id for source in found.sources])
    return ExampleSet(kind, scale, ids[:limit], found.skipped, None, None, lambda i: reader(ids[i], sources[i], scale))


def _read_pair(name: str, source: Source, scale: int) -> Example:
    assert source.lr_path is not None
    hr, lr = images.load_rgb(source.path), images.load_rgb(source.lr_path)
    height, width = lr.shape[0] * scale, lr.shape[1] * scale
    if not (0 <= hr.shape[0] - height < scale and 0 <= hr.shape[1] - width < scale):
        raise DtkdError(
            f"{source.path}: HR must be {scale} times the LR image, expected {width}x{height}, "
            f"got {hr.shape[1]}x{hr.shape[0]}"
        )
    return Example(name, lr, hr[:height, :width])


def _read_hr(name: str, source: Source, scale: int) -> Example:
    hr = images.load_rgb(source.path)
    gt = hr[: hr.shape[0] // scale * scale, : hr.shape[1] // scale * scale]
    return Example(name, degrade(gt, Degradation("bicubic", scale), np.random.default_rng(0)), gt)


def _read_lr(name: str, source: Source, scale: int) -> Example:
    return Example(name, images.load_rgb(source.path), None)


def _open_cache(cache: Path, scale: int | None, limit: int | None) -> ExampleSet:
    from student.stream import open_cache

    manifest = shards.load_manifest(cache)
    if scale not in (None, manifest.scale):
        raise DtkdError(f"{cache} is a cache of scale {manifest.scale}, the networks have scale {scale}")
    held_out = open_cache(cache, split="val")
    if not len(held_out):
        raise DtkdError(f"{cache} holds no held-out samples: make a cache with --hold-out 2 or more")
    metas = [held_out.meta(i) for i in range(len(held_out))]
    ids = _short_names([meta["source"] for meta in metas])

    def read(i: int) -> Example:
        item = held_out[i]
        return Example(ids[i], item.lr, item.gt, item.teacher)

    return ExampleSet("cache", manifest.scale, ids[:limit], (), manifest, _teacher_pace(manifest, metas), read)


def _short_names(paths: Sequence[str]) -> tuple[str, ...]:
    """Paths without their suffixes; with them where two would be the same."""
    stems = [Path(path).with_suffix("").as_posix() for path in paths]
    count = Counter(stems)
    names = [path if count[stem] > 1 else stem for path, stem in zip(paths, stems, strict=True)]
    return tuple(names if len(set(names)) == len(names) else paths)  # a.png, a.jpg, and a third one called a.jpg.png


def _teacher_pace(manifest: Manifest, metas: list[dict[str, Any]]) -> float | None:
    """Held-out samples go through the teacher one by one, so their shards' clock is the time of one image.

    Seconds for an HR pixel; the LR pixels around a sample, which the teacher sees too, are part of its price.
    """
    held_out = [shard for shard in manifest.shards if shard.split == "val"]
    if sum(shard.teacher_images for shard in held_out) != len(metas):
        return None
    return sum(shard.teacher_seconds for shard in held_out) / sum(meta["width"] * meta["height"] for meta in metas)
