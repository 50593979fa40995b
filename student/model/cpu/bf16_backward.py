"""Chunks of windows through a block of SwinIR on a CPU with bfloat16 products: the backward pass.

Letters as in `bf16_forward`. Gradients of weights are summed in float32: within a chunk by the products, between
chunks here. Gradients of logits need neither probabilities nor softmax's backward operator: with P powers, s their
sums, O what was attended and dO its gradient, they are P (dO / s . V - (dO / s) . O), one product whose last row of
values is 1, times P.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from student.model.cpu.bf16_forward import Activations, AttentionBranch, MlpBranch, logit_factor
from student.model.cpu.chunks import BlockWeights, Chunk, gather, scatter
from student.model.cpu.norms import add_norm_gradient, unfold_norm

LN2 = math.log(2)
"""What gradients toward the keys lack: their partners, the queries, make logits to the base 2."""


class _Matrices(NamedTuple):
    """What takes the gradient of a layer's output to that of its input, all bfloat16."""

    qkv: Tensor  # (3 C, C)
    proj: Tensor  # (C, C), transposed
    fc1: Tensor  # (M, C)
    fc2: Tensor  # (C, M)

    @classmethod
    def of(cls, w: BlockWeights) -> "_Matrices":
        return cls(
            qkv=_scaled(w.qkv_weight * w.norm1_weight, w).bfloat16(),
            proj=w.proj_weight.t().contiguous().bfloat16(),
            fc1=(w.fc1_weight * w.norm2_weight).bfloat16(),
            fc2=w.fc2_weight.bfloat16(),
        )


class _Sums(NamedTuple):
    """Gradients of a block's weights, summed over chunks in float32; of a layer behind a norm with its bias."""

    qkv: Tensor  # (3 C, C + 1)
    bias: Tensor  # (K, h, N, N)
    proj: Tensor
    proj_bias: Tensor
    fc1: Tensor  # (M, C + 1)
    fc2: Tensor
    fc2_bias: Tensor

    @classmethod
    def zeros(cls, w: BlockWeights) -> "_Sums":
        zeros, new = torch.zeros_like, w.qkv_weight.new_zeros
        columns = w.norm1_weight.numel() + 1
        return cls(
            qkv=new(len(w.qkv_weight), columns),
            bias=zeros(w.bias),
            proj=zeros(w.proj_weight),
            proj_bias=zeros(w.proj_bias),
            fc1=new(len(w.fc1_weight), columns),
            fc2=zeros(w.fc2_weight),
            fc2_bias=zeros(w.fc2_bias),
        )

    def gradients(self, w: BlockWeights) -> BlockWeights:
        """Of the weights as they are given."""
        qkv = _scaled(self.qkv, w)
        qkv_weight, norm1_weight, norm1_bias = unfold_norm(
            qkv[:, :-1], qkv[:, -1], w.qkv_weight, w.norm1_weight, w.norm1_bias
        )
        fc1_weight, norm2_weight, norm2_bias = unfold_norm(
            self.fc1[:, :-1], self.fc1[:, -1], w.fc1_weight, w.norm2_weight, w.norm2_bias
        )
        return BlockWeights(
            norm1_weight=norm1_weight,
            norm1_bias=norm1_bias,
            qkv_weight=qkv_weight,
            qkv_bias=qkv[:, -1].clone(),
            bias=self.bias,
            proj_weight=self.proj,
            proj_bias=self.proj_bias,
            norm2_weight=norm2_weight,
            norm2_bias=norm2_bias,
            fc1_weight=fc1_weight,
            fc1_bias=self.fc1[:, -1].clone(),
            fc2_weight=self.fc2,
            fc2_bias=self.fc2_bias,
        )


def _scaled(qkv: Tensor, w: BlockWeights) -> Tensor:
    """In place: rows of queries, keys and values (3 C, ...), which do not know yet what makes products logits."""
    q, k, _ = qkv.chunk(3)
    q *= logit_factor(w)
    k *= LN2
    return qkv


def backward_chunks(
    grad: Tensor, chunks: Iterable[tuple[Chunk, Activations]], weights: BlockWeights
) -> tuple[Tensor, ...]:
    """Gradients of the input and of each of the weights, float32."""
    matrices, sums, grad_tiles = _Matrices.of(weights), _Sums.zeros(weights), torch.empty_like(grad)
    for chunk, activations in chunks:
        g = gather(grad, chunk, weights).clone()  # changed in place
        _mlp_backward(g, activations.mlp, activations.middle, matrices, sums, chunk.scale[1])
        _attention_backward(g, activations.attention, activations.x, matrices, sums, chunk)
        scatter(grad_tiles, chunk, g)
    return grad_tiles, *sums.gradients(weights)


def _mlp_backward(g: Tensor, mlp: MlpBranch, x: Tensor, matrices: _Matrices, sums: _Sums, scale: Tensor | None) -> None:
    """In place: from the gradient g of x + MLP(x) to that of x; adds to the sums of the weights' gradients."""
    outer = g if scale is None else g * scale
    sums.fc2_bias.add_(outer.sum((0, 1)))
    outer = outer.bfloat16().flatten(0, 1)
    sums.fc2.add_(outer.t() @ mlp.after)
    hidden = outer @ matrices.fc2
    torch.ops.aten.gelu_backward(hidden, mlp.before, grad_input=hidden)
    sums.fc1.add_(hidden.t() @ mlp.norm.y.flatten(0, 1))
    add_norm_gradient(g, (hidden @ matrices.fc1).view_as(x).float(), x, mlp.norm)


def _attention_backward(
    g: Tensor, a: AttentionBranch, x: Tensor, matrices: _Matrices, sums: _Sums, chunk: Chunk
) -> None:
    """In place: from the gradient g of x + attention(x) to that of x; adds to the sums of the weights' gradients."""
    n, tokens, dim = x.shape
    outer = g if chunk.scale[0] is None else g * chunk.scale[0]
    sums.proj_bias.add_(outer.sum((0, 1)))
    outer = outer.bfloat16().transpose(1, 2)
    sums.proj.add_(torch.bmm(outer, a.o.view(n, dim, tokens).transpose(1, 2)).sum(0))
    dqkv = _attend_backward(torch.bmm(matrices.proj.expand(n, -1, -1), outer).view_as(a.o), a, sums, chunk.kind)
    sums.qkv.add_(torch.bmm(dqkv, a.norm.y).sum(0))
    inner = torch.bmm(dqkv.transpose(1, 2), matrices.qkv.expand(n, -1, -1))
    add_norm_gradient(g, inner.float(), x, a.norm)


def _attend_backward(do: Tensor, a: AttentionBranch, sums: _Sums, kind: Tensor) -> Tensor:
    """From the gradient (n * h, d, N) of what was attended to that of queries, keys and values, (n, 3 C, N)."""
    shares = do / a.sums
    rest = (shares * a.o).sum(1, keepdim=True).neg_()
    dlogits = torch.bmm(torch.cat((shares, rest), 1).transpose(1, 2), a.v).mul_(a.powers)
    _add_bias_gradient(sums.bias, dlogits, kind)
    dq, dk = torch.bmm(a.k, dlogits.transpose(1, 2)), torch.bmm(a.q, dlogits)
    parts = (dq, dk, torch.bmm(shares, a.powers))
    return torch.cat([part.view(len(kind), -1, part.shape[-1]) for part in parts], 1)


def _add_bias_gradient(total: Tensor, dlogits: Tensor, kind: Tensor) -> None:
    """Add logits' gradients (n * h, N, N) to those of their kinds of window, (K, h, N, N)."""
    by_window = dlogits.view(len(kind), *total.shape[1:])
    if len(total) == 1:
        total[0].add_(by_window.sum(0))
    else:  # a product sums in float32
        of_kind = F.one_hot(kind, len(total)).t().bfloat16()
        total.add_((of_kind @ by_window.flatten(1)).view_as(total))
