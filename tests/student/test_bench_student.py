"""The side-by-side benchmark: that it measures what it says, never how fast."""

import pytest
import torch

from pipeline.system.errors import DtkdError
from student import bench


@pytest.fixture(autouse=True)
def small_cases(monkeypatch):
    monkeypatch.setattr(bench, "CASES", (("inference", (1, 8, 9)), ("training", (2, 8, 8))))
    monkeypatch.setattr(bench, "_peak_memory", lambda setup, task, size, index: index + 1)


def test_rows_compare_with_spandrel():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    inference, training = bench.bench_student(bench.Setup("tiny", threads=1), rounds=2)
    assert torch.get_num_threads() == threads
    assert (inference.task, inference.size, training.task, training.size) == ("inference", "1x8x9", "training", "2x8x8")
    for row in (inference, training):
        assert row.spread is not None
        assert 0 < row.spread[0] <= row.ratio <= row.spread[1]
        assert row.max_difference < 1e-5
        assert (row.memory, row.peer_memory) == (1, 2)


def test_rows_without_a_peer(monkeypatch):
    monkeypatch.setattr(bench, "_spandrel_twin", lambda model: None)
    rows = bench.bench_student(bench.Setup("tiny", threads=None), rounds=1)
    assert all(row.seconds > 0 and row.ratio is None for row in rows)


def test_peak_memory_grows_with_the_picture(monkeypatch):
    monkeypatch.undo()
    setup = bench.Setup("tiny", threads=1)
    small, large = (bench._peak_memory(setup, "training", (1, side, side), 1) for side in (16, 96))
    assert large - small > 96 * 96 * 48 * 4  # the features alone


def test_bf16_is_nearly_the_same():
    inference, _ = bench.bench_student(bench.Setup("tiny", threads=1, bf16=True), rounds=1)
    assert 1e-6 < inference.max_difference < 0.05


@pytest.mark.slow
def test_both_compiled():
    for row in bench.bench_student(bench.Setup("tiny", threads=1, compiled=True), rounds=1):
        assert row.ratio > 0 and row.max_difference < 1e-5


def test_wrong_settings():
    with pytest.raises(DtkdError, match="rounds"):
        bench.bench_student(bench.Setup("tiny"), rounds=0)
    with pytest.raises(DtkdError, match="no preset"):
        bench.bench_student(bench.Setup("huge"))
