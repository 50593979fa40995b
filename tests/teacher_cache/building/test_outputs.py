"""Caches with several outputs of each tile (`--samples`), of a real diffusion teacher that is small."""

import io
import json
import shutil
import signal
import tarfile

import numpy as np
import pytest
import webdataset
from cache_support import NoisyBicubic, make_corpus, messages, records, samples, settings, start, tars
from PIL import Image
from teacher_support import haar_pipeline

from pipeline import images, schema, shards
from pipeline.schema import TEACHERS
from pipeline.system.errors import DtkdError, UsageError
from teacher_cache import teachers
from teacher_cache.building.build import build_cache
from teacher_cache.building.settings import BuildSettings
from teacher_cache.building.survey import survey
from teacher_cache.building.verify import verify_cache
from teacher_cache.teachers.imported import ImportedTeacher


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus") / "photos")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    haar_pipeline(steps=2).save_pretrained(folder)
    return teachers.load(str(folder))


@pytest.fixture(scope="module")
def one(corpus, teacher, tmp_path_factory):
    cache = tmp_path_factory.mktemp("one") / "cache"
    build_cache(str(corpus), cache, teacher, settings())
    return cache


@pytest.fixture(scope="module")
def three(corpus, teacher, tmp_path_factory):
    cache = tmp_path_factory.mktemp("three") / "cache"
    build_cache(str(corpus), cache, teacher, settings(samples=3))
    return cache


@pytest.fixture
def cache(three, tmp_path):
    return shutil.copytree(three, tmp_path / "cache")


def place(cache, shard, name, index=0):
    sample = json.loads(shards.done_path(cache, shard).read_text())["samples"][index]
    return sample["key"], sample["members"][name]


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)


def test_every_output_is_the_teachers_with_the_seed_of_its_name(three, teacher):
    """Against the teacher called by hand on what it saw."""
    checked = 0
    for split in ("train", "val"):
        for meta, pictures in samples(three, split):
            assert pictures.keys() == {"lr", "gt", "around", "teacher", "teacher1", "teacher2"}
            around = images.to_tensor(pictures["around"])[None]
            for name in TEACHERS[:3]:
                again = teacher.restore(around, [schema.sample_seed(0, meta["key"], name)])[0, :, 16:-16, 16:-16]
                assert np.abs(images.to_image(again).astype(int) - pictures[name]).max() <= 1, name
                checked += 1
            apart = [np.abs(pictures["teacher"].astype(int) - pictures[name]).mean() for name in TEACHERS[1:3]]
            assert min(apart) > 0.5, "seeds differ"
    assert checked == 17 * 3


def test_the_first_output_and_all_else_are_those_of_a_cache_with_one(one, three):
    """Old caches go on: one output is neither written nor described in another way than before there could be more."""
    plans = [json.loads((cache / "plan.json").read_text()) for cache in (one, three)]
    assert plans[1]["fingerprint"].pop("samples") == 3
    assert plans[0] == plans[1]
    for split in ("train", "val"):
        for (meta, alone), (other, among) in zip(samples(one, split), samples(three, split), strict=True):
            assert meta == other
            assert alone.keys() == among.keys() - {"teacher1", "teacher2"}
            assert all(np.array_equal(picture, among[name]) for name, picture in alone.items())


def test_members_are_contiguous_and_plain_webdataset_reads_them(three):
    urls = [str(path) for path in sorted(three.glob("shard-*.tar"))]
    read = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [item["__key__"] for item in read] == [s.key for _, s in shards.load_manifest(three).samples("train")]
    for item in read:
        pictures = {name: item[f"{name}.webp"] for name in TEACHERS[:3]}
        assert len(set(pictures.values())) == 3
        for data in pictures.values():
            with Image.open(io.BytesIO(data)) as picture:
                assert picture.size == (64, 64)
    with tarfile.open(urls[0]) as tar:
        keys = [name.partition(".")[0] for name in tar.getnames()]
    assert keys == [key for key in dict.fromkeys(keys) for _ in range(7)]


def test_more_than_ten_outputs(corpus, tmp_path):
    """`teacher10` comes before `teacher2` in a tar, whose index must say so."""
    build_cache(str(corpus), tmp_path, NoisyBicubic(), settings(samples=12, limit=2))
    found = verify_cache(tmp_path, recompute=2, teacher=NoisyBicubic())
    assert found.ok and len(found.recomputed) == 2
    for _, pictures in samples(tmp_path):
        assert len({pictures[name].tobytes() for name in TEACHERS[:12]}) == 12


def test_times_count_every_output(three, one):
    assert [shards.load_manifest(cache).teacher_images for cache in (one, three)] == [17, 51]


def test_the_survey_tells_the_outputs(corpus, tmp_path):
    assert survey(corpus, tmp_path / "c", settings(samples=3)).lines[-1].endswith(": 17 tiles, 3 outputs of each")
    assert survey(corpus, tmp_path / "c", settings()).lines[-1].endswith(": 17 tiles")


# Damage, resuming ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["teacher1", "teacher2"])
def test_a_damaged_output_is_found_and_repaired(corpus, teacher, three, cache, name):
    key, (offset, size, _) = place(cache, "shard-00000001", name)
    flip(cache / "shard-00000001.tar", offset + size // 2)
    found = verify_cache(cache, repair=True)
    assert key in {item.key for item in found.damage} and found.samples == 16
    assert found.repaired == ("shard-00000001",)
    build_cache(str(corpus), cache, teacher, settings(samples=3))
    assert verify_cache(cache).ok
    assert tars(cache) == tars(three) and records(cache) == records(three)
    assert shards.load_manifest(cache).teacher_images == 51


def test_a_recorded_output_less_is_damage(cache, tmp_path):
    for path in (shards.done_path(cache, "shard-00000001"), cache / "manifest.json"):
        data = json.loads(path.read_text())
        record = data if "samples" in data else data["shards"][1]
        del record["samples"][0]["members"]["teacher2"]
        path.write_text(json.dumps(data))
    assert any("teacher2" in item.reason for item in verify_cache(cache).damage if item.key)
    with pytest.raises(DtkdError, match="2 outputs, expected 3"):
        shards.load_manifest(cache)


def test_recomputing_asks_for_every_output(cache, teacher):
    """A teacher that draws otherwise for one of a tile's seeds only."""
    assert verify_cache(cache, recompute=3, teacher=teacher).ok
    seen = []

    class Watch(NoisyBicubic):
        def fingerprint(self):
            return teacher.fingerprint()

        def restore(self, lr, seeds):
            seen.append(seeds[0])
            return (
                teacher.restore(lr, seeds)
                if len(seen) % 3
                else lr.new_zeros(len(lr), 3, *(4 * s for s in lr.shape[2:]))
            )

    found = verify_cache(cache, recompute=2, teacher=Watch())
    assert len(set(seen)) == 6 and not found.ok and "other pictures" in found.advice


def test_a_killed_process_leaves_whole_samples_to_the_next(corpus, tmp_path):
    """Of what was done nothing is made again, and the bytes are those of one attempt."""
    how = {"samples": 3, "samples_per_shard": 100}
    process, pipe = start(corpus, tmp_path / "killed", die_after=6, **how)
    list(messages(pipe))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    teacher = NoisyBicubic()
    build_cache(str(corpus), tmp_path / "killed", teacher, settings(**how))
    assert teacher.calls == 3 * ((16 - 6) / 2 + 1)  # micro-batches of two tiles, and the held-out crop
    build_cache(str(corpus), tmp_path / "whole", NoisyBicubic(), settings(**how))
    assert tars(tmp_path / "killed") == tars(tmp_path / "whole")


@pytest.mark.parametrize(("begun", "asked", "message"), [(3, 1, "3 -> 1"), (3, 2, "3 -> 2"), (1, 3, "1 -> 3")])
def test_another_number_is_refused_before_and_after_the_teacher(corpus, one, three, begun, asked, message, tmp_path):
    cache = shutil.copytree(one if begun == 1 else three, tmp_path / "cache")
    before = tars(cache)
    with pytest.raises(DtkdError, match=f"begun differently .*samples: {message}"):
        survey(corpus, cache, settings(samples=asked))
    (cache / "plan.json").unlink()
    with pytest.raises(DtkdError, match=f"begun differently .*samples: {message}"):
        build_cache(str(corpus), cache, NoisyBicubic(), settings(samples=asked))
    assert tars(cache) == before


def test_a_failed_output_fails_its_tile_and_no_other(corpus, three, teacher, tmp_path):
    """The teacher stumbles over one seed of one tile."""
    key = shards.load_manifest(three).shards[0].samples[2].key
    bad = schema.sample_seed(0, key, "teacher1")

    class Stumbling(NoisyBicubic):
        def restore(self, lr, seeds):
            if bad in seeds:
                raise ValueError("not this one")
            return super().restore(lr, seeds)

    build_cache(str(corpus), tmp_path / "stumbling", Stumbling(), settings(samples=2))
    build_cache(str(corpus), tmp_path / "sound", NoisyBicubic(), settings(samples=2))
    (error,) = (s for shard in shards.load_manifest(tmp_path / "stumbling").shards for s in shard.errors)
    assert (error.key, error.error.message) == (key, "not this one")
    expected = {meta["key"]: pictures for meta, pictures in samples(tmp_path / "sound")}
    for meta, pictures in samples(tmp_path / "stumbling"):
        assert all(np.array_equal(pictures[name], expected[meta["key"]][name]) for name in TEACHERS[:2])


# What cannot be ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, -1, 17])
def test_the_number_of_outputs_is_checked(count):
    with pytest.raises(UsageError, match=f"samples must be 1 to 16, got {count}"):
        BuildSettings(samples=count)


def test_imported_pictures_have_one_output(corpus, tmp_path):
    teacher = ImportedTeacher(corpus, 4)
    with pytest.raises(UsageError, match=r"import:.* has one picture for each photo.*--samples 1, got 2") as error:
        build_cache(str(corpus), tmp_path / "cache", teacher, settings(samples=2))
    assert "\n" not in str(error.value) and not (tmp_path / "cache").exists()
