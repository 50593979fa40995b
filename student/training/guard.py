"""Steps that go wrong, named with their samples: a loss that is not finite, or one far above those before it.

RUN/nonfinite/step-N.json               losses and samples of a step that is not finite, of every process
RUN/nonfinite/step-N-R.safetensors      process R's pictures of it: lr, gt, teacher, sr, as many as fit

Looking changes nothing: what a step does with its weights is `pipeline.training.state`'s rule. Every process looks, for
what they see goes together (one exchange, at such steps only).

B batch, n samples that are kept.
"""

import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import save
from torch import Tensor

from pipeline.system.files import atomic_write_bytes, atomic_write_json, ensure_dir
from pipeline.system.words import plural
from pipeline.training.log import RunLog
from pipeline.training.processes import Seen
from student.stream import Batch
from student.training.state import TrainState

FOLDER = "nonfinite"
MAX_STEPS = 20
"""Steps whose samples a run writes down, the first ones: the samples of the others stand in the log."""
MAX_PICTURE_STEPS = 3
MAX_PICTURE_BYTES = 16 << 20
"""Of one process and step."""
RECENT, ENOUGH = 100, 20
"""Steps that a loss is compared with, and how few of them do."""
WATCHED = ("l1", "fg")
"""Parts of the loss, neither of which moves with lambda."""
NAMED = 4  # samples in a line for people


class Finding(NamedTuple):
    """A sample of a step that went wrong."""

    process: int
    key: str
    l1: float
    """Mean |S - GT|."""
    not_finite: tuple[str, ...]
    """Of lr, gt, teacher and sr."""

    def to_json(self) -> dict[str, object]:
        """As JSON values."""
        return {"process": self.process, "key": self.key, "l1": _number(self.l1), "not_finite": list(self.not_finite)}

    def __str__(self) -> str:
        """For people."""
        what = f"{' and '.join(self.not_finite)} not finite" if self.not_finite else f"l1 {self.l1:.4f}"
        return f"{self.key} ({what})"


def look(
    run: Path,
    state: TrainState,
    batch: Batch,
    sr: Tensor,
    seen: Seen,
    own: Mapping[str, Tensor],
    spike: float,
    log: RunLog,
    accelerator: Accelerator,
) -> None:
    """Name the samples of the step that is being done, where it is not finite or its loss leaps.

    Args:
        run: folder of the run.
        state: before the step is counted; its `recent` losses are brought up to date.
        batch: this process's share.
        sr: what the student made of it, (B, 3, H, W).
        seen: what all processes agree on.
        own: losses of this process.
        spike: a part of the loss this many times above its running median is a leap; 0: none is.
        log: takes the remark, and a line with every sample.
        accelerator: of this process.
    """
    if seen.finite:
        _tell_leaps(state, batch, sr, seen, spike, log, accelerator)
    else:
        _tell_not_finite(run, state.step + 1, batch, sr, own, log, accelerator)


def _tell_not_finite(
    run: Path, step: int, batch: Batch, sr: Tensor, own: Mapping[str, Tensor], log: RunLog, accelerator: Accelerator
) -> None:
    found = _gather(batch, sr, accelerator)
    text = f"step {step} left out, loss or gradient not finite: {_named(found)}"
    losses = {name: _number(float(value.detach())) for name, value in own.items()}
    report = {"step": step, "losses": gather_object([losses]), "samples": [one.to_json() for one in found]}
    try:
        _write(run / FOLDER, step, report, batch, sr, found, accelerator)
    except OSError as error:  # the run itself goes on; a checkpoint that finds the disk full ends it
        text += f"; cannot write {error.filename or FOLDER} ({error.strerror})"
    log.remark(text, **report)


def _tell_leaps(
    state: TrainState, batch: Batch, sr: Tensor, seen: Seen, spike: float, log: RunLog, accelerator: Accelerator
) -> None:
    step, values = state.step + 1, {name: seen.values[name] for name in WATCHED}
    leaps = {name: median for name in WATCHED if (median := _leapt_over(values[name], state.recent[name], spike))}
    state.recent = {name: [*state.recent[name], values[name]][-RECENT:] for name in WATCHED}
    if not leaps:
        return
    found = _gather(batch, sr, accelerator)
    samples = [one.to_json() for one in found]
    for name, median in leaps.items():
        times = f"{values[name] / median:.1f} times the median of the steps before"
        remark = f"step {step}: {name} {values[name]:.4f} is {times}: {_named(found)}"
        log.remark(remark, step=step, spike=name, median=median, losses=seen.values, samples=samples)


def _leapt_over(value: float, before: list[float], spike: float) -> float | None:
    """The running median that a loss has leapt over; None where it has not, or too little is known."""
    if not spike or len(before) < ENOUGH:
        return None
    median = statistics.median(before)
    return median if value > spike * median > 0 else None


@torch.no_grad()
def _gather(batch: Batch, sr: Tensor, accelerator: Accelerator) -> list[Finding]:
    """The samples of all processes, the worst first: pictures that are not finite, then by l1."""
    pictures = {"lr": batch.lr, "gt": batch.gt, "teacher": batch.teacher, "sr": sr}
    finite = {name: torch.isfinite(images).flatten(1).all(1).tolist() for name, images in pictures.items()}
    l1 = (sr.float() - batch.gt).abs().flatten(1).mean(1).tolist()
    own = [
        Finding(accelerator.process_index, key, l1[i], tuple(name for name in pictures if not finite[name][i]))
        for i, key in enumerate(batch.keys)
    ]
    found: list[Finding] = gather_object(own)
    return sorted(found, key=_goodness)


def _goodness(one: Finding) -> tuple[bool, bool, float]:
    inputs = [name for name in one.not_finite if name != "sr"]  # a network that has diverged spoils every sr
    return not inputs, not one.not_finite, -one.l1 if math.isfinite(one.l1) else 0.0


def _named(found: list[Finding]) -> str:
    guilty = [one for one in found if one.not_finite] or found
    rest = f" and {plural(len(found) - NAMED, 'more sample')}" if len(found) > NAMED else ""
    names = ", ".join(map(str, guilty[:NAMED]))
    if len(guilty) < min(len(found), NAMED):
        rest = f" among {plural(len(found), 'sample')}"
    return names + rest


def _write(
    folder: Path, step: int, report: dict, batch: Batch, sr: Tensor, found: list[Finding], accelerator: Accelerator
) -> None:
    """Write what fits within the limits; of a step that has been written before, the same again."""
    others = {path.name[:13] for path in folder.glob("step-*.json")} - {f"step-{step:08d}"}
    accelerator.wait_for_everyone()  # all of them have counted before anyone writes
    if len(others) >= MAX_STEPS:
        return
    ensure_dir(folder)
    if accelerator.is_main_process:
        atomic_write_json(folder / f"step-{step:08d}.json", report)
    if len(others) < MAX_PICTURE_STEPS:
        own = [batch.keys.index(one.key) for one in found if one.process == accelerator.process_index]
        tensors = {"lr": batch.lr, "gt": batch.gt, "teacher": batch.teacher, "sr": sr.float()}
        one = sum(images[0].numel() * images.element_size() for images in tensors.values())
        kept = own[: max(MAX_PICTURE_BYTES // one, 1)]
        on_cpu = {name: images.detach()[kept].cpu().contiguous() for name, images in tensors.items()}  # (n, 3, ., .)
        name = f"step-{step:08d}-{accelerator.process_index}.safetensors"
        keys = {"keys": json.dumps([batch.keys[i] for i in kept])}
        atomic_write_bytes(folder / name, save(on_cpu, keys))


def _number(value: float) -> float | str:
    """For JSON, which holds no NaN and no infinity: their names."""
    return value if math.isfinite(value) else str(value)
