"""A network of your own as a teacher: copy this file, put your network in, and name it.

    dtkd teacher-cache ~/photos runs/cache --teacher python:examples/python_teacher.py:sharpened --set context=8

The network here sharpens bicubic upscaling; yours would load weights. Everything that the pictures depend on belongs
into `fingerprint`: a cache is gone on with only where it says the same.
"""

import torch
import torch.nn.functional as F


class Sharpener(torch.nn.Module):
    """Bicubic upscaling and a learnable sharpening filter: (B, 3, h, w) to (B, 3, s h, s w)."""

    def __init__(self, scale: int) -> None:
        """Begin with a filter that adds half of what a blur takes away."""
        super().__init__()
        self.scale = scale
        kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
        self.kernel = torch.nn.Parameter(kernel.expand(3, 1, 3, 3).clone())

    def forward(self, lr: torch.Tensor) -> torch.Tensor:
        """Upscale and sharpen."""
        up = F.interpolate(lr, scale_factor=self.scale, mode="bicubic", antialias=False)
        return up + 0.5 * (up - F.conv2d(F.pad(up, (1, 1, 1, 1), mode="replicate"), self.kernel, groups=3))


class SharpenedTeacher:
    """The five members that make a teacher (`pipeline.teacher.Teacher`)."""

    name, steps = "sharpened", 1  # for people; network evaluations an image

    def __init__(self, scale: int, device: str, dtype: torch.dtype) -> None:
        """Load the network."""
        self.scale, self.device, self.dtype = scale, device, dtype
        self.network = Sharpener(scale).to(device, dtype).eval()

    @torch.inference_mode()
    def restore(self, lr: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        """(B, 3, h, w) in [0, 1], on the CPU, to (B, 3, s h, s w); a generator would take each image's own seed."""
        return self.network(lr.to(self.device, self.dtype)).float().clamp(0, 1).cpu()

    def fingerprint(self) -> dict[str, object]:
        """What the pictures depend on, beside this file: of a real network, a hash of its weights."""
        return {"kernel": self.network.kernel.float().sum().item()}


def sharpened(*, scale: int, steps: int | None, device: str, dtype: str | None) -> SharpenedTeacher:
    """What `--teacher` names; `steps` and `dtype` are None where the user leaves them to us."""
    if steps not in (None, 1):
        raise ValueError(f"this teacher is a single network evaluation, got --steps {steps}")
    return SharpenedTeacher(scale, device, {"bf16": torch.bfloat16}.get(dtype or "fp32", torch.float32))
