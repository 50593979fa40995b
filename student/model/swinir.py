"""SwinIR (Liang et al., 2021, arXiv:2108.10257), written to the key layout of its published checkpoints.

B batch, H W height and width in LR pixels (one token each), C channels, S scale, N tokens of a window.

Features travel as (B, H, W, C): what the attention wants, and at the same time the memory of a channels-last
convolution, so that neither side copies.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.system.errors import DtkdError
from student.model.blocks import Geometry, SwinBlock
from student.model.cpu import swin_block
from student.model.windows import pad_to_multiple

Upsampler = Literal["pixelshuffle", "pixelshuffledirect", "nearest+conv"]
RGB_MEAN = (0.4488, 0.4371, 0.4040)
"""RGB mean of DIV2K, which every published SwinIR subtracts from its input."""


@dataclass(frozen=True)
class SwinIRConfig:
    """Architecture of one SwinIR; everything here can be read back from the shapes of a checkpoint."""

    scale: int
    embed_dim: int
    """Channels of the body."""
    depths: tuple[int, ...]
    """Blocks in each residual group."""
    heads: tuple[int, ...]
    """Attention heads in each residual group; they divide `embed_dim`."""
    upsampler: Upsampler
    """pixelshuffledirect: one convolution (light); pixelshuffle: classical; nearest+conv: real-world variants."""
    resi_connection: Literal["1conv", "3conv"] = "1conv"
    """Convolutions that close each residual group; 3conv is a bottleneck (real-L)."""
    mlp_hidden: int = 0
    """Hidden channels of the MLP; 0 means 2 * embed_dim."""
    num_feat: int = 64
    """Channels of the upsampler (not of pixelshuffledirect)."""
    window: int = 8
    """Window side in LR pixels; even, because shifted blocks move by half of it."""
    img_size: int = 64
    """LR size whose attention masks are stored in files; the network itself runs at any size."""

    def __post_init__(self) -> None:
        """Refuse what no SwinIR can be.

        Raises:
            DtkdError: names the setting, the value and what is allowed.
        """
        scales = {"pixelshuffle": (2, 3, 4, 8), "pixelshuffledirect": (2, 3, 4), "nearest+conv": (2, 4)}[self.upsampler]
        if self.scale not in scales:
            raise DtkdError(
                f"scale {self.scale} does not exist with upsampler {self.upsampler}: choose one of {scales}"
            )
        if self.window % 2 or self.img_size % self.window or self.img_size <= self.window:
            raise DtkdError(
                f"window must be even and divide a larger img_size, got window {self.window}, img_size {self.img_size}"
            )
        if len(self.heads) != len(self.depths) or any(self.embed_dim % h for h in self.heads):
            raise DtkdError(
                f"each of {len(self.depths)} groups needs heads that divide {self.embed_dim}, got {self.heads}"
            )
        if not self.mlp_hidden:
            object.__setattr__(self, "mlp_hidden", 2 * self.embed_dim)


class SwinIR(nn.Module):
    """Super-resolution transformer: (B, 3, H, W) in [0, 1] to (B, 3, S * H, S * W), any H, W >= 1.

    The result is not clipped. float32 or bfloat16; under autocast to bfloat16 weights and result are float32, and only
    operands of products and convolutions are not. float16 is refused.
    """

    mean: Tensor

    def __init__(
        self, config: SwinIRConfig, *, drop_path: float = 0.0, checkpointing: bool = False, preset: str = "custom"
    ) -> None:
        """Make a randomly initialised network.

        Args:
            config: the architecture.
            drop_path: probability to drop the last block's residual branches in training, falling linearly to 0 at
                the first block (stochastic depth).
            checkpointing: keep no activations inside blocks in training and compute them again in the backward pass.
            preset: name of the preset that `config` came from, for reports.
        """
        super().__init__()
        self.config, self.preset, self.checkpointing = config, preset, checkpointing
        dim, total = config.embed_dim, sum(config.depths)
        rates = iter([drop_path * i / max(total - 1, 1) for i in range(total)])

        self.conv_first = nn.Conv2d(3, dim, 3, padding=1)
        self.patch_embed = _PatchEmbed(dim)
        self.layers = nn.ModuleList(
            _ResidualGroup(config, heads, [next(rates) for _ in range(depth)])
            for depth, heads in zip(config.depths, config.heads, strict=True)
        )
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = _closing_conv(config)
        self._build_upsampler()
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)
        self.apply(_initialise)

    @property
    def scale(self) -> int:
        """Output pixels per input pixel, along each axis."""
        return self.config.scale

    def _build_upsampler(self) -> None:
        scale, feat, kind = self.config.scale, self.config.num_feat, self.config.upsampler
        if kind == "pixelshuffledirect":
            self.upsample = nn.Sequential(
                nn.Conv2d(self.config.embed_dim, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale)
            )
            return
        self.conv_before_upsample = nn.Sequential(
            nn.Conv2d(self.config.embed_dim, feat, 3, padding=1), nn.LeakyReLU(inplace=True)
        )
        if kind == "pixelshuffle":
            factors = [3] if scale == 3 else [2] * int(math.log2(scale))
            steps = [(nn.Conv2d(feat, f * f * feat, 3, padding=1), nn.PixelShuffle(f)) for f in factors]
            self.upsample = nn.Sequential(*(module for step in steps for module in step))
        else:
            self.conv_up1 = nn.Conv2d(feat, feat, 3, padding=1)
            if scale == 4:
                self.conv_up2 = nn.Conv2d(feat, feat, 3, padding=1)
            self.conv_hr = nn.Conv2d(feat, feat, 3, padding=1)
        self.conv_last = nn.Conv2d(feat, 3, 3, padding=1)

    def forward(self, lr: Tensor) -> Tensor:
        """Upscale a batch of images.

        Raises:
            ValueError: `lr` is not (B, 3, H, W).
            DtkdError: float16 weights, input or autocast.
        """
        if lr.ndim != 4 or lr.shape[1] != 3:
            raise ValueError(f"expected images (B, 3, H, W), got {tuple(lr.shape)}")
        self._refuse_half(lr)
        h, w = lr.shape[-2:]
        x = pad_to_multiple(lr, self.config.window) - self.mean.to(lr.dtype)
        x = self._precisely(self.conv_first, x.contiguous(memory_format=torch.channels_last))
        x = self.conv_after_body(self._body(x)) + x
        sr = self._reconstruct(x)[..., : h * self.scale, : w * self.scale]
        return sr + self.mean

    def _precisely(self, layer: nn.Module, x: Tensor) -> Tensor:
        """A layer in the weights' own precision, also under autocast.

        Rounding what goes into the first convolution or comes out of the last shifts colours: .02 dB (LOG.md,
        2026-11-24).
        """
        if not torch.is_autocast_enabled(x.device.type):
            return layer(x)
        with torch.autocast(x.device.type, enabled=False):
            return layer(x.to(self.mean.dtype))

    def _refuse_half(self, lr: Tensor) -> None:
        device = lr.device.type
        half_autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
        if half_autocast or torch.float16 in (lr.dtype, self.conv_first.weight.dtype):
            raise DtkdError("SwinIR overflows in float16 and returns black images: use bfloat16 or float32")

    def _body(self, x: Tensor) -> Tensor:
        """Residual groups: (B, C, H, W) to (B, C, H, W), channels last."""
        geometry = Geometry.of(x, self.config.window, self.norm.weight)
        if geometry.tiled:
            x = x.float()  # the residual stream, also under autocast
        tokens = self.patch_embed.norm(x.permute(0, 2, 3, 1))  # (B, H, W, C)
        for group in self.layers:
            tokens = group(tokens, geometry, self.checkpointing and self.training)
        return self.norm(tokens).permute(0, 3, 1, 2)

    def _reconstruct(self, x: Tensor) -> Tensor:
        """Features (B, C, H, W) to images (B, 3, S * H, S * W), less the mean."""
        if self.config.upsampler == "pixelshuffledirect":
            return self._precisely(self.upsample, x)
        x = self.conv_before_upsample(x)
        if self.config.upsampler == "pixelshuffle":
            x = self.upsample(x)
        else:
            x = F.leaky_relu(self.conv_up1(F.interpolate(x, scale_factor=2)), 0.2)
            if self.scale == 4:
                x = F.leaky_relu(self.conv_up2(F.interpolate(x, scale_factor=2)), 0.2)
            x = F.leaky_relu(self.conv_hr(x), 0.2)
        return self._precisely(self.conv_last, x)


class _PatchEmbed(nn.Module):
    """Holds the norm of the tokens under its published name."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)


class _Blocks(nn.Module):
    """The blocks of a group, under their published name."""

    def __init__(self, config: SwinIRConfig, heads: int, drop_path: list[float]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(
                config.embed_dim,
                heads,
                config.mlp_hidden,
                window=config.window,
                shifted=i % 2 == 1,
                img_size=config.img_size,
                drop_path=rate,
            )
            for i, rate in enumerate(drop_path)
        )
        self.window = config.window

    def forward(self, x: Tensor, geometry: Geometry, checkpointing: bool) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        blocks: list[SwinBlock] = list(self.blocks)  # pyright: ignore[reportAssignmentType]
        if geometry.tiled:
            tiles = swin_block.to_tiles(x, self.window)
            for block in blocks:
                tiles = block.forward_tiles(tiles, geometry, checkpointing)
            return swin_block.from_tiles(tiles, self.window, x.shape)
        for block in blocks:
            x = checkpoint(block, x, geometry, use_reentrant=False) if checkpointing else block(x, geometry)
        return x


class _ResidualGroup(nn.Module):
    """Residual Swin Transformer Block (RSTB): blocks, a convolution, and a residual connection around both."""

    def __init__(self, config: SwinIRConfig, heads: int, drop_path: list[float]) -> None:
        super().__init__()
        self.residual_group = _Blocks(config, heads, drop_path)
        self.conv = _closing_conv(config)

    def forward(self, x: Tensor, geometry: Geometry, checkpointing: bool) -> Tensor:
        """(B, H, W, C) to (B, H, W, C)."""
        y = self.residual_group(x, geometry, checkpointing)
        return self.conv(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).to(x.dtype) + x


def _closing_conv(config: SwinIRConfig) -> nn.Module:
    dim = config.embed_dim
    if config.resi_connection == "1conv":
        return nn.Conv2d(dim, dim, 3, padding=1)
    return nn.Sequential(
        nn.Conv2d(dim, dim // 4, 3, padding=1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(dim // 4, dim // 4, 1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(dim // 4, dim, 3, padding=1),
    )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
