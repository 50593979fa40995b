"""A cache at a URL: reading it through a bounded local folder (fsspec's memory:// store)."""

import os
import threading

import fsspec
import pytest
from tiny_cache import write_cache

from pipeline.shards import DamagedShardError, load_manifest, shard_path
from pipeline.storage.fetched import FetchAhead, FetchedShards, LocalFolder, StoredShard
from pipeline.storage.places import Folder, Remote, place_of, read_json
from pipeline.system.errors import DtkdError, UsageError
from student.stream import DataSettings, batches, open_cache


@pytest.fixture
def stored(tmp_path):
    """A small cache in a folder and the same one at a URL; its store."""
    folder = write_cache(tmp_path / "cache", shards=(3, 4, 2), tile=64)
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    fs.put(str(folder), "/bucket/cache", recursive=True)
    yield folder, "memory://bucket/cache", fs
    fs.store.clear()


def local(tmp_path, gigabytes=1.0):
    return LocalFolder(str(tmp_path / "local"), gigabytes)


def held(tmp_path):
    return sorted(path.name[:14] for path in (tmp_path / "local").glob("fetched/*/[!.]*"))


def counted(monkeypatch):
    """Names of the tars that were fetched."""
    fetched, fetch = [], Remote.fetch

    def note(self, name, to):
        fetch(self, name, to)
        if name.endswith(".tar"):
            fetched.append(name)

    monkeypatch.setattr(Remote, "fetch", note)
    return fetched


def test_places():
    assert isinstance(place_of("runs/cache"), Folder)
    assert str(place_of("memory://a/b/")) == "memory://a/b"
    assert place_of("memory://a/b").name == "b"
    with pytest.raises(UsageError, match="by its path"):
        place_of("file:///tmp/cache")
    with pytest.raises(UsageError, match="copy of the cache in a folder"):
        place_of(os.path.normpath("s3://bucket/cache"))
    with pytest.raises(DtkdError, match="adlfs"):
        place_of("abfs://container/cache").read("plan.json")


def test_training_batches_are_those_of_the_folder(stored, tmp_path):
    folder, url, _ = stored
    how = {"seed": 1, "steps": range(7), "batch_size": 3, "patch": 8}
    here = list(batches(open_cache(folder), DataSettings(workers=0, window=2), **how))
    there = list(batches(open_cache(url, local=local(tmp_path)), DataSettings(workers=0, window=2), **how))
    assert open_cache(url, local=local(tmp_path)).fingerprint() == open_cache(folder).fingerprint()
    for one, other in zip(here, there, strict=True):
        assert one.keys == other.keys
        assert all((a == b).all() for a, b in zip(one[:3], other[:3], strict=True))


def test_the_coming_shards_are_fetched_ahead(stored, tmp_path, monkeypatch):
    _, url, _ = stored
    fetched = counted(monkeypatch)
    dataset = open_cache(url, local=local(tmp_path))
    stream = batches(dataset, DataSettings(workers=0, window=1), seed=0, steps=range(30), batch_size=1, patch=8)
    first = next(stream)
    for _ in range(200):  # the thread fetches the shard of the next window while we hold the first batch
        if len(fetched) > 1:
            break
        threading.Event().wait(0.05)
    used = {dataset.shard(i) for i in range(len(dataset)) if dataset.key(i) in first.keys}
    assert set(fetched) - {f"{name}.tar" for name in used}
    list(stream)
    assert set(fetched) == {f"shard-0000000{i}.tar" for i in range(3)}


def test_the_folder_is_bounded_and_the_oldest_go_first(stored, tmp_path, monkeypatch):
    _, url, _ = stored
    records = {shard.name: StoredShard(shard.bytes, shard.sha256[:16]) for shard in load_manifest(url).shards}
    sizes = [records[f"shard-0000000{i}"].size for i in range(3)]
    fetched = counted(monkeypatch)
    shards = FetchedShards(Remote(url), records, local(tmp_path, (max(sizes[0] + sizes[1], sizes[0] + sizes[2])) / 1e9))
    for number in (0, 1, 0, 2, 0):
        os.close(shards.open(f"shard-0000000{number}"))
    assert fetched == ["shard-00000000.tar", "shard-00000001.tar", "shard-00000002.tar"]
    assert held(tmp_path) == ["shard-00000000", "shard-00000002"]
    small = FetchedShards(Remote(url), records, local(tmp_path, min(sizes) / 2e9))
    with pytest.raises(DtkdError, match=r"data\.local_gigabytes"):
        small.open("shard-00000001")


def test_a_reader_goes_on_with_a_shard_that_was_removed_for_others(stored, tmp_path):
    folder, url, _ = stored
    dataset = open_cache(url, local=local(tmp_path, max(p.stat().st_size for p in folder.glob("*.tar")) / 1e9))
    everything = [dataset[i].key for i in [*range(9), *range(9)]]
    assert len(set(everything)) == 9
    assert len(held(tmp_path)) == 1


def test_a_damaged_copy_is_fetched_again_and_a_damaged_object_is_named(stored, tmp_path):
    folder, url, fs = stored
    expected = open_cache(folder)[0].gt
    dataset = open_cache(url, local=local(tmp_path))
    name = dataset.shard(0)
    os.close(dataset.fetched.open(name))
    (copy,) = (tmp_path / "local").glob(f"fetched/*/{name}-*.tar")
    copy.write_bytes(bytes(copy.stat().st_size))
    assert (dataset[0].gt == expected).all()
    size = shard_path(folder, name).stat().st_size
    fs.pipe_file(f"/bucket/cache/{name}.tar", bytes(size))
    copy.unlink()
    with pytest.raises(DamagedShardError, match=rf"memory://bucket/cache/{name}\.tar, sample .* \(CRC\)"):
        open_cache(url, local=local(tmp_path))[0]


def test_missing_and_short_objects_are_told_before_training(stored, tmp_path):
    _, url, fs = stored
    data = fs.cat_file("/bucket/cache/shard-00000001.tar")
    fs.pipe_file("/bucket/cache/shard-00000001.tar", data[:-512])
    with pytest.raises(DamagedShardError, match=f"{url}/shard-00000001.tar has {len(data) - 512} bytes"):
        open_cache(url)
    fs.rm("/bucket/cache/shard-00000001.tar")
    with pytest.raises(DamagedShardError, match=f"{url}/shard-00000001.tar is missing"):
        open_cache(url)
    fs.rm("/bucket/cache/manifest.json")
    with pytest.raises(DtkdError, match=r"has lost its plan\.json"):
        open_cache(url)
    with pytest.raises(DtkdError, match=r"memory://nowhere is no teacher cache"):
        open_cache("memory://nowhere")


def test_a_fetch_that_ends_early_leaves_nothing(stored, tmp_path, monkeypatch):
    _, url, _ = stored
    fetch = Remote.fetch

    def cut(self, name, to):
        fetch(self, name, to)
        to.write_bytes(to.read_bytes()[:100])

    monkeypatch.setattr(Remote, "fetch", cut)
    with pytest.raises(DtkdError, match="came with 100 bytes"):
        open_cache(url, local=local(tmp_path))[0]
    assert held(tmp_path) == []
    assert not list((tmp_path / "local").glob("fetched/*/.*.tmp"))


def test_put_checks_the_size(tmp_path, stored, monkeypatch):
    folder, url, fs = stored
    place, path = Remote(url), folder / "manifest.json"
    place.put("again.json", path)
    assert read_json(place, "again.json") == read_json(Folder(folder), "manifest.json")
    assert place.size("again.json") == path.stat().st_size
    monkeypatch.setattr(type(fs), "put_file", lambda self, here, there: self.pipe_file(there, b"half"))
    with pytest.raises(DtkdError, match="4 bytes after writing"):
        place.put("again.json", path)
    with FetchAhead(None) as nothing:
        nothing.expect({"shard-00000000"})
