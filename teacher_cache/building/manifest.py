"""Merging the records of all shards into the manifest of a finished cache."""

import contextlib
import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.schema import SCHEMA, Drift, Manifest, Sample, ShardRecord, canonical_bytes
from pipeline.shards import index_bytes
from pipeline.storage.places import Place
from pipeline.system.errors import DtkdError
from pipeline.system.files import atomic_write_bytes
from teacher_cache import known_files
from teacher_cache.building.lease import acquire, now
from teacher_cache.building.plan import Plan, load_plan
from teacher_cache.building.writer import clean_parts, read_record

FOLDERS = ("done", "leases", "parts")
TEMPORARY = (".*.tmp", ".*.stale", ".probe-*")
"""Names of files on their way to another name, as `pipeline.system.files` and `lease` give them."""
TEMPORARY_SECONDS = 600.0


def finalize(cache: Path, tars: Place | None = None) -> Manifest:
    """Merge the done records into manifest.json and its index; any process, any number of times, with the same bytes.

    Args:
        cache: folder of the cache.
        tars: where its tars are, if not in the folder.

    Raises:
        DtkdError: a shard is not done, or its record is damaged.
    """
    plan = load_plan(cache)
    records = []
    for shard in plan.shards:
        record = read_record(cache, shard, plan.fingerprint_digest, tars)
        if record is None:
            raise DtkdError(f"{cache}: shard {shard.name} is not done; run the same `dtkd teacher-cache` again")
        records.append(record)
    manifest = merge(plan, tuple(records))
    data, path = canonical_bytes(manifest.to_json()), cache / "manifest.json"
    if not path.exists() or path.read_bytes() != data:
        atomic_write_bytes(path, data)
    index, path = index_bytes(manifest, hashlib.sha256(data).hexdigest()), cache / "manifest.index"
    if not path.exists() or path.read_bytes() != index:
        atomic_write_bytes(path, index)
    _sweep(cache)
    return manifest


def _sweep(cache: Path) -> None:
    """Remove what killed processes have left; nothing that a living one may need, and nobody else's files."""
    folders = [folder for folder in (cache, *(cache / name for name in FOLDERS)) if folder.is_dir()]
    with contextlib.suppress(OSError):
        left = [path.name.partition(".")[0] for name in ("parts", "leases") for path in (cache / name).glob("[!.]*.*")]
        for shard in sorted(set(left)):
            if lease := acquire(cache / "leases", shard):  # None: it is being made again just now
                with lease:
                    clean_parts(cache, shard)
        shutil.rmtree(cache / known_files.FOLDER, ignore_errors=True)  # who comes now has nothing to make
        for path in (path for folder in folders for pattern in TEMPORARY for path in folder.glob(pattern)):
            if now(cache) - path.stat().st_mtime > TEMPORARY_SECONDS:
                path.unlink()


def merge(plan: Plan, records: tuple[ShardRecord, ...]) -> Manifest:
    """The manifest that a complete set of records makes."""
    ok = [sample for record in records for sample in record.ok]
    return Manifest(
        schema=SCHEMA,
        corpus=plan.corpus,
        teacher=plan.teacher_title,
        scale=plan.scale,
        tile=plan.tile,
        degradation=plan.degradation,
        seed=plan.seed,
        fingerprint=plan.fingerprint,
        planned=plan.planned,
        ok=len(ok),
        errors=plan.planned - len(ok),
        teacher_seconds=round(sum(record.teacher_seconds for record in records), 3),
        teacher_images=sum(record.teacher_images for record in records),
        drift=drift_of(ok),
        shards=records,
        about=plan.about,
    )


def drift_of(samples: Sequence[Sample]) -> Drift | None:
    """Colour drift of samples; None where none has any."""
    drifts = [(sample.drift, sample.key) for sample in samples if sample.drift is not None]
    if not drifts:
        return None
    values = np.array([value for value, _ in drifts])
    worst, key = max(drifts)
    return Drift(round(float(values.mean()), 4), round(float(np.percentile(values, 95)), 4), worst, key)
