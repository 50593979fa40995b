"""What the loss costs a step: that the benchmark measures what it says, never how fast."""

from functools import partial

import pytest
import torch

from pipeline.system.errors import DtkdError, UsageError
from student.benchmarks import training as bench


def test_rows_of_both_precisions_and_every_loss(monkeypatch):
    work, threads, delay = bench.seconds_of, torch.get_num_threads(), {"L1": 0.0, "L_FG": 1.0}
    names = iter([])

    def seconds(turn, device):
        """Time by name: a step takes 8 s, a loss what `delay` says, and all of them are computed."""
        nonlocal names
        assert work(turn, device) > 0
        if not isinstance(turn, partial):
            names = iter([*bench.LOSSES] * bench.TURNS)
            return 8.0
        return 2.0 + delay.get(next(names), 3.0)

    monkeypatch.setattr(bench, "seconds_of", seconds)
    found = bench.bench_train("tiny", "cpu", threads=1, rounds=2, batch=1, patch=8)
    assert torch.get_num_threads() == threads
    assert [(row.precision, row.loss) for row in found.rows] == [(p, n) for p in ("fp32", "bf16") for n in bench.LOSSES]
    assert [row.added for row in found.rows] == pytest.approx([0, 1 / 8, 3 / 8, 3 / 8] * 2)
    assert {row.step_seconds for row in found.rows} == {8.0}
    assert [line.split()[-2:] for line in found.lines()[1:4]] == [["0.0", "%"], ["12.5", "%"], ["37.5", "%"]]
    assert found.to_json()["bench"] == "train" and len(found.to_json()["rows"]) == 8


def test_a_step_trains_the_network():
    network, pictures = bench.build("tiny"), torch.rand(1, 3, 8, 8)
    before = [p.detach().clone() for p in network.parameters()]
    sr = bench.training_step(network.train(), "bf16", pictures, torch.rand(1, 3, 32, 32))()
    assert sr.shape == (1, 3, 32, 32) and sr.dtype == torch.float32
    moved = [not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)]
    assert sum(moved) > 0.9 * len(moved)


def test_what_cannot_be_measured():
    with pytest.raises(UsageError, match="at least 1, got 0"):
        bench.bench_train("tiny", "cpu", 1, rounds=0)
    with pytest.raises(DtkdError, match="huge"):
        bench.bench_train("huge", "cpu", 1)
