"""Training a student from a teacher cache: the loop and its steps.

A run goes on after any interruption: batches, schedules and random numbers are functions of the step, and everything
else is in the checkpoint. On a CPU a resumed run ends with the same bits as an uninterrupted one. A step that is not
finite is left out (`pipeline.training.state`).
"""

import math
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from torch.nn.utils import clip_grad_norm_

from pipeline.system.progress import OnProgress, ProgressEvent
from pipeline.system.stop import StopSignals
from pipeline.system.words import plural
from pipeline.training import processes
from pipeline.training.ema import average, ema_decay
from pipeline.training.log import RunLog
from pipeline.training.pace import Meter
from pipeline.training.processes import Seen
from pipeline.training.run_folder import Resume, open_run
from pipeline.training.schedules import learning_rate, set_learning_rate
from student.loss import distillation_loss
from student.model import SwinIR
from student.schedule import distill_weight, grid_shift
from student.stream import Batch, CacheDataset, batches, open_cache
from student.training import guard
from student.training.held_out import HeldOut, open_held_out
from student.training.preflight import preflight
from student.training.result import TrainResult, figure_text, result_of
from student.training.run import LAYOUT, begin, save_run
from student.training.settings import RunSettings, TrainSettings
from student.training.state import Training, TrainState
from student.training.step import add_gradient, compile_steps, interruptible
from student.training.strips import draw_samples
from student.training.validation import validate

__all__ = ["RunSettings", "TrainResult", "TrainSettings", "train"]


def train(
    cache: str | Path,
    run: Path,
    settings: RunSettings,
    resume: Resume = "auto",
    on_progress: OnProgress | None = None,
) -> TrainResult:
    """Train a student, or go on with a run that was interrupted; a finished run is only reported.

    Ctrl-C and SIGTERM save a checkpoint and return. Under `accelerate launch` or `torchrun` every process calls this.

    Args:
        cache: finished teacher cache, a folder or a URL.
        run: folder of the run, made when missing.
        settings: of the run; another run in the same folder is refused, the differences named.
        resume: `auto` goes on from the newest checkpoint; `fresh` deletes what an earlier run left.
        on_progress: called after every step, on the main process.

    Raises:
        DtkdError: a mistake in settings or folders, a damaged cache or checkpoint, or a run that diverged.
    """
    run, local = Path(run), settings.data.local
    accelerator = processes.launch(settings.train.device)
    dataset = open_cache(cache, "train", local)
    held_out = open_held_out(open_cache(cache, "val", local), settings.data.val)
    plan = preflight(run, settings, dataset, held_out, resume, accelerator)

    def start() -> tuple[Training, TrainState]:
        return begin(run, settings, dataset, accelerator.device)

    with open_run(LAYOUT, run, resume, accelerator, start) as (training, state):
        finished_before = state.step >= settings.train.steps
        if not finished_before:
            if accelerator.is_main_process:
                LAYOUT.save_config(run, settings)
            state.settle_precision(settings.train.precision, accelerator.device)
            state.compiled = settings.train.compile
            with StopSignals() as signals, closing(_stream(dataset, settings, state.step, accelerator)) as stream:
                if on_progress and accelerator.is_main_process:  # whoever has read it can stop the run
                    on_progress(ProgressEvent(state.step, settings.train.steps, "steps", summary="\n".join(plan)))
                _loop(run, settings, training, state, stream, held_out, accelerator, signals, on_progress)
        return result_of(run, state, settings.train.steps, reused=finished_before)


def _loop(
    run: Path,
    settings: RunSettings,
    training: Training,
    state: TrainState,
    stream: Iterator[Batch],
    held_out: HeldOut,
    accelerator: Accelerator,
    signals: StopSignals,
    on_progress: OnProgress | None,
) -> None:
    t, (student, ema, optimizer) = settings.train, training
    if state.compiled:
        compile_steps(student)
    model = accelerator.prepare_model(student)
    clock, meter = time.monotonic() - state.seconds, Meter(t.batch_size, str(accelerator.device))
    with RunLog(run, state.step, speaks=accelerator.is_main_process) as log, interruptible(signals, state.compiled):
        for batch in meter.timed(stream):
            processes.seed_step(t.seed, state.step, accelerator.process_index)  # of drop path
            rate, lam = _learning_rate(state.step, t), distill_weight(state.step, t.steps, settings.loss)
            set_learning_rate(optimizer, rate)
            shift = grid_shift(state.step, t.seed, settings.loss)
            loss = partial(distillation_loss, weights=state.weights, lam=lam, shift=shift)
            sr, losses = add_gradient(model, batch, t.accumulate, loss, state, accelerator)
            losses["grad_norm"] = clip_grad_norm_(student.parameters(), t.clip or math.inf)
            seen = processes.agree(accelerator, losses, signals.requested)
            guard.look(run, state, batch, sr, seen, losses, t.spike, log, accelerator)
            if seen.finite:
                optimizer.step()
                average(ema, student, ema_decay(state.step, t.ema))
            optimizer.zero_grad()
            state.count(seen, time.monotonic() - clock, f"; {run / guard.FOLDER} names the samples")
            meter.step_done()

            last = state.step == t.steps
            if state.step % t.log_every == 0 or last:
                log.write(state.step, {**state.take_means(), "lambda": lam, "lr": rate, **meter.take()})
            if state.step % t.val_every == 0 or last:
                _look(run, ema, held_out, state, t, log, accelerator)
            if state.step % t.save_every == 0 or last or seen.stop:
                _save(run, training, state, t.keep, accelerator)
            if on_progress and accelerator.is_main_process:
                on_progress(_event(t.steps, seen, state, lam, meter, log))
            if seen.stop:
                return


def _stream(
    dataset: CacheDataset, settings: RunSettings, step: int, accelerator: Accelerator
) -> Generator[Batch, None, None]:
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


def _learning_rate(step: int, t: TrainSettings) -> float:
    return learning_rate(
        step, t.steps, peak=t.lr, kind=t.lr_schedule, warmup=t.lr_warmup, floor=t.lr_floor, milestones=t.lr_milestones
    )


def _look(
    run: Path,
    ema: SwinIR,
    held_out: HeldOut,
    state: TrainState,
    t: TrainSettings,
    log: RunLog,
    accelerator: Accelerator,
) -> None:
    """Measure the averaged weights, and draw what they make of a few pictures."""
    validate(run, ema, held_out, state, t, log, accelerator)
    draw_samples(run, ema, held_out, t.sample_strips, state, log, accelerator)


def _save(run: Path, training: Training, state: TrainState, keep: int, accelerator: Accelerator) -> None:
    if accelerator.is_main_process:
        save_run(run, training, state, keep)
    accelerator.wait_for_everyone()  # nobody ends, or starts again, before the checkpoint is there


def _event(steps: int, seen: Seen, state: TrainState, lam: float, meter: Meter, log: RunLog) -> ProgressEvent:
    parts = [f"loss {seen.values['total']:.4f}", f"lambda {lam:.2f}"]
    parts += [figure_text(name, figure) for name, figure in state.validation.items()]
    parts += [f"{plural(state.skipped, 'step')} skipped"] if state.skipped else []
    summary = "; ".join(filter(None, (log.take_remarks(), meter.forecast(steps - state.step))))
    return ProgressEvent(state.step, steps, "steps", ", ".join([*parts, meter.note()]), summary)
