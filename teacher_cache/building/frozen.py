"""plan.json is written once, by whoever comes first; everybody else compares, and another plan is refused by name."""

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.schema import Json, Manifest, ShardRecord, canonical_bytes, difference, outputs_of
from pipeline.system.errors import DtkdError
from pipeline.system.files import create_exclusive, read_json
from teacher_cache.building.plan import Layout, Plan, load_plan


def freeze(cache: Path, plan: Plan) -> None:
    """Write plan.json, or check that the one that is there says the same.

    Where plan.json was lost, the same command writes it again: what the cache's other files say must agree with it.

    Raises:
        DtkdError: the cache was begun with another corpus, teacher or setting (names the fields that differ).
    """
    path = cache / "plan.json"
    if not path.exists():
        _refuse(cache, _differences_from_remains(cache, plan))
    if not create_exclusive(path, canonical_bytes(plan.to_json())):
        old = load_plan(cache)
        _refuse(cache, _differences(old, plan.fingerprint, plan.sources))


def check_layout(cache: Path, begun: Plan, layout: Layout) -> None:
    """Check that the cache was begun with this corpus and these settings; before the teacher is loaded.

    Raises:
        DtkdError: it was not.
    """
    known = {name: value for name, value in begun.fingerprint.items() if name in {*layout.fingerprint, "samples"}}
    _refuse(cache, _differences(dataclasses.replace(begun, fingerprint=known), layout.fingerprint, layout.identities))


def _differences(old: Plan, fingerprint: Json, sources: Sequence[tuple[str, int, int, str]]) -> list[str]:
    changes = _changes(old.fingerprint, fingerprint)
    if changes and old.fingerprint.get("corpus") != fingerprint["corpus"]:
        changes.append(_changed_sources(old.sources, sources))
    return changes


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs between two fingerprints, as lines; one output a tile is a number like any other here."""
    return difference({**old, "samples": outputs_of(old)}, {**new, "samples": outputs_of(new)})


def _differences_from_remains(cache: Path, plan: Plan) -> list[str]:
    """How the plan differs from what manifest and done records of a cache say, whose plan.json is missing."""
    with contextlib.suppress(FileNotFoundError, DtkdError):
        manifest = Manifest.from_json(read_json(cache / "manifest.json"))
        return _changes(manifest.fingerprint, plan.fingerprint)
    for path in sorted((cache / "done").glob("*.json")):
        with contextlib.suppress(DtkdError):
            record = ShardRecord.from_json(read_json(path))
            if record.fingerprint != plan.fingerprint_digest:
                return [f"{path.name}: fingerprint {record.fingerprint} -> {plan.fingerprint_digest}"]
    return []


def _refuse(cache: Path, changes: Sequence[str]) -> None:
    if changes:
        raise DtkdError(
            f"{cache} was begun differently ({'; '.join(changes)}): use the old corpus, teacher and settings to go on, "
            "or another cache folder"
        )


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
