"""Validation of a run: the averaged weights on the held-out samples, by several measures, one of which keeps the best.

The measures are those of `dtkd evaluate` (`student.evaluation.metrics`), loaded when they are first needed. Figures are
gathered by sample and averaged in the samples' order, so that they do not depend on the number of processes.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from pipeline.images import Rgb, to_image, to_tensor
from pipeline.system.errors import DtkdError, UsageError
from pipeline.system.words import plural
from pipeline.training.log import RunLog
from pipeline.training.validation import HIGHEST_PSNR
from student.dataset import CacheDataset
from student.model import SwinIR
from student.training.run import BEST, export
from student.training.settings import TrainSettings
from student.training.state import Best, TrainState

if TYPE_CHECKING:
    from student.evaluation.metrics import Metric


class _Measured(NamedTuple):
    """A held-out sample."""

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


@torch.inference_mode()
def validate(
    run: Path,
    ema: SwinIR,
    held_out: CacheDataset,
    state: TrainState,
    t: TrainSettings,
    log: RunLog,
    accelerator: Accelerator,
) -> None:
    """Measure the averaged weights on the held-out samples, in the run's precision, and keep the best ones.

    Means go to `state.validation` and into the log. A sample that a measure refuses, one that is too small for it for
    example, is left out of that measure's mean alone; that, and a best that has to follow another measure, is told.
    """
    if not len(held_out):
        return
    measures = load_measures(t.val_metrics, accelerator.device.type)
    share = range(accelerator.process_index, len(held_out), accelerator.num_processes)
    own = [_measure(index, restore(ema, held_out.images(index)[0], state, accelerator), held_out, measures)
           for index in share]  # fmt: skip
    gathered: list[_Measured] = gather_object(own)
    found = sorted(gathered, key=lambda one: one.number)
    state.validation = _means(found, [metric.name for metric in measures])
    log.write(state.step, {f"val_{name}": figure for name, figure in state.validation.items()})
    _tell_refused(found, state.step, log)
    _keep_best(run, ema, state, {m.name: m.lower_is_better for m in measures}, t.best_by, log, accelerator)


def restore(ema: SwinIR, lr: Rgb, state: TrainState, accelerator: Accelerator) -> Rgb:
    """A picture (s h, s w, 3) from an LR one, in the run's precision."""
    with state.autocast(accelerator.device):
        return to_image(ema(to_tensor(lr)[None].to(accelerator.device))[0])


def _measure(index: int, sr: Rgb, held_out: CacheDataset, measures: Sequence["Metric"]) -> _Measured:
    lr, gt, teacher = held_out.images(index)
    references = {"lr": lr, "gt": gt, "teacher": teacher, None: None}
    found = _Measured(index, {}, {})
    for metric in measures:
        try:
            figure = metric.measure(sr, references[metric.reference], held_out.scale)
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


def _tell_refused(found: Sequence[_Measured], step: int, log: RunLog) -> None:
    for name in dict.fromkeys(name for one in found for name in one.refused):
        reasons = [one.refused[name] for one in found if name in one.refused]
        count = f"{len(reasons)} of {plural(len(found), 'held-out sample')}"
        log.remark(
            f"validation: {name} leaves out {count}: {reasons[0]}", step=step, metric=name, left_out=len(reasons)
        )


def _keep_best(
    run: Path,
    ema: SwinIR,
    state: TrainState,
    lower_is_better: Mapping[str, bool],
    best_by: str,
    log: RunLog,
    accelerator: Accelerator,
) -> None:
    """Export the averaged weights where they are the best so far, by `best_by` or what stands in for it."""
    if not state.validation:
        return
    metric = best_by if best_by in state.validation else next(iter(state.validation))
    if metric != best_by:
        text = f"validation: {best_by} has no figure, so {BEST} follows {metric}"
        log.remark(text, step=state.step, best_by=metric)
    before, figure = state.best, state.validation[metric]
    if before and before.metric != metric:
        was = f"{before.metric} {before.figure:.4f} at step {before.step}"
        text = f"validation: {BEST} follows {metric} from now on; what it held (best {was}) is replaced"
        log.remark(text, step=state.step, best_by=metric)
    elif before and not (figure < before.figure if lower_is_better[metric] else figure > before.figure):
        return
    state.best = Best(metric, figure, state.step)
    if accelerator.is_main_process:
        export(run / BEST, ema, state)
