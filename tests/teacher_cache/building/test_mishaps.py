"""All that can happen to the processes of one build, in one build: kills, a full disk, SIGTERM, a lost Ray actor."""

import errno
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from cache_support import make_corpus
from worker_support import (
    LIMIT,
    assert_undisturbed,
    begin,
    begin_ray,
    forget_the_time_of_temporary_files,
    in_the_middle_of_a_shard,
    run,
    stage_one,
)

from pipeline.system.errors import DtkdError
from teacher_cache.building.lease import holders
from teacher_cache.reporting.status import Watcher

WORKERS, KILLS = 3, 22
PATIENCE = 0.6  # seconds of a call of the teacher: so a build lasts longer than the starts of killed processes
SETTINGS = ("tile=48", "samples_per_shard=8", "micro_batch=2", "hold_out=1")
OPTIONS = ("--tile", "48", "--set", "threads=2")
DISK_FULL_BEFORE, SIGTERM_BEFORE = 8, 15  # kills
POOL_AT = 0.8  # share of the tiles that are made before Ray goes on


class Workers:
    """Processes at work on one cache. Whichever ends is begun again; one that ends unasked fails the test."""

    def __init__(self, words: list[str], cache: Path, logs: Path, story: list[str]) -> None:
        self.cache, self.ended, self.story, self._words, self._logs = cache, 0, story, words, logs
        self.running: dict[int, tuple[subprocess.Popen[str], Path]] = {}
        self._watcher: Watcher | None = None

    def begin_missing(self) -> None:
        while len(self.running) < WORKERS:
            log = self._logs / f"{self.ended + len(self.running)}.log"
            process = begin(self._words, log, PATIENCE)
            self.running[process.pid] = process, log

    def at_work(self) -> list[int]:
        """Numbers of those that hold a shard."""
        held = holders(self.cache / "leases")
        return sorted(holder.pid for holder in held if holder.pid in self.running and not holder.stale)

    def made(self) -> float:
        """Share of the tiles that are made; meanwhile nobody must have ended, and no shard be damaged."""
        for process, log in self.running.values():
            assert process.poll() is None, f"one ended by itself, with {process.returncode}: {log.read_text()}"
        if self._watcher is None:
            with suppress(DtkdError):  # not begun
                self._watcher = Watcher(self.cache)
            return 0.0
        found = self._watcher.look()
        assert not found.damaged, found.damaged
        return (found.done + found.in_work) / found.planned

    def wait_for(self, share: float) -> list[int]:
        """Until this share is made; numbers of those that hold a shard then, one at least."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            made = self.made()
            if made >= share and (busy := self.at_work()):
                self.story.append(f"{made:.0%} made, {len(busy)} at work")
                return busy
            time.sleep(0.01)
        raise AssertionError(f"{share:.0%} were never made")

    def end(self, pid: int, signal_number: int | None = None) -> tuple[int, str]:
        """Send a signal, and wait for the end; exit code and the last line that it said."""
        process, log = self.running.pop(pid)
        self.ended += 1
        if signal_number:
            process.send_signal(signal_number)
        return process.wait(LIMIT), (log.read_text().splitlines() or [""])[-1]

    def kill_all(self) -> None:
        for pid in list(self.running):
            self.end(pid, signal.SIGKILL)


@contextmanager
def told(story: list[str]) -> Iterator[None]:
    """What happened before a failure, in its message."""
    try:
        yield
    except BaseException as error:
        error.add_note(", ".join(story))
        raise


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system of 16 MB at `folder`, where that is permitted, which it tells."""
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=16m", "dtkd-test", str(folder)]
    try:
        subprocess.run(words, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        yield False
        return
    try:
        yield True
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def no_room(disk: Path, real: bool, pids: list[int]) -> Iterator[None]:
    """The disk is full to the last byte; where there is none to be filled, no file of these processes may grow."""
    if not real:
        for pid in pids:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (1 << 14, resource.RLIM_INFINITY))  # their logs are shorter
        yield
        return
    with open(disk / "ballast", "wb", buffering=0) as file:
        size = 1 << 20
        while size:
            try:
                file.write(bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC
                size //= 2
    yield
    (disk / "ballast").unlink()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus") / "photos", side=512)


@pytest.fixture(scope="module")
def undisturbed(corpus, tmp_path_factory):
    cache = tmp_path_factory.mktemp("undisturbed") / "cache"
    done = run(stage_one(corpus, cache, *OPTIONS, samples_per_shard=8))
    assert done.returncode == 0, done.stderr
    return cache


@pytest.mark.slow
@pytest.mark.timeout(1200)  # thirty starts of Python, on whatever the machine has left for them
@pytest.mark.parametrize("seed", [0])
def test_a_build_through_all_mishaps(corpus, undisturbed, tmp_path, seed):
    pytest.importorskip("ray")
    story = [f"seed {seed}"]
    with told(story), small_disk(tmp_path / "disk") as real:
        cache = tmp_path / "disk" / "cache"
        words = stage_one(corpus, cache, *OPTIONS, samples_per_shard=8)
        workers = Workers(words, cache, tmp_path, story)
        try:
            kill_at_random_moments(workers, random.Random(seed), tmp_path / "disk", real)
            finish_on_ray(corpus, workers, tmp_path)
        finally:
            workers.kill_all()
        forget_the_time_of_temporary_files(cache)
        again = run(words)
        assert again.returncode == 0 and "all reused, nothing was left to do" in again.stdout, again
        assert_undisturbed(cache, undisturbed)
        verified = run([*words[:3], "verify", str(cache)])
        assert verified.returncode == 0 and "sound" in verified.stdout, verified


def kill_at_random_moments(workers, chance, disk, real):
    """`KILLS` of them, spread over the build up to `POOL_AT`; on the way the disk is full once, SIGTERM comes once."""
    step, kills = POOL_AT / (KILLS + 1), 0
    for number in range(KILLS):
        workers.begin_missing()
        busy = workers.wait_for(step * (number + chance.random()))
        if number == DISK_FULL_BEFORE:
            fill_the_disk(workers, disk, real)
            busy = workers.wait_for(step * number)
        if number == SIGTERM_BEFORE:
            interrupt(workers, chance.choice(busy))
            busy = workers.wait_for(step * number)
        time.sleep(chance.uniform(0, PATIENCE))
        code, _ = workers.end(chance.choice(busy), signal.SIGKILL)
        assert code == -signal.SIGKILL
        kills += 1
        workers.story.append(f"kill {kills}")
    assert kills >= 20
    workers.begin_missing()
    workers.wait_for(POOL_AT)
    workers.kill_all()


def fill_the_disk(workers, disk, real):
    """All stop, say why in one line, and hold no shard any more; they are begun again when there is room."""
    pids = list(workers.running)
    with no_room(disk, real, pids):
        for pid in pids:
            code, said = workers.end(pid)
            assert code == 1 and "the disk is full; finished samples are kept: run the same command again" in said, said
        assert held_by(workers.cache, pids) == []
    workers.story.append("disk full")
    workers.begin_missing()


def interrupt(workers, pid):
    """SIGTERM to one of them: what it held is free for the others at once."""
    assert workers.end(pid, signal.SIGTERM) == (1, "dtkd: interrupted; run the same command again to go on")
    assert held_by(workers.cache, [pid]) == []
    workers.story.append("SIGTERM")
    workers.begin_missing()


def held_by(cache, pids):
    return [holder.shard for holder in holders(cache / "leases") if holder.pid in pids]


def finish_on_ray(corpus, workers, folder):
    """Two actors take over; one is killed, and a process of the command line joins."""
    log = folder / "ray.log"
    driver = begin_ray(corpus, workers.cache, log, PATIENCE, SETTINGS)
    try:
        victim = in_the_middle_of_a_shard(workers.cache, alive=lambda: driver.poll() is None)
        os.kill(victim.pid, signal.SIGKILL)
        workers.story.append(f"killed the actor with {victim.shard}")
        workers.begin_missing()
        assert driver.wait(LIMIT) == 0, log.read_text()
        for pid in list(workers.running):
            code, said = workers.end(pid)
            assert code == 0, said
    finally:
        driver.kill()
