"""The student network: SwinIR to its public key specification, its presets and its weight files."""

from student.model.presets import ModelSettings, build, preset_config, preset_of
from student.model.swinir import SwinIR, SwinIRConfig

__all__ = ["ModelSettings", "SwinIR", "SwinIRConfig", "build", "preset_config", "preset_of"]
