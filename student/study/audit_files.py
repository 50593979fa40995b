"""An audit of a cache folder with a student by name, and what is written of it.

OUT/audit.json     every figure with its interval        OUT/audit.svg   the plots
OUT/weights.toml   calibrated weights, where a student and a second seed were there to calibrate with
"""

from pathlib import Path

import torch

from pipeline.system.errors import DtkdError
from pipeline.system.files import atomic_write_bytes, atomic_write_json, ensure_dir, read_json
from pipeline.system.outputs import check_folder
from pipeline.system.progress import OnProgress
from pipeline.teacher import Teacher
from student import checkpoint
from student.stream import open_cache
from student.study.audit import Audit, audit
from student.study.audit_plots import audit_svg


def audit_cache(
    cache: Path,
    student: str | None,
    teacher: Teacher | None,
    out: Path | None,
    overwrite: bool = False,
    *,
    tiles: int = 128,
    levels: int = 2,
    on_progress: OnProgress | None = None,
) -> Audit:
    """Audit the training samples of a cache, and write what was found.

    Args:
        cache: finished teacher cache.
        student: GT-only student by name, run folder or file; see `student.study.audit`, as `teacher`.
        teacher: the cache's teacher, for a second seed; None takes the cache's second outputs, where it has such.
        out: folder to write; None writes nothing.
        overwrite: replace an earlier audit there.
        tiles: to measure.
        levels: of the transform.
        on_progress: called after every tile.

    Raises:
        DtkdError: no cache or no such student, another scale, or a folder that holds something else.
    """
    if out is not None:
        check_folder(out, "an audit", overwrite, _is_audit)
    dataset = open_cache(cache)
    network = None if student is None else checkpoint.load(student)
    if network is not None and network.scale != dataset.scale:
        raise DtkdError(f"the student {student} is x{network.scale}, the cache x{dataset.scale}")
    with torch.inference_mode():
        found = audit(dataset, student=network, teacher=teacher, tiles=tiles, levels=levels, on_progress=on_progress)
    if out is not None:
        _write(found, out)
    return found


def _write(found: Audit, out: Path) -> None:
    ensure_dir(out)
    (out / "weights.toml").unlink(missing_ok=True)  # of an earlier audit, which may have had more to go by
    atomic_write_json(out / "audit.json", found.to_json())
    atomic_write_bytes(out / "audit.svg", audit_svg(found).encode())
    if found.weights is not None:
        atomic_write_bytes(out / "weights.toml", found.weights_toml().encode())


def _is_audit(folder: Path) -> bool:
    """Whether `audit_cache` has written into a folder."""
    try:
        record = read_json(folder / "audit.json")
    except (OSError, DtkdError):
        return False
    return isinstance(record, dict) and {"cache", "teacher", "bands", "groups"} <= record.keys()
