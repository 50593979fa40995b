"""Students as files: `load` takes any that we or official SwinIR wrote, `save` writes one that all of them read."""

from student.model.weight_files import load_student as load
from student.model.weight_files import save_student as save

__all__ = ["load", "save"]
