"""How much memory there is, and the tiles that fit into it."""

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from student.networks import Network
from student.upscaling.tiles import Tiling, cut

CPU_BUDGET = 1.5e9
"""Bytes for tiles on a CPU even where more is free: larger tiles gain nothing there."""
TILES = (512, 384, 256, 192, 128, 96, 64)
"""What is tried, largest first: above 512 the overlap is less than a seventh of the work already."""
MAX_BATCH = 16


class Batching(NamedTuple):
    """How a picture goes through the network: `batch` tiles at a time."""

    tiling: Tiling
    batch: int


def free_memory(device: str = "cpu") -> int:
    """Bytes that can be taken on the device now, within the limit of a container."""
    if device.startswith("cuda"):
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    free = psutil.virtual_memory().available
    with suppress(OSError, ValueError):  # no control group, or "max": no limit
        group = Path("/sys/fs/cgroup")
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(free, 0)


def fit_into_memory(network: Network, width: int, height: int, tile: int | None, overlap: int) -> Batching:
    """Cut a picture of this size, by tiles of at most `tile`, or the largest that fit into half of the free memory.

    Raises:
        UsageError: `tile` or `overlap` are impossible.
    """
    multiple = network.multiple
    on_gpu = network.device.startswith("cuda")
    budget = free_memory(network.device) / 2 if on_gpu else min(free_memory() / 2, CPU_BUDGET)
    if tile is None:
        overlap = -(-overlap // multiple) * multiple
        tile = next((t for t in TILES if _fits(network, t, width, budget, on_gpu)), TILES[-1])
        tile = max(tile // multiple * multiple, 2 * overlap)
    tiling = Tiling(cut(height, tile, overlap, multiple), cut(width, tile, overlap, multiple))
    each = tiling.rows.tile * tiling.columns.tile * network.bytes_per_pixel
    return Batching(tiling, max(1, min(MAX_BATCH, len(tiling.columns.starts), int(budget / each))) if on_gpu else 1)


def _fits(network: Network, tile: int, width: int, budget: float, on_gpu: bool) -> bool:
    """Whether a forward pass fits, and on a CPU the band of finished rows (RGBA in float32) beside it."""
    band = 16 * tile * width * network.scale**2
    forward = tile * min(tile, width) * network.bytes_per_pixel
    return forward <= budget and band <= CPU_BUDGET if on_gpu else forward + band <= budget
