"""The Swin transformer block of SwinIR: window attention and MLP, each with a residual connection.

B batch, H W height and width in tokens, C channels, w window side, N = w * w tokens of a window, nW windows of an
image, h heads, d = C / h channels of a head.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from student.model.cpu import swin_block
from student.model.cpu.chunks import BlockWeights
from student.model.windows import attention_mask, is_traced, merge, partition, relative_position_index


@dataclass(frozen=True)
class Geometry:
    """What all blocks of a forward pass share: sizes, and the mask of the shifted windows."""

    height: int
    width: int
    windows: tuple[int, int, int]
    """Batch, rows and columns of windows."""
    tiled: bool
    """Whether blocks take the CPU's way (`swin_block`)."""
    bf16: bool
    """Whether its products take bfloat16 operands: autocast is on."""
    mask: Tensor | None
    """float32 (nW, 1, N, N); None if tiled."""

    @classmethod
    def of(cls, x: Tensor, window: int, weight: Tensor) -> "Geometry":
        """Geometry of features (B, C, H, W) in a network with this weight; masks are kept for the sizes used last."""
        b, _, h, w = x.shape
        windows, bf16 = (b, h // window, w // window), torch.is_autocast_enabled(x.device.type)
        if swin_block.applies_to(weight):
            return cls(h, w, windows, True, bf16, None)
        mask = (attention_mask if is_traced() else _cached_mask)(h, w, window, window // 2, x.device)
        return cls(h, w, windows, False, bf16, mask.unsqueeze(1))


@lru_cache(maxsize=8)
def _cached_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return attention_mask(height, width, window, shift, device)


class SwinBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); odd blocks of a group attend in windows shifted by half."""

    attn_mask: Tensor

    def __init__(
        self, dim: int, heads: int, hidden: int, *, window: int, shifted: bool, img_size: int, drop_path: float
    ) -> None:
        """Make a block of `dim` channels; `img_size` is the size whose mask the state dict carries."""
        super().__init__()
        self.window, self.shift, self.drop_path = window, window // 2 if shifted else 0, drop_path
        if shifted:  # only a part of the file layout: forward passes use the mask of their own size
            self.register_buffer("attn_mask", attention_mask(img_size, img_size, window, self.shift))
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden)

    def forward(self, x: Tensor, geometry: Geometry) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        x = x + self._drop(self._attend(self.norm1(x), geometry))
        return x + self._drop(self.mlp(self.norm2(x)))

    def _attend(self, x: Tensor, geometry: Geometry) -> Tensor:
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        windows = self.attn(partition(x, self.window), geometry.mask if self.shift else None)
        x = merge(windows, self.window, geometry.height, geometry.width)
        return x.roll((self.shift, self.shift), (1, 2)) if self.shift else x

    def _drop(self, branch: Tensor) -> Tensor:
        if not self.training or not self.drop_path:
            return branch
        return branch * self._branch_factors(branch.shape[0], branch).view(-1, 1, 1, 1)

    def _branch_factors(self, batch: int, like: Tensor) -> Tensor:
        """Stochastic depth: 0 for the images whose branch is dropped, more than 1 for the others, (B,)."""
        return like.new_empty(batch).bernoulli_(1 - self.drop_path) / (1 - self.drop_path)

    def forward_tiles(self, tiles: Tensor, geometry: Geometry, checkpointing: bool) -> Tensor:
        """The same on tiles, for CPUs; without autograd the tiles are overwritten."""
        batch, rows, columns = geometry.windows
        scales = None
        if self.training and self.drop_path:
            factors = torch.stack([self._branch_factors(batch, tiles) for _ in range(2)])
            scales = factors.repeat_interleave(rows * columns, 1)
        attn = self.attn
        weights = BlockWeights(
            self.norm1.weight,
            self.norm1.bias,
            attn.qkv.weight,
            attn.qkv.bias,
            attn.relative_position_bias_table,
            attn.proj.weight,
            attn.proj.bias,
            self.norm2.weight,
            self.norm2.bias,
            self.mlp.fc1.weight,
            self.mlp.fc1.bias,
            self.mlp.fc2.weight,
            self.mlp.fc2.bias,
        )
        layout = swin_block.WindowLayout(self.window, batch, rows, columns, shifted=self.shift > 0)
        return swin_block.run_block(tiles, weights, layout, scales, keep=not checkpointing, bf16=geometry.bf16)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows, with a learned bias for each relative position."""

    relative_position_index: Tensor

    def __init__(self, dim: int, heads: int, window: int) -> None:
        """Make attention over `heads` heads; they divide `dim`."""
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_position_index(window))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Windows (B * nW, N, C) to the same; mask (nW, 1, N, N) or None."""
        count, tokens, dim = x.shape
        q, k, v = self.qkv(x).view(count, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        bias = self.position_bias()
        if mask is not None:
            bias = (bias + mask).expand(count // mask.shape[0], -1, -1, -1, -1).reshape(count, -1, tokens, tokens)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.proj(x.transpose(1, 2).reshape(count, tokens, dim))

    def position_bias(self) -> Tensor:
        """Bias of each head, query and key: (1, h, N, N)."""
        n = self.relative_position_index.shape[0]
        table = self.relative_position_bias_table.t()
        return table.index_select(1, self.relative_position_index.view(-1)).view(1, -1, n, n)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        """Make an MLP of `dim`, `hidden`, `dim` channels."""
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) to (..., C)."""
        return self.fc2(F.gelu(self.fc1(x)))
