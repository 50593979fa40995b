"""A step beside spandrel's, and a training that is measured: that they are what they say, never how fast."""

import pytest
import torch
from tiny_cache import write_cache

from pipeline.system.errors import UsageError
from student.benchmarks import running, steps
from student.benchmarks.contenders import AbsentError
from student.benchmarks.training import bench_train


def pictures():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, 8, 8, generator=generator), torch.rand(2, 3, 32, 32, generator=generator)


def test_all_take_the_same_step():
    """The SR images of the second step depend on the first one's gradients, clipping and optimiser."""
    lr, gt = pictures()
    seen = {}
    for program, precision, _ in steps.TURNS:
        torch.manual_seed(0)
        network = steps.build("tiny")
        step = steps.training_step(
            network.train() if program == "dtkd" else steps.spandrel_twin(network), precision, lr, gt
        )
        first = step()
        seen[program, precision] = step()
        assert (first - seen[program, precision]).abs().max() > 1e-3
    plain, ours, bf16 = seen.values()
    assert (ours - plain).abs().max() < 1e-4
    assert 1e-6 < (bf16 - plain).abs().max() < 0.05


def test_the_ratio_is_to_spandrels_step(monkeypatch):
    times = iter([8.0, 4.0, 2.0, 9.0, 3.0, 3.0, 8.0, 2.0, 1.0])
    work = steps.seconds_of

    def seconds(step, device):
        assert work(step, device) > 0
        return next(times)

    monkeypatch.setattr(steps, "seconds_of", seconds)
    rows = steps.measure_steps("tiny", 4, *pictures(), rounds=3)
    assert [(row.program, row.precision, row.compiled) for row in rows] == list(steps.TURNS)
    assert [row.seconds for row in rows] == [8, 3, 2]
    assert [row.speed for row in rows] == [1, 3, 4]
    assert rows[1].spread == (2, 4)
    assert steps.step_lines(rows)[2].split() == ["dtkd", "fp32", "3000", "3.00", "2.00", "to", "4.00"]


@pytest.mark.slow
def test_compiled_steps_take_turns_too(tmp_path):
    cache = write_cache(tmp_path / "cache", val=0)
    found = bench_train("tiny", "cpu", 1, rounds=1, batch=1, patch=8, cache=cache, steps=20, compiled=True)
    torch.compiler.reset()
    assert [(row.program, row.precision, row.compiled) for row in found.steps] == [*steps.TURNS, *steps.COMPILED]
    assert all(row.seconds > 0 for row in found.steps)
    text = "\n".join(found.lines())
    assert "dtkd bf16 compiled" in text and "training of 20 steps in" in text


def test_without_spandrel_there_is_no_ratio(monkeypatch):
    def absent(network):
        raise AbsentError("not here")

    monkeypatch.setattr(steps, "spandrel_twin", absent)
    plain, *ours = steps.measure_steps("tiny", 4, *pictures(), rounds=1)
    assert (plain.absent, plain.seconds) == ("not here", None)
    assert all(row.seconds > 0 and row.speed is None for row in ours)
    assert steps.step_lines([plain])[1].split() == ["spandrel", "fp32", "-", "-", "-", "not", "here"]


def test_a_training_is_measured_with_its_readers(tmp_path, monkeypatch):
    cache = write_cache(tmp_path / "cache", val=0)
    held = iter([100_000_000, 130_000_000])
    monkeypatch.setattr(running, "held_memory", lambda device: next(held))
    found = running.measure_running(cache, "tiny", 4, "cpu", batch=1, patch=8, steps=20)
    assert (found.steps, found.early_step, found.early_memory, found.late_memory) == (20, 2, 100_000_000, 130_000_000)
    assert 0 < found.waiting < 1 and found.images_per_second > 0
    assert found.lines()[1] == "memory: 100 MB after step 2, 130 MB after step 20"


def test_slow_reading_shows_as_waiting(tmp_path, monkeypatch):
    import time

    from student.training import loop

    batches = loop.batches

    def late(*args, **kwargs):
        for batch in batches(*args, **kwargs):
            time.sleep(0.1)
            yield batch

    monkeypatch.setattr(loop, "batches", late)
    cache = write_cache(tmp_path / "cache", val=0)
    assert running.measure_running(cache, "tiny", 4, "cpu", batch=1, patch=8, steps=20).waiting > 0.2


@pytest.mark.parametrize("number", [5, 10, 25])
def test_steps_that_cannot_be_measured(tmp_path, number):
    with pytest.raises(UsageError, match=f"multiple of 10 above it, got {number}"):
        running.measure_running(tmp_path, "tiny", 4, "cpu", 1, 8, number)


def test_the_bench_shows_all_of_it(tmp_path):
    cache = write_cache(tmp_path / "cache", val=0)
    found = bench_train("tiny", "cpu", 1, rounds=1, batch=1, patch=8, cache=cache, steps=20)
    assert [row["program"] for row in found.to_json()["steps"]] == ["spandrel", "dtkd", "dtkd"]
    assert found.to_json()["running"]["steps"] == 20
    text = "\n".join(found.lines())
    assert "spandrel fp32" in text and "% waiting for data" in text
