"""Training patches for a teacher: a pure function of (seed, index), so any process can make any of them.

h w height and width of the LR patch, s scale.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.corpus import Source
from pipeline.degradation import Degradation
from pipeline.degrade import degrade_inside
from pipeline.filters import cut_mirrored
from pipeline.images import ImageError, load_rgb, to_tensor
from pipeline.system.errors import DtkdError
from pipeline.training.readers import read_ahead

_PHOTO_BYTES = 768 * 2**20  # decoded photos kept by one worker


class Patch(NamedTuple):
    """A training pair, or a batch of b pairs, float32 in [0, 1]."""

    lr: Tensor  # (3, h, w) or (b, 3, h, w)
    hr: Tensor  # (3, s h, s w) or (b, 3, s h, s w)


def generator(seed: int, purpose: str, index: int) -> np.random.Generator:
    """A numpy generator that depends on nothing but its arguments."""
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(digest, "little")))


class PatchDataset(Dataset[Patch]):
    """Random crops of random photos: down-scaled, flipped, transposed, degraded as stage one degrades its tiles.

    Where a photo turns out to be damaged behind its header, another one is drawn in its place, in every process the
    same; reading a patch raises `DtkdError` if none is left.

    Args:
        sources: the photos; drawn in proportion to the square root of their area.
        degradation: what makes the LR patch.
        patch: side of the LR patch in pixels.
        seed: with the index, decides everything.
    """

    def __init__(self, sources: Sequence[Source], degradation: Degradation, patch: int, seed: int) -> None:
        """Take the photos and settings; see the class."""
        self.sources, self.degradation, self.patch, self.seed = sources, degradation, patch, seed
        areas = np.array([s.width * s.height for s in sources], dtype=np.float64) ** 0.5
        self.shares = areas / areas.sum()
        self._photos: OrderedDict[str, np.ndarray] = OrderedDict()
        self._damaged: dict[str, str] = {}  # id -> reason

    def __getitem__(self, index: int) -> Patch:
        """The patch of this index."""
        rng = generator(self.seed, "patch", index)
        side, margin = self.patch * self.degradation.scale, self.degradation.margin
        grown = _random_crop(self._draw(rng), side, margin, rng)
        lr = degrade_inside(grown, margin // self.degradation.scale, self.degradation, rng)
        return Patch(to_tensor(lr), to_tensor(grown[margin : margin + side, margin : margin + side]))

    def batch(self, indices: Sequence[int]) -> Patch:
        """The patches of these indices, stacked."""
        lr, hr = (torch.stack(images) for images in zip(*(self[index] for index in indices), strict=True))
        return Patch(lr, hr)

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
        raise DtkdError(f"none of {len(self.sources)} training photos can be read, {name}: {reason}; replace them")

    def _photo(self, source: Source) -> np.ndarray:
        if source.id in self._photos:
            self._photos.move_to_end(source.id)
        else:
            self._photos[source.id] = load_rgb(source.path)
            while len(self._photos) > 1 and sum(p.nbytes for p in self._photos.values()) > _PHOTO_BYTES:
                self._photos.popitem(last=False)
        return self._photos[source.id]


def batches(
    patches: PatchDataset, *, steps: range, batch_size: int, workers: int, rank: int, world: int, device: torch.device
) -> Iterator[Patch]:
    """Yield this rank's share of the batch of each of `steps`; `batch_size` is global, over all `world` ranks.

    Raises:
        DtkdError: ranks that do not divide the batch, or no photo that can be read.
    """
    if batch_size % world:
        raise DtkdError(f"train.batch_size is shared by {world} processes and must be divisible, got {batch_size}")
    share = batch_size // world
    starts = (step * batch_size + rank * share for step in steps)
    plan = [range(start, start + share) for start in starts]
    for lr, hr in read_ahead(patches.batch, plan, workers=workers, device=device, ahead=4):
        yield Patch(lr.to(device, non_blocking=True), hr.to(device, non_blocking=True))


def _random_crop(photo: np.ndarray, side: int, margin: int, rng: np.random.Generator) -> np.ndarray:
    """A crop (side + 2 margin, side + 2 margin, 3) after a random reduction, flip and transposition.

    The crop without its margin lies inside the photo, the margin is mirrored where the photo ends, as stage one's is.
    """
    height, width = photo.shape[:2]
    smallest = max(side / min(height, width), 0.35)
    factor = float(rng.uniform(smallest, 1)) if smallest < 1 and rng.random() < 0.7 else 1.0
    inner = min(round(side / factor), height, width)
    y, x = int(rng.integers(height - inner + 1)), int(rng.integers(width - inner + 1))
    around = round(margin * inner / side)
    rows, columns = range(y - around, y + inner + around), range(x - around, x + inner + around)
    crop = cut_mirrored(photo, rows, columns, (height, width))
    whole = side + 2 * margin
    if crop.shape[0] != whole:
        crop = np.asarray(Image.fromarray(crop).resize((whole, whole), Image.Resampling.LANCZOS))
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    if rng.random() < 0.5:
        crop = crop.transpose(1, 0, 2)
    return np.ascontiguousarray(crop)
