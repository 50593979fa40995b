"""The student network by name: `build("light", scale=4)`."""

from dataclasses import dataclass
from typing import Literal, get_args

from pipeline.system.errors import DtkdError, UsageError
from student.model.swinir import SwinIR, SwinIRConfig

__all__ = ["ModelSettings", "Preset", "SwinIR", "SwinIRConfig", "build", "preset_config", "preset_of"]

Preset = Literal["tiny", "light", "classical", "real-m", "real-l"]


@dataclass(frozen=True)
class ModelSettings:
    """Which student to train."""

    preset: Preset = "light"
    """tiny is ours, for CPUs; the others are the published SwinIR variants, smallest first."""
    scale: int = 4
    """Output pixels per input pixel along each axis: 2, 3 or 4; also 8 for classical; not 3 for real-m and real-l."""
    drop_path: float = 0.0
    """Stochastic depth: probability to drop the last block in training, 0 at the first (official SwinIR: 0.1)."""
    checkpointing: bool = False
    """Compute activations again in the backward pass: much less memory, about a third more time."""

    def __post_init__(self) -> None:
        """Check all fields.

        Raises:
            DtkdError: a field names no network.
        """
        preset_config(self.preset, self.scale)
        if not 0 <= self.drop_path < 1:
            raise DtkdError(f"model.drop_path must be at least 0 and below 1, got {self.drop_path}")

    def build(self) -> SwinIR:
        """A new network with these settings."""
        return build(self.preset, self.scale, drop_path=self.drop_path, checkpointing=self.checkpointing)


def build(preset: str, scale: int = 4, *, drop_path: float = 0.0, checkpointing: bool = False) -> SwinIR:
    """A randomly initialised student, in training mode.

    Raises:
        DtkdError: there is no such preset, or not at this scale.
    """
    config = preset_config(preset, scale)
    return SwinIR(config, drop_path=drop_path, checkpointing=checkpointing, preset=preset)


def preset_config(preset: str, scale: int = 4) -> SwinIRConfig:
    """Architecture of a preset.

    Parameters at scale 4: tiny 340 thousand, light 930 thousand, classical 11.9, real-m 11.7, real-l 28.0 million.
    The published ones store the masks of 64 x 64 LR pixels that official SwinIR's scripts insist on. tiny, which these
    scripts do not know, stores the smallest that a SwinIR loader rebuilds its network from: two windows along a side.

    Raises:
        DtkdError: there is no such preset, or not at this scale.
    """
    if preset == "tiny":
        return SwinIRConfig(scale, 48, (4,) * 3, (4,) * 3, "pixelshuffledirect", img_size=16)
    if preset == "light":
        return SwinIRConfig(scale, 60, (6,) * 4, (6,) * 4, "pixelshuffledirect")
    if preset == "classical":
        return SwinIRConfig(scale, 180, (6,) * 6, (6,) * 6, "pixelshuffle")
    if preset == "real-m":
        return SwinIRConfig(scale, 180, (6,) * 6, (6,) * 6, "nearest+conv")
    if preset == "real-l":
        return SwinIRConfig(scale, 240, (6,) * 9, (8,) * 9, "nearest+conv", "3conv")
    raise UsageError(f"there is no preset {preset!r}: choose one of {', '.join(get_args(Preset))}")


def preset_of(config: SwinIRConfig) -> str:
    """Name of the preset with this architecture, whatever its stored mask size; "custom" if there is none."""
    for preset in get_args(Preset):
        try:
            reference = preset_config(preset, config.scale)
        except DtkdError:
            continue
        if reference == SwinIRConfig(**{**vars(config), "img_size": reference.img_size}):
            return preset
    return "custom"
