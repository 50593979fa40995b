"""Making samples: cut tiles from photos, run the teacher on a micro-batch, encode. Failures become part of the result.

`outcomes` has all of that go on at once: threads cut and degrade what the teacher will need, and encode what it made.

B micro-batch, h w height and width of an LR image, s scale, c context.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from pipeline import images
from pipeline.corpus import Source
from pipeline.degradation import Degradation
from pipeline.fidelity import colour_drift
from pipeline.images import RecentImages, Rgb
from pipeline.schema import AROUND, TEACHERS, SampleError, canonical_json, sample_seed
from pipeline.system.errors import DtkdError
from pipeline.teacher import Place, Teacher
from teacher_cache.building import crops
from teacher_cache.building.crops import Tile, TileImages
from teacher_cache.building.plan import PlannedSample
from teacher_cache.building.writer import Adoptable, Outcome

_DEVICE_TROUBLE = ("cuda", "hip error", "mps backend", "out of memory", "can't allocate memory")


class Request(NamedTuple):
    """What the teacher is asked for one sample."""

    lr: Rgb
    """(h + 2 c, w + 2 c, 3): the LR image with c pixels of context on every side."""
    seed: int
    place: Place
    """Of the LR image without its context."""


class Restored(NamedTuple):
    """What the teacher made of a micro-batch."""

    outputs: list[tuple[Rgb | SampleError, ...]]
    """Of each sample."""
    cost: float
    """Seconds of the teacher a sample; 0 where nothing is computed."""


def place_of(tile: Tile, photo_width: int, photo_height: int) -> Place:
    """Where a tile lies in its photo, as teachers are told."""
    return Place(tile.source, photo_width, photo_height, tile.x, tile.y, tile.width, tile.height)


class Photos:
    """The decoded photos of a corpus."""

    def __init__(self, sources: Mapping[str, Source]) -> None:
        """Take the sources by id."""
        self._sources = sources
        self._recent = RecentImages(self._load, lambda photo: photo[0][..., 0].size)

    def images(self, source_id: str) -> tuple[Rgb, Rgb | None]:
        """HR photo, and LR photo of a paired corpus."""
        return self._recent.get(source_id)

    def place(self, tile: Tile) -> Place:
        """Where a tile lies in its photo."""
        source = self._sources[tile.source]
        return place_of(tile, source.width, source.height)

    def _load(self, source_id: str) -> tuple[Rgb, Rgb | None]:
        return crops.load_source(self._sources[source_id])


@dataclass(frozen=True)
class SampleMaker:
    """Makes the samples of a run; `cut` and `encode` may run in threads while `restore` keeps the teacher busy."""

    photos: Photos
    teacher: Teacher
    degradation: Degradation
    seed: int  # of the run
    context: int = 0
    """LR pixels around a tile that the teacher sees."""
    outputs: int = 1
    """Of the teacher for each tile."""

    def cut(self, sample: PlannedSample) -> TileImages | SampleError:
        """Load, cut and degrade; a failure takes the sample's place."""
        stage = "load"
        try:
            hr, lr = self.photos.images(sample.tile.source)
            stage = "degrade"
            return crops.cut_tile(hr, lr, sample.tile, self.degradation, self.seed, self.context)
        except Exception as error:
            return failure(error, stage)

    def restore(
        self, samples: Sequence[PlannedSample], cuts: Sequence[TileImages | SampleError], batch: int
    ) -> "Restored":
        """Run the teacher on a micro-batch, as far as it could be cut; every sample gets its outputs, in order."""
        assert len(samples) <= batch
        began = time.perf_counter()
        # One call for each output, so that batches have the shape, and the first outputs the bytes, of a single one's.
        restored = zip(*(self._restore(samples, cuts, batch, name) for name in TEACHERS[: self.outputs]), strict=True)
        cost = time.perf_counter() - began if self.teacher.steps else 0.0
        cost /= max(sum(isinstance(cut, TileImages) for cut in cuts), 1)
        return Restored(list(restored), cost)

    def encode(
        self,
        sample: PlannedSample,
        cut: TileImages | SampleError,
        restored: Sequence[Rgb | SampleError],
        cost: float,
    ) -> Outcome:
        """What is stored of a sample with these outputs of the teacher; `cost` is its seconds for them."""
        if isinstance(cut, SampleError):
            return Outcome(sample.key, error=cut)
        outputs = [picture for picture in restored if not isinstance(picture, SampleError)]
        error = next((picture for picture in restored if isinstance(picture, SampleError)), None)
        if error is not None:
            return Outcome(sample.key, error=error)
        try:
            drift = round(colour_drift(outputs[0], cut.lr), 4)
            pictures = {"lr": cut.lr, "gt": cut.gt, **dict(zip(TEACHERS, outputs, strict=False))}
            if self.context:
                pictures[AROUND] = cut.around
            members = {name: images.encode_webp(np.ascontiguousarray(image)) for name, image in pictures.items()}
            members["json"] = canonical_json(self._description(sample, drift)).encode()
        except Exception as error:
            return Outcome(sample.key, error=failure(error, "encode"))
        return Outcome(sample.key, members, drift=drift, seconds=cost)

    def _restore(
        self, samples: Sequence[PlannedSample], cuts: Sequence[TileImages | SampleError], batch: int, purpose: str
    ) -> list[Rgb | SampleError]:
        good = [(sample, cut) for sample, cut in zip(samples, cuts, strict=True) if isinstance(cut, TileImages)]
        if not good:
            return [cut for cut in cuts if isinstance(cut, SampleError)]
        requests = []
        for sample, cut in zip(samples, cuts, strict=True):
            # A failed sample's place is filled, so that the others keep theirs: same batch, same bytes, whoever fails.
            shown, images_shown = (sample, cut) if isinstance(cut, TileImages) else good[0]
            seed = sample_seed(self.seed, sample.key, purpose)
            requests.append(Request(images_shown.around, seed, self.photos.place(shown.tile)))
        return restore(self.teacher, requests, batch, self.context)

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


def outcomes(
    maker: SampleMaker, batches: Iterable[Sequence[PlannedSample]], size: int, adoptable: Adoptable, threads: int
) -> Generator[list[Outcome]]:
    """The outcome of every sample, one micro-batch of up to `size` at a time, in order.

    The teacher runs in the caller's thread; meanwhile `threads` others cut and degrade the next samples and encode the
    last ones. No more is begun than keeps them busy, so memory does not grow. Closing waits for what they have in hand.

    A micro-batch is taken over from an earlier attempt whole or not at all, so that the teacher always gets the same
    images together and the bytes cannot depend on where that attempt ended.
    """
    ahead = 1 + threads // size  # micro-batches
    pool = ThreadPoolExecutor(threads, "samples")

    def begin(batch: Sequence[PlannedSample]) -> _Begun:
        found = [adoptable.outcome(sample.key) for sample in batch]
        adopted = [outcome for outcome in found if outcome is not None]
        if len(adopted) == len(batch):
            return _Begun(batch, adopted, [])
        return _Begun(batch, [], [pool.submit(maker.cut, sample) for sample in batch])

    def teach(begun: _Begun) -> list[Future[Outcome]]:
        if begun.adopted:
            return [_finished(outcome) for outcome in begun.adopted]
        cuts = [cut.result() for cut in begun.cuts]
        restored, cost = maker.restore(begun.samples, cuts, size)
        return [pool.submit(maker.encode, *one, cost) for one in zip(begun.samples, cuts, restored, strict=True)]

    try:
        taught = map(teach, _ahead(map(begin, batches), ahead))
        for encoded in _behind(taught, ahead, lambda encoded: all(outcome.done() for outcome in encoded)):
            yield [outcome.result() for outcome in encoded]
    finally:
        pool.shutdown(cancel_futures=True)


class _Begun(NamedTuple):
    """A micro-batch on its way to the teacher."""

    samples: Sequence[PlannedSample]
    adopted: list[Outcome]
    """Of all samples, or nothing."""
    cuts: list[Future[TileImages | SampleError]]
    """Of all samples that are not adopted."""


_Item = TypeVar("_Item")


def _ahead(items: Iterable[_Item], count: int) -> Iterator[_Item]:
    """The items, each asked for when `count` others have still to be used: what it begins goes on until its turn."""
    waiting: deque[_Item] = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > count:
            yield waiting.popleft()
    yield from waiting


def _behind(items: Iterable[_Item], count: int, ready: Callable[[_Item], bool]) -> Iterator[_Item]:
    """The items, each as soon as it is ready or `count` others are waiting behind it.

    Where no next item can be had, by an exception or Ctrl-C, the waiting ones come first: what was made is not lost.
    """
    waiting: deque[_Item] = deque()
    source, trouble = iter(items), None
    while trouble is None:
        try:
            waiting.append(next(source))
        except StopIteration:
            break
        except BaseException as error:
            trouble = error
        while waiting and (len(waiting) > count or ready(waiting[0])):
            yield waiting.popleft()
    yield from waiting
    if trouble is not None:
        raise trouble


def _finished(outcome: Outcome) -> Future[Outcome]:
    future: Future[Outcome] = Future()
    future.set_result(outcome)
    return future


def restore(teacher: Teacher, requests: Sequence[Request], batch: int, context: int = 0) -> list[Rgb | SampleError]:
    """Run the teacher on LR images of one size; an image that it fails on gives an error in its place.

    The pictures are (s h, s w, 3): of the surroundings, `context` pixels of the LR image, nothing is left. The teacher
    always sees `batch` images, the last one repeated: the shape of a batch changes how floats are rounded.
    """
    try:
        return _restore_batch(teacher, requests, batch, context)
    except Exception as error:
        if len(requests) == 1:
            return [failure(error, "teacher")]
        _raise_if_fatal(error)
    return [restore(teacher, [request], batch, context)[0] for request in requests]


def _restore_batch(teacher: Teacher, requests: Sequence[Request], batch: int, context: int) -> list[Rgb | SampleError]:
    lrs, seeds, places = zip(*requests, *[requests[-1]] * (batch - len(requests)), strict=True)
    x = torch.stack([images.to_tensor(lr) for lr in lrs])  # (B, 3, h + 2 c, w + 2 c)
    with torch.inference_mode():
        y = teacher.restore_at(x, seeds, places).float().cpu()  # (B, 3, s (h + 2 c), s (w + 2 c))
    expected = (batch, 3, *(side * teacher.scale for side in x.shape[2:]))
    if tuple(y.shape) != expected:
        raise DtkdError(f"the teacher must return {expected} for {tuple(x.shape)}, got {tuple(y.shape)}")
    bad = SampleError("teacher", "NotFinite", "the teacher's output has NaN or infinite values")
    margin = context * teacher.scale
    pictures = y[: len(requests)]
    return [crops.inside(images.to_image(image), margin) if image.isfinite().all() else bad for image in pictures]


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
