"""Before the first step: what cannot be is refused and leaves no trace, what is doubtful is said with its number."""

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from tiny_cache import write_cache

from pipeline import config
from pipeline.images import save
from pipeline.system.errors import DtkdError
from pipeline.system.files import ensure_dir
from student.stream import open_cache
from student.training.loop import train
from student.training.settings import RunSettings

BASE = (
    "model.preset=tiny", "train.steps=12", "train.batch_size=2", "train.patch=8", "train.lr_warmup=2",
    "train.device=cpu", "data.workers=0", "train.precision=fp32", "train.val_metrics=psnr_y", "train.best_by=psnr_y",
    "train.val_every=100", "train.sample_strips=0",
)  # fmt: skip


def settings(*overrides: str) -> RunSettings:
    return config.load(RunSettings, None, [*BASE, *overrides])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache") / "c")


def told(cache: Path, run: Path, *overrides: str, steps: str = "train.steps=1") -> list[str]:
    """What a run says before its first step."""
    events = []
    train(cache, run, settings(*overrides, steps), on_progress=events.append)
    assert events[0].done == 0 and events[1].done == 1
    return events[0].summary.splitlines()


def test_a_run_says_what_it_will_do_and_after_ten_steps_what_it_takes(cache, tmp_path):
    events = []
    train(cache, tmp_path, settings(), on_progress=events.append)
    epochs, validation, disk = events[0].summary.splitlines()
    assert epochs == "12 steps in batches of 2 are 2.7 epochs of 9 tiles"
    assert validation == "validation every 100 steps on 1 picture of the held-out samples, by psnr_y"
    assert disk.startswith("checkpoints and students take ") and disk.endswith(" are free")
    assert [event.done for event in events if "for the 2 steps left" in event.summary] == [10]


def test_the_disk_that_is_told_is_what_a_run_takes(cache, tmp_path):
    *_, disk = told(cache, tmp_path, "train.keep=1")
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    checkpoint = sum(path.stat().st_size for path in tmp_path.glob("checkpoints/*/*.safetensors"))
    assert float(disk.split()[4]) * 1e6 == pytest.approx(size + checkpoint, rel=0.05)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("train.batch_size=10",), "fewer tiles (9) than a batch has patches (10)"),
        (("train.batch_size=2",), "less than an epoch: 7 tiles are never seen"),
        (("train.patch=16",), "a patch is a whole tile (64 HR pixels)"),
        (("train.lr_warmup=1",), "train.lr_warmup is 1, train.steps 1"),
    ],
)
def test_what_is_doubtful_is_said(cache, tmp_path, overrides, words):
    assert any(words in line for line in told(cache, tmp_path, *overrides))


def test_many_epochs_are_said(cache, tmp_path):
    class StopError(Exception):
        pass

    def stop(event):
        assert "2222.2 epochs of 9 tiles" in event.summary and "more than 500 epochs" in event.summary
        raise StopError

    with pytest.raises(StopError):
        train(cache, tmp_path, settings("train.steps=10000"), on_progress=stop)


def test_a_cache_without_held_out_samples_and_pairs_of_wrong_size_are_said(cache, tmp_path):
    whole = write_cache(tmp_path / "c", val=0)
    assert any("no held-out samples, so no validation" in line for line in told(whole, tmp_path / "a"))
    _, gt, _ = open_cache(cache).images(0)
    for name, lr in {"good": gt[::4, ::4], "wrong": gt[:10, :12]}.items():
        save(ensure_dir(tmp_path / "p" / "HR") / f"{name}.png", gt)
        save(ensure_dir(tmp_path / "p" / "LR") / f"{name}.png", lr.copy())
    lines = told(whole, tmp_path / "b", f"data.val={tmp_path / 'p'}")
    (skipped,) = [line for line in lines if line.startswith("skipped wrong.png: ")]
    assert "64x64" in skipped and "12x10" in skipped


def test_what_cannot_be_is_refused_and_leaves_no_trace(cache, tmp_path, monkeypatch):
    run = tmp_path / "run"
    for override, words in (
        ("model.scale=2", "model.scale is 2"),
        ("train.patch=20", "train.patch must be at most 16"),
        ("train.init=light-x4", "light-x4"),
        ("data.samples=2", "data.samples is 2"),
    ):
        with pytest.raises(DtkdError, match=words):
            train(cache, run, settings(override))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: namedtuple("Usage", "total used free")(2e7, 1e7, 1e7))
    with pytest.raises(DtkdError, match=r"take \d+ MB \(train.keep=2\), but its disk has 10 MB free: make room"):
        train(cache, run, settings())
    assert not run.exists()


def test_a_run_is_not_deleted_for_one_that_cannot_start(cache, tmp_path):
    train(cache, tmp_path, settings("train.steps=1"))
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(DtkdError, match="nowhere"):
        train(cache, tmp_path, settings("train.init=nowhere.safetensors"), "fresh")
    assert sorted(path for path in tmp_path.rglob("*")) == before
