import errno
import io
import json
import os
import shutil
import tarfile

import numpy as np
import pytest
import torch
import webdataset
from cache_support import SETTINGS, NoisyBicubic, make_corpus, messages, records, settings, start, tars
from PIL import Image

from pipeline import images, pairs, schema, shards
from pipeline.degrade import Degradation
from pipeline.errors import DtkdError
from teacher_cache import writer
from teacher_cache.build import BuildSettings, build_cache, prepare, process_shard
from teacher_cache.manifest import finalize
from teacher_cache.samples import colour_drift, restore
from teacher_cache.teachers import ImportedTeacher


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def cache(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    build_cache(str(corpus), folder, NoisyBicubic(), settings())
    return folder


def samples(cache, split="train"):
    """Every sample of a cache as (json, {member: image})."""
    for shard, sample in shards.load_manifest(cache).samples(split):
        path = shards.shard_path(cache, shard.name)
        pictures = {m: images.decode_webp(shards.read_member(path, sample.members[m])) for m in schema.MEMBERS}
        yield json.loads(shards.read_member(path, sample.members["json"])), pictures


def test_a_cache_holds_what_was_planned(cache, corpus):
    manifest = shards.load_manifest(cache)
    assert [shard.name for shard in manifest.shards] == [f"shard-0000000{i}" for i in range(4)] + ["val-00000000"]
    assert [len(shard.samples) for shard in manifest.shards] == [5, 5, 5, 1, 1]
    assert (manifest.planned, manifest.ok, manifest.errors) == (17, 17, 0)
    keys = [sample.key for _, sample in manifest.samples("train")]
    assert keys == sorted(keys)
    held_out = {meta["source"] for meta, _ in samples(cache, "val")}
    trained = {meta["source"] for meta, _ in samples(cache)}
    assert len(held_out) == 1
    assert held_out | trained == {path.name for path in corpus.iterdir()}
    assert not held_out & trained


def test_members_are_the_photo_its_small_copy_and_the_teachers_picture(cache, corpus):
    """Against the parts themselves: the photo's own pixels, and the teacher called on the cached LR image."""
    teacher = NoisyBicubic()
    for split in ("train", "val"):
        for meta, pictures in samples(cache, split):
            photo = images.load_rgb(corpus / meta["source"])
            x, y, w, h = (meta[name] for name in ("x", "y", "width", "height"))
            assert np.array_equal(pictures["gt"], photo[y : y + h, x : x + w])
            assert pictures["lr"].shape == (h // 4, w // 4, 3)
            seed = schema.sample_seed(0, meta["key"], "teacher")
            again = teacher.restore(images.to_tensor(pictures["lr"])[None], [seed])[0]
            assert np.abs(images.to_image(again).astype(int) - pictures["teacher"]).max() <= 1


def test_plain_webdataset_reads_the_shards(cache):
    """Without any decoder: nothing of ours is needed to use a cache."""
    urls = [str(path) for path in sorted(cache.glob("shard-*.tar"))]
    read = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [item["__key__"] for item in read] == [s.key for _, s in shards.load_manifest(cache).samples("train")]
    for item in read:
        meta = json.loads(item["json"])
        assert meta["key"] == item["__key__"]
        with Image.open(io.BytesIO(item["teacher.webp"])) as picture:
            assert picture.size == (meta["width"], meta["height"])
        assert {"lr.webp", "gt.webp"} <= item.keys()


def test_tars_are_reproducible_and_their_index_is_right(cache):
    for record in shards.load_manifest(cache).shards:
        with tarfile.open(shards.shard_path(cache, record.name), "r:") as tar:
            items = {item.name: item for item in tar}
        assert {(i.mtime, i.uid, i.gid, i.uname, i.gname, i.mode) for i in items.values()} == {
            (0, 0, 0, "bigdata", "bigdata", 0o444)
        }
        for sample in record.samples:
            for name, place in sample.members.items():
                item = items[f"{sample.key}.{writer.SUFFIX[name]}"]
                assert (item.offset_data, item.size) == (place.offset, place.size)


def test_a_second_run_reuses_everything(cache, corpus):
    before, teacher = tars(cache), NoisyBicubic()
    result = build_cache(str(corpus), cache, teacher, settings())
    assert (result.complete, result.reused, result.computed, teacher.calls) == (True, 17, 0, 0)
    assert tars(cache) == before


def test_real_degradation_does_not_depend_on_the_shards(corpus, tmp_path):
    """The same keys and bytes, whatever the shard size."""
    for size in (3, 50):
        build_cache(str(corpus), tmp_path / str(size), NoisyBicubic(), settings(kind="real", samples_per_shard=size))
    small, large = (
        {meta["key"]: pictures["lr"].tobytes() for meta, pictures in samples(tmp_path / str(size))} for size in (3, 50)
    )
    assert small == large
    assert len(small) == 16


def test_progress_counts_up_to_the_plan(corpus, tmp_path):
    events = []
    build_cache(str(corpus), tmp_path, NoisyBicubic(), settings(), events.append)
    assert [event.done for event in events] == sorted(event.done for event in events)
    assert (events[-1].done, events[-1].total, events[-1].unit) == (17, 17, "tiles")


def test_units_of_work_can_be_run_by_hand_in_any_order(corpus, cache, tmp_path):
    job = prepare(str(corpus), tmp_path, NoisyBicubic(), settings())
    with pytest.raises(DtkdError, match="not done"):
        finalize(tmp_path)
    for index in (4, 2, 0, 3, 1, 2):
        assert process_shard(job, index) is not None
    finalize(tmp_path)
    assert tars(tmp_path) == tars(cache)
    assert records(tmp_path) == records(cache)


def test_a_shard_in_other_hands_is_left_alone(corpus, tmp_path):
    job = prepare(str(corpus), tmp_path, NoisyBicubic(), settings())
    (tmp_path / "leases" / "shard-00000001.json").write_text('{"host": "elsewhere"}')
    assert process_shard(job, 1) is None
    result = build_cache(str(corpus), tmp_path, NoisyBicubic(), settings(wait=False))
    assert not result.complete
    assert not (tmp_path / "manifest.json").exists()
    assert (result.computed, result.planned) == (12, 17)


# Resuming with something else ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tile": 32}, "tile: 64 -> 32"),
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"micro_batch": 3}, "micro_batch: 2 -> 3"),
        ({"kind": "real"}, 'degradation.kind: "bicubic" -> "real"'),
        ({"limit": 3}, "limit: null -> 3"),
        ({"hold_out": 2}, "hold_out: 1 -> 2"),
    ],
)
def test_other_settings_are_refused_by_name(corpus, cache, changes, message):
    before = tars(cache)
    with pytest.raises(DtkdError) as caught:
        build_cache(str(corpus), cache, NoisyBicubic(), settings(**changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert tars(cache) == before


def test_another_teacher_is_refused_by_name(corpus, cache):
    with pytest.raises(DtkdError, match=r"teacher\.noise: 0\.05 -> 0\.06"):
        build_cache(str(corpus), cache, NoisyBicubic(noise=0.06), settings())


def test_another_corpus_is_refused_and_the_photos_named(corpus, cache, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(corpus, changed)
    assert build_cache(str(changed), cache, NoisyBicubic(), settings()).reused == 17, "where it lies does not matter"
    photo = images.load_rgb(changed / "coffee.png")
    photo[5, 5, 0] ^= 1
    Image.fromarray(photo).save(changed / "coffee.png")
    (changed / "chelsea.png").rename(changed / "cat.png")
    with pytest.raises(DtkdError, match=r"gone: chelsea\.png, new: cat\.png, changed: coffee\.png"):
        build_cache(str(changed), cache, NoisyBicubic(), settings())


def test_what_only_concerns_this_process_may_change(corpus, cache):
    result = build_cache(str(corpus), cache, NoisyBicubic(), settings(max_failure_fraction=0.5, lease_seconds=5.0))
    assert result.reused == 17


def test_a_folder_with_other_things_is_not_taken(corpus, tmp_path):
    (tmp_path / "thesis.docx").touch()
    with pytest.raises(DtkdError, match=r"holds other files \(thesis\.docx\)"):
        build_cache(str(corpus), tmp_path, NoisyBicubic(), settings())
    assert os.listdir(tmp_path) == ["thesis.docx"]


def test_limit_takes_photos_independently_of_their_order(corpus, tmp_path):
    build_cache(str(corpus), tmp_path, NoisyBicubic(), settings(limit=3))
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert len(plan["sources"]) == 3
    assert shards.load_manifest(tmp_path).ok == 2 * 4 + 1


@pytest.mark.parametrize(
    "wrong", [{"tile": 100}, {"tile": 0}, {"limit": 0}, {"micro_batch": 0}, {"max_failure_fraction": 2.0}]
)
def test_settings_are_checked(wrong):
    with pytest.raises(DtkdError, match=next(iter(wrong))):
        BuildSettings(**wrong)


def test_a_teacher_of_another_scale_is_refused(corpus, tmp_path):
    with pytest.raises(DtkdError, match="makes x4, expected x2"):
        build_cache(str(corpus), tmp_path, NoisyBicubic(), BuildSettings(**SETTINGS, degradation=Degradation(scale=2)))


# Failures ------------------------------------------------------------------------------------------------------------


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
    with pytest.raises(
        DtkdError, match=r"samples failed, more than max_failure_fraction 0\.1 allows; for example .*load"
    ):
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
    for option in ("a new cache folder", "--set max_failure_fraction=", "--retry-errors"):
        assert option in str(caught.value)
    shutil.copy(corpus / photo, broken / photo)
    with pytest.raises(DtkdError, match=f"changed: {photo}"):
        build_cache(str(broken), tmp_path / "cache", NoisyBicubic(), settings())


def test_failures_are_listed_up_to_a_limit(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("teacher_cache.build.FAILURES", 2)
    teacher = NoisyBicubic(refuse=lambda lr: True)
    result = build_cache(str(corpus), tmp_path, teacher, settings(max_failure_fraction=1.0))
    assert [item.stage for item in result.failures] == ["teacher"] * 2
    assert sum(item.samples for item in result.failures) + result.failures_left_out == result.errors == 17


def test_one_imported_picture_for_two_photos_is_refused(corpus, tmp_path):
    folder = imported(corpus, tmp_path / "made")
    shutil.copytree(corpus, tmp_path / "photos" / "again")
    shutil.copy(corpus / "coffee.png", tmp_path / "photos" / "coffee.png")
    with pytest.raises(DtkdError, match=r"coffee\.png would serve again/coffee\.png and coffee\.png"):
        build_cache(str(tmp_path / "photos"), tmp_path / "cache", ImportedTeacher(folder, 4), settings())
    assert not (tmp_path / "cache").exists()


def test_a_picture_that_the_teacher_refuses_fails_alone(corpus, cache, tmp_path):
    """The other picture of its micro-batch gets the bytes that it has in the full cache."""
    full = {meta["key"]: (meta, pictures) for meta, pictures in samples(cache)}
    victim = next(iter(full.values()))[1]["lr"]
    teacher = NoisyBicubic(refuse=lambda lr: np.array_equal(images.to_image(lr), victim))
    result = build_cache(str(corpus), tmp_path, teacher, settings())
    assert (result.ok, result.errors) == (16, 1)
    (error,) = [s.error for shard in shards.load_manifest(tmp_path).shards for s in shard.errors]
    assert (error.stage, error.type) == ("teacher", "ValueError")
    assert error.message == "this teacher does not like the picture"
    for meta, pictures in samples(tmp_path):
        assert np.array_equal(pictures["teacher"], full[meta["key"]][1]["teacher"])


def test_failed_samples_can_be_tried_again(corpus, cache, tmp_path):
    victim = next(pictures["lr"] for _, pictures in samples(cache))
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


def test_nan_is_an_error_of_its_picture_only():
    lrs = [np.zeros((8, 8, 3), np.uint8)] * 3
    first, *others = restore(Bad(float("nan")), lrs, [1, 2, 3], 4)
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
    lrs = [chance.integers(0, 256, (8, 8, 3), dtype=np.uint8) for _ in range(3)]
    together = restore(Watched(), lrs, [1, 2, 3], 4)
    alone = [restore(Watched(), [lr], [seed], 4)[0] for lr, seed in zip(lrs, [1, 2, 3], strict=True)]
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
        try:
            build_cache(str(corpus), tmp_path, NoisyBicubic(), settings())
        except DtkdError as error:
            assert "disk is full" in str(error)
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


# Imported pictures, drift --------------------------------------------------------------------------------------------


def imported(corpus, folder):
    """What another system might have made: the photos, brighter."""
    folder.mkdir()
    for path in corpus.iterdir():
        Image.fromarray(np.minimum(images.load_rgb(path), 245) + np.uint8(10)).save(folder / path.name)
    return folder


def test_imported_pictures_are_cut_at_the_tile(corpus, tmp_path):
    teacher = ImportedTeacher(imported(corpus, tmp_path / "made"), 4)
    result = build_cache(str(corpus), tmp_path / "cache", teacher, settings())
    assert result.teacher_seconds_per_image is None
    assert result.drift.mean == pytest.approx(10, abs=1)
    for _, pictures in samples(tmp_path / "cache"):
        assert np.array_equal(pictures["teacher"], np.minimum(pictures["gt"], 245) + np.uint8(10))


def test_a_missing_or_wrong_imported_picture_is_an_error_of_its_samples(corpus, cache, tmp_path):
    folder = imported(corpus, tmp_path / "made")
    absent, small = sorted({meta["source"] for meta, _ in samples(cache)})[:2]
    (folder / absent).unlink()
    Image.fromarray(images.load_rgb(folder / small)[:100]).save(folder / small)
    teacher = ImportedTeacher(folder, 4)
    build_cache(str(corpus), tmp_path / "cache", teacher, settings(max_failure_fraction=0.6))
    manifest = shards.load_manifest(tmp_path / "cache")
    errors = sorted(sample.error.message for shard in manifest.shards for sample in shard.errors)
    assert errors == sorted(
        [f"no imported output for {absent}"] * 4 + [f"{small} must be as large as the photo, 128x128, got 128x100"] * 4
    )


def test_drift_is_the_two_level_haar_low_band_against_lr():
    """Against PyWavelets: LL2 of an orthonormal transform is four times the block mean."""
    pywt = pytest.importorskip("pywt")
    chance = np.random.default_rng(0)
    teacher = chance.integers(0, 256, (32, 48, 3), dtype=np.uint8)
    lr = chance.integers(0, 256, (8, 12, 3), dtype=np.uint8)
    low = pywt.wavedec2(teacher.astype(float), "haar", level=2, axes=(0, 1))[0] / 4
    assert colour_drift(teacher, lr) == pytest.approx(np.abs(low - lr).mean(), abs=1e-9)


def test_paired_corpora_are_read_and_not_degraded(corpus, tmp_path):
    for path in corpus.iterdir():
        for name, divisor in (("HR", 1), ("LR", 4)):
            (tmp_path / "pairs" / name).mkdir(parents=True, exist_ok=True)
            with Image.open(path) as photo:
                small = photo.resize((128 // divisor, 128 // divisor), Image.Resampling.LANCZOS)
            small.save(tmp_path / "pairs" / name / path.name)
    build_cache(str(tmp_path / "pairs"), tmp_path / "cache", NoisyBicubic(), settings(kind="paired"))
    for meta, pictures in samples(tmp_path / "cache"):
        lr = images.load_rgb(tmp_path / "pairs" / "LR" / meta["source"])
        x, y, side = meta["x"] // 4, meta["y"] // 4, 16
        assert np.array_equal(pictures["lr"], lr[y : y + side, x : x + side])


def test_the_seed_of_a_sample_decides_its_degradation(cache, corpus):
    """A cached LR image is what `pairs.cut_pair` makes of the photo alone, without any cache."""
    meta, pictures = next(samples(cache))
    hr = images.load_rgb(corpus / meta["source"])
    box = {name: meta[name] for name in ("source", "x", "y", "width", "height", "split")}
    pair = pairs.cut_pair(hr, None, pairs.Tile(**box), Degradation("bicubic", 4), 0)
    assert pair.key == meta["key"]
    assert np.array_equal(pair.lr, pictures["lr"])
