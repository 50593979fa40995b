"""Chunks of windows through a block of SwinIR on a CPU in float32: the forward pass.

N = w * w tokens of a window, n windows of a chunk, C channels, h heads, d = C / h channels of a head, M hidden channels
of the MLP, K kinds of window. See `swin_block` for why it is done this way.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from student.model.cpu.chunks import BatchWindows, BlockWeights, Chunk, chunks_of, gather
from student.model.cpu.norms import Normed, fold_norm, normed

CHUNK_VALUES = 18 << 18
"""What a chunk of windows works on: small enough to stay in cache, large enough that operators' starts do not count."""


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
        qkv, qkv_bias = fold_norm(w.qkv_weight, w.qkv_bias, w.norm1_weight, w.norm1_bias)
        mlp = fold_norm(w.fc1_weight, w.fc1_bias, w.norm2_weight, w.norm2_bias)
        return cls(_by_head(qkv, heads), _by_head(qkv_bias, heads).unsqueeze(1), *mlp)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """Rows (3, h, d) in the order (h, 3, d), and queries times the factor of the logits."""
    x = x.unflatten(0, (3, heads, -1)).transpose(0, 1).contiguous()
    x[:, 0] *= x.shape[2] ** -0.5
    return x.flatten(0, 2)


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


def forward_chunks(
    tiles: Tensor, weights: BlockWeights, windows: BatchWindows, scales: Tensor | None, *, to_out: bool = True
) -> Iterator[tuple[Chunk, Activations]]:
    """Run chunk after chunk; without `to_out` only as far as the backward pass needs."""
    folded = Folded.of(weights)
    for chunk in chunks_of(weights, windows, scales, CHUNK_VALUES):
        x = gather(tiles, chunk, weights)
        attention = _attend(x, weights, folded, chunk.kind)
        middle = _plus_attention(x, attention.o, weights, chunk.scale[0])
        mlp = _mlp(middle, folded)
        out = _plus_mlp(middle, mlp.after, weights, chunk.scale[1]) if to_out else None
        yield chunk, Activations(x, attention, middle, mlp, out)


def _attend(x: Tensor, weights: BlockWeights, folded: Folded, kind: Tensor) -> AttentionBranch:
    """Attention of normalised windows (n, N, C), up to the projection."""
    n, tokens, dim = x.shape
    heads = weights.bias.shape[1]
    norm, columns = normed(x), folded.qkv_bias.expand(n, -1, tokens)
    qkv = torch.baddbmm(columns, folded.qkv.expand(n, -1, -1), norm.y.transpose(1, 2)).view(n * heads, -1, tokens)
    p = _probabilities(qkv, weights, kind)
    return AttentionBranch(norm, qkv, p, torch.bmm(qkv.chunk(3, 1)[2], p.transpose(1, 2)).view(n, dim, tokens))


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
    norm = normed(x)
    before = torch.addmm(folded.fc1_bias, norm.y.view(-1, x.shape[-1]), folded.fc1.t())
    return MlpBranch(norm, before, F.gelu(before))


def _plus_mlp(x: Tensor, after: Tensor, weights: BlockWeights, scale: Tensor | None) -> Tensor:
    """Add the scaled second layer of hidden features (n * N, M) to x."""
    n, tokens, dim = x.shape
    bias = weights.fc2_bias
    if scale is not None:
        after, bias = (after.view(n, tokens, -1) * scale).view(n * tokens, -1), bias * scale
    return (x + bias).view(-1, dim).addmm_(after, weights.fc2_weight.t()).view_as(x)
