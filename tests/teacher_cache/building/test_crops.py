"""Tiles and the pairs that are cut from them."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.corpus import Source, scan
from pipeline.degradation import Degradation
from pipeline.degrade import degrade
from pipeline.images import ImageError
from pipeline.schema import sample_seed
from pipeline.system.errors import DtkdError
from teacher_cache.building.crops import Tile, cut_tile, load_source, tile_key, tiles_of


def source(width: int, height: int) -> Source:
    return Source("a/b.png", Path("b.png"), width, height)


def photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def box(tile: Tile) -> tuple[int, int, int, int]:
    return tile.x, tile.y, tile.width, tile.height


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(48, 48), (96, 144), (100, 49), (131, 203)])
def test_training_tiles_cover_the_photo(size, scale):
    tiles = tiles_of(source(*size), 48, scale, "train")
    width, height = size[0] // scale * scale, size[1] // scale * scale
    covered = np.zeros((height, width), bool)
    for tile in tiles:
        assert (tile.width, tile.height, tile.split) == (48, 48, "train") and tile.source == "a/b.png"
        assert tile.x % scale == 0 and tile.y % scale == 0
        assert 0 <= tile.x <= width - 48 and 0 <= tile.y <= height - 48
        covered[tile.y : tile.y + 48, tile.x : tile.x + 48] = True
    assert covered.all()
    assert len(set(tiles)) == len(tiles) == -(-width // 48) * -(-height // 48)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), (0, 0, 512, 512)),
        ((2000, 1500), (744, 492, 512, 512)),
        ((600, 400), (44, 8, 512, 384)),
        ((33, 70), (0, 0, 32, 64)),
        ((30, 70), (0, 0, 28, 64)),  # smaller than 8 LR pixels: as wide as the LR grid allows
        ((4, 5), (0, 0, 4, 4)),
    ],
)
def test_validation_crop(size, expected):
    (tile,) = tiles_of(source(*size), 256, 4, "val")
    assert box(tile) == expected and tile.split == "val"


def test_tiles_that_cannot_be():
    with pytest.raises(DtkdError, match="tile must be a positive multiple of the scale 4, got 50"):
        tiles_of(source(64, 64), 50, 4, "train")
    with pytest.raises(DtkdError, match="too small: expected 64 a side, got 67x63"):
        tiles_of(source(67, 63), 64, 4, "train")
    with pytest.raises(DtkdError, match="too small: expected 4 a side"):
        tiles_of(source(3, 60), 64, 4, "val")


@pytest.mark.parametrize(("scale", "tile"), [(2, 32), (3, 48), (4, 64)])
def test_bicubic_tiles_are_parts_of_the_whole_photos_downscale(scale, tile):
    hr = photo(155, 181)
    degradation = Degradation("bicubic", scale)
    height, width = 155 // scale * scale, 181 // scale * scale
    whole = degrade(hr[:height, :width], degradation, np.random.default_rng(0))
    tiles = tiles_of(source(181, 155), tile, scale, "train") + tiles_of(source(181, 155), tile, scale, "val")
    for t in tiles:
        pair = cut_tile(hr, None, t, degradation, seed=1)
        part = whole[t.y // scale : (t.y + t.height) // scale, t.x // scale : (t.x + t.width) // scale]
        assert np.array_equal(pair.lr, part), box(t)
        assert np.array_equal(pair.gt, hr[t.y : t.y + t.height, t.x : t.x + t.width])
        wide = cut_tile(hr, None, t, degradation, seed=1, context=3)
        assert np.array_equal(wide.lr, pair.lr) and np.array_equal(pair.around, pair.lr)
        around = np.pad(whole, ((3, 3), (3, 3), (0, 0)), "symmetric")
        assert np.array_equal(
            wide.around, around[t.y // scale :, t.x // scale :][: part.shape[0] + 6, : part.shape[1] + 6]
        )


def test_a_tile_depends_on_its_margin_and_nothing_beyond():
    tile = Tile("a", 160, 160, 64, 64, "train")
    for degradation in (Degradation("bicubic"), Degradation("real")):
        hr, m = photo(400, 400), degradation.margin
        elsewhere = hr[::-1].copy()
        elsewhere[160 - m : 224 + m, 160 - m : 224 + m] = hr[160 - m : 224 + m, 160 - m : 224 + m]
        one, other = (cut_tile(image, None, tile, degradation, 3) for image in (hr, elsewhere))
        assert np.array_equal(one.lr, other.lr) and np.array_equal(one.gt, other.gt)


def test_same_key_and_seed_same_bytes_in_any_order():
    hr, degradation = photo(160, 200), Degradation("real")
    tiles = tiles_of(source(200, 160), 64, 4, "train")
    forward = {t: cut_tile(hr, None, t, degradation, 7) for t in tiles}
    for t in reversed(tiles):
        again = cut_tile(hr, None, t, degradation, 7)
        assert again.key == forward[t].key and np.array_equal(again.lr, forward[t].lr)
        other = cut_tile(hr, None, t, degradation, 8)
        assert other.key == again.key and not np.array_equal(other.lr, again.lr)  # the seed is not part of the key
        assert again.lr.shape == (16, 16, 3) and again.lr.flags.c_contiguous and again.gt.flags.c_contiguous


def test_bytes_of_a_pair_are_pinned():
    y, x = np.mgrid[:120, :140]
    hr = np.stack([x, y * 2, (x * y) % 256], axis=2).astype(np.uint8)
    pair = cut_tile(hr, None, Tile("a/b.png", 8, 16, 64, 64, "train"), Degradation("real"), seed=0)
    for context in (4, 8):
        wide = cut_tile(hr, None, Tile("a/b.png", 8, 16, 64, 64, "train"), Degradation("real"), 0, context)
        assert wide.key == pair.key and np.array_equal(wide.lr, pair.lr), "a teacher's context changes no LR image"
        assert np.array_equal(wide.around[context:-context, context:-context], pair.lr)
    assert (pair.key, hashlib.sha256(pair.lr.tobytes()).hexdigest()[:16]) == (
        "0ae3f11c1cd235cc770fa40c",
        "a10c9d72f6a17818",
    )


def test_keys_tell_samples_apart():
    tile = Tile("a.png", 0, 0, 64, 64, "train")
    others = [
        (Tile("b.png", 0, 0, 64, 64, "train"), Degradation("bicubic")),
        (Tile("a.png", 4, 0, 64, 64, "train"), Degradation("bicubic")),
        (Tile("a.png", 0, 0, 64, 32, "train"), Degradation("bicubic")),
        (tile, Degradation("real")),
        (tile, Degradation("bicubic", 2)),
    ]
    keys = [tile_key(t, d.config()) for t, d in [(tile, Degradation("bicubic")), *others]]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 24 and int(key, 16) >= 0 for key in keys)
    assert sample_seed(0, keys[0], "degrade") != sample_seed(0, keys[0], "teacher")


# Paired photos and files


def paired(folder: Path) -> Source:
    for name, image in (("HR", photo(50, 67)), ("LR", photo(12, 16))):
        (folder / name).mkdir()
        Image.fromarray(image).save(folder / name / "a.png")
    (only,) = scan(folder, paired=True).sources
    return only


def test_paired_tiles_are_cut_from_both(tmp_path):
    only = paired(tmp_path)
    hr, lr = load_source(only)
    assert lr is not None and hr.shape == (50, 67, 3) and lr.shape == (12, 16, 3)
    for tile in tiles_of(only, 24, 4, "train"):
        pair = cut_tile(hr, lr, tile, Degradation("paired"), 0, context=2)
        assert np.array_equal(pair.lr, lr[tile.y // 4 : tile.y // 4 + 6, tile.x // 4 : tile.x // 4 + 6])
        around = np.pad(lr, ((2, 2), (2, 2), (0, 0)), "symmetric")
        assert np.array_equal(pair.around, around[tile.y // 4 : tile.y // 4 + 10, tile.x // 4 : tile.x // 4 + 10])
        assert np.array_equal(pair.gt, hr[tile.y : tile.y + 24, tile.x : tile.x + 24])
    with pytest.raises(DtkdError, match="needs an LR image of 16x12, got none"):
        cut_tile(hr, None, Tile("a", 0, 0, 24, 24, "train"), Degradation("paired"), 0)
    with pytest.raises(DtkdError, match="needs an LR image of 16x12, got 16x11"):
        cut_tile(hr, lr[:11], Tile("a", 0, 0, 24, 24, "train"), Degradation("paired"), 0)


def test_photos_that_changed_are_noticed(tmp_path):
    only = paired(tmp_path)
    Image.fromarray(photo(48, 67)).save(only.path)
    with pytest.raises(ImageError, match="changed since it was listed: expected 67x50, got 67x48"):
        load_source(only)


@pytest.mark.parametrize("wrong", [(-4, 0, 64, 64), (40, 0, 64, 64), (0, 0, 64, 0), (0, 44, 64, 64)])
def test_tiles_outside_the_photo(wrong):
    with pytest.raises(DtkdError, match="lies outside the photo a, 100x100"):
        cut_tile(photo(101, 103), None, Tile("a", *wrong, "train"), Degradation("bicubic"), 0)


def test_tiles_off_the_grid():
    with pytest.raises(DtkdError, match="multiples of the scale 4"):
        cut_tile(photo(100, 100), None, Tile("a", 2, 0, 64, 64, "train"), Degradation("bicubic"), 0)
