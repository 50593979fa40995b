"""Validation of a run: the averaged weights on held-out pictures, by several measures, one of which keeps the best.

The measures are those of `dtkd evaluate` (`student.evaluation.metrics`), loaded when they are first needed. Figures are
gathered by sample and averaged in the samples' order, so that they do not depend on the number of processes.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from pipeline.images import Rgb, to_image, to_tensor
from pipeline.shards import DamagedShardError
from pipeline.system.device import out_of_memory
from pipeline.system.errors import DtkdError, UsageError
from pipeline.system.words import plural
from pipeline.training.log import RunLog
from pipeline.training.validation import HIGHEST_PSNR
from student.evaluation.examples import Example
from student.model import SwinIR
from student.training.held_out import HeldOut
from student.training.run import BEST, export
from student.training.settings import TrainSettings
from student.training.state import Best, TrainState

if TYPE_CHECKING:
    from student.evaluation.metrics import Metric


class _Measured(NamedTuple):
    """A held-out picture."""

    number: int
    figures: dict[str, float]
    refused: dict[str, str]
    """Measures that have no figure of it, and why."""


@lru_cache(maxsize=4)
def load_measures(names: tuple[str, ...], device: str) -> tuple["Metric", ...]:
    """The measures of these names, ready; to be called before the first step, so that no run ends at its validation.

    Raises:
        DtkdError: an unknown name, a measure of whole sets, or one that cannot run here.
    """
    from student.evaluation import metrics

    try:
        loaded = metrics.load(names, device if device == "cuda" else "cpu")
    except UsageError as error:
        raise DtkdError(f"train.val_metrics: {error}") from error
    for missing in loaded.unavailable:
        raise DtkdError(
            f"train.val_metrics: {missing.name} cannot run here ({missing.reason}): {missing.remedy}, or set "
            "train.val_metrics=psnr_y and train.best_by=psnr_y"
        )
    for metric in loaded.metrics:
        if metric.measure_set:
            raise DtkdError(f"train.val_metrics: {metric.name} measures sets of pictures: take one that measures each")
    return loaded.metrics


def measures_for(held_out: HeldOut, t: TrainSettings, device: str) -> tuple["Metric", ...]:
    """The measures of a run, ready.

    Raises:
        DtkdError: as `load_measures`, or one needs what the held-out pictures do not have.
    """
    loaded = load_measures(t.val_metrics, device)
    for metric in loaded:
        if metric.reference and metric.reference not in held_out.has:
            raise DtkdError(
                f"train.val_metrics: {metric.name} compares with {metric.reference}, which {held_out.label} does not "
                "have: take other measures, or other pictures (data.val)"
            )
    return loaded


@torch.inference_mode()
def validate(
    run: Path,
    ema: SwinIR,
    held_out: HeldOut,
    state: TrainState,
    t: TrainSettings,
    log: RunLog,
    accelerator: Accelerator,
) -> None:
    """Measure the averaged weights on the held-out pictures, in the run's precision, and keep the best ones.

    Means go to `state.validation` and into the log. A picture that a measure refuses, one that is too small for it for
    example, is left out of that measure's mean alone, one that cannot be read or restored out of all; that, and a best
    that has to follow another measure, is told once.
    """
    if not len(held_out):
        return
    measures = measures_for(held_out, t, accelerator.device.type)
    share = range(accelerator.process_index, len(held_out), accelerator.num_processes)
    own = [_measure(index, ema, held_out, measures, state, accelerator) for index in share]
    gathered: list[_Measured] = gather_object(own)
    found = sorted(gathered, key=lambda one: one.number)
    state.validation = _means(found, [metric.name for metric in measures])
    log.write(state.step, {f"val_{name}": figure for name, figure in state.validation.items()})
    _tell_refused(found, state, log)
    lower_is_better = {metric.name: metric.lower_is_better for metric in measures}
    _keep_best(run, ema, state, lower_is_better, t.best_by, held_out.name, log, accelerator)


def restore(ema: SwinIR, lr: Rgb, state: TrainState, accelerator: Accelerator) -> Rgb:
    """A picture (s h, s w, 3) from an LR one, in the run's precision."""
    with state.autocast(accelerator.device):
        return to_image(ema(to_tensor(lr)[None].to(accelerator.device))[0])


def _measure(
    index: int,
    ema: SwinIR,
    held_out: HeldOut,
    measures: Sequence["Metric"],
    state: TrainState,
    accelerator: Accelerator,
) -> _Measured:
    try:
        example = held_out.read(index)
        sr = restore(ema, example.lr, state, accelerator)
    except DamagedShardError:
        raise
    except (DtkdError, OSError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not out_of_memory(error):
            raise
        reason = "out of memory: whole pictures are validated" if out_of_memory(error) else str(error)
        return _Measured(index, {}, {metric.name: reason for metric in measures})
    return _figures(index, example, sr, held_out.scale, measures)


def _figures(index: int, example: Example, sr: Rgb, scale: int, measures: Sequence["Metric"]) -> _Measured:
    references = {"lr": example.lr, "gt": example.gt, "teacher": example.teacher, None: None}
    found = _Measured(index, {}, {})
    for metric in measures:
        try:
            figure = metric.measure(sr, references[metric.reference], scale)
        except Exception as error:  # of another library: a picture's size; told, and the others still run
            found.refused[metric.name] = str(error).splitlines()[0] if str(error) else type(error).__name__
            continue
        if math.isnan(figure):
            found.refused[metric.name] = "no number came of it"
        else:
            found.figures[metric.name] = min(figure, HIGHEST_PSNR) if math.isinf(figure) else figure
    return found


def _means(found: Sequence[_Measured], names: Sequence[str]) -> dict[str, float]:
    """By measure; one that has no figure at all is missing."""
    values = {name: [one.figures[name] for one in found if name in one.figures] for name in names}
    return {name: math.fsum(figures) / len(figures) for name, figures in values.items() if figures}


def _tell_refused(found: Sequence[_Measured], state: TrainState, log: RunLog) -> None:
    for name in dict.fromkeys(name for one in found for name in one.refused):
        reasons = [one.refused[name] for one in found if name in one.refused]
        count = f"{len(reasons)} of {plural(len(found), 'held-out sample')}"
        _remark_once(state, log, f"{name} leaves out {count}: {reasons[0]}", metric=name, left_out=len(reasons))


def _remark_once(state: TrainState, log: RunLog, text: str, **details: Any) -> None:
    """What holds for every validation alike is told by the first one, also where the run was interrupted since."""
    if text not in state.told:
        state.told.append(text)
        log.remark(f"validation: {text}", step=state.step, **details)


def _keep_best(
    run: Path,
    ema: SwinIR,
    state: TrainState,
    lower_is_better: Mapping[str, bool],
    best_by: str,
    data: str,
    log: RunLog,
    accelerator: Accelerator,
) -> None:
    """Export the averaged weights where they are the best so far, by `best_by` or what stands in for it."""
    if not state.validation:
        return
    metric = best_by if best_by in state.validation else next(iter(state.validation))
    if metric != best_by:
        _remark_once(state, log, f"{best_by} has no figure, so {BEST} follows {metric}", best_by=metric)
    before, figure = state.best, state.validation[metric]
    if before and (before.metric, before.data) != (metric, data):
        was = f"{before.metric} {before.figure:.4f} at step {before.step}"
        where = "" if before.data == data else f" on {data or 'the held-out samples'}"
        text = f"validation: {BEST} follows {metric}{where} from now on; what it held (best {was}) is replaced"
        log.remark(text, step=state.step, best_by=metric)
    elif before and not (figure < before.figure if lower_is_better[metric] else figure > before.figure):
        return
    state.best = Best(metric, figure, state.step, data)
    if accelerator.is_main_process:
        export(run / BEST, ema, state)
