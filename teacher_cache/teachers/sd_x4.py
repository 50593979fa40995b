"""`sd-x4`: diffusers' StableDiffusionUpscalePipeline, without a prompt and without guidance."""

from typing import Any

import torch
from torch import Tensor

from teacher_cache.teachers.diffusers_teacher import DiffusersTeacher, Dtype, from_pretrained, repository

REPOSITORY = "stabilityai/stable-diffusion-x4-upscaler"


def load_sd_x4(name: str, where: str, steps: int | None, device: str, dtype: Dtype | None) -> DiffusersTeacher:
    """Load it from `where`, a repository's id or a folder; empty takes the original one. Arguments as of `load`."""
    from diffusers import DDIMScheduler, StableDiffusionUpscalePipeline

    where = where or REPOSITORY
    chosen = dtype or ("bf16" if device.startswith("cuda") else "fp32")
    pipe = from_pretrained(StableDiffusionUpscalePipeline, where, chosen, device)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    description = {"name": "sd-x4", "dtype": chosen} | repository(where)
    return DiffusersTeacher(name, pipe, _call, scale=4, steps=steps or 50, multiple=4, description=description)


def _call(pipe: Any, lr: Tensor, generators: list[torch.Generator], steps: int) -> Tensor:
    return pipe(
        prompt=[""] * lr.shape[0],
        image=lr,  # [0, 1]: the pipeline maps it to [-1, 1] because its minimum is not negative
        num_inference_steps=steps,
        guidance_scale=0.0,
        eta=0.0,
        generator=generators,
        output_type="pt",
        return_dict=False,
    )[0]
