import json
import os
import shutil

import pytest
from cache_support import NoisyBicubic, make_corpus, records, settings, tars

from pipeline import shards
from pipeline.system.errors import DtkdError
from teacher_cache.building import crops
from teacher_cache.building.build import build_cache
from teacher_cache.building.verify import verify_cache
from teacher_cache.teachers.imported import ImportedTeacher


def flip(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 4]))


def member(cache, shard, name, index=0):
    record = json.loads((cache / "done" / f"{shard}.json").read_text())
    return record["samples"][index]["key"], record["samples"][index]["members"][name]


def test_a_sound_cache_passes_and_the_teacher_agrees(cache):
    events = []
    result = verify_cache(cache, recompute=6, teacher=NoisyBicubic(), on_progress=events.append)
    assert result.ok
    assert (result.shards, result.samples, result.errors) == (5, 17, 0)
    assert len(result.recomputed) == 6
    assert max(item.max_difference for item in result.recomputed) == 0, "same machine, same shapes"
    assert result.advice == "sound"
    assert [event.done for event in events] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["lr", "gt", "teacher", "json", "around"])
def test_one_flipped_bit_is_found_and_its_sample_named(cache, name):
    key, (offset, size, _) = member(cache, "shard-00000001", name)
    flip(cache / "shard-00000001.tar", offset + size // 2)
    result = verify_cache(cache)
    assert not result.ok
    assert {item.shard for item in result.damage} == {"shard-00000001"}
    assert key in {item.key for item in result.damage}
    assert result.samples == 16
    assert "shard-00000001" in result.advice


def test_every_kind_of_damage_names_its_shard_and_is_repaired(corpus, finished, cache):
    _, (offset, _, _) = member(cache, "shard-00000000", "gt")
    flip(cache / "shard-00000000.tar", offset - 512)  # a member's name
    os.truncate(cache / "shard-00000001.tar", (cache / "shard-00000001.tar").stat().st_size - 10240)
    (cache / "shard-00000002.tar").unlink()
    (cache / "done" / "shard-00000003.json").write_text("{}")
    (cache / "done" / "val-00000000.json").unlink()
    names = [f"shard-0000000{i}" for i in range(4)] + ["val-00000000"]

    result = verify_cache(cache)
    assert sorted({item.shard for item in result.damage}) == names

    repaired = verify_cache(cache, repair=True)
    assert sorted(repaired.repaired) == names
    with pytest.raises(DtkdError, match="0 of 5 shards are done"):
        shards.load_manifest(cache)
    build_cache(str(corpus), cache, NoisyBicubic(), settings())
    assert verify_cache(cache).ok
    assert tars(cache) == tars(finished)
    assert records(cache) == records(finished)


def test_a_sample_that_was_made_wrong_is_made_anew_by_a_repair(corpus, finished, tmp_path, monkeypatch):
    """Its bytes are those of the records, so that only a look at the pictures tells."""
    right, cache = crops.cut_tile, tmp_path / "cache"

    def wrong(hr, lr, tile, *args):
        pair = right(hr, lr, tile, *args)
        return pair._replace(around=pair.around[::-1]) if tile.x and tile.y else pair

    monkeypatch.setattr(crops, "cut_tile", wrong)
    build_cache(str(corpus), cache, NoisyBicubic(), settings())
    monkeypatch.undo()
    result = verify_cache(cache, repair=True)
    assert {item.reason for item in result.damage} == {"lr is not the inside of around"}
    build_cache(str(corpus), cache, NoisyBicubic(), settings())
    assert verify_cache(cache).ok
    assert tars(cache) == tars(finished)


def test_a_copy_without_empty_folders_can_be_repaired(corpus, finished, cache):
    for name in ("leases", "parts"):
        shutil.rmtree(cache / name)
    (cache / "shard-00000001.tar").unlink()
    assert verify_cache(cache, repair=True).repaired == ("shard-00000001",)
    build_cache(str(corpus), cache, NoisyBicubic(), settings())
    assert tars(cache) == tars(finished)


def test_repair_calls_the_teacher_for_the_damaged_micro_batch_only(corpus, finished, cache):
    _, (offset, size, _) = member(cache, "shard-00000001", "teacher", index=3)
    flip(cache / "shard-00000001.tar", offset + size - 5)
    verify_cache(cache, repair=True)
    teacher = NoisyBicubic()
    result = build_cache(str(corpus), cache, teacher, settings())
    assert (result.reused, teacher.calls) == (12, 1)
    assert tars(cache) == tars(finished)


def test_repair_of_a_sound_cache_changes_nothing(cache, finished):
    assert verify_cache(cache, repair=True).repaired == ()
    assert (cache / "manifest.json").read_bytes() == (finished / "manifest.json").read_bytes()


@pytest.mark.parametrize("harm", ["missing", "other", "json", "no schema"])
def test_the_manifest_must_say_what_the_records_say(corpus, cache, harm):
    path = cache / "manifest.json"
    if harm == "missing":
        path.unlink()
    elif harm == "other":
        path.write_text(path.read_text().replace('"planned":17', '"planned":18'))
    else:
        path.write_text("{" if harm == "json" else "{}")
    result = verify_cache(cache, repair=True)
    assert [item.shard for item in result.damage] == ["manifest"]
    assert result.damage[0].reason.count("`dtkd") == 1  # said once what to do
    assert result.advice == "set back the manifest: run the same `dtkd teacher-cache` again to write it anew"
    build_cache(str(corpus), cache, NoisyBicubic(), settings())
    assert verify_cache(cache).ok


def test_swapped_shards_are_found(cache):
    a, b, aside = cache / "shard-00000000.tar", cache / "shard-00000001.tar", cache / "aside"
    a.rename(aside)
    b.rename(a)
    aside.rename(b)
    assert {item.shard for item in verify_cache(cache).damage} == {"shard-00000000", "shard-00000001"}


def test_a_teacher_that_draws_otherwise_is_noticed(cache):
    class Drifted(NoisyBicubic):
        """Says that it is the same, and is not."""

        def restore(self, lr, seeds):
            return (super().restore(lr, seeds) * 0.9 + 0.02).clamp(0, 1)

    result = verify_cache(cache, recompute=2, teacher=Drifted())
    assert not result.damage
    assert not result.ok
    assert "other pictures" in result.advice


def test_recomputing_needs_the_same_teacher(cache, tmp_path):
    with pytest.raises(DtkdError, match="needs the teacher"):
        verify_cache(cache, recompute=1)
    with pytest.raises(DtkdError, match=r"teacher\.noise: 0\.05 -> 0\.1"):
        verify_cache(cache, recompute=1, teacher=NoisyBicubic(noise=0.1))
    shutil.copytree(make_corpus(tmp_path / "made"), tmp_path / "pictures")
    with pytest.raises(DtkdError, match="not the teacher that made the cache"):
        verify_cache(cache, recompute=1, teacher=ImportedTeacher(tmp_path / "pictures", 4))


def test_what_is_no_cache_is_refused(tmp_path, cache):
    with pytest.raises(DtkdError, match="no teacher cache"):
        verify_cache(tmp_path / "nothing")
    plan = json.loads((cache / "plan.json").read_text())
    (cache / "plan.json").write_text(json.dumps(plan | {"schema": 7}))
    with pytest.raises(DtkdError, match="schema 7, this program reads schema 1"):
        verify_cache(cache)
    (cache / "plan.json").write_text(json.dumps({"schema": 1, "shards": 3}))
    with pytest.raises(DtkdError, match="damaged"):
        verify_cache(cache)
