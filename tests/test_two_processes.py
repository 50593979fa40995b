"""Both trainings started on two processes by torchrun, as accelerate does it: the weights of one process alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file
from skimage import data as photos
from tiny_cache import write_cache

from pipeline import config
from pipeline.training.checkpoint import newest
from pipeline.training.log import read_log
from student.training.loop import RunSettings, train
from teacher_cache.training.loop import TeacherRunSettings, train_teacher

ROOT = Path(__file__).parents[1]
STUDENT = (
    "model.preset=tiny", "train.steps=4", "train.batch_size=4", "train.patch=8", "train.lr=1e-3", "train.lr_warmup=0",
    "train.log_every=2", "train.save_every=2", "train.precision=fp32", "train.device=cpu", "data.workers=0",
)  # fmt: skip
TEACHER = (
    "train.steps=4", "train.batch_size=4", "train.patch=8", "train.lr_warmup=0", "train.log_every=2",
    "train.save_every=2", "train.precision=fp32", "train.device=cpu", "model.channels=8,16", "model.layers=1",
    "data.hold_out=1", "data.workers=0",
)  # fmt: skip
LIMIT = 1e-5


def torchrun(*words: object, settings: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a command of ours on two processes; torchrun chooses a free port by itself."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", ROOT / "cli.py")
    options = [word for setting in settings for word in ("--set", setting)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*map(str, (*launcher, *words)), *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)


def assert_trained_alike(one: Path, two: Path) -> None:
    """The same weights, far nearer to each other than to those of half the run before."""
    for file in ("model.safetensors", "ema.safetensors"):
        alone, shared = (load_file(newest(run) / file) for run in (one, two))
        before = load_file(one / "checkpoints" / "step-00000002" / file)
        assert alone.keys() == shared.keys()
        worst = max(alone, key=lambda name: (alone[name] - shared[name]).abs().max())
        error = (alone[worst] - shared[worst]).abs()
        assert error.max() <= LIMIT, f"{file} {worst}: mean {error.mean():.1e}, max {error.max():.1e}"
        assert max((alone[name] - before[name]).abs().max() for name in alone) > 20 * LIMIT


def test_a_student(tmp_path):
    cache = write_cache(tmp_path / "cache", val=2)
    train(cache, tmp_path / "one", config.load(RunSettings, None, STUDENT))
    done = torchrun("train-student", cache, tmp_path / "two", settings=STUDENT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 of 4 steps") == 1  # one process speaks
    assert_trained_alike(tmp_path / "one", tmp_path / "two")
    one, two = (read_log(tmp_path / name) for name in ("one", "two"))
    for name, tolerance in (("total", 1e-5), ("val_psnr_y", 0.01), ("val_dss", 0.001)):
        expected = [row[name] for row in one if name in row]
        assert [row[name] for row in two if name in row] == pytest.approx(expected, abs=tolerance)


def test_a_teacher(tmp_path):
    corpus = tmp_path / "photos"
    corpus.mkdir()
    for name in ("astronaut", "coffee"):
        Image.fromarray(getattr(photos, name)()[100:228, 100:260]).save(corpus / f"{name}.png")
    train_teacher(str(corpus), tmp_path / "one", config.load(TeacherRunSettings, None, TEACHER))
    done = torchrun("train-teacher", corpus, tmp_path / "two", settings=TEACHER)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("4 of 4 steps") == 1
    assert_trained_alike(tmp_path / "one", tmp_path / "two")
