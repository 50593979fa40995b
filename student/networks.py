"""The network that upscales, by name or file: a shipped student, any SwinIR file, or what spandrel knows."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.system import torchvision_guard
from pipeline.system.device import (
    Precision,
    ResolvedPrecision,
    autocast,
    choose,
    keep_freed_memory,
    resolve_precision,
)
from pipeline.system.errors import DtkdError, UsageError
from student.model.swinir import SwinIR
from student.model.weight_files import load_student

WEIGHTS = Path(__file__).parent / "weights"
"""Students that are shipped, as NAME.safetensors."""
DEFAULT = "tiny-x4"
_ALIGN = 8


class BrokenNetworkError(DtkdError):
    """A network that gives no picture: its own fault, not that of what it was given."""


@dataclass(frozen=True)
class Network:
    """An upscaler of RGB tensors (B, 3, H, W) in [0, 1].

    Attributes:
        name: of the student or the file.
        scale: output pixels per input pixel along each axis.
        multiple: what tile sizes must be multiples of.
        device: where it runs.
        bytes_per_pixel: memory of a forward pass, per LR pixel; an estimate on the safe side.
        forward: the network itself.
        parameters: how many weights it has.
        path: the file that it came from.
        precision: what it computes in; pictures are float32 always.
    """

    name: str
    scale: int
    multiple: int
    device: str
    bytes_per_pixel: int
    forward: Callable[[Tensor], Tensor]
    parameters: int | None = None
    path: Path | None = None
    precision: ResolvedPrecision = "fp32"

    @torch.inference_mode()
    def restore(self, lr: Tensor) -> Tensor:
        """float32 (n, 3, h, w) in [0, 1], wherever it is, to (n, 3, S * h, S * w) on the CPU, not clipped.

        Raises:
            BrokenNetworkError: the network returned NaN or infinity.
        """
        with autocast(self.precision, self.device):
            sr = self.forward(lr.to(self.device)).float().cpu()
        if not sr.isfinite().all():
            raise BrokenNetworkError(f"{self.name} gives values that are not finite: its weights are damaged")
        return sr

    def __call__(self, lr: np.ndarray) -> np.ndarray:
        """As `restore`, for arrays."""
        return self.restore(torch.from_numpy(lr)).numpy()


def load_network(checkpoint: str = DEFAULT, device: str = "auto", precision: Precision = "auto") -> Network:
    """Load a network.

    Args:
        checkpoint: name of a shipped student, a run or Hugging Face folder, or a weight file: of a student, of official
            SwinIR, or of any super-resolution network that spandrel knows, where it is installed.
        device: torch device; `auto` is a GPU where there is one.
        precision: of a SwinIR; `auto` is bf16 where the device computes in it natively. What spandrel knows is fp32.

    Raises:
        DtkdError: there is nothing of that name, or the file holds no network that upscales RGB pictures.
        UsageError: bf16 is asked for, and it is no SwinIR.
    """
    path = find_checkpoint(checkpoint)
    device = choose(device)
    if device == "cpu":
        keep_freed_memory()
    name = name_of(path)
    try:
        student = load_student(path)
    except DtkdError as error:
        return _from_spandrel(path, name, device, precision, error)
    window = student.config.window
    multiple, memory = math.lcm(_ALIGN, window), _swinir_bytes(student)
    count, resolved = _count(student), resolve_precision(precision, device)
    return Network(name, student.scale, multiple, device, memory, student.to(device), count, path, resolved)


def find_checkpoint(checkpoint: str) -> Path:
    """File of a shipped student, of a run folder, or the path itself, which need not exist then.

    Raises:
        DtkdError: the folder holds no student, or none of this name is shipped.
    """
    path = Path(checkpoint)
    if path.is_dir():
        for name in ("student.safetensors", "model.safetensors"):  # of a run; of a Hugging Face folder or a step
            if (path / name).exists():
                return path / name
        raise DtkdError(f"{checkpoint} holds no student.safetensors: name a weight file, or a run that has saved once")
    shipped = shipped_file(checkpoint)
    if path.exists() or (not shipped.exists() and (path.suffix or len(path.parts) > 1)):
        return path  # what is missing is reported by who reads it
    if not shipped.exists():
        raise DtkdError(
            f"no student {checkpoint!r} is shipped (there are: {shipped_names()}): give one of them, a run folder or a "
            "weight file"
        )
    return shipped


def shipped_file(name: str) -> Path:
    """Where a shipped student is; it need not exist."""
    return WEIGHTS / f"{name}.safetensors"


def shipped_names() -> str:
    """Names of the shipped students, for people."""
    return ", ".join(sorted(file.stem for file in WEIGHTS.glob("*.safetensors"))) or "none"


def name_of(path: Path) -> str:
    """What to call the network in a weight file: the run or folder where the file itself says nothing."""
    return path.parent.resolve().name if path.stem in ("student", "model") else path.stem


def _swinir_bytes(student: SwinIR) -> int:
    """On the safe side: tiny and light take 28 bytes a body channel on a CPU (measured: LOG.md, 2026-11-23).

    In bf16 tiny takes 46. On a GPU, counting the live tensors of whole-picture operators, it is up to 58.
    """
    config = student.config
    features = 2 * config.num_feat * 4 * config.scale**2 if config.upsampler != "pixelshuffledirect" else 0
    return 64 * config.embed_dim + features + 24 * config.scale**2


def _from_spandrel(path: Path, name: str, device: str, precision: Precision, own_error: DtkdError) -> Network:
    """Another architecture, through spandrel, in fp32: what bf16 costs was measured for SwinIR alone.

    Raises:
        DtkdError: `own_error` where spandrel is not installed or does not know the file either.
        UsageError: bf16 is asked for.
    """
    if not path.is_file():
        raise own_error
    torchvision_guard.apply()
    try:
        import spandrel
    except ImportError:
        raise DtkdError(f"{own_error}; other architectures need spandrel: pip install spandrel") from own_error
    try:
        found: Any = spandrel.ModelLoader("cpu").load_from_file(path)
    except Exception as error:  # spandrel raises whatever torch, safetensors or an architecture does
        raise own_error from error
    if not isinstance(found, spandrel.ImageModelDescriptor) or (found.input_channels, found.output_channels) != (3, 3):
        raise DtkdError(f"{path} holds a {found.architecture.name} that does not turn RGB pictures into RGB pictures")
    if precision == "bf16":
        raise UsageError(f"{path} holds a {found.architecture.name}, which runs in fp32 only: take --precision auto")
    found = found.to(device).eval()
    multiple = math.lcm(_ALIGN, found.size_requirements.multiple_of)
    memory, count = 20_000 + 2000 * found.scale**2, _count(found.model)
    return Network(name, found.scale, multiple, device, memory, found, count, path)


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
