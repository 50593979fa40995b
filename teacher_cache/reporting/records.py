"""What has been made of a cache, read from its done records and journals while others write them.

Of a record only what is told is read, its failed samples and sums: ten thousand of them are looked through in seconds.
Whether every byte is sound, `dtkd verify` finds out.
"""

import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.schema import Sample, ShardRecord
from pipeline.shards import check_size, done_path
from pipeline.system.errors import DtkdError
from pipeline.system.files import read_json
from teacher_cache.building.plan import Outline, OutlinedShard
from teacher_cache.building.writer import read_journal


class Finished(NamedTuple):
    """A finished shard."""

    record: ShardRecord
    """With the failed ones of its samples only."""
    samples: int
    at: float
    """When its record was written, seconds since 1970."""


class Damaged(NamedTuple):
    """A shard that has a record, which does not hold."""

    shard: str
    reason: str


@dataclass(frozen=True)
class InWork:
    """What the journals say of shards that are not finished."""

    samples: int = 0
    images: int = 0
    """That the teacher restored."""
    teacher_seconds: float = 0.0
    failed: tuple[tuple[OutlinedShard, Sample], ...] = ()


class Records:
    """The done records of a cache; looked at again, only those that changed are read again."""

    def __init__(self, cache: Path, outline: Outline) -> None:
        """Begin with nothing read."""
        self._cache, self._outline = cache, outline
        self._fingerprint = outline.plan.fingerprint_digest
        self._read: dict[str, tuple[tuple[int, int, int], Finished | Damaged]] = {}

    def look(self) -> dict[str, Finished | Damaged]:
        """What every shard with a record is like, by name, in the order of the plan."""
        for shard in self._outline.shards:
            self._look(shard)
        return {shard.name: self._read[shard.name][1] for shard in self._outline.shards if shard.name in self._read}

    def _look(self, shard: OutlinedShard) -> None:
        path = done_path(self._cache, shard.name)
        try:
            found = os.stat(path)
            version = (found.st_mtime_ns, found.st_size, found.st_ino)
            known, item = self._read.get(shard.name, (None, None))
            if known != version or not isinstance(item, Finished):
                item = Finished(*self._record(path, shard), found.st_mtime)
            check_size(self._cache, shard.name, item.record.bytes)
            self._read[shard.name] = version, item
        except (FileNotFoundError, NotADirectoryError):  # not done, or set back by a repair just now
            self._read.pop(shard.name, None)
        except (DtkdError, OSError) as error:
            self._read[shard.name] = (0, 0, 0), Damaged(shard.name, str(error))

    def _record(self, path: Path, shard: OutlinedShard) -> tuple[ShardRecord, int]:
        data = read_json(path)
        samples = data.get("samples") if isinstance(data, dict) else None
        if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
            raise DtkdError(f"{path} is damaged: it has no list of samples")
        failed = [sample for sample in samples if sample.get("status") != "ok"]
        record = ShardRecord.from_json(data | {"samples": failed})
        keys = tuple(sample.get("key") for sample in samples)
        if (record.name, record.fingerprint, keys) != (shard.name, self._fingerprint, shard.keys):
            raise DtkdError(f"{path} is of another plan")
        return record, len(samples)


def in_work(cache: Path, outline: Outline, finished: set[str]) -> InWork:
    """Read the journals of shards that are not `finished`; a sample that several attempts have counts once."""
    journals: dict[str, list[Path]] = defaultdict(list)
    for path in sorted((cache / "parts").glob("*.jsonl")):
        journals[path.name.partition(".")[0]].append(path)
    found: dict[str, tuple[OutlinedShard, Sample, float]] = {}
    for shard in outline.shards:
        if shard.name not in finished:
            for journal in journals.get(shard.name, ()):
                for sample, seconds in read_journal(journal, shard, outline.plan.fingerprint_digest):
                    found[sample.key] = (shard, sample, seconds)
    return InWork(
        samples=len(found),
        images=sum(sample.outputs for _, sample, seconds in found.values() if seconds > 0),
        teacher_seconds=sum(seconds for _, _, seconds in found.values()),
        failed=tuple((shard, sample) for shard, sample, _ in found.values() if sample.error),
    )
