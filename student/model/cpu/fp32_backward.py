"""Chunks of windows through a block of SwinIR on a CPU in float32: the backward pass.

Letters as in `fp32_forward`.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from student.model.cpu.chunks import BlockWeights, Chunk, gather, scatter
from student.model.cpu.fp32_forward import Activations, AttentionBranch, Folded, MlpBranch
from student.model.cpu.norms import add_norm_gradient, unfold_norm


class _Sums(NamedTuple):
    """Gradients of a block's weights, summed over chunks.

    Those of matrices that multiply window by window stay apart for each window of a chunk until the end.
    """

    qkv: Tensor  # (n, 3 C, C), by head
    qkv_bias: Tensor  # (3 C), by head
    bias: Tensor  # (K, h, N, N)
    proj: Tensor  # (n, C, C)
    proj_bias: Tensor
    fc1: Tensor
    fc1_bias: Tensor
    fc2: Tensor
    fc2_bias: Tensor

    @classmethod
    def zeros(cls, w: BlockWeights, windows: int) -> "_Sums":
        zeros, new = torch.zeros_like, w.qkv_weight.new_zeros
        return cls(
            qkv=new(windows, *w.qkv_weight.shape),
            qkv_bias=zeros(w.qkv_bias),
            bias=zeros(w.bias),
            proj=new(windows, *w.proj_weight.shape),
            proj_bias=zeros(w.proj_bias),
            fc1=zeros(w.fc1_weight),
            fc1_bias=zeros(w.fc1_bias),
            fc2=zeros(w.fc2_weight),
            fc2_bias=zeros(w.fc2_bias),
        )

    def gradients(self, w: BlockWeights) -> BlockWeights:
        """Of the weights as they are given."""
        heads = w.bias.shape[1]
        qkv, qkv_bias = _by_kind(self.qkv.sum(0), heads), _by_kind(self.qkv_bias, heads)
        qkv, norm1_weight, norm1_bias = unfold_norm(qkv, qkv_bias, w.qkv_weight, w.norm1_weight, w.norm1_bias)
        fc1, norm2_weight, norm2_bias = unfold_norm(self.fc1, self.fc1_bias, w.fc1_weight, w.norm2_weight, w.norm2_bias)
        return BlockWeights(
            norm1_weight=norm1_weight,
            norm1_bias=norm1_bias,
            qkv_weight=qkv,
            qkv_bias=qkv_bias,
            bias=self.bias,
            proj_weight=self.proj.sum(0),
            proj_bias=self.proj_bias,
            norm2_weight=norm2_weight,
            norm2_bias=norm2_bias,
            fc1_weight=fc1,
            fc1_bias=self.fc1_bias,
            fc2_weight=self.fc2,
            fc2_bias=self.fc2_bias,
        )


def backward_chunks(
    grad: Tensor, chunks: Iterable[tuple[Chunk, Activations]], weights: BlockWeights
) -> tuple[Tensor, ...]:
    """Gradients of the input and of each of the weights."""
    folded, sums, grad_tiles = Folded.of(weights), None, torch.empty_like(grad)
    for chunk, activations in chunks:
        sums = sums or _Sums.zeros(weights, len(chunk.kind))  # the first chunk is the largest
        g = gather(grad, chunk, weights).clone()  # changed in place
        _mlp_backward(g, activations.mlp, activations.middle, weights, folded, sums, chunk.scale[1])
        _attention_backward(g, activations.attention, activations.x, weights, folded, sums, chunk)
        scatter(grad_tiles, chunk, g)
    assert sums is not None
    return grad_tiles, *sums.gradients(weights)


def _mlp_backward(
    g: Tensor, mlp: MlpBranch, x: Tensor, weights: BlockWeights, folded: Folded, sums: _Sums, scale: Tensor | None
) -> None:
    """In place: from the gradient g of x + MLP(x) to that of x; adds to the sums of the weights' gradients."""
    dim = x.shape[-1]
    outer = (g if scale is None else g * scale).view(-1, dim)
    sums.fc2.addmm_(outer.t(), mlp.after)
    sums.fc2_bias.add_(outer.sum(0))
    hidden = outer @ weights.fc2_weight
    torch.ops.aten.gelu_backward(hidden, mlp.before, grad_input=hidden)
    sums.fc1.addmm_(hidden.t(), mlp.norm.y.view(-1, dim))
    sums.fc1_bias.add_(hidden.sum(0))
    add_norm_gradient(g, (hidden @ folded.fc1).view_as(x), x, mlp.norm)


def _attention_backward(
    g: Tensor, a: AttentionBranch, x: Tensor, weights: BlockWeights, folded: Folded, sums: _Sums, chunk: Chunk
) -> None:
    """In place: from the gradient g of x + attention(x) to that of x; adds to the sums of the weights' gradients."""
    n, tokens, dim = x.shape
    outer = g if chunk.scale[0] is None else g * chunk.scale[0]
    sums.proj[:n].baddbmm_(outer.transpose(1, 2), a.o.transpose(1, 2))
    sums.proj_bias.add_(outer.sum((0, 1)))
    q, k, v = a.qkv.chunk(3, 1)
    do = torch.bmm(weights.proj_weight.t().expand(n, -1, -1), outer.transpose(1, 2)).view_as(q)
    ds = torch.bmm(do.transpose(1, 2), v)
    torch.ops.aten._softmax_backward_data(ds, a.p, -1, torch.float32, grad_input=ds)
    by_window = ds.view(n, *weights.bias.shape[1:])
    if len(sums.bias) == 1:
        sums.bias[0].add_(by_window.sum(0))
    else:
        sums.bias.index_add_(0, chunk.kind, by_window)
    parts = (torch.bmm(k, ds.transpose(1, 2)), torch.bmm(q, ds), torch.bmm(do, a.p))
    dqkv = torch.cat(parts, 1).view(n, 3 * dim, tokens)
    sums.qkv[:n].baddbmm_(dqkv, a.norm.y)
    sums.qkv_bias.add_(dqkv.sum((0, 2)))
    add_norm_gradient(g, torch.bmm(dqkv.transpose(1, 2), folded.qkv.expand(n, -1, -1)), x, a.norm)


def _by_kind(x: Tensor, heads: int) -> Tensor:
    """The gradient of `_by_head`: rows (h, 3, d) in the order (3, h, d), and queries times the factor."""
    x = x.unflatten(0, (heads, 3, -1)).transpose(0, 1).contiguous()
    x[0] *= x.shape[2] ** -0.5
    return x.flatten(0, 2)
