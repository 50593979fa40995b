"""Teachers by name: `load` gives one, `load_haar` the pipeline of one of ours to train on.

Importing any part of it makes torchvision importable first, without which diffusers is not (see the guard).
"""

from pipeline.system import torchvision_guard

torchvision_guard.apply()

from teacher_cache.teachers.catalogue import check_name, load, load_each  # noqa: E402 - after the guard
from teacher_cache.teachers.embedded import EMBEDDED, load_haar  # noqa: E402

__all__ = ["EMBEDDED", "check_name", "load", "load_each", "load_haar"]
