"""examples/ray_cache.py with the real Ray: local workers, one of them killed in the middle of a shard."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cache_support import make_corpus, records, settings, tars

from teacher_cache import teachers
from teacher_cache.building.build import build_cache
from teacher_cache.building.verify import verify_cache

ROOT = Path(__file__).parents[3]
SLOW_TEACHER = """
import time

import python_teacher


class Slow(python_teacher.SharpenedTeacher):
    def restore(self, lr, seeds):
        time.sleep(0.1)  # so that there is a middle
        return super().restore(lr, seeds)


def make(*, scale, steps, device, dtype):
    return Slow(scale, device, python_teacher.torch.float32)
"""


@pytest.mark.slow
def test_a_killed_worker_changes_no_byte(tmp_path):
    pytest.importorskip("ray")
    corpus, cache = make_corpus(tmp_path / "corpus"), tmp_path / "cache"
    (tmp_path / "slow_teacher.py").write_text(SLOW_TEACHER)
    teacher = f"python:{tmp_path / 'slow_teacher.py'}:make"
    sets = ["tile=64", "samples_per_shard=5", "micro_batch=2", "hold_out=1", "degradation.kind=bicubic"]
    path = [str(ROOT), str(ROOT / "examples"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip
    command = [sys.executable, ROOT / "examples" / "ray_cache.py", corpus, cache, "--teacher", teacher, "--cpus", "0.5"]
    command += [word for setting in sets for word in ("--set", setting)]
    with open(tmp_path / "log", "w") as log:
        driver = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path)
    try:
        victim = a_worker_in_the_middle_of_a_shard(cache, driver)
        os.kill(victim, signal.SIGKILL)
        assert driver.wait(300) == 0, (tmp_path / "log").read_text()
    finally:
        driver.kill()
    assert victim != driver.pid
    sys.path.append(str(ROOT / "examples"))
    try:
        build_cache(str(corpus), tmp_path / "alone", teachers.load(teacher), settings())
    finally:
        sys.path.remove(str(ROOT / "examples"))
    assert tars(cache) == tars(tmp_path / "alone")
    assert records(cache) == records(tmp_path / "alone")
    result = verify_cache(cache)
    assert result.ok and result.samples == 17, result.damage


def a_worker_in_the_middle_of_a_shard(cache, driver):
    """Its process id, as the lease of a shard says of which the journal has a sample."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and driver.poll() is None:
        for journal in cache.glob("parts/*.jsonl"):
            try:
                if len(journal.read_text().splitlines()) > 2:
                    return json.loads((cache / "leases" / f"{journal.name.split('.')[0]}.json").read_text())["pid"]
            except (FileNotFoundError, json.JSONDecodeError):
                continue  # finished between two looks
        time.sleep(0.01)
    raise AssertionError("no shard was seen in the making")
