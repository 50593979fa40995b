"""The plan of a cache: every sample that will be in it, cut into shards, frozen before the first one is made.

The plan is a function of corpus and settings alone. Processes that start together make the same plan; one of them
writes it down, and whoever comes later compares: another corpus, teacher or setting is refused by name.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline import corpus as corpora
from pipeline.corpus import Corpus, Skipped, Source
from pipeline.degradation import Degradation
from pipeline.schema import (
    SCHEMA,
    Json,
    Split,
    canonical_bytes,
    canonical_json,
    check_schema,
    difference,
    digest,
    shard_name,
)
from pipeline.system.errors import DtkdError, UsageError
from pipeline.system.files import create_exclusive, read_json, sample_file
from teacher_cache.building import crops
from teacher_cache.building.crops import Tile
from teacher_cache.building.lease import TTL
from teacher_cache.teachers import ImportedTeacher, Teacher


@dataclass(frozen=True)
class BuildSettings:
    """What stage one makes (first block, fixed for a cache) and how this process works (second block)."""

    tile: int = 256
    """Side of a training tile, HR pixels."""
    degradation: Degradation = field(default_factory=Degradation)
    """How LR images are made."""
    seed: int = 0
    """Run seed; the seeds of every sample follow from it and the sample's key."""
    limit: int | None = None
    """Use this many photos at most, chosen by a hash of their names (not the first ones of the first folder)."""
    hold_out: int = 2
    """Photos that are kept out of training, one large crop of each in the `val` shards."""
    samples_per_shard: int = 64
    """Samples in a shard: the unit of work, and of loss when a disk is damaged."""
    micro_batch: int = 4
    """Training tiles that the teacher gets at once (held-out crops go one by one)."""
    context: int = 4
    """LR pixels around a tile that the teacher sees as well, so that its picture is as good at the border as inside;
    without effect on imported pictures."""

    max_failure_fraction: float = 0.1
    """Share of samples that may fail before the run stops."""
    retry_errors: bool = False
    """Make finished shards with failed samples again, keeping the good samples."""
    wait: bool = True
    """Wait for shards that other processes are working on, to take over when one of them dies."""
    lease_seconds: float = TTL
    """Take over a shard whose process on another machine gave no sign for so long."""

    def __post_init__(self) -> None:
        """Check ranges, and that a tile suits a two-level wavelet transform."""
        if self.tile < 8 or self.tile % 8:
            self.check_tile()
        for name in ("samples_per_shard", "micro_batch"):
            if getattr(self, name) < 1:
                raise DtkdError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.limit is not None and self.limit < 1:
            raise DtkdError(f"limit must be at least 1, got {self.limit}")
        if self.hold_out < 0:
            raise DtkdError(f"hold_out must be 0 or more, got {self.hold_out}")
        if not 0 <= self.context <= crops.MOST_CONTEXT:
            raise DtkdError(f"context must be within 0..{crops.MOST_CONTEXT} LR pixels, got {self.context}")
        if not 0 <= self.max_failure_fraction <= 1:
            raise DtkdError(f"max_failure_fraction must be within 0..1, got {self.max_failure_fraction}")
        if self.lease_seconds <= 0:
            raise DtkdError(f"lease_seconds must be above 0, got {self.lease_seconds}")

    def check_tile(self) -> None:
        """Check that a tile suits the scale, too; not before it is known that the teacher does."""
        multiple = math.lcm(8, self.degradation.scale)
        if self.tile < multiple or self.tile % multiple:
            raise UsageError(
                f"tile must be a multiple of {multiple}, got {self.tile} (at scale {self.degradation.scale})"
            )


@dataclass(frozen=True)
class PlannedSample:
    """One sample to make."""

    key: str
    tile: Tile


@dataclass(frozen=True)
class PlannedShard:
    """One shard to make."""

    name: str
    split: Split
    samples: tuple[PlannedSample, ...]


@dataclass(frozen=True)
class Plan:
    """Contents of plan.json."""

    corpus: str  # name, for people
    teacher: str  # name to load it by
    degradation: Json
    scale: int
    tile: int
    seed: int
    micro_batch: int
    context: int  # LR pixels around a tile that the teacher sees; 0 for pictures made elsewhere
    fingerprint: Json
    sources: tuple[tuple[str, int, int, str], ...]  # id, width, height, identity of the files
    skipped: tuple[Skipped, ...]
    shards: tuple[PlannedShard, ...]

    @property
    def planned(self) -> int:
        """Number of samples."""
        return sum(len(shard.samples) for shard in self.shards)

    @property
    def teacher_title(self) -> str:
        """The teacher's name for people, without the folder that it lay in."""
        return str(self.fingerprint["teacher"].get("name", self.teacher))

    @property
    def fingerprint_digest(self) -> str:
        """What done records carry of the fingerprint."""
        return digest(self.fingerprint)

    def batch(self, shard: PlannedShard) -> int:
        """Images that the teacher gets at once: held-out crops are large and differ in size, so they go alone."""
        return self.micro_batch if shard.split == "train" else 1

    def to_json(self) -> Json:
        """JSON object of plan.json; a tile is [key, source number, x, y, width, height]."""
        number = {source[0]: index for index, source in enumerate(self.sources)}
        data = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        shards = []
        for shard in self.shards:
            samples = [[s.key, number[s.tile.source], *_box(s.tile)] for s in shard.samples]
            shards.append({"name": shard.name, "split": shard.split, "samples": samples})
        skipped = [[item.id, item.reason] for item in self.skipped]
        return (
            {"schema": SCHEMA}
            | data
            | {"sources": [list(s) for s in self.sources], "skipped": skipped, "shards": shards}
        )

    @classmethod
    def from_json(cls, data: Any) -> "Plan":
        """Inverse of `to_json`; raises `DtkdError` for another schema or a damaged plan."""
        check_schema(data, "plan")
        data = {"context": 0} | data  # plans from before there was any
        try:
            fields = {item.name: data[item.name] for item in dataclasses.fields(cls)}
            sources = tuple((str(i), int(w), int(h), str(x)) for i, w, h, x in data["sources"])
            shards = tuple(_shard_from_json(shard, sources) for shard in data["shards"])
            skipped = tuple(Skipped(i, reason) for i, reason in data["skipped"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DtkdError(f"plan.json is damaged ({type(error).__name__}: {error}); make the cache again") from error
        return cls(**fields | {"sources": sources, "skipped": skipped, "shards": shards})


def make_plan(
    corpus: Corpus, teacher: Teacher | ImportedTeacher, settings: BuildSettings
) -> tuple[Plan, dict[str, Source]]:
    """Plan every sample; also the sources that the plan uses, by id.

    Training keys are sorted and cut every `samples_per_shard`; held-out crops get shards of their own.
    """
    if isinstance(teacher, ImportedTeacher):
        settings = dataclasses.replace(settings, context=0)
    sources = _limited(corpus.sources, settings.limit)
    identities = tuple((s.id, s.width, s.height, _identity(s)) for s in sources)
    halves = corpora.split(sources, settings.hold_out)
    degradation = settings.degradation
    plan = Plan(
        corpus=corpus.name,
        teacher=teacher.name,
        degradation=degradation.config(),
        scale=degradation.scale,
        tile=settings.tile,
        seed=settings.seed,
        micro_batch=settings.micro_batch,
        context=settings.context,
        fingerprint=_fingerprint(identities, teacher, settings),
        sources=identities,
        skipped=tuple(corpus.skipped),
        shards=(*_cut(halves.train, "train", settings), *_cut(halves.val, "val", settings)),
    )
    return plan, {source.id: source for source in sources}


def freeze(cache: Path, plan: Plan) -> None:
    """Write plan.json, or check that the one that is there says the same.

    Raises:
        DtkdError: the cache was begun with another corpus, teacher or setting (names the fields that differ).
    """
    if create_exclusive(cache / "plan.json", canonical_bytes(plan.to_json())):
        return
    old = load_plan(cache)
    changes = difference(old.fingerprint, plan.fingerprint)
    if changes and old.fingerprint.get("corpus") != plan.fingerprint["corpus"]:
        changes.append(_changed_sources(old.sources, plan.sources))
    if changes:
        raise DtkdError(
            f"{cache} was begun differently ({'; '.join(changes)}): use the old corpus, teacher and settings to go on, "
            "or another cache folder"
        )


def load_plan(cache: Path) -> Plan:
    """Read plan.json.

    Raises:
        DtkdError: there is none, it is damaged, or it has another schema.
    """
    try:
        data = read_json(cache / "plan.json")
    except (FileNotFoundError, NotADirectoryError):
        raise DtkdError(f"{cache} is no teacher cache (no plan.json); make one with `dtkd teacher-cache`") from None
    check_schema(data, "plan", cache)
    return Plan.from_json(data)


def _fingerprint(
    sources: Sequence[tuple[str, int, int, str]], teacher: Teacher | ImportedTeacher, settings: BuildSettings
) -> Json:
    fixed = ("tile", "seed", "limit", "hold_out", "samples_per_shard", "micro_batch", "context")
    fields = {
        "schema": SCHEMA,
        "corpus": {"photos": len(sources), "content": digest([list(source) for source in sources])},
        "degradation": settings.degradation.config(),
        "teacher": teacher.fingerprint(),
        "versions": {name: _version(name) for name in ("torch", "diffusers", "numpy", "pillow")},
        **{name: getattr(settings, name) for name in fixed},
    }
    return json.loads(canonical_json(fields))  # as it will be read back: no tuples


def _version(package: str) -> str | None:
    """Public version: processes with and without a GPU share a cache, `2.13.0+cpu` and `2.13.0+cu126`."""
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


def _identity(source: Source) -> str:
    files = [source.path] if source.lr_path is None else [source.path, source.lr_path]
    return " ".join(sample_file(file) for file in files)


def _limited(sources: Sequence[Source], limit: int | None) -> list[Source]:
    chosen = sorted(sources, key=lambda source: hashlib.blake2b(source.id.encode()).digest())[:limit]
    return sorted(chosen, key=lambda source: source.id)


def _cut(sources: Sequence[Source], split: Split, settings: BuildSettings) -> list[PlannedShard]:
    scale, size = settings.degradation.scale, settings.samples_per_shard
    tiles = [tile for source in sources for tile in crops.plan_tiles(source, settings.tile, scale, split)]
    samples = sorted((PlannedSample(crops.tile_key(t, settings.degradation), t) for t in tiles), key=lambda s: s.key)
    starts = range(0, len(samples), size)
    return [PlannedShard(shard_name(split, i), split, tuple(samples[a : a + size])) for i, a in enumerate(starts)]


def _box(tile: Tile) -> list[int]:
    return [tile.x, tile.y, tile.width, tile.height]


def _shard_from_json(data: Json, sources: Sequence[tuple[str, int, int, str]]) -> PlannedShard:
    split = data["split"]
    samples = tuple(
        PlannedSample(str(key), Tile(sources[number][0], int(x), int(y), int(width), int(height), split))
        for key, number, x, y, width, height in data["samples"]
    )
    return PlannedShard(str(data["name"]), split, samples)


def _changed_sources(old: Sequence[tuple[str, int, int, str]], new: Sequence[tuple[str, int, int, str]]) -> str:
    before, after = {source[0]: source for source in old}, {source[0]: source for source in new}
    groups = {
        "gone": sorted(before.keys() - after.keys()),
        "new": sorted(after.keys() - before.keys()),
        "changed": sorted(name for name in before.keys() & after.keys() if before[name] != after[name]),
    }
    return "photos " + ", ".join(
        f"{what}: {' '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for what, names in groups.items()
        if names
    )
