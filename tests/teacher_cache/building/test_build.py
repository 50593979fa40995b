import io
import json
import os
import shutil
import tarfile

import numpy as np
import pytest
import webdataset
from cache_support import SETTINGS, NoisyBicubic, make_corpus, records, samples, settings, tars
from PIL import Image

from pipeline import images, schema, shards
from pipeline.degradation import Degradation
from pipeline.degrade import degrade
from pipeline.fidelity import colour_drift
from pipeline.system.errors import DtkdError
from teacher_cache.building import crops, writer
from teacher_cache.building.build import BuildSettings, build_cache, prepare, process_shard
from teacher_cache.building.manifest import finalize
from teacher_cache.building.verify import verify_cache
from teacher_cache.teachers.imported import ImportedTeacher


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def cache(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    build_cache(str(corpus), folder, NoisyBicubic(), settings())
    return folder


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
    """Against the parts themselves: the photo's own pixels, and the teacher called on what it saw."""
    teacher = NoisyBicubic()
    for split in ("train", "val"):
        for meta, pictures in samples(cache, split):
            photo = images.load_rgb(corpus / meta["source"])
            x, y, w, h = (meta[name] for name in ("x", "y", "width", "height"))
            assert np.array_equal(pictures["gt"], photo[y : y + h, x : x + w])
            assert pictures["lr"].shape == (h // 4, w // 4, 3)
            seed = schema.sample_seed(0, meta["key"], "teacher")
            assert np.array_equal(pictures["around"][4:-4, 4:-4], pictures["lr"])
            again = teacher.restore(images.to_tensor(pictures["around"])[None], [seed])[0, :, 16:-16, 16:-16]
            assert np.abs(images.to_image(again).astype(int) - pictures["teacher"]).max() <= 1


def test_tiles_of_the_teacher_join_without_a_seam(corpus, tmp_path):
    """Against the teacher on the whole photo; without context, the tiles' borders differ."""
    bicubic = NoisyBicubic(noise=0)
    for context in (4, 0):
        folder = tmp_path / str(context)
        build_cache(str(corpus), folder, bicubic, settings(context=context))
        gaps = []
        for meta, pictures in samples(folder):
            photo = images.load_rgb(corpus / meta["source"])
            lr = np.pad(
                degrade(photo, Degradation("bicubic"), np.random.default_rng(0)), ((8, 8), (8, 8), (0, 0)), "symmetric"
            )
            whole = images.to_image(bicubic.restore(images.to_tensor(lr)[None], [0])[0])[32:-32, 32:-32]
            part = whole[meta["y"] : meta["y"] + 64, meta["x"] : meta["x"] + 64]
            gaps.append(np.abs(part.astype(int) - pictures["teacher"]).max())
            assert ("around" in pictures) == bool(context)
        assert max(gaps) <= 1 if context else min(gaps) > 1
        assert verify_cache(folder, recompute=3, teacher=bicubic).ok


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


def test_what_killed_processes_left_goes_and_what_is_not_ours_stays(corpus, tmp_path):
    job = prepare(str(corpus), tmp_path, NoisyBicubic(), settings())
    ours = [tmp_path / ".plan.json.abcd.tmp", tmp_path / "leases" / ".shard-00000000.12.stale"]
    others = [tmp_path / ".gitattributes", tmp_path / ".hidden.txt"]
    for path in (*ours, *others):
        path.write_text("old")
        os.utime(path, (0, 0))
    for name in ("shard-00000000", "val-00000000"):
        (tmp_path / "parts" / f"{name}.0123.tar").write_text("of a killed process")
    for index in range(len(job.plan.shards)):
        process_shard(job, index)
    (tmp_path / "leases" / "shard-00000001.json").write_text('{"host": "elsewhere"}')  # at work: retrying its errors
    (tmp_path / "parts" / "shard-00000001.4567.tar").write_text("of a live process")
    finalize(tmp_path)
    assert not any(path.exists() for path in ours) and all(path.exists() for path in others)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["shard-00000001.4567.tar"]


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


def test_progress_counts_what_others_finish_meanwhile(corpus, tmp_path):
    job, events = prepare(str(corpus), tmp_path, NoisyBicubic(), settings()), []
    lease = tmp_path / "leases" / "shard-00000000.json"
    lease.write_text('{"host": "elsewhere"}')
    first, second = (len(shard.samples) for shard in job.plan.shards[:2])

    def another_process(event):
        events.append(event.done)
        if lease.exists():
            lease.unlink()
            assert process_shard(job, 0) is not None

    build_cache(str(corpus), tmp_path, NoisyBicubic(), settings(), another_process)
    assert events[events.index(first + second) - 1] == second and events[-1] == job.plan.planned


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
        ({"context": 0}, "context: 4 -> 0"),
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
    "wrong",
    [{"tile": 100}, {"tile": 0}, {"limit": 0}, {"micro_batch": 0}, {"max_failure_fraction": 2.0}, {"context": -1}],
)
def test_settings_are_checked(wrong):
    with pytest.raises(DtkdError, match=next(iter(wrong))):
        BuildSettings(**wrong)


def test_a_teacher_of_another_scale_is_refused(corpus, tmp_path):
    with pytest.raises(DtkdError, match="makes x4, expected x2"):
        build_cache(str(corpus), tmp_path, NoisyBicubic(), BuildSettings(**SETTINGS, degradation=Degradation(scale=2)))


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


def test_one_imported_picture_for_two_photos_is_refused(corpus, tmp_path):
    folder = imported(corpus, tmp_path / "made")
    shutil.copytree(corpus, tmp_path / "photos" / "again")
    shutil.copy(corpus / "coffee.png", tmp_path / "photos" / "coffee.png")
    with pytest.raises(DtkdError, match=r"coffee\.png would serve again/coffee\.png and coffee\.png"):
        build_cache(str(tmp_path / "photos"), tmp_path / "cache", ImportedTeacher(folder, 4), settings())
    assert not (tmp_path / "cache").exists()


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


def test_drift_is_the_shift_of_a_tiles_tone_and_not_its_noise():
    chance = np.random.default_rng(0)
    gt = np.kron(chance.integers(40, 200, (8, 12, 3)), np.ones((4, 4, 1))).astype(np.uint8)  # (32, 48, 3)
    noisy = (gt[::4, ::4] + chance.normal(0, 12, (8, 12, 3))).round().astype(np.uint8)
    assert colour_drift(gt, gt[::4, ::4]) == 0
    assert colour_drift(gt, noisy) < 3  # of noise whose mean size is 9.6
    shifted = gt + np.array([9, 0, 3], np.uint8)
    assert colour_drift(shifted, gt[::4, ::4]) == pytest.approx(4, abs=1e-9)


@pytest.mark.parametrize(("shift", "warned"), [(0.0, False), (6 / 255, True)])
def test_drift_is_told_only_where_it_is_seen(corpus, tmp_path, shift, warned):
    class Shifted(NoisyBicubic):
        def restore(self, lr, seeds):
            return super().restore(lr, seeds) + shift

    result = build_cache(str(corpus), tmp_path, Shifted(), settings(kind="real"))
    assert any("shifts the tone" in warning for warning in result.warnings) == warned


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
    """A cached LR image is what `crops.cut_tile` makes of the photo alone, without any cache."""
    meta, pictures = next(samples(cache))
    hr = images.load_rgb(corpus / meta["source"])
    box = {name: meta[name] for name in ("source", "x", "y", "width", "height", "split")}
    pair = crops.cut_tile(hr, None, crops.Tile(**box), Degradation("bicubic", 4), 0)
    assert pair.key == meta["key"]
    assert np.array_equal(pair.lr, pictures["lr"])
