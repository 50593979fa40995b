"""Train an embedded-class teacher on one's own photos: `dtkd train-teacher CORPUS OUT`.

B batch over all processes, h w LR patch, K coefficient channels (see haar_diffusion).

OUT/ holds config.json, log.jsonl, samples/step-*.png, checkpoints/step-*/ (the last two) and, when training ends,
teacher/, the diffusers-format folder that `--teacher OUT` takes.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline import corpus as corpora
from pipeline.degrade import Degradation, degrade
from pipeline.errors import DtkdError
from pipeline.files import atomic_write_json, fsync_dir
from pipeline.images import load_rgb, save, to_image, to_tensor
from pipeline.progress import ProgressEvent
from teacher_cache.haar_diffusion import HaarDiffusionPipeline, fold, upsample
from teacher_cache.patches import PatchDataset, generator

SNR_CAP = 10.0
"""Largest loss weight: clean-coefficient errors count 1 / (1 - alpha_bar), as in v-prediction, up to this."""


@dataclass(frozen=True)
class TeacherTraining:
    """Settings of a teacher training run."""

    steps: int = 60_000
    """Optimiser steps."""
    batch_size: int = 8
    """Patches a step over all processes; a multiple of the number of processes."""
    patch: int = 48
    """Side of the LR patch in pixels, a multiple of 8."""
    lr: float = 4e-4
    """Peak learning rate of AdamW: 500 steps of warm-up, constant, then linear to zero over `decay`."""
    decay: float = 0.3
    """Share of the steps over which the learning rate falls to zero."""
    ema: float = 0.999
    """Decay of the averaged weights, which are the ones that are saved as the teacher."""
    channels: tuple[int, ...] = (64, 96, 128)
    """UNet width at each resolution, finest first."""
    layers: int = 2
    """Residual blocks at each resolution."""
    whitening: float = 0.5
    """Power of each level's coefficient spread that it is divided by: 0 leaves pixel scale, 1 whitens fully."""
    mild_share: float = 0.4
    """Share of patches with a mild `real` degradation (a camera's blur and noise, light JPEG); bicubic: no effect."""
    hold_out: int = 4
    """Photos kept out of training for validation."""
    save_every: int = 1000
    """Steps between checkpoints with sample pictures and validation."""
    workers: int = 1
    """Processes that make patches, for each training process."""
    seed: int = 0
    """Decides patches, noise and initial weights."""


def train_teacher(
    corpus: str,
    out: Path,
    degradation: Degradation,
    settings: TeacherTraining,
    on_progress: Callable[[ProgressEvent], None] | None = None,
) -> Path:
    """Train until `settings.steps`, going on from OUT's last checkpoint. Returns the teacher's folder.

    Raises:
        DtkdError: unusable corpus, or OUT holds a run with other settings.
    """
    accelerator = Accelerator(mixed_precision="bf16" if _fast_bf16() else "no")
    side = settings.patch * degradation.scale
    photos = corpora.scan(corpus, min_side=side)
    train, val = corpora.split(photos.sources, settings.hold_out)
    _check_same_run(out, {"degradation": degradation.config(), "settings": asdict(settings)})
    data = PatchDataset(train, degradation, settings.patch, settings.mild_share, settings.seed)
    torch.manual_seed(settings.seed)
    pipe = _new_pipeline(settings, degradation.scale, data)
    unet, alpha_bar = pipe.unet, pipe.scheduler.alphas_cumprod.to(accelerator.device)
    ema = {k: v.detach().clone().to(accelerator.device) for k, v in unet.state_dict().items()}
    optimizer = torch.optim.AdamW(unet.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    first = _restore(out, pipe, optimizer, ema)
    pipe.unet, optimizer = accelerator.prepare(unet, optimizer)

    started, losses = time.monotonic(), []
    for step, (lr, hr) in enumerate(_batches(data, settings, first, accelerator), first):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * learning_rate(step, settings.steps, settings.decay)
        clean = pipe.encode(hr, lr)  # (B, K, h, w)
        t, noise = _draw(step, settings.seed, clean, accelerator)
        a = alpha_bar[t].view(-1, 1, 1, 1)
        with accelerator.autocast():
            predicted = pipe.predict(a.sqrt() * clean + (1 - a).sqrt() * noise, t, lr).float()
        weight = (1 / (1 - a)).clamp(max=SNR_CAP)
        loss = (weight * (predicted - clean).square()).mean()
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(pipe.unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        _average(ema, accelerator.unwrap_model(pipe.unet), min(settings.ema, (1 + step) / (10 + step)))
        losses.append(loss.detach())
        if (step + 1) % 50 == 0:
            value = torch.stack(losses).mean().item()
            if not math.isfinite(value):
                raise DtkdError(f"the loss is {value} at step {step + 1}: lower lr (now {settings.lr:g}) and run again")
            _log(out, {"step": step + 1, "loss": value, "seconds": round(time.monotonic() - started, 1)})
            losses = []
        if on_progress:
            on_progress(ProgressEvent(step + 1, settings.steps, "step", ""))
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            _save(out, step + 1, pipe, optimizer, ema, accelerator)
            _validate(out, step + 1, pipe, ema, val, degradation, accelerator)
    return _finish(out, pipe, ema, accelerator)


def learning_rate(step: int, total: int, decay: float) -> float:
    """Factor of the peak rate: 500 steps up, constant, then linear to zero over the last `decay` of the run."""
    return min(1.0, (step + 1) / 500, (total - step) / max(decay * total, 1))


def _draw(step: int, seed: int, clean: Tensor, accelerator: Accelerator) -> tuple[Tensor, Tensor]:
    """Timesteps (B,), spread evenly over the schedule within the global batch, and noise like `clean`."""
    local, world, rank = clean.shape[0], accelerator.num_processes, accelerator.process_index
    source = torch.Generator().manual_seed(int(generator(seed, "noise", step).integers(2**62)))
    spread = (torch.rand(1, generator=source) + torch.arange(local * world) / (local * world)) % 1
    noise = torch.randn((local * world, *clean.shape[1:]), generator=source)
    mine = slice(rank * local, (rank + 1) * local)
    return (spread[mine] * 1000).long().to(clean.device), noise[mine].to(clean.device)


def _batches(
    data: PatchDataset, settings: TeacherTraining, first: int, accelerator: Accelerator
) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's share of every batch from step `first` on."""
    world, rank, size = accelerator.num_processes, accelerator.process_index, settings.batch_size
    if size % world:
        raise DtkdError(f"batch_size must be a multiple of the {world} processes, got {size}")
    order = [range(step * size + rank, (step + 1) * size, world) for step in range(first, settings.steps)]
    loader = DataLoader(data, batch_sampler=order, num_workers=settings.workers, prefetch_factor=4 if settings.workers else None)  # type: ignore[arg-type]
    for lr, hr in loader:
        yield lr.to(accelerator.device), hr.to(accelerator.device)


def _new_pipeline(settings: TeacherTraining, scale: int, data: PatchDataset) -> HaarDiffusionPipeline:
    unet = UNet2DModel(
        in_channels=3 * scale**2 + 3,
        out_channels=3 * scale**2,
        block_out_channels=settings.channels,
        layers_per_block=settings.layers,
        down_block_types=("DownBlock2D",) * len(settings.channels),
        up_block_types=("UpBlock2D",) * len(settings.channels),
        add_attention=False,
        norm_num_groups=8,
    )
    scheduler = DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,
        set_alpha_to_one=True,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    return HaarDiffusionPipeline(unet, scheduler, scale, _band_scale(data, scale, settings.whitening))


def _band_scale(data: PatchDataset, scale: int, whitening: float, patches: int = 64) -> list[float]:
    """One divisor a level: the spread of its residual coefficients to the power `whitening`, LL's spread made 1."""
    levels = int(math.log2(scale))
    pairs = [data[-1 - i] for i in range(patches)]
    z = torch.cat([fold(hr[None] - upsample(lr[None], scale), levels) for lr, hr in pairs])
    bands, spread = z.split([3, *(9 * 4 ** (j - 1) for j in range(1, levels + 1))], 1), []
    for band in bands:
        spread.append(band.std().item())
    return [round(spread[0] * (s / spread[0]) ** whitening, 6) for s in spread]


def _average(ema: dict[str, Tensor], unet: torch.nn.Module, decay: float) -> None:
    with torch.no_grad():
        for name, value in unet.state_dict().items():
            ema[name].lerp_(value, 1 - decay)


def _fast_bf16() -> bool:
    """Whether the hardware multiplies bf16 matrices natively."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported())


def _save(
    out: Path,
    step: int,
    pipe: HaarDiffusionPipeline,
    optimizer: torch.optim.Optimizer,
    ema: dict[str, Tensor],
    accelerator: Accelerator,
) -> None:
    """Write checkpoints/step-N, complete or not at all, then drop all but the last two."""
    if not accelerator.is_main_process:
        return
    folder = out / "checkpoints" / f"step-{step:08d}"
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    raw = accelerator.unwrap_model(pipe.unet).state_dict()
    moments = optimizer.state_dict()["state"]
    tensors = {f"model.{k}": v.detach().cpu().contiguous() for k, v in raw.items()}
    tensors |= {f"ema.{k}": v.cpu().contiguous() for k, v in ema.items()}
    tensors |= {f"optimizer.{i}.{k}": v.cpu().contiguous() for i, m in moments.items() for k, v in m.items()}
    save_file(tensors, part / "training.safetensors", metadata={"step": str(step)})
    with open(part / "training.safetensors", "rb+") as file:
        os.fsync(file.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(part, folder)
    fsync_dir(folder.parent)
    for old in sorted(folder.parent.glob("step-*"))[:-2]:
        shutil.rmtree(old)


def _restore(
    out: Path, pipe: HaarDiffusionPipeline, optimizer: torch.optim.Optimizer, ema: dict[str, Tensor]
) -> int:
    """Load the last checkpoint, if there is one; returns the step to go on from."""
    folders = sorted((out / "checkpoints").glob("step-*"))
    if not folders:
        return 0
    tensors = load_file(folders[-1] / "training.safetensors")
    pick = lambda prefix: {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}  # noqa: E731
    pipe.unet.load_state_dict(pick("model."))
    for name, value in pick("ema.").items():
        ema[name].copy_(value)
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in pick("optimizer.").items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(folders[-1].name.removeprefix("step-"))


@torch.inference_mode()
def _validate(out, step, pipe, ema, val, degradation, accelerator) -> None:  # type: ignore[no-untyped-def]
    """Restore a crop of every held-out photo with the averaged weights; log PSNR, keep LR | restored | HR pictures."""
    if not accelerator.is_main_process:
        return
    raw = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    model, pipe.unet = pipe.unet, accelerator.unwrap_model(pipe.unet)
    pipe.unet.load_state_dict(ema)
    pipe.set_progress_bar_config(disable=True)
    rows, scores = [], []
    for index, source in enumerate(val):
        photo = load_rgb(source.path)
        y, x = (photo.shape[0] - 256) // 2, (photo.shape[1] - 256) // 2
        hr = photo[y : y + 256, x : x + 256]
        lr = to_tensor(degrade(hr, degradation, generator(0, "val", index)))[None].to(accelerator.device)
        sr = pipe(lr, [torch.Generator().manual_seed(index)])
        base = upsample(lr, degradation.scale).clamp(0, 1)
        truth = to_tensor(hr)[None].to(lr.device)
        scores.append([-10 * math.log10((im - truth).square().mean().item()) for im in (base, sr)])
        rows.append(np.concatenate([to_image(im[0].cpu()) for im in (base, sr, truth)], 1))
    (out / "samples").mkdir(exist_ok=True)
    save(out / "samples" / f"step-{step:08d}.png", np.concatenate(rows, 0))
    mean = np.mean(scores, 0)
    _log(out, {"step": step, "psnr_bicubic": float(mean[0]), "psnr_teacher": float(mean[1])})
    pipe.unet.load_state_dict(raw)
    pipe.unet = model


def _finish(out: Path, pipe: HaarDiffusionPipeline, ema: dict[str, Tensor], accelerator: Accelerator) -> Path:
    """Write the averaged weights as the diffusers folder OUT/teacher, in half precision to keep the file small."""
    teacher = out / "teacher"
    if accelerator.is_main_process:
        part = out / f".teacher.{os.getpid()}.part"
        shutil.rmtree(part, ignore_errors=True)
        pipe.unet = accelerator.unwrap_model(pipe.unet)
        pipe.unet.load_state_dict(ema)
        pipe.unet.half()
        pipe.save_pretrained(part)
        shutil.rmtree(teacher, ignore_errors=True)
        os.replace(part, teacher)
    accelerator.wait_for_everyone()
    return teacher


def _check_same_run(out: Path, config: dict) -> None:
    path = out / "config.json"
    config = json.loads(json.dumps(config))
    out.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        atomic_write_json(path, config)
    elif (old := json.loads(path.read_text())) != config:
        changed = [k for part in config for k in config[part] if old.get(part, {}).get(k) != config[part][k]]
        raise DtkdError(f"{out} holds a run with other {', '.join(changed)}: name another folder, or remove this one")


def _log(out: Path, row: dict) -> None:
    with open(out / "log.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
