"""Checking a finished cache: every byte against its record, every record against the plan, samples against the teacher.

Damage is a finding, not an exception: the result says which shard, and what is wrong. `repair` puts the damaged shards
back to "not done"; running stage one again then makes them anew, from the undamaged samples and the teacher.
"""

import dataclasses
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import config
from pipeline.schema import AROUND, TEACHERS, Manifest, Sample, ShardRecord
from pipeline.shards import read_member
from pipeline.storage.places import Place, Remote, StoreError, place_of, read_json, whole_file
from pipeline.system.device import choose
from pipeline.system.errors import DtkdError
from pipeline.system.files import ensure_dir, parse_json, sha256_file
from pipeline.system.progress import OnProgress, ProgressEvent
from pipeline.system.results import plain
from pipeline.system.words import plural
from pipeline.teacher import Teacher
from teacher_cache.building import crops
from teacher_cache.building.lease import acquire
from teacher_cache.building.manifest import FOLDERS, merge
from teacher_cache.building.plan import Plan, PlannedSample, PlannedShard, load_plan
from teacher_cache.building.writer import SUFFIX, read_record_alone, reopen
from teacher_cache.recompute import TOLERANCE, Recomputed, make_again, read_picture, refuse_other_teacher
from teacher_cache.teachers import load
from teacher_cache.teachers.catalogue import PYTHON
from teacher_cache.teachers.settings import TeacherSettings

FOREIGN = "foreign file"
"""`Damage.shard` of what the cache's plan knows nothing of."""


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong."""

    shard: str  # name, or "manifest", or FOREIGN
    reason: str
    key: str | None = None  # of the sample, where it is one sample's


@dataclass(frozen=True)
class VerifyResult:
    """What `verify_cache` found."""

    cache: str  # folder or URL
    shards: int  # planned
    samples: int  # read and found sound
    errors: int  # planned samples that stage one recorded as failed
    damage: tuple[Damage, ...]
    recomputed: tuple[Recomputed, ...]
    repaired: tuple[str, ...]  # shards put back to "not done" (or "manifest", removed)

    @property
    def ok(self) -> bool:
        """Nothing damaged, and every recomputed sample within `TOLERANCE`."""
        return not self.damage and all(item.max_difference <= TOLERANCE for item in self.recomputed)

    @property
    def advice(self) -> str:
        """What to do about it, in one line."""
        if self.repaired:
            back = plural(len(self.repaired), "shard")
            if self.repaired == ("manifest",):
                return "set back the manifest: run the same `dtkd teacher-cache` again to write it anew"
            return f"set back {back}: run the same `dtkd teacher-cache` again to make them anew"
        if self.damage:
            names = _list(sorted({item.shard for item in self.damage} - {FOREIGN}))
            if not names:
                return "foreign files: move them out of the cache, what it holds itself is sound"
            return f"damaged: {names}; `dtkd verify {self.cache} --repair`, then the same `dtkd teacher-cache` again"
        if not self.ok:
            return "the teacher makes other pictures than the cached ones: other hardware, drivers or library versions?"
        return "sound"

    @property
    def failure(self) -> str | None:
        """See `pipeline.system.results.Result`."""
        return None if self.ok else self.advice

    def lines(self) -> list[str]:
        """For people: every finding, then the counts and what to do."""
        lines = [f"{item.shard}{f' {item.key}' if item.key else ''}: {item.reason}" for item in self.damage]
        lines += [
            f"{item.key}: made again, differs by at most {item.max_difference} of 255 (mean {item.mean_difference})"
            for item in self.recomputed
        ]
        counts = f"{plural(self.shards, 'shard')}, {plural(self.samples, 'sound sample')}, {self.errors} failed ones"
        return [*lines, f"{counts}: {self.advice}"]

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values, the verdict and the advice."""
        return {**plain(self), "ok": self.ok, "advice": self.advice}


def verify_cache(
    cache: str | Path,
    *,
    recompute: int = 0,
    teacher: Teacher | None = None,
    repair: bool = False,
    on_progress: OnProgress | None = None,
) -> VerifyResult:
    """Check every shard of a cache completely.

    Args:
        cache: folder or URL of the cache; the corpus is not needed. Shards at a URL are read whole, one by one.
        recompute: number of samples, chosen by the cache's seed, to make again with `teacher` from what it saw.
        teacher: the teacher that made the cache, where `recompute` is above 0.
        repair: put damaged shards back to "not done", for stage one to make again from their undamaged samples and,
            for the others, with the teacher. At a URL they are removed, and made again with the teacher.
        on_progress: called after every shard.

    Raises:
        DtkdError: no cache, another schema, a damaged plan, or another teacher than the cache's.
    """
    place = place_of(cache)
    plan = load_plan(place)
    refuse_other_teacher(plan, recompute, teacher)
    damage: list[Damage] = []
    records: list[ShardRecord] = []
    damaged: set[str] = set()
    sound = 0
    for number, shard in enumerate(plan.shards):
        record, found = _check_shard(place, plan, shard)
        damage += found
        if found:
            damaged.add(shard.name)
        if record is not None:
            records.append(record)
            sound += len(record.ok) - len({item.key for item in found if item.key})
        if on_progress:
            on_progress(ProgressEvent(number + 1, len(plan.shards), "shards", f"{len(damage)} damaged" * bool(damage)))
    if not damage:
        damage += _check_manifest(place, merge(plan, tuple(records)))
    damage += _foreign(place, plan)
    bad = {item.key for item in damage}
    recomputed = tuple(make_again(place, plan, records, bad, recompute, teacher)) if teacher else ()
    repaired = tuple(_repair(place, plan, damaged, damage)) if repair and damage else ()
    errors = sum(len(record.errors) for record in records)
    return VerifyResult(str(place), len(plan.shards), sound, errors, tuple(damage), recomputed, repaired)


def load_teacher(cache: str | Path, name: str | None = None, device: str = "auto") -> Teacher:
    """The teacher that a cache was made with, at the cache's scale, steps and precision.

    Args:
        cache: folder or URL of the cache.
        name: as given to `teacher_cache.teachers.load`; None takes the name that plan.json keeps.
        device: torch device, or auto.

    Raises:
        DtkdError: as `load` and `load_plan`; or plan.json names somebody's code, which only the user may ask to run.
    """
    plan = load_plan(cache)
    if name is None and plan.teacher.startswith(PYTHON):
        raise DtkdError(
            f"{cache} was made with {plan.teacher}: code is not run because a cache names it; if you trust it, say "
            f"--teacher {plan.teacher}"
        )
    made = plan.fingerprint["teacher"]
    steps, dtype = made.get("steps"), made.get("dtype")
    asked = {item.name: made[item.name] for item in dataclasses.fields(TeacherSettings) if item.name in made}
    settings = config.from_dict(TeacherSettings, asked, f"{cache}: plan.json")
    try:
        return load(name or plan.teacher, scale=plan.scale, steps=steps, device=choose(device), dtype=dtype,
                    settings=settings)  # fmt: skip
    except DtkdError as error:
        if name is not None:
            raise
        raise DtkdError(f"{error}; {cache} was made with {plan.teacher}: --teacher says where it is now") from error


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _check_shard(cache: Place, plan: Plan, shard: PlannedShard) -> tuple[ShardRecord | None, list[Damage]]:
    """The record, where it is sound, and all that is wrong with the shard."""
    try:
        record = read_record_alone(cache, shard, plan.fingerprint_digest)
    except StoreError:  # no damage, that a repair would remove
        raise
    except DtkdError as error:
        return None, [Damage(shard.name, str(error))]
    if record is None:
        return None, [Damage(shard.name, "not done; run the same `dtkd teacher-cache` again")]
    try:
        with whole_file(cache, f"{shard.name}.tar") as path:
            return record, _check_tar(path, plan, shard, record)
    except FileNotFoundError:
        return None, [Damage(shard.name, f"{cache}/{shard.name}.tar is missing")]


def _check_tar(path: Path, plan: Plan, shard: PlannedShard, record: ShardRecord) -> list[Damage]:
    found = []
    if (size := path.stat().st_size) != record.bytes:
        found.append(Damage(shard.name, f"the tar has {size} bytes, expected {record.bytes}"))
    elif (sha256 := sha256_file(path)) != record.sha256:
        found.append(Damage(shard.name, f"SHA-256 is {sha256[:12]}..., expected {record.sha256[:12]}..."))
    found += _check_layout(path, record)
    for planned, sample in zip(shard.samples, record.samples, strict=True):
        if sample.status == "ok":
            try:
                _check_sample(path, plan, planned, sample)
            except (DtkdError, OSError, ValueError) as error:
                found.append(Damage(shard.name, str(error), sample.key))
    return found


def _check_layout(path: Path, record: ShardRecord) -> Iterator[Damage]:
    """A tar reader without an index must see the same members, in the same places, and no others."""
    places = ((f"{s.key}.{SUFFIX[name]}", at) for s in record.ok for name, at in s.members.items())
    expected = sorted((at.offset, at.size, name) for name, at in places)
    try:
        with tarfile.open(path, "r:") as tar:
            seen = [(item.offset_data, item.size, item.name) for item in tar]
    except (tarfile.TarError, ValueError, OverflowError) as error:
        yield Damage(record.name, f"no readable tar: {error}")
        return
    if odd := sorted({*seen} ^ {*expected}):
        first = odd[0][2].partition(".")[0]
        key = next((sample.key for sample in record.samples if sample.key == first), None)
        count = f"holds {len(seen)} members, expected {len(expected)} in their recorded places"
        yield Damage(record.name, f"{count}; the first that differs is {odd[0][2]!r:.80} at {odd[0][0]}", key)


def _foreign(cache: Place, plan: Plan) -> Iterator[Damage]:
    """Shards and records that no plan names: readers that take every tar of a folder would take them."""
    names = {shard.name for shard in plan.shards}
    found = [Path("done", name) for name in cache.listing("done") if name.endswith(".json")]
    found += [Path(name) for name in cache.listing() if name.endswith(".tar")]
    for path in sorted(found):
        if path.stem not in names and not path.name.startswith("."):
            yield Damage(FOREIGN, f"{path} is not in plan.json: move it out of the cache")


def _check_sample(path: Path, plan: Plan, planned: PlannedSample, sample: Sample) -> None:
    """CRC, decodability, sizes, and the description of one sample."""
    tile, scale = planned.tile, plan.scale
    pictures = {name: read_picture(path, sample, name) for name in sample.members if name != "json"}
    height, width, more = tile.height // scale, tile.width // scale, 2 * plan.context
    large = dict.fromkeys(("gt", *TEACHERS[: plan.outputs]), (tile.height, tile.width, 3))
    expected = {"lr": (height, width, 3)} | large
    if plan.context:
        expected[AROUND] = (height + more, width + more, 3)
    shapes = {name: image.shape for name, image in pictures.items()}
    if shapes != expected:
        raise DtkdError(f"the pictures have shapes {shapes}, expected {expected}")
    if plan.context and not np.array_equal(crops.inside(pictures[AROUND], plan.context), pictures["lr"]):
        raise DtkdError("lr is not the inside of around")
    description = parse_json(read_member(path, sample.members["json"]), "the json member")
    wanted = dataclasses.asdict(tile) | {"key": planned.key, "seed": plan.seed, "drift": sample.drift}
    description = description if isinstance(description, dict) else {}
    wrong = [name for name, value in wanted.items() if description.get(name) != value]
    if wrong:
        raise DtkdError(f"the json member differs from plan and record in {', '.join(wrong)}")


def _check_manifest(cache: Place, expected: Manifest) -> Iterator[Damage]:
    try:
        if Manifest.from_json(read_json(cache, "manifest.json")) == expected:
            return
        reason = "is not what the done records say"
    except FileNotFoundError:
        reason = "is missing"
    except StoreError:
        raise
    except DtkdError as error:
        reason = str(error)
    yield Damage("manifest", f"manifest.json {reason}; run the same `dtkd teacher-cache` again")


def _repair(place: Place, plan: Plan, names: set[str], damage: Sequence[Damage]) -> Iterator[str]:
    if isinstance(place, Remote):
        yield from _remove(place, names)
        return
    cache = place.path
    bad = {item.key for item in damage if item.key}
    for name in FOLDERS:  # copying a cache may leave empty folders out
        ensure_dir(cache / name)
    if any(item.shard == "manifest" for item in damage):
        (cache / "manifest.json").unlink(missing_ok=True)
        yield "manifest"
    for shard in plan.shards:
        lease = acquire(cache / "leases", shard.name) if shard.name in names else None
        if lease is not None:  # None: sound, or somebody is making it right now
            with lease:
                reopen(cache, shard, plan.fingerprint_digest, without=bad)
            yield shard.name


def _remove(cache: Remote, names: set[str]) -> Iterator[str]:
    """Remove what is damaged, in the order in which a reader would otherwise trust it."""
    cache.remove("manifest.json")
    for name in sorted(names):
        for file in (f"done/{name}.json", f"{name}.tar"):
            cache.remove(file)
    yield from sorted(names) or ["manifest"]
