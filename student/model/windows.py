"""Window geometry of SwinIR: padding, partition, shifted-window masks, relative positions.

B batch, H W height and width in tokens, C channels, w window side, N = w * w tokens of a window, nW windows of one
image.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MASKED = -100.0
"""What published SwinIR adds to a forbidden attention logit; kept, because the value is part of the file layout."""


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each (query, key) of a window: int64 (N, N), as published checkpoints store it."""
    rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    down = rows[:, None] - rows[None, :] + window - 1
    right = columns[:, None] - columns[None, :] + window - 1
    return down * (2 * window - 1) + right


def attention_mask(height: int, width: int, window: int, shift: int, device: torch.device | None = None) -> Tensor:
    """Mask of a shifted block: float32 (nW, N, N), MASKED where query and key come from opposite image borders.

    After the cyclic shift the last window row and column hold tokens of both borders; the regions are numbered along
    each axis (0 inside, 1 own part of the last window, 2 part that was wrapped around).
    """
    rows, columns = (_regions(size, window, shift, device) for size in (height, width))
    regions = (3 * rows[:, None] + columns[None, :]).view(1, height, width, 1)
    regions = partition(regions, window).squeeze(-1)  # (nW, N)
    different = regions[:, None, :] != regions[:, :, None]
    return different.float() * MASKED


def _regions(size: int, window: int, shift: int, device: torch.device | None) -> Tensor:
    position = torch.arange(size, device=device)
    return (position >= size - window).long() + (position >= size - shift).long()


def partition(x: Tensor, window: int) -> Tensor:
    """Cut (B, H, W, C) into windows (B * nW, N, C), row by row."""
    b, h, w, c = x.shape
    x = x.view(b, h // window, window, w // window, window, c).transpose(2, 3)
    return x.reshape(-1, window * window, c)


def merge(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """Inverse of `partition`: (B * nW, N, C) to (B, H, W, C)."""
    x = windows.view(-1, height // window, width // window, window, window, windows.shape[-1]).transpose(2, 3)
    return x.reshape(-1, height, width, windows.shape[-1])


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Extend (B, C, H, W) at the bottom and right to multiples of `multiple` by mirroring, without the edge row itself.

    Where the image is smaller than the padding the mirror is repeated (as numpy.pad does); one row or column is
    copied. So every size from 1 x 1 up works.
    """
    h, w = x.shape[-2:]
    if is_traced():
        return x[..., _mirror(h, multiple, x.device), :][..., _mirror(w, multiple, x.device)]
    below, right = -h % multiple, -w % multiple
    if below < h and right < w:
        return F.pad(x, (0, right, 0, below), mode="reflect") if below or right else x
    return x[..., _mirror(h, multiple, x.device), :][..., _mirror(w, multiple, x.device)]


def _mirror(size: int, multiple: int, device: torch.device) -> Tensor:
    """Source positions along an axis of `size`, extended to the next multiple."""
    period = 2 * size - 2
    period = period.clamp(min=1) if isinstance(period, Tensor) else torch.sym_max(period, 1)  # a Tensor: ONNX tracing
    position = torch.arange((size + multiple - 1) // multiple * multiple, device=device) % period
    return torch.minimum(position, period - position)


def is_traced() -> bool:
    """Whether sizes are symbols (torch.compile, torch.export, ONNX), so that no branch may depend on them."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
