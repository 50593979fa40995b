"""What goes wrong while a cache is made: bad photos and pictures, a failing teacher, device or disk, Ctrl-C."""

import errno
import os
import shutil
import tarfile

import numpy as np
import pytest
import torch
from cache_support import NoisyBicubic, make_corpus, messages, records, samples, settings, start, tars

from pipeline import images, schema, shards
from pipeline.system.errors import DtkdError
from pipeline.teacher import Place
from teacher_cache.building.build import build_cache
from teacher_cache.building.samples import Request, restore


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def cache(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    build_cache(str(corpus), folder, NoisyBicubic(), settings())
    return folder


def damage(photo):
    """Cut a picture off in the middle: its header is sound, its pixels are not."""
    data = photo.read_bytes()
    photo.write_bytes(data[: len(data) // 2])


def training_photo(cache):
    return next(meta["source"] for meta, _ in samples(cache))


def test_a_corrupt_photo_becomes_errors_and_stops_nothing(corpus, cache, tmp_path):
    broken, photo = tmp_path / "corpus", training_photo(cache)
    shutil.copytree(corpus, broken)
    damage(broken / photo)
    result = build_cache(str(broken), tmp_path / "cache", NoisyBicubic(), settings(max_failure_fraction=0.3))
    assert (result.complete, result.ok, result.errors) == (True, 13, 4)
    manifest = shards.load_manifest(tmp_path / "cache")
    errors = [sample.error for shard in manifest.shards for sample in shard.errors]
    assert {error.stage for error in errors} == {"load"}
    (failure,) = result.failures
    assert (failure.source, failure.stage, failure.samples) == (photo, "load", 4)
    assert failure.message == errors[0].message
    assert result.failures_left_out == 0
    assert all(error.type and error.message for error in errors)
    whole = {meta["key"]: p["teacher"].tobytes() for meta, p in samples(cache) if meta["source"] != photo}
    assert {meta["key"]: p["teacher"].tobytes() for meta, p in samples(tmp_path / "cache")} == whole


def test_too_many_failures_stop_the_run_and_keep_what_is_done(corpus, cache, tmp_path):
    broken = tmp_path / "corpus"
    shutil.copytree(corpus, broken)
    damage(broken / training_photo(cache))
    with pytest.raises(DtkdError, match=r"samples failed, more than --max-failures 0\.1 allows; for example .*load"):
        build_cache(str(broken), tmp_path / "cache", NoisyBicubic(), settings())
    assert not (tmp_path / "cache" / "manifest.json").exists()
    assert build_cache(
        str(broken), tmp_path / "cache", NoisyBicubic(), settings(max_failure_fraction=0.5)
    ).errors == 4  # fmt: skip


def test_the_advice_can_be_followed(corpus, cache, tmp_path):
    """A damaged photo is in the plan's fingerprint: mending it makes another corpus, which only a new cache takes."""
    broken, photo = tmp_path / "corpus", training_photo(cache)
    shutil.copytree(corpus, broken)
    damage(broken / photo)
    with pytest.raises(DtkdError) as caught:
        build_cache(str(broken), tmp_path / "cache", NoisyBicubic(), settings())
    assert f"for example {photo}: load: " in str(caught.value)
    for option in ("a new cache folder", "a larger --max-failures", "--retry-errors"):
        assert option in str(caught.value)
    shutil.copy(corpus / photo, broken / photo)
    with pytest.raises(DtkdError, match=f"changed: {photo}"):
        build_cache(str(broken), tmp_path / "cache", NoisyBicubic(), settings())


def test_failures_are_listed_up_to_a_limit(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("teacher_cache.building.build.FAILURES", 2)
    teacher = NoisyBicubic(refuse=lambda lr: True)
    result = build_cache(str(corpus), tmp_path, teacher, settings(max_failure_fraction=1.0))
    assert [item.stage for item in result.failures] == ["teacher"] * 2
    assert sum(item.samples for item in result.failures) + result.failures_left_out == result.errors == 17


def test_a_picture_that_the_teacher_refuses_fails_alone(corpus, cache, tmp_path):
    """The other picture of its micro-batch gets the bytes that it has in the full cache."""
    full = {meta["key"]: (meta, pictures) for meta, pictures in samples(cache)}
    victim = next(iter(full.values()))[1]["around"]
    teacher = NoisyBicubic(refuse=lambda lr: np.array_equal(images.to_image(lr), victim))
    result = build_cache(str(corpus), tmp_path, teacher, settings())
    assert (result.ok, result.errors) == (16, 1)
    (error,) = [s.error for shard in shards.load_manifest(tmp_path).shards for s in shard.errors]
    assert (error.stage, error.type) == ("teacher", "ValueError")
    assert error.message == "this teacher does not like the picture"
    for meta, pictures in samples(tmp_path):
        assert np.array_equal(pictures["teacher"], full[meta["key"]][1]["teacher"])


def test_failed_samples_can_be_tried_again(corpus, cache, tmp_path):
    victim = next(pictures["around"] for _, pictures in samples(cache))
    moody = NoisyBicubic(refuse=lambda lr: np.array_equal(images.to_image(lr), victim))
    assert build_cache(str(corpus), tmp_path, moody, settings()).errors == 1
    assert build_cache(str(corpus), tmp_path, NoisyBicubic(), settings()).errors == 1, "not without being asked"
    teacher = NoisyBicubic()
    assert build_cache(str(corpus), tmp_path, teacher, settings(retry_errors=True)).errors == 0
    assert teacher.calls == 1, "the one micro-batch"
    assert tars(tmp_path) == tars(cache)
    assert records(tmp_path) == records(cache)


class Bad(NoisyBicubic):
    """A teacher whose output for one picture of the batch is spoilt."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def restore(self, lr, seeds):
        out = super().restore(lr, seeds)
        out[0, :, 5, 5] = self.value
        return out


def requests(lrs):
    return [Request(lr, 1 + n, Place("photo", 32, 32, 0, 0, 32, 32)) for n, lr in enumerate(lrs)]


def test_nan_is_an_error_of_its_picture_only():
    first, *others = restore(Bad(float("nan")), requests([np.zeros((8, 8, 3), np.uint8)] * 3), 4)
    assert isinstance(first, schema.SampleError)
    assert first.type == "NotFinite"
    assert all(isinstance(image, np.ndarray) for image in others)


def test_a_batch_is_always_full():
    """So that the rounding of floats, which depends on the shape of a batch, cannot depend on its filling."""
    seen = []

    class Watched(NoisyBicubic):
        def restore(self, lr, seeds):
            seen.append((tuple(lr.shape), len(seeds)))
            return super().restore(lr, seeds)

    chance = np.random.default_rng(0)
    asked = requests([chance.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(3)])
    together = restore(Watched(), asked, 4)
    alone = [restore(Watched(), [request], 4)[0] for request in asked]
    assert seen == [((4, 3, 8, 8), 4)] * 4
    for a, b in zip(together, alone, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize(
    "trouble",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ..."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_device_trouble_stops_the_shard_and_is_no_sample_error(corpus, cache, tmp_path, trouble):
    class Failing(NoisyBicubic):
        def restore(self, lr, seeds):
            if self.calls == 4:
                raise trouble
            return super().restore(lr, seeds)

    with pytest.raises(DtkdError, match=r"stopped: .*run the same command again") as caught:
        build_cache(str(corpus), tmp_path, Failing(), settings())
    assert "\n" not in str(caught.value)
    memory = "illegal" not in str(trouble)
    assert ("a new cache with a smaller --micro-batch" in str(caught.value)) == memory, "its shape is part of the bytes"
    assert len(tars(tmp_path)) == 1
    assert not list((tmp_path / "leases").glob("*.json"))
    teacher = NoisyBicubic()
    build_cache(str(corpus), tmp_path, teacher, settings())
    assert teacher.calls == 11 - 4, "what was finished before is kept: of 11 micro-batches, 4 were made"
    assert tars(tmp_path) == tars(cache)


def test_a_full_disk_leaves_nothing_half_and_the_run_goes_on_later(corpus, cache, tmp_path):
    """A real limit on the size of files, in a process of its own; then the limit is lifted."""
    limit = max(len(data) for data in tars(cache).values()) * 2 // 3
    process, pipe = start(corpus, tmp_path, file_limit=limit)
    message = list(messages(pipe))[-1]
    process.join()
    assert process.exitcode == 1
    assert "the disk is full" in message
    assert "\n" not in message
    for name, data in tars(tmp_path).items():
        assert data == tars(cache)[name]
    build_cache(str(corpus), tmp_path, NoisyBicubic(), settings())
    assert tars(tmp_path) == tars(cache)
    assert records(tmp_path) == records(cache)


@pytest.mark.parametrize("where", ["replace", "fsync", "link"])
@pytest.mark.parametrize("after", [0, 3])
def test_no_space_at_any_step_of_a_commit(corpus, cache, tmp_path, monkeypatch, where, after):
    real, left = getattr(os, where), [after]

    def full(*args, **kwargs):
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= 1
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, where, full)
        with pytest.raises(DtkdError, match="disk is full"):
            build_cache(str(corpus), tmp_path, NoisyBicubic(), settings())
    for name, data in tars(tmp_path).items():
        assert data == tars(cache)[name]
    build_cache(str(corpus), tmp_path, NoisyBicubic(), settings())
    assert tars(tmp_path) == tars(cache)


def test_control_c_gives_the_lease_back_and_can_go_on(corpus, cache, tmp_path):
    def interrupt(event):
        if event.done >= 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_cache(str(corpus), tmp_path, NoisyBicubic(), settings(), interrupt)
    assert not list((tmp_path / "leases").glob("*.json"))
    assert len(tars(tmp_path)) == 1
    teacher = NoisyBicubic()
    build_cache(str(corpus), tmp_path, teacher, settings())
    assert teacher.calls < 11 - 3
    assert tars(tmp_path) == tars(cache)


@pytest.mark.parametrize("harm", ["missing", "short", "record"])
def test_a_lost_shard_is_made_again_by_the_next_run(corpus, cache, tmp_path, harm):
    copy = tmp_path / "copy"
    shutil.copytree(cache, copy)
    tar = copy / "shard-00000001.tar"
    if harm == "missing":
        tar.unlink()
    elif harm == "short":
        os.truncate(tar, tar.stat().st_size // 2)
    else:
        (copy / "done" / "shard-00000001.json").write_text('{"schema": 1')
    result = build_cache(str(corpus), copy, NoisyBicubic(), settings())
    assert (result.reused, result.computed) == (12, 5)
    assert tars(copy) == tars(cache)
    assert records(copy) == records(cache)
    assert shards.load_manifest(copy).ok == 17


def test_all_failed_makes_an_empty_shard_that_is_still_a_tar(tmp_path):
    lonely = tmp_path / "corpus"
    make_corpus(lonely)
    for path in sorted(lonely.iterdir())[2:]:
        path.unlink()
    build_cache(str(lonely), tmp_path / "whole", NoisyBicubic(), settings())
    damage(lonely / training_photo(tmp_path / "whole"))
    build_cache(str(lonely), tmp_path / "cache", NoisyBicubic(), settings(max_failure_fraction=1.0))
    with tarfile.open(tmp_path / "cache" / "shard-00000000.tar") as tar:
        assert tar.getnames() == []
    assert shards.load_manifest(tmp_path / "cache").errors == 4
