"""Figures as a page shows them: the table of means with intervals and differences, and those of every image."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from student.evaluation.scores import CandidateScores, Evaluation
from student.evaluation.scores_text import cost_cells, cost_notes
from student.evaluation.statistics import FEW, Interval

NONE = "\N{EN DASH}"
COLOURS = ("#7a828c", "#4c8dd6", "#e08a2e", "#3fa66b", "#c95d8f", "#8b75c9", "#a8823c", "#2aa5a5")
"""Of candidates by their places; the first, bicubic, is grey."""
_LABELS = {"teacher_psnr_y": "psnr_y to teacher"}


class Cell(NamedTuple):
    """A figure in the table of means."""

    value: float | None
    """What it is sorted by."""
    text: str
    interval: str
    difference: str
    """To the baseline, with its interval."""
    holds_zero: bool
    best: bool


class Column(NamedTuple):
    """A metric."""

    name: str
    label: str
    lower_is_better: bool


class Row(NamedTuple):
    """A candidate in the table of means."""

    label: str
    colour: str
    kind: str
    ours: bool
    cells: list[Cell]
    costs: list[tuple[float | None, str]]
    """What is sorted by, and the text, of each of COSTS."""


COSTS = ("parameters", "GFLOPs", "MB", "seconds an image")


class Figures(NamedTuple):
    """All figures of one set."""

    columns: list[Column]
    costs: tuple[str, ...]
    rows: list[Row]
    verdicts: list[tuple[str, str]]
    note: str


def figures(found: Evaluation, labels: Mapping[str, str], ours: str | None = None) -> Figures:
    """The table of means.

    Args:
        found: the figures.
        labels: what the page calls a candidate, by its name.
        ours: name of the candidate that the page is about, where it is about one.
    """
    best = {name: found.clearly_best(name) for name in found.metric_names}
    rows = [_row(found, row, labels, best, row.name == ours) for row in found.candidates]
    columns = [Column(m.name, metric_label(m.name), m.lower_is_better) for m in found.metrics.metrics]
    verdicts = [
        (metric_label(name), labels[row.name] if row else "nobody is clear of all others") for name, row in best.items()
    ]
    enough = len(found.candidates[0].images) >= FEW and len([r for r in rows if r.kind != "gt"]) > 1
    return Figures(columns, COSTS, rows, verdicts if enough else [], _note(found, labels))


class Across(NamedTuple):
    """One metric on several sets: of every candidate its cell in each of them, None where it is not there."""

    column: Column
    rows: list[tuple[Row, list[Cell | None]]]


def across(sets: Sequence[Figures]) -> list[Across]:
    """The figures of several sets by metric and candidate."""
    columns = {column.name: column for found in sets for column in found.columns}
    rows = {row.label: row for found in sets for row in found.rows}
    cells = [
        {(row.label, c.name): cell for row in found.rows for c, cell in zip(found.columns, row.cells, strict=True)}
        for found in sets
    ]
    return [
        Across(column, [(row, [of.get((label, name)) for of in cells]) for label, row in rows.items()])
        for name, column in columns.items()
    ]


def per_image(found: Evaluation) -> list[list[list[str | None]]]:
    """Figures of every image, as text, by metric and candidate: `[image][metric][candidate]`."""
    ids = list(dict.fromkeys(score.id for row in found.candidates for score in row.images))
    scores = [{score.id: score.values for score in row.images} for row in found.candidates]
    digits = {name: decimals(found, name) for name in found.metric_names}
    return [
        [[_plain(of.get(image, {}).get(name), digits[name]) for of in scores] for name in found.metric_names]
        for image in ids
    ]


def colour(place: int) -> str:
    """Of the candidate at a place in the table."""
    return COLOURS[place] if place < len(COLOURS) else COLOURS[1 + (place - 1) % (len(COLOURS) - 1)]


def metric_label(name: str) -> str:
    """What a page calls a metric."""
    return _LABELS.get(name, name)


def decimals(found: Evaluation, metric: str) -> int:
    """Digits behind the point: more for figures about one."""
    means = [abs(mean) for row in found.candidates if (mean := row.mean(metric)) is not None]
    return 2 if max((m for m in means if math.isfinite(m)), default=0.0) >= 2 else 4


def seconds_text(value: float | None) -> str:
    """Seconds with about three digits."""
    if value is None:
        return NONE
    return f"{value:.3f} s" if value < 0.1 else f"{value:.2f} s" if value < 10 else f"{value:.0f} s"


def signed(value: float, digits: int) -> str:
    """With a sign, the true minus."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _row(
    found: Evaluation,
    row: CandidateScores,
    labels: Mapping[str, str],
    best: Mapping[str, CandidateScores | None],
    ours: bool,
) -> Row:
    differences = found.differences(row)
    cells = []
    for name in found.metric_names:
        digits, mean, difference = decimals(found, name), row.mean(name), differences.get(name)
        cells.append(
            Cell(
                mean,
                _mean(row, name, digits),
                _range(row.interval(name), digits),
                _difference(difference, digits),
                difference is not None and not difference.is_clear_of_zero,
                best[name] is row,
            )
        )
    amounts = (row.parameters, row.cost and row.cost.flops, row.cost and row.cost.peak_bytes)
    texts = [text or NONE for text in cost_cells(row)[:3]]
    costs = [*zip(amounts, texts, strict=True), (row.seconds, seconds_text(row.seconds))]
    place = found.candidates.index(row)
    shade = "currentColor" if row.role == "gt" else colour(place)
    return Row(labels[row.name], shade, row.role, ours, cells, costs)


def _mean(row: CandidateScores, metric: str, digits: int) -> str:
    if row.images and all(math.isinf(score.values.get(metric, 0.0)) for score in row.images):
        return "equal"
    mean = row.mean(metric)
    return NONE if mean is None else f"{mean:.{digits}f}"


def _range(found: Interval | None, digits: int) -> str:
    return f"{found.low:.{digits}f} \N{EN DASH} {found.high:.{digits}f}" if found else ""


def _difference(found: Interval | None, digits: int) -> str:
    if found is None:
        return ""
    digits += digits == 2
    value, low, high = (signed(figure, digits) for figure in found)
    return f"{value} [{low}, {high}]"


def _plain(value: float | None, digits: int) -> str | None:
    if value is None or math.isnan(value):
        return None
    return "equal" if math.isinf(value) else f"{value:.{digits}f}"


def _note(found: Evaluation, labels: Mapping[str, str]) -> str:
    base, metrics = labels.get(found.baseline, found.baseline), found.metric_names
    notes = [
        f"Means over {len(found.candidates[0].images)} images with 95 % intervals; arrows point to better. Below, the "
        f"difference to {base}, image by image, with its interval; ~ where that holds zero."
    ]
    if {"psnr_y", "ssim_y"} & set(metrics):
        border = f"{found.crop_border} border pixels left out" if found.crop_border else "whole images"
        notes.append(f"psnr_y (dB) and ssim_y on 8-bit BT.601 luma, {border}.")
    notes.append(
        "Blue: better than all others but the ground truth, with intervals of the differences that do not hold zero; "
        f"nothing is blue on fewer than {FEW} images."
    )
    notes += [f"{line}." for line in cost_notes(found, labels)]
    notes += [f"{u.name} is missing: {u.reason}." for u in found.metrics.unavailable]
    notes += [f"{remark}." for remark in found.remarks]
    return " ".join(notes)
