"""What has been made of a cache, read from its done records and journals while others write them.

Of a record only what is told is read, its failed samples and sums: ten thousand of them are looked through in seconds.
Whether every byte is sound, `dtkd verify` finds out. A cache at a URL costs two listings a look, and a read for each
record that is new; its journals are in a folder of whoever makes it.
"""

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.schema import Sample, ShardRecord
from pipeline.shards import check_size
from pipeline.storage.places import Folder, Place, Stored, StoreError, read_json
from pipeline.system.errors import DtkdError
from teacher_cache.building.plan import Outline, OutlinedShard
from teacher_cache.building.writer import read_journal


class Finished(NamedTuple):
    """A finished shard."""

    record: ShardRecord
    """With the failed ones of its samples only."""
    samples: int
    at: float | None
    """When its record was written, seconds since 1970; None where the store does not tell."""


class Damaged(NamedTuple):
    """A shard that has a record, which does not hold."""

    shard: str
    reason: str


_READERS = 16  # records that are read at once: a store answers each after some hundredths of a second


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

    def __init__(self, cache: Place, outline: Outline) -> None:
        """Begin with nothing read."""
        self._cache, self._outline = cache, outline
        self._fingerprint = outline.plan.fingerprint_digest
        self._read: dict[str, tuple[Stored, Finished]] = {}

    def look(self) -> dict[str, Finished | Damaged]:
        """What every shard with a record is like, by name, in the order of the plan.

        Raises:
            StoreError: the store or the way to it failed.
        """
        listed = self._cache.listing("done")
        self._cache.refresh()  # afterwards: a tar is there before its record
        done = [(shard, state) for shard in self._outline.shards if (state := listed.get(f"{shard.name}.json"))]
        with ThreadPoolExecutor(_READERS, "records") as pool:
            items = pool.map(lambda one: self._look(*one), done)
            found = {shard.name: item for (shard, _), item in zip(done, items, strict=True) if item}
        if any(isinstance(item, Damaged) for item in found.values()):  # or made again while we looked
            again = self._cache.listing("done")
            for shard, state in done:
                if isinstance(found.get(shard.name), Damaged) and again.get(f"{shard.name}.json") != state:
                    del found[shard.name]
        return found

    def _look(self, shard: OutlinedShard, state: Stored) -> Finished | Damaged | None:
        known, item = self._read.get(shard.name, (None, None))
        try:
            if known != state or item is None:
                item = Finished(*self._record(shard), state.modified)
                self._read[shard.name] = state, item
            check_size(self._cache, shard.name, item.record.bytes)
        except (FileNotFoundError, NotADirectoryError):  # set back by a repair just now
            return None
        except StoreError:
            raise
        except (DtkdError, OSError) as error:
            return Damaged(shard.name, str(error))
        return item

    def _record(self, shard: OutlinedShard) -> tuple[ShardRecord, int]:
        path = f"{self._cache}/done/{shard.name}.json"
        data = read_json(self._cache, f"done/{shard.name}.json")
        samples = data.get("samples") if isinstance(data, dict) else None
        if not isinstance(samples, list) or not all(isinstance(sample, dict) for sample in samples):
            raise DtkdError(f"{path} is damaged: it has no list of samples")
        failed = [sample for sample in samples if sample.get("status") != "ok"]
        record = ShardRecord.from_json(data | {"samples": failed})
        keys = tuple(sample.get("key") for sample in samples)
        if (record.name, record.fingerprint, keys) != (shard.name, self._fingerprint, shard.keys):
            raise DtkdError(f"{path} is of another plan")
        return record, len(samples)


def in_work(cache: Place, outline: Outline, finished: set[str]) -> InWork:
    """Read the journals of shards that are not `finished`; a sample that several attempts have counts once."""
    journals: dict[str, list[Path]] = defaultdict(list)
    for path in sorted((cache.path / "parts").glob("*.jsonl")) if isinstance(cache, Folder) else ():
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
