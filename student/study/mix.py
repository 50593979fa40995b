"""Weights between two students: one knob from fidelity to realism, without training.

Students that were branched from one pretraining lie in one basin of the loss, so that the weights between them are
students too (network interpolation: Wang et al., "ESRGAN", ECCVW 2018, section 3.4; Wortsman et al., "Robust
fine-tuning of zero-shot models", CVPR 2022). Students trained apart do not, and their mixture is worth nothing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.system.errors import DtkdError
from pipeline.system.outputs import check_file, check_suffix
from student import checkpoint
from student.model import SwinIR
from student.model.weight_files import is_student, read_metadata
from student.networks import find_checkpoint, name_of


@dataclass(frozen=True)
class Mixture:
    """A mixture that was written."""

    path: Path
    a: str
    b: str
    share: float
    """Of B."""

    failure = None
    """See `pipeline.system.results.Result`."""

    def lines(self) -> list[str]:
        """What the command prints."""
        return [f"{self.path}: {1 - self.share:.0%} {self.a}, {self.share:.0%} {self.b}"]

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values."""
        return {"path": str(self.path), "a": self.a, "b": self.b, "share": self.share}


def mix(a: SwinIR, b: SwinIR, share: float) -> SwinIR:
    """(1 - share) * A + share * B, weight by weight; share 0 is A, 1 is B, in eval mode.

    Raises:
        DtkdError: they are not networks of one configuration, or the share is outside 0..1.
    """
    if not 0 <= share <= 1:
        raise DtkdError(f"share must be within 0..1 (0 is all A, 1 is all B), got {share}")
    if a.config != b.config:
        raise DtkdError(
            f"only networks of one kind can be mixed, got {a.preset} x{a.scale} and {b.preset} x{b.scale}: {a.config}, "
            f"{b.config}"
        )
    mixed = SwinIR(a.config, preset=a.preset).eval()
    theirs = dict(b.named_parameters())
    with torch.no_grad():
        for name, value in a.named_parameters():
            mixed.get_parameter(name).copy_(torch.lerp(value, theirs[name], share))
    return mixed


def mix_files(a: str, b: str, out: Path, share: float, overwrite: bool = False) -> Mixture:
    """Write the mixture of two students as a weight file.

    Args:
        a: name, run folder or weight file of the student at share 0.
        b: the same of the student at share 1.
        out: file to write, `.safetensors`.
        share: of B, 0 to 1.
        overwrite: replace an earlier student there.

    Raises:
        DtkdError: a student cannot be read, they do not fit, or the file cannot be written.
    """
    check_suffix(out, (".safetensors",), "a mixture")
    check_file(out, "a student", overwrite, is_student)
    first, second = find_checkpoint(a), find_checkpoint(b)
    mixed = mix(checkpoint.load(first), checkpoint.load(second), share)
    checkpoint.save(mixed, out, {"mixture": {"a": _origin(first), "b": _origin(second), "share": share}})
    return Mixture(out, name_of(first), name_of(second), share)


def _origin(path: Path) -> dict[str, Any]:
    """Name of a student and how far its run had come; settings and caches stay in its own file."""
    about = read_metadata(path) if path.suffix == ".safetensors" else {}
    return {"name": name_of(path), "step": about.get("step")}
