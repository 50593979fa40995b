"""How sure a mean is: bootstrap intervals over images, also of paired differences and of ratios of sums.

Images are resampled as wholes, with everything that was measured on them: tiles of one photo are not independent, and a
figure over a few photos must not look surer than it is. Same input, same interval: the draws have a fixed seed.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 2000
FEW = 10
"""Below this many images an interval says little, and whoever prints it says so."""

Rows = NDArray[np.float64]


class Interval(NamedTuple):
    """A figure and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def is_clear_of_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def mean_interval(values: ArrayLike, groups: Sequence[str] | None = None) -> Interval:
    """Mean of one figure an image, with its interval.

    Args:
        values: (n,) figures.
        groups: n names; figures with the same name are drawn together (tiles of one photo). None: each on its own.

    Raises:
        ValueError: no figures, or as many names as figures are not given.
    """
    return statistic_interval(np.asarray(values, np.float64)[:, None], lambda mean: mean[..., 0], groups)


def paired_difference(ours: ArrayLike, theirs: ArrayLike, groups: Sequence[str] | None = None) -> Interval:
    """Mean of ours - theirs, figures of the same images in the same order, with its interval."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired figures must be of the same images, got {a.shape} and {b.shape}")
    return mean_interval(a - b, groups)


def statistic_interval(
    rows: Rows, statistic: Callable[[Rows], Rows], groups: Sequence[str] | None = None, draws: int = DRAWS
) -> Interval:
    """A function of means, such as a ratio or a correlation, with its interval.

    Args:
        rows: (n, k) k figures of n images or tiles.
        statistic: from means (..., k) to the statistic (...).
        groups: n names; rows of one name are drawn together.
        draws: resamplings.

    Raises:
        ValueError: no rows, or another number of names.
    """
    if not len(rows) or (groups is not None and len(groups) != len(rows)):
        raise ValueError(f"expected rows and as many group names, got {len(rows)} and {len(groups or ())}")
    _, group = np.unique(list(groups), return_inverse=True) if groups is not None else (None, np.arange(len(rows)))
    count = int(group.max()) + 1
    sums, sizes = np.zeros((count, rows.shape[1])), np.bincount(group, minlength=count)  # (g, k), (g,)
    np.add.at(sums, group, rows)
    times = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=draws)  # (draws, g)
    drawn = statistic(times @ sums / (times @ sizes)[:, None])
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(float(statistic(sums.sum(0) / len(rows))), float(low), float(high))


def crossed_interval(table: Rows, draws: int = DRAWS) -> Interval:
    """Mean of a table (images, seeds) with its interval, images and seeds resampled apart.

    With one seed only the images vary; with few seeds the interval is what they give, and still says something.

    Raises:
        ValueError: an empty table.
    """
    if table.ndim != 2 or not table.size:
        raise ValueError(f"expected a table of images and seeds, got {table.shape}")
    rng = np.random.default_rng(0)
    rows, columns = (rng.multinomial(n, np.full(n, 1 / n), size=draws) / n for n in table.shape)
    drawn = np.einsum("di,is,ds->d", rows, table, columns)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(float(table.mean()), float(low), float(high))
