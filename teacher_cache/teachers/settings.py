"""What a teacher by name can be asked for besides its steps, its device and its precision."""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.system.errors import UsageError

ColourFix = Literal["none", "adain", "wavelet"]


@dataclass(frozen=True)
class TeacherSettings:
    """Of the teacher; what differs from its default joins the fingerprint."""

    prompt: str = ""
    """What `sd-x4` is told that the picture shows."""
    negative_prompt: str = ""
    """What `sd-x4` is told to stay away from; needs a guidance above 1."""
    guidance: float = 0.0
    """How strongly `sd-x4` follows the prompts (classifier-free guidance); up to 1 none, which takes half the
    time."""
    noise_level: int = 20
    """Noise that `sd-x4` adds to the LR image, 0 to what the pipeline knows (350): more lets it invent more."""
    revision: str | None = None
    """Branch, tag or commit of the repository of `sd-x4` or `ldm`; a commit always means the same weights."""
    colour: ColourFix = "none"
    """Colours set right by the LR image, for any teacher: mean and deviation of each channel (adain), or all that is
    coarser than 32 pixels (wavelet)."""

    def __post_init__(self) -> None:
        """Check what no pipeline needs to be known for."""
        if self.guidance < 0:
            raise UsageError(f"guidance must be 0 or more, got {self.guidance}")
        if self.noise_level < 0:
            raise UsageError(f"noise_level must be 0 or more, got {self.noise_level}")
        if self.negative_prompt and self.guidance <= 1:
            raise UsageError(f"negative_prompt acts through guidance above 1, got guidance {self.guidance}")

    def asked(self) -> dict[str, Any]:
        """What differs from the defaults, but for `colour`, which is no matter of the model."""
        default = TeacherSettings()
        named = ((item.name, getattr(self, item.name)) for item in dataclasses.fields(self) if item.name != "colour")
        return {name: value for name, value in named if value != getattr(default, name)}

    def refuse_others(self, teacher: str, knows: Collection[str] = ()) -> None:
        """Refuse what a teacher knows nothing of.

        Raises:
            UsageError: it was asked for something else.
        """
        if unknown := sorted(self.asked().keys() - set(knows)):
            names = " and ".join(f"teacher.{name}" for name in unknown)
            raise UsageError(f"the teacher {teacher} has no {names}: leave out what is for other teachers")
