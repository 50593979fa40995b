"""Making samples: cut tiles from photos, run the teacher on a micro-batch, encode. Failures become part of the result.

B micro-batch, h w height and width of an LR image, s scale, c context.
"""

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import images
from pipeline.corpus import Source
from pipeline.degradation import Degradation
from pipeline.schema import AROUND, SampleError, canonical_json, sample_seed
from pipeline.system.errors import DtkdError
from teacher_cache.building import crops
from teacher_cache.building.crops import Tile
from teacher_cache.building.plan import PlannedSample
from teacher_cache.building.writer import Outcome
from teacher_cache.teachers import ImportedTeacher, Teacher

Image = NDArray[np.uint8]
PHOTO_PIXELS = 2**26
"""Pixels (3 bytes each) of decoded photos that are kept, because several tiles of a shard may be of one photo."""
_DEVICE_TROUBLE = ("cuda", "hip error", "mps backend", "out of memory", "can't allocate memory")
_NOT_YET = SampleError("teacher", "NotRun", "the teacher did not run")


@dataclass(frozen=True)
class Cut:
    """The images of a sample before the teacher ran."""

    lr: Image  # (h, w, 3)
    around: Image  # (h + 2 c, w + 2 c, 3): the LR image with c pixels of context on every side, for the teacher
    gt: Image  # (s h, s w, 3)
    imported: Image | SampleError  # (s h, s w, 3) where the teacher's picture was made elsewhere


@dataclass
class Photos:
    """The photos used last, decoded."""

    sources: Mapping[str, Source]
    kept: OrderedDict[Path | str, tuple[Image, Image | None]] = field(default_factory=OrderedDict)

    def source(self, source_id: str) -> tuple[Image, Image | None]:
        """HR photo, and LR photo of a paired corpus."""
        if source_id not in self.kept:
            self._keep(source_id, crops.load_source(self.sources[source_id]))
        self.kept.move_to_end(source_id)
        return self.kept[source_id]

    def picture(self, path: Path) -> Image:
        """A picture that an imported teacher made."""
        if path not in self.kept:
            self._keep(path, (images.load_rgb(path), None))
        self.kept.move_to_end(path)
        return self.kept[path][0]

    def _keep(self, name: Path | str, entry: tuple[Image, Image | None]) -> None:
        self.kept[name] = entry
        while len(self.kept) > 1 and sum(hr[..., 0].size for hr, _ in self.kept.values()) > PHOTO_PIXELS:
            self.kept.popitem(last=False)


@dataclass(frozen=True)
class SampleMaker:
    """Makes the samples of a run; `cut` may run in a thread while `finish` keeps the teacher busy in another."""

    photos: Photos
    teacher: Teacher | ImportedTeacher
    degradation: Degradation
    seed: int  # of the run
    context: int = 0
    """LR pixels around a tile that the teacher sees."""

    def cut(self, samples: Sequence[PlannedSample]) -> list[Cut | SampleError]:
        """Load, cut and degrade; a failure takes the sample's place."""
        return [self._cut(sample) for sample in samples]

    def finish(self, samples: Sequence[PlannedSample], cuts: Sequence[Cut | SampleError], batch: int) -> list[Outcome]:
        """Run the teacher on what could be cut and encode it; every sample gets an outcome, in the same order."""
        assert len(samples) <= batch
        began = time.perf_counter()
        restored = self._restore(samples, cuts, batch)
        cost = 0.0 if isinstance(self.teacher, ImportedTeacher) else time.perf_counter() - began
        cost /= max(sum(isinstance(cut, Cut) for cut in cuts), 1)
        return [self.encode(s, c, r, cost) for s, c, r in zip(samples, cuts, restored, strict=True)]

    def encode(
        self, sample: PlannedSample, cut: Cut | SampleError, teacher: Image | SampleError, cost: float
    ) -> Outcome:
        """What is stored of a sample; `cost` is the teacher's seconds for it."""
        if isinstance(cut, SampleError):
            return Outcome(sample.key, error=cut)
        if isinstance(teacher, SampleError):
            return Outcome(sample.key, error=teacher)
        try:
            drift = round(colour_drift(teacher, cut.lr), 4)
            pictures = {"lr": cut.lr, "gt": cut.gt, "teacher": teacher}
            if self.context:
                pictures[AROUND] = cut.around
            members = {name: images.encode_webp(np.ascontiguousarray(image)) for name, image in pictures.items()}
            members["json"] = canonical_json(self._description(sample, drift)).encode()
        except Exception as error:
            return Outcome(sample.key, error=failure(error, "encode"))
        return Outcome(sample.key, members, drift=drift, seconds=cost)

    def _cut(self, sample: PlannedSample) -> Cut | SampleError:
        stage = "load"
        try:
            hr, lr = self.photos.source(sample.tile.source)
            stage = "degrade"
            pair = crops.cut_pair(hr, lr, sample.tile, self.degradation, self.seed, self.context)
            stage = "teacher"
            if isinstance(self.teacher, ImportedTeacher):
                return Cut(pair.lr, pair.around, pair.gt, self._import(self.teacher, sample.tile, hr))
            return Cut(pair.lr, pair.around, pair.gt, _NOT_YET)
        except Exception as error:
            return failure(error, stage)

    def _import(self, teacher: ImportedTeacher, tile: Tile, hr: Image) -> Image:
        path = teacher.lookup(tile.source)
        picture = self.photos.picture(path)
        if picture.shape != hr.shape:
            raise DtkdError(f"{path.name} must be as large as the photo, {_size(hr)}, got {_size(picture)}")
        return picture[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width]

    def _restore(
        self, samples: Sequence[PlannedSample], cuts: Sequence[Cut | SampleError], batch: int
    ) -> list[Image | SampleError]:
        good = [cut for cut in cuts if isinstance(cut, Cut)]
        if not good or isinstance(self.teacher, ImportedTeacher):
            return [cut if isinstance(cut, SampleError) else cut.imported for cut in cuts]
        # A failed sample's place is filled, so that the others keep theirs: same batch, same bytes, whoever fails.
        lrs = [cut.around if isinstance(cut, Cut) else good[0].around for cut in cuts]
        seeds = [sample_seed(self.seed, sample.key, "teacher") for sample in samples]
        return restore(self.teacher, lrs, seeds, batch, self.context)

    def _description(self, sample: PlannedSample, drift: float) -> dict[str, object]:
        tile = sample.tile
        return {
            "key": sample.key,
            "source": tile.source,
            "x": tile.x,
            "y": tile.y,
            "width": tile.width,
            "height": tile.height,
            "split": tile.split,
            "scale": self.degradation.scale,
            "degradation": self.degradation.kind,
            "seed": self.seed,
            "drift": drift,
        }


def restore(
    teacher: Teacher, lrs: Sequence[Image], seeds: Sequence[int], batch: int, context: int = 0
) -> list[Image | SampleError]:
    """Run the teacher on LR images of one size; an image that it fails on gives an error in its place.

    The images are (h + 2 context, w + 2 context, 3), the pictures (s h, s w, 3): the surroundings are cut off. The
    teacher always sees `batch` images, the last one repeated: the shape of a batch changes how floats are rounded.
    """
    try:
        return _restore_batch(teacher, lrs, seeds, batch, context)
    except Exception as error:
        if len(lrs) == 1:
            return [failure(error, "teacher")]
        _raise_if_fatal(error)
    return [restore(teacher, [lr], [seed], batch, context)[0] for lr, seed in zip(lrs, seeds, strict=True)]


def _restore_batch(
    teacher: Teacher, lrs: Sequence[Image], seeds: Sequence[int], batch: int, context: int
) -> list[Image | SampleError]:
    filler = batch - len(lrs)
    x = torch.stack([images.to_tensor(lr) for lr in (*lrs, *[lrs[-1]] * filler)])  # (B, 3, h + 2 c, w + 2 c)
    with torch.inference_mode():
        y = teacher.restore(x, [*seeds, *[seeds[-1]] * filler]).float().cpu()  # (B, 3, s (h + 2 c), s (w + 2 c))
    expected = (batch, 3, *(side * teacher.scale for side in x.shape[2:]))
    if tuple(y.shape) != expected:
        raise DtkdError(f"the teacher must return {expected} for {tuple(x.shape)}, got {tuple(y.shape)}")
    bad = SampleError("teacher", "NotFinite", "the teacher's output has NaN or infinite values")
    margin = context * teacher.scale
    return [crops.inside(images.to_image(image), margin) if image.isfinite().all() else bad for image in y[: len(lrs)]]


def colour_drift(teacher: Image, lr: Image) -> float:
    """Mean |block mean of the teacher's image - LR image|, 8-bit levels, over all pixels and channels of the LR image.

    At scale 4 the mean of a 4x4 block is a quarter of the two-level Haar transform's LL2.
    """
    h, w = lr.shape[:2]
    s = teacher.shape[0] // h
    sums = teacher.reshape(h, s, w, s, 3).sum(axis=(1, 3), dtype=np.int64)  # (h, w, 3)
    return float(np.abs(sums - lr.astype(np.int64) * (s * s)).sum()) / (s * s * lr.size)


class DeviceError(DtkdError):
    """The teacher's device or the memory gave out: every following sample would fail, too, so the shard must stop."""


def failure(error: Exception, stage: str) -> SampleError:
    """What a done record says of a failed sample; trouble that is not the sample's own is raised (`DeviceError`)."""
    _raise_if_fatal(error)
    return SampleError(stage, type(error).__name__, _first_line(error))


def _raise_if_fatal(error: Exception) -> None:
    text = str(error).lower()
    device = isinstance(error, RuntimeError) and any(word in text for word in _DEVICE_TROUBLE)
    if isinstance(error, (MemoryError, DeviceError)) or device:
        raise DeviceError(_first_line(error) or "out of memory") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")[:300]


def _size(image: Image) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
