"""Training patches for a teacher: a pure function of (seed, index), so any process can make any of them.

h w height and width of the LR patch, s scale.
"""

import dataclasses
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.corpus import Source
from pipeline.degrade import Degradation, RealSettings, degrade
from pipeline.errors import DtkdError
from pipeline.images import ImageError, load_rgb, to_tensor

_PHOTO_BYTES = 768 * 2**20  # decoded photos kept by one worker


class Patch(NamedTuple):
    """One training pair, float32 in [0, 1]."""

    lr: Tensor  # (3, h, w)
    hr: Tensor  # (3, s h, s w)


class NoPhotoError(DtkdError):
    """No photo can be decoded. Its one line outlives the worker process: torch rebuilds it from a whole traceback."""

    def __init__(self, text: str) -> None:
        """Keep the last line of a traceback, or the plain message."""
        super().__init__(text.strip().rpartition("\n")[2].rpartition(f"{type(self).__name__}: ")[2])


def generator(seed: int, purpose: str, index: int) -> np.random.Generator:
    """A numpy generator that depends on nothing but its arguments."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(digest, "little")))


class PatchDataset(Dataset[Patch]):
    """Random crops of random photos: down-scaled, flipped, transposed, degraded.

    Where a photo turns out to be damaged behind its header, another one is drawn in its place, in every process the
    same; reading a patch raises `NoPhotoError` if none is left.

    Args:
        sources: the photos; drawn in proportion to the square root of their area.
        degradation: what makes the LR patch.
        patch: side of the LR patch in pixels.
        mild_share: share of the patches that get `mild` parameters of a `real` degradation instead.
        seed: with the index, decides everything.
    """

    def __init__(
        self, sources: Sequence[Source], degradation: Degradation, patch: int, mild_share: float, seed: int
    ) -> None:
        """Take the photos and settings; see the class."""
        self.sources, self.degradation, self.patch = sources, degradation, patch
        self.mild_share, self.seed = mild_share, seed
        self.mild = dataclasses.replace(degradation, real=mild(degradation.real))
        areas = np.array([s.width * s.height for s in sources], dtype=np.float64) ** 0.5
        self.shares = areas / areas.sum()
        self._photos: OrderedDict[str, np.ndarray] = OrderedDict()
        self._damaged: dict[str, str] = {}  # id -> reason

    def __getitem__(self, index: int) -> Patch:
        """The patch of this index."""
        rng = generator(self.seed, "patch", index)
        side = self.patch * self.degradation.scale
        hr = _random_crop(self._draw(rng), side, rng)
        chosen = self.mild if rng.random() < self.mild_share else self.degradation
        return Patch(to_tensor(degrade(hr, chosen, rng)), to_tensor(hr))

    def _draw(self, rng: np.random.Generator) -> np.ndarray:
        """A photo that can be decoded. What was damaged before is drawn and passed over too: memory decides nothing."""
        while len(self._damaged) < len(self.sources):
            source = self.sources[rng.choice(len(self.sources), p=self.shares)]
            if source.id in self._damaged:
                continue
            try:
                return self._photo(source)
            except ImageError as error:
                self._damaged[source.id] = error.reason
        name, reason = next(iter(self._damaged.items()))
        raise NoPhotoError(f"none of {len(self.sources)} training photos can be read, {name}: {reason}; replace them")

    def _photo(self, source: Source) -> np.ndarray:
        if source.id in self._photos:
            self._photos.move_to_end(source.id)
        else:
            self._photos[source.id] = load_rgb(source.path)
            while len(self._photos) > 1 and sum(p.nbytes for p in self._photos.values()) > _PHOTO_BYTES:
                self._photos.popitem(last=False)
        return self._photos[source.id]


def _random_crop(photo: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """A (side, side, 3) crop after a random reduction, flip and transposition."""
    height, width = photo.shape[:2]
    smallest = max(side / min(height, width), 0.35)
    factor = float(rng.uniform(smallest, 1)) if smallest < 1 and rng.random() < 0.7 else 1.0
    span = min(round(side / factor), height, width)
    y, x = int(rng.integers(height - span + 1)), int(rng.integers(width - span + 1))
    crop = photo[y : y + span, x : x + span]
    if span != side:
        crop = np.asarray(Image.fromarray(crop).resize((side, side), Image.Resampling.LANCZOS))
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    if rng.random() < 0.5:
        crop = crop.transpose(1, 0, 2)
    return np.ascontiguousarray(crop)


def mild(real: RealSettings) -> RealSettings:
    """The camera's share of the `real` model: one blur, one reduction, little noise, light JPEG.

    Real LR photos (RealSR, DRealSR) are nearer to this than to two full rounds; a teacher that saw only those would
    smooth them.
    """
    first = dataclasses.replace(
        real.first,
        sigma=(real.first.sigma[0], 2.4),
        resize_probs=(0.0, 0.0, 1.0),
        noise_sigma=(0.0, 4.0),
        poisson_scale=(0.0, 0.2),
        jpeg_quality=(85.0, 95.0),
    )
    second = dataclasses.replace(
        real.second,
        blur_prob=0.1,
        sigma=(0.2, 0.8),
        resize_probs=(0.0, 0.0, 1.0),
        noise_sigma=(0.0, 3.0),
        poisson_scale=(0.0, 0.15),
        jpeg_quality=(75.0, 95.0),
    )
    return dataclasses.replace(real, first=first, second=second, final_sinc_prob=0.1)
