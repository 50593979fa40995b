"""A step in parts, or compiled, is the same step: up to rounding, and bit for bit where the run goes on as it was."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_cache import write_cache

from pipeline import config
from pipeline.system.errors import DtkdError
from pipeline.training.checkpoint import newest
from pipeline.training.log import read_log
from student.loss import GroupWeights, distillation_loss
from student.model.swinir import SwinIR
from student.model.weight_files import read_metadata
from student.training import loop
from student.training.loop import RunSettings, train
from student.training.state import read_state

ROOT = Path(__file__).parents[3]
BASE = (
    "model.preset=tiny", "train.steps=8", "train.batch_size=4", "train.patch=8", "train.lr=1e-3", "train.lr_warmup=0",
    "train.log_every=1", "train.save_every=4", "train.val_every=4", "train.device=cpu", "data.workers=0",
    "train.precision=fp32", "loss.energy=2", "loss.cycle_spinning=true",
)  # fmt: skip
LIMIT = 1e-5
FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")


def settings(*overrides: str) -> RunSettings:
    return config.load(RunSettings, None, [*BASE, *overrides])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache") / "c", shards=(5, 4), val=1)


@pytest.fixture(scope="module")
def whole(cache, tmp_path_factory):
    """A run whose steps are neither in parts nor compiled."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train(cache, run, settings())
    return run


@pytest.fixture(scope="module")
def dropping(cache, tmp_path_factory):
    """The same with paths dropped at random."""
    run = tmp_path_factory.mktemp("dropping") / "run"
    train(cache, run, settings("model.drop_path=.3"))
    return run


@pytest.fixture(autouse=True)
def forget_compiled():
    yield
    torch.compiler.reset()


def difference(one: Path, other: Path) -> float:
    """Largest of all weights and averages."""
    pairs = [(load_file(one / file), load_file(other / file)) for file in FILES[:2]]
    assert all(a.keys() == b.keys() for a, b in pairs)
    return max((a[name] - b[name]).abs().max().item() for a, b in pairs for name in a)


def assert_trained_alike(run: Path, expected: Path, limit: float = LIMIT) -> None:
    """Weights up to rounding, far nearer to each other than to those of half the run; and the log."""
    moved = difference(newest(expected), expected / "checkpoints" / "step-00000004")
    assert difference(newest(run), newest(expected)) <= limit < moved / 20
    for name in ("total", "l1", "fg", "energy", "grad_norm", "val_psnr_y", "lr", "lambda"):
        course, other = ([row[name] for row in read_log(path) if name in row] for path in (run, expected))
        assert course == pytest.approx(other, rel=1e-3), name


def assert_same_bits(run: Path, expected: Path) -> None:
    for file in FILES:
        one, other = (load_file(newest(path) / file) for path in (run, expected))
        assert [name for name in one.keys() | other.keys() if not torch.equal(one[name], other[name])] == []


def interrupted_at(step: int):
    def look(event):
        if event.done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return look


@pytest.mark.parametrize(
    ("weights", "shift"),
    [
        (GroupWeights(0.5, 2.0, 1.0, energy=2.0, energy_floor=1.0), (5, 3)),
        (GroupWeights(0.5, 2.0, 1.0, levels=3, energy=2.0, gt="low"), (0, 0)),
        (GroupWeights(0.5, 2.0, 1.0, wavelet="db2", energy=2.0), (2, 0)),
        (GroupWeights(0.5, 2.0, 1.0, levels=0), (0, 0)),
    ],
    ids=["spinning", "gt low", "db2", "pixels"],
)
def test_every_term_of_the_loss_is_a_mean_over_samples(weights, shift):
    images = [torch.rand(4, 3, 48, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    batch = torch.stack(distillation_loss(*images, weights, 0.7, shift))
    ones = [distillation_loss(*(image[i : i + 1] for image in images), weights, 0.7, shift) for i in range(4)]
    torch.testing.assert_close(batch, torch.stack([torch.stack(one) for one in ones]).mean(0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("parts", [2, 4])
def test_steps_in_parts(cache, whole, tmp_path, parts, monkeypatch):
    sizes, forward = [], SwinIR.forward

    def seen(self, lr):
        if self.training:
            sizes.append(len(lr))
        return forward(self, lr)

    monkeypatch.setattr(SwinIR, "forward", seen)
    assert train(cache, tmp_path, settings(f"train.accumulate={parts}")).finished
    assert sizes == [4 // parts] * 8 * parts
    assert_trained_alike(tmp_path, whole)


def test_a_run_goes_on_in_other_parts(cache, whole, tmp_path):
    assert train(cache, tmp_path, settings("train.accumulate=4"), on_progress=interrupted_at(4)).step == 5
    assert train(cache, tmp_path, settings("train.accumulate=2")).finished
    assert_trained_alike(tmp_path, whole)


def test_parts_that_drop_paths_go_on_bit_for_bit(cache, tmp_path):
    """They draw for themselves, as processes do, and every step anew."""
    in_parts = settings("train.accumulate=2", "model.drop_path=.3")
    train(cache, tmp_path / "whole", in_parts)
    train(cache, tmp_path / "halves", in_parts, on_progress=interrupted_at(4))
    train(cache, tmp_path / "halves", in_parts)
    assert_same_bits(tmp_path / "halves", tmp_path / "whole")


def test_what_a_run_in_parts_says(cache, tmp_path):
    events = []
    train(cache, tmp_path, settings("train.accumulate=2", "train.steps=1"), on_progress=events.append)
    assert events[0].summary.splitlines()[1] == "every step in 2 parts, batches of 2"


def test_parts_that_do_not_divide_the_batch(cache, tmp_path):
    with pytest.raises(DtkdError) as caught:
        train(cache, tmp_path / "run", settings("train.accumulate=3"))
    needed = "train.batch_size must be divisible by 3 (train.accumulate=3), got 4"
    assert str(caught.value) == f"{needed}: set train.batch_size=6"
    assert not (tmp_path / "run").exists()
    with pytest.raises(DtkdError, match="accumulate must be at least 1, got 0"):
        settings("train.accumulate=0")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_a_lack_of_memory_advises_parts(cache, tmp_path, error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(loop, "distillation_loss", fail)
    with pytest.raises(DtkdError) as caught:
        train(cache, tmp_path / "run", settings("train.accumulate=2", "train.batch_size=12"))
    message = str(caught.value)
    assert message.startswith("out of memory with 6 patches at a time: the same command with --set train.accumulate=3")
    assert "goes on with 4" in message and "\n" not in message
    with pytest.raises(DtkdError, match=r"one patch at a time: lower train\.patch"):
        train(cache, tmp_path / "run", settings("train.accumulate=4"), "fresh")


def test_another_error_stays_what_it_is(cache, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(loop, "distillation_loss", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        train(cache, tmp_path, settings())


def test_without_a_compiler_nothing_is_begun(cache, tmp_path):
    options = [word for setting in (*BASE, "train.compile=true") for word in ("--set", setting)]
    command = [sys.executable, "-m", "cli", "train-student", str(cache), str(tmp_path / "run"), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CXX": "/no/such/compiler"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 1 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("dtkd: torch.compile does not work on cpu here (InvalidCxxCompiler: No working C++ compiler")
    assert line.endswith("or do without compiling")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_a_compiled_run_is_the_same_one(cache, dropping, tmp_path, checkpointing):
    """It drops the same paths, in parts it would not; its files are those of a network that is not compiled."""
    chosen = settings("train.compile=true", "model.drop_path=.3", f"model.checkpointing={checkpointing}")
    told = []
    result = train(cache, tmp_path, chosen, on_progress=lambda event: told.append(event.summary))
    assert "the first step compiles the student" in told[0]
    assert_trained_alike(tmp_path, dropping)
    for file in FILES:
        ours, theirs = ((newest(run) / file).stat().st_size for run in (tmp_path, dropping))
        assert ours == theirs
    assert result.compiled and read_state(newest(tmp_path)).compiled and result.to_json()["compiled"]
    assert "of training in fp32, compiled" in result.lines()[0]
    made = [read_metadata(run / "student.safetensors")["compiled"] for run in (tmp_path, dropping)]
    assert made == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [("true", "false"), ("false", "true")])
def test_a_run_goes_on_compiled_and_not(cache, whole, tmp_path, first, then):
    train(cache, tmp_path, settings(f"train.compile={first}"), on_progress=interrupted_at(4))
    assert read_state(newest(tmp_path)).compiled == (first == "true")
    assert train(cache, tmp_path, settings(f"train.compile={then}")).compiled == (then == "true")
    assert_trained_alike(tmp_path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_run_in_parts_goes_on_bit_for_bit(cache, tmp_path, precision):
    chosen = settings(
        "train.compile=true", "train.accumulate=2", f"train.precision={precision}", "model.drop_path=.3",
        "data.workers=2",
    )  # fmt: skip
    train(cache, tmp_path / "whole", chosen)
    train(cache, tmp_path / "halves", chosen, on_progress=interrupted_at(4))
    torch.compiler.reset()  # as in a new process
    train(cache, tmp_path / "halves", chosen)
    assert_same_bits(tmp_path / "halves", tmp_path / "whole")


@pytest.mark.slow
def test_ctrl_c_while_the_compiler_runs(cache, tmp_path):
    """It reaches the compiler, too."""
    options = [word for setting in (*BASE, "train.compile=true", "data.workers=1") for word in ("--set", setting)]
    command = [sys.executable, "-m", "cli", "train-student", str(cache), str(tmp_path / "run"), *options]
    own = {"PYTHONPATH": str(ROOT), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "compiled")}  # so that it has to run
    child = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **own}, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert child.stderr is not None
    while "first step" not in (line := child.stderr.readline()):
        assert line, "it ended"
    while not compilers_of(child.pid):
        assert child.poll() is None
    os.killpg(child.pid, signal.SIGINT)
    _, err = child.communicate(timeout=200)
    assert child.returncode == 1
    assert err.splitlines()[-1] == "dtkd: interrupted; run the same command again to go on"
    assert "Traceback" not in err


def compilers_of(session: int) -> list[str]:
    found = subprocess.run(["ps", "-s", str(session), "-o", "args="], capture_output=True, text=True, check=False)
    return [line for line in found.stdout.splitlines() if "cc1" in line]
