"""A residual-shifting teacher in the manner of ResShift: copy this file, load your weights, and name it.

    dtkd check-teacher sample --teacher python:examples/residual_shifting_teacher.py:make
    dtkd teacher-cache ~/photos runs/cache --teacher python:examples/residual_shifting_teacher.py:make --steps 15

ResShift (Yue et al., 2023) does not diffuse a picture to pure noise but shifts it to the LR image: with e = LR - HR,

    x_t = HR + eta_t e + kappa sqrt(eta_t) n,    0 < eta_1 < ... < eta_T = about 1,

begins at the LR image with noise of kappa, and asks its network for HR at every step. The network here is small and
drawn at random, which shows that the wiring is right, not what such a teacher can do; where the real weights go is
marked REAL WEIGHTS.
"""

import hashlib

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel

KAPPA, POWER = 2.0, 0.3  # of the paper's x4 model
FIRST, LAST = min((0.04 / KAPPA) ** 2, 0.001), 0.999  # eta_1 and eta_T
SEED = 0  # of the random network
MULTIPLE = 2  # what the network's strides need


def shifts(steps: int) -> list[float]:
    """Eta of every step, from the first to the last: a geometric row whose exponents grow with POWER."""
    if steps == 1:
        return [LAST]
    growth = [(step / (steps - 1)) ** POWER for step in range(steps)]
    return [(FIRST**0.5 * (LAST / FIRST) ** (0.5 * exponent)) ** 2 for exponent in growth]


class ResidualShiftingTeacher:
    """The five members that make a teacher (`pipeline.teacher.Teacher`)."""

    name, scale = "residual-shifting", 4

    def __init__(self, steps: int, device: str, dtype: torch.dtype) -> None:
        """Load the network."""
        self.steps, self.device, self.dtype = steps, device, dtype
        with torch.random.fork_rng(devices=[]):  # nobody else's random numbers change
            torch.manual_seed(SEED)
            # REAL WEIGHTS: the paper's UNet, load_state_dict from its file with torch.load(..., weights_only=True). It
            # works on VQGAN latents: encode `up` before the loop and decode after it, as one_step_teacher.py does.
            self.network = UNet2DModel(
                in_channels=6,  # the state, and the LR image beside it
                out_channels=3,
                block_out_channels=(8, 16),
                layers_per_block=1,
                down_block_types=("DownBlock2D",) * 2,
                up_block_types=("UpBlock2D",) * 2,
                add_attention=False,
                norm_num_groups=4,
            )
        self.network.to(device, dtype).eval().requires_grad_(False)

    @torch.inference_mode()
    def restore(self, lr: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        """(B, 3, h, w) in [0, 1], on the CPU, to (B, 3, 4h, 4w); every image draws from its own seed."""
        up = F.interpolate(lr.to(self.device, self.dtype), scale_factor=self.scale, mode="bicubic").clamp(0, 1) * 2 - 1
        height, width = up.shape[-2:]
        up = F.pad(up, (0, -width % MULTIPLE, 0, -height % MULTIPLE), mode="replicate")
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]  # on the CPU: the same on every device

        def noise() -> torch.Tensor:
            return torch.stack([torch.randn(up.shape[1:], generator=g) for g in generators]).to(up)

        eta = shifts(self.steps)
        x = up + KAPPA * eta[-1] ** 0.5 * noise()
        for step in reversed(range(self.steps)):
            scaled = x / (1 + KAPPA**2 * eta[step]) ** 0.5  # to about the same variance at every step
            clean = up + self.network(torch.cat([scaled, up], 1), step).sample  # of HR
            if step == 0:
                x = clean
                break
            before, alpha = eta[step - 1], eta[step] - eta[step - 1]
            mean = before / eta[step] * x + alpha / eta[step] * clean
            x = mean + KAPPA * (before * alpha / eta[step]) ** 0.5 * noise()
        return (x / 2 + 0.5)[..., :height, :width].float().clamp(0, 1).cpu()

    def fingerprint(self) -> dict[str, object]:
        """What the pictures depend on, beside this file."""
        digest = hashlib.sha256()
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(name.encode() + value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return {"weights": digest.hexdigest(), "kappa": KAPPA}


def make(*, scale: int, steps: int | None, device: str, dtype: str | None) -> ResidualShiftingTeacher:
    """What `--teacher` names; `steps` and `dtype` are None where the user leaves them to us."""
    if scale != 4:
        raise ValueError(f"this teacher makes x4, got --scale {scale}")
    precision = {"bf16": torch.bfloat16}.get(dtype or "fp32", torch.float32)
    return ResidualShiftingTeacher(steps or 4, device, precision)
