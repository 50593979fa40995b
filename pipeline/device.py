"""Which device a process computes on, and what it is good at."""

import os


def choose(name: str = "auto") -> str:
    """Torch device for `name`; `auto` is this process's GPU where there is one (by LOCAL_RANK), else `cpu`."""
    if name != "auto":
        return name
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def fast_bf16(device: str) -> bool:
    """Whether `device` multiplies bf16 matrices natively, so that autocast to it pays."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
