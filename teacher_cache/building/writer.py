"""Writing one shard so that it is either whole or absent, and so that no finished sample is ever lost.

Samples go into `parts/NAME.NONCE.tar`, each followed by a line in the journal `parts/NAME.NONCE.jsonl`. When the
process dies, the next one reads the journals and takes over every sample whose bytes still have their CRC. Commit:
fsync of part and journal, SHA-256, rename to the final name, fsync of the folder, done record. Until then the shard is
not done.
"""

import contextlib
import io
import json
import os
import tarfile
import time
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from webdataset.writer import TarWriter

from pipeline.schema import (
    AROUND,
    MEMBERS,
    SCHEMA,
    TEACHERS,
    Member,
    Sample,
    SampleError,
    ShardRecord,
    canonical_bytes,
    canonical_json,
)
from pipeline.shards import DamagedShardError, check_size, done_path, read_member, shard_path
from pipeline.storage.places import Place, place_of, read_json
from pipeline.system import files
from pipeline.system.errors import DtkdError
from pipeline.system.files import atomic_write_bytes, fsync_dir, sha256_file
from teacher_cache.building.lease import Lease
from teacher_cache.building.plan import OutlinedShard, PlannedShard

SUFFIX = {name: f"{name}.webp" for name in (*MEMBERS, *TEACHERS, AROUND)} | {"json": "json"}
"""A member's name in a record -> its suffix in the tar."""


@dataclass(frozen=True)
class Outcome:
    """What became of one planned key: the bytes of its members, or why there are none."""

    key: str
    members: Mapping[str, bytes] = field(default_factory=dict)
    error: SampleError | None = None
    drift: float | None = None
    seconds: float = 0.0  # its share of the time inside the teacher; 0 when no teacher ran


class LostLeaseError(Exception):
    """Another process took the shard over; it will be made there."""


class ShardWriter:
    """Writes the outcomes of a shard in the order of the plan, then commits. Leaves part and journal on exceptions."""

    def __init__(self, cache: Path, shard: PlannedShard, fingerprint: str, lease: Lease) -> None:
        """Open part and journal under names that carry the nonce of `lease`."""
        self._cache, self._shard, self._fingerprint, self._lease = cache, shard, fingerprint, lease
        self._began = time.monotonic()
        self._offset, self._teacher_seconds, self._teacher_images = 0, 0.0, 0
        self.samples: list[Sample] = []
        self._part_path = cache / "parts" / f"{shard.name}.{lease.nonce}.tar"
        self._part: IO[bytes] = open(self._part_path, "xb")  # noqa: SIM115 - closed by __exit__
        self._journal: IO[str] = open(self._part_path.with_suffix(".jsonl"), "x")  # noqa: SIM115
        _append(self._journal, {"schema": SCHEMA, "name": shard.name, "fingerprint": fingerprint})

    def __enter__(self) -> "ShardWriter":
        """Nothing to do: the files are open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files; what the disk refused is not in the journal."""
        for file in (self._part, self._journal):
            with contextlib.suppress(OSError):
                file.close()

    @property
    def errors(self) -> int:
        """Failed samples so far."""
        return sum(1 for sample in self.samples if sample.error)

    def add(self, outcome: Outcome) -> None:
        """Append a sample. An exception (`OSError`: disk full) leaves all earlier samples safe."""
        places, tar = encode_sample(outcome.key, outcome.members) if not outcome.error else ({}, b"")
        self._part.write(tar)
        self._part.flush()
        members = {name: Member(self._offset + at.offset, at.size, at.crc32) for name, at in places.items()}
        status = "error" if outcome.error else "ok"
        sample = Sample(outcome.key, self._shard.split, status, members, outcome.error, outcome.drift)
        _append(self._journal, {"sample": sample.to_json(), "seconds": outcome.seconds})
        self._offset += len(tar)
        self._teacher_seconds += outcome.seconds
        self._teacher_images += sample.outputs if outcome.seconds > 0 else 0
        self.samples.append(sample)

    def commit(self) -> ShardRecord:
        """Make the shard final.

        Raises:
            LostLeaseError: another process has taken over.
            OSError: the disk refused; nothing was put under a final name.
        """
        assert [s.key for s in self.samples] == [s.key for s in self._shard.samples], "every planned key, in order"
        self._part.write(_tar_end(self._offset))
        for file in (self._part, self._journal):
            file.flush()
            os.fsync(file.fileno())
        size = os.fstat(self._part.fileno()).st_size
        sha256 = sha256_file(self._part_path)
        seconds = time.monotonic() - self._began
        record = ShardRecord(
            SCHEMA, self._shard.name, self._shard.split, self._fingerprint, tuple(self.samples), sha256, size,
            round(seconds, 3), round(self._teacher_seconds, 3), self._teacher_images,
        )  # fmt: skip
        if not self._lease.held():
            raise LostLeaseError
        os.replace(self._part_path, shard_path(self._cache, self._shard.name))
        fsync_dir(self._cache)
        atomic_write_bytes(done_path(self._cache, self._shard.name), canonical_bytes(record.to_json()))
        clean_parts(self._cache, self._shard.name)
        return record


def encode_sample(key: str, members: Mapping[str, bytes]) -> tuple[dict[str, Member], bytes]:
    """A sample as a piece of a tar: the place of each member relative to the piece, and its bytes.

    Owner, mode and time are constants, members are in alphabetical order: equal samples give equal bytes.
    """
    file = io.BytesIO()
    writer = TarWriter(file, encoder=False, mtime=0)
    writer.write({"__key__": key} | {SUFFIX[name]: data for name, data in members.items()})
    size = writer.tarstream.offset
    writer.close()
    places, offset = {}, 0
    for name in sorted(members, key=lambda name: SUFFIX[name]):
        data = members[name]
        places[name] = Member(offset + tarfile.BLOCKSIZE, len(data), zlib.crc32(data))
        offset += tarfile.BLOCKSIZE + -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    assert offset == size, "the tar is laid out as planned"
    return places, file.getvalue()[:size]


def _tar_end(offset: int) -> bytes:
    """End-of-archive blocks, up to a whole tar record."""
    return bytes(2 * tarfile.BLOCKSIZE + -(offset + 2 * tarfile.BLOCKSIZE) % tarfile.RECORDSIZE)


def read_record(
    cache: Path | Place, shard: PlannedShard, fingerprint: str, tars: Place | None = None
) -> ShardRecord | None:
    """Done record of a planned shard, None when the shard is not done. Its tar is in `tars`, else in `cache`.

    Raises:
        DtkdError: the record is damaged or of another plan, or its tar is missing or has another size.
    """
    record = read_record_alone(cache, shard, fingerprint)
    if record is not None:
        check_size(tars or cache, shard.name, record.bytes)
    return record


def read_record_alone(cache: str | Path | Place, shard: PlannedShard, fingerprint: str) -> ShardRecord | None:
    """`read_record` without a look at the tar."""
    cache, name = place_of(cache), f"done/{shard.name}.json"
    try:
        record = ShardRecord.from_json(read_json(cache, name))
    except FileNotFoundError:
        return None
    keys = [sample.key for sample in record.samples]
    if (record.name, record.fingerprint) != (shard.name, fingerprint) or keys != [s.key for s in shard.samples]:
        raise DtkdError(f"{cache}/{name} is of another plan; run `dtkd verify {cache} --repair`, then stage one again")
    return record


def reopen(cache: Path, shard: PlannedShard, fingerprint: str, without: Collection[str] = ()) -> None:
    """Make a shard not done; its samples, but those `without` whose keys it must do, are left to the next attempt.

    The caller holds the shard's lease. The journal comes first, so that a crash in between loses nothing.
    """
    (cache / "manifest.json").unlink(missing_ok=True)
    path = done_path(cache, shard.name)
    with contextlib.suppress(FileNotFoundError, DtkdError):  # a damaged record is of no use: start anew
        record = ShardRecord.from_json(files.read_json(path))
        seconds = record.teacher_seconds / max(record.teacher_images, 1)
        lines = [{"schema": SCHEMA, "name": shard.name, "fingerprint": fingerprint}]
        kept = [sample for sample in record.ok if sample.key not in without]
        lines += [{"sample": sample.to_json(), "seconds": seconds * sample.outputs} for sample in kept]
        if record.fingerprint == fingerprint:
            text = b"".join(canonical_bytes(line) for line in lines)
            atomic_write_bytes(cache / "parts" / f"{shard.name}.reopened.jsonl", text)
    path.unlink(missing_ok=True)
    fsync_dir(path.parent)


class Adoptable:
    """Samples that earlier attempts at a shard have left behind, by key."""

    def __init__(self, cache: Path, shard: PlannedShard, fingerprint: str, *, with_errors: bool) -> None:
        """Read the journals of the shard; `with_errors` takes recorded failures over too."""
        self._found: dict[str, list[tuple[Path, Sample, float]]] = {}
        for journal in sorted((cache / "parts").glob(f"{shard.name}.*.jsonl")):
            part = journal.with_suffix(".tar")
            tar = part if part.exists() else shard_path(cache, shard.name)  # killed between rename and done record
            for sample, seconds in read_journal(journal, shard, fingerprint):
                if with_errors or sample.status == "ok":
                    self._found.setdefault(sample.key, []).append((tar, sample, seconds))

    def outcome(self, key: str) -> Outcome | None:
        """The outcome of `key` with its bytes checked; None when nobody left one that is whole."""
        for tar, sample, seconds in self._found.get(key, ()):
            with contextlib.suppress(DamagedShardError, OSError):
                members = {name: read_member(tar, place) for name, place in sample.members.items()}
                return Outcome(key, members, sample.error, sample.drift, seconds)
        return None


def clean_parts(cache: Path, name: str) -> None:
    """Remove what attempts at a finished shard have left."""
    for path in (cache / "parts").glob(f"{name}.*"):
        path.unlink(missing_ok=True)


def _append(journal: IO[str], line: object) -> None:
    journal.write(canonical_json(line) + "\n")
    journal.flush()


def read_journal(path: Path, shard: PlannedShard | OutlinedShard, fingerprint: str) -> Iterator[tuple[Sample, float]]:
    """Samples of a journal up to the first line that is torn or not ours."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, DtkdError), open(path, encoding="utf-8") as file:
        header = json.loads(next(file, "null"))
        if header != {"schema": SCHEMA, "name": shard.name, "fingerprint": fingerprint}:
            return
        for line in file:
            entry = json.loads(line)
            yield Sample.from_json(entry["sample"], shard.split), float(entry["seconds"])
