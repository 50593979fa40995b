"""Training checkpoints: what is written comes back bit for bit, and no moment of dying leaves a run without one."""

import json
import os
import shutil

import pytest
import torch

from pipeline.system.errors import DtkdError
from pipeline.training.checkpoint import newest
from student import checkpoint
from student.loss import GroupWeights
from student.model import ModelSettings
from student.training.run import save_run
from student.training.settings import RunSettings, TrainSettings
from student.training.state import TrainState, read_state, restore, save_training
from student.training.state import new_training as new_training_of

SETTINGS = RunSettings(TrainSettings(lr=1e-2), ModelSettings("tiny"))


def new_training(seed: int = 0):
    torch.manual_seed(seed)
    return new_training_of(SETTINGS.model.build(), SETTINGS.train, torch.device("cpu"))


def step(training) -> None:
    training.student(torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))).square().mean().backward()
    training.optimizer.step()
    training.optimizer.zero_grad()


def state_at(number: int) -> TrainState:
    return TrainState(
        settings={"a": 1},
        data="cache",
        weights=GroupWeights(0.1, 0.2, 0.3, 2, "haar"),
        step=number,
        sums={"total": 0.1, "l1": 1 / 3},
        summed=2,
    )


@pytest.fixture(scope="module")
def trained():
    training = new_training()
    step(training)
    return training


def assert_same_tensors(one, other) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_restored_run_takes_the_same_next_step(trained, tmp_path):
    path = save_training(tmp_path, trained, state_at(1), keep=2)
    other = new_training(seed=9)
    restore(path, other)
    assert read_state(path) == state_at(1)
    assert_same_tensors(other.ema.state_dict(), trained.ema.state_dict())
    before = {k: v.clone() for k, v in trained.student.state_dict().items()}
    continued = new_training(seed=5)
    restore(path, continued)
    for training in (other, continued):
        step(training)
    assert_same_tensors(other.student.state_dict(), continued.student.state_dict())
    assert not torch.equal(other.student.state_dict()["conv_first.weight"], before["conv_first.weight"])
    moments = [o.optimizer.state_dict()["state"][0] for o in (other, continued)]
    assert moments[0]["step"] == 2
    assert_same_tensors(*moments)


def test_a_run_without_a_good_step_yet_can_be_saved(tmp_path):
    path = save_training(tmp_path, new_training(), state_at(1), keep=2)
    other = new_training(seed=9)
    restore(path, other)
    assert other.optimizer.state_dict()["state"] == {}


def test_weights_in_a_checkpoint_are_students(trained, tmp_path):
    path = save_training(tmp_path, trained, state_at(1), keep=2)
    assert_same_tensors(checkpoint.load(path / "ema.safetensors").state_dict(), trained.ema.state_dict())


def test_a_run_folder_and_a_shipped_name_stand_for_their_students(trained, tmp_path):
    checkpoint.save(trained.ema, tmp_path / "student.safetensors", {})
    for key, value in checkpoint.load(tmp_path).state_dict().items():
        assert torch.equal(value, trained.ema.state_dict()[key])
    assert checkpoint.load("tiny-x4").preset == "tiny"
    with pytest.raises(DtkdError, match="a run that has saved once"):
        checkpoint.load(tmp_path.parent)


def test_the_newest_are_kept(trained, tmp_path):
    for number in (5, 10, 15, 100):
        save_training(tmp_path, trained, state_at(number), keep=2)
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000015", "step-00000100"]
    assert newest(tmp_path).name == "step-00000100"
    assert newest(tmp_path / "absent") is None


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_the_old_one_stays_until_the_new_one_is_whole(trained, tmp_path, monkeypatch, call):
    save_training(tmp_path, trained, state_at(1), keep=1)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(DtkdError, match=r"No space left on device.*the checkpoint before"):
        save_run(tmp_path, trained, state_at(2), keep=1)
    monkeypatch.undo()
    latest = newest(tmp_path)
    assert read_state(latest).step == 1
    restore(latest, new_training())
    save_training(tmp_path, trained, state_at(3), keep=1)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000003"]  # no half-written one left


@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_damaged_checkpoint_is_refused_by_name(trained, tmp_path, name, damage):
    path = save_training(tmp_path, trained, state_at(1), keep=2)
    data = (path / name).read_bytes()
    (path / name).unlink()
    if damage == "cut":
        (path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(DtkdError, match="step-00000001") as caught:
        read_state(path)
        restore(path, new_training())
    assert "\n" not in str(caught.value)


def test_another_format_is_refused(trained, tmp_path):
    path = save_training(tmp_path, trained, state_at(1), keep=2)
    state = json.loads((path / "state.json").read_text())
    for changed in ({**state, "format": 1}, {**state, "more": 1}, {"format": 2}, []):
        (path / "state.json").write_text(json.dumps(changed))
        with pytest.raises(DtkdError, match="step-00000001"):
            read_state(path)


def test_weights_of_another_network_are_refused(trained, tmp_path):
    path = save_training(tmp_path, trained, state_at(1), keep=2)
    shutil.copy(path / "optimizer.safetensors", path / "model.safetensors")
    with pytest.raises(DtkdError, match=r"model\.safetensors"):
        restore(path, new_training())
