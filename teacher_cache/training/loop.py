"""Train an embedded-class teacher on one's own photos: `dtkd train-teacher CORPUS OUT`.

A run goes on after any interruption: patches and noise are functions of the step, everything else is in the checkpoint.
A step that is not finite is left out (`pipeline.training.state`).
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from pipeline.corpus import Partition, Skipped, Source, scan, split_photos
from pipeline.system.device import ResolvedPrecision
from pipeline.system.errors import INTERRUPTED, DtkdError
from pipeline.system.progress import OnProgress, ProgressEvent, clock_text
from pipeline.system.results import plain
from pipeline.system.stop import StopSignals
from pipeline.system.words import decibels, plural
from pipeline.training import processes
from pipeline.training.ema import average, ema_decay
from pipeline.training.log import RunLog
from pipeline.training.run_folder import Resume, open_run
from pipeline.training.schedules import learning_rate, set_learning_rate
from teacher_cache.teachers.haar_diffusion import HaarDiffusionPipeline
from teacher_cache.training.losses import band_scale, draw, prediction_loss, refinement_loss
from teacher_cache.training.patches import Patch, PatchDataset, batches
from teacher_cache.training.run import LAYOUT, TEACHER, begin, export, is_exported, save_run, validate
from teacher_cache.training.settings import TeacherRunSettings, TeacherTrainSettings
from teacher_cache.training.state import NetworkName, TeacherState, TeacherTensors, pipeline_of

__all__ = ["TeacherRunSettings", "TeacherTrainingResult", "train_teacher"]


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
    steps_left_out: int
    """Steps left out because loss or gradient was not finite."""
    seconds: float
    """Wall-clock seconds of training, earlier processes of the same run included."""
    precision: ResolvedPrecision | None
    """What the networks computed in; None where the run was finished before that was recorded."""
    skipped: tuple[Skipped, ...]
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
        time_taken = f"{clock_text(self.seconds)} of training in {self.precision}"
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
    settings: TeacherRunSettings,
    resume: Resume = "auto",
    on_progress: OnProgress | None = None,
) -> TeacherTrainingResult:
    """Train a teacher, or go on with a run that was interrupted; a finished run is only reported.

    Ctrl-C and SIGTERM save a checkpoint and return. Under `accelerate launch` or `torchrun` every process calls this.

    Args:
        corpus: folder of photos, or `sample`.
        out: folder of the run, made when missing.
        settings: of the run; another run in the same folder is refused, the differences named.
        resume: `auto` goes on from the newest checkpoint; `fresh` deletes what an earlier run left.
        on_progress: called after every step, on the main process.

    Raises:
        DtkdError: unusable corpus or settings, another run in the folder, a damaged checkpoint, or a run that diverged.
    """
    t = settings.train
    accelerator = processes.launch(t.device)
    photos = scan(corpus, min_side=t.patch * settings.degradation.scale)
    split = _split(photos.sources, settings.data.hold_out)

    def start() -> tuple[TeacherTensors, TeacherState]:
        return begin(out, settings, photos.sources, accelerator.device)

    with open_run(LAYOUT, out, resume, accelerator, start) as (tensors, state):
        finished_before = state.step >= t.steps
        if accelerator.is_main_process:
            LAYOUT.save_config(out, settings)
        if not finished_before:
            state.settle_precision(t.precision, accelerator.device)
            patches = PatchDataset(split.train, settings.degradation, t.patch, t.seed)
            _loop(out, settings, tensors, state, patches, split.val, accelerator, on_progress)
        if accelerator.is_main_process and state.step >= t.steps and not is_exported(out, settings.sampling):
            export(out, tensors.ema, state, settings, split.train)
        accelerator.wait_for_everyone()
    return TeacherTrainingResult(
        out / TEACHER, state.step, t.steps, finished_before, state.psnr_y, state.psnr_y_bicubic, state.skipped,
        state.seconds, state.precision, photos.skipped,
    )  # fmt: skip


def _loop(
    out: Path,
    settings: TeacherRunSettings,
    tensors: TeacherTensors,
    state: TeacherState,
    patches: PatchDataset,
    held_out: tuple[Source, ...],
    accelerator: Accelerator,
    on_progress: OnProgress | None,
) -> None:
    t, (networks, ema, optimizer) = settings.train, tensors
    pipe = pipeline_of(networks, settings, state.band_scale)
    models = {name: accelerator.prepare_model(network) for name, network in networks.items()}
    main, clock = accelerator.is_main_process, time.monotonic() - state.seconds
    with RunLog(out, state.step, speaks=main) as log, StopSignals() as signals:
        for lr, hr in _stream(patches, settings, state.step, accelerator):
            phase = _phase(state.step, t)
            if phase.network == "unet" and phase.step == 0:
                pipe = _start_refining(settings, tensors, state, patches, accelerator)
            set_learning_rate(optimizer, rate := _learning_rate(phase, t))

            with state.autocast(accelerator.device):
                loss = _loss(pipe, lr, hr, phase, models, state.step, t.seed, accelerator)
            accelerator.backward(loss)
            norm = torch.nn.utils.clip_grad_norm_(networks[phase.network].parameters(), t.clip or math.inf)

            seen = processes.agree(accelerator, {"total": loss, "grad_norm": norm}, signals.requested)
            if seen.finite:
                optimizer.step()
                average(ema[phase.network], networks[phase.network], ema_decay(phase.step, t.ema))
            optimizer.zero_grad()
            state.count(seen, seconds=time.monotonic() - clock)

            last = state.step == t.steps
            if state.step % t.log_every == 0 or last:
                log.write(state.step, {**state.take_means(), "lr": rate})
            if main and (state.step % t.val_every == 0 or last):
                log.write(state.step, validate(out, ema, state, settings, held_out))
            if state.step % t.save_every == 0 or last or seen.stop:
                _save(out, tensors, state, t.keep, accelerator)
            if on_progress and main:
                on_progress(ProgressEvent(state.step, t.steps, "steps", _note(state)))
            if seen.stop:
                return


class _Phase(NamedTuple):
    network: NetworkName
    step: int
    """Finished steps of this network."""
    steps: int
    """Planned ones."""


def _phase(step: int, t: TeacherTrainSettings) -> _Phase:
    """Which network the next step trains: first the predictor, then the refining one."""
    first = round(t.predictor_share * t.steps)
    return _Phase("predictor", step, first) if step < first else _Phase("unet", step - first, t.steps - first)


def _loss(
    pipe: HaarDiffusionPipeline,
    lr: Tensor,
    hr: Tensor,
    phase: _Phase,
    models: dict[str, torch.nn.Module],
    step: int,
    seed: int,
    accelerator: Accelerator,
) -> Tensor:
    if phase.network == "predictor":
        return prediction_loss(pipe, lr, hr, models["predictor"])
    rank, world = accelerator.process_index, accelerator.num_processes
    timesteps, noise = draw(step, seed, lr, pipe.scale, rank, world)
    return refinement_loss(pipe, lr, hr, timesteps, noise, models["unet"])


def _split(sources: tuple[Source, ...], hold_out: int) -> Partition:
    if hold_out >= len(sources):
        raise DtkdError(f"{len(sources)} usable photos cannot spare data.hold_out={hold_out}: lower it, or add photos")
    return split_photos(sources, hold_out)


def _stream(
    patches: PatchDataset, settings: TeacherRunSettings, step: int, accelerator: Accelerator
) -> Iterator[Patch]:
    """This process's share (b, 3, h, w), (b, 3, s h, s w) of the batches of the steps that are left."""
    return batches(
        patches,
        steps=range(step, settings.train.steps),
        batch_size=settings.train.batch_size,
        workers=settings.data.workers,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        device=accelerator.device,
    )


def _learning_rate(phase: _Phase, t: TeacherTrainSettings) -> float:
    return learning_rate(phase.step, phase.steps, peak=t.lr, kind="linear", warmup=t.lr_warmup, decay=t.lr_decay)


def _start_refining(
    settings: TeacherRunSettings,
    tensors: TeacherTensors,
    state: TeacherState,
    patches: PatchDataset,
    accelerator: Accelerator,
) -> HaarDiffusionPipeline:
    """Freeze the predictor at its averaged weights, and scale the refinement by what it leaves."""
    predictor = tensors.networks["predictor"]
    predictor.load_state_dict(tensors.ema["predictor"].state_dict())
    predictor.requires_grad_(False).eval()
    pipe = pipeline_of(tensors.networks, settings, state.band_scale)
    state.band_scale = band_scale(pipe, patches, settings.model.whitening, partial(state.autocast, accelerator.device))
    return pipeline_of(tensors.networks, settings, state.band_scale)


def _save(out: Path, tensors: TeacherTensors, state: TeacherState, keep: int, accelerator: Accelerator) -> None:
    if accelerator.is_main_process:
        save_run(out, tensors, state, keep)
    accelerator.wait_for_everyone()  # nobody ends, or starts again, before the checkpoint is there


def _note(state: TeacherState) -> str:
    parts = []
    if state.psnr_y is not None and state.psnr_y_bicubic is not None:
        parts.append(f"held-out psnr_y {state.psnr_y:.2f} dB (bicubic {state.psnr_y_bicubic:.2f})")
    parts += [f"{plural(state.skipped, 'step')} skipped"] if state.skipped else []
    return ", ".join(parts)
