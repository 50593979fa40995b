"""Layer norms inside a block: their scale and shift belong to the linear layer that follows, on both passes.

C channels, O outputs of that layer.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Normed(NamedTuple):
    """Normalised features, and what the backward pass needs of them."""

    y: Tensor  # (n, N, C), before scale and shift
    mean: Tensor
    rstd: Tensor


def normed(x: Tensor) -> Normed:
    """Windows (n, N, C), normalised over C."""
    mean = x.mean(-1, keepdim=True)
    y = x - mean
    rstd = torch.linalg.vector_norm(y, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(1e-5).rsqrt_()
    return Normed(y.mul_(rstd), mean, rstd)


def add_norm_gradient(g: Tensor, inner: Tensor, x: Tensor, norm: Normed) -> None:
    """In place: add to g what reaches x through its norm, whose output has the gradient `inner`."""
    g.add_(
        torch.ops.aten.native_layer_norm_backward(
            inner, x, (x.shape[-1],), norm.mean, norm.rstd, None, None, (True, False, False)
        )[0]
    )


def fold_norm(matrix: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Linear layer (O, C), (O) with the scale and shift (C) of the norm before it."""
    return matrix * scale, torch.addmv(bias, matrix, shift)


def unfold_norm(
    grad: Tensor, grad_bias: Tensor, matrix: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of matrix, scale and shift from those of what `fold_norm` returned; the bias's stays as it is."""
    return torch.addr(grad * scale, grad_bias, shift), (grad * matrix).sum(0), grad_bias @ matrix
