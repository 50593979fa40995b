"""Reading a teacher cache: the manifest, and members of a tar by their place, each checked against its CRC.

    manifest = load_manifest(cache)                   # DtkdError: no cache, other schema, unfinished, a tar is missing
    for shard, sample in manifest.samples("train"):   # ShardRecord, Sample
        data = read_member(shard_path(cache, shard.name), sample.members["teacher"])   # bytes of a WebP
        meta = json.loads(read_member(fd, sample.members["json"]))   # an open descriptor is faster

The JSON member of a sample holds: key, source (id of the photo), x, y, width, height (HR pixels), split, scale,
degradation (its kind), seed (of the run), drift (see `Sample.drift`).
"""

import os
import zlib
from pathlib import Path

from pipeline.schema import REPAIR, Manifest, Member, ShardRecord, check_schema
from pipeline.system.errors import DtkdError
from pipeline.system.files import read_json

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


def load_manifest(cache: str | Path) -> Manifest:
    """Manifest of a complete cache; every tar is there with its recorded size (contents: `read_member`, `dtkd verify`).

    Raises:
        DtkdError: no cache, another schema, or not finished (says how much is).
        DamagedShardError: a tar is missing or has another size.
    """
    cache = Path(cache)
    try:
        data = read_json(cache / "manifest.json")
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


def _first_lost(cache: Path, shard: ShardRecord) -> str:
    """Which sample is the first that a tar, if it is there, is too short for, as the end of a sentence."""
    path = shard_path(cache, shard.name)
    size = path.stat().st_size if path.exists() else 0
    ends = ((sample.key, max(place.offset + place.size for place in sample.members.values())) for sample in shard.ok)
    lost = next((key for key, end in ends if end > size), None)
    return f" (the first sample that is lost is {lost})" if lost else ""


def check_size(cache: str | Path, name: str, expected: int) -> None:
    """Cheap look at a shard: its tar exists and has `expected` bytes, else `DamagedShardError`."""
    path = shard_path(cache, name)
    try:
        size = path.stat().st_size
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


def _unfinished(cache: Path) -> str:
    try:
        plan = read_json(cache / "plan.json")
    except (FileNotFoundError, NotADirectoryError):
        if (cache / "done").is_dir():
            return f"{cache} has lost its plan.json and manifest.json; run the same `dtkd teacher-cache` again"
        return f"{cache} is no teacher cache (no manifest.json); make one with `dtkd teacher-cache CORPUS {cache}`"
    check_schema(plan, f"{cache}: plan.json", "remove it and run the same `dtkd teacher-cache` again")
    try:
        names = [str(shard["name"]) for shard in plan["shards"]]
    except (KeyError, TypeError):
        return f"{cache}: plan.json is damaged: remove it and run the same `dtkd teacher-cache` again"
    done = sum(1 for name in names if done_path(cache, name).exists())
    return (
        f"{cache} is not finished: {done} of {len(names)} shards are done; "
        "run the same `dtkd teacher-cache` again, it goes on where it stopped"
    )
