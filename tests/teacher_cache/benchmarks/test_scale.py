"""A simulated cache is one that stage two would open."""

import pytest

from teacher_cache.benchmarks import scale
from teacher_cache.building.settings import BuildSettings


@pytest.fixture
def in_this_process(monkeypatch):
    """A process for each step takes seconds to start."""
    monkeypatch.setattr(scale, "_elsewhere", lambda name, work, *about: scale._measured(name, work, about))


def test_a_simulated_cache_is_measured(in_this_process):
    bench = scale.bench_plan(100, BuildSettings(samples_per_shard=16))
    assert 100 <= bench.samples <= 100 + 48 + 2, "whole photos, and the held-out ones"
    assert bench.photos == 3 + 2 and bench.shards == 9 + 1
    assert [step.name.split()[0] for step in bench.steps] == ["plan", "read", "finalize", "open", "open"]
    assert all(step.seconds > 0 for step in bench.steps)
    assert bench.bytes["tars"] > 100 * sum(scale.SIZES.values()) > bench.bytes["manifest.json"] > 0
    assert bench.bytes["manifest.index"] < bench.bytes["manifest.json"]
    text, data = "\n".join(bench.lines()), bench.to_json()
    assert f"{bench.samples} samples of 5 made-up photos" in text and "open by manifest.index" in text
    assert data["bench"] == "plan" and data["steps"][2]["name"] == "finalize"


@pytest.mark.slow
def test_every_step_has_a_process_of_its_own():
    open_index = scale.bench_plan(20_000, BuildSettings()).steps[3]
    assert open_index.peak_bytes is None or open_index.peak_bytes < 20_000 * 300
