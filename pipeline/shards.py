"""Reading a teacher cache: the manifest or its index, and members of a tar by their place, checked against their CRCs.

    manifest = load_manifest(cache)                   # DtkdError: no cache, other schema, unfinished, a tar is missing
    for shard, sample in manifest.samples("train"):   # ShardRecord, Sample
        data = read_member(shard_path(cache, shard.name), sample.members["teacher"])   # bytes of a WebP
        meta = json.loads(read_member(fd, sample.members["json"]))   # an open descriptor is faster

`load_index` gives the same places in arrays: a million samples in a second and 150 MB. They come from
`manifest.index`, which is the manifest once more, in binary; without one that fits the manifest, they come from there.

The JSON member of a sample holds: key, source (id of the photo), x, y, width, height (HR pixels), split, scale,
degradation (its kind), seed (of the run), drift (see `Sample.drift`).
"""

import io
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.schema import (
    AROUND,
    MEMBERS,
    REPAIR,
    SCHEMA,
    TEACHERS,
    Manifest,
    Member,
    ShardRecord,
    Split,
    canonical_bytes,
    check_schema,
)
from pipeline.storage.places import Place, place_of, read_json, whole_file
from pipeline.system.errors import DtkdError
from pipeline.system.files import sha256_file

MAX_MEMBER = 2**30
"""Largest member that is read, in bytes: more than the largest picture takes as WebP."""


class DamagedShardError(DtkdError):
    """Bytes of a shard are missing or are not those that its record describes."""


def shard_path(cache: str | Path, name: str) -> Path:
    """Tar of the shard `name`."""
    return Path(cache) / f"{name}.tar"


def done_path(cache: str | Path, name: str) -> Path:
    """Done record of the shard `name`."""
    return Path(cache) / "done" / f"{name}.json"


@dataclass(frozen=True)
class Index:
    """What it takes to read the samples of a split, N of them with M members each, in the order of the plan."""

    scale: int
    tile: int
    teacher: str
    teacher_origin: dict[str, str]
    """See `Manifest`."""
    members: tuple[str, ...]
    shards: tuple[str, ...]
    """Names."""
    sizes: tuple[int, ...]
    """Bytes of their tars."""
    keys: NDArray[np.bytes_]
    """(N,)."""
    shard_of: NDArray[np.int32]
    """(N,): number of the sample's shard in `shards`."""
    places: NDArray[np.int64]
    """(N, M, 3): offset, size and CRC of each of `members`."""
    around: NDArray[np.int64]
    """(N, 3): the same of what the teacher saw; zeros where that was not kept."""


def index_bytes(manifest: Manifest, sha256: str) -> bytes:
    """`manifest.index`: CRC of the rest and its length, a line of JSON, and an array with a row for each ok sample.

    Args:
        manifest: what it is about.
        sha256: of the bytes of manifest.json.
    """
    members = (*MEMBERS, "json", *TEACHERS[1 : manifest.outputs])
    counts = [len(shard.ok) for shard in manifest.shards]
    rows = np.zeros(sum(counts), _row(len(members)))
    rows["shard"] = np.repeat(np.arange(len(counts)), counts)
    samples = (sample for shard in manifest.shards for sample in shard.ok)
    for row, sample in zip(rows, samples, strict=True):
        row["key"] = sample.key
        row["places"] = [_numbers(sample.members[name]) for name in members]
        row["around"] = _numbers(sample.members.get(AROUND, Member(0, 0, 0)))
    about = {name: getattr(manifest, name) for name in ("schema", "scale", "tile", "teacher", "teacher_origin")}
    shards = [[shard.name, shard.split, shard.bytes] for shard in manifest.shards]
    head = about | {"manifest": sha256, "members": members, "rows": len(rows), "shards": shards}
    body = canonical_bytes(head) + rows.tobytes()
    return b"%08x %d\n" % (zlib.crc32(body), len(body)) + body


def load_index(cache: str | Path | Place, split: Split) -> Index:
    """Index of a split of a complete cache; raises as `load_manifest` does."""
    cache = place_of(cache)
    found = _read_index(cache)
    if found is None:
        data = index_bytes(load_manifest(cache), "")
        found = _parsed(io.BytesIO(data))
        assert found is not None, "just made"
    head, rows = found
    try:
        for name, _, size in head["shards"]:
            check_size(cache, name, size)
    except DamagedShardError:
        load_manifest(cache)  # which names the first sample that is lost as well
        raise
    wanted = [number for number, (_, kind, _) in enumerate(head["shards"]) if kind == split]
    first = wanted[0] if wanted else 0
    assert wanted == list(range(first, first + len(wanted))), "the shards of a split are neighbours in every plan"
    rows = rows[slice(*np.searchsorted(rows["shard"], (first, first + len(wanted))))]  # a view: nothing is copied
    _refuse_twins(cache, rows, [name for name, *_ in head["shards"]])
    return Index(
        head["scale"],
        head["tile"],
        head["teacher"],
        head["teacher_origin"],
        tuple(head["members"]),
        tuple(head["shards"][number][0] for number in wanted),
        tuple(head["shards"][number][2] for number in wanted),
        rows["key"],
        rows["shard"] - np.int32(first),
        rows["places"],
        rows["around"],
    )


def _refuse_twins(cache: Place, rows: NDArray[np.void], shards: list[str]) -> None:
    keys = np.sort(rows["key"])
    if twins := keys[1:][keys[1:] == keys[:-1]].tolist():
        where = " and ".join(shards[number] for number in rows["shard"][rows["key"] == twins[0]])
        raise DamagedShardError(f"{cache}: sample {twins[0].decode()} is in {where}, expected once; {REPAIR}")


def _read_index(cache: Place) -> tuple[dict[str, Any], NDArray[np.void]] | None:
    """The parts of manifest.index; None where there is none that is whole and of this manifest."""
    try:
        with whole_file(cache, "manifest.index") as index, open(index, "rb") as file:
            found = _parsed(file)
        if found is None or found[0]["schema"] != SCHEMA:
            return None
        with whole_file(cache, "manifest.json") as manifest:
            return found if found[0]["manifest"] == sha256_file(manifest) else None
    except (FileNotFoundError, NotADirectoryError):
        return None


def _parsed(file: IO[bytes]) -> tuple[dict[str, Any], NDArray[np.void]] | None:
    try:
        crc, size = file.readline(32).split()
        body = file.read(int(size))
        if len(body) != int(size) or zlib.crc32(body) != int(crc, 16):
            return None
    except ValueError:
        return None
    line = body.index(b"\n") + 1
    head = json.loads(body[:line])
    return head, np.frombuffer(body, _row(len(head["members"])), head["rows"], line)


def _row(members: int) -> np.dtype[np.void]:
    places = [("places", "<i8", (members, 3)), ("around", "<i8", (3,))]
    return np.dtype([("key", "S24"), ("shard", "<i4"), *places])


def _numbers(place: Member) -> Sequence[int]:
    return place.offset, place.size, place.crc32


def load_manifest(cache: str | Path | Place) -> Manifest:
    """Manifest of a complete cache, a folder or a URL; every tar is there with its recorded size.

    What is in them, `read_member` and `dtkd verify` check.

    Raises:
        DtkdError: no cache, another schema, or not finished (says how much is).
        DamagedShardError: a tar is missing or has another size.
    """
    cache = place_of(cache)
    try:
        data = read_json(cache, "manifest.json")
    except (FileNotFoundError, NotADirectoryError):
        raise DtkdError(_unfinished(cache)) from None
    except DtkdError as error:
        raise DtkdError(f"{error}; {REPAIR}") from error
    check_schema(data, f"{cache}: the manifest", REPAIR)
    try:
        manifest = Manifest.from_json(data)
    except DtkdError as error:
        raise DtkdError(f"{cache}: manifest.json is damaged ({error}); {REPAIR}") from error
    for shard in manifest.shards:
        try:
            check_size(cache, shard.name, shard.bytes)
        except DamagedShardError as error:
            raise DamagedShardError(f"{error}{_first_lost(cache, shard)}") from None
    return manifest


def _first_lost(cache: Place, shard: ShardRecord) -> str:
    """Which sample is the first that a tar, if it is there, is too short for, as the end of a sentence."""
    try:
        size = cache.size(f"{shard.name}.tar")
    except FileNotFoundError:
        size = 0
    ends = ((sample.key, max(place.offset + place.size for place in sample.members.values())) for sample in shard.ok)
    lost = next((key for key, end in ends if end > size), None)
    return f" (the first sample that is lost is {lost})" if lost else ""


def check_size(cache: str | Path | Place, name: str, expected: int) -> None:
    """Cheap look at a shard: its tar exists and has `expected` bytes, else `DamagedShardError`."""
    place = place_of(cache)
    path = f"{place}/{name}.tar"
    try:
        size = place.size(f"{name}.tar")
    except FileNotFoundError:
        raise DamagedShardError(f"{path} is missing; run the same `dtkd teacher-cache` again to make it anew") from None
    if size != expected:
        raise DamagedShardError(
            f"{path} has {size} bytes, expected {expected}; run the same `dtkd teacher-cache` again to make it anew"
        )


def read_member(tar: int | str | Path, member: Member) -> bytes:
    """Bytes of a member; `tar` is its path or an open descriptor (read with `pread`: threads may share it).

    Raises:
        DamagedShardError: fewer bytes than recorded, another CRC, or more than MAX_MEMBER.
    """
    if not isinstance(tar, int):
        descriptor = os.open(tar, os.O_RDONLY)
        try:
            return _read(descriptor, member, tar)
        finally:
            os.close(descriptor)
    return _read(tar, member, "the shard")


def _read(descriptor: int, member: Member, name: object) -> bytes:
    lost = member.offset + member.size - os.fstat(descriptor).st_size  # asked first: a record may claim any size
    if lost > 0:
        raise DamagedShardError(f"{name} ends {lost} bytes early at {member.offset}; `dtkd verify` lists the damage")
    if member.size > MAX_MEMBER:
        raise DamagedShardError(f"{name} has {member.size} bytes at {member.offset}, at most {MAX_MEMBER} are read")
    data = os.pread(descriptor, member.size, member.offset)
    while 0 < len(data) < member.size:  # a pread may be short without being at the end
        more = os.pread(descriptor, member.size - len(data), member.offset + len(data))
        if not more:
            break
        data += more
    if len(data) != member.size:
        lost = member.size - len(data)
        raise DamagedShardError(f"{name} ends {lost} bytes early at {member.offset}; `dtkd verify` lists the damage")
    if zlib.crc32(data) != member.crc32:
        raise DamagedShardError(f"{name} is damaged at offset {member.offset} (CRC); `dtkd verify` lists the damage")
    return data


def _unfinished(cache: Place) -> str:
    try:
        plan = read_json(cache, "plan.json")
    except (FileNotFoundError, NotADirectoryError):
        if cache.holds("done"):
            return f"{cache} has lost its plan.json and manifest.json; run the same `dtkd teacher-cache` again"
        return f"{cache} is no teacher cache (no manifest.json); make one with `dtkd teacher-cache CORPUS {cache}`"
    check_schema(plan, f"{cache}: plan.json", "remove it and run the same `dtkd teacher-cache` again")
    try:
        names = [str(shard["name"]) for shard in plan["shards"]]
    except (KeyError, TypeError):
        return f"{cache}: plan.json is damaged: remove it and run the same `dtkd teacher-cache` again"
    missing = [name for name in names if not cache.holds(f"done/{name}.json")]
    which = ""
    if missing:
        which = f", {missing[0]} is not" if len(missing) == 1 else f", {missing[0]} and {len(missing) - 1} more are not"
    return (
        f"{cache} is not finished: {len(names) - len(missing)} of {len(names)} shards are done{which}; "
        "run the same `dtkd teacher-cache` again, it goes on where it stopped"
    )
