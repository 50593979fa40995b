"""The report of a pair of runs: one HTML file without any external part, for people.

It evaluates bicubic, the GT-only student of the same budget, the DTKD student and the teacher on the cache's held-out
photos, and shows figures, pictures, training curves, times, and how everything was made.
"""

import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path

from pipeline import shards
from pipeline.images import Rgb
from pipeline.system.errors import DtkdError
from pipeline.system.files import atomic_write_bytes, ensure_dir
from pipeline.system.outputs import check_file, check_suffix
from pipeline.system.progress import OnProgress
from student.evaluation import metrics
from student.evaluation.evaluate import Evaluation, EvaluationSettings, evaluate
from student.model.weight_files import read_metadata
from student.networks import find_checkpoint
from student.report.curves import read_curves
from student.report.page import is_page
from student.report.pair import BICUBIC, DTKD, GT_ONLY, SET, TEACHER, TRUTH, Report, ReportRun, render_report
from student.report.pictures.spool import Spool
from student.stream import open_cache

__all__ = ["Report", "write_report"]

METRICS = (*metrics.DEFAULT_METRICS, "teacher_psnr_y")


def write_report(
    cache: Path,
    dtkd: Path,
    out: Path,
    *,
    gt_only: Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> Report:
    """Evaluate the runs on the held-out photos of `cache` and write the report.

    Args:
        cache: a complete teacher cache.
        dtkd: run folder of the distilled student, which was trained on this cache, as was the other one.
        out: the HTML file to write.
        gt_only: run folder of the student that saw the ground truth only.
        device: torch device, or `auto`.
        overwrite: replace an earlier report.
        on_progress: called after every photo.

    Raises:
        DtkdError: a run or the cache cannot be used, or `out` cannot be written, or is there already.
        UsageError: `out` is no name for an HTML file.
    """
    check_suffix(out, (".html", ".htm"), "a report")
    check_file(out, "a report", overwrite, lambda path: is_page(path, "report"))
    ensure_dir(out.parent)
    labelled = [(GT_ONLY, gt_only)] if gt_only else []
    runs = [_read_run(label, folder) for label, folder in [*labelled, (DTKD, dtkd)]]
    for run in runs:
        _refuse_another_cache(run, cache)
    settings = EvaluationSettings(metrics=METRICS, device=device)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        spool = Spool(Path(folder))

        def keep(_: str, candidate: str, image_id: str, picture: Rgb) -> None:
            spool.add(SET, candidate, image_id, picture)

        found = evaluate([run.folder for run in runs], cache, settings, on_picture=keep, on_progress=on_progress)
        spool.finish()
        report = _report(out, found, runs)
        atomic_write_bytes(out, render_report(report, runs, shards.load_manifest(cache), spool))
    return report


def _read_run(label: str, folder: Path) -> ReportRun:
    if not folder.is_dir():
        raise DtkdError(f"{folder} is no run folder: train it with dtkd train-student")
    try:
        settings = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise DtkdError(f"{folder}/config.toml cannot be read ({error}): name the folder of a training run") from error
    return ReportRun(label, folder, settings, read_curves(folder, label))


def _refuse_another_cache(run: ReportRun, cache: Path) -> None:
    """Make sure that this cache's held-out photos were held out in training."""
    student = find_checkpoint(str(run.folder))
    if read_metadata(student).get("cache") != open_cache(cache, "train").fingerprint():
        raise DtkdError(
            f"{run.folder} was not trained on the samples of {cache}: it may have seen the photos that are held out "
            "here; name the cache that it was trained on, or use dtkd evaluate on photos that are new to both"
        )


def _report(out: Path, found: Evaluation, runs: Sequence[ReportRun]) -> Report:
    students = iter(run.label for run in runs)
    fixed = {"baseline": BICUBIC, "teacher": TEACHER, "gt": TRUTH}
    labels = {c.name: fixed.get(c.role) or next(students) for c in found.candidates}
    seconds = {labels[c.name]: c.seconds for c in found.candidates}
    return Report(out, found, labels, seconds[TEACHER], seconds[DTKD])
