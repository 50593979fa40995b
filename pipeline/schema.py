"""Schema 1 of the teacher cache: what both stages must agree on, byte for byte.

    CACHE/plan.json             frozen plan: every key, in which shard, under which fingerprint
    CACHE/shard-%08d.tar        training samples      CACHE/val-%08d.tar    held-out samples
    CACHE/done/NAME.json        one `ShardRecord` per finished shard: the only truth about it
    CACHE/manifest.json         all records merged (`Manifest`); written when the last shard is done
    CACHE/manifest.index        the same in binary, for opening large caches; may be missing (`pipeline.shards.Index`)
    CACHE/leases/, CACHE/parts/ work in progress of stage one
    CACHE/scans/                what its processes know of the corpus's files; gone when the cache is finished

Members of a sample are contiguous in its tar: `KEY.around.webp KEY.gt.webp KEY.json KEY.lr.webp KEY.teacher.webp`, the
pictures as lossless WebP. `around` is what the teacher saw, the LR image and a few pixels of its surroundings; it is
absent where the plan's `context` is 0. A cache may hold several outputs of the teacher for each tile, of different
seeds: `samples` in its fingerprint, which is not there for one. The others are `KEY.teacher1.webp` and so on. In a
record members are named `around gt lr teacher teacher1 json`, each with its place in the tar. Reading (`read_member`,
`load_manifest`) is in `pipeline.shards`. NAME above is a shard's name without `.tar`.
"""

import dataclasses
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from pipeline.system.errors import DtkdError

SCHEMA = 1
MEMBERS = ("lr", "gt", "teacher")
AROUND = "around"
TEACHERS = ("teacher", *(f"teacher{number}" for number in range(1, 16)))
"""Members that hold the outputs of a tile, the first ones of these; a name is the purpose of its seed, too."""
REPAIR = "`dtkd verify CACHE --repair`, then the same `dtkd teacher-cache` again"
SPLITS = ("train", "val")
Split: TypeAlias = Literal["train", "val"]
Json: TypeAlias = dict[str, Any]


def canonical_json(obj: object) -> str:
    """JSON that depends on the value alone: sorted keys, no spaces, ASCII, no NaN."""
    return json.dumps(obj, sort_keys=True, separators=(",", ":"), allow_nan=False)


def canonical_bytes(obj: object) -> bytes:
    """`canonical_json` as a file: plans, records and manifests are long, so without indentation."""
    return f"{canonical_json(obj)}\n".encode()


def digest(obj: object) -> str:
    """24 hex digits of blake2b over the canonical JSON of `obj`."""
    return hashlib.blake2b(canonical_json(obj).encode(), digest_size=12).hexdigest()


def sample_key(source_id: str, crop: tuple[int, int, int, int], degradation: Mapping[str, Any]) -> str:
    """Key of a sample: 24 hex digits of (source id, crop (x, y, width, height) in HR pixels, degradation config).

    Without dots on purpose: WebDataset cuts keys at the first one.
    """
    return digest([source_id, list(crop), dict(degradation)])


def sample_seed(run_seed: int, key: str, purpose: str) -> int:
    """Seed in [0, 2**63) of a random purpose, "degrade" or one of `TEACHERS`, of a sample; whoever computes it."""
    text = canonical_json([run_seed, key, purpose])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


@dataclass(frozen=True)
class Member:
    """Place of a member's bytes in its tar."""

    offset: int  # bytes from the start of the tar to the first byte of the content
    size: int  # bytes
    crc32: int  # zlib.crc32 of the content


@dataclass(frozen=True)
class SampleError:
    """Why a planned sample has no bytes."""

    stage: str  # "load", "degrade", "teacher" or "encode"
    type: str  # name of the exception's class
    message: str  # its first line


@dataclass(frozen=True)
class Sample:
    """Outcome of one planned key: `ok` with members (`lr gt teacher json`, `around`), or `error` with the reason."""

    key: str
    split: Split
    status: Literal["ok", "error"]
    members: Mapping[str, Member]
    error: SampleError | None = None
    drift: float | None = None  # colour drift: |mean of the teacher's first output - of the LR tile|, 8-bit levels

    @property
    def outputs(self) -> int:
        """Outputs of the teacher that it has."""
        return sum(name in self.members for name in TEACHERS)

    def to_json(self) -> Json:
        """Compact form inside a record (the split is the shard's)."""
        data: Json = {"key": self.key, "status": self.status}
        if self.error is not None:
            return data | {"error": dataclasses.asdict(self.error)}
        members = {name: [place.offset, place.size, place.crc32] for name, place in self.members.items()}
        return data | {"drift": self.drift, "members": members}

    @classmethod
    def from_json(cls, data: object, split: Split) -> "Sample":
        """Inverse of `to_json`; raises `DtkdError` on anything else."""
        status = data.get("status") if isinstance(data, dict) else None
        if status == "error":
            got = _take(data, "sample", key=str, status=str, error=dict)
            error = SampleError(**_take(got["error"], "error", stage=str, type=str, message=str))
            return cls(got["key"], split, "error", {}, error)
        got = _take(data, "sample", key=str, status=str, drift=(float, int, type(None)), members=dict)
        names = got["members"].keys() - {AROUND}
        outputs = TEACHERS[: max(len(names) - 3, 1)]
        if status != "ok" or names != {"lr", "gt", "json", *outputs}:
            expected = " ".join(sorted((*MEMBERS, "json")))
            raise DtkdError(f"damaged record: sample {got['key']} must be ok with members {expected}")
        members = {name: _member(place) for name, place in got["members"].items()}
        return cls(got["key"], split, "ok", members, drift=got["drift"])


@dataclass(frozen=True)
class ShardRecord:
    """What is true of one finished shard."""

    schema: int
    name: str  # without .tar
    split: Split
    fingerprint: str  # digest of the run's fingerprint
    samples: tuple[Sample, ...]  # every planned key, in the order of the plan
    sha256: str  # of the tar
    bytes: int  # of the tar
    seconds: float  # wall-clock seconds of the attempt that finished the shard
    teacher_seconds: float  # inside the teacher, taken over samples of earlier attempts included
    teacher_images: int  # images that the teacher restored in that time, padding of batches not counted

    @property
    def ok(self) -> list[Sample]:
        """Samples that have bytes."""
        return [sample for sample in self.samples if sample.status == "ok"]

    @property
    def errors(self) -> list[Sample]:
        """Samples that failed."""
        return [sample for sample in self.samples if sample.status == "error"]

    def to_json(self) -> Json:
        """JSON object of the done record."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return data | {"samples": [sample.to_json() for sample in self.samples]}

    @classmethod
    def from_json(cls, data: object) -> "ShardRecord":
        """Inverse of `to_json`; raises `DtkdError` for another schema or a damaged record."""
        check_schema(data, "the shard's record")
        got = _take(data, "shard record", schema=int, name=str, split=str, fingerprint=str, samples=list, sha256=str,
                    bytes=int, seconds=(float, int), teacher_seconds=(float, int), teacher_images=int)  # fmt: skip
        split = _split(got["split"])
        check_shard_name(got["name"], split)
        samples = tuple(Sample.from_json(s, split) for s in got["samples"])
        if len({sample.key for sample in samples}) < len(samples):
            twice = Counter(sample.key for sample in samples).most_common(1)[0][0]
            raise DtkdError(f"damaged record: {got['name']} has sample {twice} twice")
        return cls(**got | {"split": split, "samples": samples})


@dataclass(frozen=True)
class Drift:
    """Colour drift over a cache, in 8-bit levels (see `Sample.drift`)."""

    mean: float
    p95: float
    worst: float
    worst_key: str


@dataclass(frozen=True)
class Manifest:
    """A complete cache: every record, and what made it."""

    schema: int
    corpus: str  # name, for people
    teacher: str  # name
    scale: int
    tile: int  # HR pixels
    degradation: Mapping[str, Any]  # `Degradation.config()`
    seed: int
    fingerprint: Mapping[str, Any]
    planned: int
    ok: int
    errors: int
    teacher_seconds: float  # wall-clock seconds inside the teacher, all processes together
    teacher_images: int
    drift: Drift | None
    shards: tuple[ShardRecord, ...]  # in the order of the plan
    about: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of the teacher's weights: licence, origin

    @property
    def outputs(self) -> int:
        """Outputs of the teacher for each tile."""
        return outputs_of(self.fingerprint)

    @property
    def teacher_origin(self) -> dict[str, str]:
        """The teacher's name, the hash of its weights, and what is known of their origin, for who learns from it."""
        weights = self.fingerprint.get("teacher", {}).get("weights")
        return {"name": self.teacher} | ({"weights": str(weights)} if weights else {}) | dict(self.about)

    def samples(self, split: Split) -> Iterator[tuple[ShardRecord, Sample]]:
        """Every ok sample of a split with its shard, in the order of the plan."""
        for shard in self.shards:
            if shard.split == split:
                for sample in shard.ok:
                    yield shard, sample

    def to_json(self) -> Json:
        """JSON object of manifest.json."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        drift = dataclasses.asdict(self.drift) if self.drift else None
        if not self.about:  # absent, as before it was told
            del data["about"]
        return data | {"drift": drift, "shards": [shard.to_json() for shard in self.shards]}

    @classmethod
    def from_json(cls, data: object) -> "Manifest":
        """Inverse of `to_json`; raises `DtkdError` for another schema or a damaged manifest."""
        check_schema(data, "the manifest")
        data = {"about": {}, **data} if isinstance(data, dict) else data
        got = _take(data, "manifest", schema=int, corpus=str, teacher=str, scale=int, tile=int, degradation=dict,
                    seed=int, fingerprint=dict, planned=int, ok=int, errors=int, teacher_seconds=(float, int),
                    teacher_images=int, drift=(dict, type(None)), shards=list, about=dict)  # fmt: skip
        drift = got["drift"] and Drift(**_take(got["drift"], "drift", mean=(float, int), p95=(float, int),
                                               worst=(float, int), worst_key=str))  # fmt: skip
        made = cls(**got | {"drift": drift, "shards": tuple(ShardRecord.from_json(s) for s in got["shards"])})
        for sample in (sample for shard in made.shards for sample in shard.ok):
            if sample.outputs != made.outputs:
                raise DtkdError(f"damaged record: {sample.key} has {sample.outputs} outputs, expected {made.outputs}")
        return made


def shard_name(split: Split, index: int) -> str:
    """`shard-00000000` for training samples, `val-00000000` for held-out ones."""
    return f"{'shard' if split == 'train' else split}-{index:08d}"


def check_shard_name(name: str, split: Split) -> None:
    """Refuse a name that `shard_name` does not give: it becomes part of paths."""
    prefix = shard_name(split, 0).removesuffix("0" * 8)
    if not re.fullmatch(rf"{prefix}[0-9]{{8,}}", name):
        raise DtkdError(f"damaged record: a shard of {split} must be named like {prefix}00000000, got {name!r:.60}")


def check_schema(data: object, what: str, remedy: str = "") -> None:
    """Refuse JSON of another schema, naming both numbers; JSON without one is damaged, and `remedy` says what helps."""
    found = data.get("schema") if isinstance(data, dict) else None
    if not isinstance(found, int) or isinstance(found, bool):
        raise DtkdError(f"{what} is damaged, it has no schema number{remedy and f': {remedy}'}")
    if found != SCHEMA:
        raise DtkdError(
            f"{what} has schema {found}, this program reads schema {SCHEMA}; make the cache again with this "
            "version, or use the version that made it"
        )


def outputs_of(fingerprint: Mapping[str, Any]) -> int:
    """How many outputs of the teacher a cache with this fingerprint holds for each tile."""
    return fingerprint.get("samples", 1)


def difference(old: object, new: object, prefix: str = "") -> list[str]:
    """Fields in which two JSON values differ, as `field: old -> new` lines."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        lines: list[str] = []
        for name in sorted({*old, *new}):
            lines += difference(old.get(name), new.get(name), f"{prefix}.{name}" if prefix else str(name))
        return lines
    if old == new:
        return []
    return [f"{prefix}: {_short(old)} -> {_short(new)}"]


def _short(value: object) -> str:
    text = canonical_json(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _take(data: object, what: str, **types: type | tuple[type, ...]) -> Json:
    """`data` as a dictionary with exactly the fields `types`, each of its type (a bool is no number)."""
    if not isinstance(data, dict):
        raise DtkdError(f"damaged record: {what} must be an object, got {type(data).__name__}")
    if data.keys() != types.keys():
        odd = sorted(data.keys() ^ types.keys())
        raise DtkdError(f"damaged record: {what} has unknown or missing fields {', '.join(map(str, odd))}")
    for name, kind in types.items():
        if not isinstance(data[name], kind) or isinstance(data[name], bool):
            raise DtkdError(f"damaged record: {what}.{name} is a {type(data[name]).__name__}")
    return data


def _member(place: object) -> Member:
    numbers = cast(Sequence[object], place) if isinstance(place, list) else ()
    match numbers:
        case [int(offset), int(size), int(crc32)] if (
            min(offset, size, crc32) >= 0 and max(offset, size) < 2**62 and crc32 < 2**32
        ):
            return Member(offset, size, crc32)
        case _:
            raise DtkdError(f"damaged record: a member must be [offset, size, crc32], got {place!r:.60}")


def _split(name: str) -> Split:
    if name not in SPLITS:
        raise DtkdError(f"damaged record: split must be one of {', '.join(SPLITS)}, got {name!r:.60}")
    return cast(Split, name)
