"""Chunks of windows through a block of SwinIR on a CPU: the forward pass.

N = w * w tokens of a window, n windows of a chunk, C channels, h heads, d = C / h channels of a head, M hidden channels
of the MLP, K kinds of window. See `cpu_blocks` for why it is done this way.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 18 << 20
"""What a chunk of windows works on: small enough to stay in cache, large enough that operators' starts do not count."""


class BlockWeights(NamedTuple):
    """Parameters of a block.

    `bias` is the table of relative position biases ((2w - 1)^2, h); once prepared, it is the position bias plus mask of
    each kind of window, (K, h, N, N).
    """

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


class BatchWindows(NamedTuple):
    """Windows of a batch, each as the rows of its four tiles."""

    tiles: Tensor
    """int64 (B * nW, 4)."""
    kind: Tensor
    """int64 (B * nW): row of `BlockWeights.bias`."""


class Chunk(NamedTuple):
    """Windows that are computed together."""

    rows: Tensor
    """Tiles of its windows, (n * 4)."""
    kind: Tensor
    """Kinds of its windows, (n)."""
    scale: tuple[Tensor | None, Tensor | None]
    """Factors of the attention and the MLP branch, (n, 1, 1)."""


class Folded(NamedTuple):
    """Weights as the chunks use them: every linear layer behind a norm contains the norm's scale and shift.

    Rows of qkv are ordered by head, (h, 3, d) instead of (3, h, d), so that no copy is needed to split heads, and the
    queries' rows contain the factor of the logits.
    """

    qkv: Tensor  # (3 C, C)
    qkv_bias: Tensor  # (3 C, 1)
    fc1: Tensor  # (M, C)
    fc1_bias: Tensor  # (M)

    @classmethod
    def of(cls, w: BlockWeights) -> "Folded":
        """Fold a block's weights."""
        heads = w.bias.shape[1]
        qkv, qkv_bias = _fold_norm(w.qkv_weight, w.qkv_bias, w.norm1_weight, w.norm1_bias)
        mlp = _fold_norm(w.fc1_weight, w.fc1_bias, w.norm2_weight, w.norm2_bias)
        return cls(_by_head(qkv, heads), _by_head(qkv_bias, heads).unsqueeze(1), *mlp)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """Rows (3, h, d) in the order (h, 3, d), and queries times the factor of the logits."""
    x = x.unflatten(0, (3, heads, -1)).transpose(0, 1).contiguous()
    x[:, 0] *= x.shape[2] ** -0.5
    return x.flatten(0, 2)


def _fold_norm(matrix: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Linear layer (O, C), (O) with the scale and shift (C) of the norm before it."""
    return matrix * scale, torch.addmv(bias, matrix, shift)


class Normed(NamedTuple):
    """Normalised features, and what the backward pass needs of them."""

    y: Tensor  # (n, N, C), before scale and shift
    mean: Tensor
    rstd: Tensor


class AttentionBranch(NamedTuple):
    """The attention branch up to its projection."""

    norm: Normed
    qkv: Tensor  # (n * h, 3 d, N)
    p: Tensor  # (n * h, N, N), attention probabilities
    o: Tensor  # (n, C, N)


class MlpBranch(NamedTuple):
    """The MLP branch up to its second layer."""

    norm: Normed
    before: Tensor  # (n * N, M), before the GELU
    after: Tensor  # (n * N, M)


class Activations(NamedTuple):
    """A chunk on its way through a block."""

    x: Tensor  # (n, N, C)
    attention: AttentionBranch
    middle: Tensor  # (n, N, C), after the attention branch
    mlp: MlpBranch
    out: Tensor | None  # (n, N, C)


def chunks_of(weights: BlockWeights, where: BatchWindows, scales: Tensor | None) -> Iterator[Chunk]:
    """Windows in pieces of at most `CHUNK_BYTES`."""
    _, heads, tokens, _ = weights.bias.shape
    count = max(1, CHUNK_BYTES // (4 * tokens * (heads * tokens + 12 * weights.norm1_weight.numel())))
    for start in range(0, len(where.kind), count):
        part = slice(start, start + count)
        scale = (None, None) if scales is None else (scales[0, part, None, None], scales[1, part, None, None])
        yield Chunk(where.tiles[part].flatten(), where.kind[part], scale)


def forward_chunks(
    tiles: Tensor, weights: BlockWeights, where: BatchWindows, scales: Tensor | None, *, to_out: bool = True
) -> Iterator[tuple[Chunk, Activations]]:
    """Run chunk after chunk; without `to_out` only as far as the backward pass needs."""
    folded = Folded.of(weights)
    for chunk in chunks_of(weights, where, scales):
        x = gather(tiles, chunk, weights)
        attention = _attend(x, weights, folded, chunk.kind)
        middle = _plus_attention(x, attention.o, weights, chunk.scale[0])
        mlp = _mlp(middle, folded)
        out = _plus_mlp(middle, mlp.after, weights, chunk.scale[1]) if to_out else None
        yield chunk, Activations(x, attention, middle, mlp, out)


def gather(tiles: Tensor, chunk: Chunk, weights: BlockWeights) -> Tensor:
    """Windows (n, N, C) of a chunk."""
    return tiles.index_select(0, chunk.rows).view(-1, weights.bias.shape[-1], weights.norm1_weight.numel())


def scatter(tiles: Tensor, chunk: Chunk, x: Tensor | None) -> None:
    """Put windows (n, N, C) of a chunk back into their tiles."""
    assert x is not None
    tiles.index_copy_(0, chunk.rows, x.view(len(chunk.rows), -1))


def _attend(x: Tensor, weights: BlockWeights, folded: Folded, kind: Tensor) -> AttentionBranch:
    """Attention of normalised windows (n, N, C), up to the projection."""
    n, tokens, dim = x.shape
    heads = weights.bias.shape[1]
    norm, columns = _norm(x), folded.qkv_bias.expand(n, -1, tokens)
    qkv = torch.baddbmm(columns, folded.qkv.expand(n, -1, -1), norm.y.transpose(1, 2)).view(n * heads, -1, tokens)
    p = _probabilities(qkv, weights, kind)
    return AttentionBranch(norm, qkv, p, torch.bmm(qkv.chunk(3, 1)[2], p.transpose(1, 2)).view(n, dim, tokens))


def _norm(x: Tensor) -> Normed:
    mean = x.mean(-1, keepdim=True)
    y = x - mean
    rstd = torch.linalg.vector_norm(y, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(1e-5).rsqrt_()
    return Normed(y.mul_(rstd), mean, rstd)


def _probabilities(qkv: Tensor, weights: BlockWeights, kind: Tensor) -> Tensor:
    """Attention probabilities (n * h, N, N) of queries, keys and values (n * h, 3 d, N)."""
    q, k, _ = qkv.chunk(3, 1)
    p = weights.bias.index_select(0, kind).flatten(0, 1).baddbmm_(q.transpose(1, 2), k)
    return torch.softmax(p, -1, out=p)


def _plus_attention(x: Tensor, o: Tensor, weights: BlockWeights, scale: Tensor | None) -> Tensor:
    """Add the scaled projection of attended values (n, C, N) to x."""
    bias = weights.proj_bias
    if scale is not None:
        o, bias = o * scale, bias * scale
    return (x + bias).baddbmm_(o.transpose(1, 2), weights.proj_weight.t().expand(len(x), -1, -1))


def _mlp(x: Tensor, folded: Folded) -> MlpBranch:
    """The MLP of normalised windows (n, N, C), up to its second layer."""
    norm = _norm(x)
    before = torch.addmm(folded.fc1_bias, norm.y.view(-1, x.shape[-1]), folded.fc1.t())
    return MlpBranch(norm, before, F.gelu(before))


def _plus_mlp(x: Tensor, after: Tensor, weights: BlockWeights, scale: Tensor | None) -> Tensor:
    """Add the scaled second layer of hidden features (n * N, M) to x."""
    n, tokens, dim = x.shape
    bias = weights.fc2_bias
    if scale is not None:
        after, bias = (after.view(n, tokens, -1) * scale).view(n * tokens, -1), bias * scale
    return (x + bias).view(-1, dim).addmm_(after, weights.fc2_weight.t()).view_as(x)
