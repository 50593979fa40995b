"""What the averaged weights make of a few held-out pictures, always the same ones: to be looked at while a run learns.

RUN/samples/step-00001000.png, and TensorBoard's pictures: a row for each sample, its busiest square: LR, student,
teacher, ground truth, and the error of the student in each sub-band (`student.report.pictures.bands`).

Looking changes nothing: no random number is drawn, and no weight is touched. H W are the sides of a square, HR pixels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image, ImageDraw, ImageFont

from pipeline import images
from pipeline.fidelity import psnr_y
from pipeline.filters import bicubic
from pipeline.images import Rgb
from pipeline.shards import DamagedShardError
from pipeline.system.errors import DtkdError
from pipeline.system.files import ensure_dir
from pipeline.training.log import RunLog
from student.evaluation.examples import Example
from student.model import SwinIR
from student.report.pictures import bands
from student.report.pictures.windows import Window, busiest_square
from student.training.held_out import HeldOut
from student.training.state import TrainState
from student.training.validation import restore

FOLDER = "samples"
SIDE = 256
"""Of what is shown of a sample, at most."""
WHITE = 32.0
"""Error in levels of 255 that is white: the same at every step, so that they can be compared."""
_GAP, _LINE = 4, 16
_PAPER, _INK = (255, 255, 255), (40, 40, 40)


class _Cell(NamedTuple):
    title: str
    picture: Rgb


@torch.inference_mode()
def draw_samples(
    run: Path, ema: SwinIR, held_out: HeldOut, count: int, state: TrainState, log: RunLog, accelerator: Accelerator
) -> None:
    """Write the sheet of this step, on the main process; a disk that is full is remarked, and the run goes on.

    Args:
        run: folder of the run.
        ema: averaged weights.
        held_out: what `count` samples are taken of, spread evenly; one that cannot be read is left out.
        count: samples; 0 draws nothing.
        state: of the run.
        log: takes the sheet, too.
        accelerator: of this process.
    """
    if not (count and len(held_out) and accelerator.is_main_process):
        return
    rows = []
    for index in np.unique(np.linspace(0, len(held_out) - 1, count).astype(int)).tolist():
        try:
            rows.append(_row(held_out.read(index), held_out.scale, ema, state, accelerator))
        except DamagedShardError:
            raise
        except DtkdError:
            continue  # the validation names it
    if not rows:
        return
    sheet = _sheet(rows)
    log.picture("samples", sheet, step=state.step)
    try:
        images.save(ensure_dir(run / FOLDER) / f"step-{state.step:08d}.png", sheet)
    except OSError as error:
        log.remark(f"samples of step {state.step} are not written ({error.strerror})", step=state.step)


def _row(example: Example, scale: int, ema: SwinIR, state: TrainState, accelerator: Accelerator) -> list[_Cell]:
    """What is shown of one sample."""
    truth = example.gt if example.gt is not None else example.teacher
    window = _aligned(busiest_square(bicubic(example.lr, scale) if truth is None else truth, SIDE), scale)
    lr = Window(*(side // scale for side in window)).of(example.lr)
    sr = restore(ema, np.ascontiguousarray(lr), state, accelerator)
    gt, teacher = (None if whole is None else window.of(whole) for whole in (example.gt, example.teacher))

    fidelity = "" if gt is None else f", psnr_y {psnr_y(sr, gt, 0):.2f}"
    cells = [_Cell(f"{example.id[-24:]}, LR", lr.repeat(scale, 0).repeat(scale, 1))]
    cells.append(_Cell(f"student, step {state.step}{fidelity}", sr))
    cells += [_Cell(name, of) for name, of in (("teacher", teacher), ("GT", gt)) if of is not None]
    aim = gt if teacher is None else teacher
    if aim is not None and bands.can_be_mapped(sr):
        mosaic, means = bands.band_errors(sr, bands.transform(aim))
        figures = " ".join(f"{group} {mean:.1f}" for group, mean in means.items())
        error = bands.grey(mosaic, WHITE)[..., None].repeat(3, 2)
        cells.append(_Cell(f"error to {'GT' if teacher is None else 'teacher'}: {figures}", error))
    return cells


def _aligned(window: Window, scale: int) -> Window:
    """The window on whole LR pixels."""
    return Window(*(side // scale * scale for side in window))


def _sheet(rows: Sequence[Sequence[_Cell]]) -> Rgb:
    """All samples below each other, every picture below its title, (height, width, 3)."""
    side = max(SIDE, *(max(cell.picture.shape[:2]) for row in rows for cell in row))
    columns = max(map(len, rows))
    size = (columns * (side + _GAP) + _GAP, len(rows) * (_LINE + side + _GAP) + _GAP)
    sheet = Image.new("RGB", size, _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for r, row in enumerate(rows):
        for c, cell in enumerate(row):
            x, y = _GAP + c * (side + _GAP), _GAP + r * (_LINE + side + _GAP)
            draw.text((x, y), cell.title, _INK, font)
            sheet.paste(Image.fromarray(cell.picture), (x, y + _LINE))
    return np.asarray(sheet)
