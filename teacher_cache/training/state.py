"""What a teacher's run carries from step to step, and its checkpoints (`pipeline.training.checkpoint`)."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from diffusers import DDIMScheduler, UNet2DModel
from torch import nn

from pipeline.system.errors import DtkdError
from pipeline.training import checkpoint
from pipeline.training.state import RunState
from teacher_cache.teachers import load_haar
from teacher_cache.teachers.haar_diffusion import HaarDiffusionPipeline
from teacher_cache.training.settings import TeacherModelSettings, TeacherRunSettings, TeacherTrainSettings

KIND = "train-teacher"
TRAIN_TIMESTEPS = 1000
NetworkName = Literal["predictor", "unet"]


@dataclass(kw_only=True)
class TeacherState(RunState):
    """Everything a run remembers beside its tensors; `data` is of the photos and how they are degraded."""

    band_scale: list[list[float]]
    """Divisors of the refinement's coefficients (`HaarDiffusionPipeline`), measured when the refinement begins."""
    psnr_y: float | None = None
    """Latest validation result, dB."""
    psnr_y_bicubic: float | None = None
    """Bicubic upscaling of the crops that `psnr_y` was measured on, dB."""


class TeacherTensors(NamedTuple):
    """The tensors of a run: both networks, `predictor` and `unet`, their moving averages, and one optimiser."""

    networks: nn.ModuleDict
    ema: nn.ModuleDict
    optimizer: torch.optim.Optimizer


def flat_scale(scale: int) -> list[list[float]]:
    """Band scale of a refinement that has not begun: all 1."""
    return [[1.0, 1.0]] * scale.bit_length()


def new_networks(model: TeacherModelSettings, scale: int) -> nn.ModuleDict:
    """Both networks with random weights, for coefficients of this scale."""
    coefficients = 3 * scale**2
    predictor = _network(model, 3, coefficients)
    return nn.ModuleDict({"predictor": predictor, "unet": _network(model, 2 * coefficients + 3, coefficients)})


def start_from(networks: nn.ModuleDict, init: str, scale: int) -> list[list[float]]:
    """Give both networks the weights of another teacher, and return its band scale.

    Raises:
        DtkdError: there is none of that name, or its networks are other ones.
    """
    given = load_haar(init)
    if given.scale != scale:
        raise DtkdError(f"train.init={init} is a x{given.scale} teacher, not x{scale}")
    for name, network in networks.items():
        assert isinstance(network, UNet2DModel)
        ours, theirs = network.config, getattr(given, name).config
        for setting, key in (("channels", "block_out_channels"), ("layers", "layers_per_block")):
            if json.dumps(ours[key]) != json.dumps(theirs[key]):  # tuple or list
                raise DtkdError(f"train.init={init} has model.{setting}={theirs[key]}, got {ours[key]}: set them alike")
        network.load_state_dict(getattr(given, name).state_dict())
    return given.config["band_scale"]


def new_tensors(networks: nn.ModuleDict, t: TeacherTrainSettings, device: torch.device) -> TeacherTensors:
    """Tensors of a run that starts from these networks."""
    networks.to(device).train()
    ema = copy.deepcopy(networks).eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        networks.parameters(), lr=t.lr, betas=(0.9, 0.99), weight_decay=t.weight_decay, fused=True
    )
    return TeacherTensors(networks, ema, optimizer)


def pipeline_of(
    networks: nn.ModuleDict, settings: TeacherRunSettings, band_scale: list[list[float]]
) -> HaarDiffusionPipeline:
    """The teacher that these networks make."""
    scheduler = DDIMScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )
    sampling, scale = settings.sampling, settings.degradation.scale
    predictor, unet = networks["predictor"], networks["unet"]
    assert isinstance(predictor, UNet2DModel) and isinstance(unet, UNet2DModel)
    return HaarDiffusionPipeline(predictor, unet, scheduler, scale, band_scale, sampling.temperature, sampling.steps)


def save_tensors(run: Path, tensors: TeacherTensors, state: TeacherState, keep: int) -> Path:
    """Write the checkpoint of `state.step`, then delete all but the `keep` newest ones."""

    def fill(folder: Path) -> None:
        checkpoint.write_tensors(folder / "model.safetensors", tensors.networks.state_dict())
        checkpoint.write_tensors(folder / "ema.safetensors", tensors.ema.state_dict())
        moments = checkpoint.optimizer_tensors(tensors.optimizer, tensors.networks.named_parameters())
        checkpoint.write_tensors(folder / "optimizer.safetensors", moments)
        checkpoint.write_state(folder, KIND, state)

    return checkpoint.write_checkpoint(run, state.step, fill, keep)


def read_state(folder: Path) -> TeacherState:
    """State of a checkpoint.

    Raises:
        DtkdError: it is missing, damaged, or of another format.
    """
    return checkpoint.read_state(folder, lambda data: TeacherState(**data))


def restore(folder: Path, tensors: TeacherTensors) -> None:
    """Load the tensors of a checkpoint.

    Raises:
        DtkdError: a file is missing or damaged, or does not fit the networks.
    """
    checkpoint.read_weights(folder / "model.safetensors", tensors.networks)
    checkpoint.read_weights(folder / "ema.safetensors", tensors.ema)
    moments = checkpoint.read_tensors(folder / "optimizer.safetensors")
    checkpoint.restore_optimizer(tensors.optimizer, tensors.networks.named_parameters(), moments)


def _network(model: TeacherModelSettings, inputs: int, outputs: int) -> UNet2DModel:
    """A UNet that begins by answering zero: bicubic for the predictor, the bare prediction for the refinement."""
    network = UNet2DModel(
        in_channels=inputs,
        out_channels=outputs,
        block_out_channels=model.channels,
        layers_per_block=model.layers,
        down_block_types=("DownBlock2D",) * len(model.channels),
        up_block_types=("UpBlock2D",) * len(model.channels),
        add_attention=False,
        norm_num_groups=8,
    )
    for parameter in network.conv_out.parameters():
        torch.nn.init.zeros_(parameter)
    return network
