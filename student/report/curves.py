"""Training curves of one or several runs, from their log.jsonl to inline SVG."""

import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D

from pipeline.system.errors import DtkdError
from pipeline.training.log import read_log
from student.loss import GROUPS

COLOURS = ("#4c8dd6", "#e08a2e", "#3fa66b", "#c95d8f", "#8b75c9", "#a8823c")
GROUP_COLOURS = dict(zip(GROUPS, ("#4c8dd6", "#3fa66b", "#e08a2e"), strict=True))
PANELS = {
    "total": "total loss",
    "l1": "l1 to the ground truth",
    "fg": "distance to the teacher",
    "lambda": "lambda",
    "lr": "learning rate",
    "images_per_s": "images/s",
}
"""What runs are compared in, beside their validations: name in the log -> title."""
SCHEDULES = ("lambda", "lr")
"""What has no noise to smooth."""
_LINE_LENGTH = 150  # characters of a note below a sheet
_INK = "#010203"  # replaced by currentColor, so that text and axes follow the page's light or dark colours


@dataclass(frozen=True)
class Series:
    """One logged figure over the steps of a run."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class RunCurves:
    """Everything that a run logged, by its name in log.jsonl (`total`, `low`, `lambda`, `val_psnr_y` ...)."""

    name: str
    series: Mapping[str, Series]


def read_curves(run: Path, name: str | None = None) -> RunCurves:
    """Read RUN/log.jsonl.

    Raises:
        DtkdError: there is no log, or it is damaged.
    """
    try:
        lines = read_log(run)
        points = [(str(key), int(row["step"]), row[key]) for row in lines for key in row if key != "step"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DtkdError(f"{run / 'log.jsonl'} is damaged ({error!r:.100})") from error
    if not lines:
        raise DtkdError(f"{run} holds no log.jsonl with any line: name the folder of a training run")
    series: dict[str, dict[int, float]] = {}
    for key, step, value in points:
        if isinstance(value, int | float):
            series.setdefault(key, {})[step] = float(value)
    named = {key: Series(tuple(sorted(at)), tuple(at[step] for step in sorted(at))) for key, at in series.items()}
    return RunCurves(name or run.resolve().name, named)


def total_loss(runs: Sequence[RunCurves]) -> str:
    """Total loss of the runs, as SVG."""
    return _figure("total loss", lambda axes: _compare(axes, runs, "total"))


def validation(runs: Sequence[RunCurves]) -> str:
    """psnr_y on held-out samples during training, as SVG; empty where no run validated."""
    if not any("val_psnr_y" in run.series for run in runs):
        return ""
    return _figure("psnr_y, dB", lambda axes: _compare(axes, runs, "val_psnr_y", marker="o"))


def groups(run: RunCurves) -> str:
    """Distillation loss of one run for each frequency group, and lambda on an axis of its own, as SVG."""

    def draw(axes: Axes) -> None:
        for group, colour in GROUP_COLOURS.items():
            if group in run.series:
                _line(axes, run.series[group], group, colour)
        weight = run.series.get("lambda")
        if weight:
            right = axes.twinx()
            right.plot(weight.steps, weight.values, color=_INK, linewidth=1.2, linestyle=(0, (4, 3)))
            right.set_ylabel("lambda (dashed)")
            right.set_ylim(0, max(*weight.values, 1e-9) * 1.08)
            right.spines["top"].set_visible(False)

    return _figure("mean |W(student) - W(teacher)|", draw)


def colours(count: int) -> list[str]:
    """One for each of so many runs."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    return [to_hex(matplotlib.colormaps["turbo"](0.05 + 0.9 * i / (count - 1))) for i in range(count)]


def panels(runs: Sequence[RunCurves]) -> dict[str, str]:
    """What the runs have logged that is worth comparing: name in the log -> title."""
    logged = dict.fromkeys(key for run in runs for key in run.series)
    validated = {key: f"{key.removeprefix('val_')}, held out" for key in logged if key.startswith("val_")}
    wanted = {"total": PANELS["total"], **validated, **PANELS}
    return {key: title for key, title in wanted.items() if key in logged}


def panel(runs: Sequence[RunCurves], key: str, title: str) -> str:
    """One figure of all runs, without a legend, as SVG."""
    return _figure(title, lambda axes: _compare(axes, runs, key, _marker(key)), legend=False)


def sheet(runs: Sequence[RunCurves], notes: Sequence[str], kind: Literal["png", "svg"]) -> bytes:
    """All panels as one picture, the legend above and `notes`, a line each, below them."""
    wanted, names = panels(runs), [run.name for run in runs]
    lines = [part for note in notes for part in textwrap.wrap(note, _LINE_LENGTH, subsequent_indent="    ")]
    rows, above, below = -(-len(wanted) // 2), 0.25 * (1 + len(runs) // 4), 0.17 * (len(lines) + 1)
    height = 3.0 * rows + above + below
    with pyplot.rc_context({**_style("sheet", "#1c1e21"), "font.size": 9}):
        figure = pyplot.figure(figsize=(11, height), layout="constrained")
        grid = figure.add_gridspec(rows, 2)
        figure.get_layout_engine().set(rect=(0, below / height, 1, 1 - (above + below) / height))  # pyright: ignore
        for place, (key, title) in enumerate(wanted.items()):
            axes = figure.add_subplot(grid[place // 2, place % 2])
            _compare(axes, runs, key, _marker(key))
            _finish(axes, title)
        named = zip(colours(len(runs)), names, strict=True)
        handles = [Line2D([], [], color=colour, linewidth=2.2, label=name) for colour, name in named]
        legend = figure.legend(handles=handles, loc="upper left", ncols=4, frameon=False)
        legend.set_in_layout(False)
        text = figure.text(0.012, 0.08 / height, "\n".join(lines), va="bottom", fontfamily="monospace", fontsize=8)
        text.set_in_layout(False)
        file = io.BytesIO()
        about = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(file, format=kind, dpi=110, metadata=about)
        pyplot.close(figure)
    return file.getvalue()


def _marker(key: str) -> str | None:
    return "o" if key.startswith("val_") else None


def _compare(axes: Axes, runs: Sequence[RunCurves], key: str, marker: str | None = None) -> None:
    for run, colour in zip(runs, colours(len(runs)), strict=True):
        if key in run.series:
            _line(axes, run.series[key], run.name, colour, marker, smoothed=key not in SCHEDULES)


def _line(
    axes: Axes, series: Series, label: str, colour: str, marker: str | None = None, smoothed: bool = True
) -> None:
    smooth = _moving_mean(series.values, len(series.values) // 25 if smoothed else 0)
    if smooth != series.values:
        axes.plot(series.steps, series.values, color=colour, linewidth=0.7, alpha=0.3)
    axes.plot(series.steps, smooth, color=colour, linewidth=1.8, label=label, marker=marker, markersize=3)


def _moving_mean(values: tuple[float, ...], reach: int) -> tuple[float, ...]:
    """Mean over `reach` neighbours on either side, over fewer at the ends."""
    if reach < 1:
        return values
    windows = (values[max(i - reach, 0) : i + reach + 1] for i in range(len(values)))
    return tuple(sum(window) / len(window) for window in windows)


def _style(salt: str, ink: str) -> dict[Any, Any]:
    return {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,  # the same ids every time
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": ink,
        "axes.edgecolor": ink,
        "axes.labelcolor": ink,
        "xtick.color": ink,
        "ytick.color": ink,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }


def _finish(axes: Axes, ylabel: str) -> None:
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel)
    axes.set_ylim(bottom=0 if axes.get_ylim()[0] < 0.5 * axes.get_ylim()[1] else None)
    axes.grid(axis="y", alpha=0.18)


def _figure(ylabel: str, draw: Callable[[Axes], None], legend: bool = True) -> str:
    with pyplot.rc_context({**_style(ylabel, _INK), "grid.color": _INK}):
        figure, axes = pyplot.subplots(figsize=(6, 3.4), layout="constrained")
        draw(axes)
        _finish(axes, ylabel)
        if legend:
            axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.2)
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    return _inline(text.getvalue(), slug=re.sub(r"\W+", "-", ylabel).strip("-"))


def _inline(svg: str, slug: str) -> str:
    """A figure to stand in a page: the page's text colour, and ids that no other figure has."""
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    return re.sub(r'( id="|href="#|url\(#)', rf"\1{slug}-", svg)
