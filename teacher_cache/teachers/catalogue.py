"""Which teachers there are, by name. Their modules are imported when one of them is asked for."""

from collections.abc import Iterable

from pipeline.system.device import choose, keep_freed_memory
from pipeline.system.errors import UsageError
from pipeline.teacher import Teacher
from teacher_cache.teachers.colour import ColourFixed
from teacher_cache.teachers.diffusers_teacher import Dtype
from teacher_cache.teachers.embedded import find_home, load_embedded
from teacher_cache.teachers.settings import TeacherSettings

PYTHON = "python:"
"""How the name of a teacher begins that is somebody's code."""
KNOWS = {
    "ldm": {"revision"},
    "sd-x4": {"prompt", "negative_prompt", "guidance", "noise_level", "revision"},
}
"""Settings that a kind of teacher has beside those that all have."""


def load(
    name: str,
    *,
    scale: int = 4,
    steps: int | None = None,
    device: str = "cpu",
    dtype: Dtype | None = None,
    settings: TeacherSettings | None = None,
) -> Teacher:
    """Load a teacher by name.

    A name that was read from a file goes through `teacher_cache.building.verify.load_teacher`: `python:` runs code.

    Args:
        name: `embedded`, `embedded-bicubic`, FOLDER (of `dtkd train-teacher`), `ldm`, `ldm:ID_OR_FOLDER`, `sd-x4`,
            `sd-x4:ID_OR_FOLDER`, `import:FOLDER` or `python:FILE_OR_MODULE:FACTORY`.
        scale: the scale that is asked for.
        steps: network evaluations an image; None takes the teacher's own default.
        device: torch device.
        dtype: weights' precision; None takes the teacher's own: fp32, but bf16 for `sd-x4` on a GPU.
        settings: what else is asked of it; defaults where None.

    Raises:
        UsageError: unknown name, steps or settings that it cannot take, or another scale.
        DtkdError: nothing usable there.
    """
    if steps is not None and steps < 1:
        raise UsageError(f"steps must be at least 1, got {steps}")
    if device == "cpu":
        keep_freed_memory()
    settings = settings or TeacherSettings()
    teacher = _load(name, scale, steps, device, dtype, settings)
    if teacher.scale != scale:
        raise UsageError(f"the teacher {name} is made for scale {teacher.scale}, got --scale {scale}")
    return teacher if settings.colour == "none" else ColourFixed(teacher, settings.colour)


def load_each(names: Iterable[str], scale: int | None = None, device: str = "auto") -> dict[str, Teacher]:
    """Several teachers by name, as `load` does, with their own steps and precision.

    Args:
        names: as `load` takes them; the same one twice is loaded once.
        scale: the scale that is asked for; None is 4.
        device: torch device, or auto.

    Raises:
        DtkdError: as `load`.
    """
    return {name: load(name, scale=scale or 4, device=choose(device)) for name in dict.fromkeys(names)}


def check_name(name: str, settings: TeacherSettings | None = None) -> None:
    """Refuse a name that no teacher can have, or settings that this one has not, without loading anything.

    Raises:
        UsageError: the name is unknown, or the settings are of another kind of teacher.
    """
    kind, colon, _ = name.partition(":")
    (settings or TeacherSettings()).refuse_others(name, KNOWS.get(kind, ()))
    if not (colon and kind in ("import", "python", "ldm", "sd-x4")) and kind not in ("ldm", "sd-x4"):
        find_home(name)


def _load(
    name: str, scale: int, steps: int | None, device: str, dtype: Dtype | None, settings: TeacherSettings
) -> Teacher:
    kind, _, where = name.partition(":")
    settings.refuse_others(name, KNOWS.get(kind, ()))
    if kind == "import":
        from teacher_cache.teachers.imported import ImportedTeacher

        if steps is not None or dtype is not None:
            raise UsageError(f"{name} computes nothing: --steps and --dtype are for teachers that do; leave them out")
        return ImportedTeacher(where, scale)
    if name.startswith(PYTHON):
        from teacher_cache.teachers.plug import PluggedTeacher

        return PluggedTeacher(name, scale, steps, device, dtype)
    if kind == "ldm":
        from teacher_cache.teachers.ldm import load_ldm

        return load_ldm(name, where, steps, device, dtype, settings)
    if kind == "sd-x4":
        from teacher_cache.teachers.sd_x4 import load_sd_x4

        return load_sd_x4(name, where, steps, device, dtype, settings)
    return load_embedded(name, steps, device, dtype)
