"""What a cache's teacher knows that a student can learn, measured before any training.

For every sub-band b and frequency group of an orthonormal J-level wavelet transform W (groups as in `student.loss`):

    energy       RMS of W_b of the bicubic upscaling, GT, teacher T, and a GT-only student S0
    discrepancy  d = E|W_b(T) - W_b(X)| / E|W_b(T)|, X the GT or S0: how much there is to learn
    consistency  rho, the correlation of W_b(T) and W_b(T'), T' the same teacher with another seed, asked for it or
                 stored (`dtkd teacher-cache --samples 2`): how much can be learnt; also of what the teacher adds,
                 W_b(T - bicubic)
    ceiling      sqrt(rho) * RMS of W_b(T). With T = m + n, m a function of the LR image and n the seed's part, squared
                 errors lead to m, and var(m) = rho var(T); the median, of L1, keeps about that

Calibrated weights: w_g ~ d_g rho_g, a lot to learn and learnable, scaled to sum to the weights of `uniform`. Seeds of a
teacher are also compared as stochastic restorers are (Sun et al., "Improving the stability and efficiency of diffusion
models for content consistent super-resolution", 2024): L-STD, standard deviation of a pixel over seeds, and G-STD, that
of an image's figure, here psnr_y. All intervals are 95 %, photos resampled as wholes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.images import to_image, to_tensor
from pipeline.schema import sample_seed
from pipeline.system.errors import DtkdError
from pipeline.system.progress import OnProgress, ProgressEvent
from pipeline.system.words import plural
from pipeline.teacher import Teacher
from student.evaluation.statistics import FEW, Interval, statistic_interval
from student.loss import GROUPS
from student.stream import CacheDataset
from student.study.bands import Figures, Pictures, band_names, bicubic, inside, measure, measure_whole

Restorer = Callable[[Tensor], Tensor]
_BATCH = 4  # tiles that the teacher gets at once


@dataclass(frozen=True)
class BandAudit:
    """One sub-band or group; what was not measured is None."""

    name: str
    group: str
    bicubic_rms: Interval
    gt_rms: Interval
    teacher_rms: Interval
    student_rms: Interval | None
    from_gt: Interval
    """Discrepancy to the ground truth."""
    from_student: Interval | None
    """Discrepancy to the GT-only student."""
    rho: Interval | None
    rho_added: Interval | None

    @property
    def ceiling_rms(self) -> float | None:
        """Predicted RMS of a deterministic student at its best."""
        return None if self.rho is None else max(self.rho.value, 0.0) ** 0.5 * self.teacher_rms.value


@dataclass(frozen=True)
class Audit:
    """What `audit` measured."""

    cache: str
    teacher: str
    levels: int
    wavelet: str
    tiles: int
    photos: int
    bands: tuple[BandAudit, ...]
    groups: tuple[BandAudit, ...]
    drift: Interval
    """Mean |mean colour of T - mean colour of LR| of a tile, levels of 255."""
    l_std: Interval | None
    """Levels of 255."""
    g_std: Interval | None
    """dB of psnr_y."""
    weights: tuple[float, float, float] | None
    """Calibrated, of low, mid and high; needs a student and a second seed."""

    failure = None
    """See `pipeline.system.results.Result`."""

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON values; intervals are [value, low, high]."""
        rows = {
            kind: [asdict(band) | {"ceiling_rms": band.ceiling_rms} for band in getattr(self, kind)]
            for kind in ("bands", "groups")
        }
        return asdict(self) | rows

    def weights_toml(self) -> str:
        """Settings that `dtkd train-student --config` takes.

        Raises:
            DtkdError: nothing was calibrated.
        """
        if self.weights is None:
            second = "a second seed (--teacher, or a cache made with --samples 2)"
            raise DtkdError(f"calibrated weights need a GT-only student (--student) and {second}")
        values = ", ".join(f"{weight:.4f}" for weight in self.weights)
        return f"# calibrated on {self.cache}, {self.tiles} tiles\n[loss]\nweights = [{values}]  # low, mid, high\n"

    def lines(self) -> list[str]:
        """The table and what follows from it, as text."""
        head = "band    bicubic       GT  teacher  student    T-GT    T-S0    rho  ceiling"
        rows = [_row(band) for band in (*self.bands, *self.groups)]
        few = f" ({FEW} photos or more say more)" if self.photos < FEW else ""
        tiles, photos = plural(self.tiles, "tile"), plural(self.photos, "photo")
        tail = [f"{tiles} of {photos}{few}; RMS of coefficients, images in 0..1"]
        tail += [f"colour drift {self.drift.value:.2f} of 255"]
        if self.l_std and self.g_std:
            tail += [f"between seeds: L-STD {self.l_std.value:.2f} of 255, G-STD {self.g_std.value:.3f} dB"]
        return [head, *rows, *tail, *self.findings()]

    def findings(self) -> list[str]:
        """What the figures say about distilling this teacher, a sentence each."""
        found = []
        for group in self.groups:
            if group.group == "low":
                continue
            gain = group.teacher_rms.value / max(group.bicubic_rms.value, 1e-12) - 1
            sentence = f"{group.name}: the teacher has {gain:+.0%} detail against bicubic"
            if group.rho_added is not None:
                sentence += f"; of what it adds, {max(group.rho_added.value, 0):.0%} is the same with another seed"
            found.append(sentence)
        if self.weights is not None:
            found.append(
                "calibrated weights (low, mid, high): " + ", ".join(f"{weight:.3f}" for weight in self.weights)
            )
        return found


def audit(
    dataset: CacheDataset,
    *,
    student: Restorer | None = None,
    teacher: Teacher | None = None,
    tiles: int = 128,
    levels: int = 2,
    wavelet: str = "haar",
    on_progress: OnProgress | None = None,
) -> Audit:
    """Measure a cache.

    Args:
        dataset: the samples; `tiles` of them are taken, spread evenly.
        student: a GT-only network, (B, 3, h, w) to (B, 3, s h, s w).
        teacher: the cache's teacher, to ask for another seed; without it the cache's second outputs are taken, where it
            has such, else there is no consistency.
        tiles: how many; more make intervals narrower.
        levels: of the transform, 1 to 3.
        wavelet: as `pipeline.wavelet` knows them.
        on_progress: called after every batch of tiles.

    Raises:
        DtkdError: nothing in the cache, levels out of range, or a teacher of another scale.
    """
    if not 1 <= levels <= 3:
        raise DtkdError(f"levels must be 1 to 3 for an audit, got {levels}")
    if not len(dataset):
        raise DtkdError(f"{dataset.cache} has no samples to audit: every image was held out or failed")
    if teacher is not None and teacher.scale != dataset.scale:
        raise DtkdError(f"the teacher {teacher.name} is x{teacher.scale}, the cache x{dataset.scale}")
    chosen = np.unique(np.linspace(0, len(dataset) - 1, min(tiles, len(dataset))).astype(int)).tolist()
    rows: list[NDArray[np.float64]] = []
    whole, photos = [], []
    for index, pictures, lr in _pictures(dataset, chosen, student, teacher):
        rows.append(measure(pictures, levels, wavelet))
        whole.append(measure_whole(pictures, lr, dataset.scale))
        photos.append(str(dataset.meta(index)["source"]))
        if on_progress:
            on_progress(ProgressEvent(len(rows), len(chosen), "tiles"))
    return _summary(dataset, levels, wavelet, np.stack(rows), np.array(whole), photos)


def _pictures(
    dataset: CacheDataset, chosen: Sequence[int], student: Restorer | None, teacher: Teacher | None
) -> Iterator[tuple[int, Pictures, Tensor]]:
    """(index, every version of the tile, its LR image (1, 3, h, w)) of every chosen sample."""
    scale = dataset.scale
    for start in range(0, len(chosen), _BATCH):
        part = chosen[start : start + _BATCH]
        around = torch.stack([to_tensor(dataset.seen_by_teacher(index)) for index in part])  # (B, 3, h + 2 c, w + 2 c)
        loaded = [[to_tensor(image)[None] for image in dataset.images(index)] for index in part]
        margin = (around.shape[-1] - loaded[0][0].shape[-1]) // 2 * scale
        seconds = _second_seeds(dataset, part, around, margin, teacher)
        for number, (index, (lr, gt, first), second) in enumerate(zip(part, loaded, seconds, strict=True)):
            base = inside(bicubic(around[number : number + 1], scale), margin)
            yield index, Pictures(base, gt, first, student(lr).clamp(0, 1) if student else None, second), lr


def _second_seeds(
    dataset: CacheDataset, part: Sequence[int], around: Tensor, margin: int, teacher: Teacher | None
) -> list[Tensor | None]:
    """T' of every tile, (1, 3, H, W): what the teacher says, else what the cache holds, else None."""
    if teacher is None:
        stored = dataset.outputs > 1
        return [to_tensor(dataset.images(index, 1)[2])[None] if stored else None for index in part]
    restored = teacher.restore(around, [sample_seed(0, dataset.key(index), "audit") for index in part])
    return [inside(to_tensor(to_image(image))[None], margin) for image in restored]  # as the cache holds it, 8 bits


def _summary(
    dataset: CacheDataset,
    levels: int,
    wavelet: str,
    rows: NDArray[np.float64],
    whole: NDArray[np.float64],
    photos: Sequence[str],
) -> Audit:
    named = band_names(levels)
    bands = tuple(_band(name, group, rows[:, i], photos) for i, (name, group) in enumerate(named))
    groups = []
    for group in GROUPS:
        members = [i for i, (_, g) in enumerate(named) if g == group]
        if members:
            groups.append(_band(group, group, rows[:, members].mean(1), photos))
    both = [None if np.isnan(c).any() else statistic_interval(c[:, None], _first, photos) for c in whole.T]
    drift, l_std, g_std = both
    assert drift is not None
    return Audit(
        dataset.cache.name, dataset.teacher, levels, wavelet, len(rows), len(set(photos)), bands, tuple(groups),
        drift, l_std, g_std, _calibrated(groups),
    )  # fmt: skip


def _first(mean: NDArray[np.float64]) -> NDArray[np.float64]:
    return mean[..., 0]


def _band(name: str, group: str, rows: NDArray[np.float64], photos: Sequence[str]) -> BandAudit:
    """Figures of a band from the rows (tiles, figures) of all tiles."""
    columns = {field: rows[:, i] for i, field in enumerate(Figures._fields)}

    def over(statistic: Callable[..., NDArray[np.float64]], *fields: str) -> Interval | None:
        used = np.stack([columns[field] for field in fields], 1)
        if np.isnan(used).any():
            return None
        return statistic_interval(used, lambda mean: statistic(*np.moveaxis(mean, -1, 0)), photos)

    def known(interval: Interval | None) -> Interval:
        assert interval is not None  # bicubic, GT and teacher are always there
        return interval

    return BandAudit(
        name,
        group,
        known(over(np.sqrt, "bicubic")),
        known(over(np.sqrt, "gt")),
        known(over(np.sqrt, "teacher")),
        over(np.sqrt, "student"),
        known(over(_ratio, "from_gt", "size")),
        over(_ratio, "from_student", "size"),
        over(_correlation, "product", "teacher", "again"),
        over(_correlation, "added_product", "added", "added_again"),
    )


def _ratio(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return a / np.maximum(b, 1e-12)


def _correlation(
    product: NDArray[np.float64], square: NDArray[np.float64], other: NDArray[np.float64]
) -> NDArray[np.float64]:
    return product / np.maximum(np.sqrt(square * other), 1e-12)


def _calibrated(groups: Sequence[BandAudit]) -> tuple[float, float, float] | None:
    raw = {g.group: g.from_student.value * max(g.rho.value, 0.0) for g in groups if g.from_student and g.rho}
    total = sum(raw.values())
    if len(raw) < len(groups) or total <= 0:
        return None
    low, mid, high = (len(GROUPS) * raw.get(group, 0.0) / total for group in GROUPS)
    return low, mid, high


def _row(band: BandAudit) -> str:
    def text(value: Interval | float | None, digits: int) -> str:
        number = value.value if isinstance(value, Interval) else value
        return "-" if number is None else f"{number:.{digits}f}"

    rms = (band.bicubic_rms, band.gt_rms, band.teacher_rms, band.student_rms)
    return (
        f"{band.name:6}{''.join(f'{text(value, 4):>9}' for value in rms)}{text(band.from_gt, 3):>8}"
        f"{text(band.from_student, 3):>8}{text(band.rho, 3):>7}{text(band.ceiling_rms, 4):>9}"
    )
