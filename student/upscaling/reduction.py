"""Make a picture smaller while its rows come: as `pipeline.filters.resize_bicubic`, a few rows at a time.

H W height and width before, h w after, C channels.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from pipeline.filters import bicubic_matrix


class Shape(NamedTuple):
    """Pixels."""

    height: int
    width: int


def reduce_rows(rows: Iterable[np.ndarray], before: Shape, after: Shape) -> Iterator[np.ndarray]:
    """Reduce a picture by antialiased bicubic interpolation, MATLAB's, holding no more rows than the filter needs.

    The result is that of resizing the whole picture, rounded; its type stays, so 16 bits stay 16 bits.

    Args:
        rows: consecutive pieces uint8 or uint16 (rows, W, C), together H rows.
        before: H and W.
        after: h and w.

    Yields:
        consecutive pieces (rows, w, C), together h rows.
    """
    across, down = bicubic_matrix(before.width, after.width), bicubic_matrix(before.height, after.height)
    used = [down.indices[begin:end] for begin, end in zip(down.indptr, down.indptr[1:], strict=False)]
    complete = np.maximum.accumulate([positions.max() for positions in used])  # rows up to this one must have come
    needed = np.minimum.accumulate([positions.min() for positions in used][::-1])[::-1]  # rows before it may go
    top, done, held = 0, 0, None  # first row that is held, finished rows, and the held ones, already narrow
    for piece in rows:
        narrow = (across @ _flat(piece.swapaxes(0, 1))).reshape(after.width, len(piece), -1).swapaxes(0, 1)
        held = narrow if held is None else np.concatenate([held, narrow])  # float64 (rows, w, C)
        ready = int(np.searchsorted(complete, top + len(held), side="left"))
        if ready > done:
            finished = (down[done:ready, top : top + len(held)] @ _flat(held)).reshape(ready - done, after.width, -1)
            done = ready
            yield np.clip(np.rint(finished), 0, np.iinfo(piece.dtype).max).astype(piece.dtype)
            first = int(needed[done]) if done < after.height else before.height
            held, top = held[first - top :], first


def _flat(x: np.ndarray) -> np.ndarray:
    """(a, b, C) to float64 (a, b * C)."""
    return np.ascontiguousarray(x, dtype=np.float64).reshape(len(x), -1)
