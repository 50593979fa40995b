"""What is known of a corpus's files: later processes read no photo, and notice whatever was changed meanwhile."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import skimage
from cache_support import NoisyBicubic, command_options, settings, tars
from cli_support import start
from PIL import Image

import cli
from pipeline.system.errors import DtkdError
from teacher_cache import known_files
from teacher_cache.building import plan
from teacher_cache.building.build import build_cache, prepare
from teacher_cache.building.survey import survey
from teacher_cache.building.verify import verify_cache
from teacher_cache.known_files import KnownFiles

ROOT = Path(cli.__file__).parent


@pytest.fixture
def photos(corpus, tmp_path):
    return shutil.copytree(corpus, tmp_path / "photos")


@pytest.fixture
def begun(photos, tmp_path, monkeypatch):
    """A cache whose plan is made, and which knows its photos, though they are a moment old."""
    monkeypatch.setattr(known_files, "SETTLED", 0.0)
    prepare(str(photos), tmp_path / "cache", NoisyBicubic(), settings())
    assert len(records(tmp_path / "cache")) == 1
    return tmp_path / "cache"


@pytest.fixture
def unread(monkeypatch):
    """Reading a photo, or cutting one into tiles, fails the test."""

    def refuse(*_: object) -> None:
        raise AssertionError("this was known")

    def forbid():
        for module, name in ((known_files, "probe"), (known_files, "sample_file"), (plan, "_cut")):
            monkeypatch.setattr(module, name, refuse)

    return forbid


def records(cache):
    return sorted((cache / "scans").glob("*"))


def known(cache):
    """The entries of the only record, by name."""
    (record,) = records(cache)
    return json.loads(record.read_bytes().partition(b"\n")[2])


# Processes -----------------------------------------------------------------------------------------------------------


def test_processes_that_start_later_open_no_photo(tmp_path):
    """Photos that lie still since scikit-image was installed; two processes that begin at once write one record."""
    corpus, cache = Path(skimage.__file__).parent / "data", tmp_path / "cache"
    options = (*command_options(f"python:{ROOT}/examples/python_teacher.py:sharpened", 40), "--limit", "4")
    first = [start("teacher-cache", corpus, cache, *options, "--shards", share) for share in ("0", "1")]
    assert [process.wait() for process in first] == [0, 0]
    code = f"""
        import json, sys
        opened = []
        sys.addaudithook(lambda event, about: opened.append(str(about[0])) if event == "open" else None)
        from pipeline.degradation import Degradation
        from teacher_cache.building.settings import BuildSettings
        from teacher_cache.building.survey import survey
        how = BuildSettings(tile=64, micro_batch=2, hold_out=1, samples_per_shard=40, limit=4)
        found = survey({str(corpus)!r}, {str(cache)!r}, how)
        print(json.dumps([found.photos, found.done, [path for path in opened if path.startswith({str(corpus)!r})]]))
    """
    words = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    skipped = [item.id for item in survey(corpus, tmp_path / "other", settings(limit=4)).skipped]
    photos, tiles, opened = json.loads(done.stdout)
    assert (photos, tiles) == (4, 80)
    assert {Path(path).name for path in opened} <= {Path(name).name for name in skipped}, "what is no photo, at most"
    last = start("teacher-cache", corpus, cache, *options)
    assert last.wait() == 0
    assert not (cache / "scans").exists(), "a finished cache holds no trace of it"
    alone = start("teacher-cache", corpus, tmp_path / "alone", *options)
    assert alone.wait() == 0
    assert tars(cache) == tars(tmp_path / "alone")
    assert (cache / "manifest.json").exists() and verify_cache(cache).ok


# What is known -------------------------------------------------------------------------------------------------------


def test_a_later_survey_reads_no_photo_and_cuts_no_tile(photos, begun, unread):
    before = survey(str(photos), begun, settings())
    unread()
    after = survey(str(photos), begun, settings())
    assert (after.layout, after.planned) == (before.layout, 17)
    assert survey(f"{photos}/../photos/", begun, settings()).layout.shards == before.layout.shards


def test_pairs_and_a_part_of_the_photos_are_known_too(photos, tmp_path, unread, monkeypatch):
    monkeypatch.setattr(known_files, "SETTLED", 0.0)
    for side, folder in ((128, "HR"), (32, "LR")):
        (tmp_path / "pairs" / folder).mkdir(parents=True)
        for path in photos.iterdir():
            Image.open(path).resize((side, side)).save(tmp_path / "pairs" / folder / path.name)
    how = settings(kind="paired", limit=3)
    work = prepare(str(tmp_path / "pairs"), tmp_path / "cache", NoisyBicubic(), how)
    assert len(known(tmp_path / "cache")) == 10
    unread()
    assert survey(str(tmp_path / "pairs"), tmp_path / "cache", how).layout.identities == work.plan.sources
    assert all(len(files.split(" ")) == 2 for *_, files in work.plan.sources)


def test_the_sample_photos_are_known_too(tmp_path, unread):
    work = prepare("sample", tmp_path / "cache", NoisyBicubic(), settings())
    unread()
    assert survey("sample", tmp_path / "cache", settings()).layout.identities == work.plan.sources


def test_each_copy_of_a_corpus_has_a_record_of_its_own(photos, begun, tmp_path, unread):
    other = shutil.copytree(photos, tmp_path / "elsewhere" / "photos")
    prepare(str(other), begun, NoisyBicubic(), settings())
    assert len(records(begun)) == 2
    unread()
    for folder in (photos, other):
        assert survey(str(folder), begun, settings()).planned == 17


# What was changed ----------------------------------------------------------------------------------------------------


def same_size_and_time(path):
    """Other pixels in the same number of bytes, and the time of the last change put back."""
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(-30, os.SEEK_END)
        byte = file.read(1)
        file.seek(-30, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size and path.stat().st_mtime_ns == before.st_mtime_ns


def replaced(path):
    shutil.copy2(path.with_name("coffee.png"), path.with_name("aside"))
    os.replace(path.with_name("aside"), path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (same_size_and_time, "photos changed: rocket.png"),
        (replaced, "photos changed: rocket.png"),
        (lambda path: Image.new("RGB", (64, 128)).save(path), "photos changed: rocket.png"),
        (lambda path: path.write_bytes(b"no picture"), "photos gone: rocket.png"),
        (Path.unlink, "photos gone: rocket.png"),
        (lambda path: path.rename(path.with_name("saturn.png")), "photos gone: rocket.png, new: saturn.png"),
        (lambda path: shutil.copyfile(path, path.with_name("twin.png")), "new: twin.png"),
    ],
)
def test_what_was_changed_is_refused_as_without_the_record(photos, begun, change, message):
    change(photos / "rocket.png")
    for _ in range(2):
        with pytest.raises(DtkdError, match=f"begun differently .*{message}"):
            survey(str(photos), begun, settings())
        shutil.rmtree(begun / "scans", ignore_errors=True)


def test_a_photo_behind_a_link_is_known_by_what_it_leads_to(photos, begun):
    (photos / "deep").mkdir()
    (photos / "rocket.png").rename(photos / "deep" / "hidden")
    (photos / "rocket.png").symlink_to("deep/hidden")
    prepare(str(photos), begun, NoisyBicubic(), settings())
    same_size_and_time(photos / "deep" / "hidden")
    with pytest.raises(DtkdError, match=r"photos changed: rocket\.png"):
        survey(str(photos), begun, settings())


def test_a_photo_that_was_touched_is_read_again_and_fits(photos, begun, unread):
    (photos / "rocket.png").touch()
    prepare(str(photos), begun, NoisyBicubic(), settings())
    unread()
    assert survey(str(photos), begun, settings()).planned == 17


def test_photos_that_changed_a_moment_ago_are_not_kept(photos, tmp_path, monkeypatch):
    """They may change again without another time, or carry a time to come."""
    prepare(str(photos), tmp_path / "one", NoisyBicubic(), settings())
    assert not (tmp_path / "one" / "scans").exists()
    later = (photos / "rocket.png").stat().st_mtime + 3600
    os.utime(photos / "rocket.png", (later, later))
    monkeypatch.setattr(known_files, "SETTLED", 0.0)
    prepare(str(photos), tmp_path / "two", NoisyBicubic(), settings())
    assert sorted(known(tmp_path / "two")) == ["astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png"]


# Records that are none -----------------------------------------------------------------------------------------------


def sealed(entries):
    body = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return known_files._seal(body) + b"\n" + body


FOREIGN = [
    lambda data: b"",
    lambda data: data[:-200],
    lambda data: data[:40],
    lambda data: data.replace(b"128,128", b"128,129", 1),
    lambda data: b"{}\n" * 100,
    lambda data: bytes(range(256)) * 10,
    lambda data: sealed([]),
    lambda data: sealed({"rocket.png": 3, "coffee.png": [1, 2]}),
    lambda data: sealed({"rocket.png": ["a", None, {}, 1, 1, 1]}),
    lambda data: sealed({"rocket.png": [1, 2, 3, 64, 64, "somebody else's"]}),
    lambda data: sealed(b"[" * 100_000),
    lambda data: sealed(b"\xff\xfe"),
]


@pytest.mark.parametrize("damage", FOREIGN)
def test_a_record_that_is_damaged_or_foreign_changes_nothing(photos, begun, finished, damage):
    (record,) = records(begun)
    record.write_bytes(damage(record.read_bytes()))
    assert build_cache(str(photos), begun, NoisyBicubic(), settings()).complete
    assert tars(begun) == tars(finished)
    assert (begun / "plan.json").read_bytes() == (finished / "plan.json").read_bytes()


def test_a_record_that_is_too_large_is_neither_read_nor_written(photos, begun, monkeypatch):
    monkeypatch.setattr(known_files, "MAX_RECORD", 30)
    files = KnownFiles(begun, photos)
    assert not files._old
    files.size(photos / "rocket.png")
    shutil.rmtree(begun / "scans")
    files.save()
    assert not (begun / "scans").exists()


def test_a_disk_that_refuses_the_record_does_not_stop_the_work(photos, tmp_path, finished, monkeypatch):
    monkeypatch.setattr(known_files, "SETTLED", 0.0)
    (tmp_path / "cache" / "done").mkdir(parents=True)
    (tmp_path / "cache" / "scans").write_text("in the way")
    assert build_cache(str(photos), tmp_path / "cache", NoisyBicubic(), settings()).complete
    assert tars(tmp_path / "cache") == tars(finished)


def test_a_record_is_no_part_of_the_cache(photos, begun, finished, monkeypatch):
    """Neither for `verify` nor where plan.json was lost; the end of the cache removes it."""
    kept = shutil.copytree(begun / "scans", begun.parent / "kept")
    (begun / "plan.json").unlink()
    assert build_cache(str(photos), begun, NoisyBicubic(), settings()).complete
    assert not (begun / "scans").exists()
    shutil.copytree(kept, begun / "scans")
    assert verify_cache(begun).ok
    assert tars(begun) == tars(finished)
