"""Processes of stage one as users start them, and what must be true of the cache that they leave."""

import json
import os
import subprocess
import sys
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cache_support import command_options, records, tars
from launch_support import ROOT, environment

from pipeline.shards import load_manifest
from teacher_cache.building.manifest import TEMPORARY, TEMPORARY_SECONDS
from teacher_cache.building.plan import load_plan
from teacher_cache.building.verify import verify_cache

PATIENT = f"python:{ROOT}/tests/noisy_teacher.py:patient"
LIMIT = 300
"""Seconds after which what is waited for is held to come never."""


class Owner(NamedTuple):
    """Who is in the middle of a shard."""

    pid: int
    host: str
    shard: str
    lease: str
    """Nonce of its lease."""


def stage_one(
    corpus: Path, cache: Path, *options: str, teacher: str = PATIENT, samples_per_shard: int = 5
) -> list[str]:
    """The command of one process."""
    words = ["teacher-cache", str(corpus), str(cache), *command_options(teacher, samples_per_shard), *options]
    return [sys.executable, "-m", "cli", *words]


def run(words: Sequence[str], **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=ROOT, env=environment(**variables), capture_output=True, text=True, timeout=LIMIT)


def begin(words: Sequence[str], log: Path, patience: float, **variables: str) -> subprocess.Popen[str]:
    """Start a process whose teacher takes `patience` seconds a call; what it says goes into `log`."""
    own = environment(DTKD_TEST_PATIENCE=str(patience), **variables)
    with open(log, "w") as file:
        return subprocess.Popen(words, cwd=ROOT, env=own, stdout=file, stderr=subprocess.STDOUT, text=True)


def begin_ray(corpus: Path, cache: Path, log: Path, patience: float, settings: Sequence[str]) -> subprocess.Popen[str]:
    """Start a pool of two workers on a cluster of one machine, with the teacher of `begin`."""
    words = [sys.executable, str(ROOT / "examples" / "ray_cache.py"), str(corpus), str(cache), "--cpus", "0.5"]
    words += ["--teacher", PATIENT, *(word for setting in settings for word in ("--set", setting))]
    return begin(words, log, patience, RAY_USAGE_STATS_ENABLED="0")


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def in_the_middle_of_a_shard(
    cache: Path, of_interest: Callable[[Owner], bool] = lambda owner: True, alive: Callable[[], bool] = lambda: True
) -> Owner:
    """The first one `of_interest` that has written samples of a shard it holds; looked for while `alive`."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline and alive():
        for journal in sorted(cache.glob("parts/*.jsonl")):
            shard, nonce, _ = journal.name.split(".")
            try:
                written = len(journal.read_text().splitlines()) - 1
                lease = json.loads((cache / "leases" / f"{shard}.json").read_bytes())
            except (FileNotFoundError, json.JSONDecodeError):
                continue  # finished between two looks
            owner = Owner(lease["pid"], lease["host"], shard, lease["nonce"])
            lives = Path(f"/proc/{owner.pid}").exists()  # what a killed one has left looks the same
            if written > 0 and lease["nonce"] == nonce and lives and of_interest(owner):
                return owner
        time.sleep(0.01)
    raise AssertionError("no such process was seen in the middle of a shard")


def assert_undisturbed(cache: Path, undisturbed: Path) -> None:
    """It is the cache that one process makes in peace: its bytes, every key once, sound, and no file beside it."""
    assert tars(cache) == tars(undisturbed)
    assert records(cache) == records(undisturbed)
    assert _told(cache) == _told(undisturbed)
    assert (cache / "plan.json").read_bytes() == (undisturbed / "plan.json").read_bytes()
    planned = Counter(sample.key for shard in load_plan(cache).shards for sample in shard.samples)
    assert _keys(cache) == planned and set(planned.values()) == {1}
    found = verify_cache(cache)
    assert found.ok and found.samples == len(planned), found.damage
    assert _files(cache) == _files(undisturbed)


def forget_the_time_of_temporary_files(cache: Path) -> None:
    """Make what killed processes have left as old as it must be for the next run to remove it."""
    for path in (path for pattern in TEMPORARY for path in cache.rglob(pattern)):
        os.utime(path, (time.time() - 2 * TEMPORARY_SECONDS,) * 2)


def _told(cache: Path) -> dict[str, Any]:
    """The manifest without what depends on the clock."""
    told = load_manifest(cache).to_json()
    return {name: value for name, value in told.items() if name not in ("teacher_seconds", "teacher_images", "shards")}


def _keys(cache: Path) -> Counter[str]:
    """Keys of all tars as any reader of WebDataset finds them, once for each time that a key has a GT."""
    found: Counter[str] = Counter()
    for path in cache.glob("*.tar"):
        with tarfile.open(path) as tar:
            found.update(name.removesuffix(".gt.webp") for name in tar.getnames() if name.endswith(".gt.webp"))
    return found


def _files(cache: Path) -> set[str]:
    return {str(path.relative_to(cache)) for path in cache.rglob("*") if path.is_file()}
