"""What `dtkd status` tells of caches that are finished, in work, begun, left by killed processes, or damaged."""

import json
import os
import shutil
import signal
import time

import pytest
from cache_support import NoisyBicubic, messages, settings, start
from cli_support import dtkd, refused

from pipeline.shards import done_path, load_manifest
from pipeline.system.errors import DtkdError
from teacher_cache.building.build import build_cache, prepare, process_shard
from teacher_cache.building.lease import acquire
from teacher_cache.building.plan import load_outline, load_plan
from teacher_cache.reporting.ledger import PRESENTATIONS
from teacher_cache.reporting.status import Watcher, read_status

ADVICE = "--repair`, then the same `dtkd teacher-cache` again"


def state_of(folder):
    """Every file below a folder with its bytes and times."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_a_finished_cache_is_told_as_its_manifest_has_it_and_left_alone(finished):
    before, manifest = state_of(finished), load_manifest(finished)
    found = read_status(finished, presentations=1000)
    assert (found.complete, found.failure, found.planned, found.done, found.failed) == (True, None, 17, 17, 0)
    assert (found.shards, found.shards_done, found.in_work, found.rate) == (5, 5, 0, None)
    assert found.bytes == sum((finished / f"{shard.name}.tar").stat().st_size for shard in manifest.shards)
    assert found.ledger.so_far == pytest.approx(manifest.teacher_seconds)
    assert found.ledger.once == pytest.approx(manifest.teacher_seconds)
    assert found.ledger.in_the_loop == pytest.approx(1000 * manifest.teacher_seconds / 17)
    assert found.ledger.ratio == pytest.approx(1000 / 17)
    assert found.lines()[1:3] == ["17 of 17 tiles (100%), 5 of 5 shards", "complete"]
    assert state_of(finished) == before


def test_an_outline_is_the_plan_without_its_tiles(finished):
    outline, plan = load_outline(finished), load_plan(finished)
    assert outline.planned == plan.planned
    for light, shard in zip(outline.shards, plan.shards, strict=True):
        assert (light.name, light.split, light.keys) == (shard.name, shard.split, tuple(s.key for s in shard.samples))
        assert [outline.photo(light, s.key) for s in shard.samples] == [s.tile.source for s in shard.samples]


def test_a_cache_in_work_is_counted_to_the_tile(corpus, tmp_path):
    """Asked while the process that makes it is between two micro-batches, after a whole shard."""
    cache, seen = tmp_path / "cache", []
    work = prepare(str(corpus), cache, NoisyBicubic(), settings())
    watcher = Watcher(cache)
    assert (watcher.look().done, watcher.look().rate, watcher.look().ledger) == (0, None, None)
    process_shard(work, 0, lambda samples: seen.append(watcher.look()))
    assert [(found.done, found.in_work) for found in seen] == [(0, 2), (0, 4), (0, 5)]
    first = seen[0]
    (holder,) = first.at_work
    assert (holder.shard, holder.pid, holder.stale) == ("shard-00000000", os.getpid(), False)
    assert first.rate == pytest.approx(1 / first.ledger.an_image)
    assert first.seconds_left == pytest.approx(15 * first.ledger.an_image)
    seen.clear()
    process_shard(work, 1, lambda samples: seen.append(watcher.look()))
    seconds = json.loads(done_path(cache, "shard-00000000").read_text())["seconds"]
    assert (seen[0].done, seen[0].in_work, seen[0].shards_done) == (5, 2, 1)
    assert seen[0].rate == pytest.approx(5 / seconds, rel=1e-3)
    idle = watcher.look()
    assert (idle.done, idle.at_work, idle.complete) == (10, [], False)
    assert "nobody is at work: the same `dtkd teacher-cache` goes on" in idle.lines()[2]


def test_what_a_killed_process_left_is_a_stale_lease_and_its_tiles_count(corpus, tmp_path):
    process, pipe = start(corpus, tmp_path / "cache", die_after=7)
    list(messages(pipe))
    process.join()
    found = read_status(tmp_path / "cache")
    assert (found.done, found.in_work, found.at_work) == (5, 2, [])
    (holder,) = found.holders
    assert (holder.shard, holder.pid, holder.stale) == ("shard-00000001", process.pid, True)
    assert any(line.startswith("stale lease: shard-00000001, process") for line in found.lines())


def test_a_lease_from_elsewhere_is_stale_when_it_was_silent_for_long(cache):
    (cache / "manifest.json").unlink()
    done_path(cache, "shard-00000002").unlink()
    lease = acquire(cache / "leases", "shard-00000002")
    lease.path.write_text(json.dumps({"nonce": "0", "host": "elsewhere", "boot": "other", "pid": 7}))
    assert [holder.stale for holder in read_status(cache).holders] == [False]
    os.utime(lease.path, (time.time() - 600,) * 2)
    (holder,) = read_status(cache).holders
    assert (holder.host, holder.pid, holder.stale) == ("elsewhere", 7, True)
    assert holder.silent == pytest.approx(600, abs=30)


def test_failures_are_told_by_kind_with_a_photo(corpus, tmp_path):
    mixed = shutil.copytree(corpus, tmp_path / "photos")
    data = (mixed / "coffee.png").read_bytes()
    (mixed / "coffee.png").write_bytes(data[: len(data) // 2])
    teacher = NoisyBicubic(refuse=lambda image: image.mean() < 0.45)
    result = build_cache(str(mixed), tmp_path / "cache", teacher, settings(max_failure_fraction=1.0))
    found = read_status(tmp_path / "cache")
    by_kind = {(kind.stage, kind.type): kind for kind in found.kinds}
    assert found.failed == result.errors == sum(kind.count for kind in found.kinds)
    assert by_kind["load", "ImageError"].photo == "coffee.png" and by_kind["load", "ImageError"].count == 4
    assert by_kind["teacher", "ValueError"].message == "this teacher does not like the picture"
    assert any(
        line.startswith("failed in load, ImageError: 4 tiles, for example coffee.png: ") for line in found.lines()
    )


def test_pictures_that_were_made_elsewhere_have_no_ledger(cache):
    (cache / "manifest.json").unlink()
    for path in (cache / "done").iterdir():
        path.write_text(json.dumps(json.loads(path.read_text()) | {"teacher_seconds": 0.0, "teacher_images": 0}))
    found = read_status(cache)
    assert found.ledger is None and found.to_json()["ledger"] is None


def test_watching_ends_when_the_cache_is_complete(corpus, tmp_path, monkeypatch):
    """The rest of the cache is made between two looks."""
    monkeypatch.setattr("teacher_cache.reporting.status.REFRESH", 0.01)
    cache, events = tmp_path / "cache", []
    process_shard(prepare(str(corpus), cache, NoisyBicubic(), settings()), 0)

    def show(event):
        events.append((event.done, event.total, event.unit))
        if len(events) == 2:
            build_cache(str(corpus), cache, NoisyBicubic(), settings())

    assert read_status(cache, watch=True, on_progress=show).complete
    assert events == [(5, 17, "tiles"), (5, 17, "tiles"), (17, 17, "tiles")]


def test_ctrl_c_ends_watching_with_the_last_status(corpus, tmp_path):
    cache = tmp_path / "cache"
    process_shard(prepare(str(corpus), cache, NoisyBicubic(), settings()), 0)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        found = read_status(cache, watch=True, on_progress=lambda event: signal.raise_signal(signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, before)
    assert (found.done, found.complete, found.failure) == (5, False, None)


# Damage --------------------------------------------------------------------------------------------------------------


def change(**fields):
    return lambda cache, path: path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda cache, path: path.write_bytes(path.read_bytes()[:500]), "not JSON"),
        (lambda cache, path: path.write_bytes(b""), "not JSON"),
        (lambda cache, path: path.write_text("[]"), "no list of samples"),
        (change(samples=[]), "of another plan"),
        (change(fingerprint="0"), "of another plan"),
        (change(schema=2), "has schema 2"),
        (change(bytes="many"), "bytes is a str"),
        (lambda cache, path: (cache / "shard-00000001.tar").unlink(), "is missing"),
        (lambda cache, path: os.truncate(cache / "shard-00000001.tar", 1024), "has 1024 bytes, expected"),
    ],
)
def test_a_damaged_shard_is_told_of_with_the_remedy_and_the_rest_counted(cache, damage, reason):
    watcher = Watcher(cache)
    assert watcher.look().complete
    damage(cache, done_path(cache, "shard-00000001"))
    for found in (watcher.look(), watcher.look(), read_status(cache)):
        ((name, told),) = found.damaged
        assert name == "shard-00000001" and reason in told
        assert (found.done, found.shards_done, found.complete) == (12, 4, False)
        assert found.failure == f"1 damaged shard: `dtkd verify {cache} {ADVICE}"


def test_a_repaired_shard_is_damaged_no_more(corpus, cache):
    watcher, path = Watcher(cache), done_path(cache, "shard-00000001")
    path.write_bytes(b"")
    assert len(watcher.look().damaged) == 1
    build_cache(str(corpus), cache, NoisyBicubic(), settings())
    assert (watcher.look().damaged, watcher.look().complete) == ((), True)


def test_a_cache_without_a_sound_plan_says_what_to_do(cache, tmp_path):
    plan = json.loads((cache / "plan.json").read_text())
    plan["shards"][0]["samples"][0][1] = 99
    (cache / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(DtkdError, match=r"plan\.json is damaged .*: remove it; the same `dtkd teacher-cache`"):
        read_status(cache)
    (cache / "plan.json").unlink()
    with pytest.raises(DtkdError, match=r"lost its plan\.json: the same `dtkd teacher-cache`"):
        read_status(cache)
    with pytest.raises(DtkdError, match="is no teacher cache"):
        read_status(tmp_path / "nowhere")


# The command ---------------------------------------------------------------------------------------------------------


def test_the_help_tells_the_default_of_presentations():
    out, _ = dtkd("status", "--help")
    assert f"[default: {PRESENTATIONS}]" in " ".join(out.split())


def test_the_command_prints_text_or_json(cache):
    out, err = dtkd("status", cache, "--presentations", 1700)
    assert err == "" and out.splitlines()[2] == "complete" and "1700 tiles shown" in out and "100 times as much" in out
    done_path(cache, "val-00000000").write_text("{}")
    out, err = dtkd("status", cache, "--json", code=1)
    found = json.loads(out)
    assert (found["complete"], found["planned"], found["done"]) == (False, 17, 16)
    assert found["damaged"][0]["shard"] == "val-00000000" and "--repair" in found["advice"]
    assert "no teacher cache (no plan.json)" in refused("status", cache / "done")
