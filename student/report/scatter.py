"""Perception against distortion: where every candidate stands, as the numbers of an SVG drawing.

Both axes are turned so that better is to the right and up, whatever the direction of the metric.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from student.evaluation.metrics import Metric
from student.evaluation.scores import Evaluation
from student.evaluation.statistics import Interval
from student.report.figures import colour, metric_label
from student.report.pictures.choice import fidelity, perceptual

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 24, 44
"""Margins around the field."""
PLOTS = 3
"""Perceptual metrics that are drawn, at most."""
LINE = 17
"""Height of a label."""
MOST = 26
"""Letters of a label."""


class Point(NamedTuple):
    """A candidate, its intervals, and its label, which stands where it hides no other."""

    label: str
    colour: str
    x: float
    y: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    label_x: float
    label_y: float
    anchor: str


class Tick(NamedTuple):
    """A number at an axis."""

    at: float
    text: str


class Scatter(NamedTuple):
    """A drawing of WIDTH by HEIGHT."""

    x_name: str
    y_name: str
    x_label: str
    y_label: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    points: list[Point]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def scatters(found: Evaluation, labels: Mapping[str, str]) -> list[Scatter]:
    """One drawing for every perceptual metric, up to PLOTS; none where a metric of either kind is missing."""
    distortion = fidelity(found)
    if distortion is None:
        return []
    drawn = [_scatter(found, labels, distortion, metric) for metric in perceptual(found)[:PLOTS]]
    return [scatter for scatter in drawn if scatter]


def _scatter(found: Evaluation, labels: Mapping[str, str], x: Metric, y: Metric) -> Scatter | None:
    rows = []
    for place, row in enumerate(found.candidates):
        means = row.mean(x.name), row.mean(y.name)
        if None not in means and row.role != "gt":
            at = [row.interval(m.name) or Interval(mean, mean, mean) for m, mean in zip((x, y), means, strict=True)]  # pyright: ignore[reportArgumentType]
            rows.append((labels[row.name], colour(place), *at))
    if not rows:
        return None
    horizontal = _Axis([row[2] for row in rows], x.lower_is_better, LEFT, WIDTH - RIGHT)
    vertical = _Axis([row[3] for row in rows], y.lower_is_better, HEIGHT - BOTTOM, TOP)
    places = [(horizontal.at(row[2].value), vertical.at(row[3].value)) for row in rows]
    points = []
    taken = [(px - 6, py - 6, px + 6, py + 6) for px, py in places]
    for (label, shade, across, up), (px, py) in zip(rows, places, strict=True):
        label_x, label_y, anchor = _beside(px, py, label, taken)
        ranges = (horizontal.at(across.low), horizontal.at(across.high)), (vertical.at(up.low), vertical.at(up.high))
        points.append(Point(_short(label), shade, px, py, *ranges, label_x, label_y, anchor))
    names = metric_label(x.name), metric_label(y.name)
    return Scatter(*names, _axis_label(x), _axis_label(y), horizontal.ticks(), vertical.ticks(), points)


def _axis_label(metric: Metric) -> str:
    unit = ", dB" if metric.name in ("psnr_y", "psnr", "psnry") else ""
    return f"{metric_label(metric.name)}{unit}" + (", lower is better" if metric.lower_is_better else "")


class _Axis:
    """From figures to the drawing, better towards `end`."""

    def __init__(self, spans: Sequence[Interval], lower_is_better: bool, start: float, end: float) -> None:
        low, high = min(span.low for span in spans), max(span.high for span in spans)
        room = 0.06 * (high - low) or 0.02 * abs(high) or 1.0
        self.low, self.high = low - room, high + room
        self.start, self.end = (end, start) if lower_is_better else (start, end)

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self) -> list[Tick]:
        """Round numbers, four to eight."""
        step = 10 ** math.floor(math.log10((self.high - self.low) / 4))
        step *= next(factor for factor in (10, 5, 2, 1) if (self.high - self.low) / (step * factor) >= 3.5)
        first = math.ceil(self.low / step)
        count = math.floor(self.high / step) - first + 1
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        return [Tick(self.at((first + i) * step), f"{(first + i) * step:.{digits}f}") for i in range(count)]


Box = tuple[float, float, float, float]


def _short(label: str) -> str:
    return label if len(label) <= MOST else f"{label[: MOST - 1]}\N{HORIZONTAL ELLIPSIS}"


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _beside(x: float, y: float, label: str, taken: list[Box]) -> tuple[float, float, str]:
    """Where a label stands: the first place beside its point that is free, which is then taken."""
    width = 7.2 * min(len(label), MOST)
    spots = [(9, 5, "start"), (-9, 5, "end"), (0, -10, "middle"), (0, 22, "middle")]
    spots += [(9, -9, "start"), (9, 20, "start"), (-9, -9, "end"), (-9, 20, "end")]

    def box(dx: float, dy: float, anchor: str) -> Box:
        left = x + dx - {"start": 0, "middle": width / 2, "end": width}[anchor]
        return left, y + dy - 13, left + width, y + dy - 13 + LINE

    def trouble(spot: tuple[float, float, str]) -> float:
        left, top, right, bottom = box(*spot)
        outside = max(0, LEFT - left) + max(0, right - WIDTH) + max(0, -top) + max(0, bottom - (HEIGHT - BOTTOM))
        return 50 * outside + sum(_overlap((left, top, right, bottom), other) for other in taken)

    dx, dy, anchor = min(spots, key=trouble)
    taken.append(box(dx, dy, anchor))
    return round(x + dx, 1), round(y + dy, 1), anchor
