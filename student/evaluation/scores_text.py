"""Figures of an evaluation as plain text."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.system.words import plural

if TYPE_CHECKING:
    from student.evaluation.scores import CandidateScores, Evaluation
    from student.evaluation.statistics import Interval


def score_lines(found: "Evaluation", labels: Mapping[str, str]) -> list[str]:
    """The lines to print: a table of means, then what could not be used or measured.

    Args:
        found: the figures.
        labels: what to call a candidate, where that is not its own name.
    """
    metrics = [f"{m.name} {'v' if m.lower_is_better else '^'}" for m in found.metrics.metrics]
    rows = [["", *metrics, "parameters", "precision", "s/image"]]
    for row in found.candidates:
        figures = [_mean(row, name) for name in found.metric_names]
        parameters = f"{row.parameters:,}" if row.parameters else "-"
        seconds = f"{row.seconds:.3f}" if row.seconds else "-"
        rows.append([labels.get(row.name, row.name), *figures, parameters, row.precision or "-", seconds])
    images = plural(len(found.candidates[0].images), "image")
    lines = [*_table(rows), f"{images}, x{found.scale}, border {found.crop_border}; ^ higher is better, v lower"]
    lines += _differences(found, labels) + found.remarks
    lines += [f"skipped {item.id}: {item.reason}" for item in found.skipped]
    return lines + [f"{u.name} is not available: {u.reason}; {u.remedy}" for u in found.metrics.unavailable]


def _differences(found: "Evaluation", labels: Mapping[str, str]) -> list[str]:
    """Every candidate's paired difference to the baseline, with its interval."""
    rows = [["", *found.metric_names]]
    for row in found.candidates:
        if differences := found.differences(row):
            cells = [_difference(differences.get(name)) for name in found.metric_names]
            rows.append([labels.get(row.name, row.name), *cells])
    if len(rows) == 1:
        return []
    base = labels.get(found.baseline, found.baseline)
    return [f"difference to {base}, image by image, with 95 % intervals; ~ where one holds zero:", *_table(rows)]


def _difference(found: "Interval | None") -> str:
    if found is None:
        return "-"
    value, low, high = found
    return f"{value:+.4f} [{low:+.4f}, {high:+.4f}]{' ' if found.is_clear_of_zero else '~'}"


def _mean(row: "CandidateScores", metric: str) -> str:
    """A mean, or `equal` where the candidate restored every image exactly."""
    if row.images and all(math.isinf(score.values.get(metric, 0.0)) for score in row.images):
        return "equal"
    mean = row.mean(metric)
    return "-" if mean is None else f"{mean:.4f}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows with the first column to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    ]
