"""Who is measured: bicubic, networks, a cache's teacher, and the ground truth itself."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from pipeline import images
from pipeline.images import Rgb
from pipeline.system.device import Precision, ResolvedPrecision
from pipeline.system.errors import DtkdError
from student.evaluation.examples import Example, ExampleSet, bicubic
from student.evaluation.scores import Role
from student.networks import Network, load_network

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
    """

    name: str
    role: Role
    path: str | None
    parameters: int | None
    restore: Callable[[Example], Restored | None]
    precision: ResolvedPrecision | None = None


def load_networks(checkpoints: Sequence[str | Path], device: str, precision: Precision = "auto") -> list[Network]:
    """Networks by what `student.networks.load_network` takes, each with a name of its own.

    Raises:
        DtkdError: one is none.
    """
    networks: list[Network] = []
    taken = {"bicubic", "teacher", "gt"}
    for checkpoint in checkpoints:
        network = load_network(str(checkpoint), device, precision)
        stem = network.name
        name = next(n for n in (stem, *(f"{stem}-{i}" for i in range(2, 10_000))) if n not in taken)
        taken.add(name)
        networks.append(replace(network, name=name))
    return networks


def common_scale(networks: Sequence[Network], wanted: int | None) -> int | None:
    """The scale of all networks and the one that is wanted; None where nobody says any.

    Raises:
        DtkdError: they differ.
    """
    scales = {network.name: network.scale for network in networks}
    if wanted is not None:
        scales["--scale"] = wanted
    if len(set(scales.values())) > 1:
        named = ", ".join(f"{name} x{scale}" for name, scale in scales.items())
        raise DtkdError(f"checkpoints must have one scale, got {named}: evaluate them one by one")
    return next(iter(scales.values()), None)


def candidates_for(examples: ExampleSet, networks: Sequence[Network]) -> list[Candidate]:
    """Bicubic, the networks, and where the examples have them the teacher and the ground truth."""
    rows = [Candidate("bicubic", "baseline", None, None, _bicubic(examples.scale))]
    for network in networks:
        path, restore = str(network.path), _network(network)
        rows.append(Candidate(network.name, "student", path, network.parameters, restore, network.precision))
    if examples.manifest:
        rows.append(Candidate("teacher", "teacher", None, None, _teacher(examples.teacher_seconds_per_pixel)))
    if examples.kind != "LR":
        rows.append(Candidate("gt", "gt", None, None, _ground_truth))
    return rows


def _bicubic(scale: int) -> Callable[[Example], Restored]:
    return lambda example: Restored(*_timed(lambda: bicubic(example.lr, scale)))


def _network(network: Network) -> Callable[[Example], Restored]:
    warm = False

    def restore(example: Example) -> Restored:
        nonlocal warm
        lr = images.to_tensor(example.lr)[None].to(network.device)  # (1, 3, h, w)
        if not warm:  # the first pass sets up kernels and memory; that is no part of the pace
            network.restore(lr)
            warm = True
        sr, seconds = _timed(lambda: network.restore(lr))
        return Restored(images.to_image(sr[0]), seconds)

    return restore


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
