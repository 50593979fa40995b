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
COUNTING = """
import atexit, os, sys

import cli
from accelerate import Accelerator
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

prepare, reduced = Accelerator.prepare_model, []

def counting(*arguments):
    model = prepare(*arguments)

    def reduce(group, bucket):
        reduced.extend([1] if bucket.is_last() else [])
        return allreduce_hook(group, bucket)

    model.register_comm_hook(None, reduce)
    return model

Accelerator.prepare_model = counting
atexit.register(lambda: print(f"rank {os.environ['RANK']} reduced {len(reduced)} times", flush=True))
cli.app(sys.argv[1:])
"""
LIMIT = 300
"""Seconds after which processes are held to wait for each other for ever."""


def command(cache: Path, run: Path, *overrides: str) -> list[str]:
    options = [word for setting in (*SETTINGS, *overrides) for word in ("--set", setting)]
    return ["-m", "cli", "train-student", str(cache), str(run), *options]


def torchrun(ranks: int, *arguments, program: tuple[str, ...] = ("-m", "cli")) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    words = [*launcher, *program, *command(*arguments)[2:]]
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=ROOT, env=environment(), check=False, timeout=LIMIT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("8 of 8 steps") == 1
    return done


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


def assert_same_course(run: Path, expected: Path) -> None:
    for name in ("total", "fg"):
        course, other = ([row[name] for row in read_log(path) if name in row] for path in (run, expected))
        assert course == pytest.approx(other, rel=0.01), name


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


def test_parts_on_two_ranks_which_reduce_once_a_step(tmp_path):
    """Two parts of one patch on each rank."""
    cache, script = write_cache(tmp_path / "cache", val=0), tmp_path / "counting.py"
    script.write_text(COUNTING)
    chosen = ("train.precision=fp32", "loss.energy=1", "loss.cycle_spinning=true")
    done = torchrun(2, cache, tmp_path / "two", *chosen, "train.accumulate=2", program=(str(script),))
    assert sorted(line for line in done.stdout.splitlines() if "reduced" in line) == [
        "rank 0 reduced 8 times",
        "rank 1 reduced 8 times",
    ]
    assert_trained_alike(alone(cache, tmp_path / "one", *chosen), tmp_path / "two", 5e-5)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_in_parts_on_two_ranks(tmp_path, precision):
    cache, chosen = write_cache(tmp_path / "cache", val=1), f"train.precision={precision}"
    torchrun(2, cache, tmp_path / "two", chosen, "train.compile=true", "train.accumulate=2")
    one = alone(cache, tmp_path / "one", chosen)
    if precision == "fp32":
        assert_trained_alike(one, tmp_path / "two", 1e-5)
    assert_same_course(tmp_path / "two", one)


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
    assert_same_course(tmp_path / "two", one)


@pytest.mark.slow
def test_killed_ten_times_at_random_moments(tmp_path):
    """Also within saving, which takes most of the time here; two readers, an average, steps in parts, one process."""
    cache = write_cache(tmp_path / "cache", shards=(5, 4), val=1)
    changed = (
        "train.steps=120", "train.save_every=2", "train.precision=fp32", "data.workers=2", "model.drop_path=.2",
        "train.accumulate=2",
    )  # fmt: skip
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
