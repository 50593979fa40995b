"""Threads that cut, degrade and encode while the teacher works: at the same time, bounded, and never another byte."""

import json
import threading

import pytest
from cache_support import NoisyBicubic, make_corpus, records, settings, tars

from pipeline.system.errors import DtkdError
from teacher_cache.building import crops
from teacher_cache.building.build import BuildSettings, build_cache
from teacher_cache.building.samples import SampleMaker

SOON = 30  # seconds after which a thread that should have come is missed


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def one_shard(**changes):
    """16 training tiles in 8 micro-batches."""
    return settings(samples_per_shard=20, **changes)


def journal(cache):
    """Keys that an attempt at the training shard has left, in order."""
    (path,) = (cache / "parts").glob("shard-00000000.*.jsonl")
    return [json.loads(line)["sample"]["key"] for line in path.read_text().splitlines()[1:]]


def planned(cache):
    return [sample[0] for sample in json.loads((cache / "plan.json").read_text())["shards"][0]["samples"]]


@pytest.mark.parametrize("kind", ["bicubic", "real"])
def test_bytes_do_not_depend_on_the_threads(corpus, tmp_path, kind):
    for threads in (1, 2, 5):
        build_cache(str(corpus), tmp_path / str(threads), NoisyBicubic(), one_shard(threads=threads, kind=kind))
    for threads in (2, 5):
        assert tars(tmp_path / str(threads)) == tars(tmp_path / "1")
        assert records(tmp_path / str(threads)) == records(tmp_path / "1")


def test_tiles_are_cut_at_the_same_time(corpus, tmp_path, monkeypatch):
    together = threading.Barrier(2)
    cut = crops.cut_tile

    def wait_for_another(hr, lr, tile, *rest):
        if tile.split == "train":
            together.wait(SOON)
        return cut(hr, lr, tile, *rest)

    monkeypatch.setattr(crops, "cut_tile", wait_for_another)
    assert build_cache(str(corpus), tmp_path, NoisyBicubic(), one_shard(threads=2)).errors == 0


def test_the_teacher_meets_what_is_cut_ahead_and_encoded_behind(corpus, tmp_path, monkeypatch):
    """While a micro-batch is with the teacher, the next one is cut and the one before it encoded."""
    cuts, busy, encoded = (threading.Semaphore(0) for _ in range(3))
    cut, encode = SampleMaker.cut, SampleMaker.encode

    class Meeting(NoisyBicubic):
        def restore(self, lr, seeds):
            if self.calls:
                busy.release(2 if self.calls < 7 else 4)  # of 8 micro-batches; nothing follows the last one
                assert all(encoded.acquire(timeout=SOON) for _ in seeds), "none is encoded meanwhile"
            if self.calls < 7:
                assert all(cuts.acquire(timeout=SOON) for _ in range(2 if self.calls else 4)), "none is cut ahead"
            return super().restore(lr, seeds)

    def cut_and_tell(self, sample):
        found = cut(self, sample)
        cuts.release()
        return found

    def encode_when_busy(self, *about):
        assert busy.acquire(timeout=SOON), "the teacher waits for this"
        made = encode(self, *about)
        encoded.release()
        return made

    monkeypatch.setattr(SampleMaker, "cut", cut_and_tell)
    monkeypatch.setattr(SampleMaker, "encode", encode_when_busy)
    result = build_cache(str(corpus), tmp_path, Meeting(), one_shard(threads=1, hold_out=0, limit=4))
    assert (result.ok, result.errors) == (16, 0)


@pytest.mark.parametrize("threads", [1, 6])
def test_no_more_is_begun_than_keeps_the_threads_busy(corpus, tmp_path, monkeypatch, threads):
    begun, seen = [], []
    cut = SampleMaker.cut
    monkeypatch.setattr(SampleMaker, "cut", lambda self, sample: begun.append(sample) or cut(self, sample))

    class Counting(NoisyBicubic):
        def restore(self, lr, seeds):
            seen.append(len(begun))
            return super().restore(lr, seeds)

    build_cache(str(corpus), tmp_path, Counting(), one_shard(threads=threads, hold_out=0, limit=4))
    ahead = 1 + threads // 2  # micro-batches of two
    assert len(seen) == 8 and seen[0] >= 2
    assert all(count <= 2 * (call + 1 + ahead) for call, count in enumerate(seen))


@pytest.mark.parametrize(
    ("trouble", "raised"),
    [(KeyboardInterrupt(), KeyboardInterrupt), (RuntimeError("CUDA out of memory"), DtkdError)],
    ids=["Ctrl-C", "the device"],
)
def test_what_the_teacher_made_before_trouble_is_kept(corpus, tmp_path, trouble, raised):
    class Interrupted(NoisyBicubic):
        def restore(self, lr, seeds):
            if self.calls == 3:
                raise trouble
            return super().restore(lr, seeds)

    with pytest.raises(raised):
        build_cache(str(corpus), tmp_path, Interrupted(), one_shard(threads=6))
    assert journal(tmp_path) == planned(tmp_path)[:6], "three micro-batches of two"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("samples")]
    assert build_cache(str(corpus), tmp_path, again := NoisyBicubic(), one_shard()).complete
    assert again.calls == 5 + 1, "five micro-batches and the held-out crop are left"


def test_the_number_of_threads_is_checked():
    with pytest.raises(DtkdError, match="threads must be at least 1, got 0"):
        BuildSettings(threads=0)
