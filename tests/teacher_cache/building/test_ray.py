"""examples/ray_cache.py with the real Ray: local workers, one of them killed in the middle of a shard."""

import os
import signal

import pytest
from cache_support import make_corpus
from worker_support import LIMIT, assert_undisturbed, begin_ray, in_the_middle_of_a_shard, run, stage_one


@pytest.mark.slow
def test_a_killed_worker_changes_no_byte(tmp_path):
    pytest.importorskip("ray")
    corpus, cache = make_corpus(tmp_path / "corpus"), tmp_path / "cache"
    sets = ["tile=64", "samples_per_shard=5", "micro_batch=2", "hold_out=1"]
    driver = begin_ray(corpus, cache, tmp_path / "log", 0.1, sets)
    try:
        victim = in_the_middle_of_a_shard(cache, alive=lambda: driver.poll() is None)
        os.kill(victim.pid, signal.SIGKILL)
        assert driver.wait(LIMIT) == 0, (tmp_path / "log").read_text()
    finally:
        driver.kill()
    assert victim.pid != driver.pid
    done = run(stage_one(corpus, tmp_path / "alone"))
    assert done.returncode == 0, done.stderr
    assert_undisturbed(cache, tmp_path / "alone")
