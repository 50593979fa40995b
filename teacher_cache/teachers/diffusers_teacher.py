"""A diffusers pipeline as a teacher, and loading one from a repository or a folder.

B batch, h w height and width of the LR image, s scale.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download, metadata_load
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor
from yaml import YAMLError

from pipeline.system.errors import DtkdError, UsageError
from pipeline.teacher import Teacher

Dtype = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Call = Callable[[Any, Tensor, list[torch.Generator], int], Tensor]
"""`call(pipe, lr, generators, steps)`: (B, 3, h, w) in [0, 1] to (B, 3, s h, s w) in [0, 1]."""


class DiffusersTeacher(Teacher):
    """A diffusers pipeline: pads to the pipeline's size multiple, seeds one CPU generator an image."""

    def __init__(
        self,
        name: str,
        loaded: "Loaded",
        call: Call,
        *,
        scale: int,
        steps: int,
        multiple: int,
        description: dict[str, Any],
    ) -> None:
        """Take a loaded pipeline.

        Args:
            name: as given to `load`.
            loaded: the pipeline, and what is known of its weights.
            call: how to run it.
            scale: what it makes.
            steps: network evaluations an image.
            multiple: what the sides of its LR images must be multiples of.
            description: part of the fingerprint, with its `name`.

        Raises:
            UsageError: more steps than the scheduler has noise levels.
        """
        pipe, self.about = loaded
        levels = pipe.scheduler.config["num_train_timesteps"]
        if steps > levels:
            raise UsageError(f"the teacher {name} knows {levels} noise levels: steps must be 1..{levels}, got {steps}")
        self.name, self.scale, self.steps = name, scale, steps
        self._pipe, self._call, self._multiple, self._description = pipe, call, multiple, description
        modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
        self.parameters = sum(weight.numel() for module in modules for weight in module.parameters())
        pipe.set_progress_bar_config(disable=True)

    @torch.inference_mode()
    def restore(self, lr: Tensor, seeds: Sequence[int]) -> Tensor:
        """See Teacher; on the CPU."""
        if len(seeds) != lr.shape[0]:
            raise DtkdError(f"one seed an image is needed: {lr.shape[0]} images, {len(seeds)} seeds")
        height, width = lr.shape[-2:]
        padded = F.pad(lr, (0, -width % self._multiple, 0, -height % self._multiple), mode="replicate")
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        out = self._call(self._pipe, padded.to(self._pipe.device), generators, self.steps)
        return out[..., : height * self.scale, : width * self.scale].float().clamp(0, 1).cpu()

    def fingerprint(self) -> dict[str, Any]:
        """See Teacher."""
        scheduler = {k: v for k, v in sorted(self._pipe.scheduler.config.items()) if not k.startswith("_")}
        return {
            "scale": self.scale,
            "steps": self.steps,
            "scheduler": type(self._pipe.scheduler).__name__,
            "scheduler_config": scheduler,
            "weights": _weights_hash(self._pipe),
            **self._description,
        }


class Loaded(NamedTuple):
    """A diffusers pipeline, and what is known of it."""

    pipe: Any
    about: Mapping[str, str]
    """See `Teacher.about`."""


def from_pretrained(cls: Any, where: str, dtype: Dtype, device: str, revision: str | None = None) -> Loaded:
    """Load a pipeline of the class `cls` from a repository's id or a folder, onto the device; safetensors only.

    Args:
        cls: a diffusers pipeline.
        where: id or folder.
        dtype: of the weights.
        device: torch device.
        revision: branch, tag or commit of the repository; None takes the newest commit of its main branch.

    Raises:
        DtkdError: nothing usable there, or a package is missing.
        UsageError: fp16 on a CPU, or a revision of a folder.
    """
    if revision and Path(where).is_dir():
        raise UsageError(f"{where} is a folder, which has no revision {revision}: leave out teacher.revision")
    if device.startswith("cpu") and dtype == "fp16":
        raise UsageError("fp16 weights do not run on a CPU: take fp32 or bf16")
    from diffusers.utils import logging

    logging.disable_progress_bar()  # of the loading; the stage shows its own
    safely = {"use_safetensors": True, "trust_remote_code": False}
    try:
        folder = where if Path(where).is_dir() else cls.download(where, revision=revision, **safely)
        pipe = cls.from_pretrained(folder, dtype=_DTYPES[dtype], **safely)
    except ImportError as error:  # diffusers' own message is a page long
        raise DtkdError(f"{cls.__name__} needs transformers: pip install 'dtkd[sd]'") from error
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DtkdError(f"cannot load a {cls.__name__} from {where}: {reason}") from error
    return Loaded(pipe.to(device), _about(where, Path(folder)))


def repository(where: str) -> dict[str, str]:
    """The repository's id for a description; a local folder's path says nothing about what is in it, its weights do."""
    return {} if Path(where).is_dir() else {"repository": where}


def _about(where: str, folder: Path) -> dict[str, str]:
    """Repository and commit of a folder that was fetched, and the licence that its model card names."""
    about = {} if Path(where).is_dir() else {"repository": where, "revision": folder.name}
    card = _card(where, folder)
    try:
        told = metadata_load(card) if card else None
    except (OSError, ValueError, YAMLError):
        told = None
    licence = told.get("license") if told else None
    return about | ({"licence": licence} if isinstance(licence, str) else {})


def _card(where: str, folder: Path) -> Path | None:
    """The model card; of a repository it does not come with the weights, and is looked for at the same commit."""
    card = folder / "README.md"
    if not card.is_file() and not Path(where).is_dir():
        try:
            return Path(hf_hub_download(where, card.name, revision=folder.name))
        except (OSError, ValueError, HfHubHTTPError):  # offline and never seen, or a repository without one
            return None
    return card if card.is_file() else None


def folder_name(folder: str | Path) -> str:
    """Name of a folder, also of `.`, which has none of its own."""
    return Path(os.path.abspath(Path(folder).expanduser())).name


def _weights_hash(pipe: Any) -> str:
    """SHA-256 over names, shapes and bytes of all weights of the pipeline, as loaded."""
    digest = hashlib.sha256()
    for part, module in sorted(pipe.components.items()):
        if isinstance(module, torch.nn.Module):
            for name, value in sorted(module.state_dict().items()):
                digest.update(f"{part}.{name}:{tuple(value.shape)}:{value.dtype}".encode())
                digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
