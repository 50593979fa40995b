"""Streaming training batches from a teacher cache (schema 1).

B batch, h w LR patch sides, H W = scale * h, scale * w.

Everything random is a function of integers: the order of the samples of (seed, epoch), a sample's crop and flip of
(seed, epoch, position), and the samples of a step of (seed, step, global batch size). Of K outputs of the teacher for a
tile (`DataSettings.samples`), epoch e takes number e mod K. A run is resumed at any step by asking for that step, also
with another number of ranks or workers: the global batch is what is planned, ranks take slices of it.
"""

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

from pipeline.images import Rgb
from pipeline.schema import TEACHERS
from pipeline.storage.fetched import FetchAhead, LocalFolder
from pipeline.system.errors import DtkdError
from pipeline.system.words import plural
from pipeline.training.readers import Marks, read_ahead
from student.dataset import CacheDataset, open_cache

__all__ = ["Batch", "CacheDataset", "DataSettings", "batches", "open_cache"]


@dataclass(frozen=True)
class DataSettings:
    """How the cache is read; TOML section [data]."""

    workers: int = 2
    """Processes that read and decode beside the training, at most one a core; 0: the training process does it.
    Results do not depend on it."""
    stall_seconds: int = 300
    """Seconds that the training waits for a batch of its readers before it ends with an error; 0: without an end."""
    window: int = 16
    """Shards whose samples are shuffled together; the order of the shards is shuffled over the whole cache."""
    samples: int = 0
    """Outputs of each tile that training takes in turn, the first ones that the cache holds; 0: all."""
    val: str = ""
    """Folder or cache to validate on, as `dtkd evaluate --data` takes it; empty: the cache's own held-out samples."""
    local_folder: str = ""
    """Where the shards of a cache at a URL are kept while they are in use; empty: dtkd in the user's cache folder."""
    local_gigabytes: float = 50.0
    """Most that they take there, of all caches together: room for two windows of shards, or some come twice."""

    def __post_init__(self) -> None:
        """Refuse values that no run can have."""
        if self.workers < 0:
            raise DtkdError(f"data.workers must not be negative, got {self.workers}")
        if self.stall_seconds < 0:
            raise DtkdError(f"data.stall_seconds must not be negative, got {self.stall_seconds}")
        if self.window < 1:
            raise DtkdError(f"data.window must be at least 1 shard, got {self.window}")
        if self.local_gigabytes <= 0:
            raise DtkdError(f"data.local_gigabytes must be above 0, got {self.local_gigabytes}")
        if not 0 <= self.samples <= len(TEACHERS):
            raise DtkdError(f"data.samples must be 0 to {len(TEACHERS)}, got {self.samples}")

    @property
    def local(self) -> LocalFolder:
        """Room for the shards of a remote cache."""
        return LocalFolder(self.local_folder, self.local_gigabytes)


class Batch(NamedTuple):
    """Patches of one step, float32 in [0, 1]."""

    lr: Tensor  # (B, 3, h, w)
    gt: Tensor  # (B, 3, H, W)
    teacher: Tensor  # (B, 3, H, W)
    keys: list[str]


class Draw(NamedTuple):
    """Which sample stands at a position of an epoch; (epoch, position) also decides its crop and flip."""

    epoch: int
    position: int
    sample: int  # index in the dataset


def batches(
    dataset: CacheDataset,
    settings: DataSettings,
    *,
    seed: int,
    steps: range,
    batch_size: int,
    patch: int,
    rank: int = 0,
    world: int = 1,
    device: torch.device | str = "cpu",
) -> Generator[Batch, None, None]:
    """Yield this rank's batch of each of `steps`; to be closed where it may be left early, so that its readers end.

    Args:
        dataset: training samples.
        settings: readers, and how many of a tile's outputs to take.
        seed: of the order, the crops and the flips.
        steps: global step numbers, for example range(resumed_step, total).
        batch_size: global, over all ranks.
        patch: LR pixels.
        rank: this process.
        world: number of processes.
        device: where the tensors go.

    Raises:
        DtkdError: nothing to train on, ranks that do not divide the batch, a patch larger than the tiles, damage,
            readers that stall.
    """
    refuse_misfits(dataset, settings, batch_size, patch, world)
    device = torch.device(device)
    plan = _RankPlan(dataset.shard_of, settings.window, seed, steps, batch_size, rank, world)
    patches = _Patches(dataset, patch, seed, settings.samples or dataset.outputs, Marks(settings.workers))
    raws = read_ahead(
        patches, plan, workers=settings.workers, device=device, stall_seconds=settings.stall_seconds, at=patches.at
    )
    with FetchAhead(dataset.fetched) as fetch:
        for step, raw in zip(steps, raws, strict=False):
            fetch.expect({dataset.shard(sample) for sample in plan.ahead(step)} if dataset.fetched else set())
            lr, gt, teacher = (tensor.to(device, non_blocking=True).float().div_(255) for tensor in raw[:3])
            yield Batch(lr, gt, teacher, raw[3])


def epoch_order(shard_of: NDArray[np.int32], window: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Order of an epoch: every index once; shards permuted, samples shuffled within each `window` of shards.

    Args:
        shard_of: shard number of each sample, ascending.
        window: shards that are shuffled together; a reader has about this many open.
        seed: run's seed.
        epoch: number of the epoch.
    """
    rng = np.random.default_rng([seed, epoch])
    members = np.split(np.arange(len(shard_of)), np.flatnonzero(np.diff(shard_of)) + 1)
    shards = rng.permutation(len(members))
    groups = [shards[i : i + window] for i in range(0, len(shards), window)]
    return np.concatenate([rng.permutation(np.concatenate([members[s] for s in group])) for group in groups])


def crop_and_flip(images: tuple[Rgb, Rgb, Rgb], patch: int, scale: int, rng: np.random.Generator) -> list[Rgb]:
    """Cut the same random patch (`patch` LR pixels) out of LR, GT and teacher, in one of the 8 orientations."""
    height, width = images[0].shape[:2]
    top, left = int(rng.integers(height - patch + 1)), int(rng.integers(width - patch + 1))
    flip_rows, flip_columns, transpose = rng.integers(2, size=3).tolist()
    patches = []
    for image, factor in zip(images, (1, scale, scale), strict=True):
        cut = image[top * factor : (top + patch) * factor, left * factor : (left + patch) * factor]
        cut = cut[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
        patches.append(cut.swapaxes(0, 1) if transpose else cut)
    return patches


class _RankPlan(Sampler[list[Draw]]):
    """One rank's slice of every step's global batch.

    Epochs follow each other without a gap: step s takes the places s * batch .. (s + 1) * batch - 1 of their sequence.
    """

    def __init__(
        self, shard_of: NDArray[np.int32], window: int, seed: int, steps: range, batch: int, rank: int, world: int
    ) -> None:
        self._samples, self._steps, self._batch = len(shard_of), steps, batch
        self._window = max(window * len(shard_of) // max(len(np.unique(shard_of)), 1), 1)  # its samples, about
        share = batch // world
        self._slice = range(rank * share, (rank + 1) * share)
        self._order = lru_cache(maxsize=2)(lambda epoch: epoch_order(shard_of, window, seed, epoch))

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in self._steps:
            places = (divmod(step * self._batch + k, self._samples) for k in self._slice)
            yield [Draw(epoch, position, int(self._order(epoch)[position])) for epoch, position in places]

    def __len__(self) -> int:
        return len(self._steps)

    def ahead(self, step: int) -> NDArray[np.int64]:
        """Samples of the places behind a step, as many as a window of shards holds, in this epoch and the next one."""
        epoch, position = divmod((step + 1) * self._batch, self._samples)
        here = self._order(epoch)[position : position + self._window]
        return np.concatenate([here, self._order(epoch + 1)[: self._window - len(here)]])


class _Patches:
    """Draws to patches, in the readers, which mark the sample that they are at."""

    def __init__(self, dataset: CacheDataset, patch: int, seed: int, outputs: int, marks: Marks) -> None:
        self._dataset, self._patch, self._seed, self._outputs = dataset, patch, seed, outputs
        self._marks = marks

    def __call__(self, draws: list[Draw]) -> tuple[Tensor, Tensor, Tensor, list[str]]:
        triples = [self._triple(draw) for draw in draws]
        lr, gt, teacher = (
            torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy()) for images in zip(*triples, strict=True)
        )
        return lr, gt, teacher, [self._dataset.key(draw.sample) for draw in draws]

    def at(self, reader: int) -> str:
        """Where a reader is, for people."""
        sample = self._marks.of(reader)
        return "no sample yet" if sample is None else self._dataset.where(sample)

    def _triple(self, draw: Draw) -> list[Rgb]:
        self._marks.put(draw.sample)
        images = self._dataset.images(draw.sample, draw.epoch % self._outputs)
        rng = np.random.default_rng([self._seed, draw.epoch, draw.position, 1])
        return crop_and_flip(images, self._patch, self._dataset.scale, rng)


def refuse_misfits(
    dataset: CacheDataset, settings: DataSettings, batch_size: int, patch: int, world: int, parts: int = 1
) -> None:
    """Refuse batches that `batches` cannot make, or that are not to be had in so many parts, before anything is begun.

    Raises:
        DtkdError: nothing to train on, fewer outputs of a tile than asked for, ranks and parts that do not divide the
            batch, or a patch larger than the tiles.
    """
    if not len(dataset):
        raise DtkdError(f"{dataset.cache} has no training samples: every image was held out or failed")
    if settings.samples > dataset.outputs:
        held = f"{dataset.cache} holds {plural(dataset.outputs, 'output')} of each tile"
        raise DtkdError(f"data.samples is {settings.samples}, but {held}: make one with --samples {settings.samples}")
    if batch_size % (world * parts):
        factors = [f"{world} processes"] * (world > 1) + [f"train.accumulate={parts}"] * (parts > 1)
        needed = f"train.batch_size must be divisible by {world * parts} ({' times '.join(factors)}), got {batch_size}"
        raise DtkdError(f"{needed}: set train.batch_size={math.ceil(batch_size / (world * parts)) * world * parts}")
    if patch * dataset.scale > dataset.tile:
        raise DtkdError(
            f"train.patch must be at most {dataset.tile // dataset.scale} LR pixels for this cache's tiles of "
            f"{dataset.tile} HR pixels, got {patch}"
        )
