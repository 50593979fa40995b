"""Folders as users have them, the sample photos, and the held-out split."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.corpus import SAMPLE, Source, scan, split_photos
from pipeline.images import load_rgb
from pipeline.system.errors import DtkdError


def put(path: Path, width: int = 32, height: int = 32, level: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), level, np.uint8)).save(path)
    return path


def ids(corpus) -> list[str]:
    return [source.id for source in corpus.sources]


def reasons(corpus) -> dict[str, str]:
    return {skip.id: skip.reason for skip in corpus.skipped}


def test_any_depth_sorted_by_id(tmp_path):
    names = ["b.png", "a/z.JPG", "a/b/c.webp", "a.tiff", "a-b/x.bmp", "ü/é.png", "with space.jpeg", "a/.hidden.png"]
    for name in [*names, ".git/x.png", "__MACOSX/._y.jpg"]:
        put(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    corpus = scan(tmp_path)
    assert ids(corpus) == sorted(n for n in names if ".hidden" not in n)
    assert corpus.skipped == () and corpus.name == tmp_path.name
    assert scan(str(tmp_path)) == corpus


def test_order_does_not_depend_on_the_file_system(tmp_path, monkeypatch):
    for name in ("c.png", "a.png", "b/d.png", "b/a.png"):
        put(tmp_path / name)
    expected = scan(tmp_path)
    listing = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: reversed(list(listing(path))))
    assert scan(tmp_path) == expected


def test_unusable_files_are_listed(tmp_path):
    put(tmp_path / "good.png", 64, 48)
    put(tmp_path / "narrow.png", 200, 31)
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    corpus = scan(tmp_path, min_side=32)
    assert corpus.sources == (Source("good.png", tmp_path / "good.png", 64, 48),)
    assert reasons(corpus) == {
        "dangling.png": "cannot be read (No such file or directory)",
        "empty.jpg": "not a PNG, JPEG, WebP, TIFF or BMP image",
        "narrow.png": "200x31 pixels, smaller than 32 on a side",
        "text.png": "not a PNG, JPEG, WebP, TIFF or BMP image",
    }


def test_links_are_followed_once(tmp_path):
    put(tmp_path / "corpus" / "a" / "x.png")
    put(tmp_path / "corpus" / "b" / "y.png", level=9)
    root = tmp_path / "corpus"
    (root / "a" / "loop").symlink_to(root)
    (root / "self").symlink_to("self")
    (root / "c").symlink_to(root / "b")
    (root / "z.png").symlink_to(root / "a" / "x.png")
    os.link(root / "a" / "x.png", root / "hard.png")
    corpus = scan(root)
    assert ids(corpus) == ["a/x.png", "b/y.png"]
    assert reasons(corpus) == {
        "c/y.png": "the same file as b/y.png",
        "hard.png": "the same file as a/x.png",
        "z.png": "the same file as a/x.png",
    }


def test_links_do_not_leave_the_corpus(tmp_path):
    """Who fills a corpus must not reach what else its user can read; the corpus itself may be a link."""
    for name in ("private/key.png", "corpus-of-another/x.png", "corpus/HR/a.png", "corpus/LR/a.png"):
        put(tmp_path / name, 32 if "LR" not in name else 8, 32 if "LR" not in name else 8)
    root = tmp_path / "corpus"
    (root / "HR" / "file.png").symlink_to(tmp_path / "private" / "key.png")
    (root / "HR" / "relative.png").symlink_to("../../private/key.png")
    (root / "HR" / "folder").symlink_to(tmp_path / "private")
    (root / "HR" / "like-named").symlink_to(tmp_path / "corpus-of-another")
    (root / "HR" / "stepping-stone").symlink_to("folder")
    (root / "HR" / "inside.png").symlink_to("a.png")
    (tmp_path / "link").symlink_to(root / "HR")
    out = "a link that leads out of the corpus: put the photos themselves there"
    for corpus in (scan(root / "HR"), scan(tmp_path / "link")):
        assert ids(corpus) == ["a.png"]
        outside = dict.fromkeys(("file.png", "relative.png", "folder", "like-named", "stepping-stone"), out)
        assert reasons(corpus) == outside | {"inside.png": "the same file as a.png"}
    (tmp_path / "pairs").mkdir()
    for name in ("HR", "LR"):
        (tmp_path / "pairs" / name).symlink_to(root / name)
    assert ids(scan(tmp_path / "pairs", paired=True)) == ["a.png"]


def test_folders_below_a_hundred_others_are_named(tmp_path):
    put(tmp_path / "a.png")
    put(tmp_path.joinpath(*["d"] * 99) / "deep.png", level=1)
    put(tmp_path.joinpath(*["d"] * 100) / "deeper.png", level=2)
    corpus = scan(tmp_path)
    assert ids(corpus) == ["a.png", "/".join(["d"] * 99 + ["deep.png"])]
    assert reasons(corpus) == {"/".join(["d"] * 100): "below 100 folders"}


def test_names_that_are_no_text(tmp_path):
    put(tmp_path / "good.png")
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes((tmp_path / "good.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    corpus = scan(tmp_path)
    assert ids(corpus) == ["good.png"]
    assert reasons(corpus) == {"caf\\udce9.png": "its name is not valid UTF-8: rename it"}


def test_a_folder_that_may_not_be_read(tmp_path):
    put(tmp_path / "good.png")
    put(tmp_path / "shut" / "x.png")
    (tmp_path / "shut").chmod(0)
    try:
        if os.access(tmp_path / "shut", os.R_OK):
            pytest.skip("this user may read everything")
        assert reasons(scan(tmp_path)) == {"shut": "cannot be read (Permission denied)"}
    finally:
        (tmp_path / "shut").chmod(0o755)


def test_a_pipe_is_not_opened(tmp_path):
    """It would wait for somebody to write into it, for ever."""
    put(tmp_path / "good.png")
    os.mkfifo(tmp_path / "x.png")
    corpus = scan(tmp_path)
    assert ids(corpus) == ["good.png"] and reasons(corpus) == {"x.png": "no regular file"}


def test_nothing_usable(tmp_path):
    with pytest.raises(DtkdError, match="does not exist: give a folder of images"):
        scan(tmp_path / "none")
    with pytest.raises(DtkdError, match="is not a folder"):
        scan(put(tmp_path / "a" / "x.png"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DtkdError, match=r"no image in .*: expected bmp, jpeg, jpg, png, tif, tiff, webp files"):
        scan(tmp_path / "empty")
    put(tmp_path / "small" / "b.png", 8, 8)
    put(tmp_path / "small" / "a.png", 9, 9, level=1)
    with pytest.raises(DtkdError, match=r"no usable image in .*: a\.png 9x9 pixels, smaller than 64 .* and 1 more"):
        scan(tmp_path / "small", min_side=64)


# Paired


def test_pairs(tmp_path):
    for hr, lr in {
        "same.png": "same.png",
        "deep/er.webp": "deep/er.png",
        "Canon_001_HR.png": "Canon_001_LR4.png",
        "panasonic_7_HR.png": "panasonic_7_LR.png",
        "0801.png": "0801x4.png",
    }.items():
        put(tmp_path / "HR" / hr, 64, 48)
        put(tmp_path / "LR" / lr, 16, 12)
    put(tmp_path / "HR" / "modcrop.png", 67, 51)
    put(tmp_path / "LR" / "modcrop.png", 16, 12)
    corpus = scan(tmp_path, paired=True, scale=4)
    assert corpus.skipped == ()
    lr_names = {s.id: s.lr_path.relative_to(tmp_path / "LR").as_posix() for s in corpus.sources if s.lr_path}
    assert lr_names == {
        "0801.png": "0801x4.png",
        "Canon_001_HR.png": "Canon_001_LR4.png",
        "deep/er.webp": "deep/er.png",
        "modcrop.png": "modcrop.png",
        "panasonic_7_HR.png": "panasonic_7_LR.png",
        "same.png": "same.png",
    }


def test_pairs_that_do_not_fit_are_listed(tmp_path):
    for name in ("good", "big", "alone", "twice", "broken"):
        put(tmp_path / "HR" / f"{name}.png", 64, 48)
    put(tmp_path / "LR" / "good.png", 16, 12)
    put(tmp_path / "LR" / "big.png", 32, 24)
    put(tmp_path / "LR" / "twice.jpg", 16, 12)
    put(tmp_path / "LR" / "twice.bmp", 16, 12)
    put(tmp_path / "LR" / "lonely.png", 16, 12, level=1)
    os.mkfifo(tmp_path / "LR" / "pipe.png")
    (tmp_path / "LR" / "broken.png").write_bytes(b"")
    corpus = scan(tmp_path, paired=True, scale=4)
    assert ids(corpus) == ["good.png"]
    assert reasons(corpus) == {
        "alone.png": "has no LR image",
        "big.png": "64x48 pixels, expected 4 times its LR image, 32x24",
        "broken.png": "LR image not a PNG, JPEG, WebP, TIFF or BMP image",
        "twice.png": "has several LR images, twice.bmp and twice.jpg",
        "LR/lonely.png": "has no HR image",
        "LR/pipe.png": "no regular file",
    }
    with pytest.raises(DtkdError, match="no usable image"):
        scan(tmp_path, paired=True, scale=3)


def test_pairs_need_both_folders(tmp_path):
    put(tmp_path / "HR" / "a.png")
    with pytest.raises(DtkdError, match=r"HR/ and LR/: .* has no LR"):
        scan(tmp_path, paired=True)
    with pytest.raises(DtkdError, match="no LR images of their own"):
        scan("sample", paired=True)


# Sample


def test_sample_photos():
    corpus = scan("sample", min_side=256)
    assert corpus.name == "sample" and corpus.skipped == ()
    assert ids(corpus) == sorted(SAMPLE)
    thumbnails = {}
    for source in corpus.sources:
        image = load_rgb(source.path)
        assert image.shape == (source.height, source.width, 3)
        small = np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BOX), np.float64)
        thumbnails[source.id] = (small - small.mean()).ravel() / np.linalg.norm(small - small.mean())
    names = sorted(thumbnails)
    alike = {(a, b): thumbnails[a] @ thumbnails[b] for i, a in enumerate(names) for b in names[i + 1 :]}
    assert max(alike.values()) < 0.9, max(alike, key=lambda pair: alike[pair])


def test_sample_needs_scikit_image(monkeypatch):
    monkeypatch.setattr("pipeline.corpus.find_spec", lambda name: None)
    with pytest.raises(DtkdError, match="pip install scikit-image"):
        scan("sample")


# Split


def sources(count: int) -> list[Source]:
    return [Source(f"{i:03}.png", Path(f"/x/{i:03}.png"), 64, 64) for i in range(count)]


def test_split_is_stable():
    both = split_photos(sources(50), 5)
    assert len(both.val) == 5 and len(both.train) == 45
    assert sorted(s.id for s in (*both.train, *both.val)) == [s.id for s in sources(50)]
    shuffled = split_photos(sources(50)[::-1], 5)
    assert {s.id for s in shuffled.val} == {s.id for s in both.val}
    assert list(shuffled.val) == list(both.val)[::-1]
    assert [s.id for s in split_photos(sources(50), 3).val] == [
        s.id for s in both.val if s in split_photos(sources(50), 3).val
    ]
    assert [s.id for s in both.val] == ["015.png", "018.png", "029.png", "041.png", "045.png"]  # on every machine


def test_a_photo_more_changes_the_split_little():
    before, after = split_photos(sources(50), 5), split_photos(sources(51), 5)
    assert len({s.id for s in before.val} & {s.id for s in after.val}) >= 4


@pytest.mark.parametrize("hold_out", [-1, 4, 5])
def test_split_must_leave_something(hold_out):
    assert split_photos(sources(4), 0).val == ()
    with pytest.raises(DtkdError, match=r"expected 0\.\.3, got"):
        split_photos(sources(4), hold_out)
