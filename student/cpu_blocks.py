"""SwinIR's blocks on a CPU: chunks of windows go through attention and MLP, forward and backward, while in cache.

B batch, H W height and width in tokens, C channels, w window side, N = w * w tokens of a window, n windows of a chunk,
h heads, d = C / h channels of a head, M hidden channels of the MLP, K kinds of window.

Three things make this several times faster than whole-image operators, at the same results (measured: LOG.md,
2026-11-23):

* Features are kept as quarter windows ("tiles" of w/2 x w/2 tokens). Plain and shifted windows are both made of four
  whole tiles, so that shifting, cutting and putting back are one gather and one scatter of long rows.
* Queries, keys and values are computed channels first, (n, C, N) = (n * h, d, N): heads are split and joined without a
  copy, and all products are in the orientation that the matrix library does fastest for small d.
* Forward and backward run chunk by chunk, so that what one step writes the next one finds in cache. The backward pass
  takes products of the forward pass or, with `keep=False`, computes everything again from the block's input.
"""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from student.windows import attention_mask, is_traced, relative_position_index

CHUNK_BYTES = 3 << 19
"""Attention logits of a chunk; the rest of its working set is about as large."""


class BlockWeights(NamedTuple):
    """Parameters of a block; `bias` is the position bias plus mask of each kind of window, (K, h, N, N)."""

    norm1_weight: Tensor
    norm1_bias: Tensor
    qkv_weight: Tensor
    qkv_bias: Tensor
    bias: Tensor
    proj_weight: Tensor
    proj_bias: Tensor
    norm2_weight: Tensor
    norm2_bias: Tensor
    fc1_weight: Tensor
    fc1_bias: Tensor
    fc2_weight: Tensor
    fc2_bias: Tensor


class Grid(NamedTuple):
    """Windows of a batch, each as the rows of its four tiles."""

    tiles: Tensor
    """int64 (B * nW, 4)."""
    kind: Tensor
    """int64 (B * nW): row of `BlockWeights.bias`."""


def applies_to(x: Tensor) -> bool:
    """Whether this path is right for features `x`: float32 on a CPU, run eagerly and without autocast."""
    return (
        x.device.type == "cpu" and x.dtype == torch.float32 and not is_traced() and not torch.is_autocast_enabled("cpu")
    )


def to_tiles(x: Tensor, window: int) -> Tensor:
    """Copy (B, H, W, C) to tiles (B * H * W / (w/2)^2, (w/2)^2 * C), row by row."""
    b, h, w, c = x.shape
    side = window // 2
    tiles = x.reshape(b, h // side, side, w // side, side, c).transpose(2, 3)
    return tiles.clone(memory_format=torch.contiguous_format).view(-1, side * side * c)


def from_tiles(tiles: Tensor, window: int, size: torch.Size) -> Tensor:
    """Inverse of `to_tiles`; `size` is (B, H, W, C)."""
    b, h, w, c = size
    side = window // 2
    return tiles.view(b, h // side, w // side, side, side, c).transpose(2, 3).reshape(size)


@lru_cache(maxsize=16)
def grid(batch: int, rows: int, columns: int, shifted: bool) -> Grid:
    """Windows of `batch` images of rows x columns windows; shifted ones start one tile further and wrap around."""
    with torch.inference_mode(False):
        tile = torch.arange(batch * rows * columns * 4, device="cpu").view(batch, 2 * rows, 2 * columns)
        kind = torch.zeros(batch, rows, columns, dtype=torch.long, device="cpu")
        if shifted:
            tile = tile.roll((-1, -1), (1, 2))
            kind[:, -1] += 2
            kind[:, :, -1] += 1
        tile = tile.view(batch, rows, 2, columns, 2).transpose(2, 3)
        return Grid(tile.reshape(-1, 4), kind.flatten())


@lru_cache(maxsize=4)
def _tables(window: int) -> tuple[Tensor, Tensor]:
    """Relative position index (N * N) with tokens in the order of tiles, and mask of each kind of window (4, 1, N, N).

    The kinds are: inside, at the right border, at the lower border, in the corner.
    """
    with torch.inference_mode(False), torch.device("cpu"):
        half = window // 2
        order = torch.arange(window * window).view(2, half, 2, half).transpose(1, 2).flatten()
        masks = attention_mask(2 * window, 2 * window, window, half)
        index = relative_position_index(window)
        return index[order][:, order].flatten(), masks[:, order][:, :, order].unsqueeze(1)


def window_bias(table: Tensor, window: int, shifted: bool) -> Tensor:
    """What is added to attention logits in each kind of window: (1 or 4, h, N, N)."""
    index, masks = _tables(window)
    tokens = window * window
    bias = table.t().index_select(1, index).view(1, -1, tokens, tokens)
    return bias + masks if shifted else bias


def run_block(tiles: Tensor, weights: BlockWeights, where: Grid, scales: Tensor | None, keep: bool) -> Tensor:
    """One block.

    Args:
        tiles: features as `to_tiles` gives them; without autograd they are overwritten with the result.
        weights: parameters.
        where: the windows, plain or shifted.
        scales: None, or factors of the attention and the MLP branch of each window, (2, B * nW) (stochastic depth).
        keep: keep activations for the backward pass, rather than compute them again.
    """
    if torch.is_grad_enabled():
        return _Block.apply(tiles, *weights, where.tiles, where.kind, scales, keep)
    for chunk, activations in _forward(tiles, weights, where, scales):
        _scatter(tiles, chunk, activations.out)
    return tiles


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tiles, *inputs):  # pyright: ignore[reportIncompatibleMethodOverride]
        *inputs, keep = inputs
        ctx.save_for_backward(tiles, *inputs)
        kept, out = [], torch.empty_like(tiles)
        for chunk, activations in _forward(tiles, BlockWeights(*inputs[:13]), Grid(*inputs[13:15]), inputs[15]):
            _scatter(out, chunk, activations.out)
            if keep:
                kept.append(_Kept.of(chunk, activations))
        ctx.kept = kept
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        tiles, *inputs = ctx.saved_tensors
        weights = BlockWeights(*inputs[:13])
        if ctx.kept:
            chunks = ((kept.chunk, kept.restore(weights)) for kept in ctx.kept)
        else:
            chunks = _forward(tiles, weights, Grid(*inputs[13:15]), inputs[15], to_out=False)
        grads = _backward(grad, chunks, weights)
        ctx.kept = []  # frees memory now; a second backward pass through the graph computes again
        wanted = ctx.needs_input_grad[:14]
        return *(g if want else None for g, want in zip(grads, wanted, strict=True)), None, None, None, None


class _Chunk(NamedTuple):
    rows: Tensor
    """Tiles of its windows, (n * 4)."""
    kind: Tensor
    """Kinds of its windows, (n)."""
    scale: tuple[Tensor | None, Tensor | None]
    """Factors of the attention and the MLP branch, (n, 1, 1)."""


class _Query(NamedTuple):
    """The qkv layer as the chunks use it: a matrix and a column for each of query, key and value, the query scaled."""

    matrices: Tensor
    """(3, C, C)."""
    columns: Tensor
    """(3, C, 1)."""
    factor: float

    @classmethod
    def of(cls, weights: BlockWeights) -> "_Query":
        dim, heads = weights.norm1_weight.numel(), weights.bias.shape[1]
        factor = (dim // heads) ** -0.5
        matrices, columns = weights.qkv_weight.clone().view(3, dim, dim), weights.qkv_bias.clone().view(3, dim, 1)
        matrices[0] *= factor
        columns[0] *= factor
        return cls(matrices, columns, factor)


class _Normed(NamedTuple):
    y: Tensor
    mean: Tensor
    rstd: Tensor


class _Attention(NamedTuple):
    norm: _Normed  # (n, N, C)
    q: Tensor  # (n * h, d, N), as k and v
    k: Tensor
    v: Tensor
    p: Tensor  # (n * h, N, N), attention probabilities
    o: Tensor  # (n, C, N)


class _Mlp(NamedTuple):
    norm: _Normed  # (n, N, C)
    before: Tensor  # (n * N, M), before the GELU
    after: Tensor  # (n * N, M)


class _Activations(NamedTuple):
    x: Tensor  # (n, N, C)
    attention: _Attention
    middle: Tensor  # (n, N, C), after the attention branch
    mlp: _Mlp
    out: Tensor | None  # (n, N, C)


class _Kept(NamedTuple):
    """What the backward pass takes from the forward pass: products, nothing that is cheaper to compute than to read.

    Probabilities, norms and GELUs would more than double it: fresh memory costs more than their operations.
    """

    chunk: _Chunk
    x: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    o: Tensor
    middle: Tensor
    before: Tensor

    @classmethod
    def of(cls, chunk: _Chunk, a: _Activations) -> "_Kept":
        attention = a.attention
        return cls(chunk, a.x, attention.q, attention.k, attention.v, attention.o, a.middle, a.mlp.before)

    def restore(self, weights: BlockWeights) -> _Activations:
        norm1 = _norm(self.x, weights.norm1_weight, weights.norm1_bias)
        p = _probabilities(self.q, self.k, weights, self.chunk.kind)
        attention = _Attention(norm1, self.q, self.k, self.v, p, self.o)
        norm2 = _norm(self.middle, weights.norm2_weight, weights.norm2_bias)
        return _Activations(self.x, attention, self.middle, _Mlp(norm2, self.before, F.gelu(self.before)), None)


def _chunks(weights: BlockWeights, where: Grid, scales: Tensor | None) -> Iterator[_Chunk]:
    _, heads, tokens, _ = weights.bias.shape
    count = max(1, CHUNK_BYTES // (4 * heads * tokens * tokens))
    for start in range(0, len(where.kind), count):
        part = slice(start, start + count)
        scale = (None, None) if scales is None else (scales[0, part, None, None], scales[1, part, None, None])
        yield _Chunk(where.tiles[part].flatten(), where.kind[part], scale)


def _forward(
    tiles: Tensor, weights: BlockWeights, where: Grid, scales: Tensor | None, *, to_out: bool = True
) -> Iterator[tuple[_Chunk, _Activations]]:
    """Runs chunk after chunk; without `to_out` only as far as the backward pass needs."""
    query = _Query.of(weights)
    for chunk in _chunks(weights, where, scales):
        x = _gather(tiles, chunk, weights)
        attention = _attend(x, weights, query, chunk.kind)
        middle = _plus_attention(x, attention.o, weights, chunk.scale[0])
        mlp = _mlp(middle, weights)
        out = _plus_mlp(middle, mlp.after, weights, chunk.scale[1]) if to_out else None
        yield chunk, _Activations(x, attention, middle, mlp, out)


def _gather(tiles: Tensor, chunk: _Chunk, weights: BlockWeights) -> Tensor:
    """Windows (n, N, C) of a chunk."""
    return tiles.index_select(0, chunk.rows).view(-1, weights.bias.shape[-1], weights.norm1_weight.numel())


def _scatter(tiles: Tensor, chunk: _Chunk, x: Tensor | None) -> None:
    assert x is not None
    tiles.index_copy_(0, chunk.rows, x.view(len(chunk.rows), -1))


def _attend(x: Tensor, weights: BlockWeights, query: _Query, kind: Tensor) -> _Attention:
    """Attention of normalised windows (n, N, C), up to the projection."""
    n, tokens, dim = x.shape
    heads = weights.bias.shape[1]
    norm = _norm(x, weights.norm1_weight, weights.norm1_bias)
    q, k, v = (
        torch.baddbmm(column.expand(n, dim, tokens), matrix.expand(n, dim, dim), norm.y.transpose(1, 2)).view(
            n * heads, dim // heads, tokens
        )
        for matrix, column in zip(query.matrices, query.columns, strict=True)
    )
    p = _probabilities(q, k, weights, kind)
    return _Attention(norm, q, k, v, p, torch.bmm(v, p.transpose(1, 2)).view(n, dim, tokens))


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> _Normed:
    return _Normed(*torch.native_layer_norm(x, (x.shape[-1],), weight, bias, 1e-5))


def _probabilities(q: Tensor, k: Tensor, weights: BlockWeights, kind: Tensor) -> Tensor:
    """Attention probabilities (n * h, N, N) of queries and keys (n * h, d, N)."""
    p = weights.bias.index_select(0, kind).flatten(0, 1).baddbmm_(q.transpose(1, 2), k)
    return torch.softmax(p, -1, out=p)


def _plus_attention(x: Tensor, o: Tensor, weights: BlockWeights, scale: Tensor | None) -> Tensor:
    """Add the scaled projection of attended values (n, C, N) to x."""
    bias = weights.proj_bias
    if scale is not None:
        o, bias = o * scale, bias * scale
    return (x + bias).baddbmm_(o.transpose(1, 2), weights.proj_weight.t().expand(len(x), -1, -1))


def _mlp(x: Tensor, weights: BlockWeights) -> _Mlp:
    """The MLP of normalised windows (n, N, C), up to its second layer."""
    dim = x.shape[-1]
    norm = _norm(x, weights.norm2_weight, weights.norm2_bias)
    before = torch.addmm(weights.fc1_bias, norm.y.view(-1, dim), weights.fc1_weight.t())
    return _Mlp(norm, before, F.gelu(before))


def _plus_mlp(x: Tensor, after: Tensor, weights: BlockWeights, scale: Tensor | None) -> Tensor:
    """Add the scaled second layer of hidden features (n * N, M) to x."""
    n, tokens, dim = x.shape
    bias = weights.fc2_bias
    if scale is not None:
        after, bias = (after.view(n, tokens, -1) * scale).view(n * tokens, -1), bias * scale
    return (x + bias).view(-1, dim).addmm_(after, weights.fc2_weight.t()).view_as(x)


def _backward(grad: Tensor, chunks: Iterable[tuple[_Chunk, _Activations]], weights: BlockWeights) -> tuple[Tensor, ...]:
    """Gradients of the input and of each of the weights."""
    dim = weights.norm1_weight.numel()
    query, sums, grad_tiles = _Query.of(weights), BlockWeights(*map(torch.zeros_like, weights)), torch.empty_like(grad)
    for chunk, activations in chunks:
        g = _gather(grad, chunk, weights)
        _mlp_backward(g, activations.middle, activations.mlp, weights, sums, chunk.scale[1])
        _attention_backward(g, activations.x, activations.attention, weights, query, sums, chunk)
        _scatter(grad_tiles, chunk, g)
    sums.qkv_weight[:dim] *= query.factor
    sums.qkv_bias[:dim] *= query.factor
    return grad_tiles, *sums


def _mlp_backward(
    g: Tensor, x: Tensor, mlp: _Mlp, weights: BlockWeights, sums: BlockWeights, scale: Tensor | None
) -> None:
    """In place: from the gradient g of x + MLP(x) to that of x; adds to the sums of the weights' gradients."""
    dim = x.shape[-1]
    outer = (g if scale is None else g * scale).view(-1, dim)
    sums.fc2_weight.addmm_(outer.t(), mlp.after)
    sums.fc2_bias.add_(outer.sum(0))
    hidden = torch.ops.aten.gelu_backward(outer @ weights.fc2_weight, mlp.before)
    sums.fc1_weight.addmm_(hidden.t(), mlp.norm.y.view(-1, dim))
    sums.fc1_bias.add_(hidden.sum(0))
    inner = (hidden @ weights.fc1_weight).view_as(x)
    _norm_backward(
        g, inner, x, mlp.norm, (weights.norm2_weight, weights.norm2_bias), (sums.norm2_weight, sums.norm2_bias)
    )


def _attention_backward(
    g: Tensor, x: Tensor, a: _Attention, weights: BlockWeights, query: _Query, sums: BlockWeights, chunk: _Chunk
) -> None:
    """In place: from the gradient g of x + attention(x) to that of x; adds to the sums of the weights' gradients."""
    n, tokens, dim = x.shape
    outer = g if chunk.scale[0] is None else g * chunk.scale[0]
    sums.proj_weight.add_(torch.bmm(outer.transpose(1, 2), a.o.transpose(1, 2)).sum(0))
    sums.proj_bias.add_(outer.sum((0, 1)))
    do = torch.bmm(weights.proj_weight.t().expand(n, -1, -1), outer.transpose(1, 2)).view_as(a.v)
    ds = torch.ops.aten._softmax_backward_data(torch.bmm(do.transpose(1, 2), a.v), a.p, -1, torch.float32)
    if len(sums.bias) == 1:
        sums.bias[0].add_(ds.view(n, *weights.bias.shape[1:]).sum(0))
    else:
        sums.bias.index_add_(0, chunk.kind, ds.view(n, *weights.bias.shape[1:]))
    inner = torch.zeros_like(x)
    parts = (torch.bmm(a.k, ds.transpose(1, 2)), torch.bmm(a.q, ds), torch.bmm(do, a.p))
    for i, part in enumerate(parts):
        part = part.view(n, dim, tokens)
        sums.qkv_weight[i * dim : (i + 1) * dim].add_(torch.bmm(part, a.norm.y).sum(0))
        sums.qkv_bias[i * dim : (i + 1) * dim].add_(part.sum((0, 2)))
        inner.baddbmm_(part.transpose(1, 2), query.matrices[i].expand(n, -1, -1))
    _norm_backward(
        g, inner, x, a.norm, (weights.norm1_weight, weights.norm1_bias), (sums.norm1_weight, sums.norm1_bias)
    )


def _norm_backward(
    g: Tensor, inner: Tensor, x: Tensor, norm: _Normed, weights: tuple[Tensor, Tensor], sums: tuple[Tensor, Tensor]
) -> None:
    """In place: add to g what reaches x through its norm, whose output has the gradient `inner`."""
    through = torch.ops.aten.native_layer_norm_backward(
        inner, x, (x.shape[-1],), norm.mean, norm.rstd, *weights, (True, True, True)
    )
    g.add_(through[0])
    sums[0].add_(through[1])
    sums[1].add_(through[2])
