"""An ablation as one page of plots: every arm's difference to the baseline, with its interval."""

import io
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.axes import Axes

from student.study.ablation import Ablation, Comparison

_COLOURS = {"better": "#3fa66b", "worse": "#c9453b", "no difference": "#9a9a9a"}


def ablation_svg(found: Ablation) -> str:
    """One panel a metric; SVG."""
    style: dict[Any, Any] = {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "svg.hashsalt": "ablation",
    }
    with pyplot.rc_context(style):
        width, height = 1.6 + 3.2 * len(found.metrics), 1.3 + 0.32 * len(found.changes)
        figure, panels = pyplot.subplots(
            1, len(found.metrics), figsize=(width, height), layout="constrained", sharey=True, squeeze=False
        )
        for axes, metric in zip(panels[0], found.metrics, strict=True):
            _panel(axes, [c for c in found.comparisons if c.metric == metric and c.difference is not None])
            axes.set_title(f"{metric} - {found.baseline}'s")
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    return text.getvalue()


def _panel(axes: Axes, compared: list[Comparison]) -> None:
    axes.axvline(0, color="#555555", linewidth=0.8)
    for place, found in enumerate(compared):
        assert found.difference is not None
        value, low, high = found.difference
        error = [[max(value - low, 0)], [max(high - value, 0)]]
        axes.errorbar([value], [place], xerr=error, fmt="o", capsize=3, color=_COLOURS[found.verdict])
    axes.set_yticks(range(len(compared)), [found.arm for found in compared])
    axes.invert_yaxis()
    if compared:
        axes.set_xlabel("lower is better" if compared[0].lower_is_better else "higher is better")
