"""Training a student from a teacher cache: the loop and its steps.

A run goes on after any interruption: batches, schedules and random numbers are functions of the step, and everything
else is in the checkpoint. On a CPU a resumed run ends with the same bits as an uninterrupted one.

A step whose loss or gradient is not finite is left out and counted; `PATIENCE` of them in a row end the run with an
error, and the last checkpoint stays as it is.
"""

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pipeline.fidelity import psnr_y
from pipeline.images import to_image, to_tensor
from pipeline.system.device import fast_bf16, keep_freed_memory
from pipeline.system.errors import DtkdError
from pipeline.system.progress import OnProgress, ProgressEvent
from pipeline.system.stop import StopSignals
from pipeline.training.log import RunLog
from pipeline.training.run_folder import claim
from student.checkpoint import Training, TrainState
from student.loss import LossParts, distillation_loss
from student.model import SwinIR
from student.schedule import distill_weight, ema_decay, learning_rate
from student.stream import Batch, CacheDataset, batches, open_cache
from student.training import run as folder
from student.training.run import Resume
from student.training.settings import RunSettings, TrainSettings

__all__ = ["RunSettings", "TrainResult", "TrainSettings", "train"]

PATIENCE = 10  # steps in a row that may be left out
LOGGED = ("total", "l1", "fg", "energy", "low", "mid", "high", "grad_norm")


@dataclass(frozen=True)
class TrainResult:
    """How a run stands when `train` returns."""

    run: Path
    step: int
    steps: int
    """Planned ones: below these, a signal has stopped the run, and it can go on."""
    student: Path
    """Averaged weights, ready for `evaluate` and `upscale`."""
    reused: bool
    """The run had been finished before; nothing was trained now."""
    psnr_y: float | None
    """Latest validation result, dB; None without held-out samples."""
    best_psnr_y: float | None
    best_step: int | None
    skipped: int
    """Steps left out because loss or gradient was not finite."""
    seconds: float
    """Wall-clock seconds of training, earlier processes of the same run included."""

    @property
    def finished(self) -> bool:
        """Whether all planned steps are done."""
        return self.step >= self.steps


class Seen(NamedTuple):
    """What all processes agree on after a backward pass."""

    values: list[float]  # LOGGED, means over the processes
    finite: bool
    stop: bool  # a process was asked to


def train(
    cache: Path,
    run: Path,
    settings: RunSettings,
    resume: Resume = "auto",
    on_progress: OnProgress | None = None,
) -> TrainResult:
    """Train a student, or go on with a run that was interrupted; a finished run is only reported.

    Ctrl-C and SIGTERM save a checkpoint and return. Under `accelerate launch` or `torchrun` every process calls this.

    Args:
        cache: finished teacher cache.
        run: folder of the run, made when missing.
        settings: of the run; another run in the same folder is refused, the differences named.
        resume: `auto` goes on from the newest checkpoint; `fresh` deletes what an earlier run left.
        on_progress: called after every step, on the main process.

    Raises:
        DtkdError: a mistake in settings or folders, a damaged cache or checkpoint, or a run that diverged.
    """
    cache, run = Path(cache), Path(run)
    accelerator = Accelerator(cpu=settings.train.device == "cpu", mixed_precision="no")
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    dataset, held_out = open_cache(cache, "train"), open_cache(cache, "val")
    with ExitStack() as stack:
        with accelerator.main_process_first():
            if accelerator.is_main_process:
                stack.enter_context(claim(run))
                if resume == "fresh":
                    folder.clear(run)
            training, state = folder.begin(run, settings, dataset, accelerator.device)
        finished_before = state.step >= settings.train.steps
        if not finished_before:
            if accelerator.is_main_process:
                folder.save_config(run, settings)
            stream = _stream(dataset, settings, state.step, accelerator)
            _loop(run, settings, training, state, stream, held_out, accelerator, on_progress)
        return _result(run, state, settings.train.steps, reused=finished_before)


def _loop(
    run: Path,
    settings: RunSettings,
    training: Training,
    state: TrainState,
    stream: Iterator[Batch],
    held_out: CacheDataset,
    accelerator: Accelerator,
    on_progress: OnProgress | None,
) -> None:
    t, (student, ema, optimizer) = settings.train, training
    model = accelerator.prepare_model(student)
    clock = time.monotonic() - state.seconds
    with _open_log(run, state.step, accelerator) as log, StopSignals() as signals:
        for batch in stream:
            _seed_step(t.seed, state.step, accelerator.process_index)
            rate = _set_learning_rate(optimizer, state.step, t)
            lam = distill_weight(state.step, t.steps, settings.loss)

            with _autocast(accelerator.device, t.precision):
                sr = model(batch.lr)
            loss = distillation_loss(sr, batch.gt, batch.teacher, state.weights, lam)
            accelerator.backward(loss.total)
            norm = torch.nn.utils.clip_grad_norm_(student.parameters(), t.clip or math.inf)

            seen = _agree(loss, norm, signals.requested, accelerator)
            if seen.finite:
                optimizer.step()
                _average(ema, student, ema_decay(state.step, t.ema))
            optimizer.zero_grad()
            _count(state, seen, seconds=time.monotonic() - clock)

            last = state.step == t.steps
            if state.step % t.log_every == 0 or last:
                _log_losses(log, state, {"lambda": lam, "lr": rate})
            if state.step % t.val_every == 0 or last:
                _validate(run, ema, held_out, state, log, accelerator)
            if state.step % t.save_every == 0 or last or seen.stop:
                _save(run, training, state, t.keep, accelerator)
            if on_progress and accelerator.is_main_process:
                on_progress(ProgressEvent(state.step, t.steps, "steps", _note(seen, state, lam)))
            if seen.stop:
                return


def _stream(dataset: CacheDataset, settings: RunSettings, step: int, accelerator: Accelerator) -> Iterator[Batch]:
    """This process's batches of the steps that are left."""
    t = settings.train
    return batches(
        dataset,
        settings.data,
        seed=t.seed,
        steps=range(step, t.steps),
        batch_size=t.batch_size,
        patch=t.patch,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        device=accelerator.device,
    )


def _open_log(run: Path, step: int, accelerator: Accelerator) -> AbstractContextManager[RunLog | None]:
    return RunLog(run, step) if accelerator.is_main_process else nullcontext()


def _seed_step(seed: int, step: int, rank: int) -> None:
    """Make drop path a function of the step, so that a resumed run drops the same."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0]))


def _set_learning_rate(optimizer: torch.optim.Optimizer, step: int, t: TrainSettings) -> float:
    rate = learning_rate(
        step, t.steps, peak=t.lr, kind=t.lr_schedule, warmup=t.lr_warmup, floor=t.lr_floor, milestones=t.lr_milestones
    )
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def _autocast(device: torch.device, precision: str) -> AbstractContextManager:
    native = device.type == "cuda" and fast_bf16("cuda")
    use = precision == "bf16" or (precision == "auto" and native)
    return torch.autocast(device.type, dtype=torch.bfloat16) if use else nullcontext()


def _agree(loss: LossParts, norm: Tensor, stop: bool, accelerator: Accelerator) -> Seen:
    """Average over the processes, so that all skip a step and all stop, or none (one small all-reduce)."""
    row = torch.stack([*loss, norm, norm.new_tensor(float(stop))]).detach()
    *values, stopping = _reduce(row, "mean", accelerator).tolist()
    return Seen(values, all(map(math.isfinite, values)), stopping > 0)


@torch.no_grad()
def _average(ema: SwinIR, student: SwinIR, decay: float) -> None:
    get_ema_multi_avg_fn(decay)(list(ema.parameters()), list(student.parameters()), None)


def _count(state: TrainState, seen: Seen, seconds: float) -> None:
    state.step += 1
    state.seconds = seconds
    if seen.finite:
        state.sums = [a + b for a, b in zip(state.sums or [0.0] * len(LOGGED), seen.values, strict=True)]
        state.summed += 1
        state.skipped_in_a_row = 0
        return
    state.skipped += 1
    state.skipped_in_a_row += 1
    if state.skipped_in_a_row >= PATIENCE:
        raise DtkdError(
            f"training diverged: loss or gradient was not finite in steps {state.step - PATIENCE + 1} to {state.step}; "
            "the last checkpoint is kept: go on from it, or start afresh with a lower train.lr or train.precision=fp32"
        )


def _log_losses(log: RunLog | None, state: TrainState, schedules: dict[str, float]) -> None:
    means = {name: total / state.summed for name, total in zip(LOGGED, state.sums, strict=False)}
    if log:
        log.write(state.step, {**means, **schedules, "skipped": state.skipped, "seconds": round(state.seconds, 3)})
    state.sums, state.summed = [], 0


@torch.inference_mode()
def _validate(
    run: Path, ema: SwinIR, held_out: CacheDataset, state: TrainState, log: RunLog | None, accelerator: Accelerator
) -> None:
    """Mean psnr_y of the averaged weights on the held-out samples; keeps the best ones."""
    if not len(held_out):
        return
    total = torch.zeros(1, device=accelerator.device)
    for index in range(accelerator.process_index, len(held_out), accelerator.num_processes):
        lr, gt, _ = held_out.images(index)
        sr = ema(to_tensor(lr)[None].to(accelerator.device))[0]
        total += psnr_y(to_image(sr), gt, ema.scale)
    psnr = _reduce(total, "sum", accelerator).item() / len(held_out)
    state.psnr_y = psnr
    if log:
        log.write(state.step, {"val_psnr_y": psnr})
    if state.best_psnr_y is None or psnr > state.best_psnr_y:
        state.best_psnr_y, state.best_step = psnr, state.step
        if accelerator.is_main_process:
            folder.export(run / folder.BEST, ema, state)


def _save(run: Path, training: Training, state: TrainState, keep: int, accelerator: Accelerator) -> None:
    if accelerator.is_main_process:
        folder.save(run, training, state, keep)
    accelerator.wait_for_everyone()  # nobody ends, or starts again, before the checkpoint is there


def _reduce(values: Tensor, how: str, accelerator: Accelerator) -> Tensor:
    reduced = accelerator.reduce(values, how)
    assert isinstance(reduced, Tensor)
    return reduced


def _note(seen: Seen, state: TrainState, lam: float) -> str:
    parts = [f"loss {seen.values[0]:.4f}", f"lambda {lam:.2f}"]
    parts += [f"psnr_y {state.psnr_y:.2f}"] if state.psnr_y is not None else []
    parts += [f"{state.skipped} steps skipped"] if state.skipped else []
    return ", ".join(parts)


def _result(run: Path, state: TrainState, steps: int, reused: bool) -> TrainResult:
    return TrainResult(
        run, state.step, steps, run / folder.STUDENT, reused, state.psnr_y, state.best_psnr_y, state.best_step,
        state.skipped, state.seconds,
    )  # fmt: skip
