"""Perceptual measures of packages that hold all they need: no weights to fetch, nothing drawn, permissive licences.

Each compares with the ground truth and looks at whole RGB images. `Packaged.settings` says every parameter, so that a
release of a package with other defaults changes no figure. What they are worth beside LPIPS: LOG.md, 2026-11-28.

Letters: H W height and width in pixels. Images are uint8 (H, W, 3) RGB.
"""

import importlib.metadata
import io
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from pipeline import images
from pipeline.images import Rgb
from pipeline.system import torchvision_guard

Setting = str | int | float | bool
Measure = Callable[[Rgb, Rgb], float]
"""(sr, gt) -> figure."""


@dataclass(frozen=True)
class Packaged:
    """A package's measure, before the package is imported.

    Attributes:
        package: its name where packages are installed from.
        licence: of the package.
        lower_is_better: the direction of better.
        smallest: least height and width of an image, in pixels; below it there is no figure, or another measure's.
        settings: every parameter.
        make: (device, settings) -> measure; ImportError where the package is missing.
    """

    package: str
    licence: str
    lower_is_better: bool
    smallest: int
    settings: Mapping[str, Setting]
    make: Callable[[str, Mapping[str, Setting]], Measure]

    def load(self, device: str) -> Measure:
        """The measure, ready; it raises ValueError where an image is too small.

        Raises:
            ImportError: the package is missing.
        """
        torchvision_guard.apply()
        measure = self.make(device, self.settings)

        def measure_large_enough(sr: Rgb, gt: Rgb) -> float:
            height, width = gt.shape[:2]
            if min(height, width) < self.smallest:
                raise ValueError(f"it needs {self.smallest} pixels a side at least, got {width}x{height}")
            return measure(sr, gt)

        return measure_large_enough

    @property
    def record(self) -> dict[str, Setting]:
        """The package, its installed version, its licence, and the settings."""
        source = f"{self.package} {importlib.metadata.version(self.package)}"
        return {"source": source, "licence": self.licence, **self.settings}


def _dss(device: str, settings: Mapping[str, Setting]) -> Measure:
    import piq

    return _of_tensors(piq.dss, device, settings)


def _mdsi(device: str, settings: Mapping[str, Setting]) -> Measure:
    import piq

    return _of_tensors(piq.mdsi, device, settings)


def _haarpsi(device: str, settings: Mapping[str, Setting]) -> Measure:
    import piq

    return _of_tensors(piq.haarpsi, device, settings)


def _of_tensors(function: Callable[..., torch.Tensor], device: str, settings: Mapping[str, Setting]) -> Measure:
    def measure(sr: Rgb, gt: Rgb) -> float:
        sr_batch, gt_batch = (images.to_tensor(image)[None].to(device) for image in (sr, gt))  # (1, 3, H, W)
        return float(function(sr_batch, gt_batch, data_range=1.0, **settings))

    return measure


def _ssimulacra2(device: str, settings: Mapping[str, Setting]) -> Measure:
    from ssimulacra2 import compute_ssimulacra2

    def as_file(image: Rgb) -> io.BytesIO:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PPM")
        return file

    return lambda sr, gt: float(compute_ssimulacra2(as_file(gt), as_file(sr)))


def _cvvdp(device: str, settings: Mapping[str, Setting]) -> Measure:
    path = list(sys.path)
    try:
        import pycvvdp
    finally:
        sys.path[:] = path  # it adds its own folder, whose modules have names like `utils`
    net: Any = pycvvdp.cvvdp(display_name=str(settings["display"]), device=torch.device(device), quiet=True)
    one_at_a_time = threading.Lock()  # it keeps what belongs to an image's size

    def measure(sr: Rgb, gt: Rgb) -> float:
        with one_at_a_time:
            return float(net.predict(sr, gt, dim_order="HWC")[0])

    return measure


_DSS: dict[str, Setting] = {
    "dct_size": 8,
    "sigma_weight": 1.55,
    "kernel_size": 3,
    "sigma_similarity": 1.5,
    "percentile": 0.05,
}
_MDSI: dict[str, Setting] = {
    "combination": "sum",
    "c1": 140.0,
    "c2": 55.0,
    "c3": 550.0,
    "alpha": 0.6,
    "rho": 1.0,
    "q": 0.25,
    "o": 0.25,
}
_HAARPSI: dict[str, Setting] = {"scales": 3, "subsample": True, "c": 30.0, "alpha": 4.2}

METRICS: Mapping[str, Packaged] = {
    # The 5 % of the blocks that are worst must be one block at least.
    "dss": Packaged("piq", "Apache-2.0", False, 32, _DSS, _dss),
    "mdsi": Packaged("piq", "Apache-2.0", True, 8, _MDSI, _mdsi),
    "haarpsi": Packaged("piq", "Apache-2.0", False, 16, _HAARPSI, _haarpsi),
    # Below, there are less than six scales, and the weights stand at others' places.
    "ssimulacra2": Packaged("ssimulacra2", "BSD-3-Clause", False, 225, {"scales": 6}, _ssimulacra2),
    "cvvdp": Packaged("cvvdp", "MIT", False, 8, {"display": "standard_fhd"}, _cvvdp),
}
"""By the names that users give."""
