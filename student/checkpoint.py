"""Students as files: `load` takes any that we or official SwinIR wrote, `save` writes one that all of them read."""

from pathlib import Path

from student.model.swinir import SwinIR
from student.model.weight_files import load_student
from student.model.weight_files import save_student as save
from student.networks import find_checkpoint

__all__ = ["load", "save"]


def load(path: str | Path) -> SwinIR:
    """A ready network (see `load_student`) from a weight file, a run folder or the name of a shipped student.

    Raises:
        DtkdError: there is nothing of that name, or it holds no SwinIR.
    """
    return load_student(find_checkpoint(str(path)))
