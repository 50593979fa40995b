"""Share a student through the Hugging Face Hub: `HubStudent.from_pretrained("user/name")`, `push_to_hub("user/name")`.

A folder holds config.json, model.safetensors (the layout of official SwinIR, like every file of ours) and README.md.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import ModelHubMixin, constants, hf_hub_download

from pipeline.system.errors import DtkdError
from pipeline.system.files import atomic_write_json
from student.model.swinir import SwinIR, SwinIRConfig
from student.model.weight_files import load_student, read_metadata, save_student

_CARD = """---
{{ card_data }}
---

# SwinIR student

A super-resolution network for RGB images in [0, 1], distilled from a diffusion teacher with DTKD.

```python
from student.hub import HubStudent

student = HubStudent.from_pretrained("USER/NAME")
sr = student(lr)  # (B, 3, H, W) in [0, 1] to (B, 3, scale * H, scale * W)
```

`model.safetensors` has the key layout of official SwinIR: chaiNNer, ComfyUI and spandrel open it as it is.
"""


class HubStudent(
    SwinIR,
    ModelHubMixin,
    library_name="dtkd",
    pipeline_tag="image-to-image",
    tags=["super-resolution", "swinir", "knowledge-distillation"],
    model_card_template=_CARD,
):
    """A student that knows `save_pretrained`, `from_pretrained` and `push_to_hub` (huggingface_hub's mixin).

    Args:
        config: architecture.
        preset: name of the preset that `config` came from.
        metadata: what the weight file says about itself, see `save_student`.
    """

    def __init__(self, config: SwinIRConfig, *, preset: str = "custom", metadata: dict[str, Any] | None = None) -> None:
        """Build the network with new weights."""
        super().__init__(config, preset=preset)
        self.metadata = metadata or {}

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write weights and configuration."""
        save_student(self, save_directory / constants.SAFETENSORS_SINGLE_FILE, self.metadata)
        described = {"model_type": "swinir", "preset": self.preset, **asdict(self.config)}
        atomic_write_json(save_directory / constants.CONFIG_NAME, described)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **model_kwargs: Any,  # from config.json: only for people, the weights tell the architecture themselves
    ) -> "HubStudent":
        """Load from a folder or, where there is none of that name, from the Hub.

        Raises:
            DtkdError: the folder holds no weights of a student.
        """
        name = constants.SAFETENSORS_SINGLE_FILE
        path = Path(model_id) / name
        if Path(model_id).is_dir() and not path.exists():
            raise DtkdError(f"{model_id} holds no {name}: name a folder written by save_pretrained or dtkd export")
        if not path.exists():
            path = Path(
                hf_hub_download(
                    model_id,
                    name,
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                    token=token,
                )
            )
        loaded = load_student(path)
        metadata = {key: value for key, value in read_metadata(path).items() if key not in ("preset", "scale")}
        student = cls(loaded.config, preset=loaded.preset, metadata=metadata)
        student.load_state_dict(loaded.state_dict())
        return student.eval()
