"""The folder of a teacher training: what a run begins from, what it saves, how it is judged on the way.

OUT/config.json            degradation, settings, and which photos
OUT/log.jsonl tensorboard/ curves (`pipeline.training.log`)
OUT/samples/step-*.png     held-out crops: bicubic, restored, true
OUT/checkpoints/           the two newest ones, to go on from: training.safetensors state.json
OUT/teacher/               at the end: averaged weights in diffusers format, half precision; `--teacher OUT` takes it
"""

import copy
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import Tensor

from pipeline.corpus import Source
from pipeline.degradation import Degradation
from pipeline.degrade import degrade
from pipeline.fidelity import psnr_y
from pipeline.images import ImageError, load_rgb, save, to_image, to_tensor
from pipeline.schema import difference
from pipeline.system.errors import DtkdError
from pipeline.system.files import atomic_write_bytes, atomic_write_json, ensure_dir, fsync_dir, read_json
from pipeline.training.run_folder import newest_checkpoint, write_checkpoint
from teacher_cache.teachers import load_haar
from teacher_cache.teachers.haar_diffusion import HaarDiffusionPipeline, band_channels, upsample
from teacher_cache.training.patches import PatchDataset, generator

TRAIN_TIMESTEPS = 1000
TEACHER = "teacher"
_VAL_SIDE = 256  # HR pixels
_FREE = ("workers", "save_every", "sampling_steps", "temperature")  # may change when a run goes on


@dataclass(frozen=True)
class TeacherTraining:
    """Settings of a teacher training run."""

    steps: int = 60_000
    """Optimiser steps, the predictor's included."""
    predictor_share: float = 0.5
    """Share of the steps that train the predictor; the refining network is trained after it, with it frozen."""
    batch_size: int = 8
    """Patches a step over all processes; a multiple of the number of processes."""
    patch: int = 48
    """Side of the LR patch in pixels, a multiple of 2 to the number of `channels` less one."""
    lr: float = 5e-4
    """Highest learning rate of AdamW: a warm-up, constant, then linear to zero over `decay`, for either network."""
    decay: float = 0.3
    """Share of a network's steps over which its learning rate falls to zero."""
    ema: float = 0.999
    """Decay of the averaged weights, which are the ones that are saved as the teacher."""
    init: str = ""
    """Teacher whose weights to start from, `embedded` or a folder; new weights where empty."""
    channels: tuple[int, ...] = (64, 96, 128)
    """Width of both networks at each resolution, finest first; multiples of 8."""
    layers: int = 2
    """Residual blocks at each resolution."""
    whitening: float = 0.5
    """Power of each level's coefficient spread that it is divided by: 0 leaves pixel scale, 1 whitens fully."""
    sampling_steps: int = 10
    """Default number of network evaluations that the teacher refines with."""
    temperature: float = 1.0
    """Standard deviation of its initial noise: less than 1 trades texture for cleanness."""
    bf16: bool = True
    """Compute in bf16 where the hardware does so natively; weights and loss are fp32 always."""
    hold_out: int = 4
    """Photos kept out of training for validation."""
    save_every: int = 1000
    """Steps between checkpoints, each with a validation."""
    workers: int = 1
    """Processes that make patches, for each training process."""
    seed: int = 0
    """Decides patches, noise and initial weights."""

    def __post_init__(self) -> None:
        """Refuse values that no run can have."""
        for name in ("steps", "batch_size", "patch", "layers", "save_every", "sampling_steps"):
            if getattr(self, name) < 1:
                raise DtkdError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("predictor_share", "decay", "ema", "whitening"):
            if not 0 <= getattr(self, name) <= 1:
                raise DtkdError(f"{name} must be within 0..1, got {getattr(self, name)}")
        if not self.channels or any(c < 8 or c % 8 for c in self.channels):
            raise DtkdError(f"channels must be multiples of 8, got {self.channels}")
        step = 2 ** (len(self.channels) - 1)
        if self.patch % step:
            raise DtkdError(f"patch must be a multiple of {step} for {len(self.channels)} channels, got {self.patch}")
        if min(self.workers, self.hold_out, self.seed, self.temperature) < 0 or self.lr <= 0:
            raise DtkdError("workers, hold_out, seed and temperature must not be negative, and lr must be positive")


@dataclass
class TeacherState:
    """Everything that a run carries from step to step."""

    pipe: HaarDiffusionPipeline
    optimizer: torch.optim.Optimizer
    ema: dict[str, Tensor]
    step: int = 0
    seconds: float = 0.0
    """Wall-clock seconds of training, interruptions left out."""
    psnr_y: float | None = None
    """Latest validation, dB."""
    psnr_y_bicubic: float | None = None
    """Bicubic upscaling of the same crops."""
    validated: int = 0
    """Step of that validation."""

    @torch.no_grad()
    def average(self, network: str, decay: float) -> None:
        """Take one step of the moving average of the weights of `predictor` or `unet`."""
        for name, value in getattr(self.pipe, network).state_dict().items():
            self.ema[f"{network}.{name}"].lerp_(value, 1 - decay)


def begin(
    out: Path, settings: TeacherTraining, degradation: Degradation, photos: Sequence[Source], device: torch.device
) -> TeacherState:
    """What a run starts from: its newest checkpoint, else new weights and step 0.

    Raises:
        DtkdError: the folder holds a run with other settings or photos, its checkpoint is damaged, or `settings.init`
            does not fit.
    """
    listed = json.dumps([(photo.id, photo.width, photo.height) for photo in photos])
    corpus = {"photos": len(photos), "digest": hashlib.blake2b(listed.encode(), digest_size=8).hexdigest()}
    _check_same_run(out, {"degradation": degradation.config(), "settings": asdict(settings), "corpus": corpus})
    torch.manual_seed(settings.seed)
    latest = newest_checkpoint(out)
    saved = read_json(latest / "state.json") if latest else {}
    flat = [[1.0, 1.0]] * degradation.scale.bit_length()
    pipe = _new_pipeline(settings, degradation.scale, saved.pop("band_scale", flat)).to(device)
    if settings.init and not latest:
        _start_from(pipe, settings.init)
    weights = [*pipe.predictor.train().parameters(), *pipe.unet.train().parameters()]
    optimizer = torch.optim.AdamW(weights, lr=settings.lr, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    state = TeacherState(pipe, optimizer, {k: v.detach().clone() for k, v in _weights(pipe).items()}, **saved)
    if latest:
        _restore(latest / "training.safetensors", state)
    return state


def checkpoint(out: Path, state: TeacherState) -> None:
    """Write the checkpoint of this step.

    Raises:
        DtkdError: the disk is full or fails; the checkpoint before is whole.
    """

    def fill(folder: Path) -> None:
        tensors = {f"model/{k}": v for k, v in _weights(state.pipe).items()}
        tensors |= {f"ema/{k}": v for k, v in state.ema.items()}
        moments = state.optimizer.state_dict()["state"]
        tensors |= {f"optimizer/{i}/{k}": v for i, row in moments.items() for k, v in row.items()}
        data = safetensors.torch.save({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
        atomic_write_bytes(folder / "training.safetensors", data)
        _write_about(folder, state)

    with _saving(out, state.step):
        write_checkpoint(out, state.step, fill, keep=2)


@torch.inference_mode()
def validate(out: Path, state: TeacherState, val: Sequence[Source], degradation: Degradation) -> dict[str, float]:
    """Restore a crop of every held-out photo with the averaged weights, once the checkpoint of this step is there.

    Writes OUT/samples/step-N.png (rows: bicubic, restored, true), adds the mean psnr_y of restored and bicubic to the
    checkpoint and returns them. Photos that cannot be decoded are left out.
    """
    pipe = _averaged(state)
    multiple = degradation.scale * 2 ** (len(pipe.unet.config["block_out_channels"]) - 1)  # what the networks divide by
    rows, scores = [], []
    for index, source in enumerate(val):
        try:
            hr = _centre(load_rgb(source.path), multiple)
        except ImageError:
            continue
        lr = to_tensor(degrade(hr, degradation, generator(0, "validation", index)))[None].to(pipe.device)
        base = to_image(upsample(lr, degradation.scale)[0].clamp(0, 1).cpu())
        restored = to_image(pipe(lr, [torch.Generator().manual_seed(index)])[0].cpu())
        scores.append([psnr_y(image, hr, degradation.scale) for image in (restored, base)])
        rows.append(np.concatenate((base, restored, hr), 1))
    state.psnr_y, state.psnr_y_bicubic = np.mean(scores, 0).tolist() if scores else (None, None)
    state.validated = state.step
    with _saving(out, state.step):
        if rows:
            _save_rows(ensure_dir(out / "samples") / f"step-{state.step:08d}.png", rows)
        if latest := newest_checkpoint(out):
            _write_about(latest, state)
    values = {"val_psnr_y": state.psnr_y, "val_psnr_y_bicubic": state.psnr_y_bicubic}
    return {name: value for name, value in values.items() if value is not None}


def _save_rows(path: Path, rows: Sequence[np.ndarray]) -> None:
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]
    save(path, np.concatenate(rows))


def _write_about(folder: Path, state: TeacherState) -> None:
    about = {name: getattr(state, name) for name in ("step", "seconds", "psnr_y", "psnr_y_bicubic", "validated")}
    atomic_write_json(folder / "state.json", {**about, "band_scale": state.pipe.config["band_scale"]})


@contextmanager
def _saving(out: Path, step: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DtkdError(
            f"cannot save step {step} in {out} ({error.strerror}): make room, then the same command goes on from the "
            "newest checkpoint"
        ) from error


def is_exported(out: Path, state: TeacherState) -> bool:
    """Whether OUT/teacher is there, with the run's present settings of sampling."""
    path = out / TEACHER / "model_index.json"
    index = read_json(path) if path.is_file() else {}
    return all(index.get(key) == state.pipe.config[key] for key in ("steps", "temperature"))


def export(out: Path, state: TeacherState) -> Path:
    """Write the averaged weights as the diffusers folder OUT/teacher, in half precision to keep the file small."""
    pipe = _averaged(state)
    pipe.predictor.half()
    pipe.unet.half()
    for left in out.glob(f".{TEACHER}.*.part"):  # of a killed process
        shutil.rmtree(left, ignore_errors=True)
    part = out / f".{TEACHER}.{secrets.token_hex(4)}.part"
    pipe.save_pretrained(part)
    shutil.rmtree(out / TEACHER, ignore_errors=True)
    os.replace(part, out / TEACHER)
    fsync_dir(out)
    return out / TEACHER


def start_refining(state: TeacherState, data: PatchDataset, whitening: float, patches: int = 96) -> None:
    """Freeze the predictor at its averaged weights and measure what it leaves: the refinement's band scales.

    A divisor is the residual's spread in luma or colour of a level to the power `whitening`, normalised so that the
    largest spread becomes 1. Measured on patches of negative indices, which training never sees.
    """
    pipe = state.pipe
    pipe.predictor.load_state_dict(_below(state.ema, "predictor."))
    pipe.predictor.requires_grad_(False).eval()
    residuals = []
    for start in range(-patches, 0, 8):
        lr, hr = (
            torch.stack(images).to(pipe.device) for images in zip(*(data[start + i] for i in range(8)), strict=True)
        )
        with torch.inference_mode():
            residuals.append((pipe.encode(hr, lr) - pipe.predict(lr)).cpu())
    spread = []
    for band in torch.cat(residuals).split(band_channels(pipe.levels), 1):
        third = band.shape[1] // 3
        spread.append([band[:, :third].std().item(), band[:, third:].std().item()])
    top = max(max(pair) for pair in spread)
    pipe.register_to_config(band_scale=[[round(top * (s / top) ** whitening, 6) for s in pair] for pair in spread])


def _averaged(state: TeacherState) -> HaarDiffusionPipeline:
    """The pipeline with a copy of the averaged weights."""
    predictor, unet = copy.deepcopy(state.pipe.predictor).eval(), copy.deepcopy(state.pipe.unet).eval()
    predictor.load_state_dict(_below(state.ema, "predictor."))
    unet.load_state_dict(_below(state.ema, "unet."))
    keep = {k: state.pipe.config[k] for k in ("scale", "band_scale", "temperature", "steps")}
    return HaarDiffusionPipeline(predictor, unet, state.pipe.scheduler, **keep)


def _weights(pipe: HaarDiffusionPipeline) -> dict[str, Tensor]:
    """Weights of both networks, `predictor.*` and `unet.*`."""
    return {f"{n}.{k}": v for n in ("predictor", "unet") for k, v in getattr(pipe, n).state_dict().items()}


def _new_pipeline(settings: TeacherTraining, scale: int, band_scale: list[list[float]]) -> HaarDiffusionPipeline:
    coefficients = 3 * scale**2
    scheduler = DDIMScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    predictor, unet = _network(settings, 3, coefficients), _network(settings, 2 * coefficients + 3, coefficients)
    return HaarDiffusionPipeline(
        predictor, unet, scheduler, scale, band_scale, settings.temperature, settings.sampling_steps
    )


def _start_from(pipe: HaarDiffusionPipeline, init: str) -> None:
    given = load_haar(init)
    if given.scale != pipe.scale:
        raise DtkdError(f"init={init} is a x{given.scale} teacher, not x{pipe.scale}")
    for name in ("predictor", "unet"):
        ours, theirs = (getattr(p, name).config for p in (pipe, given))
        for setting, key in (("channels", "block_out_channels"), ("layers", "layers_per_block")):
            if json.dumps(ours[key]) != json.dumps(theirs[key]):  # tuple or list
                raise DtkdError(f"init={init} has {setting}={theirs[key]}, got {ours[key]}: set them alike")
        getattr(pipe, name).load_state_dict(getattr(given, name).state_dict())
    pipe.register_to_config(band_scale=given.config["band_scale"])


def _network(settings: TeacherTraining, inputs: int, outputs: int) -> UNet2DModel:
    """A UNet that begins by answering zero: bicubic for the predictor, the bare prediction for the refinement."""
    network = UNet2DModel(
        in_channels=inputs,
        out_channels=outputs,
        block_out_channels=settings.channels,
        layers_per_block=settings.layers,
        down_block_types=("DownBlock2D",) * len(settings.channels),
        up_block_types=("UpBlock2D",) * len(settings.channels),
        add_attention=False,
        norm_num_groups=8,
    )
    for parameter in network.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    return network


def _restore(path: Path, state: TeacherState) -> None:
    try:
        tensors = safetensors.torch.load_file(path, device=str(state.pipe.device))
    except (OSError, safetensors.SafetensorError) as error:
        raise DtkdError(
            f"{path} is damaged ({error!r:.100}): delete its folder to go on from the one before"
        ) from error
    for name in ("predictor", "unet"):
        getattr(state.pipe, name).load_state_dict(_below(tensors, f"model/{name}."))
    state.ema = _below(tensors, "ema/")
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in _below(tensors, "optimizer/").items():
        index, _, quantity = name.partition("/")
        moments.setdefault(int(index), {})[quantity] = value
    groups = state.optimizer.state_dict()["param_groups"]
    state.optimizer.load_state_dict({"state": moments, "param_groups": groups})


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _check_same_run(out: Path, config: dict[str, Any]) -> None:
    config = json.loads(json.dumps(config))  # tuples to lists, as in the file
    if not (out / "config.json").exists():
        atomic_write_json(out / "config.json", config)
        return
    begun = read_json(out / "config.json")
    begun.setdefault("corpus", config["corpus"])  # runs from before it was written down
    changed = [row for row in difference(begun, config) if row.partition(":")[0].removeprefix("settings.") not in _FREE]
    if changed:
        raise DtkdError(
            f"{out} holds a run with other settings or photos ({'; '.join(changed)}): use the same ones, or "
            "another folder"
        )


def _centre(photo: np.ndarray, multiple: int) -> np.ndarray:
    """A crop of at most _VAL_SIDE from the middle, sides multiples of `multiple`."""
    height, width = (min(_VAL_SIDE, side) // multiple * multiple for side in photo.shape[:2])
    y, x = (photo.shape[0] - height) // 2, (photo.shape[1] - width) // 2
    return photo[y : y + height, x : x + width]
