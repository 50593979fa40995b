"""In which precision a student computes: float32, or with bfloat16 operands of products and convolutions.

Weights, norms, softmax, the residual stream and the result are float32 in both; float16 overflows (SwinIR#103).
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from pipeline.system.device import fast_bf16

Precision = Literal["auto", "fp32", "bf16"]
"""What a user may ask for: `auto` is bf16 where the hardware multiplies it natively, else fp32."""
ResolvedPrecision = Literal["fp32", "bf16"]
"""What a result is recorded with."""


def resolve_precision(precision: Precision, device: str | torch.device) -> ResolvedPrecision:
    """The precision that `precision` means on a device."""
    if precision == "auto":
        return "bf16" if fast_bf16(str(device)) else "fp32"
    return precision


def autocast(precision: ResolvedPrecision, device: str | torch.device) -> AbstractContextManager[object]:
    """Context in which forward passes on a device have this precision; backward passes follow, outside it too."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)
