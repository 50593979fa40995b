"""What a training run tells about itself: log.jsonl (one JSON object a line) and the same numbers for TensorBoard.

{"step": 50, "total": ..., "l1": ..., "fg": ..., "low": ..., "mid": ..., "high": ..., "grad_norm": ..., "skipped": ...,
 "seconds": ..., "lambda": ..., "lr": ..., "images_per_s": ..., "waiting": ..., "memory_mb": ...}
                                              means over the steps since the last such line; a teacher has `total` alone
{"step": 500, "val_psnr_y": ..., "val_dss": ...}    of the averaged weights on held-out pictures
{"step": 77, "remark": "...", ...}            something that should not be, in words, and what there is to know about it
"""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pipeline.images import Rgb
from pipeline.system.files import atomic_write_bytes

CURVES = {
    "total": "loss/total",
    "l1": "loss/l1",
    "fg": "loss/fg",
    "low": "group/low",
    "mid": "group/mid",
    "high": "group/high",
    "lambda": "schedule/lambda",
    "lr": "schedule/lr",
    "grad_norm": "train/grad_norm",
}
"""Name in log.jsonl -> name in TensorBoard, where that is not train/NAME; val_NAME is val/NAME."""


class RunLog:
    """Appends to both logs of a run, after taking back what a killed process wrote past `step`.

    Processes other than the main one have a log that drops every line, so that a loop need not ask which it is in.
    """

    def __init__(self, run: Path, step: int, speaks: bool = True) -> None:
        """Open the logs to go on after `step` finished steps; none where this process does not speak."""
        self._files = ExitStack()
        self._lines = self._board = None
        self._remarks: list[str] = []
        if not speaks:
            return
        from torch.utils.tensorboard import SummaryWriter

        path = run / "log.jsonl"
        atomic_write_bytes(path, "".join(json.dumps(line) + "\n" for line in read_log(run, step)).encode())
        self._lines = self._files.enter_context(path.open("a", encoding="utf-8"))
        self._board = self._files.enter_context(SummaryWriter(str(run / "tensorboard"), purge_step=step + 1))

    def __enter__(self) -> "RunLog":
        """Nothing to do: the files are open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close both logs."""
        self._files.close()

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Log one line, where there is anything to say."""
        if self._lines is None or self._board is None or not values:
            return
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            curve = f"val/{name[4:]}" if name.startswith("val_") else f"train/{name}"
            self._board.add_scalar(CURVES.get(name, curve), value, step)

    def remark(self, text: str, *, step: int, **details: Any) -> None:
        """Log a line about something that should not be; `details` are JSON values."""
        if self._lines is None or self._board is None:
            return
        self._lines.write(json.dumps({"step": step, "remark": text, **details}) + "\n")
        self._lines.flush()
        self._board.add_text("remarks", text, step)
        self._remarks.append(text)

    def picture(self, name: str, image: Rgb, *, step: int) -> None:
        """Show TensorBoard a picture (H, W, 3)."""
        if self._board is not None:
            self._board.add_image(name, image, step, dataformats="HWC")

    def take_remarks(self) -> str:
        """Remarks since the last call, for people; empty where there was nothing to say."""
        text, self._remarks = "; ".join(self._remarks), []
        return text


def read_log(run: Path, last_step: int | None = None) -> list[dict[str, Any]]:
    """Lines of a run's log up to `last_step`; empty without a log. A torn last line is left out."""
    try:
        text = (run / "log.jsonl").read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    lines = [json.loads(line) for line in text.split("\n")[:-1] if line]
    return [line for line in lines if last_step is None or line["step"] <= last_step]
