"""Chunks of windows through a block of SwinIR on a CPU with bfloat16 products: the forward pass.

N = w * w tokens of a window, n windows of a chunk, C channels, h heads, d = C / h channels of a head, M hidden channels
of the MLP, K kinds of window.

Operands of products are bfloat16, sums within them float32 (oneDNN), what they return bfloat16. Weights, norms and the
residual stream are float32. Each of these choices halves or quarters an operator's time (LOG.md, 2026-11-24):

* A layer's bias is a column of its matrix, behind a norm whose output has a column of ones.
* Attention is not normalised before it meets the values: softmax(l) V = (2^l' V) / (2^l' 1) with l' = l log2(e). The
  values have a row of ones below them, so that one product returns both; powers of two take half of softmax's time.
* The row's largest logit is subtracted only where powers would leave the range of numbers (`_is_safe`).
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from student.model.cpu.chunks import BatchWindows, BlockWeights, Chunk, chunks_of, gather
from student.model.cpu.norms import Normed, fold_norm, normed

CHUNK_VALUES = 14 << 20
"""What a chunk of windows works on: three times float32's, as operators are shorter and their starts count more."""
LOG2_E = math.log2(math.e)
SMALLEST_SUM, LARGEST_SUM = 2.0**-60, 2.0**60
"""Sums of attention's powers; gradients are divided by them, and stay far from the smallest bfloat16, 2^-126."""


class Operands(NamedTuple):
    """Weights of a block as the products take them, all bfloat16; norms before a layer are folded into it.

    Rows of queries, keys and values are ordered by head. Queries and bias make logits to the base 2; below the values
    of each head stands a row that makes ones.
    """

    q: Tensor  # (C, C + 1)
    k: Tensor  # (C, C + 1)
    v: Tensor  # (h (d + 1), C + 1)
    bias: Tensor  # (K, h, N, N)
    proj: Tensor  # (C, C), transposed
    fc1: Tensor  # (M, C + 1)
    fc2: Tensor  # (C, M)

    @classmethod
    def of(cls, w: BlockWeights) -> "Operands":
        """Cast a block's weights."""
        heads, dim = w.bias.shape[1], w.norm1_weight.numel()
        q, k, v = torch.column_stack(fold_norm(w.qkv_weight, w.qkv_bias, w.norm1_weight, w.norm1_bias)).chunk(3)
        ones = v.new_zeros(heads, 1, dim + 1)
        ones[..., dim] = 1
        fc1 = torch.column_stack(fold_norm(w.fc1_weight, w.fc1_bias, w.norm2_weight, w.norm2_bias))
        return cls(
            q=(q * (logit_factor(w) * LOG2_E)).bfloat16(),
            k=k.bfloat16(),
            v=torch.cat((v.view(heads, -1, dim + 1), ones), 1).flatten(0, 1).bfloat16(),
            bias=(w.bias * LOG2_E).bfloat16(),
            proj=w.proj_weight.t().contiguous().bfloat16(),
            fc1=fc1.bfloat16(),
            fc2=w.fc2_weight.bfloat16(),
        )


def logit_factor(w: BlockWeights) -> float:
    """What products of queries and keys are multiplied with."""
    return (w.norm1_weight.numel() // w.bias.shape[1]) ** -0.5


class AttentionBranch(NamedTuple):
    """The attention branch up to its projection."""

    norm: Normed  # y is bfloat16 (n, N, C + 1), its last column 1
    q: Tensor  # (n * h, d, N), for logits to the base 2
    k: Tensor  # (n * h, d, N)
    v: Tensor  # (n * h, d + 1, N), the last row 1
    powers: Tensor  # (n * h, N, N), attention before it is divided by its sums
    sums: Tensor  # (n * h, 1, N)
    o: Tensor  # (n * h, d, N)


class MlpBranch(NamedTuple):
    """The MLP branch up to its second layer."""

    norm: Normed  # as above
    before: Tensor  # (n * N, M), before the GELU
    after: Tensor  # (n * N, M)


class Activations(NamedTuple):
    """A chunk on its way through a block."""

    x: Tensor  # float32 (n, N, C)
    attention: AttentionBranch
    middle: Tensor  # float32 (n, N, C), after the attention branch
    mlp: MlpBranch
    out: Tensor | None  # float32 (n, N, C)


def forward_chunks(
    tiles: Tensor, weights: BlockWeights, windows: BatchWindows, scales: Tensor | None, *, to_out: bool = True
) -> Iterator[tuple[Chunk, Activations]]:
    """Run chunk after chunk; without `to_out` only as far as the backward pass needs."""
    operands = Operands.of(weights)
    for chunk in chunks_of(weights, windows, scales, CHUNK_VALUES):
        x = gather(tiles, chunk, weights)
        attention = _attend(x, operands, chunk.kind)
        o = attention.o.view(len(x), x.shape[-1], -1).transpose(1, 2)
        projected = torch.bmm(o, operands.proj.expand(len(x), -1, -1))
        middle = _plus(x, projected, weights.proj_bias, chunk.scale[0])
        mlp, out = _mlp(middle, operands), None
        if to_out:
            out = _plus(middle, F.linear(mlp.after, operands.fc2).view_as(x), weights.fc2_bias, chunk.scale[1])
        yield chunk, Activations(x, attention, middle, mlp, out)


def _attend(x: Tensor, operands: Operands, kind: Tensor) -> AttentionBranch:
    """Attention of normalised windows (n, N, C), up to the projection."""
    n, tokens, dim = x.shape
    heads, norm = operands.bias.shape[1], _normed(x)
    d, columns = dim // heads, norm.y.transpose(1, 2)
    q, k, v = (
        torch.bmm(matrix.expand(n, -1, -1), columns).view(n * heads, -1, tokens)
        for matrix in (operands.q, operands.k, operands.v)
    )
    powers = _logits(q, k, operands.bias, kind).exp2_()
    attended = torch.bmm(v, powers.transpose(1, 2))
    sums = attended[:, d:].clone()
    if not _is_safe(sums):
        powers = _logits(q, k, operands.bias, kind)
        powers = powers.sub_(powers.amax(-1, keepdim=True)).exp2_()
        attended = torch.bmm(v, powers.transpose(1, 2))
        sums = attended[:, d:].clone()
    return AttentionBranch(norm, q, k, v, powers, sums, attended[:, :d] / sums)


def _normed(x: Tensor) -> Normed:
    """The norm of windows (n, N, C) in bfloat16, with a column of ones."""
    norm = normed(x)
    y = torch.empty(*x.shape[:-1], x.shape[-1] + 1, dtype=torch.bfloat16)
    y[..., :-1].copy_(norm.y)
    y[..., -1].fill_(1)
    return norm._replace(y=y)


def _logits(q: Tensor, k: Tensor, bias: Tensor, kind: Tensor) -> Tensor:
    """Attention logits to the base 2, (n * h, N, N)."""
    return bias.index_select(0, kind).flatten(0, 1).baddbmm_(q.transpose(1, 2), k)


def _is_safe(sums: Tensor) -> bool:
    """Whether powers of logits were neither too large nor too small to be divided by their sums; NaN is not safe."""
    smallest, largest = torch.aminmax(sums)
    return bool(smallest > SMALLEST_SUM and largest < LARGEST_SUM)


def _plus(x: Tensor, branch: Tensor, bias: Tensor, scale: Tensor | None) -> Tensor:
    """Add the scaled branch (n, N, C), which lacks its bias, to x."""
    branch = branch.float().add_(bias)
    return branch.add_(x) if scale is None else torch.addcmul(x, branch, scale)


def _mlp(x: Tensor, operands: Operands) -> MlpBranch:
    """The MLP of normalised windows (n, N, C), up to its second layer."""
    norm = _normed(x)
    before = F.linear(norm.y.flatten(0, 1), operands.fc1)
    return MlpBranch(norm, before, F.gelu(before))
