import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from pipeline import config
from pipeline.corpus import scan, split_photos
from pipeline.degradation import Degradation
from pipeline.system.errors import DtkdError
from pipeline.system.files import sample_file
from teacher_cache import teachers
from teacher_cache.building.build import BuildSettings, build_cache
from teacher_cache.training import loop
from teacher_cache.training.loop import TeacherRunSettings, train_teacher
from teacher_cache.training.patches import PatchDataset
from teacher_cache.training.state import read_state

BASE = (
    "train.steps=6", "train.batch_size=2", "train.patch=8", "train.log_every=2", "train.val_every=2",
    "train.save_every=2", "train.precision=fp32", "train.device=cpu", "model.channels=8,16", "model.layers=1",
    "data.hold_out=1", "data.workers=0",
)  # fmt: skip
REAL = Degradation("real", 4)


def settings(*overrides: str) -> TeacherRunSettings:
    return config.load(TeacherRunSettings, None, [*BASE, *overrides])


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("teacher")
    return train_teacher(str(corpus), out, settings()), out


def tensors(out, step=6):
    folder = out / "checkpoints" / f"step-{step:08d}"
    return {
        f"{file.stem}:{name}": value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()
    }


def assert_same_training(one, two):
    one, two = tensors(one), tensors(two)
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], atol=0, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


def test_a_teacher_knows_its_training_photos_and_is_not_judged_by_them(trained, corpus, tmp_path):
    _, out = trained
    teacher = teachers.load(str(out))
    parts = split_photos(scan(corpus).sources, 1)
    assert teacher.trained_on == {sample_file(source.path) for source in parts.train}
    build_cache(str(corpus), tmp_path / "same", teacher, BuildSettings(tile=64, hold_out=1))
    with pytest.raises(DtkdError, match="trained on"):
        build_cache(str(corpus), tmp_path / "more", teacher, BuildSettings(tile=64, hold_out=2))


def test_training_ends_with_a_teacher_that_restores(trained):
    result, out = trained
    assert result.finished
    assert result.to_json()["precision"] == read_state(out / "checkpoints" / "step-00000006").precision == "fp32"
    assert " of training in fp32" in result.lines()[0]
    assert not result.reused
    teacher = teachers.load(str(out))
    lr = torch.rand(1, 3, 16, 20)
    assert teacher.restore(lr, [1]).shape == (1, 3, 64, 80)
    assert max(f.stat().st_size for f in (out / "teacher").rglob("*")) < 16 * 2**20
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log if "val_psnr_y" in row] == [2, 4, 6]
    assert config.load(TeacherRunSettings, out / "config.toml") == settings()
    picture = np.asarray(Image.open(out / "samples" / "step-00000006.png"))
    assert picture.shape == (128, 3 * 160, 3)  # bicubic | restored | true


def test_both_networks_are_trained_one_after_the_other(trained):
    _, out = trained
    end, middle = tensors(out), tensors(out, step=4)
    names = [name for name in end if name.startswith("model:") and (end[name] != middle[name]).any()]
    assert {name.removeprefix("model:").partition(".")[0] for name in names} == {"unet"}


def test_a_finished_run_is_only_reported(trained, corpus):
    result, out = trained
    again = train_teacher(str(corpus), out, settings())
    assert again.reused
    assert again.psnr_y == result.psnr_y


def test_a_run_killed_anywhere_ends_with_the_same_bits(trained, corpus, tmp_path):
    """SIGKILL at every step of a run in turn; the last process ends it."""
    script = (
        "import os, signal, sys; from pathlib import Path\n"
        "from pipeline.system import torchvision_guard; torchvision_guard.apply()\n"
        "from test_train_teacher import settings, train_teacher\n"
        "def die(event):\n"
        "    if event.done >= int(sys.argv[3]): os.kill(os.getpid(), signal.SIGKILL)\n"
        "train_teacher(sys.argv[1], Path(sys.argv[2]), settings(), on_progress=die)\n"
    )
    out = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(__file__)}
    for step in (3, 5):
        run = subprocess.run([sys.executable, "-c", script, str(corpus), str(out), str(step)], env=environment)
        assert run.returncode == -signal.SIGKILL
    assert train_teacher(str(corpus), out, settings()).finished
    assert_same_training(trained[1], out)
    assert not list((out / "checkpoints").glob(".*"))


def test_other_settings_are_refused_and_free_ones_are_not(trained, corpus):
    _, out = trained
    with pytest.raises(DtkdError, match=r"train\.lr: 0.0005 -> 0.1"):
        train_teacher(str(corpus), out, settings("train.lr=.1"))
    with pytest.raises(DtkdError, match=r"degradation\.kind"):
        train_teacher(str(corpus), out, settings("degradation.kind=bicubic"))
    assert train_teacher(str(corpus), out, settings("train.save_every=3", "data.workers=1")).reused


def test_other_sampling_settings_make_a_finished_run_export_again(trained, corpus, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(trained[1], out)
    again = train_teacher(str(corpus), out, settings("sampling.steps=3", "sampling.temperature=.5"))
    assert again.reused
    before, after = (json.loads((run / "teacher" / "model_index.json").read_text()) for run in (trained[1], out))
    assert (before["steps"], before["temperature"]) == (10, 1.0)
    assert {**before, "steps": 3, "temperature": 0.5} == after
    assert teachers.load(str(out)).steps == 3


def test_a_run_starts_from_the_weights_of_another_teacher(trained, corpus, tmp_path):
    more = (f"train.init={trained[1]}", "train.predictor_share=0", "train.steps=2", "train.lr=1e-9")
    train_teacher(str(corpus), tmp_path, settings(*more))
    for network, tolerance in (("predictor", 0), ("unet", 1e-4)):
        file = f"teacher/{network}/diffusion_pytorch_model.safetensors"
        given, ended = load_file(trained[1] / file), load_file(tmp_path / file)
        assert all(torch.allclose(value, ended[name], rtol=0, atol=tolerance) for name, value in given.items())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("train.init=nowhere", "no teacher 'nowhere'"),
        ("model.channels=16,16", r"has model.channels=\[8, 16\], got \(16, 16\): set them alike"),
        ("model.layers=2", "has model.layers=1, got 2"),
    ],
)
def test_weights_that_do_not_fit_are_refused(trained, corpus, tmp_path, wrong, message):
    with pytest.raises(DtkdError, match=message):
        train_teacher(str(corpus), tmp_path, settings(f"train.init={trained[1]}", wrong))


def test_weights_of_another_scale_are_refused(trained, corpus, tmp_path):
    with pytest.raises(DtkdError, match="is a x4 teacher, not x2"):
        train_teacher(str(corpus), tmp_path, settings("degradation.scale=2", f"train.init={trained[1]}"))


def test_workers_do_not_change_the_weights(trained, corpus, tmp_path):
    train_teacher(str(corpus), tmp_path, settings("data.workers=2"))
    assert_same_training(trained[1], tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.patch=9", "train.patch must be a multiple of 2 for 2 model.channels, got 9"),
        ("model.channels=12,16", "model.channels must be multiples of 8"),
        ("train.lr_decay=2", r"train.lr_decay must be within 0\.\.1, got 2.0"),
        ("train.steps=0", "train.steps must be at least 1, got 0"),
        ("train.ema=1", "train.ema must be at least 0 and below 1, got 1"),
        ("data.workers=-1", "data.workers must be at least 0, got -1"),
        ("sampling.temperature=-1", "sampling.temperature must be at least 0, got -1"),
        ("degradation.scale=3", "scale 2, 4 or 8, got 3"),
        ("degradation.kind=paired", "must be bicubic or real"),
    ],
)
def test_settings_that_no_run_can_have(change, message):
    with pytest.raises(DtkdError, match=message):
        settings(change)


def test_corpora_that_no_run_can_have(corpus, tmp_path):
    with pytest.raises(DtkdError, match=r"3 usable photos cannot spare data\.hold_out=3"):
        train_teacher(str(corpus), tmp_path, settings("data.hold_out=3"))


def break_body(path):
    """Leave the header whole and half of the pixels."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


@pytest.fixture
def own_corpus(corpus, tmp_path):
    return shutil.copytree(corpus, tmp_path / "photos")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_photo_is_replaced_by_another_draw(own_corpus, workers):
    sources = scan(own_corpus).sources
    break_body(sources[0].path)
    data = PatchDataset(sources, REAL, 8, 3)
    order = range(8) if workers else reversed(range(8))
    alone = {index: data[index] for index in order}
    for index, patch in enumerate(DataLoader(Items(data), batch_size=None, num_workers=workers)):
        assert torch.equal(patch.hr, alone[index].hr)


class Items(torch.utils.data.Dataset):
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return self.data[index]


def test_without_a_photo_that_can_be_read_the_run_ends_with_one_line(own_corpus, tmp_path):
    for path in own_corpus.iterdir():
        break_body(path)
    with pytest.raises(DtkdError) as caught:
        train_teacher(str(own_corpus), tmp_path / "run", settings("data.workers=1"))
    assert str(caught.value).startswith("none of 2 training photos can be read, ")
    assert "\n" not in str(caught.value)


def test_damaged_held_out_photos_are_left_out_and_skipped_files_named(own_corpus, tmp_path):
    held = split_photos(scan(own_corpus).sources, 1).val[0]
    break_body(held.path)
    (own_corpus / "note.png").write_text("no picture")
    result = train_teacher(str(own_corpus), tmp_path / "run", settings("train.steps=2"))
    assert result.finished
    assert result.psnr_y is None
    assert [item.id for item in result.skipped] == ["note.png"]


def test_a_kill_before_exporting_loses_nothing(trained, corpus, tmp_path, monkeypatch):
    def die(*args):
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(loop, "export", die)
        with pytest.raises(RuntimeError):
            train_teacher(str(corpus), tmp_path, settings())
    (tmp_path / ".teacher.abcd.part").mkdir()
    for _ in range(2):
        again = train_teacher(str(corpus), tmp_path, settings())
        assert (again.reused, again.psnr_y) == (True, trained[0].psnr_y)
    assert not list(tmp_path.glob(".teacher.*"))
    assert_same_training(trained[1], tmp_path)


def test_a_flat_held_out_photo_does_not_end_the_run(own_corpus, tmp_path):
    """Bicubic upscaling of it is exact: an infinite psnr_y, which no JSON holds."""
    held = split_photos(scan(own_corpus).sources, 1).val[0]
    Image.new("RGB", (160, 128), (90, 120, 30)).save(held.path)
    result = train_teacher(str(own_corpus), tmp_path / "run", settings("train.steps=2", "degradation.kind=bicubic"))
    assert (result.finished, result.psnr_y_bicubic) == (True, 100)


def test_another_corpus_is_refused(trained, own_corpus):
    _, out = trained
    (own_corpus / "coffee.png").rename(own_corpus / "tea.png")
    with pytest.raises(
        DtkdError, match=r"other settings or data \(the photos, or how they are degraded, are other ones\)"
    ):
        train_teacher(str(own_corpus), out, settings())


def poison(monkeypatch, steps: range) -> None:
    """Give the given (0-based) steps of the predictor a finite loss with a gradient of NaN."""
    true_loss, count = loop.prediction_loss, iter(range(1000))

    def bad_gradient(pipe, lr, hr, predictor):
        loss = true_loss(pipe, lr, hr, predictor)
        return loss + (0 * predictor.conv_out.bias).sum().sqrt() if next(count) in steps else loss

    monkeypatch.setattr(loop, "prediction_loss", bad_gradient)


def test_a_step_that_is_not_finite_is_left_out_and_counted(corpus, tmp_path, monkeypatch):
    poison(monkeypatch, range(1, 3))
    result = train_teacher(str(corpus), tmp_path, settings("train.predictor_share=1"))
    assert (result.step, result.steps_left_out) == (6, 2)
    end = tensors(tmp_path)
    assert all(torch.isfinite(value).all() for value in end.values())
    assert end["optimizer:predictor.conv_in.weight/step"] == 4
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["skipped"] for row in log if "skipped" in row] == [1, 2, 2]


def test_a_run_that_diverges_ends_and_keeps_its_checkpoint(corpus, tmp_path, monkeypatch):
    poison(monkeypatch, range(2, 1000))
    with pytest.raises(DtkdError, match=r"diverged: .* steps 3 to 12; the last checkpoint is kept"):
        train_teacher(str(corpus), tmp_path, settings("train.steps=40", "train.save_every=5", "train.val_every=99"))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000005", "step-00000010"]
    assert all(torch.isfinite(value).all() for value in tensors(tmp_path, step=10).values())
