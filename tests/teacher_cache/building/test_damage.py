"""Every kind of damage: found by `verify` and the reader, with shard and key, and mended to the undisturbed bytes."""

import json
import os
import shutil
import tarfile

import numpy as np
import pytest
from cache_support import NoisyBicubic, settings
from worker_support import assert_undisturbed

from pipeline.schema import ShardRecord
from pipeline.system.errors import DtkdError
from student.dataset import open_cache
from teacher_cache.building.build import build_cache
from teacher_cache.building.verify import verify_cache

SHARD, OTHER = "shard-00000001", "shard-00000002"


def record_of(cache, name=SHARD):
    return ShardRecord.from_json(json.loads((cache / "done" / f"{name}.json").read_text()))


def tar_of(cache):
    return cache / f"{SHARD}.tar"


def overwrite(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def mend(corpus, cache, finished, repaired):
    """`verify --repair` and stage one again; returns how often the teacher was called for it."""
    assert verify_cache(cache, repair=True).repaired == repaired
    teacher = NoisyBicubic()
    build_cache(str(corpus), cache, teacher, settings())
    assert_undisturbed(cache, finished)
    return teacher.calls


def first_header(record, sample=1):
    """Where a sample's first member begins, with its tar header."""
    return min(place.offset for place in record.ok[sample].members.values()) - tarfile.BLOCKSIZE


def cut_inside_data(cache, record):
    os.truncate(tar_of(cache), record.ok[1].members["gt"].offset + 100)


def cut_at_a_header(cache, record):
    os.truncate(tar_of(cache), first_header(record) + 100)


def cut_at_a_boundary(cache, record):
    os.truncate(tar_of(cache), first_header(record))


def zeroed_header(cache, record):
    overwrite(tar_of(cache), first_header(record), bytes(tarfile.BLOCKSIZE))


def flipped_bit(cache, record):
    at = record.ok[1].members["teacher"].offset + 60
    overwrite(tar_of(cache), at, bytes([tar_of(cache).read_bytes()[at] ^ 1]))


def another_file_under_the_name(cache, record):
    size = tar_of(cache).stat().st_size
    data = (cache / "shard-00000000.tar").read_bytes()
    tar_of(cache).write_bytes(data[:size].ljust(size, b"\0"))


LOST_FROM_THE_SECOND_ON = slice(1, None)
OF_THE_TAR = [
    (cut_inside_data, LOST_FROM_THE_SECOND_ON),
    (cut_at_a_header, LOST_FROM_THE_SECOND_ON),
    (cut_at_a_boundary, LOST_FROM_THE_SECOND_ON),
    (zeroed_header, slice(1, 2)),
    (flipped_bit, slice(1, 2)),
    (another_file_under_the_name, slice(0, None)),
]


@pytest.mark.parametrize(("harm", "lost"), OF_THE_TAR, ids=[harm.__name__ for harm, _ in OF_THE_TAR])
def test_damage_of_a_tar_is_found_by_verify_and_reader_and_mended(corpus, finished, cache, harm, lost):
    record = record_of(cache)
    keys = {sample.key for sample in record.samples[lost]}
    harm(cache, record)
    found = verify_cache(cache)
    assert {item.shard for item in found.damage} == {SHARD}
    assert {item.key for item in found.damage if item.key} >= keys
    assert found.samples == 17 - len({item.key for item in found.damage if item.key})

    if harm is zeroed_header:  # the reader goes by the places of the bytes, which are whole
        for found, whole in zip(open_cache(cache), open_cache(finished), strict=True):
            assert found.key == whole.key and np.array_equal(found.teacher, whole.teacher)
    else:
        with pytest.raises(DtkdError) as caught:
            list(open_cache(cache))
        assert SHARD in str(caught.value) and any(key in str(caught.value) for key in keys), caught.value

    calls = mend(corpus, cache, finished, (SHARD,))
    assert calls <= 3, "what is finished is not made again: a shard has three micro-batches"


def test_a_missing_record_is_found_and_mended(corpus, finished, cache):
    (cache / "done" / f"{SHARD}.json").unlink()
    assert [item.shard for item in verify_cache(cache).damage] == [SHARD]
    (cache / "manifest.json").unlink()  # as long as it is there, it holds what the record held
    with pytest.raises(DtkdError, match=f"4 of 5 shards are done, {SHARD} is not;"):
        open_cache(cache)
    mend(corpus, cache, finished, (SHARD,))


def test_foreign_files_are_found_and_left_to_their_owner(cache, finished):
    shutil.copy(tar_of(cache), cache / "shard-00000099.tar")
    (cache / "done" / "shard-00000098.json").write_text("{}")
    (cache / "README.md").write_text("Notes disturb nobody.")
    result = verify_cache(cache, repair=True)
    assert not result.ok and result.repaired == ()
    assert [item.reason.split()[0] for item in result.damage] == ["done/shard-00000098.json", "shard-00000099.tar"]
    assert result.advice.startswith("foreign files: move them out")
    assert len(open_cache(cache)) == 16, "the reader goes by the manifest"
    (cache / "shard-00000099.tar").unlink()
    (cache / "done" / "shard-00000098.json").unlink()
    (cache / "README.md").unlink()
    assert_undisturbed(cache, finished)


def test_a_truncated_manifest_is_found_and_mended(corpus, finished, cache):
    path = cache / "manifest.json"
    path.write_bytes(path.read_bytes()[:1000])
    assert [item.shard for item in verify_cache(cache).damage] == ["manifest"]
    with pytest.raises(DtkdError, match=r"manifest\.json is damaged: not JSON .*dtkd verify"):
        open_cache(cache)
    mend(corpus, cache, finished, ("manifest",))
    assert path.read_bytes() == (finished / "manifest.json").read_bytes()


def test_a_lost_plan_is_found_and_written_again(corpus, finished, cache):
    (cache / "plan.json").unlink()
    with pytest.raises(DtkdError, match=r"has lost its plan\.json: the same `dtkd teacher-cache`"):
        verify_cache(cache, repair=True)
    teacher = NoisyBicubic()
    build_cache(str(corpus), cache, teacher, settings())
    assert teacher.calls == 0
    assert_undisturbed(cache, finished)


def test_a_key_twice_in_a_tar_is_found_and_mended(corpus, finished, cache):
    """A reader without an index, as WebDataset's, would take both or merge them."""
    record = record_of(cache)
    start, end = first_header(record, 0), first_header(record, 1)
    data = tar_of(cache).read_bytes()
    last = max(place.offset + place.size for place in record.ok[-1].members.values())
    last += -last % tarfile.BLOCKSIZE
    tar_of(cache).write_bytes(data[:last] + data[start:end] + bytes(2 * tarfile.BLOCKSIZE))
    found = verify_cache(cache)
    assert {item.shard for item in found.damage} == {SHARD}
    assert record.ok[0].key in {item.key for item in found.damage}
    with pytest.raises(DtkdError, match=f"{SHARD}.tar has "):
        open_cache(cache)
    mend(corpus, cache, finished, (SHARD,))


@pytest.mark.parametrize("where", ["one record", "two shards"])
def test_a_key_twice_in_the_records_is_found_and_mended(corpus, finished, cache, where):
    path, manifest_path = cache / "done" / f"{SHARD}.json", cache / "manifest.json"
    record, manifest = json.loads(path.read_text()), json.loads(manifest_path.read_text())
    key = record["samples"][0]["key"]
    harmed = SHARD if where == "one record" else OTHER
    next(shard for shard in manifest["shards"] if shard["name"] == harmed)["samples"][1]["key"] = key
    manifest_path.write_text(json.dumps(manifest))
    if harmed == SHARD:
        record["samples"][1]["key"] = key
        path.write_text(json.dumps(record))
    with pytest.raises(DtkdError) as caught:
        open_cache(cache)
    assert all(word in str(caught.value) for word in (SHARD, key, "verify")), caught.value
    found = verify_cache(cache)
    assert {item.shard for item in found.damage} == {SHARD if where == "one record" else "manifest"}
    assert where == "two shards" or key in found.damage[0].reason
    mend(corpus, cache, finished, (SHARD if where == "one record" else "manifest",))
    assert len(open_cache(cache)) == 16
