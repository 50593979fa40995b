"""What a student's run begins from, and what it leaves in its folder (`pipeline.training.run_folder`).

RUN/student.safetensors    averaged weights at the last save
RUN/best.safetensors       averaged weights at the best validation by train.best_by (`student.training.validation`)
RUN/checkpoints/           the newest ones (`student.training.state`)
RUN/samples/               what the averaged weights make of held-out pictures (`student.training.strips`)
RUN/nonfinite/             steps that were not finite (`student.training.guard`)
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline import config
from pipeline.images import to_tensor
from pipeline.system.errors import DtkdError
from pipeline.training import checkpoint
from pipeline.training.run_folder import RunLayout
from student import networks
from student.checkpoint import load, save
from student.loss import measure, scale_weights
from student.model import SwinIR
from student.stream import CacheDataset, crop_and_flip
from student.training.settings import FREE_KEYS, RunSettings
from student.training.state import KIND, Training, TrainState, new_training, read_state, restore, save_training

CALIBRATION_SAMPLES = 64  # of the cache, on which the group weights are scaled
STUDENT, BEST = "student.safetensors", "best.safetensors"
LAYOUT = RunLayout(
    KIND, RunSettings, products=(STUDENT, BEST, "nonfinite/step-*", "samples/step-*"), free_keys=FREE_KEYS
)


def begin(run: Path, settings: RunSettings, dataset: CacheDataset, device: torch.device) -> tuple[Training, TrainState]:
    """What a run starts from: its newest checkpoint, else new tensors and step 0.

    Raises:
        DtkdError: the folder holds a run with other settings or of another cache.
    """
    latest = checkpoint.newest(run)
    torch.manual_seed(settings.train.seed)
    student = settings.model.build()
    if latest is None:
        if settings.train.init:
            start_from(student, settings.train.init)
        return new_training(student, settings.train, device), _new_state(settings, dataset)
    state = read_state(latest)
    other_cache = f"the cache {dataset.cache} holds other samples"
    LAYOUT.refuse_another(run, state, settings, dataset.fingerprint(), other_cache)
    state.settings, state.teacher = config.to_dict(settings), dataset.teacher_origin
    training = new_training(student, settings.train, device)
    restore(latest, training)
    return training, state


def refuse_other_scale(settings: RunSettings, dataset: CacheDataset) -> None:
    """Make sure that network and cache go together.

    Raises:
        DtkdError: the cache has another scale.
    """
    if settings.model.scale != dataset.scale:
        raise DtkdError(
            f"model.scale is {settings.model.scale}, but {dataset.cache} holds x{dataset.scale} pairs: "
            f"set model.scale={dataset.scale}, or make a cache with --scale {settings.model.scale}"
        )


def save_run(run: Path, training: Training, state: TrainState, keep: int) -> None:
    """Export the averaged weights, then write a checkpoint: a run that is finished has its student.

    Raises:
        DtkdError: the disk is full or fails; the checkpoint before is whole.
    """
    with checkpoint.saving(run, state.step):
        export(run / STUDENT, training.ema, state)
        save_training(run, training, state, keep)


def export(path: Path, ema: SwinIR, state: TrainState) -> None:
    """Write averaged weights with what made them, and how good they were when they were validated last."""
    made = {"step": state.step, "validation": state.validation, "precision": state.precision}
    made["compiled"] = state.compiled
    if path.name == BEST and state.best:
        made["best_by"] = state.best.metric
    save(ema, path, {**made, "settings": state.settings, "cache": state.data, "teacher": state.teacher})


def start_from(student: SwinIR, init: str) -> None:
    """Give a network the weights of a file, or of the shipped student of its kind where `init` is `shipped`.

    Raises:
        DtkdError: there is none, or it is another network.
    """
    path = _shipped(student.preset, student.scale) if init == "shipped" else Path(init)
    loaded = load(path)
    if (loaded.preset, loaded.scale) != (student.preset, student.scale):
        raise DtkdError(
            f"train.init={init} is a {loaded.preset} x{loaded.scale} network, the run trains {student.preset} "
            f"x{student.scale}: set model.preset and model.scale to match"
        )
    student.load_state_dict({**student.state_dict(), **dict(loaded.named_parameters())})


def _shipped(preset: str, scale: int) -> Path:
    path = networks.shipped_file(f"{preset}-x{scale}")
    if not path.exists():
        there = networks.shipped_names()
        raise DtkdError(f"no {preset} student for x{scale} is shipped (there are: {there}): leave train.init empty")
    return path


def _new_state(settings: RunSettings, dataset: CacheDataset) -> TrainState:
    pairs = calibration_pairs(dataset, settings.train.patch, settings.train.seed)
    weights = scale_weights(settings.loss, measure(pairs, settings.loss.levels, settings.loss.wavelet))
    how, data = config.to_dict(settings), dataset.fingerprint()
    return TrainState(settings=how, data=data, weights=weights, teacher=dataset.teacher_origin)


def calibration_pairs(dataset: CacheDataset, patch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(lr, teacher) patches, cut at random as training cuts them, of samples spread evenly over the cache."""
    for index in np.unique(np.linspace(0, len(dataset) - 1, CALIBRATION_SAMPLES).astype(int)).tolist():
        rng = np.random.default_rng([seed, index, 0, 2])  # the stream's own draws end in 1
        lr, _, teacher = crop_and_flip(dataset.images(index), patch, dataset.scale, rng)
        yield to_tensor(lr)[None], to_tensor(teacher)[None]
