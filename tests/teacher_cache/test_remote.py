"""Making a cache at a URL, against fsspec's memory:// store: the same bytes as in a folder, whatever the store does."""

import pytest
from cache_support import URL, NoisyBicubic, build_at_url, remote_tars, settings, tars

from pipeline.shards import load_manifest
from pipeline.storage.places import Remote
from pipeline.system.errors import DtkdError, UsageError
from student.stream import open_cache
from teacher_cache.building.build import build_cache
from teacher_cache.building.survey import survey
from teacher_cache.building.verify import verify_cache
from teacher_cache.remote import RemoteCache
from teacher_cache.reporting.preview import preview_tiles


def test_shares_of_two_machines_make_the_cache_of_a_folder(corpus, finished, store, tmp_path):
    one = build_at_url(corpus, tmp_path / "one", "2-")
    assert (one.complete, one.share_done, one.shards_done, one.cache) == (False, True, 3, URL)
    two = build_at_url(corpus, tmp_path / "two", "0-1")
    assert (two.complete, two.shards_done, two.failure) == (True, 5, None)
    assert remote_tars(store) == tars(finished)
    assert not list(tmp_path.glob("*/making/*/*.tar")), "a tar goes when the store has it"
    assert load_manifest(URL).ok == load_manifest(finished).ok
    assert open_cache(URL).fingerprint() == open_cache(finished).fingerprint()
    found = verify_cache(URL, recompute=3, teacher=NoisyBicubic())
    assert (found.ok, found.samples, found.cache) == (True, 17, URL)
    teacher = NoisyBicubic()
    again = build_at_url(corpus, tmp_path / "three", "0-", teacher)
    assert (again.complete, again.computed, teacher.calls) == (True, 0, 0)


@pytest.mark.parametrize("fails", ["shard-00000001.tar", "done/shard-00000001.json", "manifest.json", "plan.json"])
def test_a_put_that_fails_costs_no_teacher_call(corpus, finished, store, tmp_path, monkeypatch, fails):
    put = type(store).put_file

    def lose(self, here, there, **options):
        if there.endswith(fails):
            raise ConnectionResetError("connection lost")
        return put(self, here, there, **options)

    first, second = NoisyBicubic(), NoisyBicubic()
    with monkeypatch.context() as broken:
        broken.setattr(type(store), "put_file", lose)
        with pytest.raises(DtkdError, match=f"{URL}: writing {fails} failed .*connection lost.*run the same command"):
            build_at_url(corpus, tmp_path, "0-", first)
    with pytest.raises(DtkdError):
        load_manifest(URL)
    assert build_at_url(corpus, tmp_path, "0-", second).complete
    assert remote_tars(store) == tars(finished)
    assert verify_cache(URL).ok
    undisturbed = NoisyBicubic()
    build_cache(str(corpus), tmp_path / "folder", undisturbed, settings())
    assert first.calls + second.calls == undisturbed.calls


def test_a_put_that_ends_early_is_noticed(corpus, finished, store, tmp_path, monkeypatch):
    def half(self, here, there, **options):
        with open(here, "rb") as file:
            data = file.read()
        self.pipe_file(there, data[: len(data) // 2] if there.endswith("val-00000000.tar") else data)

    with monkeypatch.context() as broken:
        broken.setattr(type(store), "put_file", half)
        with pytest.raises(DtkdError, match="bytes after writing"):
            build_at_url(corpus, tmp_path, "0-")
    assert not store.exists("/bucket/cache/done/val-00000000.json")
    assert build_at_url(corpus, tmp_path, "0-").complete
    assert remote_tars(store) == tars(finished)


def test_damage_is_found_and_repaired(corpus, finished, store, tmp_path):
    build_at_url(corpus, tmp_path, "0-")
    path = "/bucket/cache/shard-00000002.tar"
    data = bytearray(store.cat_file(path))
    data[3000] ^= 1
    store.pipe_file(path, bytes(data))
    found = verify_cache(URL)
    assert {item.shard for item in found.damage} == {"shard-00000002"}
    assert verify_cache(URL, repair=True).repaired == ("shard-00000002",)
    with pytest.raises(DtkdError, match="4 of 5 shards are done"):
        load_manifest(URL)
    assert build_at_url(corpus, tmp_path, "0-").computed == 5
    assert remote_tars(store) == tars(finished)
    assert verify_cache(URL).ok


def test_a_tar_that_vanished_is_made_again(corpus, finished, store, tmp_path):
    build_at_url(corpus, tmp_path, "0-")
    store.rm("/bucket/cache/shard-00000000.tar")
    assert not verify_cache(URL).ok
    assert build_at_url(corpus, tmp_path, "0-").computed == 5
    assert remote_tars(store) == tars(finished)
    assert verify_cache(URL).ok


def test_what_needs_a_folder_is_refused_before_the_work(corpus, store, tmp_path):
    with pytest.raises(UsageError, match=r"has no leases .* --shards 0-"):
        build_at_url(corpus, tmp_path, None)
    assert not store.store


def test_another_plan_is_refused(corpus, store, tmp_path):
    build_at_url(corpus, tmp_path / "one", "0")
    with pytest.raises(DtkdError, match=r"was begun differently .*seed"):
        build_at_url(corpus, tmp_path / "two", "1", seed=7)
    remote = RemoteCache(Remote(URL), tmp_path / "three")
    remote.begin()
    (remote.folder / "plan.json").write_text("{}")  # as if both had found no plan
    with pytest.raises(DtkdError, match="begun by another process"):
        remote.put_plan()


def test_a_preview_gives_the_store_nothing(corpus, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    how = settings(shards="0-", local_folder=str(tmp_path / "local"))
    found = preview_tiles(survey(corpus, URL, how), NoisyBicubic(), 4)
    assert len(found.tiles) == 4 and found.sheet.resolve() == tmp_path / "cache-preview.png"
    assert not store.find("/bucket")
