"""Image quality metrics by name: fidelity measures of our own, perceptual ones of small packages, and pyiqa's.

`psnr_y` and `ssim_y` follow the super-resolution literature: 8-bit images, BT.601 studio-range luma, a border of
`crop_border` pixels left out; `teacher_psnr_y` is psnr_y toward the teacher's output instead of the ground truth.
`lr_psnr` and `colour_drift` tell how true an image is to the LR image that it was made of. The names of
`libraries.packages` come next, without weights, and before pyiqa's should it ever take one of them; all others are
pyiqa's, with its settings pinned here or by a protocol. `Metric.settings` says them, and results carry them. Perceptual
metrics always look at the whole image, and `fid` at a whole set of them. What pyiqa draws (crops, patches) it draws
from one seed.

Letters: H W height and width in pixels. Images are uint8 (H, W, 3) RGB.
"""

import contextlib
import io
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from pipeline import images
from pipeline.fidelity import SSIM_RADIUS, SSIM_SIGMA, colour_drift, lr_psnr, psnr_y, ssim_y
from pipeline.images import Rgb
from pipeline.system import torchvision_guard
from pipeline.system.errors import UsageError
from pipeline.system.words import nearest
from student.evaluation.libraries import offline, packages
from student.evaluation.libraries.packages import Setting
from student.evaluation.libraries.seeding import SEED, seeded

Reference = Literal["gt", "teacher", "lr"]

OURS = ("psnr_y", "ssim_y", "teacher_psnr_y", "lr_psnr", "colour_drift")
DEFAULT_METRICS = ("psnr_y", "ssim_y", "dss", "piqe")
"""dss for the perceptual difference to the ground truth, piqe for data without one: LOG.md, 2026-11-28."""

# pyiqa converts to YIQ luma unless told otherwise; the literature uses YCbCr.
_YCBCR: dict[str, Setting] = {"color_space": "ycbcr"}
_YCBCR_LUMA: dict[str, Setting] = {"test_y_channel": True, "color_space": "ycbcr"}
PINNED: Mapping[str, Mapping[str, Setting]] = {
    "psnry": _YCBCR_LUMA,
    "ssim": _YCBCR_LUMA,
    "ms_ssim": _YCBCR_LUMA,
    "niqe": _YCBCR_LUMA,
    "nrqm": _YCBCR_LUMA,
    "pi": _YCBCR,
    "entropy": _YCBCR,
}
_OVER_SETS = ("fid",)
# They compare sets of images in other ways, read captions or return several numbers.
_NEITHER = ("clipscore", "fgresq_pair", "fid_dinov2", "inception_score", "sfid")


@dataclass(frozen=True)
class Metric:
    """A metric that is ready to be measured.

    Attributes:
        name: one of `OURS`, of `libraries.packages.METRICS`, or pyiqa's name.
        reference: what it compares with; None for a no-reference metric.
        lower_is_better: the direction of better.
        settings: everything that decides its figures, for the record.
        measure: (sr, reference or None, crop_border) -> figure of an image.
        measure_set: (folder of restored images, folder of references) -> figure of a set; there are none of its images
            then.
    """

    name: str
    reference: Reference | None
    lower_is_better: bool
    settings: dict[str, Setting]
    measure: Callable[[Rgb, Rgb | None, int], float]
    measure_set: Callable[[Path, Path], float] | None = None


@dataclass(frozen=True)
class Unavailable:
    """A metric that cannot run here, why, and what would change that."""

    name: str
    reason: str
    remedy: str


@dataclass(frozen=True)
class Loaded:
    """The metrics that can run, in the order asked for, and the ones that cannot."""

    metrics: tuple[Metric, ...]
    unavailable: tuple[Unavailable, ...]


def load(names: Sequence[str], device: str = "cpu", pins: Mapping[str, Mapping[str, Setting]] = PINNED) -> Loaded:
    """Make metrics ready by name; the ones that cannot run here are told apart within seconds.

    Args:
        names: those of `OURS`, of `libraries.packages`, any pyiqa name that measures one image, and `fid`.
        device: where perceptual metrics run.
        pins: what is asked of pyiqa's metrics beyond their own defaults, by name; a protocol's own replace `PINNED`.

    Raises:
        UsageError: if a name is unknown; it names the nearest known one.
    """
    ready: list[Metric] = []
    missing: list[Unavailable] = []
    for name in dict.fromkeys(names):
        metric = _ours(name) or _packaged(name, device) or _pyiqa(name, device, pins.get(name, {}))
        if isinstance(metric, Metric):
            ready.append(metric)
        else:
            missing.append(metric)
    return Loaded(tuple(ready), tuple(missing))


def _ours(name: str) -> Metric | None:
    if name not in OURS:
        return None
    if name in ("lr_psnr", "colour_drift"):
        consistency = lr_psnr if name == "lr_psnr" else colour_drift
        settings: dict[str, Setting] = {"source": "dtkd"}
        if name == "lr_psnr":
            settings |= {"reduced": "MATLAB-compatible bicubic, rounded to 8 bits", "channels": "RGB"}
        return Metric(name, "lr", name == "colour_drift", settings, lambda sr, lr, _: consistency(sr, _given(lr)))
    function = ssim_y if name == "ssim_y" else psnr_y
    settings = {"source": "dtkd", "luma": "BT.601 studio range of 8-bit RGB"}
    if name == "ssim_y":
        settings |= {"window": 2 * SSIM_RADIUS + 1, "sigma": SSIM_SIGMA}
    reference: Reference = "teacher" if name == "teacher_psnr_y" else "gt"
    return Metric(name, reference, False, settings, lambda sr, gt, border: function(sr, _given(gt), border))


def _given(reference: Rgb | None) -> Rgb:
    assert reference is not None
    return reference


def _packaged(name: str, device: str) -> Metric | Unavailable | None:
    packaged = packages.METRICS.get(name)
    if packaged is None:
        return None
    try:
        function = packaged.load(device)
    except ImportError as error:
        reason = f"{packaged.package} cannot be imported ({error})"
        return Unavailable(name, reason, f"pip install {packaged.package}")

    return Metric(name, "gt", packaged.lower_is_better, packaged.record, lambda sr, gt, _: function(sr, _given(gt)))


def _pyiqa(name: str, device: str, pins: Mapping[str, Setting]) -> Metric | Unavailable:
    torchvision_guard.apply()
    try:
        import pyiqa
        from pyiqa.default_model_configs import DEFAULT_CONFIGS
    except ImportError as error:
        return Unavailable(name, f"pyiqa cannot be imported ({error})", "pip install 'dtkd[metrics]'")
    known = [n for n in DEFAULT_CONFIGS if n not in _NEITHER]
    if name not in known:
        near = nearest(name, [*OURS, *packages.METRICS, *known], cutoff=0)
        raise UsageError(f"unknown metric {name!r}: the nearest known one is {near!r}")

    create: Callable[..., Any] = pyiqa.create_metric
    with seeded(device):  # weights that no file gives
        net = _without_or_with_network(lambda: create(name, device=torch.device(device), **pins), name)
    if isinstance(net, Unavailable):
        return net
    source: dict[str, Setting] = {"source": f"pyiqa {pyiqa.__version__}", "random_seed": SEED}
    settings = source | _flat(DEFAULT_CONFIGS[name]) | dict(pins)
    if name in _OVER_SETS:
        settings |= {"mode": "clean", "over": "the whole set"}
        return Metric(name, "gt", bool(net.lower_better), settings, _no_figure, _measure_set_with(net))
    reference: Reference | None = "gt" if net.metric_mode == "FR" else None
    return Metric(name, reference, bool(net.lower_better), settings, _measure_with(net, device))


def _no_figure(sr: Rgb, reference: Rgb | None, crop_border: int) -> float:
    raise AssertionError("a metric over sets has no figure of an image")


def _measure_set_with(net: Any) -> Callable[[Path, Path], float]:
    def measure(restored: Path, references: Path) -> float:
        return float(_silent(lambda: net(str(restored), str(references), mode="clean", num_workers=0, verbose=False)))

    return measure


def _measure_with(net: Any, device: str) -> Callable[[Rgb, Rgb | None, int], float]:
    full_reference = net.metric_mode == "FR"

    def measure(sr: Rgb, reference: Rgb | None, crop_border: int) -> float:
        pair = (sr, reference) if full_reference else (sr,)
        batch = [images.to_tensor(x)[None].to(device) for x in pair if x is not None]
        with seeded(device):  # crops and patches that are drawn, whatever was measured before
            return float(net(*batch))

    return measure


def _without_or_with_network(create: Callable[[], Any], name: str) -> Any | Unavailable:
    """What `create` makes from the files of this machine; else, where the weights' host answers, with the network."""
    try:
        with offline.no_network():
            return _silent(create)
    except Exception as error:  # pyiqa and the libraries below it raise many kinds; `reason` keeps what was said
        reason = _first_line(error)
    host = offline.weights_host()
    remedy = (
        f"run once with network access to {host}, or copy the weights to where pyiqa looks: "
        "hub/ and hub/pyiqa/ in TORCH_HOME, hub/ in HF_HOME"
    )
    if offline.forbidden():
        return Unavailable(name, "its weights are not on this machine and HF_HUB_OFFLINE is set", f"unset it, {remedy}")
    if not offline.reachable(host):
        return Unavailable(name, f"its weights are not on this machine and {host} does not answer", remedy)
    try:
        with offline.patience(20):
            return _silent(create)
    except Exception as error:  # as above: one metric that fails must not take the others with it
        return Unavailable(name, f"{_first_line(error)} (without network: {reason})", remedy)


def _silent(create: Callable[[], Any]) -> Any:
    """Run `create` without pyiqa's remarks on standard output, which belongs to our results."""
    logging.getLogger("pyiqa").setLevel(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return create()


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def _flat(config: dict[str, Any]) -> dict[str, Setting]:
    return {k: v for k, v in config["metric_opts"].items() if isinstance(v, str | int | float | bool)}
