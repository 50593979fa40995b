"""What a restoration costs beside its time: operations, memory, and whether it gives the same bytes twice.

Measured once for a candidate, on the first image that it restores, in passes of their own that no clock sees; they
warm up what computes it, too.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from pipeline.images import Rgb
from pipeline.system.device import measuring_memory, out_of_memory


@dataclass(frozen=True)
class Cost:
    """Of one image.

    Attributes:
        lr_size: width and height of the LR image.
        flops: floating-point operations of matrix products and convolutions (a multiplication and an addition are two),
            as `torch.utils.flop_counter` counts them; None where nothing was counted.
        peak_bytes: memory beyond what was held before; None where it cannot be measured.
        repeatable: whether a second pass gave the same bytes.
    """

    lr_size: tuple[int, int]
    flops: int | None
    peak_bytes: int | None
    repeatable: bool

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        names = ("lr_size", "flops", "peak_bytes", "repeatable")
        return {name: getattr(self, name) for name in names} | {"lr_size": list(self.lr_size)}


def measure_cost(
    restore: Callable[[], Rgb], count: Callable[[], object], lr_size: tuple[int, int], device: str
) -> Cost:
    """Measure a restoration, and do it once more.

    Args:
        restore: restores the image.
        count: does the operations that are counted.
        lr_size: width and height.
        device: where it computes.
    """
    try:
        flops = count_flops(count)  # apart: it is computed with other operators, so not alike to the last bit
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        flops = 0  # in fp32 an image may be too large that is not so in bf16
    with measuring_memory(device) as peak:
        first = restore()
    return Cost(lr_size, flops or None, peak.bytes, bool(np.array_equal(first, restore())))


def count_flops(work: Callable[[], object]) -> int:
    """Operations of matrix products and convolutions; torch knows neither in-place forms nor the CPU's attention."""
    aten = torch.ops.aten
    forms = {
        aten.addmm_: _product,
        aten.baddbmm_: _product,
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    }
    with FlopCounterMode(display=False, custom_mapping=forms) as counter:
        work()
    return counter.get_total_flops()


def _attention(q: torch.Size, k: torch.Size, v: torch.Size, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _product(into: torch.Size, a: torch.Size, b: torch.Size, *args: Any, **kwargs: Any) -> int:
    return 2 * math.prod(a) * b[-1]
