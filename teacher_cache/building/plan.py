"""The plan of a cache: every sample that will be in it, cut into shards, frozen before the first one is made.

The plan is a function of corpus, teacher and settings alone, so processes that start together make the same one; see
`frozen` for how one of them writes it down and the others compare.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.corpus import Corpus, Skipped, Source, split_photos
from pipeline.schema import (
    SCHEMA,
    SPLITS,
    Json,
    Split,
    canonical_json,
    check_schema,
    check_shard_name,
    digest,
    outputs_of,
    shard_name,
)
from pipeline.storage.places import Place, place_of, read_json
from pipeline.system.errors import DtkdError
from pipeline.system.files import sample_file
from pipeline.teacher import Teacher
from teacher_cache.building import crops
from teacher_cache.building.crops import Tile
from teacher_cache.building.settings import BuildSettings

PLAN_AGAIN = "the same `dtkd teacher-cache` command then writes it again, and makes nothing anew that is sound"


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
    about: Json = dataclasses.field(default_factory=dict)  # of the teacher's weights: licence, repository, revision

    @property
    def planned(self) -> int:
        """Number of samples."""
        return sum(len(shard.samples) for shard in self.shards)

    @property
    def teacher_title(self) -> str:
        """The teacher's name for people, without the folder that it lay in."""
        return str(self.fingerprint["teacher"]["name"])

    @property
    def outputs(self) -> int:
        """Outputs of the teacher for each tile."""
        return outputs_of(self.fingerprint)

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
        """Inverse of `to_json`, of this schema; raises `DtkdError` for a damaged plan."""
        try:
            fields = {item.name: data[item.name] for item in dataclasses.fields(cls) if item.name != "about"}
            about = {str(name): str(value) for name, value in dict(data.get("about", {})).items()}
            sources = tuple((str(i), int(w), int(h), str(x)) for i, w, h, x in data["sources"])
            shards = tuple(_shard_from_json(shard, sources) for shard in data["shards"])
            skipped = tuple(Skipped(i, reason) for i, reason in data["skipped"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DtkdError(
                f"plan.json is damaged ({type(error).__name__}: {error}): remove it; {PLAN_AGAIN}"
            ) from error
        return cls(**fields | {"sources": sources, "skipped": skipped, "shards": shards, "about": about})


@dataclass(frozen=True)
class OutlinedShard:
    """A planned shard without its tiles."""

    name: str
    split: Split
    keys: tuple[str, ...]
    photos: tuple[int, ...]
    """Number of each sample's photo in `Plan.sources`."""


@dataclass(frozen=True)
class Outline:
    """A plan without its tiles: what can be known of a cache of many shards in a moment."""

    plan: Plan
    """Without its shards."""
    shards: tuple[OutlinedShard, ...]

    @property
    def planned(self) -> int:
        """Number of samples."""
        return sum(len(shard.keys) for shard in self.shards)

    def photo(self, shard: OutlinedShard, key: str) -> str:
        """Id of the photo that a sample is of."""
        return self.plan.sources[shard.photos[shard.keys.index(key)]][0]


@dataclass(frozen=True)
class Layout:
    """The part of a plan that no teacher is needed for."""

    corpus: Corpus
    sources: tuple[Source, ...]
    """The photos that are used."""
    identities: tuple[tuple[str, int, int, str], ...]
    """`Plan.sources`."""
    shards: tuple[PlannedShard, ...]
    fingerprint: Json
    """What the plan's fingerprint says of corpus, settings and versions."""


def lay_out(
    corpus: Corpus,
    settings: BuildSettings,
    identify: Callable[[Path], str] = sample_file,
    begun: Plan | None = None,
) -> Layout:
    """Cut the photos into tiles, and these into shards.

    Training keys are sorted and cut every `samples_per_shard`; held-out crops get shards of their own.

    Args:
        corpus: the photos.
        settings: tile, shards and what else decides it.
        identify: what the plan says of a photo's file.
        begun: the plan of the cache, where it has one; of the same photos and settings, it is cut already.

    Raises:
        DtkdError: more photos are held out than there are.
    """
    sources = _limited(corpus.sources, settings.limit)
    identities = tuple((s.id, s.width, s.height, _identity(s, identify)) for s in sources)
    fingerprint = _layout_fingerprint(identities, settings)
    parts = split_photos(sources, settings.hold_out)
    if begun and all(begun.fingerprint.get(name) == value for name, value in fingerprint.items()):
        shards = begun.shards
    else:
        shards = (*_cut(parts.train, "train", settings), *_cut(parts.val, "val", settings))
    return Layout(corpus, tuple(sources), identities, shards, fingerprint)


def make_plan(layout: Layout, teacher: Teacher, settings: BuildSettings) -> Plan:
    """Plan every sample."""
    degradation = settings.degradation
    context = settings.context if teacher.sees_context else 0
    told = {"teacher": teacher.fingerprint(), "context": context}
    return Plan(
        corpus=layout.corpus.name,
        teacher=teacher.name,
        degradation=degradation.config(),
        scale=degradation.scale,
        tile=settings.tile,
        seed=settings.seed,
        micro_batch=settings.micro_batch,
        context=context,
        fingerprint=json.loads(canonical_json(layout.fingerprint | told)),  # as it will be read back: no tuples
        sources=layout.identities,
        skipped=tuple(layout.corpus.skipped),
        shards=layout.shards,
        about=dict(teacher.about),
    )


def refuse_seen(layout: Layout, teacher: Teacher, hold_out: int) -> None:
    """Check that the teacher was not trained on a photo that is held out: its pictures there would flatter it.

    Raises:
        DtkdError: it was (says how many photos can be held out).
    """
    seen = {name for name, _, _, files in layout.identities if files.partition(" ")[0] in teacher.trained_on}

    def held_out(count: int) -> list[str]:
        return [source.id for source in split_photos(layout.sources, count).val if source.id in seen]

    if wrong := held_out(hold_out):
        most = next(count for count in range(hold_out - 1, -1, -1) if not held_out(count))
        raise DtkdError(
            f"{teacher.name} was trained on {len(wrong)} of the {hold_out} held-out photos ({', '.join(wrong[:3])}), "
            f"which would flatter it: take --hold-out {most}, photos that it has not seen, or another teacher"
        )


def load_plan(cache: str | Path | Place) -> Plan:
    """Read plan.json.

    Raises:
        DtkdError: there is none, it is damaged, or it has another schema.
    """
    return Plan.from_json(_read(place_of(cache)))


def load_outline(cache: str | Path | Place) -> Outline:
    """Read plan.json as far as it tells which samples there are: several times faster than `load_plan`.

    Raises:
        DtkdError: as `load_plan`.
    """
    data = _read(place_of(cache))
    plan = Plan.from_json(data | {"shards": []})
    try:
        outlined = tuple(_outlined(shard, len(plan.sources)) for shard in data["shards"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise DtkdError(f"plan.json is damaged ({type(error).__name__}: {error}): remove it; {PLAN_AGAIN}") from error
    return Outline(plan, outlined)


def _read(cache: Place) -> Json:
    try:
        data = read_json(cache, "plan.json")
    except (FileNotFoundError, NotADirectoryError):
        if cache.holds("done"):
            raise DtkdError(f"{cache} has lost its plan.json: {PLAN_AGAIN}") from None
        raise DtkdError(f"{cache} is no teacher cache (no plan.json); make one with `dtkd teacher-cache`") from None
    except DtkdError as error:
        raise DtkdError(f"{error}: remove it; {PLAN_AGAIN}") from error
    check_schema(data, f"{cache}: plan.json", f"remove {cache}/plan.json; {PLAN_AGAIN}")
    return data


def _identity(source: Source, identify: Callable[[Path], str]) -> str:
    """Of a photo's files: the HR one's, and after a space the LR one's where there is one."""
    files = [source.path] if source.lr_path is None else [source.path, source.lr_path]
    return " ".join(map(identify, files))


def _layout_fingerprint(sources: Sequence[tuple[str, int, int, str]], settings: BuildSettings) -> Json:
    fixed = ("tile", "seed", "limit", "hold_out", "samples_per_shard", "micro_batch")
    fields = {
        "schema": SCHEMA,
        "corpus": {"photos": len(sources), "content": digest([list(source) for source in sources])},
        "degradation": settings.degradation.config(),
        "versions": {name: _version(name) for name in ("torch", "diffusers", "numpy", "pillow")},
        **{name: getattr(settings, name) for name in fixed},
    }
    several = {"samples": settings.samples} if settings.samples > 1 else {}  # absent: as before there could be several
    return json.loads(canonical_json(fields | several))


def _version(package: str) -> str | None:
    """Public version: processes with and without a GPU share a cache, `2.13.0+cpu` and `2.13.0+cu126`."""
    try:
        return metadata.version(package).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


def _limited(sources: Sequence[Source], limit: int | None) -> list[Source]:
    chosen = sorted(sources, key=lambda source: hashlib.blake2b(source.id.encode()).digest())[:limit]
    return sorted(chosen, key=lambda source: source.id)


def _cut(sources: Sequence[Source], split: Split, settings: BuildSettings) -> list[PlannedShard]:
    scale, size = settings.degradation.scale, settings.samples_per_shard
    degradation = settings.degradation.config()
    tiles = [tile for source in sources for tile in crops.tiles_of(source, settings.tile, scale, split)]
    samples = sorted((PlannedSample(crops.tile_key(t, degradation), t) for t in tiles), key=lambda s: s.key)
    starts = range(0, len(samples), size)
    return [PlannedShard(shard_name(split, i), split, tuple(samples[a : a + size])) for i, a in enumerate(starts)]


def _box(tile: Tile) -> list[int]:
    return [tile.x, tile.y, tile.width, tile.height]


def _shard_from_json(data: Json, sources: Sequence[tuple[str, int, int, str]]) -> PlannedShard:
    split = data["split"]
    check_shard_name(str(data["name"]), split)
    samples = tuple(
        PlannedSample(str(key), Tile(sources[number][0], int(x), int(y), int(width), int(height), split))
        for key, number, x, y, width, height in data["samples"]
    )
    return PlannedShard(str(data["name"]), split, samples)


def _outlined(shard: Json, sources: int) -> OutlinedShard:
    split = shard["split"]
    keys, photos = zip(*((str(key), int(number)) for key, number, *_ in shard["samples"]), strict=True)
    if split not in SPLITS or not 0 <= min(photos) <= max(photos) < sources:
        raise ValueError(f"shard {shard['name']}")
    return OutlinedShard(str(shard["name"]), split, keys, photos)
