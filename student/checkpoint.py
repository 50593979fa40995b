"""Checkpoints of a training run: strict weights (safetensors) and the JSON that continues the run.

    RUN/checkpoints/step-00001000/   model.safetensors ema.safetensors optimizer.safetensors state.json

`pipeline.training.run_folder` makes the folder appear whole. `load` reads the weights of any student, ours or an
official SwinIR, by file, run folder or name.
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch

from pipeline.system.errors import DtkdError
from pipeline.system.files import atomic_write_bytes, atomic_write_json, read_json
from pipeline.training.run_folder import newest_checkpoint as newest
from pipeline.training.run_folder import write_checkpoint
from student.loss import GroupWeights
from student.model.swinir import SwinIR
from student.model.weight_files import load_student
from student.model.weight_files import save_student as save
from student.networks import find_checkpoint

__all__ = ["TrainState", "Training", "load", "newest", "read_state", "restore", "save", "save_training"]

FORMAT = 1


def load(path: str | Path) -> SwinIR:
    """A ready network (see `load_student`) from a weight file, a run folder or the name of a shipped student.

    Raises:
        DtkdError: there is nothing of that name, or it holds no SwinIR.
    """
    return load_student(find_checkpoint(str(path)))


@dataclass
class TrainState:
    """Everything a run remembers beside its tensors."""

    settings: dict[str, Any]
    """The run's settings (`pipeline.config.to_dict`)."""
    cache: str
    """Identity of the training samples (`CacheDataset.fingerprint`)."""
    weights: GroupWeights
    """Group weights as scaled on the cache when the run began."""
    step: int = 0
    """Finished steps."""
    sums: list[float] = field(default_factory=list)
    """Sums of the logged quantities since the last log line."""
    summed: int = 0
    """Steps in these sums."""
    skipped: int = 0
    """Steps that were left out because loss or gradient was not finite."""
    skipped_in_a_row: int = 0
    """Of these, the latest ones without a good step in between."""
    psnr_y: float | None = None
    """Latest validation result, dB."""
    best_psnr_y: float | None = None
    """Best validation result, dB."""
    best_step: int | None = None
    """Where that was."""
    seconds: float = 0.0
    """Wall-clock seconds of training, interruptions left out."""


class Training(NamedTuple):
    """The tensors of a run."""

    student: SwinIR
    ema: SwinIR
    optimizer: torch.optim.Optimizer


def save_training(run: Path, training: Training, state: TrainState, keep: int) -> Path:
    """Write the checkpoint of `state.step`, then delete all but the `keep` newest ones."""

    def fill(folder: Path) -> None:
        save(training.student, folder / "model.safetensors", {"step": state.step})
        save(training.ema, folder / "ema.safetensors", {"step": state.step})
        tensors = safetensors.torch.save(_optimizer_tensors(training))
        atomic_write_bytes(folder / "optimizer.safetensors", tensors)
        atomic_write_json(folder / "state.json", {"format": FORMAT, **dataclasses.asdict(state)})

    return write_checkpoint(run, state.step, fill, keep)


def read_state(checkpoint: Path) -> TrainState:
    """State of a checkpoint folder.

    Raises:
        DtkdError: it is missing, damaged, or of another format.
    """
    path = checkpoint / "state.json"
    try:
        data = read_json(path)
        if data.pop("format") != FORMAT:
            raise DtkdError(f"{path} is of another format than {FORMAT}: continue with the version that wrote it")
        return TrainState(**{**data, "weights": GroupWeights(*data["weights"])})
    except (OSError, AttributeError, KeyError, TypeError) as error:
        raise _damaged(checkpoint, error) from error


def restore(checkpoint: Path, training: Training) -> None:
    """Load the tensors of a checkpoint folder.

    Raises:
        DtkdError: a file is missing or damaged, or does not fit the network.
    """
    training.student.load_state_dict(load(checkpoint / "model.safetensors").state_dict())
    training.ema.load_state_dict(load(checkpoint / "ema.safetensors").state_dict())
    try:
        tensors = safetensors.torch.load_file(checkpoint / "optimizer.safetensors")
    except (OSError, safetensors.SafetensorError) as error:
        raise _damaged(checkpoint, error) from error
    names = [name for name, _ in training.student.named_parameters()]
    per_parameter = {index: _with_prefix(tensors, f"{name}/") for index, name in enumerate(names)}
    groups = training.optimizer.state_dict()["param_groups"]
    filled = {index: values for index, values in per_parameter.items() if values}
    training.optimizer.load_state_dict({"state": filled, "param_groups": groups})


def _optimizer_tensors(training: Training) -> dict[str, torch.Tensor]:
    """`parameter/quantity` -> tensor, for example `conv_first.weight/exp_avg`."""
    return {
        f"{name}/{quantity}": tensor.detach().cpu().contiguous()
        for name, parameter in training.student.named_parameters()
        for quantity, tensor in training.optimizer.state.get(parameter, {}).items()
    }


def _with_prefix(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _damaged(checkpoint: Path, error: Exception) -> DtkdError:
    return DtkdError(f"{checkpoint} is damaged ({error!r:.100}): delete this folder to go on from the one before")
