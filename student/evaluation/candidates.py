"""Who is measured: bicubic, networks, teachers, finished pictures, a cache's teacher, and the ground truth itself."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from pipeline import images
from pipeline.filters import bicubic
from pipeline.images import Rgb
from pipeline.picture_folder import PictureFolder
from pipeline.schema import sample_seed
from pipeline.system.device import Precision, ResolvedPrecision
from pipeline.system.errors import DtkdError
from pipeline.system.words import plural
from pipeline.teacher import Teacher
from student.evaluation.examples import Example, ExampleSet
from student.evaluation.scores import Role
from student.networks import Network, load_network

OUTPUTS, TEACHER = "images:", "teacher:"
"""What the candidates begin with that are a folder of finished pictures, or a teacher."""
BUILT_IN = ("bicubic", "teacher", "gt")
"""Names of those that stand in the table by themselves."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Restored:
    """An image and the seconds that it took; None where that was not measured."""

    image: Rgb
    seconds: float | None


@dataclass(frozen=True)
class Candidate:
    """One of those who restore the images.

    Attributes:
        name: no other candidate has it.
        role: what kind it is.
        path: of its weights, where it has any.
        parameters: how many weights it has.
        restore: gives its version of an example; None where it has none.
        precision: what its network computes in; None without one.
        scale: output pixels to an LR pixel; None where it has none of its own.
        works: whether it computes something here, so that its cost can be measured.
        device: where it computes.
        count: does the operations that its cost counts, where those are not simply what `restore` does.
        check: looks at the images before the work begins, and raises a DtkdError where it cannot have them all.
    """

    name: str
    role: Role
    path: str | None
    parameters: int | None
    restore: Callable[[Example], Restored | None]
    precision: ResolvedPrecision | None = None
    scale: int | None = None
    works: bool = False
    device: str = "cpu"
    count: Callable[[Example], object] | None = None
    check: Callable[[ExampleSet], None] | None = None


def load_candidates(
    names: Sequence[str | Path],
    device: str,
    precision: Precision = "auto",
    teachers: Mapping[str, Teacher] | None = None,
) -> list[Candidate]:
    """Those that the user names, each with a name that no other has.

    Args:
        names: what `student.networks.load_network` takes, `images:FOLDER`, or `teacher:NAME`; `bicubic` is understood.
        device: torch device of networks.
        precision: of students.
        teachers: the teachers, by NAME: the stages do not know each other, so whoever calls has loaded them.

    Raises:
        DtkdError: one is none of these.
    """
    given: list[Candidate] = []
    taken: set[str] = set(BUILT_IN)
    for text in map(str, names):
        if text == "bicubic":
            continue
        candidate = _load(text, device, precision, teachers or {})
        names_left = (candidate.name, *(f"{candidate.name}-{i}" for i in range(2, 10_000)))
        name = next(n for n in names_left if n not in taken)
        taken.add(name)
        given.append(replace(candidate, name=name))
    return given


def _load(text: str, device: str, precision: Precision, teachers: Mapping[str, Teacher]) -> Candidate:
    if text.startswith(OUTPUTS):
        return _finished(text.removeprefix(OUTPUTS))
    if text.startswith(TEACHER):
        name = text.removeprefix(TEACHER)
        if name not in teachers:
            raise DtkdError(f"{text}: hand over that teacher, loaded, in `teachers`")
        return _at_work(name, teachers[name], device)
    network = load_network(text, device, precision)
    return Candidate(
        network.name,
        "student",
        str(network.path),
        network.parameters,
        _network(network),
        network.precision,
        network.scale,
        works=True,
        device=network.device,
        count=_in_fp32(network),
    )


def common_scale(given: Sequence[Candidate], wanted: int | None) -> int | None:
    """The scale of all candidates and the one that is wanted; None where nobody says any.

    Raises:
        DtkdError: they differ.
    """
    scales = {candidate.name: candidate.scale for candidate in given if candidate.scale is not None}
    if wanted is not None:
        scales["--scale"] = wanted
    if len(set(scales.values())) > 1:
        named = ", ".join(f"{name} x{scale}" for name, scale in scales.items())
        raise DtkdError(f"candidates must have one scale, got {named}: evaluate them one by one")
    return next(iter(scales.values()), None)


def candidates_for(examples: ExampleSet, given: Sequence[Candidate]) -> list[Candidate]:
    """Bicubic, those given, and where the examples have them the teacher and the ground truth.

    Raises:
        DtkdError: one of those given cannot have all images.
    """
    for candidate in given:
        if candidate.check:
            candidate.check(examples)
    rows = [Candidate("bicubic", "baseline", None, None, _bicubic(examples.scale)), *given]
    if examples.manifest:
        rows.append(Candidate("teacher", "teacher", None, None, _teacher(examples.teacher_seconds_per_pixel)))
    if examples.kind != "LR":
        rows.append(Candidate("gt", "gt", None, None, _ground_truth))
    return rows


def _finished(where: str) -> Candidate:
    """Pictures that another program made of the same LR images, found by the images' names."""
    folder = PictureFolder("images", where)

    def check(examples: ExampleSet) -> None:
        missing = [name for name in examples.ids if folder.find(name) is None]
        if missing:
            some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            raise DtkdError(f"images:{where} has no picture for {plural(len(missing), 'image')} of the data: {some}")
        folder.refuse_shared({name: name for name in examples.ids})

    def restore(example: Example) -> Restored:
        path = folder.find(example.id)
        assert path is not None
        return Restored(images.load_rgb(path), None)

    return Candidate(Path(where).resolve().name, "outputs", where, None, restore, check=check)


def _at_work(name: str, teacher: Teacher, device: str) -> Candidate:
    """A teacher that restores the images here and now; its noise is a function of the image's name."""

    def restore(example: Example) -> Restored:
        lr, seed = images.to_tensor(example.lr)[None], sample_seed(0, example.id, "evaluation")
        with torch.inference_mode():
            sr, seconds = _timed(lambda: teacher.restore(lr, [seed]).float().cpu())
        return Restored(images.to_image(sr[0]), seconds)

    parameters = teacher.parameters
    return Candidate(
        Path(name).name, "teacher", None, parameters, restore, scale=teacher.scale, works=True, device=device
    )


def _bicubic(scale: int) -> Callable[[Example], Restored]:
    return lambda example: Restored(*_timed(lambda: bicubic(example.lr, scale)))


def _network(network: Network) -> Callable[[Example], Restored]:
    def restore(example: Example) -> Restored:
        lr = images.to_tensor(example.lr)[None].to(network.device)  # (1, 3, h, w)
        sr, seconds = _timed(lambda: network.restore(lr))
        return Restored(images.to_image(sr[0]), seconds)

    return restore


def _in_fp32(network: Network) -> Callable[[Example], object]:
    """A forward pass whose operations do not depend on how bf16 is computed."""

    @torch.inference_mode()
    def forward(example: Example) -> object:
        return network.forward(images.to_tensor(example.lr)[None].to(network.device))

    return forward


def _teacher(seconds_per_pixel: float | None) -> Callable[[Example], Restored | None]:
    def restore(example: Example) -> Restored | None:
        image = example.teacher
        if image is None:
            return None
        return Restored(image, seconds_per_pixel * image.shape[0] * image.shape[1] if seconds_per_pixel else None)

    return restore


def _ground_truth(example: Example) -> Restored | None:
    return None if example.gt is None else Restored(example.gt, None)


def _timed(work: Callable[[], _T]) -> tuple[_T, float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began
