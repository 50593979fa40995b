"""Train an embedded-class teacher on one's own photos: `dtkd train-teacher CORPUS OUT`.

B batch over all processes, h w LR patch, s scale, K coefficient channels (see `haar_diffusion`).

A run goes on after any interruption: patches and noise are functions of the step, everything else is in the checkpoint.
"""

import math
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader

from pipeline import corpus as corpora
from pipeline.degradation import Degradation
from pipeline.system.device import fast_bf16, keep_freed_memory
from pipeline.system.errors import INTERRUPTED, DtkdError
from pipeline.system.progress import OnProgress, ProgressEvent, clock_text
from pipeline.system.results import plain
from pipeline.system.stop import StopSignals
from pipeline.system.words import decibels, plural
from pipeline.training.log import RunLog
from pipeline.training.run_folder import claim
from teacher_cache.teachers.haar_diffusion import HaarDiffusionPipeline
from teacher_cache.training import run as folder
from teacher_cache.training.patches import PatchDataset, generator
from teacher_cache.training.run import TRAIN_TIMESTEPS, TeacherState, TeacherTraining

__all__ = ["TeacherTraining", "TeacherTrainingResult", "learning_rate", "train_teacher"]

SNR_CAP = 5.0
"""Largest loss weight: errors of the clean coefficients count 1 / (1 - alpha_bar), as in v-prediction, up to this."""
WARMUP = 200  # steps, of either network
LOG_EVERY = 50  # steps


@dataclass(frozen=True)
class TeacherTrainingResult:
    """How a run stands when `train_teacher` returns."""

    teacher: Path
    """Folder that `--teacher` takes, there when the run is finished."""
    step: int
    steps: int
    """Planned ones: below these, a signal has stopped the run, and it can go on."""
    reused: bool
    """The run had been finished before; nothing was trained now."""
    psnr_y: float | None
    """Of the restored held-out crops at the last validation, dB."""
    psnr_y_bicubic: float | None
    """Of bicubic upscaling of the same LR crops."""
    seconds: float
    """Wall-clock seconds of training, earlier processes of the same run included."""
    skipped: tuple[corpora.Skipped, ...]
    """Files of the corpus that cannot be used, and why."""

    @property
    def finished(self) -> bool:
        """Whether all planned steps are done."""
        return self.step >= self.steps

    @property
    def failure(self) -> str | None:
        """See `pipeline.system.results.Result`."""
        return None if self.finished else INTERRUPTED

    def lines(self) -> list[str]:
        """For people: what could not be used, how far the run is, how good its teacher is."""
        time_taken = f"{clock_text(self.seconds)} of training"
        state = "finished before, reused as it is" if self.reused else time_taken
        lines = [f"skipped {item.id}: {item.reason}" for item in self.skipped]
        lines.append(f"{self.teacher.parent}: {self.step} of {plural(self.steps, 'step')}, {state}")
        if self.psnr_y is not None and self.psnr_y_bicubic is not None:
            ours, bicubic = decibels(self.psnr_y), decibels(self.psnr_y_bicubic)
            lines.append(f"psnr_y {ours} on held-out photos, bicubic {bicubic}")
        return [*lines, f"teacher: {self.teacher}"]

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return {**plain(self), "finished": self.finished}


def train_teacher(
    corpus: str,
    out: Path,
    degradation: Degradation,
    settings: TeacherTraining,
    on_progress: OnProgress | None = None,
) -> TeacherTrainingResult:
    """Train a teacher, or go on with a run that was interrupted; a finished run is only reported.

    Ctrl-C and SIGTERM save a checkpoint and return. Under `accelerate launch` every process calls this.

    Args:
        corpus: folder of photos, or `sample`.
        out: folder of the run (see `teacher_run`).
        degradation: what the teacher learns to undo, `bicubic` or `real`; its scale (2, 4 or 8) becomes the teacher's.
        settings: of the run; going on with other ones is refused, the differences named.
        on_progress: called after every step, on the main process.

    Raises:
        DtkdError: unusable corpus or settings, another run in the folder, or a loss or gradient that is not finite.
    """
    if degradation.scale not in (2, 4, 8):
        raise DtkdError(f"a teacher of this kind is made for scale 2, 4 or 8, got {degradation.scale}")
    bf16 = settings.bf16 and fast_bf16("cuda" if torch.cuda.is_available() else "cpu")
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no")
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    photos = corpora.scan(corpus, min_side=settings.patch * degradation.scale)
    split = _split(photos.sources, settings.hold_out)
    data = PatchDataset(split.train, degradation, settings.patch, settings.seed)
    with ExitStack() as stack:
        with accelerator.main_process_first():
            if accelerator.is_main_process:
                stack.enter_context(claim(out))
            state = folder.begin(out, settings, degradation, photos.sources, accelerator.device)
        reused = state.step >= settings.steps
        if not reused:
            _loop(out, settings, data, split.val, state, accelerator, on_progress)
        if accelerator.is_main_process and state.step >= settings.steps:
            if split.val and state.validated < state.step:  # a signal or a kill came between checkpoint and validation
                with RunLog(out, state.step) as log:
                    _log(log, state.step, folder.validate(out, state, split.val, degradation))
            if not folder.is_exported(out, state):
                folder.export(out, state)
        accelerator.wait_for_everyone()
    teacher = out / folder.TEACHER
    return TeacherTrainingResult(
        teacher, state.step, settings.steps, reused, state.psnr_y, state.psnr_y_bicubic, state.seconds, photos.skipped
    )


def _loop(
    out: Path,
    settings: TeacherTraining,
    data: PatchDataset,
    val: tuple[corpora.Source, ...],
    state: TeacherState,
    accelerator: Accelerator,
    on_progress: OnProgress | None,
) -> None:
    networks = {name: accelerator.prepare_model(getattr(state.pipe, name)) for name in ("predictor", "unet")}
    main, clock, losses = accelerator.is_main_process, time.monotonic() - state.seconds, []
    with RunLog(out, state.step) if main else nullcontext() as log, StopSignals() as signals:
        for lr, hr in _batches(data, settings, state.step, accelerator):
            phase = _phase(state.step, settings)
            if phase.network == "unet" and phase.step == 0:
                folder.start_refining(state, data, settings.whitening)
            for group in state.optimizer.param_groups:
                group["lr"] = settings.lr * learning_rate(phase.step, phase.steps, settings.decay)

            with accelerator.autocast():
                if phase.network == "predictor":
                    loss = prediction_loss(state.pipe, lr, hr, networks["predictor"])
                else:
                    t, noise = _draw(state.step, settings.seed, lr, state.pipe, accelerator)
                    loss = refinement_loss(state.pipe, lr, hr, t, noise, networks["unet"])
            accelerator.backward(loss)
            norm = torch.nn.utils.clip_grad_norm_(getattr(state.pipe, phase.network).parameters(), 1.0)
            state.optimizer.step()
            state.optimizer.zero_grad()
            state.average(phase.network, min(settings.ema, (1 + phase.step) / (10 + phase.step)))

            losses.append(torch.stack((loss.detach(), norm)))
            state.step, state.seconds = state.step + 1, time.monotonic() - clock
            stop = _any(signals.requested, accelerator)
            save = stop or state.step == settings.steps or state.step % settings.save_every == 0
            if save or state.step % LOG_EVERY == 0:
                mean, losses = _finite_mean(losses, state.step, settings.lr, accelerator), []
                _log(log, state.step, {"loss": mean, "seconds": round(state.seconds, 1)})
            if save and main:
                folder.checkpoint(out, state)
                if val and not stop:
                    _log(log, state.step, folder.validate(out, state, val, data.degradation))
            if on_progress and main:
                on_progress(ProgressEvent(state.step, settings.steps, "steps", _note(state)))
            if stop:
                return


class _Phase(NamedTuple):
    network: Literal["predictor", "unet"]
    step: int
    """Finished steps of this network."""
    steps: int
    """Planned ones."""


def _phase(step: int, settings: TeacherTraining) -> _Phase:
    """Which network the next step trains: first the predictor, then the refining one."""
    first = round(settings.predictor_share * settings.steps)
    return _Phase("predictor", step, first) if step < first else _Phase("unet", step - first, settings.steps - first)


def prediction_loss(pipe: HaarDiffusionPipeline, lr: Tensor, hr: Tensor, predictor: torch.nn.Module) -> Tensor:
    """Mean absolute error of the predicted pictures."""
    return (pipe.decode(pipe.predict(lr, predictor), lr) - hr).abs().mean()


def refinement_loss(
    pipe: HaarDiffusionPipeline, lr: Tensor, hr: Tensor, t: Tensor, noise: Tensor, unet: torch.nn.Module
) -> Tensor:
    """Weighted squared error of the clean scaled residual, seen through `noise` (B, K, h, w) at timesteps t (B,)."""
    with torch.no_grad():
        prediction = pipe.predict(lr)
    clean = (pipe.encode(hr, lr) - prediction) / pipe.band_factors(lr.device)  # (B, K, h, w)
    a = pipe.scheduler.alphas_cumprod.to(lr.device)[t].view(-1, 1, 1, 1)
    seen = pipe.refine(a.sqrt() * clean + (1 - a).sqrt() * noise, t, prediction, lr, unet)
    return ((1 / (1 - a)).clamp(max=SNR_CAP) * (seen - clean).square()).mean()


def learning_rate(step: int, total: int, decay: float) -> float:
    """Factor of the highest rate: 200 steps up, constant, then linear to zero over the last `decay` of the run."""
    return min(1.0, (step + 1) / WARMUP, (total - step) / max(decay * total, 1))


def _split(sources: tuple[corpora.Source, ...], hold_out: int) -> corpora.Partition:
    if hold_out >= len(sources):
        raise DtkdError(f"{len(sources)} usable photos cannot spare hold_out={hold_out}: lower it, or add photos")
    return corpora.split(sources, hold_out)


def _batches(
    data: PatchDataset, settings: TeacherTraining, first: int, accelerator: Accelerator
) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's share (b, 3, h, w), (b, 3, s h, s w) of every batch from step `first` on."""
    world, rank, size = accelerator.num_processes, accelerator.process_index, settings.batch_size
    if size % world:
        raise DtkdError(f"batch_size must be a multiple of the {world} processes, got {size}")
    share = size // world
    starts = range(first * size + rank * share, settings.steps * size, size)
    loader = DataLoader(
        data,
        batch_sampler=[range(start, start + share) for start in starts],  # pyright: ignore[reportArgumentType]
        num_workers=settings.workers,
        prefetch_factor=4 if settings.workers else None,
        pin_memory=accelerator.device.type == "cuda",
    )
    for lr, hr in loader:
        yield lr.to(accelerator.device, non_blocking=True), hr.to(accelerator.device, non_blocking=True)


def _draw(
    step: int, seed: int, lr: Tensor, pipe: HaarDiffusionPipeline, accelerator: Accelerator
) -> tuple[Tensor, Tensor]:
    """Timesteps (b,), spread evenly over the schedule within the global batch, and noise (b, K, h, w)."""
    share, world, rank = lr.shape[0], accelerator.num_processes, accelerator.process_index
    source = torch.Generator().manual_seed(int(generator(seed, "noise", step).integers(2**62)))
    spread = (torch.rand(1, generator=source) + torch.arange(share * world) / (share * world)) % 1
    noise = torch.randn((share * world, 3 * pipe.scale**2, *lr.shape[-2:]), generator=source)
    mine = slice(rank * share, (rank + 1) * share)
    return (spread[mine] * TRAIN_TIMESTEPS).long().to(lr.device), noise[mine].to(lr.device)


def _any(flag: bool, accelerator: Accelerator) -> bool:
    """Whether the flag is up on any process."""
    if accelerator.num_processes == 1:
        return flag
    total = accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum")
    assert isinstance(total, Tensor)
    return total.item() > 0


def _finite_mean(losses: list[Tensor], step: int, rate: float, accelerator: Accelerator) -> float:
    """Mean of the losses, given as (loss, gradient norm) of every step since the last such check.

    One step that is not finite shows in the mean, and no checkpoint is made before it has been looked at.
    """
    means = accelerator.reduce(torch.stack(losses).mean(0), "mean")
    assert isinstance(means, Tensor)
    loss, norm = means.tolist()
    if not (math.isfinite(loss) and math.isfinite(norm)):
        what = f"gradient norm is {norm}" if math.isfinite(loss) else f"loss is {loss}"
        raise DtkdError(f"the {what} by step {step}: the last checkpoint is kept; lower lr (now {rate:g})")
    return loss


def _log(log: RunLog | None, step: int, values: dict[str, float]) -> None:
    if log and values:
        log.write(step, values)


def _note(state: TeacherState) -> str:
    if state.psnr_y is None or state.psnr_y_bicubic is None:
        return ""
    return f"held-out psnr_y {state.psnr_y:.2f} dB (bicubic {state.psnr_y_bicubic:.2f})"
