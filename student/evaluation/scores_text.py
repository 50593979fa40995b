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
    rows = [["", *metrics, "parameters", "GFLOPs", "MB", "precision", "s/image"]]
    for row in found.candidates:
        figures = [_mean(row, name) for name in found.metric_names]
        parameters, flops, memory, seconds = (cell or "-" for cell in cost_cells(row))
        cost = [parameters, flops, memory, row.precision or "-", seconds]
        rows.append([labels.get(row.name, row.name), *figures, *cost])
    images = plural(len(found.candidates[0].images), "image")
    how = f"x{found.scale}, protocol {found.protocol}, border {found.crop_border}"
    lines = [*_table(rows), f"{images}, {how}; ^ higher is better, v lower"]
    lines += cost_notes(found, labels) + _differences(found, labels) + found.remarks
    lines += [f"skipped {item.id}: {item.reason}" for item in found.skipped]
    return lines + [f"{u.name} is not available: {u.reason}; {u.remedy}" for u in found.metrics.unavailable]


def cost_cells(row: "CandidateScores") -> list[str]:
    """Weights, GFLOPs and MB of one image, and seconds; empty where not known."""
    flops, peak = (row.cost.flops, row.cost.peak_bytes) if row.cost else (None, None)
    return [
        f"{row.parameters:,}" if row.parameters else "",
        f"{flops / 1e9:.1f}" if flops else "",
        f"{peak / 1e6:.0f}" if peak is not None else "",
        f"{row.seconds:.3f}" if row.seconds else "",
    ]


def cost_notes(found: "Evaluation", labels: Mapping[str, str]) -> list[str]:
    """What the cost was measured on, and how it compares with the teachers'."""
    notes = []
    if sizes := {row.cost.lr_size for row in found.candidates if row.cost}:
        width, height = min(sizes)
        notes.append(f"GFLOPs and MB (memory beyond what was held) are of one LR image of {width}x{height}")
    if found.environment:
        about = found.environment
        notes.append(f"measured on {about['processor']}, threads {about['threads']}, torch {about['torch']}")
    for teacher, times in found.teacher_times.items():
        ratios = ", ".join(f"{ratio:.1f} times {labels.get(student, student)}'s" for student, ratio in times.items())
        notes += [f"time of {labels.get(teacher, teacher)}: {ratios}"] if ratios else []
    return notes


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
