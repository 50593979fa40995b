"""Chunks of windows that go through a block of SwinIR together: which they are, and the weights that they meet.

N = w * w tokens of a window, n windows of a chunk, C channels, h heads, M hidden channels of the MLP, K kinds of
window.
"""

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor


class BlockWeights(NamedTuple):
    """Parameters of a block.

    `bias` is the table of relative position biases ((2w - 1)^2, h); once prepared, it is the position bias plus mask of
    each kind of window, (K, h, N, N).
    """

    norm1_weight: Tensor
    norm1_bias: Tensor
    qkv_weight: Tensor  # (3 C, C)
    qkv_bias: Tensor
    bias: Tensor
    proj_weight: Tensor  # (C, C)
    proj_bias: Tensor
    norm2_weight: Tensor
    norm2_bias: Tensor
    fc1_weight: Tensor  # (M, C)
    fc1_bias: Tensor
    fc2_weight: Tensor  # (C, M)
    fc2_bias: Tensor


class BatchWindows(NamedTuple):
    """Windows of a batch, each of four tiles."""

    tiles: Tensor | None
    """Rows of the tiles, int64 (B * nW, 4); None for plain windows, which are stored one after the other."""
    kind: Tensor
    """int64 (B * nW): row of `BlockWeights.bias`."""


class Chunk(NamedTuple):
    """Windows that are computed together."""

    rows: Tensor | slice
    """Tiles of its windows, n * 4."""
    kind: Tensor
    """Kinds of its windows, (n)."""
    scale: tuple[Tensor | None, Tensor | None]
    """Factors of the attention and the MLP branch, (n, 1, 1)."""


def chunks_of(weights: BlockWeights, windows: BatchWindows, scales: Tensor | None, values: int) -> Iterator[Chunk]:
    """Windows in pieces that work on at most this many values."""
    _, heads, tokens, _ = weights.bias.shape
    count = max(1, values // (tokens * (heads * tokens + 12 * weights.norm1_weight.numel())))
    for start in range(0, len(windows.kind), count):
        part = slice(start, start + count)
        scale = (None, None) if scales is None else (scales[0, part, None, None], scales[1, part, None, None])
        rows = slice(4 * start, 4 * (start + count)) if windows.tiles is None else windows.tiles[part].flatten()
        yield Chunk(rows, windows.kind[part], scale)


def gather(tiles: Tensor, chunk: Chunk, weights: BlockWeights) -> Tensor:
    """Windows (n, N, C) of a chunk; plain ones are not copied."""
    rows = tiles[chunk.rows] if isinstance(chunk.rows, slice) else tiles.index_select(0, chunk.rows)
    return rows.view(-1, weights.bias.shape[-1], weights.norm1_weight.numel())


def scatter(tiles: Tensor, chunk: Chunk, x: Tensor | None) -> None:
    """Put windows (n, N, C) of a chunk back into their tiles."""
    assert x is not None
    rows = x.view(-1, tiles.shape[1])
    if isinstance(chunk.rows, slice):
        tiles[chunk.rows].copy_(rows)
    else:
        tiles.index_copy_(0, chunk.rows, rows)
