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
from functools import cache, lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from student.windows import attention_mask, is_traced, relative_position_index

CHUNK_BYTES = 18 << 20
"""What a chunk of windows works on: small enough to stay in cache, large enough that operators' starts do not count."""


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


@cache
def _keep_working_memory() -> None:
    """Have glibc keep a chunk's freed memory for the next one.

    It returns what is more than twice the largest block freed so far, up to 32 MB each. Page faults would then take as
    long as the operators. Freeing one large block, which was never touched, is what it learns from (see mallopt(3)).
    """
    torch.empty(31 << 20, dtype=torch.uint8, device="cpu")


def to_tiles(x: Tensor, window: int) -> Tensor:
    """Copy (B, H, W, C) to tiles (B * H * W / (w/2)^2, (w/2)^2 * C), row by row."""
    _keep_working_memory()
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
        # Ten times the published -100, whose exponential is a denormal number, slow to compute with: now it is 0.
        masks = 10 * attention_mask(2 * window, 2 * window, window, half)
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
                kept.append((chunk, activations._replace(out=None)))
        ctx.kept = kept
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        tiles, *inputs = ctx.saved_tensors
        weights = BlockWeights(*inputs[:13])
        chunks = ctx.kept or _forward(tiles, weights, Grid(*inputs[13:15]), inputs[15], to_out=False)
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


class _Folded(NamedTuple):
    """Weights as the chunks use them: every linear layer behind a norm contains the norm's scale and shift.

    Rows of qkv are ordered by head, (h, 3, d) instead of (3, h, d), so that no copy is needed to split heads, and the
    queries' rows contain the factor of the logits.
    """

    qkv: Tensor  # (3 C, C)
    qkv_bias: Tensor  # (3 C, 1)
    fc1: Tensor  # (M, C)
    fc1_bias: Tensor  # (M)

    @classmethod
    def of(cls, w: BlockWeights) -> "_Folded":
        heads = w.bias.shape[1]
        qkv, qkv_bias = _fold_norm(w.qkv_weight, w.qkv_bias, w.norm1_weight, w.norm1_bias)
        mlp = _fold_norm(w.fc1_weight, w.fc1_bias, w.norm2_weight, w.norm2_bias)
        return cls(_by_head(qkv, heads), _by_head(qkv_bias, heads).unsqueeze(1), *mlp)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """Rows (3, h, d) in the order (h, 3, d), and queries times the factor of the logits."""
    x = x.unflatten(0, (3, heads, -1)).transpose(0, 1).contiguous()
    x[:, 0] *= x.shape[2] ** -0.5
    return x.flatten(0, 2)


def _by_kind(x: Tensor, heads: int) -> Tensor:
    """The gradient of `_by_head`: rows (h, 3, d) in the order (3, h, d), and queries times the factor."""
    x = x.unflatten(0, (heads, 3, -1)).transpose(0, 1).contiguous()
    x[0] *= x.shape[2] ** -0.5
    return x.flatten(0, 2)


def _fold_norm(matrix: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Linear layer (O, C), (O) with the scale and shift (C) of the norm before it."""
    return matrix * scale, torch.addmv(bias, matrix, shift)


def _unfold_norm(
    grad: Tensor, grad_bias: Tensor, matrix: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of matrix, scale and shift from those of what `_fold_norm` returned; the bias's stays as it is."""
    return torch.addr(grad * scale, grad_bias, shift), (grad * matrix).sum(0), grad_bias @ matrix


class _Normed(NamedTuple):
    y: Tensor  # (n, N, C), before scale and shift
    mean: Tensor
    rstd: Tensor


class _Attention(NamedTuple):
    norm: _Normed
    qkv: Tensor  # (n * h, 3 d, N)
    p: Tensor  # (n * h, N, N), attention probabilities
    o: Tensor  # (n, C, N)


class _Mlp(NamedTuple):
    norm: _Normed
    before: Tensor  # (n * N, M), before the GELU
    after: Tensor  # (n * N, M)


class _Activations(NamedTuple):
    x: Tensor  # (n, N, C)
    attention: _Attention
    middle: Tensor  # (n, N, C), after the attention branch
    mlp: _Mlp
    out: Tensor | None  # (n, N, C)


def _chunks(weights: BlockWeights, where: Grid, scales: Tensor | None) -> Iterator[_Chunk]:
    _, heads, tokens, _ = weights.bias.shape
    count = max(1, CHUNK_BYTES // (4 * tokens * (heads * tokens + 12 * weights.norm1_weight.numel())))
    for start in range(0, len(where.kind), count):
        part = slice(start, start + count)
        scale = (None, None) if scales is None else (scales[0, part, None, None], scales[1, part, None, None])
        yield _Chunk(where.tiles[part].flatten(), where.kind[part], scale)


def _forward(
    tiles: Tensor, weights: BlockWeights, where: Grid, scales: Tensor | None, *, to_out: bool = True
) -> Iterator[tuple[_Chunk, _Activations]]:
    """Runs chunk after chunk; without `to_out` only as far as the backward pass needs."""
    folded = _Folded.of(weights)
    for chunk in _chunks(weights, where, scales):
        x = _gather(tiles, chunk, weights)
        attention = _attend(x, weights, folded, chunk.kind)
        middle = _plus_attention(x, attention.o, weights, chunk.scale[0])
        mlp = _mlp(middle, folded)
        out = _plus_mlp(middle, mlp.after, weights, chunk.scale[1]) if to_out else None
        yield chunk, _Activations(x, attention, middle, mlp, out)


def _gather(tiles: Tensor, chunk: _Chunk, weights: BlockWeights) -> Tensor:
    """Windows (n, N, C) of a chunk."""
    return tiles.index_select(0, chunk.rows).view(-1, weights.bias.shape[-1], weights.norm1_weight.numel())


def _scatter(tiles: Tensor, chunk: _Chunk, x: Tensor | None) -> None:
    assert x is not None
    tiles.index_copy_(0, chunk.rows, x.view(len(chunk.rows), -1))


def _attend(x: Tensor, weights: BlockWeights, folded: _Folded, kind: Tensor) -> _Attention:
    """Attention of normalised windows (n, N, C), up to the projection."""
    n, tokens, dim = x.shape
    heads = weights.bias.shape[1]
    norm, columns = _norm(x), folded.qkv_bias.expand(n, -1, tokens)
    qkv = torch.baddbmm(columns, folded.qkv.expand(n, -1, -1), norm.y.transpose(1, 2)).view(n * heads, -1, tokens)
    p = _probabilities(qkv, weights, kind)
    return _Attention(norm, qkv, p, torch.bmm(qkv.chunk(3, 1)[2], p.transpose(1, 2)).view(n, dim, tokens))


def _norm(x: Tensor) -> _Normed:
    mean = x.mean(-1, keepdim=True)
    y = x - mean
    rstd = torch.linalg.vector_norm(y, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(1e-5).rsqrt_()
    return _Normed(y.mul_(rstd), mean, rstd)


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


def _mlp(x: Tensor, folded: _Folded) -> _Mlp:
    """The MLP of normalised windows (n, N, C), up to its second layer."""
    norm = _norm(x)
    before = torch.addmm(folded.fc1_bias, norm.y.view(-1, x.shape[-1]), folded.fc1.t())
    return _Mlp(norm, before, F.gelu(before))


def _plus_mlp(x: Tensor, after: Tensor, weights: BlockWeights, scale: Tensor | None) -> Tensor:
    """Add the scaled second layer of hidden features (n * N, M) to x."""
    n, tokens, dim = x.shape
    bias = weights.fc2_bias
    if scale is not None:
        after, bias = (after.view(n, tokens, -1) * scale).view(n * tokens, -1), bias * scale
    return (x + bias).view(-1, dim).addmm_(after, weights.fc2_weight.t()).view_as(x)


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
        qkv, norm1_weight, norm1_bias = _unfold_norm(qkv, qkv_bias, w.qkv_weight, w.norm1_weight, w.norm1_bias)
        fc1, norm2_weight, norm2_bias = _unfold_norm(
            self.fc1, self.fc1_bias, w.fc1_weight, w.norm2_weight, w.norm2_bias
        )
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


def _backward(grad: Tensor, chunks: Iterable[tuple[_Chunk, _Activations]], weights: BlockWeights) -> tuple[Tensor, ...]:
    """Gradients of the input and of each of the weights."""
    folded, sums, grad_tiles = _Folded.of(weights), None, torch.empty_like(grad)
    for chunk, activations in chunks:
        sums = sums or _Sums.zeros(weights, len(chunk.kind))  # the first chunk is the largest
        g = _gather(grad, chunk, weights)
        _mlp_backward(g, activations.mlp, activations.middle, weights, folded, sums, chunk.scale[1])
        _attention_backward(g, activations.attention, activations.x, weights, folded, sums, chunk)
        _scatter(grad_tiles, chunk, g)
    assert sums is not None
    return grad_tiles, *sums.gradients(weights)


def _mlp_backward(
    g: Tensor, mlp: _Mlp, x: Tensor, weights: BlockWeights, folded: _Folded, sums: _Sums, scale: Tensor | None
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
    _norm_backward(g, (hidden @ folded.fc1).view_as(x), x, mlp.norm)


def _attention_backward(
    g: Tensor, a: _Attention, x: Tensor, weights: BlockWeights, folded: _Folded, sums: _Sums, chunk: _Chunk
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
    _norm_backward(g, torch.bmm(dqkv.transpose(1, 2), folded.qkv.expand(n, -1, -1)), x, a.norm)


def _norm_backward(g: Tensor, inner: Tensor, x: Tensor, norm: _Normed) -> None:
    """In place: add to g what reaches x through its norm, whose output has the gradient `inner`."""
    g.add_(
        torch.ops.aten.native_layer_norm_backward(
            inner, x, (x.shape[-1],), norm.mean, norm.rstd, None, None, (True, False, False)
        )[0]
    )
