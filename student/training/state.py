"""What a student's run carries from step to step, and its checkpoints (`pipeline.training.checkpoint`).

model.safetensors and ema.safetensors of a checkpoint are students: `student.checkpoint.load` takes them.
"""

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline.training import checkpoint
from pipeline.training.state import RunState
from student.checkpoint import load, save
from student.loss import GroupWeights
from student.model import SwinIR
from student.training.settings import TrainSettings

KIND = "train-student"


@dataclass(frozen=True)
class Best:
    """The validation whose weights a run keeps as its best."""

    metric: str
    figure: float
    step: int
    data: str = ""
    """`data.val` that it was measured on."""


@dataclass(kw_only=True)
class TrainState(RunState):
    """Everything a run remembers beside its tensors; `data` is `CacheDataset.fingerprint`."""

    weights: GroupWeights
    """Group weights as scaled on the cache when the run began."""
    validation: dict[str, float] = field(default_factory=dict)
    """Latest figures on the held-out pictures, by measure."""
    best: Best | None = None
    """The best validation so far, by one of them."""
    told: list[str] = field(default_factory=list)
    """Remarks on its validations, each of which is made once."""
    recent: dict[str, list[float]] = field(default_factory=lambda: {"l1": [], "fg": []})
    """Losses of the latest steps, oldest first, which `student.training.guard` compares the next ones with."""
    compiled: bool = False
    """Whether the latest steps went through torch.compile."""
    teacher: dict[str, str] = field(default_factory=dict)
    """Whose pictures it learns from: name, hash and licence of the weights, where they came from, as far as known."""


class Training(NamedTuple):
    """The tensors of a run."""

    student: SwinIR
    ema: SwinIR
    optimizer: torch.optim.Optimizer


def new_training(student: SwinIR, t: TrainSettings, device: torch.device) -> Training:
    """Tensors of a run that starts from this network."""
    student.to(device).train()
    ema = copy.deepcopy(student).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(student.parameters(), lr=t.lr, betas=(0.9, 0.99), weight_decay=t.weight_decay)
    return Training(student, ema, optimizer)


def save_training(run: Path, training: Training, state: TrainState, keep: int) -> Path:
    """Write the checkpoint of `state.step`, then delete all but the `keep` newest ones."""

    def fill(folder: Path) -> None:
        save(training.student, folder / "model.safetensors", {"step": state.step})
        save(training.ema, folder / "ema.safetensors", {"step": state.step})
        moments = checkpoint.optimizer_tensors(training.optimizer, training.student.named_parameters())
        checkpoint.write_tensors(folder / "optimizer.safetensors", moments)
        checkpoint.write_state(folder, KIND, state)

    return checkpoint.write_checkpoint(run, state.step, fill, keep)


def read_state(folder: Path) -> TrainState:
    """State of a checkpoint.

    Raises:
        DtkdError: it is missing, damaged, or of another format.
    """

    def build(data: dict[str, Any]) -> TrainState:
        if "best_psnr_y" in data:
            data = _from_psnr_y_alone(data)
        best = data["best"] and Best(**data["best"])
        return TrainState(**{**data, "weights": GroupWeights(*data["weights"]), "best": best})

    return checkpoint.read_state(folder, build)


def _from_psnr_y_alone(data: dict[str, Any]) -> dict[str, Any]:
    """The state of a run from before 2026-11-28, which validated by psnr_y alone; it goes on as any other."""
    psnr, best, step = (data[name] for name in ("psnr_y", "best_psnr_y", "best_step"))
    rest = {name: value for name, value in data.items() if name not in ("psnr_y", "best_psnr_y", "best_step")}
    found = {} if psnr is None else {"psnr_y": psnr}
    return {**rest, "validation": found, "best": None if best is None else vars(Best("psnr_y", best, step))}


def restore(folder: Path, training: Training) -> None:
    """Load the tensors of a checkpoint.

    Raises:
        DtkdError: a file is missing or damaged, or does not fit the network.
    """
    training.student.load_state_dict(load(folder / "model.safetensors").state_dict())
    training.ema.load_state_dict(load(folder / "ema.safetensors").state_dict())
    moments = checkpoint.read_tensors(folder / "optimizer.safetensors")
    checkpoint.restore_optimizer(training.optimizer, training.student.named_parameters(), moments)
