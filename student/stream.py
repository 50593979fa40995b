"""Streaming training batches from a teacher cache (schema 1).

B batch, h w LR patch sides, H W = scale * h, scale * w.

Everything random is a function of integers: the order of the samples of (seed, epoch), a sample's crop and flip of
(seed, epoch, position), and the samples of a step of (seed, step, global batch size). Of K outputs of the teacher for a
tile (`DataSettings.samples`), epoch e takes number e mod K. A run is resumed at any step by asking for that step, also
with another number of ranks or workers: the global batch is what is planned, ranks take slices of it.
"""

import json
import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from pipeline.images import Rgb, decode_webp
from pipeline.schema import AROUND, MEMBERS, TEACHERS, Manifest, Member, Split, digest
from pipeline.shards import DamagedShardError, load_manifest, read_member, shard_path
from pipeline.system.errors import DtkdError
from pipeline.system.words import plural
from pipeline.training.readers import read_ahead

OPEN_TARS = 32  # file descriptors that a process keeps open


@dataclass(frozen=True)
class DataSettings:
    """How the cache is read; TOML section [data]."""

    workers: int = 2
    """Processes that read and decode beside the training, at most one a core; 0: the training process does it.
    Results do not depend on it."""
    window: int = 16
    """Shards whose samples are shuffled together; the order of the shards is shuffled over the whole cache."""
    samples: int = 0
    """Outputs of each tile that training takes in turn, the first ones that the cache holds; 0: all."""

    def __post_init__(self) -> None:
        """Refuse values that no run can have."""
        if self.workers < 0:
            raise DtkdError(f"data.workers must not be negative, got {self.workers}")
        if self.window < 1:
            raise DtkdError(f"data.window must be at least 1 shard, got {self.window}")
        if not 0 <= self.samples <= len(TEACHERS):
            raise DtkdError(f"data.samples must be 0 to {len(TEACHERS)}, got {self.samples}")


class Item(NamedTuple):
    """One sample of a cache, whole."""

    key: str
    lr: Rgb  # (h, w, 3)
    gt: Rgb  # (H, W, 3)
    teacher: Rgb  # (H, W, 3)
    meta: dict[str, Any]  # the sample's JSON member: source, x, y, width, height, ...


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


class ShardFiles:
    """Members of local tars, through a bounded number of open descriptors.

    Reads are `pread`s, so a fork may go on with the descriptors of its parent; pickling (spawn) leaves them behind. A
    remote cache needs another class with this `read`, which first fetches the whole shard into a bounded local folder.
    """

    def __init__(self, cache: Path) -> None:
        """Nothing is opened before the first read."""
        self._cache = cache
        self._open: OrderedDict[str, int] = OrderedDict()

    def read(self, shard: str, member: Member) -> bytes:
        """Bytes of a member, checked against their CRC."""
        return read_member(self._descriptor(shard), member)

    def _descriptor(self, shard: str) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        try:
            descriptor = os.open(shard_path(self._cache, shard), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DamagedShardError(f"cannot open it ({error.strerror}); `dtkd verify` lists the damage") from error
        self._open[shard] = descriptor
        if len(self._open) > OPEN_TARS:
            os.close(self._open.popitem(last=False)[1])
        return descriptor

    def close(self) -> None:
        """Close every descriptor."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        """Descriptors do not travel to another process."""
        return {"_cache": self._cache, "_open": OrderedDict()}

    def __del__(self) -> None:
        """Close what is still open."""
        self.close()


class CacheDataset(Dataset[Item]):
    """Samples of one split of a finished cache, in the order of its plan; `dataset[i]` reads one.

    The index is held in arrays (about 100 bytes a sample, 24 more for each further output), which worker processes
    share with their parent.
    """

    def __init__(self, cache: Path, split: Split = "train") -> None:
        """Read the manifest; see `open_cache`."""
        manifest = load_manifest(cache)
        self.cache, self.scale, self.tile = Path(cache), manifest.scale, manifest.tile
        self.teacher, self.outputs = manifest.teacher, manifest.outputs
        self._members = (*MEMBERS, "json", *TEACHERS[1 : self.outputs])
        self._names = [shard.name for shard in manifest.shards if shard.split == split]
        self._fill_index(manifest, split)
        self._files = ShardFiles(self.cache)

    def _fill_index(self, manifest: Manifest, split: Split) -> None:
        number = {name: i for i, name in enumerate(self._names)}
        rows = list(manifest.samples(split))
        places = [[s.members[name] for name in self._members] for _, s in rows]
        self._keys = np.array([s.key for _, s in rows], dtype=np.bytes_)
        self.shard_of = np.array([number[shard.name] for shard, _ in rows], dtype=np.int32)
        self._places = np.array([[(p.offset, p.size, p.crc32) for p in row] for row in places], dtype=np.int64)
        around = [s.members.get(AROUND) for _, s in rows]
        self._around = np.array([(p.offset, p.size, p.crc32) if p else (0, 0, 0) for p in around], dtype=np.int64)

    def __len__(self) -> int:
        """Samples that have bytes (planned ones that failed are left out)."""
        return len(self._keys)

    def __getitem__(self, index: int) -> Item:
        """Read a sample.

        Raises:
            DamagedShardError: its bytes are not those that were recorded; names the shard and the key.
        """
        return Item(self.key(index), *self.images(index), self.meta(index))

    def meta(self, index: int) -> dict[str, Any]:
        """Description of a sample, without its pictures; raises as `dataset[i]` does."""
        return json.loads(self._read(index, "json"))

    def key(self, index: int) -> str:
        """Key of a sample."""
        return self._keys[index].decode()

    def images(self, index: int, output: int = 0) -> tuple[Rgb, Rgb, Rgb]:
        """LR, GT and teacher image of a sample, of the teacher's the given `output`; raises as `dataset[i]` does."""
        lr, gt, teacher = (decode_webp(self._read(index, name)) for name in ("lr", "gt", TEACHERS[output]))
        expected = (lr.shape[0] * self.scale, lr.shape[1] * self.scale, 3)
        if gt.shape != expected or teacher.shape != expected:
            raise DamagedShardError(
                f"{self._where(index)}: gt {gt.shape} and teacher {teacher.shape} must be {expected} for lr {lr.shape}"
            )
        return lr, gt, teacher

    def seen_by_teacher(self, index: int) -> Rgb:
        """LR image of a sample with the surroundings that its teacher saw, (h + 2 c, w + 2 c, 3); raises as above."""
        if not self._around[index, 1]:
            return decode_webp(self._read(index, "lr"))
        return decode_webp(self._bytes(index, self._around[index], AROUND))

    def fingerprint(self) -> str:
        """Identity of the samples and their bytes, wherever the cache lies."""
        return digest([[self.key(i), self._places[i, :, 2].tolist()] for i in range(len(self))])

    def _read(self, index: int, name: str) -> bytes:
        return self._bytes(index, self._places[index, self._members.index(name)], name)

    def _bytes(self, index: int, place: NDArray[np.int64], name: str) -> bytes:
        try:
            return self._files.read(self._names[self.shard_of[index]], Member(*place.tolist()))
        except DamagedShardError as error:
            raise DamagedShardError(f"{self._where(index)}, {name}: {error}") from error

    def _where(self, index: int) -> str:
        return f"{shard_path(self.cache, self._names[self.shard_of[index]])}, sample {self.key(index)}"


def open_cache(cache: str | Path, split: Split = "train") -> CacheDataset:
    """Open a finished cache as an indexed dataset.

    Raises:
        DtkdError: no cache, another schema, unfinished, or a tar is missing.
    """
    return CacheDataset(Path(cache), split)


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
) -> Iterator[Batch]:
    """Yield this rank's batch of each of `steps`.

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
        DtkdError: nothing to train on, ranks that do not divide the batch, a patch larger than the tiles, damage.
    """
    refuse_misfits(dataset, settings, batch_size, patch, world)
    device = torch.device(device)
    plan = _RankPlan(dataset.shard_of, settings.window, seed, steps, batch_size, rank, world)
    patches = _Patches(dataset, patch, seed, settings.samples or dataset.outputs)
    for raw in read_ahead(patches, plan, workers=settings.workers, device=device):
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
        share = batch // world
        self._slice = range(rank * share, (rank + 1) * share)
        self._order = lru_cache(maxsize=2)(lambda epoch: epoch_order(shard_of, window, seed, epoch))

    def __iter__(self) -> Iterator[list[Draw]]:
        for step in self._steps:
            places = (divmod(step * self._batch + k, self._samples) for k in self._slice)
            yield [Draw(epoch, position, int(self._order(epoch)[position])) for epoch, position in places]

    def __len__(self) -> int:
        return len(self._steps)


class _Patches:
    """Draws to patches, in the readers."""

    def __init__(self, dataset: CacheDataset, patch: int, seed: int, outputs: int) -> None:
        self._dataset, self._patch, self._seed, self._outputs = dataset, patch, seed, outputs

    def __call__(self, draws: list[Draw]) -> tuple[Tensor, Tensor, Tensor, list[str]]:
        triples = [self._triple(draw) for draw in draws]
        lr, gt, teacher = (
            torch.from_numpy(np.stack(images).transpose(0, 3, 1, 2).copy()) for images in zip(*triples, strict=True)
        )
        return lr, gt, teacher, [self._dataset.key(draw.sample) for draw in draws]

    def _triple(self, draw: Draw) -> list[Rgb]:
        images = self._dataset.images(draw.sample, draw.epoch % self._outputs)
        rng = np.random.default_rng([self._seed, draw.epoch, draw.position, 1])
        return crop_and_flip(images, self._patch, self._dataset.scale, rng)


def refuse_misfits(dataset: CacheDataset, settings: DataSettings, batch_size: int, patch: int, world: int) -> None:
    """Refuse batches that `batches` cannot make, before anything is begun.

    Raises:
        DtkdError: nothing to train on, fewer outputs of a tile than asked for, ranks that do not divide the batch, or
            a patch larger than the tiles.
    """
    if not len(dataset):
        raise DtkdError(f"{dataset.cache} has no training samples: every image was held out or failed")
    if settings.samples > dataset.outputs:
        held = f"{dataset.cache} holds {plural(dataset.outputs, 'output')} of each tile"
        raise DtkdError(f"data.samples is {settings.samples}, but {held}: make one with --samples {settings.samples}")
    if batch_size % world:
        raise DtkdError(f"train.batch_size is shared by {world} processes and must be divisible, got {batch_size}")
    if patch * dataset.scale > dataset.tile:
        raise DtkdError(
            f"train.patch must be at most {dataset.tile // dataset.scale} LR pixels for this cache's tiles of "
            f"{dataset.tile} HR pixels, got {patch}"
        )
