"""Our own teachers: the two in this package, and folders that `dtkd train-teacher` wrote.

Beside the weights of a folder may stand `training_photos.json`: `{"photos": ["SIZE:DIGEST", ...]}`, sorted, the
`pipeline.system.files.sample_file` of every HR photo that the weights have seen. Stage one then refuses to hold one of
them out.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.system.errors import DtkdError, UsageError
from pipeline.system.files import read_json
from teacher_cache.teachers.diffusers_teacher import DiffusersTeacher, Dtype, Loaded, folder_name, from_pretrained

if TYPE_CHECKING:
    from teacher_cache.teachers.haar_diffusion import HaarDiffusionPipeline

WEIGHTS = Path(__file__).parents[1] / "weights"
EMBEDDED = {"embedded": "real", "embedded-bicubic": "bicubic"}
"""Teachers in this package, and the degradation that each was trained for."""
TRAINING_PHOTOS = "training_photos.json"


class EmbeddedTeacher(DiffusersTeacher):
    """A teacher that knows what it was trained for, and perhaps on which photos."""

    def unsuited(self, degradation: str) -> str | None:
        """See Teacher."""
        made_for = EMBEDDED.get(self.name, degradation)
        better = next((other for other, kind in EMBEDDED.items() if kind == degradation), None)
        if made_for == degradation or better is None:
            return None
        return f"{self.name} was trained for --degradation {made_for}: {better} restores {degradation} LR images better"


def load_embedded(name: str, steps: int | None, device: str, dtype: Dtype | None) -> EmbeddedTeacher:
    """Load one by its name or folder. Arguments as of `load`."""
    if dtype == "fp16":
        raise UsageError(f"the teacher {name} runs in fp32 or bf16: take another --dtype")
    home = find_home(name)
    loaded = _loaded(name, dtype or "fp32", device)
    pipe = loaded.pipe
    teacher = EmbeddedTeacher(
        name,
        loaded,
        _call,
        scale=pipe.scale,
        steps=steps or pipe.config["steps"],
        multiple=2 ** (len(pipe.unet.config["block_out_channels"]) - 1),
        description={
            "name": folder_name(name),
            "dtype": dtype or "fp32",
            "temperature": pipe.config["temperature"],
            "band_scale": list(pipe.config["band_scale"]),
        },
    )
    teacher.trained_on = _training_photos(home)
    return teacher


def load_haar(name: str, dtype: Dtype = "fp32", device: str = "cpu") -> "HaarDiffusionPipeline":
    """The pipeline of a teacher in this package, or of a folder that `dtkd train-teacher` wrote.

    Raises:
        UsageError: there is none.
    """
    return _loaded(name, dtype, device).pipe


def find_home(name: str) -> Path:
    """The folder with the pipeline; a run folder of `dtkd train-teacher` has it one level down.

    Raises:
        UsageError: there is none.
    """
    folder = WEIGHTS / name if name in EMBEDDED else Path(name).expanduser()
    home = next((f for f in (folder, folder / "teacher") if (f / "model_index.json").is_file()), None)
    if home is None:
        raise UsageError(
            f"no teacher {name!r}: expected {', '.join(EMBEDDED)}, ldm, sd-x4, import:FOLDER, "
            "python:FILE_OR_MODULE:FACTORY, or a folder written by dtkd train-teacher"
        )
    return home


def _loaded(name: str, dtype: Dtype, device: str) -> Loaded:
    from teacher_cache.teachers.haar_diffusion import HaarDiffusionPipeline

    return from_pretrained(HaarDiffusionPipeline, str(find_home(name)), dtype, device)


def _training_photos(home: Path) -> frozenset[str]:
    path = home / TRAINING_PHOTOS
    try:
        photos = read_json(path)["photos"]
    except FileNotFoundError:
        return frozenset()
    except (TypeError, KeyError):
        photos = None
    if not isinstance(photos, list) or not all(isinstance(photo, str) for photo in photos):
        raise DtkdError(f'{path} is damaged: expected {{"photos": ["SIZE:DIGEST", ...]}}; remove it to do without')
    return frozenset(photos)


def _call(pipe: Any, lr: Tensor, generators: list[torch.Generator], steps: int) -> Tensor:
    return pipe(lr, generators, num_inference_steps=steps)
