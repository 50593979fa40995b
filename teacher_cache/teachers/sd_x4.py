"""`sd-x4`: diffusers' StableDiffusionUpscalePipeline, by default without a prompt and without guidance."""

from typing import Any

import torch
from torch import Tensor

from pipeline.system.errors import UsageError
from teacher_cache.teachers.diffusers_teacher import Call, DiffusersTeacher, Dtype, from_pretrained, repository
from teacher_cache.teachers.settings import TeacherSettings

REPOSITORY = "stabilityai/stable-diffusion-x4-upscaler"


def load_sd_x4(
    name: str, where: str, steps: int | None, device: str, dtype: Dtype | None, settings: TeacherSettings
) -> DiffusersTeacher:
    """Load it from `where`, a repository's id or a folder; empty takes the original one. Arguments as of `load`."""
    from diffusers import DDIMScheduler, StableDiffusionUpscalePipeline

    where = where or REPOSITORY
    chosen = dtype or ("bf16" if device.startswith("cuda") else "fp32")
    loaded = from_pretrained(StableDiffusionUpscalePipeline, where, chosen, device, settings.revision)
    pipe = loaded.pipe
    most = pipe.config["max_noise_level"]
    if settings.noise_level > most:
        raise UsageError(f"the teacher {name} takes a noise_level of 0..{most}, got {settings.noise_level}")
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    description = {"name": "sd-x4", "dtype": chosen} | repository(where) | settings.asked()
    return DiffusersTeacher(
        name, loaded, _call_with(settings), scale=4, steps=steps or 50, multiple=4, description=description
    )


def _call_with(settings: TeacherSettings) -> Call:
    def call(pipe: Any, lr: Tensor, generators: list[torch.Generator], steps: int) -> Tensor:
        images = lr.shape[0]
        return pipe(
            prompt=[settings.prompt] * images,
            negative_prompt=[settings.negative_prompt] * images,  # without guidance the pipeline ignores it
            image=lr,  # [0, 1]: the pipeline maps it to [-1, 1] because its minimum is not negative
            num_inference_steps=steps,
            guidance_scale=settings.guidance,
            noise_level=settings.noise_level,
            eta=0.0,
            generator=generators,
            output_type="pt",
            return_dict=False,
        )[0]

    return call
