"""Ctrl-C and SIGTERM, which reach readers too: both trainings save, end without a word, and go on to the same bits.

And a bug: its traceback, and an end.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from skimage import data as photos
from tiny_cache import write_cache

from pipeline import config
from pipeline.training.checkpoint import newest
from student.training.loop import RunSettings, train
from teacher_cache.training.loop import TeacherRunSettings, train_teacher

ROOT = Path(__file__).parents[1]
LIMIT = 200
"""Seconds after which a process is held never to end."""
CHILD = """
import os, signal, sys
from pathlib import Path
from pipeline.system import torchvision_guard
torchvision_guard.apply()
from pipeline import config

kind, source, run, name = sys.argv[1:5]

def signal_all(event):
    if name == "bug" and event.done == 2:
        raise ZeroDivisionError("a bug")
    if event.done == (2 if name == "SIGINT" else 4):
        os.killpg(0, signal.Signals[name])

if kind == "student":
    from student.training.loop import RunSettings, train
    result = train(Path(source), Path(run), config.load(RunSettings, None, sys.argv[5:]), "auto", signal_all)
else:
    from teacher_cache.training.loop import TeacherRunSettings, train_teacher
    result = train_teacher(source, Path(run), config.load(TeacherRunSettings, None, sys.argv[5:]), "auto", signal_all)
print(result.step, result.finished)
"""
COMMON = ("train.steps=6", "train.batch_size=2", "train.patch=8", "train.device=cpu", "data.workers=1")
SETTINGS = {
    "student": (*COMMON, "model.preset=tiny", "model.drop_path=.2"),
    "teacher": (*COMMON, "model.channels=8,16", "model.layers=1", "data.hold_out=1", "train.precision=bf16"),
}
"""Of two precisions, because both trainings must be possible in one process (accelerate refuses a second precision)."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    (folder / "teacher").mkdir()
    for name in ("astronaut", "coffee"):
        Image.fromarray(getattr(photos, name)()[100:228, 100:260]).save(folder / "teacher" / f"{name}.png")
    write_cache(folder / "student")
    return folder


def child(kind: str, source: Path, run: Path, name: str, *more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, kind, str(source / kind), str(run), name, *SETTINGS[kind], *more]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, start_new_session=True, check=False, timeout=LIMIT
    )


def signalled(kind: str, source: Path, run: Path, name: str) -> str:
    done = child(kind, source, run, name)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.strip()


def finished(kind: str, source: Path, run: Path) -> dict[str, torch.Tensor]:
    if kind == "student":
        result = train(source / kind, run, config.load(RunSettings, None, SETTINGS[kind]))
    else:
        result = train_teacher(str(source / kind), run, config.load(TeacherRunSettings, None, SETTINGS[kind]))
    assert result.finished
    return load_file(newest(run) / "model.safetensors")


@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_a_signal_to_all_processes_saves_and_ends(source, tmp_path, kind):
    for name, told, step in (("SIGINT", "3 False", 3), ("SIGTERM", "5 False", 5)):
        assert signalled(kind, source, tmp_path / "run", name) == told
        assert newest(tmp_path / "run").name == f"step-{step:08d}"
    one, other = finished(kind, source, tmp_path / "run"), finished(kind, source, tmp_path / "whole")
    assert [name for name in one.keys() | other.keys() if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_a_bug_ends_the_readers_too(source, tmp_path, kind):
    """Readers leave SIGTERM to the training, which would wait for them at its end."""
    done = child(kind, source, tmp_path / "run", "bug", "data.workers=2")
    assert done.returncode == 1
    assert done.stderr.endswith("ZeroDivisionError: a bug\n")
