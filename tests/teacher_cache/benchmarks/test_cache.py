"""What `dtkd bench cache` measures, at a size of seconds; its figures are in LOG.md."""

import pytest
from cache_support import NoisyBicubic, make_corpus, settings

from pipeline.system.errors import DtkdError
from teacher_cache.benchmarks import cache
from teacher_cache.benchmarks.cache import StandIn, bench_cache, limit

PARTS = {"decode": 0.004, "degrade": 0.01, "tensors": 0.001, "encode": 0.006, "write": 0.001, "commit": 0.0005}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return str(make_corpus(tmp_path_factory.mktemp("corpus")))


def test_stage_one_is_measured_beside_its_teacher(corpus, monkeypatch):
    monkeypatch.setattr(cache, "THREADS", (1, 2))
    bench = bench_cache(corpus, NoisyBicubic(), settings(), rounds=1, threads=1, tiles=4, memory_samples=())
    assert (bench.overhead.teacher, bench.overhead.tiles) == ("noisy-bicubic", 4)
    assert bench.overhead.ratio == pytest.approx(bench.overhead.seconds / bench.overhead.bare_seconds)
    assert bench.overhead.ratio > 1, "decoding and encoding cost more than such a teacher"
    assert bench.parts.keys() == PARTS.keys()
    assert min(bench.parts[name] for name in ("decode", "degrade", "encode", "write", "commit")) > 0
    assert [pace.threads for pace in bench.paces] == [1, 2]
    assert all(0 < pace.tiles_a_second <= 1 / cache.STAND_IN_SECONDS for pace in bench.paces)
    text, data = "\n".join(bench.lines()), bench.to_json()
    assert "noisy-bicubic, 4 tiles: bare" in text and "bound by" in text
    assert data["bench"] == "cache" and data["paces"][1]["threads"] == 2


def test_the_limit_is_that_of_the_slower_side():
    one, two = limit(PARTS, 1, 4, 0.005), limit(PARTS, 4, 4, 0.005)
    assert one == (pytest.approx(1 / 0.02), "degrade, encode, decode")
    assert two == (pytest.approx(1 / 0.0075), "teacher, tensors, write, commit")
    assert limit(PARTS, 8, 1, 0.005) == one, "threads beyond the processors do not help"


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own():
    peak = cache._peak(20)
    assert peak is None or 50e6 < peak < 4e9


def test_wrong_sizes_are_refused(corpus):
    with pytest.raises(DtkdError, match="multiple of micro_batch 2, got 1 and 3"):
        bench_cache(corpus, NoisyBicubic(), settings(), rounds=1, tiles=3)
    with pytest.raises(DtkdError, match="fewer than 400 training tiles"):
        bench_cache(corpus, NoisyBicubic(), settings(), rounds=1, tiles=400)
    idle = StandIn(4, 0.0)
    idle.steps = 0
    with pytest.raises(DtkdError, match="nothing to compare with"):
        bench_cache(corpus, idle, settings(), rounds=1, tiles=4)
