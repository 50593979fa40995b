"""In which precision a network computes: float32, or bfloat16 operands of products and convolutions under autocast.

Weights and what is recorded of them are float32 in both.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

from pipeline.system.device import fast_bf16

Precision = Literal["auto", "fp32", "bf16"]
"""What a user may ask for."""
ResolvedPrecision = Literal["fp32", "bf16"]
"""What is computed in, and recorded with every result."""


def resolve_precision(precision: Precision, device: str) -> ResolvedPrecision:
    """What `precision` means on a device: `auto` is bf16 where the hardware multiplies it natively, else fp32."""
    if precision == "auto":
        return "bf16" if fast_bf16(device) else "fp32"
    return precision


def autocast(precision: ResolvedPrecision, device: str) -> AbstractContextManager[object]:
    """Context in which forward passes on a device have this precision; their backward passes have it anywhere."""
    import torch

    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)
