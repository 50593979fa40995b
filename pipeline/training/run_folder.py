"""The folder of a training run: one writer at a time, checkpoints that appear whole.

    RUN/checkpoints/step-00001000/    made under another name and renamed; older ones are deleted after that

Whatever kills the process, the newest checkpoint folder is complete.
"""

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.system.errors import DtkdError
from pipeline.system.files import ensure_dir, fsync_dir


@contextmanager
def claim(run: Path) -> Iterator[None]:
    """Keep other processes out of the folder while the block runs; the lock goes with the process, however it ends.

    Raises:
        DtkdError: the folder cannot be written, or another process trains in it.
    """
    ensure_dir(run)
    with open(run / ".lock", "w") as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock: forked readers would hold it after our death
        except (BlockingIOError, PermissionError) as error:
            raise DtkdError(f"another process is training in {run}: wait for it, or choose another folder") from error
        yield


def write_checkpoint(run: Path, step: int, fill: Callable[[Path], None], keep: int) -> Path:
    """Make the checkpoint of `step` by `fill(folder)`, then delete all but the `keep` newest ones.

    A step that has one already keeps it: a run comes to the same state by whatever way.
    """
    folder = ensure_dir(run / "checkpoints")
    final = folder / f"step-{step:08d}"
    for left in folder.glob(".step-*.part"):  # of a killed process: one is enough to fill a disk
        shutil.rmtree(left, ignore_errors=True)
    if not final.exists():
        part = folder / f".{final.name}.{secrets.token_hex(4)}.part"
        part.mkdir()
        fill(part)
        os.replace(part, final)
        fsync_dir(folder)
    for old in _all(run)[:-keep]:
        shutil.rmtree(old)
    return final


def newest_checkpoint(run: Path) -> Path | None:
    """Folder of a run's newest checkpoint, None when there is none."""
    return _all(run)[-1] if _all(run) else None


def _all(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step-*"))
