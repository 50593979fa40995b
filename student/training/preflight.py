"""What a run is about to do: refused before anything is written where it cannot be, told before the first step."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator

from pipeline.system.device import refuse_without_compiler
from pipeline.system.errors import DtkdError
from pipeline.system.words import bytes_text, plural
from pipeline.training import checkpoint, processes
from pipeline.training.run_folder import Resume
from student.dataset import CacheDataset
from student.model import SwinIR
from student.stream import refuse_misfits
from student.training.held_out import HeldOut
from student.training.run import BEST, LAYOUT, STUDENT, refuse_other_scale, start_from
from student.training.settings import RunSettings
from student.training.state import read_state
from student.training.validation import measures_for

MANY_EPOCHS = 500
"""From here on it is said that a student may learn its tiles by heart: SwinIR's own training has about as many."""
_NAMED = 20  # skipped files that are named


def preflight(
    run: Path, settings: RunSettings, dataset: CacheDataset, held_out: HeldOut, resume: Resume, accelerator: Accelerator
) -> list[str]:
    """Look at everything that a run needs; nothing is written.

    Args:
        run: its folder, which need not exist.
        settings: of the run.
        dataset: training samples.
        held_out: what it is validated on.
        resume: see `student.training.loop.train`.
        accelerator: of this process; all of them raise what one of them finds.

    Returns:
        lines for people; the first says what is trained on, the others what there is to know besides.

    Raises:
        DtkdError: settings, cache, held-out pictures, weights to start from or disk do not allow the run.
    """

    def look() -> list[str]:
        t = settings.train
        LAYOUT.refuse_foreign(run)
        refuse_misfits(dataset, settings.data, t.batch_size, t.patch, accelerator.num_processes, t.accumulate)
        refuse_other_scale(settings, dataset)
        latest = checkpoint.newest(run) if resume == "auto" else None
        if latest and read_state(latest).step >= t.steps:
            return []  # it is only reported
        student = settings.model.build()
        if t.init and not latest:
            start_from(student, t.init)
        if len(held_out):
            measures_for(held_out, t, accelerator.device.type)
        told = [*_training(settings, dataset, accelerator.num_processes), *_validation(settings, held_out)]
        told.append(_disk(run, student, t.keep))
        if t.compile:
            refuse_without_compiler(accelerator.device)
        return told

    return processes.main_first(accelerator, look)


def _training(settings: RunSettings, dataset: CacheDataset, world: int) -> Iterator[str]:
    t, tiles = settings.train, len(dataset)
    epochs = t.steps * t.batch_size / tiles
    yield f"{plural(t.steps, 'step')} in batches of {t.batch_size} are {epochs:.1f} epochs of {plural(tiles, 'tile')}"
    if t.accumulate > 1:
        whose = " on each process" if world > 1 else ""
        yield f"every step in {t.accumulate} parts, batches of {t.batch_size // (world * t.accumulate)}{whose}"
    if t.compile:
        yield "the first step compiles the student, which takes a minute or more"
    if tiles < t.batch_size:
        yield f"fewer tiles ({tiles}) than a batch has patches ({t.batch_size}): a step sees some of them repeatedly"
    if epochs > MANY_EPOCHS:
        yield (
            f"more than {MANY_EPOCHS} epochs: the student may learn these tiles by heart; add photos, lower "
            f"train.steps, or take {BEST}"
        )
    if epochs < 1:
        yield f"less than an epoch: {tiles - t.steps * t.batch_size} tiles are never seen; raise train.steps"
    if t.patch * dataset.scale == dataset.tile:
        yield f"a patch is a whole tile ({dataset.tile} HR pixels), so that crops do not vary: lower train.patch"
    if t.lr_warmup >= t.steps:
        yield f"the learning rate rises all the time: train.lr_warmup is {t.lr_warmup}, train.steps {t.steps}"


def _validation(settings: RunSettings, held_out: HeldOut) -> Iterator[str]:
    t = settings.train
    yield from (f"skipped {item.id}: {item.reason}" for item in held_out.skipped[:_NAMED])
    if more := len(held_out.skipped[_NAMED:]):
        yield f"and {plural(more, 'more skipped file')}"
    if len(held_out):
        pictures = f"{plural(len(held_out), 'picture')} of {held_out.label}"
        yield f"validation every {plural(t.val_every, 'step')} on {pictures}, by {', '.join(t.val_metrics)}"
    else:
        yield f"no held-out samples, so no validation and no {BEST}: name pictures with --val"


def _disk(run: Path, student: SwinIR, keep: int) -> str:
    """What the run takes of its disk; one checkpoint more than are kept is there while it is saved."""
    file = sum(tensor.nbytes for tensor in student.state_dict().values())
    moments = 2 * sum(weight.nbytes for weight in student.parameters())
    needed = (keep + 1) * (2 * file + moments) + 2 * file  # a checkpoint holds the weights and their average
    mine = [run / STUDENT, run / BEST, *run.glob("checkpoints/step-*/*")]
    there = sum(path.stat().st_size for path in mine if path.is_file())
    parent = next(folder for folder in (run.absolute(), *run.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(parent).free
    text = f"checkpoints and students take {bytes_text(needed)}"
    if needed > free + there:
        raise DtkdError(
            f"{run}: {text} (train.keep={keep}), but its disk has {bytes_text(free)} free: make room, or choose "
            "another folder"
        )
    return f"{text} of the disk, {bytes_text(free)} are free"
