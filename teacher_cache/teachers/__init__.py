"""Teachers by name: `load` gives one, `load_haar` the pipeline of one of ours to train on."""

from teacher_cache.teachers.catalogue import check_name, load, load_each
from teacher_cache.teachers.embedded import EMBEDDED, load_haar

__all__ = ["EMBEDDED", "check_name", "load", "load_each", "load_haar"]
