"""Stage one as its command: what can be wrong is found, and what will be done told, before the teacher is loaded."""

from pathlib import Path

from pipeline.system.device import choose
from pipeline.system.progress import OnProgress
from teacher_cache import teachers
from teacher_cache.building.build import BuildResult, build
from teacher_cache.building.settings import StageOneSettings
from teacher_cache.building.survey import survey
from teacher_cache.reporting.preview import Preview, preview_tiles
from teacher_cache.reporting.sheet import check_sheet, sheet_path
from teacher_cache.teachers.diffusers_teacher import Dtype


def run(
    corpus: str | Path,
    cache: str | Path,
    teacher: str,
    settings: StageOneSettings,
    on_progress: OnProgress,
    *,
    preview: int | None = None,
    steps: int | None = None,
    dtype: Dtype | None = None,
    device: str = "auto",
) -> BuildResult | Preview:
    """Make a cache, or go on with it, or only show `preview` tiles of it.

    Args:
        corpus: folder of photos, or `sample`.
        cache: folder or URL of the cache.
        teacher: its name; with `steps`, `dtype` and `device` as `teacher_cache.teachers.load` takes them.
        settings: what to make and how.
        on_progress: called first with what will be done, then after every micro-batch.
        preview: tiles on the sheet; None makes the cache.
        steps: network evaluations an image; None takes the teacher's own default.
        dtype: precision of the teacher; None takes its own.
        device: torch device, or auto.

    Raises:
        DtkdError: as `survey`, `load`, `build` and `preview_tiles`.
    """
    teachers.check_name(teacher, settings.teacher)
    surveyed = survey(corpus, cache, settings)
    if preview:
        check_sheet(sheet_path(cache))
    on_progress(surveyed.begin(teacher))
    chosen, scale = choose(device), settings.degradation.scale
    loaded = teachers.load(teacher, scale=scale, steps=steps, device=chosen, dtype=dtype, settings=settings.teacher)
    if preview:
        return preview_tiles(surveyed, loaded, preview, chosen, on_progress)
    return build(surveyed, loaded, on_progress)
