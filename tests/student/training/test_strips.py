"""Sample strips: what is drawn is what the weights make of the samples, and drawing changes nothing."""

import numpy as np
import pytest
import skimage
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_cache import write_cache

from pipeline import config
from pipeline.images import load_rgb, save, to_image, to_tensor
from pipeline.system.files import ensure_dir
from pipeline.training.checkpoint import newest
from pipeline.training.log import read_log
from student import checkpoint
from student.report.pictures import bands
from student.stream import open_cache
from student.training import strips
from student.training.loop import train
from student.training.settings import RunSettings

BASE = (
    "model.preset=tiny", "model.drop_path=.2", "train.steps=4", "train.batch_size=2", "train.patch=8", "train.lr=2e-3",
    "train.lr_warmup=0", "train.save_every=2", "train.val_every=2", "train.log_every=2", "train.device=cpu",
    "data.workers=0", "train.precision=fp32", "train.val_metrics=psnr_y", "train.best_by=psnr_y",
)  # fmt: skip


def settings(*overrides: str) -> RunSettings:
    return config.load(RunSettings, None, [*BASE, *overrides])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache") / "c", val=5)


@pytest.fixture(scope="module")
def drawn(cache, tmp_path_factory):
    return train(cache, tmp_path_factory.mktemp("drawn"), settings("train.sample_strips=3"))


def cell(sheet: np.ndarray, row: int, column: int, side: int = 64) -> np.ndarray:
    pitch = strips.SIDE + 4
    y, x = 4 + row * (pitch + 16) + 16, 4 + column * pitch
    return sheet[y : y + side, x : x + side]


def test_strips_show_the_same_samples_at_every_validation(cache, drawn):
    names = sorted(path.name for path in (drawn.run / "samples").iterdir())
    assert names == ["step-00000002.png", "step-00000004.png"]
    student, held_out = checkpoint.load(drawn.student), open_cache(cache, "val")
    sheets = [load_rgb(drawn.run / "samples" / name) for name in names]
    for row, sample in enumerate((0, 2, 4)):
        lr, gt, teacher = held_out.images(sample)
        with torch.inference_mode():
            sr = to_image(student(to_tensor(lr)[None])[0])
        mosaic, _ = bands.band_errors(sr, bands.transform(teacher))
        error = bands.grey(mosaic, strips.WHITE)[..., None].repeat(3, 2)
        enlarged = np.asarray(Image.fromarray(lr).resize((64, 64), Image.Resampling.NEAREST))
        for column, picture in enumerate((enlarged, sr, teacher, gt, error)):
            assert np.array_equal(cell(sheets[1], row, column), picture), (row, column)
            assert np.array_equal(cell(sheets[0], row, column), picture) == (column not in (1, 4))


def test_tensorboard_has_the_same_pictures(drawn):
    board = EventAccumulator(str(drawn.run / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert [picture.step for picture in board.Images("samples")] == [2, 4]


def test_drawing_changes_no_weights(cache, drawn, tmp_path):
    plain = train(cache, tmp_path, settings("train.sample_strips=0"))
    assert not (plain.run / "samples").exists()
    for file in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        one, other = (load_file(newest(result.run) / file) for result in (plain, drawn))
        assert all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())
    assert train(cache, plain.run, settings("train.sample_strips=2")).reused


def test_photos_are_shown_by_their_busiest_square_and_without_a_teacher(cache, tmp_path):
    photo = skimage.data.astronaut()
    save(ensure_dir(tmp_path / "photos" / "HR") / "a.png", photo[:400, :303])
    run = tmp_path / "run"
    train(cache, run, settings("train.steps=1", f"data.val={tmp_path / 'photos'}"))
    sheet = load_rgb(run / "samples" / "step-00000001.png")
    assert sheet.shape == (strips.SIDE + 24, 4 * (strips.SIDE + 4) + 4, 3)  # LR, student, GT, error
    shown = cell(sheet, 0, 2, strips.SIDE)
    windows = np.lib.stride_tricks.sliding_window_view(photo[:400, :300], shown.shape)[::4, ::4]
    assert (windows == shown).all((-1, -2, -3)).sum() == 1


def test_a_full_disk_is_remarked_and_the_run_goes_on(cache, tmp_path, monkeypatch):
    def full(path, image):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(strips.images, "save", full)
    result = train(cache, tmp_path, settings())
    assert result.finished
    told = [row["remark"] for row in read_log(tmp_path) if "remark" in row]
    assert told[0] == "samples of step 2 are not written (No space left on device)"
