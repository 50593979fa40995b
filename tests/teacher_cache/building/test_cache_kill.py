"""kill -9, two processes at once, leases: whatever happens, the finished cache has the bytes of an undisturbed run."""

import errno
import json
import os
import random
import signal
import threading

import pytest
from cache_support import NoisyBicubic, make_corpus, messages, records, settings, start, tars

from pipeline.system import files
from pipeline.system.files import json_bytes
from teacher_cache.building import lease
from teacher_cache.building.build import build_cache
from teacher_cache.building.verify import verify_cache


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    cache = tmp_path_factory.mktemp("undisturbed")
    assert build_cache(str(corpus), cache, NoisyBicubic(), settings()).complete
    return cache


def assert_same(cache, undisturbed):
    assert tars(cache) == tars(undisturbed)
    assert records(cache) == records(undisturbed)
    result = verify_cache(cache, recompute=3, teacher=NoisyBicubic())
    assert result.ok, result.damage
    for folder in ("leases", "parts"):
        assert [path.name for path in (cache / folder).glob("[!.]*")] == []


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments(corpus, undisturbed, tmp_path, seed):
    chance, best = random.Random(seed), 0
    for _ in range(50):
        process, pipe = start(corpus, tmp_path)
        enough = best + chance.randint(1, 5)
        for done, _total in messages(pipe):
            if done >= enough:
                process.kill()
            best = max(best, done)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    assert process.exitcode == 0, "every attempt gets further, so one of them finishes"
    assert_same(tmp_path, undisturbed)


def test_killed_before_every_file_operation(corpus, undisturbed, tmp_path):
    """Attempt n dies right before its n-th rename, link, unlink or fsync, all on one cache."""
    for number in range(1, 400):
        process, pipe = start(corpus, tmp_path, die_at=number)
        list(messages(pipe))
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        for path in tmp_path.glob("*.tar"):
            assert path.read_bytes() == (undisturbed / path.name).read_bytes(), "nothing half under a final name"
    assert process.exitcode == 0
    assert number > 10
    assert_same(tmp_path, undisturbed)


def interrupted(corpus, cache, after):
    """A cache whose one training shard was killed after so many samples; returns its journal."""
    process, pipe = start(corpus, cache, die_after=after, samples_per_shard=100)
    list(messages(pipe))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (journal,) = (cache / "parts").glob("*.jsonl")
    assert len(journal.read_text().splitlines()) == 1 + after
    return journal


def test_finished_samples_of_a_killed_process_are_not_made_again(corpus, tmp_path):
    interrupted(corpus, tmp_path, after=6)
    teacher = NoisyBicubic()
    build_cache(str(corpus), tmp_path, teacher, settings(samples_per_shard=100))
    assert teacher.calls == (16 - 6) / 2 + 1  # micro-batches of two tiles, and the held-out crop


def test_damage_in_a_part_costs_one_micro_batch(corpus, tmp_path, tmp_path_factory):
    whole = tmp_path_factory.mktemp("whole")
    build_cache(str(corpus), whole, NoisyBicubic(), settings(samples_per_shard=100))
    journal = interrupted(corpus, tmp_path, after=10)
    third = json.loads(journal.read_text().splitlines()[3])
    offset, size, _ = third["sample"]["members"]["teacher"]
    with open(journal.with_suffix(".tar"), "r+b") as file:
        file.seek(offset + size // 2)
        file.write(b"damage")
    with open(journal, "a") as file:
        file.write('{"sample": {"key": "torn')
    teacher = NoisyBicubic()
    build_cache(str(corpus), tmp_path, teacher, settings(samples_per_shard=100))
    assert teacher.calls == (16 - 10) / 2 + 1 + 1  # the rest, the damaged pair, the held-out crop
    assert tars(tmp_path) == tars(whole)


def test_two_processes_at_once(corpus, undisturbed, tmp_path):
    running = [start(corpus, tmp_path) for _ in range(2)]
    for process, pipe in running:
        list(messages(pipe))
        process.join()
        assert process.exitcode == 0
    assert_same(tmp_path, undisturbed)


def test_a_survivor_takes_over_from_a_killed_process(corpus, undisturbed, tmp_path):
    """One of two processes dies with a lease in its hand; the other one finishes without being started again."""
    (victim, victims_pipe), (survivor, pipe) = start(corpus, tmp_path, die_after=1), start(corpus, tmp_path)
    list(messages(victims_pipe))
    victim.join()
    list(messages(pipe))
    survivor.join()
    assert survivor.exitcode == 0
    assert_same(tmp_path, undisturbed)


# Leases --------------------------------------------------------------------------------------------------------------


def test_a_file_that_cannot_be_read_for_a_moment_ends_no_lease(tmp_path, monkeypatch):
    held = lease.acquire(tmp_path, "shard")

    def hiccup(path):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(type(held.path), "read_bytes", hiccup)
        assert held.held()
    held.path.write_text('{"nonce": "of another process"}')
    assert not held.held()


def test_a_lease_has_one_holder_and_is_given_back(tmp_path):
    first = lease.acquire(tmp_path, "shard")
    assert first is not None
    assert lease.acquire(tmp_path, "shard") is None
    with first:
        assert first.held()
    assert lease.acquire(tmp_path, "shard") is not None
    assert [path.name for path in tmp_path.iterdir()] == ["shard.json"]


def elsewhere(tmp_path, age):
    """A lease of a process on another machine, renewed `age` seconds ago."""
    path = tmp_path / "shard.json"
    path.write_bytes(json_bytes({"nonce": "theirs", "host": "elsewhere", "boot": "b", "pid": 1, "started": "1"}))
    time = path.stat().st_mtime - age
    os.utime(path, (time, time))


def test_a_lease_of_another_machine_is_taken_over_when_stale_only(tmp_path):
    elsewhere(tmp_path, age=10)
    assert lease.acquire(tmp_path, "shard", ttl=60) is None
    taken = lease.acquire(tmp_path, "shard", ttl=5)
    assert taken is not None
    assert taken.held()


def test_a_lease_of_this_machine_is_free_when_its_process_is_dead(tmp_path):
    child = os.fork()
    if child == 0:
        os._exit(0 if lease.acquire(tmp_path, "shard") else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert lease.acquire(tmp_path, "shard") is not None


def test_a_used_process_number_does_not_keep_a_lease_alive(tmp_path):
    lease.acquire(tmp_path, "shard")
    path = tmp_path / "shard.json"
    owner = json.loads(path.read_text())
    path.write_bytes(json_bytes(owner | {"started": "1"}))  # the number is ours, the start time is not
    assert lease.acquire(tmp_path, "shard") is not None


def test_an_empty_lease_counts_as_someone_elses(tmp_path):
    (tmp_path / "shard.json").touch()
    assert lease.acquire(tmp_path, "shard", ttl=60) is None


def test_whoever_lost_the_lease_leaves_it_to_the_other(tmp_path):
    ours = lease.acquire(tmp_path, "shard")
    assert ours is not None
    with ours:
        elsewhere(tmp_path, age=0)
        assert not ours.held()
    assert json.loads((tmp_path / "shard.json").read_text())["nonce"] == "theirs"


def test_a_lease_is_renewed(tmp_path):
    ours = lease.acquire(tmp_path, "shard", ttl=0.3)
    assert ours is not None
    with ours:
        os.utime(ours.path, (0, 0))
        while ours.path.stat().st_mtime == 0:  # ends with the renewal, or by the test's time limit
            pass
        assert lease.acquire(tmp_path, "shard", ttl=10) is None


@pytest.mark.parametrize("where", ["while it is written", "before it is renewed", "while it is given back"])
def test_an_interrupt_at_any_moment_gives_the_lease_back(tmp_path, monkeypatch, where):
    """Here it would be free with the end of the process; on another machine the shard would wait for `ttl`."""
    place, name = {
        "while it is written": (files, "fsync_dir"),
        "before it is renewed": (threading.Thread, "start"),
        "while it is given back": (threading.Thread, "join"),
    }[where]
    real, calls = getattr(place, name), []

    def interrupted_once(*args, **kwargs):
        calls.append(name)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(place, name, interrupted_once)
    with pytest.raises(KeyboardInterrupt), lease.acquire(tmp_path, "shard"):
        pass
    assert calls
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_fresh_lease_that_was_taken_by_mistake_is_put_back(tmp_path, monkeypatch):
    """Two processes find a stale lease; the slower one must not throw away the faster one's new lease."""
    elsewhere(tmp_path, age=100)
    rename, faster = os.rename, []

    def late(*args):
        if not faster:
            faster.append(None)
            faster[0] = lease.acquire(tmp_path, "shard", ttl=5)
        rename(*args)

    monkeypatch.setattr(os, "rename", late)
    assert lease.acquire(tmp_path, "shard", ttl=5) is None
    assert faster[0] is not None
    assert faster[0].held()
