"""The side-by-side benchmark: that it measures what it says, never how fast."""

import builtins
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.system.errors import DtkdError
from student.benchmarks import contenders
from student.benchmarks import inference as bench
from student.benchmarks.contenders import CONTENDERS, AbsentError, Setup
from student.benchmarks.inference import bench_lines, bench_student

ROOT = Path(__file__).parents[3]
OUTSIDE = ("onnxruntime", "openvino")


@pytest.fixture(autouse=True)
def small_cases(monkeypatch):
    monkeypatch.setattr(bench, "CASES", (("inference", (1, 8, 9)), ("training", (2, 8, 8))))

    real = contenders._openvino_turn

    def elsewhere(*args):
        try:
            import openvino  # noqa: F401
        except ImportError:
            return real(*args)
        raise AbsentError("measured in a process of its own")

    # A process in which OpenVINO has compiled a network dies when it gets SIGTERM, and later tests send it.
    monkeypatch.setattr(contenders, "_openvino_turn", elsewhere)


def small(**settings) -> Setup:
    return Setup("tiny", threads=1, **{"memory": False, **settings})


@pytest.fixture
def without(monkeypatch):
    """Make modules impossible to import."""
    real = builtins.__import__

    def remove(*names):
        def fake(name, *args, **kwargs):
            if name in names:
                raise ImportError(name)
            return real(name, *args, **kwargs)

        monkeypatch.setattr(builtins, "__import__", fake)

    return remove


def test_every_program_runs_the_same_network():
    threads = torch.get_num_threads()
    rows = bench_student(small(), rounds=2).rows
    assert torch.get_num_threads() == threads
    inference, training = ([row for row in rows if row.task == task] for task in ("inference", "training"))
    assert [(row.program, row.precision) for row in inference] == list(CONTENDERS)
    assert [(row.program, row.precision) for row in training] == list(CONTENDERS[:3])
    assert {row.size for row in inference} == {"1x8x9"} and {row.size for row in training} == {"2x8x8"}
    for row in (row for row in rows if row.absent is None):
        assert row.spread is not None
        assert 0 < row.spread[0] <= row.speed <= row.spread[1]
        assert row.memory is None
        assert row.max_difference < (1e-5 if row.precision == "fp32" else 0.05), row
        assert row.max_difference > 1e-6 or row.precision == "fp32", row
    assert inference[0].speed == training[0].speed == 1
    assert all(row.absent is None for row in training)


def test_a_twin_of_other_weights_is_seen(monkeypatch):
    """The differences are measured, not assumed."""
    real = contenders.spandrel_twin

    def changed(model):
        twin = real(model)
        with torch.no_grad():
            twin.conv_first.weight.mul_(1.5)
        return twin

    monkeypatch.setattr(contenders, "spandrel_twin", changed)
    for row in bench_student(small(), rounds=1).rows:
        assert row.program != "spandrel" or row.max_difference > 1e-4


def test_a_program_that_is_not_installed_says_so(without):
    without(*OUTSIDE, "spandrel")
    rows = bench_student(small(), rounds=1).rows
    assert {row.program for row in rows if row.absent is None} == {"dtkd"}
    lines = bench_lines(rows)
    assert len(lines) == 1 + len(rows)
    for program in ("spandrel", "ONNX Runtime", "OpenVINO"):
        assert any(program in line and line.endswith("pip install 'dtkd[bench]'") for line in lines)


def test_openvino_without_bf16_says_so():
    pytest.importorskip("openvino")
    code = """
import openvino
from student.benchmarks import inference as bench
from student.benchmarks.contenders import Setup
bench.CASES = (("inference", (1, 8, 9)),)
openvino.CompiledModel.get_property = lambda self, name: openvino.Type.f32
rows = bench.bench_student(Setup("tiny", threads=1, memory=False), rounds=1).rows
print([(row.precision, row.absent) for row in rows if row.program == "OpenVINO"])
print(max(row.max_difference for row in rows if row.program == "OpenVINO" and not row.absent) < 1e-5)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    absent, same = done.stdout.splitlines()[-2:]
    assert absent == "[('fp32', None), ('bf16', 'has no bf16 on this processor')]", done.stderr
    assert same == "True"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems do not tell")
def test_memory_is_that_of_the_case(monkeypatch):
    monkeypatch.setattr(bench, "CASES", (("training", (1, 96, 96)),))
    features = 96 * 96 * 48 * 4
    large = bench_student(small(memory=True), rounds=1).rows
    assert [row.program for row in large] == ["dtkd", "dtkd", "spandrel"]
    assert all(row.memory > features for row in large)
    assert large[1].memory < large[0].memory  # bfloat16 activations
    tiny = bench._peak_memory(small(), "training", (1, 16, 16), CONTENDERS[0])
    assert large[0].memory - tiny > features


@pytest.mark.slow
def test_compiled():
    measured = [row for row in bench_student(small(compiled=True), rounds=1).rows if row.absent is None]
    assert {row.program for row in measured} == {"dtkd", "spandrel", "ONNX Runtime"}
    for row in measured:
        assert row.max_difference < (1e-5 if row.precision == "fp32" else 0.05), row


def test_wrong_settings():
    with pytest.raises(DtkdError, match="rounds"):
        bench_student(small(), rounds=0)
    with pytest.raises(DtkdError, match="no preset"):
        bench_student(Setup("huge"))
