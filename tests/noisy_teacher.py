"""A teacher that is cheap but real; `python:tests/noisy_teacher.py:patient` where it is named on a command line."""

import os
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from pipeline.teacher import Teacher


class NoisyBicubic(Teacher):
    """Bicubic upsampling plus noise from each image's own seed: deterministic, different for every sample."""

    def __init__(self, scale: int = 4, noise: float = 0.05, refuse: Callable[[torch.Tensor], bool] | None = None):
        self.name, self.scale, self.steps = "noisy-bicubic", scale, 1
        self.noise, self.refuse, self.calls = noise, refuse, 0

    def restore(self, lr, seeds):
        self.calls += 1
        if self.refuse and any(self.refuse(image) for image in lr):
            raise ValueError("this teacher does not like the picture\nand says more on a second line")
        up = F.interpolate(lr, scale_factor=self.scale, mode="bicubic", antialias=False)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.stack([torch.randn(up.shape[1:], generator=g) for g in generators])
        return (up + noise * self.noise).clamp(0, 1)

    def fingerprint(self):
        return {"name": self.name, "noise": self.noise, "band_scale": (1, 2)}


class Patient(NoisyBicubic):
    """It takes its time, as a large one on a GPU: `DTKD_TEST_PATIENCE` seconds a call, of no processor."""

    def restore(self, lr, seeds):
        time.sleep(float(os.environ.get("DTKD_TEST_PATIENCE", "0")))
        return super().restore(lr, seeds)


def patient(*, scale, steps, device, dtype):
    return Patient(scale)
