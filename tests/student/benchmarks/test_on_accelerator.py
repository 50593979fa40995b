"""The benchmarks on an accelerator: that they run there and find the same pictures and gradients, never how fast."""

import pytest
import torch
from tiny_cache import write_cache

from student.benchmarks import inference
from student.benchmarks.contenders import Setup
from student.benchmarks.training import bench_train

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_the_student_beside_spandrel(accelerator, compiled, monkeypatch):
    monkeypatch.setattr(inference, "CASES", (("inference", (1, 16, 17)), ("training", (2, 8, 8))))
    setup = Setup("tiny", device=accelerator, threads=None, compiled=compiled, memory=not compiled)
    rows = [row for row in inference.bench_student(setup, rounds=1).rows if row.program in ("dtkd", "spandrel")]
    torch.compiler.reset()
    assert [(row.program, row.precision) for row in rows] == [
        ("dtkd", "fp32"),
        ("dtkd", "bf16"),
        ("spandrel", "fp32"),
    ] * 2
    for row in rows:
        assert row.absent is None and row.seconds > 0
        assert row.max_difference < {"fp32": 2e-3, "bf16": 0.06}[row.precision], row
        assert row.memory is None or row.memory > 0


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_training_step_and_a_training(accelerator, tmp_path, compiled):
    cache = write_cache(tmp_path / "cache", val=0)
    found = bench_train("tiny", accelerator, 1, rounds=1, batch=2, patch=8, cache=cache, steps=20, compiled=compiled)
    torch.compiler.reset()
    assert all(row.seconds > 0 for row in (*found.rows, *found.steps))
    assert found.running is not None and 0 <= found.running.waiting < 1
