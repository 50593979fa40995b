"""Which device a process computes on."""

import os


def choose(name: str = "auto") -> str:
    """Torch device for `name`; `auto` is this process's GPU where there is one (by LOCAL_RANK), else `cpu`."""
    if name != "auto":
        return name
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
