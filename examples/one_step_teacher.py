"""A one-step teacher in the manner of OSEDiff: copy this file, load your weights, and name it.

    dtkd check-teacher sample --teacher python:examples/one_step_teacher.py:make
    dtkd teacher-cache ~/photos runs/c --teacher python:examples/one_step_teacher.py:make --set teacher.colour=wavelet

OSEDiff (Wu et al., 2024) scales the LR image up, takes its latent for a noisy one at a fixed time, and removes that
noise with a single evaluation of a text-to-image UNet. The networks here are small and drawn at random, which shows
that the wiring is right, not what such a teacher can do; where the real weights go is marked REAL WEIGHTS.
"""

import hashlib

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

TIME = 999  # OSEDiff's only one
SEED = 0  # of the random networks
MULTIPLE = 8  # what the sides of its pictures must be multiples of: the autoencoder's and the UNet's strides together


class OneStepTeacher:
    """The five members that make a teacher (`pipeline.teacher.Teacher`)."""

    name, scale, steps = "one-step", 4, 1

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        """Load the networks."""
        with torch.random.fork_rng(devices=[]):  # nobody else's random numbers change
            torch.manual_seed(SEED)
            # REAL WEIGHTS: AutoencoderKL.from_pretrained(FOLDER, subfolder="vae"), and the same for the UNet and the
            # scheduler, from the text-to-image model that the paper started from; then its LoRA layers, merged in.
            self.vae = AutoencoderKL(
                block_out_channels=(8, 16),
                down_block_types=("DownEncoderBlock2D",) * 2,
                up_block_types=("UpDecoderBlock2D",) * 2,
                latent_channels=4,
                norm_num_groups=4,
            )
            self.unet = UNet2DConditionModel(
                in_channels=4,
                out_channels=4,
                block_out_channels=(8, 16),
                layers_per_block=1,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                cross_attention_dim=8,
                attention_head_dim=4,
                norm_num_groups=4,
            )
        scheduler = DDPMScheduler()
        self.signal = scheduler.alphas_cumprod[TIME].sqrt().item()
        self.noise = (1 - scheduler.alphas_cumprod[TIME]).sqrt().item()
        # REAL WEIGHTS: the text encoder's (1, 77, 1024) for your prompt, computed once; OSEDiff tags every photo.
        self.text = torch.zeros(1, 4, 8, device=device, dtype=dtype)
        self.device, self.dtype = device, dtype
        for network in (self.vae, self.unet):
            network.to(device, dtype).eval().requires_grad_(False)

    @torch.inference_mode()
    def restore(self, lr: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        """(B, 3, h, w) in [0, 1], on the CPU, to (B, 3, 4h, 4w); nothing is drawn, so the seeds do not matter."""
        up = F.interpolate(lr.to(self.device, self.dtype), scale_factor=self.scale, mode="bicubic").clamp(0, 1)
        height, width = up.shape[-2:]
        padded = F.pad(up, (0, -width % MULTIPLE, 0, -height % MULTIPLE), mode="replicate")
        scaling = self.vae.config["scaling_factor"]
        latent = self.vae.encode(padded * 2 - 1).latent_dist.mode() * scaling  # the mean: sampling would take seeds
        text = self.text.expand(len(lr), -1, -1)
        noise = self.unet(latent, TIME, encoder_hidden_states=text).sample
        clean = (latent - self.noise * noise) / self.signal
        picture = self.vae.decode(clean / scaling).sample / 2 + 0.5
        return picture[..., :height, :width].float().clamp(0, 1).cpu()

    def fingerprint(self) -> dict[str, object]:
        """What the pictures depend on, beside this file."""
        return {"weights": weights_hash(self.vae, self.unet), "time": TIME}


def weights_hash(*networks: torch.nn.Module) -> str:
    """SHA-256 over names and bytes of all weights."""
    digest = hashlib.sha256()
    for network in networks:
        for name, value in sorted(network.state_dict().items()):
            digest.update(name.encode() + value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def make(*, scale: int, steps: int | None, device: str, dtype: str | None) -> OneStepTeacher:
    """What `--teacher` names; `steps` and `dtype` are None where the user leaves them to us."""
    if scale != 4 or steps not in (None, 1):
        raise ValueError(f"this teacher makes x4 in a single step, got --scale {scale} --steps {steps}")
    return OneStepTeacher(device, {"bf16": torch.bfloat16}.get(dtype or "fp32", torch.float32))
