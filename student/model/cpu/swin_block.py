"""SwinIR's blocks on a CPU: chunks of windows go through attention and MLP, forward and backward, while in cache.

B batch, H W height and width in tokens, C channels, w window side, N = w * w tokens of a window, n windows of a chunk,
h heads, d = C / h channels of a head, M hidden channels of the MLP, K kinds of window.

Three things make this several times faster than whole-image operators, at the same results (measured: LOG.md,
2026-11-23):

* Features are kept as quarter windows ("tiles" of w/2 x w/2 tokens), those of a plain window one after the other. So
  plain windows are there already, and shifted ones, also of four whole tiles, are one gather and one scatter of long
  rows.
* Queries, keys and values are computed channels first, (n, C, N) = (n * h, d, N): heads are split and joined without a
  copy, and all products are in the orientation that the matrix library does fastest for small d.
* Forward and backward run chunk by chunk, so that what one step writes the next one finds in cache. The backward pass
  takes products of the forward pass or, with `keep=False`, computes everything again from the block's input.

Both passes exist twice: in float32, equal to whole-image operators, and with bfloat16 products, for autocast.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from student.model.cpu import bf16_backward, bf16_forward, fp32_backward, fp32_forward
from student.model.cpu.chunks import BatchWindows, BlockWeights, Chunk, scatter
from student.model.windows import attention_mask, is_traced, relative_position_index


class WindowLayout(NamedTuple):
    """How features are cut into windows."""

    window: int
    batch: int
    rows: int
    """Of windows, as `columns`."""
    columns: int
    shifted: bool


def applies_to(weight: Tensor) -> bool:
    """Whether this path is right for a network with this weight: float32 on a CPU, run eagerly or compiled.

    Exported programs and ONNX files consist of standard operators alone.
    """
    eager = not is_traced() or (torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting())
    return eager and weight.device.type == "cpu" and weight.dtype == torch.float32


@cache
def _keep_working_memory() -> None:
    """Have glibc keep a chunk's freed memory for the next one.

    It returns what is more than twice the largest block freed so far, up to 32 MB each. Page faults would then take as
    long as the operators. Freeing one large block, which was never touched, is what it learns from (see mallopt(3)).
    """
    torch.empty(31 << 20, dtype=torch.uint8, device="cpu")


def to_tiles(x: Tensor, window: int) -> Tensor:
    """Copy (B, H, W, C) to tiles (B * H * W / (w/2)^2, (w/2)^2 * C), the four of a plain window one after the other."""
    b, h, w, c = x.shape
    side = window // 2
    tiles = x.reshape(b, h // window, 2, side, w // window, 2, side, c).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return tiles.clone(memory_format=torch.contiguous_format).view(-1, side * side * c)


def from_tiles(tiles: Tensor, window: int, size: torch.Size) -> Tensor:
    """Inverse of `to_tiles`; `size` is (B, H, W, C)."""
    b, h, w, c = size
    side = window // 2
    tiles = tiles.view(b, h // window, w // window, 2, 2, side, side, c)
    return tiles.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(size)


@lru_cache(maxsize=16)
def batch_windows(batch: int, rows: int, columns: int, shifted: bool) -> BatchWindows:
    """Windows of `batch` images of rows x columns windows; shifted ones start one tile further and wrap around."""
    with torch.inference_mode(False), torch.device("cpu"):
        kind = torch.zeros(batch, rows, columns, dtype=torch.long)
        if not shifted:
            return BatchWindows(None, kind.flatten())
        kind[:, -1] += 2
        kind[:, :, -1] += 1
        tile = torch.arange(batch * rows * columns * 4).view(batch, rows, columns, 2, 2).transpose(2, 3)
        tile = tile.reshape(batch, 2 * rows, 2 * columns).roll((-1, -1), (1, 2))
        tile = tile.view(batch, rows, 2, columns, 2).transpose(2, 3)
        return BatchWindows(tile.reshape(-1, 4), kind.flatten())


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


def run_block(
    tiles: Tensor, weights: BlockWeights, layout: WindowLayout, scales: Tensor | None, *, keep: bool, bf16: bool
) -> Tensor:
    """One block.

    Args:
        tiles: features as `to_tiles` gives them; without autograd they are overwritten with the result.
        weights: parameters.
        layout: the windows, plain or shifted.
        scales: None, or factors of the attention and the MLP branch of each window, (2, B * nW) (stochastic depth).
        keep: keep activations for the backward pass, rather than compute them again; compiled, they never are.
        bf16: take bfloat16 operands for products.
    """
    if is_traced():
        return _operator(tiles, list(weights), scales, [*layout[:-1], int(layout.shifted)], bf16)
    _keep_working_memory()
    with torch.autocast("cpu", enabled=False):
        weights, windows = _prepared(weights, layout)
        if torch.is_grad_enabled():
            return _Block.apply(tiles, *weights, *windows, scales, keep, bf16)
        return _run(tiles, tiles, weights, windows, scales, bf16)


def _prepared(weights: BlockWeights, layout: WindowLayout) -> tuple[BlockWeights, BatchWindows]:
    """Weights with the bias of each kind of window, and the windows."""
    window, *size, shifted = layout
    return weights._replace(bias=window_bias(weights.bias, window, shifted)), batch_windows(*size, shifted)


def _run(
    tiles: Tensor, out: Tensor, weights: BlockWeights, windows: BatchWindows, scales: Tensor | None, bf16: bool
) -> Tensor:
    """Without autograd, into `out`, which may be the tiles themselves."""
    for chunk, activations in _passes(bf16).forward(tiles, weights, windows, scales):
        scatter(out, chunk, activations.out)
    return out


class _Passes(NamedTuple):
    """The two passes of a precision; what the forward pass yields of a chunk is for its own backward pass alone."""

    forward: Callable[..., Iterator[tuple[Chunk, Any]]]
    backward: Callable[..., tuple[Tensor, ...]]


def _passes(bf16: bool) -> _Passes:
    if bf16:
        return _Passes(bf16_forward.forward_chunks, bf16_backward.backward_chunks)
    return _Passes(fp32_forward.forward_chunks, fp32_backward.backward_chunks)


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tiles, *inputs):  # pyright: ignore[reportIncompatibleMethodOverride]
        *inputs, keep, ctx.bf16 = inputs
        ctx.save_for_backward(tiles, *inputs)
        kept, out = [], torch.empty_like(tiles)
        weights, windows, scales = _unpacked(inputs)
        for chunk, activations in _passes(ctx.bf16).forward(tiles, weights, windows, scales):
            scatter(out, chunk, activations.out)
            if keep:
                kept.append((chunk, activations._replace(out=None)))
        ctx.kept = kept
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        tiles, *inputs = ctx.saved_tensors
        weights, windows, scales = _unpacked(inputs)
        with torch.autocast("cpu", enabled=False):
            chunks = ctx.kept or _passes(ctx.bf16).forward(tiles, weights, windows, scales, to_out=False)
            grads = _passes(ctx.bf16).backward(grad, chunks, weights)
        ctx.kept = []  # frees memory now; a second backward pass through the graph computes again
        wanted = ctx.needs_input_grad[:14]
        nothing = [None] * (len(ctx.needs_input_grad) - len(wanted))
        return *(g if want else None for g, want in zip(grads, wanted, strict=True)), *nothing


def _unpacked(inputs: Sequence[Tensor]) -> tuple[BlockWeights, BatchWindows, Tensor | None]:
    *weights, tiles, kind, scales = inputs
    return BlockWeights(*weights), BatchWindows(tiles, kind), scales


# For torch.compile: a block is one operator, because what the compiler would make of its parts is several times slower.


def _layout(numbers: Sequence[int]) -> WindowLayout:
    *size, shifted = numbers
    return WindowLayout(*size, shifted=bool(shifted))


@torch.library.custom_op("dtkd::swin_block", mutates_args=(), device_types="cpu")
def _operator(
    tiles: Tensor, weights: Sequence[Tensor], scales: Tensor | None, layout: Sequence[int], bf16: bool
) -> Tensor:
    _keep_working_memory()
    with torch.autocast("cpu", enabled=False):
        prepared, windows = _prepared(BlockWeights(*weights), _layout(layout))
        return _run(tiles, torch.empty_like(tiles), prepared, windows, scales, bf16)


@torch.library.custom_op("dtkd::swin_block_backward", mutates_args=(), device_types="cpu")
def _operator_backward(
    grad: Tensor, tiles: Tensor, weights: Sequence[Tensor], scales: Tensor | None, layout: Sequence[int], bf16: bool
) -> list[Tensor]:
    """Gradients of the tiles and of each of the weights."""
    with torch.autocast("cpu", enabled=False):
        prepared, windows = _prepared(BlockWeights(*weights), _layout(layout))
        chunks = _passes(bf16).forward(tiles, prepared, windows, scales, to_out=False)
        grad_tiles, *grads = _passes(bf16).backward(grad.contiguous(), chunks, prepared)
    grads = BlockWeights(*grads)
    table, (index, _) = torch.zeros_like(BlockWeights(*weights).bias), _tables(layout[0])
    return [grad_tiles, *grads._replace(bias=table.index_add_(0, index, grads.bias.sum(0).flatten(1).t()))]


@_operator.register_fake
def _(tiles: Tensor, weights: Sequence[Tensor], scales: Tensor | None, layout: Sequence[int], bf16: bool) -> Tensor:
    return torch.empty_like(tiles)


@_operator_backward.register_fake
def _(
    grad: Tensor, tiles: Tensor, weights: Sequence[Tensor], scales: Tensor | None, layout: Sequence[int], bf16: bool
) -> list[Tensor]:
    return [torch.empty_like(x) for x in (tiles, *weights)]


def _save(ctx, inputs, output) -> None:
    tiles, weights, scales, ctx.layout, ctx.bf16 = inputs
    ctx.save_for_backward(tiles, scales, *weights)


def _differentiate(ctx, grad):
    tiles, scales, *weights = ctx.saved_tensors
    grad_tiles, *grads = _operator_backward(grad, tiles, weights, scales, ctx.layout, ctx.bf16)
    return grad_tiles, grads, None, None, None


_operator.register_autograd(_differentiate, setup_context=_save)
