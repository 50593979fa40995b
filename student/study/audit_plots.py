"""An audit as one page of plots."""

import io
from collections.abc import Sequence

import matplotlib

matplotlib.use("svg")
import numpy as np
from matplotlib import pyplot
from matplotlib.axes import Axes

from student.evaluation.statistics import Interval
from student.loss import GROUPS, MODES
from student.study.audit import Audit, BandAudit

_COLOURS = {
    "bicubic": "#9a9a9a",
    "GT": "#3fa66b",
    "teacher": "#e08a2e",
    "GT-only student": "#4c8dd6",
    "predicted ceiling": "#8b75c9",
}


def audit_svg(found: Audit) -> str:
    """Energy, discrepancy and consistency of every detail band with 95 % intervals, and the calibrated weights; SVG."""
    details = [band for band in found.bands if band.group != "low"]
    with pyplot.rc_context(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "audit"}
    ):
        figure, axes = pyplot.subplots(2, 2, figsize=(11, 7), layout="constrained")
        (energy, distance), (consistency, weights) = axes
        _energy(energy, details)
        _distance(distance, details)
        _consistency(consistency, details)
        _weights(weights, found)
        figure.suptitle(f"{found.teacher} on {found.cache}: {found.tiles} tiles of {found.photos} photos")
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    return text.getvalue()


def _energy(axes: Axes, bands: Sequence[BandAudit]) -> None:
    series: dict[str, list[Interval | None]] = {
        "bicubic": [band.bicubic_rms for band in bands],
        "GT": [band.gt_rms for band in bands],
        "teacher": [band.teacher_rms for band in bands],
        "GT-only student": [band.student_rms for band in bands],
    }
    ceilings = [band.ceiling_rms for band in bands]
    series["predicted ceiling"] = [None if c is None else Interval(c, c, c) for c in ceilings]
    _bars(axes, bands, series)
    axes.set_title("energy: RMS of the coefficients")


def _distance(axes: Axes, bands: Sequence[BandAudit]) -> None:
    series: dict[str, list[Interval | None]] = {
        "GT": [band.from_gt for band in bands],
        "GT-only student": [band.from_student for band in bands],
    }
    _bars(axes, bands, series)
    axes.set_title("discrepancy: E|W(T) - W(X)| / E|W(T)|, X as named")


def _consistency(axes: Axes, bands: Sequence[BandAudit]) -> None:
    axes.set_title("consistency: correlation between two seeds")
    if all(band.rho is None for band in bands):
        axes.text(
            0.5, 0.5, "no second seed: name the teacher, or store two samples", ha="center", transform=axes.transAxes
        )
        return
    for label, values, marker in (
        ("the teacher's band", [band.rho for band in bands], "o"),
        ("what it adds to bicubic", [band.rho_added for band in bands], "s"),
    ):
        places, intervals = zip(*((i, v) for i, v in enumerate(values) if v is not None), strict=True)
        axes.errorbar(places, [v.value for v in intervals], _spread(intervals), fmt=marker, capsize=3, label=label)
    axes.set_xticks(range(len(bands)), [band.name for band in bands])
    axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1)
    axes.legend(frameon=False)


def _weights(axes: Axes, found: Audit) -> None:
    axes.set_title("share of each group in the loss's weights")
    modes = dict(MODES) | ({"calibrated": found.weights} if found.weights else {})
    for offset, (name, values) in enumerate(modes.items()):
        places = np.arange(len(GROUPS)) + 0.8 * (offset / len(modes) - 0.5)
        axes.bar(places, np.array(values) / sum(values), 0.8 / len(modes), label=name, align="edge")
    axes.set_xticks(range(len(GROUPS)), GROUPS)
    _legend_above(axes)


def _bars(axes: Axes, bands: Sequence[BandAudit], series: dict[str, list[Interval | None]]) -> None:
    drawn = {name: values for name, values in series.items() if any(values)}
    for offset, (name, values) in enumerate(drawn.items()):
        there = [(i, value) for i, value in enumerate(values) if value is not None]
        places = [i + 0.8 * (offset / len(drawn) - 0.5) for i, _ in there]
        intervals = [value for _, value in there]
        heights = [value.value for value in intervals]
        axes.bar(places, heights, 0.8 / len(drawn), align="edge", color=_COLOURS[name], label=name,
                 yerr=_spread(intervals), error_kw={"linewidth": 0.8})  # fmt: skip
    axes.set_xticks(range(len(bands)), [band.name for band in bands])
    _legend_above(axes)


def _legend_above(axes: Axes) -> None:
    """Over the bars, with room made for it."""
    axes.set_ylim(top=1.25 * axes.get_ylim()[1])
    axes.legend(frameon=False, loc="upper left", ncols=3)


def _spread(intervals: Sequence[Interval]) -> np.ndarray:
    """(2, n) distances below and above, as matplotlib takes them."""
    return np.array([[v.value - v.low for v in intervals], [v.high - v.value for v in intervals]]).clip(0)
