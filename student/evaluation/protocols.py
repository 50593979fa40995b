"""Protocols: which figures are taken of an image, and exactly how, by the name of who takes them so.

Published figures of one network differ by protocol, often by more than networks do: luma, borders and the versions of
metrics (docs/evaluation.md). A result carries its protocol's name and every metric's own settings.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.system.errors import UsageError
from pipeline.system.words import nearest
from student.evaluation.metrics import DEFAULT_METRICS, PINNED, Setting


@dataclass(frozen=True)
class Protocol:
    """How figures are taken.

    Attributes:
        name: what a user calls it.
        metrics: those that are measured unless others are asked for.
        crop_border: pixels left out on each side by psnr_y and ssim_y; None is the scale.
        pins: settings of pyiqa's metrics, by name, where they are not pyiqa's defaults.
        source: whose figures it makes comparable.
    """

    name: str
    metrics: tuple[str, ...]
    crop_border: int | None
    pins: Mapping[str, Mapping[str, Setting]]
    source: str


_STUDIO_LUMA: dict[str, Setting] = {"test_y_channel": True, "color_space": "ycbcr"}

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "classical",
            (*DEFAULT_METRICS, "lr_psnr", "colour_drift"),
            None,
            PINNED,
            "SwinIR, HAT, BasicSR: 8-bit BT.601 luma, a border of `scale` pixels left out",
        ),
        Protocol(
            "osediff",
            ("psnr", "ssim", "lpips", "dists", "clipiqa", "niqe", "musiq", "maniqa-pipal", "fid"),
            0,
            {"psnr": _STUDIO_LUMA, "ssim": _STUDIO_LUMA},
            "OSEDiff's test_metrics.py, as TSD-SR and AdcSR use it: whole images, pyiqa, niqe on YIQ luma",
        ),
        Protocol(
            "noref",
            ("niqe", "musiq", "clipiqa", "maniqa-pipal", "piqe"),
            0,
            {},
            "photos without a ground truth, such as RealSet65: pyiqa's own defaults",
        ),
    )
}


def find_protocol(name: str) -> Protocol:
    """The protocol of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in PROTOCOLS:
        known = ", ".join(PROTOCOLS)
        raise UsageError(f"unknown protocol {name!r} (there are: {known}): the nearest is {nearest(name, known)!r}")
    return PROTOCOLS[name]
