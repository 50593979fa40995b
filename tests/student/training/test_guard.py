"""Steps that go wrong are named with their samples, in the log, to people and in files; one process and two."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_cache import write_cache

from pipeline import config
from pipeline.system.errors import DtkdError
from pipeline.training import state as training_state
from pipeline.training.checkpoint import newest
from pipeline.training.log import read_log
from student.stream import open_cache
from student.training import guard, loop
from student.training.loop import train
from student.training.settings import RunSettings

ROOT = Path(__file__).parents[3]
BASE = (
    "model.preset=tiny", "train.steps=6", "train.batch_size=2", "train.patch=8", "train.lr=1e-4", "train.lr_warmup=0",
    "train.save_every=100", "train.val_every=100", "train.log_every=2", "train.device=cpu", "data.workers=0",
    "train.precision=fp32",
)  # fmt: skip
TWO = """
import sys
from pathlib import Path
from pipeline import config
from student.training import loop

cache, run, key = sys.argv[1:4]
batches = loop.batches

def planted(*args, **kwargs):
    for batch in batches(*args, **kwargs):
        for i, found in enumerate(batch.keys):
            if found == key:
                batch.teacher[i, 0, 0, 0] = float("nan")
        yield batch

loop.batches = planted
loop.train(Path(cache), Path(run), config.load(loop.RunSettings, None, sys.argv[4:]))
"""


def settings(*overrides: str) -> RunSettings:
    return config.load(RunSettings, None, [*BASE, *overrides])


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write_cache(tmp_path_factory.mktemp("cache") / "c", shards=(4, 4))


def plant(monkeypatch, key: str, picture: str, value: float) -> None:
    """Spoil a pixel row of one sample's picture, wherever training meets it."""
    batches = loop.batches

    def planted(*args, **kwargs):
        for batch in batches(*args, **kwargs):
            for i in [i for i, found in enumerate(batch.keys) if found == key]:
                getattr(batch, picture)[i, :, 0] = value
            yield batch

    monkeypatch.setattr(loop, "batches", planted)


def remarks(run: Path) -> list[dict]:
    return [row for row in read_log(run) if "remark" in row]


def met_at(cache: Path, key: str, given: RunSettings) -> list[int]:
    """Steps, from 1, that see a sample."""
    t = given.train
    stream = loop.batches(
        open_cache(cache), given.data, seed=t.seed, steps=range(t.steps), batch_size=t.batch_size, patch=t.patch
    )
    return [step for step, batch in enumerate(stream, 1) if key in batch.keys]


@pytest.mark.parametrize(("picture", "parts"), [("teacher", 1), ("gt", 1), ("lr", 1), ("gt", 2)])
def test_a_sample_that_is_not_finite_is_named(cache, tmp_path, monkeypatch, picture, parts):
    """Also in a step of several parts."""
    key, told = open_cache(cache).key(5), []
    given = settings(f"train.accumulate={parts}")
    steps = met_at(cache, key, given)
    assert 0 < len(steps) < 6
    plant(monkeypatch, key, picture, float("nan"))
    result = train(cache, tmp_path, given, on_progress=lambda event: told.append(event.summary))
    assert result.skipped == len(steps)
    assert [row["step"] for row in remarks(tmp_path)] == steps
    expected = [picture, "sr"] if picture == "lr" else [picture]
    for row in remarks(tmp_path):
        named = {sample["key"]: sample["not_finite"] for sample in row["samples"]}
        assert len(named) == 2
        assert {name: what for name, what in named.items() if what} == {key: expected}
        assert f"{key} ({' and '.join(expected)} not finite) among 2 samples" in row["remark"]
        assert told[row["step"]] == row["remark"]
    assert [text for step, text in enumerate(told) if step and step not in steps] == [""] * (6 - len(steps))
    report = json.loads((tmp_path / f"nonfinite/step-{steps[0]:08d}.json").read_text())
    assert report["losses"][0]["total"] == "nan"
    with safe_open(tmp_path / f"nonfinite/step-{steps[0]:08d}-0.safetensors", "pt") as file:
        assert json.loads(file.metadata()["keys"])[0] == key
        assert torch.isnan(file.get_tensor(picture)).flatten(1).any(1).tolist() == [True, False]
        assert file.get_tensor("sr").shape == (2, 3, 32, 32)


def test_what_is_written_of_bad_steps_is_bounded(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(training_state, "PATIENCE", 5)
    monkeypatch.setattr(guard, "MAX_STEPS", 3)
    monkeypatch.setattr(guard, "MAX_PICTURE_STEPS", 2)
    monkeypatch.setattr(guard, "MAX_PICTURE_BYTES", 1)
    monkeypatch.setattr(guard, "NAMED", 1)
    for index in range(8):
        plant(monkeypatch, open_cache(cache).key(index), "gt", float("inf"))
    with pytest.raises(DtkdError, match=r"in steps 1 to 5; .*; .*nonfinite names the samples"):
        train(cache, tmp_path, settings())
    assert [row["step"] for row in remarks(tmp_path)] == [1, 2, 3, 4, 5]
    assert all(row["remark"].endswith("(gt not finite) and 1 more sample") for row in remarks(tmp_path))
    names = [f"step-{step:08d}{end}" for step, end in ((1, "-0.safetensors"), (1, ".json"), (2, "-0.safetensors"))]
    assert sorted(path.name for path in (tmp_path / "nonfinite").iterdir()) == [
        *names, "step-00000002.json", "step-00000003.json",
    ]  # fmt: skip
    assert load_file(tmp_path / "nonfinite" / names[0])["gt"].shape[0] == 1


def test_a_disk_that_is_full_is_told_and_the_run_goes_on(cache, tmp_path, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(guard, "atomic_write_json", full)
    plant(monkeypatch, open_cache(cache).key(5), "gt", float("nan"))
    assert train(cache, tmp_path, settings()).finished
    assert all("(No space left on device)" in row["remark"] for row in remarks(tmp_path)) and remarks(tmp_path)


def test_a_leap_of_the_loss_is_named_also_after_an_interruption(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "ENOUGH", 2)
    key = open_cache(cache).key(2)
    given = settings("train.steps=8")
    steps = met_at(cache, key, given)
    plant(monkeypatch, key, "gt", 99.0)
    assert train(cache, tmp_path / "whole", given).skipped == 0
    found = remarks(tmp_path / "whole")
    assert {row["step"] for row in found} == {step for step in steps if step > 2} != set()
    assert {row["spike"] for row in found} == {"l1"}
    for row in found:
        assert row["samples"][0]["key"] == key
        assert row["samples"][0]["l1"] > 2 > row["samples"][1]["l1"]
        assert f"times the median of the steps before: {key} (l1 " in row["remark"]

    def interrupt(event):
        if event.done == max(steps) - 2:
            os.kill(os.getpid(), signal.SIGTERM)

    assert not train(cache, tmp_path / "halves", given, on_progress=interrupt).finished
    train(cache, tmp_path / "halves", given)
    assert remarks(tmp_path / "halves") == found
    one, other = (load_file(newest(tmp_path / name) / "model.safetensors") for name in ("whole", "halves"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    train(cache, tmp_path / "parts", settings("train.steps=8", "train.accumulate=2"))
    for row, other in zip(remarks(tmp_path / "parts"), found, strict=True):  # of the step, not of a part
        assert row["losses"] == pytest.approx(other["losses"], rel=1e-4)
        assert row["remark"].split(" (l1")[0] == other["remark"].split(" (l1")[0]
    train(cache, tmp_path / "off", settings("train.steps=8", "train.spike=0"))
    assert remarks(tmp_path / "off") == []


def test_the_samples_of_every_process_are_named(cache, tmp_path):
    key = open_cache(cache).key(5)
    (tmp_path / "two.py").write_text(TWO)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(tmp_path / "two.py"), str(cache), str(tmp_path / "run"), key, *BASE]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    steps = met_at(cache, key, settings())
    assert [row["step"] for row in remarks(tmp_path / "run")] == steps
    for row in remarks(tmp_path / "run"):
        assert sorted(sample["process"] for sample in row["samples"]) == [0, 1]
        assert [sample["key"] for sample in row["samples"] if sample["not_finite"]] == [key]
        (guilty,) = (sample["process"] for sample in row["samples"] if sample["key"] == key)
        assert [losses["total"] == "nan" for losses in row["losses"]] == [guilty == 0, guilty == 1]
        for process in (0, 1):
            pictures = load_file(tmp_path / "run" / f"nonfinite/step-{row['step']:08d}-{process}.safetensors")
            assert bool(torch.isnan(pictures["teacher"]).any()) == (process == guilty)
