"""Folders of small teachers with random weights, of the classes that users load."""

import json

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    LDMSuperResolutionPipeline,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from teacher_support import haar_pipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


@pytest.fixture(scope="session")
def haar_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    haar_pipeline(steps=3).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def ldm_folder(tmp_path_factory):
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "norm_num_groups": 8}
    unet = UNet2DModel(in_channels=6, out_channels=3, block_out_channels=(16, 32), layers_per_block=1, **blocks)
    coder = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    vqvae = VQModel(block_out_channels=(8, 8, 8), latent_channels=3, norm_num_groups=8, **coder)
    folder = tmp_path_factory.mktemp("ldm")
    LDMSuperResolutionPipeline(vqvae, unet, DDIMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sd")
    vocab = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=3,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=8,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    unet = UNet2DConditionModel(
        in_channels=7,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
        num_class_embeds=1000,
    )
    coder = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    vae = AutoencoderKL(block_out_channels=(8, 8, 8), latent_channels=4, norm_num_groups=8, **coder)
    pipe = StableDiffusionUpscalePipeline(
        vae, text, tokenizer, unet, DDPMScheduler(), DDIMScheduler(prediction_type="v_prediction"), max_noise_level=350
    )
    pipe.save_pretrained(folder / "pipe")
    return folder / "pipe"
