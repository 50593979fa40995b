"""An embedded-class pipeline that is small."""

import torch
from diffusers import DDIMScheduler, UNet2DModel

from teacher_cache.teachers.haar_diffusion import HaarDiffusionPipeline


def haar_network(inputs, outputs):
    return UNet2DModel(
        in_channels=inputs,
        out_channels=outputs,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        add_attention=False,
        norm_num_groups=4,
    )


def haar_pipeline(scale=4, **options):
    torch.manual_seed(0)
    channels, levels = 3 * scale**2, scale.bit_length() - 1
    scheduler = DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    pipe = HaarDiffusionPipeline(
        haar_network(3, channels),
        haar_network(2 * channels + 3, channels),
        scheduler,
        scale,
        [[0.3, 0.2], [0.2, 0.1], [0.1, 0.05], [0.05, 0.03]][: levels + 1],
        **options,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
