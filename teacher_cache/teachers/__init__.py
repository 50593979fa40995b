"""Teachers: whatever turns an LR image into the picture that the student is to learn from.

B batch, h w height and width of the LR image, s scale.

Five kinds, by name: `embedded` and `embedded-bicubic` (ours, weights in this package), a folder that
`dtkd train-teacher` wrote, `ldm` and `sd-x4` (diffusers' super-resolution pipelines by repository id or folder:
`ldm:FOLDER`), and `import:DIR` (pictures that another system made). Only this module,
`haar_diffusion` and `teacher_run` know diffusers.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.images import SUFFIXES
from pipeline.system import torchvision_guard
from pipeline.system.device import keep_freed_memory
from pipeline.system.errors import DtkdError
from pipeline.system.files import sha256_file

if TYPE_CHECKING:
    from teacher_cache.teachers.haar_diffusion import HaarDiffusionPipeline

WEIGHTS = Path(__file__).parents[1] / "weights"
EMBEDDED = {"embedded": "real", "embedded-bicubic": "bicubic"}
"""Teachers in this package, and the degradation that each was trained for."""
LDM_REPOSITORY = "CompVis/ldm-super-resolution-4x-openimages"
SD_X4_REPOSITORY = "stabilityai/stable-diffusion-x4-upscaler"

Dtype = Literal["fp32", "bf16", "fp16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Teacher(Protocol):
    """A model that restores LR images; the same LR image and seed give the same output, whatever the batch."""

    name: str
    """What `load` finds it by."""
    scale: int
    steps: int
    """Network evaluations an image (NFE)."""

    def restore(self, lr: Tensor, seeds: Sequence[int]) -> Tensor:
        """Restore (B, 3, h, w) in [0, 1] to (B, 3, s h, s w) in [0, 1], on the CPU; one seed an image."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Everything that its output depends on, as JSON, with a `name` for people; no path of this machine."""
        ...


class DiffusersTeacher:
    """A diffusers pipeline as a teacher: pads to the pipeline's size multiple, seeds one CPU generator an image."""

    def __init__(
        self,
        name: str,
        pipe: Any,
        call: Callable[[Any, Tensor, list[torch.Generator], int], Tensor],
        *,
        scale: int,
        steps: int,
        multiple: int,
        description: dict[str, Any],
    ) -> None:
        """Take a loaded pipeline; `call(pipe, lr, generators, steps)` returns (B, 3, s h, s w) in [0, 1].

        `description` is part of the fingerprint, with its `name`.
        """
        self.name, self.scale, self.steps = name, scale, steps
        self._pipe, self._call, self._multiple, self._description = pipe, call, multiple, description
        pipe.set_progress_bar_config(disable=True)

    @torch.inference_mode()
    def restore(self, lr: Tensor, seeds: Sequence[int]) -> Tensor:
        """See Teacher."""
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


class ImportedTeacher:
    """Pictures made elsewhere, one for each photo of the corpus, as large as the HR photo.

    A photo `a/b.png` is looked up as `a/b.*`, then as `b.*` at the folder's top level, where that is the only picture
    of this stem in the whole folder.
    """

    def __init__(self, folder: Path, scale: int) -> None:
        """Index the pictures below `folder`.

        Raises:
            DtkdError: no such folder, no picture in it, or two that differ in their suffix only.
        """
        if not folder.is_dir():
            raise DtkdError(f"import:{folder}: no such folder; give the folder with the other system's outputs")
        self.name, self.scale, self.steps = f"import:{_folder_name(folder)}", scale, 0
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
        if not files:
            raise DtkdError(f"import:{folder}: no picture in it; expected one for each photo, with the same name")
        self._by_path: dict[str, Path] = {}
        for path in files:
            name = path.relative_to(folder).with_suffix("").as_posix()
            if (other := self._by_path.setdefault(name, path)) != path:
                raise DtkdError(f"import:{folder}: {other.name} and {path.name} are both for photo {name}: remove one")
        self._stems = Counter(path.stem for path in files)

    def lookup(self, source_id: str) -> Path:
        """The picture for a photo's id.

        Raises:
            DtkdError: there is none, or several have its stem.
        """
        found = self._find(source_id)
        if found is None:
            several = self._stems[Path(source_id).stem] > 1
            raise DtkdError(f"{'several imported outputs' if several else 'no imported output'} for {source_id}")
        return found

    def refuse_shared(self, source_ids: Iterable[str]) -> None:
        """Check that no two photos have the same picture.

        Raises:
            DtkdError: two have.
        """
        taken: dict[Path, str] = {}
        for source_id in source_ids:
            found = self._find(source_id)
            if found and (other := taken.setdefault(found, source_id)) != source_id:
                raise DtkdError(
                    f"{self.name}: {found.name} would serve {other} and {source_id}: "
                    "name the imported pictures by the photos' relative paths, one for each"
                )

    def _find(self, source_id: str) -> Path | None:
        name = Path(source_id).with_suffix("")
        alone = self._by_path.get(name.name) if self._stems[name.name] == 1 else None
        return self._by_path.get(name.as_posix()) or alone

    def fingerprint(self) -> dict[str, Any]:
        """Names and contents of all pictures."""
        digest = hashlib.sha256()
        for name, path in sorted(self._by_path.items()):
            digest.update(f"{name}:{sha256_file(path)}\n".encode())
        return {"name": self.name, "scale": self.scale, "pictures": len(self._by_path), "content": digest.hexdigest()}


def load(
    name: str, *, scale: int = 4, steps: int | None = None, device: str = "cpu", dtype: Dtype | None = None
) -> DiffusersTeacher | ImportedTeacher:
    """Load a teacher by name (see the module).

    Args:
        name: `embedded`, `embedded-bicubic`, FOLDER, `ldm`, `ldm:ID_OR_FOLDER`, `sd-x4`, `sd-x4:ID_OR_FOLDER` or
            `import:FOLDER`.
        scale: the scale that is asked for.
        steps: network evaluations an image; None takes the teacher's own default.
        device: torch device.
        dtype: weights' precision; None takes fp32, but bf16 for `sd-x4` on a GPU. `ldm` runs in fp32 only.

    Raises:
        DtkdError: unknown name, nothing usable there, or another scale.
    """
    torchvision_guard.apply()
    kind, _, where = name.partition(":")
    if kind == "import":
        return ImportedTeacher(Path(where).expanduser(), scale)
    if steps is not None and steps < 1:
        raise DtkdError(f"steps must be at least 1, got {steps}")
    if device == "cpu":
        keep_freed_memory()
    if kind == "ldm":
        teacher = _load_ldm(name, where or LDM_REPOSITORY, steps, device, dtype)
    elif kind == "sd-x4":
        teacher = _load_sd_x4(name, where or SD_X4_REPOSITORY, steps, device, dtype)
    else:
        teacher = _load_embedded(name, steps, device, dtype)
    if teacher.scale != scale:
        raise DtkdError(f"the teacher {name} is made for scale {teacher.scale}, got --scale {scale}")
    return teacher


def warning(name: str, kind: str) -> str | None:
    """What is wrong with this teacher for LR images of this degradation; None where nothing is known to be."""
    if name.startswith("import:") and kind != "paired":
        seen = "random LR images, which no other system has seen" if kind == "real" else f"{kind} LR images made here"
        return (
            "imported pictures must have been made from the same LR images as this cache has, but --degradation "
            f"{kind} gives {seen}: give the LR images that the other system saw, with --degradation paired"
        )
    better = next((other for other, made_for in EMBEDDED.items() if made_for == kind), name)
    if name in EMBEDDED and better != name:
        return f"{name} was trained for --degradation {EMBEDDED[name]}: {better} restores {kind} LR images better"
    return None


def load_haar(name: str, dtype: Dtype = "fp32", device: str = "cpu") -> "HaarDiffusionPipeline":
    """The pipeline of a teacher in this package, or of a folder that `dtkd train-teacher` wrote.

    Raises:
        DtkdError: there is none.
    """
    from teacher_cache.teachers.haar_diffusion import HaarDiffusionPipeline

    folder = WEIGHTS / name if name in EMBEDDED else Path(name).expanduser()
    home = next((f for f in (folder, folder / "teacher") if (f / "model_index.json").is_file()), None)
    if home is None:
        raise DtkdError(
            f"no teacher {name!r}: expected {', '.join(EMBEDDED)}, ldm, sd-x4, import:DIR, or a folder written by "
            "dtkd train-teacher"
        )
    return _from_pretrained(HaarDiffusionPipeline, str(home), dtype, device)


def _load_embedded(name: str, steps: int | None, device: str, dtype: Dtype | None) -> DiffusersTeacher:
    if dtype == "fp16":
        raise DtkdError(f"the teacher {name} runs in fp32 or bf16: take another --dtype")
    pipe = load_haar(name, dtype or "fp32", device)

    def call(pipe: Any, lr: Tensor, generators: list[torch.Generator], steps: int) -> Tensor:
        return pipe(lr, generators, num_inference_steps=steps)

    return DiffusersTeacher(
        name,
        pipe,
        call,
        scale=pipe.scale,
        steps=steps or pipe.config["steps"],
        multiple=2 ** (len(pipe.unet.config["block_out_channels"]) - 1),
        description={
            "name": _folder_name(Path(name).expanduser()),
            "dtype": dtype or "fp32",
            "temperature": pipe.config["temperature"],
            "band_scale": list(pipe.config["band_scale"]),
        },
    )


def _load_ldm(name: str, where: str, steps: int | None, device: str, dtype: Dtype | None) -> DiffusersTeacher:
    from diffusers import DDIMScheduler, LDMSuperResolutionPipeline

    if dtype not in (None, "fp32"):
        raise DtkdError(f"the ldm teacher runs in fp32 only (diffusers' pipeline fails in {dtype}): leave out --dtype")
    pipe = _from_pretrained(LDMSuperResolutionPipeline, where, "fp32", device)
    # DDIM with eta 0 only: under Euler and LMS the pipeline scales the LR image too, eta > 0 ignores the generators.
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)

    def call(pipe: Any, lr: Tensor, generators: list[torch.Generator], steps: int) -> Tensor:
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

    description = {"name": "ldm", "dtype": "fp32"} | _repository(where)
    return DiffusersTeacher(name, pipe, call, scale=4, steps=steps or 50, multiple=16, description=description)


def _load_sd_x4(name: str, where: str, steps: int | None, device: str, dtype: Dtype | None) -> DiffusersTeacher:
    from diffusers import DDIMScheduler, StableDiffusionUpscalePipeline

    chosen = dtype or ("bf16" if device.startswith("cuda") else "fp32")
    pipe = _from_pretrained(StableDiffusionUpscalePipeline, where, chosen, device)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)

    def call(pipe: Any, lr: Tensor, generators: list[torch.Generator], steps: int) -> Tensor:
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

    description = {"name": "sd-x4", "dtype": chosen} | _repository(where)
    return DiffusersTeacher(name, pipe, call, scale=4, steps=steps or 50, multiple=4, description=description)


def _from_pretrained(cls: Any, where: str, dtype: Dtype, device: str) -> Any:
    if device.startswith("cpu") and dtype == "fp16":
        raise DtkdError("fp16 weights do not run on a CPU: take fp32 or bf16")
    from diffusers.utils import logging

    logging.disable_progress_bar()  # of the loading; the stage shows its own
    try:
        pipe = cls.from_pretrained(where, dtype=_DTYPES[dtype], use_safetensors=True, trust_remote_code=False)
    except ImportError as error:  # diffusers' own message is a page long
        raise DtkdError(f"{cls.__name__} needs transformers: pip install 'dtkd[sd]'") from error
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DtkdError(f"cannot load a {cls.__name__} from {where}: {reason}") from error
    return pipe.to(device)


def _folder_name(folder: Path) -> str:
    return Path(os.path.abspath(folder)).name  # `.` has none of its own


def _repository(where: str) -> dict[str, str]:
    """The repository's id; a local folder's path says nothing about what is in it, its weights do."""
    return {} if Path(where).is_dir() else {"repository": where}


def _weights_hash(pipe: Any) -> str:
    """SHA-256 over names, shapes and bytes of all weights of the pipeline, as loaded."""
    digest = hashlib.sha256()
    for part, module in sorted(pipe.components.items()):
        if isinstance(module, torch.nn.Module):
            for name, value in sorted(module.state_dict().items()):
                digest.update(f"{part}.{name}:{tuple(value.shape)}:{value.dtype}".encode())
                digest.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
