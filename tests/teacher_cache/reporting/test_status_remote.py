"""`dtkd status URL`: the same as of a folder, in few requests; trouble with the store is no damage."""

import json
import time
from datetime import UTC, datetime

import pytest
from cache_support import URL, NoisyBicubic, build_at_url, settings
from cli_support import dtkd, refused

from pipeline.storage.places import Remote, StoreError
from teacher_cache.building.build import build_cache
from teacher_cache.building.verify import verify_cache
from teacher_cache.reporting import status
from teacher_cache.reporting.status import Watcher, read_status


@pytest.fixture
def listings(store, monkeypatch):
    """The folders that were listed, one after the other."""
    seen, ls = [], type(store).ls

    def counted(self, path, **options):
        seen.append(path.removeprefix("memory://"))
        return ls(self, path, **options)

    monkeypatch.setattr(type(store), "ls", counted)
    return seen


def test_a_finished_cache_is_told_as_in_a_folder(corpus, finished, store, tmp_path):
    build_at_url(corpus, tmp_path, "0-")
    found, folder = read_status(URL, presentations=1000), read_status(finished, presentations=1000)
    assert found.cache == URL and found.complete and found.failure is None and found.ledger.so_far > 0
    for name in (
        "corpus",
        "teacher",
        "shards",
        "shards_done",
        "planned",
        "done",
        "failed",
        "bytes",
        "kinds",
        "manifest",
    ):
        assert getattr(found, name) == getattr(folder, name), name
    assert found.lines()[1:3] == folder.lines()[1:3] == ["17 of 17 tiles (100%), 5 of 5 shards", "complete"]


def test_looks_at_a_cache_in_work_cost_two_listings_and_new_records(corpus, store, tmp_path, listings, monkeypatch):
    build_at_url(corpus, tmp_path, "0-1")
    watcher = Watcher(URL)
    listings.clear()
    first = watcher.look()
    assert sorted(listings) == ["bucket/cache", "bucket/cache/done"]
    assert (first.done, first.shards_done, first.in_work, first.holders, first.complete) == (10, 2, 0, (), False)
    seconds = [json.loads(store.cat_file(f"/bucket/cache/done/shard-0000000{n}.json"))["seconds"] for n in (0, 1)]
    assert 10 / sum(seconds) <= first.rate * 1.001 and first.rate < 10 / max(seconds) * 1.001
    assert first.seconds_left == pytest.approx(7 / first.rate)
    assert "cannot be seen at a URL" in first.lines()[2]
    build_at_url(corpus, tmp_path, "2")
    read, cat = [], type(store).cat_file

    def counted(self, path, *args, **options):
        read.append(path.rpartition("/")[2])
        return cat(self, path, *args, **options)

    monkeypatch.setattr(type(store), "cat_file", counted)
    assert (watcher.look().done, read) == (15, ["shard-00000002.json"])


def test_failures_are_told_by_kind(corpus, store, tmp_path):
    teacher = NoisyBicubic(refuse=lambda image: image.mean() < 0.45)
    result = build_at_url(corpus, tmp_path, "0-", teacher, max_failure_fraction=1.0)
    (kind,) = read_status(URL).kinds
    assert (kind.stage, kind.type, kind.count) == ("teacher", "ValueError", result.errors)


@pytest.mark.parametrize("text", [b"{}", b"", b"[]"])
def test_a_damaged_record_is_told_with_the_remedy(corpus, store, tmp_path, text):
    build_at_url(corpus, tmp_path, "0-")
    store.pipe_file("/bucket/cache/done/shard-00000001.json", text)
    found = read_status(URL)
    assert [item.shard for item in found.damaged] == ["shard-00000001"] and found.done == 12
    assert f"`dtkd verify {URL} --repair`" in found.failure
    store.rm("/bucket/cache/done/shard-00000001.json")
    store.rm("/bucket/cache/shard-00000002.tar")
    (item,) = read_status(URL).damaged
    assert item.shard == "shard-00000002" and "is missing" in item.reason


def test_a_shard_that_is_replaced_while_we_look_is_not_damaged(corpus, finished, store, tmp_path, monkeypatch):
    """Its old record was listed, and another tar is there by now."""
    build_at_url(corpus, tmp_path, "0-")
    watcher = Watcher(URL)
    assert watcher.look().complete
    ls, record = type(store).ls, "/bucket/cache/done/shard-00000001.json"

    def replace(self, path, **options):
        found = ls(self, path, **options)
        if path.endswith("done") and store.exists(record):
            store.rm_file(record)
            store.pipe_file("/bucket/cache/shard-00000001.tar", b"longer or shorter")
        return found

    monkeypatch.setattr(type(store), "ls", replace)
    found = watcher.look()
    assert (found.damaged, found.shards_done) == ((), 4)


def test_watching_ends_when_the_cache_is_complete(corpus, store, tmp_path, monkeypatch):
    monkeypatch.setattr(status, "REFRESH_REMOTE", 0.01)
    build_at_url(corpus, tmp_path, "0")
    events = []

    def show(event):
        events.append((event.done, event.total, event.note.partition(",")[0]))
        if len(events) == 2:
            build_at_url(corpus, tmp_path, "1-")

    assert read_status(URL, watch=True, on_progress=show).complete
    assert [event[:2] for event in events] == [(5, 17), (5, 17), (17, 17)]
    assert all(note.startswith("teacher ") for *_, note in events)


def test_a_store_that_does_not_answer_is_no_damage(corpus, store, tmp_path, monkeypatch):
    """Otherwise `--repair` would remove what is sound."""
    build_at_url(corpus, tmp_path, "0-")
    cat = type(store).cat_file

    def lost(self, path, *args, **options):
        if path.endswith("shard-00000001.json"):
            raise ConnectionResetError("connection lost")
        return cat(self, path, *args, **options)

    watcher = Watcher(URL)
    with monkeypatch.context() as broken:
        broken.setattr(type(store), "cat_file", lost)
        for ask in (watcher.look, lambda: verify_cache(URL, repair=True)):
            with pytest.raises(StoreError, match=r"reading done/shard-00000001\.json failed .*connection lost"):
                ask()
    assert verify_cache(URL).ok


def test_the_command_takes_a_url(corpus, store, tmp_path):
    build_at_url(corpus, tmp_path, "0")
    out, err = dtkd("status", URL, "--presentations", 1700)
    assert err == "" and out.startswith(
        f"{URL}: corpus photos, teacher noisy-bicubic\n5 of 17 tiles (29%), 1 of 5 shards\n"
    )
    found = json.loads(dtkd("status", URL, "--json")[0])
    assert (found["cache"], found["done"], found["holders"], found["complete"]) == (URL, 5, [], False)
    assert "memory://bucket/other is no teacher cache" in refused("status", "memory://bucket/other")
    assert "name a folder by its path" in refused("status", f"file://{tmp_path}", code=2)


def test_a_store_that_tells_no_times_has_no_rate(corpus, store, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.storage.places._TIMES", ())
    build_at_url(corpus, tmp_path, "0-1")
    found = read_status(URL)
    assert (found.done, found.rate, found.seconds_left) == (10, None, None)
    assert found.lines()[2].startswith("who is at work")


def test_times_of_records_are_the_stores(corpus, store, tmp_path):
    before = time.time()
    build_cache(str(corpus), tmp_path / "folder", NoisyBicubic(), settings(shards="0"))
    build_at_url(corpus, tmp_path, "0")
    for cache in (tmp_path / "folder", URL):
        watcher = Watcher(cache)
        (item,) = watcher._records.look().values()
        assert before - 1 < item.at < time.time() + 1


@pytest.mark.parametrize(
    ("told", "modified"),
    [
        ({"LastModified": datetime(2026, 11, 29, 10, tzinfo=UTC)}, 1795946400.0),
        ({"updated": "2026-11-29T10:00:00.000Z"}, 1795946400.0),
        ({"created": 1795946400.5}, 1795946400.5),
        ({"updated": "on Sunday"}, None),
        ({}, None),
    ],
)
def test_times_are_read_as_each_store_tells_them(store, monkeypatch, told, modified):
    def ls(self, path, **options):
        return [{"name": f"{path}/a.json", "size": 7, "type": "file", "ETag": '"0"', **told}]

    monkeypatch.setattr(type(store), "ls", ls)
    assert Remote(URL).listing("done") == {"a.json": (7, modified, '"0"')}
