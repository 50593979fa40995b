"""Make torchvision importable beside a CPU-only torch.

The Linux torchvision wheel registers its operators in a compiled library that a CPU-only torch cannot load; its Python
side then fails at import ("operator torchvision::nms does not exist") and takes diffusers, transformers, pyiqa and
spandrel with it. Nothing here calls these operators, so declaring them is enough. This module can go when torchvision
publishes CPU wheels under the same version on the package index, or declares its operators before it registers fakes.
"""

import importlib.util
from pathlib import Path

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_library: torch.library.Library | None = None


def apply() -> bool:
    """Declare the operators that `import torchvision` needs, where they are missing. Idempotent.

    Returns:
        True if this call declared them.
    """
    global _library
    if _library is not None or _compiled_operators_load():
        return False
    _library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        _library.define(name + _SCHEMA)
    return True


def _compiled_operators_load() -> bool:
    """Whether torchvision is absent, or its compiled operators are there or can be loaded with this torch."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return True
    if hasattr(torch.ops.torchvision, "nms"):
        return True
    compiled = [p for folder in spec.submodule_search_locations for p in Path(folder).glob("_C*.so")]
    try:
        for library in compiled:
            torch.ops.load_library(library)
    except OSError:
        return False
    return hasattr(torch.ops.torchvision, "nms")
