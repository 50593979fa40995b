"""Teachers on an accelerator, against the CPU's fp32 pictures."""

import pytest
import torch
from skimage import data

from pipeline.images import to_tensor
from teacher_cache import teachers

pytestmark = pytest.mark.gpu
SEEDS = [5, 6]


@pytest.fixture(scope="module")
def lr():
    photo = to_tensor(data.astronaut()[::8, ::8].copy())
    return torch.stack([photo[:, 4:20, 24:44], photo[:, 30:46, 10:30]])  # (2, 3, 16, 20)


def decibels(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(-10 * (one - other).square().mean().clamp_min(1e-12).log10())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["embedded", "embedded-bicubic", "ldm", "sd-x4"])
def test_the_pictures_are_those_of_the_cpu(accelerator, lr, name, dtype, request):
    if dtype == "bf16" and name == "ldm":
        pytest.skip("diffusers' LDM pipeline fails in bf16")
    folder = {"ldm": "ldm_folder", "sd-x4": "sd_folder"}.get(name)
    full = f"{name}:{request.getfixturevalue(folder)}" if folder else name
    steps = 2 if folder else None
    expected = teachers.load(full, steps=steps, dtype="fp32").restore(lr, SEEDS)
    teacher = teachers.load(full, steps=steps, device=accelerator, dtype=dtype)
    got = teacher.restore(lr, SEEDS)
    assert got.device.type == "cpu" and got.dtype == torch.float32
    assert decibels(got, expected) > {"fp32": 50, "bf16": 25}[dtype]
    assert torch.equal(teacher.restore(lr, SEEDS), got)  # the same command gives the same bytes
    alone = torch.cat([teacher.restore(lr[i : i + 1], SEEDS[i : i + 1]) for i in range(2)])
    assert decibels(alone, got) > {"fp32": 50, "bf16": 25}[dtype]
    assert decibels(teacher.restore(lr, [7, 8]), got) < decibels(alone, got)  # the seed matters more than the company
