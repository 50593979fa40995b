"""A network of known results, and pictures to upscale."""

from pathlib import Path

import numpy as np
import torch
from PIL import ImageCms

from student.networks import Network
from student.upscaling.png import Metadata
from student.upscaling.reading import read_picture
from student.upscaling.upscale import UpscaleSettings, upscale
from student.upscaling.writing import Form, write_picture

ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def nearest(scale: int = 2) -> Network:
    """An upscaler whose result is known exactly."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(scale, 2).repeat_interleave(scale, 3)

    return Network("nearest", scale, 8, "cpu", 1000, forward)


def noise(*shape: int, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def doubled(pixels: np.ndarray) -> np.ndarray:
    return pixels.repeat(2, 0).repeat(2, 1)


def save_any(path: Path, pixels: np.ndarray) -> None:
    form = Form(pixels.shape[1], pixels.shape[0], pixels.shape[2], pixels.dtype)
    write_picture(path, form, [pixels], Metadata())


def upscale_one(source: Path, target: Path, **settings) -> np.ndarray:
    result = upscale([str(source)], target, nearest(), UpscaleSettings(**settings))
    assert not result.failed, result.failed
    return read_picture(target).pixels
