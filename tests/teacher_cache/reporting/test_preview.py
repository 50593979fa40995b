"""A preview: the tiles of the cache that will be, their scores and cost on a sheet; and what is refused before it."""

import dataclasses

import numpy as np
import pytest
from cache_support import NoisyBicubic, samples, settings
from cli_support import dtkd, refused
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from pipeline.fidelity import luma
from pipeline.filters import bicubic
from pipeline.images import load_rgb, save
from pipeline.system.errors import DtkdError
from teacher_cache.building.build import plan_for
from teacher_cache.building.survey import survey
from teacher_cache.reporting.preview import preview_tiles, spread
from teacher_cache.reporting.sheet import Column, check_sheet, draw_sheet, save_sheet, sheet_path


def psnr(picture, gt):
    """By scikit-image, 4 pixels at the border left out."""
    a, b = (luma(image)[4:-4, 4:-4] for image in (picture, gt))
    return peak_signal_noise_ratio(b, a, data_range=255)


def test_the_tiles_are_those_of_the_cache_and_nothing_of_it_is_written(corpus, finished, tmp_path):
    """In other company: the teacher's noise has its seed from the tile, so the pictures are the same."""
    found = preview_tiles(survey(corpus, tmp_path / "cache", settings()), NoisyBicubic(), 8)
    assert [path.name for path in tmp_path.iterdir()] == ["cache-preview.png"]
    made = {(meta["source"], meta["x"], meta["y"]): (meta, pictures) for meta, pictures in samples(finished)}
    assert len(found.tiles) == 8
    for tile in found.tiles:
        meta, pictures = made[tile.photo, tile.x, tile.y]
        assert tile.teacher == pytest.approx(psnr(pictures["teacher"], pictures["gt"]))
        assert tile.bicubic == pytest.approx(psnr(bicubic(pictures["lr"], 4), pictures["gt"]))
        assert tile.drift == meta["drift"]
    assert found.psnr_y == pytest.approx(np.mean([tile.teacher for tile in found.tiles]))
    assert found.drift.mean == pytest.approx(np.mean([tile.drift for tile in found.tiles]), abs=1e-3)


def test_the_estimate_is_near_what_the_cache_is(corpus, finished, tmp_path):
    found = preview_tiles(survey(corpus, tmp_path / "cache", settings()), NoisyBicubic(), 16, "cuda")
    size = sum(path.stat().st_size for path in finished.glob("*.tar"))
    assert (found.estimate.tiles, found.estimate.photos, found.estimate.device) == (17, 5, "GPU")
    assert found.estimate.bytes == pytest.approx(size, rel=0.25)
    assert found.estimate.seconds == pytest.approx((16 + 4) * found.seconds, abs=0.06)  # held out: one of 128 x 128
    assert 0 < found.teacher_seconds < found.seconds


def test_a_survey_estimates_the_bytes_without_a_teacher(corpus, finished):
    found, size = (
        survey(corpus, finished.parent / "none", settings()),
        sum(p.stat().st_size for p in finished.glob("*.tar")),
    )
    assert found.bytes == pytest.approx(size, rel=0.5)
    assert survey(corpus, finished, settings()).bytes == size
    summary = found.begin("somebody").summary.splitlines()
    assert summary[-2] == "5 photos (1 held out): 17 tiles"
    assert summary[-1].startswith("LR images: bicubic, x4; teacher: somebody, 1 output a tile; seed 0; about ")


def test_tiles_are_spread_over_the_photos_and_always_the_same(corpus, tmp_path):
    plan = plan_for(survey(corpus, tmp_path / "cache", settings()), NoisyBicubic())
    chosen = spread(plan, 8)
    photos = [sample.tile.source for sample in chosen]
    assert len(set(photos[:4])) == 4 and sorted(photos[:4]) == sorted(photos[4:])
    assert len({sample.key for sample in chosen}) == 8
    assert spread(plan, 3) == chosen[:3] and len(spread(plan, 64)) == 16
    fewer = dataclasses.replace(plan, shards=plan.shards[::-1])
    assert {sample.key for sample in spread(fewer, 64)} == {sample.key for sample in spread(plan, 64)}


def test_the_same_preview_twice_is_the_same_sheet(corpus, tmp_path):
    found = survey(corpus, tmp_path / "cache", settings())
    path = preview_tiles(found, NoisyBicubic(), 5).sheet
    first = path.read_bytes()
    assert preview_tiles(found, NoisyBicubic(), 5).sheet.read_bytes() == first


def test_failures_are_told_and_the_other_tiles_shown(corpus, tmp_path):
    found = survey(corpus, tmp_path / "cache", settings(micro_batch=1))
    seen = []
    teacher = NoisyBicubic(refuse=lambda image: seen.append(1) or len(seen) == 2)
    result = preview_tiles(found, teacher, 4)
    assert len(result.tiles) == 3 and result.failures[0].stage == "teacher"
    assert result.lines()[0] == f"failed in teacher: {result.failures[0].source}: {result.failures[0].message}"


def test_a_teacher_that_fails_everywhere_is_one_line_and_no_sheet(corpus, tmp_path):
    found = survey(corpus, tmp_path / "cache", settings())
    with pytest.raises(DtkdError, match=r"none of 4 tiles .*: teacher: this teacher does not like the picture"):
        preview_tiles(found, NoisyBicubic(refuse=lambda image: True), 4)
    assert list(tmp_path.iterdir()) == []


# The sheet -----------------------------------------------------------------------------------------------------------


def column(rng, side):
    return Column(
        "photo.png", "20 dB", "21 dB", *(rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in "abc")
    )


@pytest.mark.parametrize(("side", "shown", "count"), [(64, 192, 3), (256, 256, 6)])
def test_a_sheet_holds_every_picture_whole(side, shown, count):
    columns = [column(np.random.default_rng(number), side) for number in range(count)]
    sheet = np.asarray(draw_sheet(columns, "toy"))
    rows, factor = [row.tobytes() for row in sheet], shown // side
    for picture in (picture for tile in columns for picture in tile[3:]):
        large = picture.repeat(factor, 0).repeat(factor, 1)
        row, left = next(
            (y, row.find(large[0].tobytes()) // 3) for y, row in enumerate(rows) if large[0].tobytes() in row
        )
        assert np.array_equal(sheet[row : row + shown, left : left + shown], large)


def test_a_sheet_replaces_a_sheet_and_nothing_else(tmp_path):
    path = sheet_path(tmp_path / "cache")
    assert path == tmp_path / "cache-preview.png"
    check_sheet(path)
    save_sheet(path, [column(np.random.default_rng(0), 64)], "toy")
    check_sheet(path)
    Image.fromarray(load_rgb(path)).save(path)  # a picture as good as that, which somebody saved
    with pytest.raises(DtkdError, match=r"cache-preview\.png exists and is not a preview of ours"):
        check_sheet(path)


# The command ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preview", [(), ("--preview", 8)])
@pytest.mark.parametrize(
    ("options", "said", "code"),
    [
        (("--tile", 100), "tile must be a multiple of 8, got 100", 2),
        (("--tile", 136), "no usable image in", 1),
        (("--limit", 0), "limit must be at least 1, got 0", 2),
        (("--tile", 64, "--hold-out", 5), "hold_out must leave a photo to train on", 1),
        (("--teacher", "nobody"), "no teacher 'nobody'", 2),
    ],
)
def test_what_cannot_be_is_refused_before_a_teacher_is_loaded(
    corpus, tmp_path, monkeypatch, preview, options, said, code
):
    monkeypatch.setattr("teacher_cache.teachers.load", lambda *args, **more: pytest.fail("a teacher was loaded"))
    line = refused("teacher-cache", corpus, tmp_path / "cache", *options, *preview, code=code)
    assert said in line
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_corpus_or_place_is_refused_before_a_teacher_is_loaded(corpus, finished, tmp_path, monkeypatch):
    monkeypatch.setattr("teacher_cache.teachers.load", lambda *args, **more: pytest.fail("a teacher was loaded"))
    assert "does not exist" in refused("teacher-cache", tmp_path / "none", tmp_path / "cache", "--preview", 8)
    tile = ("--tile", 64, "--preview", 8)
    assert "was begun differently" in refused("teacher-cache", corpus, finished, *tile)
    (tmp_path / "cache-preview.png").write_bytes(b"somebody's")
    assert "is not a preview of ours" in refused("teacher-cache", corpus, tmp_path / "cache", *tile)
    assert (tmp_path / "cache-preview.png").read_bytes() == b"somebody's"


def test_the_command_shows_what_a_teacher_makes(corpus, tmp_path):
    """Of a teacher whose pictures are there already, 9 levels too dark: that is told."""
    (tmp_path / "outputs").mkdir()
    for path in corpus.iterdir():
        save(tmp_path / "outputs" / path.name, load_rgb(path).clip(9) - np.uint8(9))
    given = ("--teacher", f"import:{tmp_path / 'outputs'}", "--tile", 64, "--hold-out", 1, "--degradation", "bicubic")
    out, err = dtkd("teacher-cache", corpus, tmp_path / "cache", *given, "--preview", 2)
    assert f"LR images: bicubic, x4; teacher: import:{tmp_path / 'outputs'}, 1 output a tile; seed 0; about " in err
    lines = out.splitlines()
    assert lines[2].startswith("psnr_y: bicubic ") and ", colour drift " in lines[2]
    assert lines[4].startswith("the whole corpus: 17 tiles of 5 photos, about ")
    assert lines[5].startswith("warning: imported pictures must have been made from the same LR images")
    assert lines[6].startswith("warning: the teacher shifts the tone")
    assert lines[7:] == [f"preview: {tmp_path / 'cache-preview.png'}"]
    assert load_rgb(tmp_path / "cache-preview.png").shape[1] > 2 * 192
    assert not (tmp_path / "cache").exists()
