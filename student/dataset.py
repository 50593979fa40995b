"""A teacher cache (schema 1) as an indexed dataset: any sample, read and checked by its place in a tar.

h w LR sides, H W = scale * h, scale * w.
"""

import hashlib
import itertools
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from pipeline.images import ImageError, Rgb, decode_webp
from pipeline.schema import AROUND, TEACHERS, Member, Split, digest
from pipeline.shards import DamagedShardError, Index, load_index, read_member, shard_path
from pipeline.storage.fetched import FetchedShards, LocalFolder, StoredShard
from pipeline.storage.places import Place, Remote, place_of
from pipeline.system.errors import DtkdError
from pipeline.system.files import parse_json

OPEN_TARS = 32  # file descriptors that a process keeps open


class Item(NamedTuple):
    """One sample of a cache, whole."""

    key: str
    lr: Rgb  # (h, w, 3)
    gt: Rgb  # (H, W, 3)
    teacher: Rgb  # (H, W, 3)
    meta: dict[str, Any]  # the sample's JSON member: source, x, y, width, height, ...


class FolderTars:
    """Tars of a cache in a folder."""

    def __init__(self, cache: Path) -> None:
        """Nothing is opened before the first read."""
        self._cache = cache

    def open(self, shard: str) -> int:
        """A descriptor of a shard's tar; `DamagedShardError` where it cannot be opened."""
        try:
            return os.open(shard_path(self._cache, shard), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DamagedShardError(f"cannot open it ({error.strerror}); `dtkd verify` lists the damage") from error

    def forget(self, shard: str) -> bool:
        """There is no better copy."""
        return False


class ShardFiles:
    """Members of tars, through a bounded number of open descriptors.

    Reads are `pread`s, so a fork may go on with the descriptors of its parent; pickling (spawn) leaves them behind.
    """

    def __init__(self, tars: FolderTars | FetchedShards) -> None:
        """Nothing is opened before the first read."""
        self._tars = tars
        self._open: OrderedDict[str, int] = OrderedDict()

    def read(self, shard: str, member: Member) -> bytes:
        """Bytes of a member, checked against their CRC; of a remote cache, wrong ones are fetched once more."""
        try:
            return read_member(self._descriptor(shard), member)
        except DamagedShardError:
            if not self._tars.forget(shard):
                raise
        os.close(self._open.pop(shard))
        return read_member(self._descriptor(shard), member)

    def _descriptor(self, shard: str) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        descriptor = self._tars.open(shard)
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
        return {"_tars": self._tars, "_open": OrderedDict()}

    def __del__(self) -> None:
        """Close what is still open."""
        self.close()


class CacheDataset(Dataset[Item]):
    """Samples of one split of a finished cache, in the order of its plan; `dataset[i]` reads one.

    The index is held in arrays (about 100 bytes a sample, 24 more for each further output), which worker processes
    share with their parent.
    """

    def __init__(self, cache: Place, split: Split = "train", local: LocalFolder | None = None) -> None:
        """Read the index; see `open_cache`."""
        index = load_index(cache, split)
        self.cache, self.scale, self.tile, self.teacher = cache, index.scale, index.tile, index.teacher
        self._members, self._names, self._keys = index.members, index.shards, index.keys
        self.shard_of, self._places, self._around = index.shard_of, index.places, index.around
        self.teacher_origin = index.teacher_origin
        self.outputs = sum(name in TEACHERS for name in self._members)
        self.fetched = (
            FetchedShards(cache, _stored(index), local or LocalFolder()) if isinstance(cache, Remote) else None
        )
        self._files = ShardFiles(self.fetched or FolderTars(Path(str(cache))))

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
        try:
            meta = parse_json(self._read(index, "json"), "the description")
        except DamagedShardError:
            raise
        except DtkdError as error:
            raise DamagedShardError(f"{self.where(index)}: {error}") from error
        if not isinstance(meta, dict):
            raise DamagedShardError(f"{self.where(index)}: the description is no JSON object")
        return meta

    def key(self, index: int) -> str:
        """Key of a sample."""
        return self._keys[index].decode()

    def images(self, index: int, output: int = 0) -> tuple[Rgb, Rgb, Rgb]:
        """LR, GT and teacher image of a sample, of the teacher's the given `output`; raises as `dataset[i]` does."""
        lr, gt, teacher = (self._picture(index, name) for name in ("lr", "gt", TEACHERS[output]))
        expected = (lr.shape[0] * self.scale, lr.shape[1] * self.scale, 3)
        if gt.shape != expected or teacher.shape != expected:
            raise DamagedShardError(
                f"{self.where(index)}: gt {gt.shape} and teacher {teacher.shape} must be {expected} for lr {lr.shape}"
            )
        return lr, gt, teacher

    def seen_by_teacher(self, index: int) -> Rgb:
        """LR image of a sample with the surroundings that its teacher saw, (h + 2 c, w + 2 c, 3); raises as above."""
        if not self._around[index, 1]:
            return self._picture(index, "lr")
        return self._decoded(self._bytes(index, self._around[index], AROUND), index, AROUND)

    def fingerprint(self) -> str:
        """Identity of the samples and their bytes, wherever the cache lies."""
        return digest([[self.key(i), self._places[i, :, 2].tolist()] for i in range(len(self))])

    def _picture(self, index: int, name: str) -> Rgb:
        return self._decoded(self._read(index, name), index, name)

    def _decoded(self, data: bytes, index: int, name: str) -> Rgb:
        try:
            return decode_webp(data)
        except ImageError as error:
            raise DamagedShardError(f"{self.where(index)}, {name}: {error.reason}; `dtkd verify` lists it") from error

    def _read(self, index: int, name: str) -> bytes:
        return self._bytes(index, self._places[index, self._members.index(name)], name)

    def _bytes(self, index: int, place: NDArray[np.int64], name: str) -> bytes:
        try:
            return self._files.read(self.shard(index), Member(*place.tolist()))
        except DamagedShardError as error:
            raise DamagedShardError(f"{self.where(index)}, {name}: {error}") from error

    def where(self, index: int) -> str:
        """File and key of a sample, for people."""
        return f"{self.cache}/{self.shard(index)}.tar, sample {self.key(index)}"

    def shard(self, index: int) -> str:
        """Name of the shard that a sample is in."""
        return self._names[self.shard_of[index]]


def _stored(index: Index) -> dict[str, StoredShard]:
    """What tells each shard of a remote cache from others of its name: size, and the CRCs of all that is in it."""
    bounds = np.searchsorted(index.shard_of, range(len(index.shards) + 1))
    sums = [
        hashlib.blake2b(index.places[first:last].tobytes(), digest_size=8).hexdigest()
        for first, last in itertools.pairwise(bounds)
    ]
    shards = map(StoredShard, index.sizes, sums)
    return dict(zip(index.shards, shards, strict=True))


def open_cache(cache: str | Path, split: Split = "train", local: LocalFolder | None = None) -> CacheDataset:
    """Open a finished cache as an indexed dataset.

    Args:
        cache: its folder or URL.
        split: training samples or held-out ones.
        local: room for the shards of a cache at a URL; defaults where None.

    Raises:
        DtkdError: no cache, another schema, unfinished, or a tar is missing.
    """
    return CacheDataset(place_of(cache), split, local)
