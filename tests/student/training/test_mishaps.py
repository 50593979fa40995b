"""What befalls a training from outside, in real processes: one line, exit code 1, and the last checkpoint whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_cache import write_cache

from pipeline import config
from pipeline.training.checkpoint import newest
from student.training.loop import RunSettings, train

ROOT = Path(__file__).parents[3]
SETTINGS = (
    "model.preset=tiny", "train.steps=8", "train.batch_size=2", "train.patch=8", "train.lr_warmup=0",
    "train.log_every=1", "train.save_every=2", "train.val_every=100", "train.precision=fp32", "train.device=cpu",
    "train.keep=1", "data.workers=0",
)  # fmt: skip
CHILD = """
import os, resource, shutil, signal, sys
from pathlib import Path

import cli
from student.training import loop

mishap, folders, *words = sys.argv[1:]
train = loop.train

def delete_shards():
    for tar in Path(words[1]).glob("*.tar"):
        tar.unlink()

def fill_disk():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails with EFBIG instead
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

def crowd_disk():
    disk = Path(words[2]).parent
    (disk / "other").write_bytes(bytes(shutil.disk_usage(disk).free - 500_000))

def terminate():
    os.kill(os.getpid(), signal.SIGTERM)

mishaps = {"delete": delete_shards, "fill": fill_disk, "crowd": crowd_disk, "terminate": terminate, "none": int}

def disturbed(cache, run, settings, resume, on_progress):
    def look(event):
        on_progress(event)
        if event.done == 3:
            mishaps[mishap]()
    return train(cache, run, settings, resume, look)

loop.train = disturbed
if folders != "-":  # each process in a folder of its own
    os.chdir(Path(folders) / os.environ["RANK"])
cli.app(words)
"""


def command(mishap: str, cache: Path, run: Path | str, *overrides: str, folders: Path | str = "-") -> list[str]:
    options = [word for setting in (*SETTINGS, *overrides) for word in ("--set", setting)]
    return [mishap, str(folders), "train-student", str(cache), str(run), *options]


def disturbed(*arguments, launcher: tuple[str, ...] = (), script: Path, **named) -> subprocess.CompletedProcess[str]:
    script.write_text(CHILD)
    words = [sys.executable, *launcher, str(script), *command(*arguments, **named)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, capture_output=True, text=True, env=environment, check=False)


def assert_told(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1, done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("dtkd: "))
    assert all(word in line for word in words), line


def assert_goes_on(cache: Path, run: Path, step: int, whole: Path, *overrides: str) -> None:
    """The checkpoint is that of `step`, and the run ends with the bits of one that nothing disturbed."""
    assert newest(run).name == f"step-{step:08d}"
    steps: list[int] = []
    settings = config.load(RunSettings, None, [*SETTINGS, *overrides])
    assert train(cache, run, settings, on_progress=lambda event: steps.append(event.done)).finished
    assert steps[:2] == [step, step + 1]
    one, other = (load_file(newest(path) / "model.safetensors") for path in (run, whole))
    assert all(torch.equal(one[name], other[name]) for name in one.keys() | other.keys())


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache") / "c", val=0)


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    """A run that nothing disturbed, on one thread as the children."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(cache, run, config.load(RunSettings, None, SETTINGS))
    return run


def test_a_disk_that_fills_up_while_saving(cache, whole, tmp_path):
    run = tmp_path / "run"
    done = disturbed("fill", cache, run, script=tmp_path / "child.py")
    assert_told(done, f"cannot save step 4 in {run} (File too large)", "the same command goes on")
    assert_goes_on(cache, run, 2, whole)


def test_a_disk_that_is_full(cache, whole, tmp_path):
    """A real one: refused where it is too small, and where somebody else fills it, the run goes on afterwards."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=10m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small disk here")
    try:
        done = disturbed("none", cache, disk / "run", script=tmp_path / "child.py")
        assert_told(done, "checkpoints and students take 18 MB", "but its disk has 10 MB free: make room")
        assert not (disk / "run").exists()
        subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)
        done = disturbed("crowd", cache, disk / "run", script=tmp_path / "child.py")
        assert_told(done, f"cannot save step 4 in {disk / 'run'} (No space left on device)")
        (disk / "other").unlink()
        assert_goes_on(cache, disk / "run", 2, whole)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_shards_that_are_deleted_under_the_run(tmp_path):
    """More of them than a process keeps open: what is open can be read although it has no name any more."""
    caches = [write_cache(tmp_path / name, shards=(1,) * 40, val=0) for name in ("cache", "copy")]
    length = "train.steps=20"
    settings = config.load(RunSettings, None, [*SETTINGS, length])
    train(caches[1], tmp_path / "whole", settings)
    done = disturbed("delete", caches[0], tmp_path / "run", length, script=tmp_path / "child.py")
    assert_told(
        done, f"{caches[0]}/shard-", ".tar, sample ", "cannot open it (No such file or directory)", "dtkd verify"
    )
    last = int(newest(tmp_path / "run").name.removeprefix("step-"))
    assert 2 <= last < 20
    assert_goes_on(caches[1], tmp_path / "run", last, tmp_path / "whole", length)


def test_the_settings_of_another_run(cache, whole, tmp_path):
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    done = disturbed("none", cache, whole, "train.lr=.1", script=tmp_path / "child.py")
    assert_told(done, f"{whole} holds a run with other settings or data (train.lr: 0.0002 -> 0.1)", "--fresh")
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before


def test_two_machines_without_a_shared_folder(cache, whole, tmp_path):
    """The first one holds a run that was interrupted, the second one, which calls it by the same name, nothing."""
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
    run = tmp_path / "0" / "run"
    stopped = disturbed("terminate", cache, run, script=tmp_path / "child.py")
    assert newest(run).name == "step-00000004", stopped.stderr
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    done = disturbed("none", cache, "run", folders=tmp_path, launcher=launcher, script=tmp_path / "child.py")
    assert done.returncode == 1 and done.stdout == ""
    told = "dtkd: the processes would go on from different steps (0, 4): run must be one folder that all machines share"
    assert told in done.stderr.splitlines()
    assert_goes_on(cache, run, 4, whole)
