"""A training on several processes that the launchers start: no cache makes them wait for each other, no number matters.

Batches as functions of the step, for any number of ranks: tests/student/test_stream.py.
"""

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from launch_support import ROOT, by_accelerate, environment, on_host, two_hosts
from safetensors.torch import load_file
from tiny_cache import write_cache

from pipeline import config
from pipeline.training.checkpoint import newest
from pipeline.training.log import read_log
from student.training.loop import RunSettings, train

SETTINGS = (
    "model.preset=tiny", "train.steps=8", "train.batch_size=4", "train.patch=8", "train.lr=1e-3", "train.lr_warmup=0",
    "train.log_every=1", "train.save_every=4", "train.val_every=100", "train.device=cpu", "data.workers=0",
)  # fmt: skip
LIMIT = 300
"""Seconds after which processes are held to wait for each other for ever."""


def command(cache: Path, run: Path, *overrides: str) -> list[str]:
    options = [word for setting in (*SETTINGS, *overrides) for word in ("--set", setting)]
    return ["-m", "cli", "train-student", str(cache), str(run), *options]


def torchrun(ranks: int, *arguments) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    words = [*launcher, *command(*arguments)]
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=ROOT, env=environment(), check=False, timeout=LIMIT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("8 of 8 steps") == 1


def alone(cache: Path, run: Path, *overrides: str) -> Path:
    assert train(cache, run, config.load(RunSettings, None, [*SETTINGS, *overrides])).finished
    return run


def assert_trained_alike(one: Path, other: Path, limit: float) -> None:
    """The same weights up to rounding, far nearer to each other than to those of half the run."""
    weights, others = (load_file(newest(run) / "model.safetensors") for run in (one, other))
    halfway = load_file(one / "checkpoints" / "step-00000004" / "model.safetensors")
    error = max((weights[name] - others[name]).abs().max().item() for name in weights)
    moved = max((weights[name] - halfway[name]).abs().max().item() for name in weights)
    assert error <= limit, f"{error:.1e}"
    assert moved > 20 * limit


def test_an_odd_number_of_samples_on_two_ranks_and_on_one_from_the_middle(tmp_path):
    """21 samples, 4 a step: epochs end within steps."""
    cache = write_cache(tmp_path / "cache", shards=(20, 1), val=0)
    fp32 = "train.precision=fp32"
    torchrun(2, cache, tmp_path / "two", fp32)
    one = alone(cache, tmp_path / "one", fp32)
    assert_trained_alike(one, tmp_path / "two", 1e-5)
    shutil.rmtree(newest(tmp_path / "two"))
    assert newest(tmp_path / "two").name == "step-00000004"
    assert_trained_alike(one, alone(cache, tmp_path / "two", fp32), 1e-5)


@pytest.mark.slow
def test_one_shard_on_four_ranks(tmp_path):
    cache = write_cache(tmp_path / "cache", shards=(5,), val=1)
    torchrun(4, cache, tmp_path / "four", "train.precision=fp32", "data.workers=1")
    one = alone(cache, tmp_path / "one", "train.precision=fp32")
    assert_trained_alike(one, tmp_path / "four", 5e-5)


@pytest.mark.slow
def test_bf16_on_two_ranks(tmp_path):
    """A half of the batch is rounded as in the whole one; only sums over the batch differ."""
    cache = write_cache(tmp_path / "cache", val=1)
    torchrun(2, cache, tmp_path / "two", "train.precision=bf16")
    one = alone(cache, tmp_path / "one", "train.precision=bf16")
    for name in ("total", "fg"):
        course, expected = ([row[name] for row in read_log(run) if name in row] for run in (tmp_path / "two", one))
        assert course == pytest.approx(expected, rel=0.01), name


@pytest.mark.slow
def test_killed_ten_times_at_random_moments(tmp_path):
    """Also within saving, which takes most of the time here; two readers, an average, a run of one process."""
    cache = write_cache(tmp_path / "cache", shards=(5, 4), val=1)
    changed = ("train.steps=120", "train.save_every=2", "train.precision=fp32", "data.workers=2", "model.drop_path=.2")
    one = alone(cache, tmp_path / "one", *changed)
    rng, run, kills = random.Random(0), tmp_path / "run", 0
    while kills < 10:
        words = [sys.executable, *command(cache, run, *changed)]
        child = subprocess.Popen(words, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
        assert child.stderr is not None and "steps" in child.stderr.readline()
        time.sleep(rng.uniform(0, 0.6))
        assert child.poll() is None, "it ended before it was killed"
        child.send_signal(signal.SIGKILL)
        child.communicate()
        kills += 1
    alone(cache, run, *changed)
    for file in ("model.safetensors", "ema.safetensors", "optimizer.safetensors"):
        weights, others = (load_file(newest(path) / file) for path in (run, one))
        assert [name for name in weights.keys() | others.keys() if not torch.equal(weights[name], others[name])] == []


@pytest.mark.slow
def test_two_hosts_by_accelerate_launch(tmp_path):
    cache = write_cache(tmp_path / "cache", val=0)
    with two_hosts() as hosts:
        children = []
        for rank, host in enumerate(hosts):
            words = on_host(host, [*by_accelerate(rank), *command(cache, tmp_path / "two", "train.precision=fp32")])
            own = environment(GLOO_SOCKET_IFNAME="cable")
            pipe = subprocess.PIPE
            children.append(subprocess.Popen(words, cwd=ROOT, env=own, stdout=pipe, stderr=pipe, text=True))
        told = [child.communicate(timeout=LIMIT) for child in children]
    assert [child.returncode for child in children] == [0, 0], told
    assert ["8 of 8 steps" in out for out, _ in told] == [True, False]  # the first host speaks
    assert_trained_alike(alone(cache, tmp_path / "one", "train.precision=fp32"), tmp_path / "two", 1e-5)
