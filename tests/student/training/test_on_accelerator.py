"""A training on an accelerator, in a process of its own, against the same one on the CPU in fp32."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_cache import write_cache

from pipeline.training.checkpoint import newest
from pipeline.training.log import read_log

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[3]
SETTINGS = (
    "model.preset=tiny", "train.steps=8", "train.batch_size=4", "train.patch=8", "train.lr=1e-3", "train.lr_warmup=0",
    "train.log_every=1", "train.val_every=4", "train.save_every=4", "loss.energy=1", "loss.cycle_spinning=true",
    "data.workers=1",
)  # fmt: skip
TOLERANCE = {"fp32": 0.01, "bf16": 0.05}


def trained(cache: Path, run: Path, device: str, precision: str, *more: str) -> list[dict]:
    """The log of a run that `dtkd train-student` made."""
    chosen = (*SETTINGS, f"train.precision={precision}", f"train.device={'cpu' if device == 'cpu' else 'auto'}", *more)
    options = [word for setting in chosen for word in ("--set", setting)]
    command = [sys.executable, "-m", "cli", "train-student", str(cache), str(run), *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return read_log(run)


def assert_same_course(log: list[dict], expected: list[dict], precision: str) -> None:
    for name in ("total", "l1", "fg", "grad_norm", "val_dss"):
        course = [[row[name] for row in rows if name in row] for rows in (log, expected)]
        assert course[0] == pytest.approx(course[1], rel=TOLERANCE[precision]), name
    psnr = [[row["val_psnr_y"] for row in rows if "val_psnr_y" in row] for rows in (log, expected)]
    assert psnr[0] == pytest.approx(psnr[1], abs=10 * TOLERANCE[precision])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache") / "c", val=2)


@pytest.fixture(scope="module")
def on_cpu(cache, tmp_path_factory):
    return trained(cache, tmp_path_factory.mktemp("cpu") / "run", "cpu", "fp32")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_and_one_that_goes_on(accelerator, cache, on_cpu, tmp_path, precision):
    log = trained(cache, tmp_path / "run", accelerator, precision)
    assert_same_course(log, on_cpu, precision)
    assert any(row.get("memory_mb", 1) > 0 for row in log)
    shutil.rmtree(newest(tmp_path / "run"))  # as if it had been killed after step 4
    assert newest(tmp_path / "run").name == "step-00000004"
    assert_same_course(trained(cache, tmp_path / "run", accelerator, precision), on_cpu, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("compiled", ["false", "true"], ids=["eager", "compiled"])
def test_a_run_in_parts(accelerator, cache, on_cpu, tmp_path, compiled, precision):
    more = ("train.accumulate=2", f"train.compile={compiled}")
    assert_same_course(trained(cache, tmp_path / "run", accelerator, precision, *more), on_cpu, precision)
