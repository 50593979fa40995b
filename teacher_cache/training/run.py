"""What a teacher's run begins from, and what it leaves in its folder (`pipeline.training.run_folder`).

OUT/samples/step-*.png     held-out crops: bicubic, restored, true
OUT/checkpoints/           the newest ones (`teacher_cache.training.state`)
OUT/teacher/               at the end: averaged weights in diffusers format, half precision; `--teacher OUT` takes it
"""

import copy
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline import config
from pipeline.corpus import Source
from pipeline.degrade import degrade
from pipeline.images import ImageError, load_rgb, save, to_image, to_tensor
from pipeline.schema import digest
from pipeline.system.files import atomic_write_json, ensure_dir, fsync_dir, read_json, sample_file
from pipeline.training import checkpoint
from pipeline.training.run_folder import RunLayout
from pipeline.training.validation import finite_psnr_y
from teacher_cache.teachers.embedded import TRAINING_PHOTOS
from teacher_cache.teachers.haar_diffusion import upsample
from teacher_cache.training.patches import generator
from teacher_cache.training.settings import FREE_KEYS, SamplingSettings, TeacherRunSettings
from teacher_cache.training.state import (
    KIND,
    TeacherState,
    TeacherTensors,
    flat_scale,
    new_networks,
    new_tensors,
    pipeline_of,
    read_state,
    restore,
    save_tensors,
    start_from,
)

TEACHER, SAMPLES = "teacher", "samples"
LAYOUT = RunLayout(
    KIND, TeacherRunSettings, products=(TEACHER, f".{TEACHER}.*.part", f"{SAMPLES}/step-*.png"), free_keys=FREE_KEYS
)
_VAL_SIDE = 256  # HR pixels


def begin(
    out: Path, settings: TeacherRunSettings, photos: Sequence[Source], device: torch.device
) -> tuple[TeacherTensors, TeacherState]:
    """What a run starts from: its newest checkpoint, else new weights and step 0.

    Raises:
        DtkdError: the folder holds a run with other settings or photos, its checkpoint is damaged, or `train.init` does
            not fit.
    """
    t, scale = settings.train, settings.degradation.scale
    data = digest([settings.degradation.config(), [[photo.id, photo.width, photo.height] for photo in photos]])
    latest = checkpoint.newest(out)
    torch.manual_seed(t.seed)
    networks, band_scale = new_networks(settings.model, scale), flat_scale(scale)
    if latest is None:
        if t.init:
            band_scale = start_from(networks, t.init, scale)
        state = TeacherState(settings=config.to_dict(settings), data=data, band_scale=band_scale)
        return new_tensors(networks, t, device), state
    state = read_state(latest)
    LAYOUT.refuse_another(out, state, settings, data, "the photos, or how they are degraded, are other ones")
    state.settings = config.to_dict(settings)
    tensors = new_tensors(networks, t, device)
    restore(latest, tensors)
    return tensors, state


def save_run(out: Path, tensors: TeacherTensors, state: TeacherState, keep: int) -> None:
    """Write a checkpoint.

    Raises:
        DtkdError: the disk is full or fails; the checkpoint before is whole.
    """
    with checkpoint.saving(out, state.step):
        save_tensors(out, tensors, state, keep)


@torch.inference_mode()
def validate(
    out: Path, ema: nn.ModuleDict, state: TeacherState, settings: TeacherRunSettings, held_out: Sequence[Source]
) -> dict[str, float]:
    """Restore a crop of every held-out photo with the averaged weights.

    Writes OUT/samples/step-N.png (rows: bicubic, restored, true), and keeps and returns the mean psnr_y of restored and
    bicubic. Photos that cannot be decoded are left out.
    """
    pipe = pipeline_of(ema, settings, state.band_scale)
    scale = settings.degradation.scale
    multiple = scale * 2 ** (len(settings.model.channels) - 1)  # what the networks divide by
    rows, scores = [], []
    for index, source in enumerate(held_out):
        try:
            hr = _centre(load_rgb(source.path), multiple)
        except ImageError:
            continue
        lr = to_tensor(degrade(hr, settings.degradation, generator(0, "validation", index)))[None].to(pipe.device)
        base = to_image(upsample(lr, scale)[0].clamp(0, 1).cpu())
        restored = to_image(pipe(lr, [torch.Generator().manual_seed(index)])[0].cpu())
        scores.append([finite_psnr_y(image, hr, scale) for image in (restored, base)])
        rows.append(np.concatenate((base, restored, hr), 1))
    if not rows:
        state.psnr_y = state.psnr_y_bicubic = None
        return {}
    psnr, psnr_bicubic = np.mean(scores, 0).tolist()
    state.psnr_y, state.psnr_y_bicubic = psnr, psnr_bicubic
    with checkpoint.saving(out, state.step):
        _save_rows(ensure_dir(out / SAMPLES) / f"step-{state.step:08d}.png", rows)
    return {"val_psnr_y": psnr, "val_psnr_y_bicubic": psnr_bicubic}


def is_exported(out: Path, sampling: SamplingSettings) -> bool:
    """Whether OUT/teacher is there, with these settings of sampling."""
    path = out / TEACHER / "model_index.json"
    index = read_json(path) if path.is_file() else {}
    return (index.get("steps"), index.get("temperature")) == (sampling.steps, sampling.temperature)


def export(
    out: Path, ema: nn.ModuleDict, state: TeacherState, settings: TeacherRunSettings, photos: Sequence[Source]
) -> Path:
    """Write the averaged weights as the diffusers folder OUT/teacher, in half precision to keep the file small.

    Beside them stand digests of the `photos` that it was trained on, so that nobody judges it by one of them.
    """
    pipe = pipeline_of(copy.deepcopy(ema).half(), settings, state.band_scale)
    for left in out.glob(f".{TEACHER}.*.part"):  # of a killed process
        shutil.rmtree(left, ignore_errors=True)
    part = out / f".{TEACHER}.{secrets.token_hex(4)}.part"
    pipe.save_pretrained(part)
    seen = sorted(sample_file(photo.path) for photo in photos)
    atomic_write_json(part / TRAINING_PHOTOS, {"photos": seen})
    shutil.rmtree(out / TEACHER, ignore_errors=True)
    os.replace(part, out / TEACHER)
    fsync_dir(out)
    return out / TEACHER


def _save_rows(path: Path, rows: Sequence[np.ndarray]) -> None:
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]
    save(path, np.concatenate(rows))


def _centre(photo: np.ndarray, multiple: int) -> np.ndarray:
    """A crop of at most _VAL_SIDE from the middle, sides multiples of `multiple`."""
    height, width = (min(_VAL_SIDE, side) // multiple * multiple for side in photo.shape[:2])
    y, x = (photo.shape[0] - height) // 2, (photo.shape[1] - width) // 2
    return photo[y : y + height, x : x + width]
