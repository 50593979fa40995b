"""The side-by-side benchmark: that it measures what it says, never how fast."""

import pytest
import torch

from pipeline.errors import DtkdError
from student import bench


@pytest.fixture(autouse=True)
def small_cases(monkeypatch):
    monkeypatch.setattr(bench, "CASES", (("inference", (1, 8, 9)), ("training", (2, 8, 8))))


def test_rows_compare_with_spandrel():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    inference, training = bench.bench_student("tiny", rounds=2, threads=1)
    assert torch.get_num_threads() == threads
    assert (inference.task, inference.size, training.task, training.size) == ("inference", "1x8x9", "training", "2x8x8")
    for row in (inference, training):
        assert row.spread is not None
        assert 0 < row.spread[0] <= row.ratio <= row.spread[1]
        assert row.max_difference < 1e-5


def test_rows_without_a_peer(monkeypatch):
    monkeypatch.setattr(bench, "_spandrel_twin", lambda model: None)
    rows = bench.bench_student("tiny", rounds=1, threads=None)
    assert all(row.seconds > 0 and row.ratio is None for row in rows)


def test_wrong_settings():
    with pytest.raises(DtkdError, match="rounds"):
        bench.bench_student("tiny", rounds=0)
    with pytest.raises(DtkdError, match="no preset"):
        bench.bench_student("huge")
