"""`ldm`: diffusers' LDMSuperResolutionPipeline."""

from typing import Any

import torch
from torch import Tensor

from pipeline.system.errors import UsageError
from teacher_cache.teachers.diffusers_teacher import DiffusersTeacher, Dtype, from_pretrained, repository
from teacher_cache.teachers.settings import TeacherSettings

REPOSITORY = "CompVis/ldm-super-resolution-4x-openimages"


def load_ldm(
    name: str, where: str, steps: int | None, device: str, dtype: Dtype | None, settings: TeacherSettings
) -> DiffusersTeacher:
    """Load it from `where`, a repository's id or a folder; empty takes the original one. Arguments as of `load`."""
    from diffusers import DDIMScheduler, LDMSuperResolutionPipeline

    where = where or REPOSITORY
    if dtype not in (None, "fp32"):
        raise UsageError(f"the ldm teacher runs in fp32 only (diffusers' pipeline fails in {dtype}): leave out --dtype")
    loaded = from_pretrained(LDMSuperResolutionPipeline, where, "fp32", device, settings.revision)
    pipe = loaded.pipe
    # DDIM with eta 0 only: under Euler and LMS the pipeline scales the LR image too, eta > 0 ignores the generators.
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    description = {"name": "ldm", "dtype": "fp32"} | repository(where) | settings.asked()
    return DiffusersTeacher(name, loaded, _call, scale=4, steps=steps or 50, multiple=16, description=description)


def _call(pipe: Any, lr: Tensor, generators: list[torch.Generator], steps: int) -> Tensor:
    out = pipe(
        image=lr * 2 - 1,
        batch_size=lr.shape[0],
        num_inference_steps=steps,
        eta=0.0,
        generator=generators,
        output_type="np",
        return_dict=False,
    )[0]
    return torch.from_numpy(out).permute(0, 3, 1, 2)
