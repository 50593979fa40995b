"""The folder of a training run: what it begins from, what it saves.

RUN/config.toml            the settings, as `--config` takes them
RUN/log.jsonl tensorboard/ curves (`pipeline.training.log`)
RUN/checkpoints/           the newest ones, to go on from (`student.checkpoint`)
RUN/student.safetensors    averaged weights at the last save
RUN/best.safetensors       averaged weights at the best validation
"""

import copy
import dataclasses
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pipeline import config
from pipeline.images import to_tensor
from pipeline.schema import difference
from pipeline.system.errors import DtkdError
from pipeline.system.files import atomic_write_bytes
from student import checkpoint
from student import networks as network
from student.checkpoint import Training, TrainState
from student.loss import measure, scale_weights
from student.model import SwinIR
from student.stream import CacheDataset
from student.training.settings import FREE_KEYS, RunSettings, TrainSettings

CALIBRATION_SAMPLES = 64  # of the cache, on which the group weights are scaled
STUDENT, BEST = "student.safetensors", "best.safetensors"
FILES = ("config.toml", "log.jsonl", STUDENT, BEST)
PARTS = ("checkpoints/step-*", "checkpoints/.step-*.part", "tensorboard/events.out.tfevents.*")

Resume = Literal["auto", "fresh"]


def clear(run: Path) -> None:
    """Delete what an earlier run left, and nothing else.

    Raises:
        DtkdError: the files are not those of a run, or cannot be deleted.
    """
    _refuse_foreign(run)
    left = [path for pattern in (*PARTS, *FILES) for path in run.glob(pattern)]
    try:
        for path in sorted(left, key=lambda path: path.name in FILES):  # what tells that it is ours goes last
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name in ("checkpoints", "tensorboard"):
            if (run / name).is_dir() and not any((run / name).iterdir()):
                (run / name).rmdir()
    except OSError as error:
        what = f"{error.filename or run} ({error.strerror or error})"
        raise DtkdError(f"cannot delete {what}: delete it yourself, or choose another folder") from error


def begin(run: Path, settings: RunSettings, dataset: CacheDataset, device: torch.device) -> tuple[Training, TrainState]:
    """What a run starts from: its newest checkpoint, else new tensors and step 0.

    Raises:
        DtkdError: the cache has another scale, or the folder holds a run with other settings or of another cache, or
            files that no run has written.
    """
    if settings.model.scale != dataset.scale:
        raise DtkdError(
            f"model.scale is {settings.model.scale}, but {dataset.cache} holds x{dataset.scale} pairs: "
            f"set model.scale={dataset.scale}, or make a cache with --scale {settings.model.scale}"
        )
    _refuse_foreign(run)
    latest = checkpoint.newest(run)
    if latest is None:
        return new_training(settings, device), _new_state(settings, dataset)
    state = checkpoint.read_state(latest)
    _refuse_another_run(run, state, settings, dataset)
    state.settings = config.to_dict(settings)
    training = new_training(settings, device, init=False)
    checkpoint.restore(latest, training)
    return training, state


def new_training(settings: RunSettings, device: torch.device, init: bool = True) -> Training:
    """Initial tensors of a run; `init=False` skips `train.init`, for tensors that will be replaced."""
    torch.manual_seed(settings.train.seed)
    student = settings.model.build()
    if init and settings.train.init:
        _start_from(student, settings.train.init)
    student.to(device).train()
    ema = copy.deepcopy(student).eval().requires_grad_(False)
    return Training(student, ema, _optimizer(student, settings.train))


def save_config(run: Path, settings: RunSettings) -> None:
    """Write RUN/config.toml."""
    atomic_write_bytes(run / "config.toml", config.to_toml(settings).encode())


def save(run: Path, training: Training, state: TrainState, keep: int) -> None:
    """Export the averaged weights, then write a checkpoint: a run that is finished has its student.

    Raises:
        DtkdError: the disk is full or fails; the checkpoint before is whole.
    """
    try:
        export(run / STUDENT, training.ema, state)
        checkpoint.save_training(run, training, state, keep)
    except OSError as error:
        raise DtkdError(
            f"cannot save step {state.step} in {run} ({error.strerror}): make room, then the same command goes on from "
            "the checkpoint before"
        ) from error


def export(path: Path, ema: SwinIR, state: TrainState) -> None:
    """Write averaged weights with what made them."""
    about = {"step": state.step, "psnr_y": state.psnr_y, "settings": state.settings, "cache": state.cache}
    checkpoint.save(ema, path, about)


def shipped(preset: str, scale: int) -> Path:
    """File of a student that is shipped with the project.

    Raises:
        DtkdError: there is none of this preset and scale.
    """
    path = network.shipped_file(f"{preset}-x{scale}")
    if not path.exists():
        there = network.shipped_names()
        raise DtkdError(f"no {preset} student for x{scale} is shipped (there are: {there}): leave train.init empty")
    return path


def _start_from(student: SwinIR, init: str) -> None:
    path = shipped(student.preset, student.scale) if init == "shipped" else Path(init)
    loaded = checkpoint.load(path)
    if (loaded.preset, loaded.scale) != (student.preset, student.scale):
        raise DtkdError(
            f"train.init={init} is a {loaded.preset} x{loaded.scale} network, the run trains {student.preset} "
            f"x{student.scale}: set model.preset and model.scale to match"
        )
    student.load_state_dict({**student.state_dict(), **dict(loaded.named_parameters())})


def _optimizer(student: SwinIR, t: TrainSettings) -> torch.optim.Optimizer:
    return torch.optim.AdamW(student.parameters(), lr=t.lr, betas=(0.9, 0.99), weight_decay=t.weight_decay)


def _new_state(settings: RunSettings, dataset: CacheDataset) -> TrainState:
    if not len(dataset):
        raise DtkdError(f"{dataset.cache} has no training samples: every image was held out or failed")
    magnitudes = measure(_calibration_pairs(dataset, settings.train.patch), settings.loss.levels, settings.loss.wavelet)
    weights = scale_weights(settings.loss, magnitudes)
    return TrainState(settings=config.to_dict(settings), cache=dataset.fingerprint(), weights=weights)


def _calibration_pairs(dataset: CacheDataset, patch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(lr, teacher) patches of samples spread evenly over the cache."""
    for index in np.unique(np.linspace(0, len(dataset) - 1, CALIBRATION_SAMPLES).astype(int)).tolist():
        lr, _, teacher = dataset.images(index)
        side = patch * dataset.scale
        yield to_tensor(lr[:patch, :patch])[None], to_tensor(teacher[:side, :side])[None]


def _refuse_foreign(run: Path) -> None:
    """Refuse a folder with files of a run's names that no run has written: they would be replaced or deleted."""
    if any(run.glob("checkpoints/step-*/state.json")) or _is_config(run / "config.toml"):
        return
    found = next((path for pattern in (*FILES, *PARTS) for path in run.glob(pattern)), None)
    if found:
        raise DtkdError(
            f"{run} holds {found.relative_to(run)}, but no training run (no checkpoint, no config.toml of one): "
            "choose another folder"
        )


def _is_config(path: Path) -> bool:
    """Whether `save_config` may have written this file: it has a table for each component."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all(isinstance(tree.get(field.name), dict) for field in dataclasses.fields(RunSettings))


def _refuse_another_run(run: Path, state: TrainState, settings: RunSettings, dataset: CacheDataset) -> None:
    lines = difference(state.settings, config.to_dict(settings))
    changed = [line for line in lines if line.partition(":")[0] not in FREE_KEYS]
    if state.cache != dataset.fingerprint():
        changed.append(f"the cache {dataset.cache} holds other samples")
    if changed:
        raise DtkdError(
            f"{run} holds a run with other settings ({'; '.join(changed)}): "
            "use the same ones, another folder, or --fresh to delete it and start again"
        )
