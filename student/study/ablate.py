"""An ablation: arms that differ in some settings, trained alike and compared image by image.

OUT/ARM-seedN/      one training run each, resumed as any run
OUT/evaluation/     pictures and figures of every student on the evaluation set
OUT/ablation.json   settings, environment, figures, paired differences (`Ablation.to_json`)
OUT/ablation.md     the table        OUT/ablation.svg   the plots

All arms of a seed share the order of the data, crops, flips and initial weights. Several processes may run the same
command: each takes the next run that nobody is training.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pipeline import config
from pipeline.system.device import environment
from pipeline.system.errors import DtkdError, UsageError
from pipeline.system.files import atomic_write_bytes, atomic_write_json, ensure_dir, read_json
from pipeline.system.outputs import check_folder
from pipeline.system.progress import OnProgress, ProgressEvent, clock_text, part_of
from pipeline.system.words import plural
from pipeline.training.run_folder import BusyRunError
from student.evaluation.evaluate import EvaluationSettings, evaluate
from student.evaluation.scores import Evaluation
from student.evaluation.statistics import crossed_interval
from student.loss import GroupWeights, distillation_loss
from student.stream import batches, open_cache, refuse_misfits
from student.study.ablation import Ablation, Comparison
from student.study.ablation_plots import ablation_svg
from student.study.grids import Arm, Grid
from student.training.loop import train
from student.training.settings import RunSettings

TIMED_STEPS = 4
RESULT = "ablation.json"


class Trial(NamedTuple):
    """One run of the ablation."""

    arm: Arm
    seed: int
    settings: RunSettings

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.arm.name}-seed{self.seed}"


def trials(grid: Grid, base: Sequence[str], config_files: Sequence[Path] | None, seeds: int) -> list[Trial]:
    """Every run of an ablation, seed by seed.

    Raises:
        UsageError: no seed, or an arm has settings that cannot be.
    """
    if seeds < 1:
        raise UsageError(f"seeds must be at least 1, got {seeds}")
    return [
        Trial(arm, seed, config.load(RunSettings, config_files, [*base, *arm.changes, f"train.seed={seed}"]))
        for seed in range(seeds)
        for arm in grid.arms
    ]


def step_seconds(cache: Path, settings: RunSettings) -> float:
    """Wall-clock seconds of a training step on this machine, the least of a few.

    Raises:
        DtkdError: the cache cannot be trained on with these settings.
    """
    t, dataset = settings.train, open_cache(cache)
    student = settings.model.build().train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=t.lr)
    here, steps = replace(settings.data, workers=0), range(TIMED_STEPS)
    stream = batches(dataset, here, seed=0, steps=steps, batch_size=t.batch_size, patch=t.patch)
    weights = GroupWeights(1, 1, 1, settings.loss.levels, settings.loss.wavelet, settings.loss.energy)
    took = []
    for batch in islice(stream, TIMED_STEPS):
        began = time.perf_counter()
        distillation_loss(student(batch.lr), batch.gt, batch.teacher, weights, 1.0).total.backward()
        optimizer.step()
        optimizer.zero_grad()
        took.append(time.perf_counter() - began)
    return min(took)


def announced(cache: Path, planned: Sequence[Trial]) -> ProgressEvent:
    """The first event of an ablation, which tells what it will cost, from a few training steps on this machine.

    Raises:
        DtkdError: as `refuse_misfits`, for any arm.
    """
    _refuse_misfits(cache, planned)
    seconds = step_seconds(planned[0].arm.cache or cache, planned[0].settings)
    return ProgressEvent(0, 0, "steps", summary=cost_line(planned, seconds))


def cost_line(planned: Sequence[Trial], seconds: float) -> str:
    """What the ablation will cost at so many seconds a step, for people."""
    steps = sum(trial.settings.train.steps for trial in planned)
    arms, seeds = len({trial.arm.name for trial in planned}), len({trial.seed for trial in planned})
    return (
        f"{plural(arms, 'arm')} x {plural(seeds, 'seed')}: {steps} steps of {seconds:.2f} s, about "
        f"{clock_text(steps * seconds)} in one process on a CPU, evaluation aside"
    )


def ablate(
    cache: Path,
    out: Path,
    grid: Grid,
    planned: Sequence[Trial],
    data: Path,
    metrics: Sequence[str],
    on_progress: OnProgress | None = None,
) -> Ablation:
    """Train what is left to train, then compare.

    Args:
        cache: the teacher cache of arms that name none.
        out: folder of the ablation.
        grid: its arms; the first is the baseline.
        planned: from `trials`.
        data: evaluation set (`student.evaluation.examples`).
        metrics: names, as `evaluate` takes them.
        on_progress: called after every training step and image.

    Raises:
        DtkdError: as `train` and `evaluate`; `out` holds something else; or others are still training the rest.
        KeyboardInterrupt: a signal stopped a training; the same command goes on.
    """
    check_folder(out, "an ablation", True, _is_ablation)
    _refuse_misfits(cache, planned)
    ensure_dir(out)
    if not (out / RESULT).exists():  # so that the folder is known as ours from the first run on
        atomic_write_json(out / RESULT, {"grid": grid.name, "baseline": grid.arms[0].name, "finished": False})
    busy = _train_all(cache, out, planned, on_progress)
    if busy:
        raise DtkdError(
            f"{out}: other processes are training {plural(len(busy), 'run')}: the same command goes on later"
        )
    students = [out / trial.name for trial in planned]
    how = EvaluationSettings(metrics=tuple(metrics), precision=planned[0].settings.train.precision)  # one for all
    measured = evaluate(students, data, how, out=out / "evaluation", overwrite=True, on_progress=on_progress)
    found = _compare(grid, planned, measured, data)
    atomic_write_json(out / RESULT, {**found.to_json(), "finished": True})
    atomic_write_bytes(out / "ablation.md", found.markdown().encode())
    atomic_write_bytes(out / "ablation.svg", ablation_svg(found).encode())
    return found


def _refuse_misfits(cache: Path, planned: Sequence[Trial]) -> None:
    """Refuse what a later arm could not be trained on before the first one is."""
    datasets = {place: open_cache(place) for place in {trial.arm.cache or cache for trial in planned}}
    for trial in planned:
        t, dataset = trial.settings.train, datasets[trial.arm.cache or cache]
        refuse_misfits(dataset, trial.settings.data, t.batch_size, t.patch, world=1, parts=t.accumulate)


def _is_ablation(folder: Path) -> bool:
    """Whether `ablate` has begun a folder."""
    try:
        record = read_json(folder / RESULT)
    except (OSError, DtkdError):
        return False
    return isinstance(record, dict) and {"grid", "baseline", "finished"} <= record.keys()


def _train_all(cache: Path, out: Path, planned: Sequence[Trial], on_progress: OnProgress | None) -> list[Trial]:
    """Train one run after the other; returns those that other processes are at in the end."""
    total, done, left = sum(trial.settings.train.steps for trial in planned), 0, list(planned)
    for _ in range(2):  # what others were at in the first round may be finished in the second
        busy = []
        for trial in left:
            if _train(cache, out, trial, on_progress and part_of(on_progress, done, total, trial.name)):
                done += trial.settings.train.steps
            else:
                busy.append(trial)
        left = busy
    return left


def _train(cache: Path, out: Path, trial: Trial, on_progress: OnProgress | None) -> bool:
    """Train one run to its end; False where another process is at it."""
    try:
        result = train(trial.arm.cache or cache, out / trial.name, trial.settings, on_progress=on_progress)
    except BusyRunError:
        return False
    if not result.finished:
        raise KeyboardInterrupt
    return True


def _compare(grid: Grid, planned: Sequence[Trial], measured: Evaluation, data: Path) -> Ablation:
    scores = {row.name: row for row in measured.candidates}
    seeds = sorted({trial.seed for trial in planned})
    images = sorted(set.intersection(*({score.id for score in scores[trial.name].images} for trial in planned)))

    def table(arm: Arm, metric: str) -> np.ndarray:
        columns = []
        for seed in seeds:
            values = {score.id: score.values[metric] for score in scores[f"{arm.name}-seed{seed}"].images}
            columns.append([values[image] for image in images])
        return np.array(columns).T  # (images, seeds)

    comparisons = []
    for metric in measured.metrics.metrics:
        base = table(grid.arms[0], metric.name)
        for arm in grid.arms:
            ours = table(arm, metric.name)
            difference = None if arm is grid.arms[0] else crossed_interval(ours - base)
            mean = float(ours.mean())
            comparisons.append(Comparison(arm.name, metric.name, metric.lower_is_better, mean, difference))
    shared = config.to_dict(planned[0].settings)
    return Ablation(
        grid.name, grid.arms[0].name, planned[0].settings.train.steps, len(seeds), len(images), data.name, shared,
        {arm.name: arm.changes for arm in grid.arms}, tuple(comparisons), environment(),
    )  # fmt: skip
