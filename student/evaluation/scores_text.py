"""Figures of an evaluation as plain text."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.system.words import plural

if TYPE_CHECKING:
    from student.evaluation.evaluate import CandidateScores, Evaluation


def score_lines(found: "Evaluation", labels: Mapping[str, str]) -> list[str]:
    """The lines to print: a table of means, then what could not be used or measured.

    Args:
        found: the figures.
        labels: what to call a candidate, where that is not its own name.
    """
    metrics = [f"{m.name} {'v' if m.lower_is_better else '^'}" for m in found.metrics.metrics]
    rows = [["", *metrics, "parameters", "s/image"]]
    for row in found.candidates:
        figures = [_mean(row, name) for name in found.metric_names]
        parameters = f"{row.parameters:,}" if row.parameters else "-"
        seconds = f"{row.seconds:.3f}" if row.seconds else "-"
        rows.append([labels.get(row.name, row.name), *figures, parameters, seconds])
    images = plural(len(found.candidates[0].images), "image")
    lines = [*_table(rows), f"{images}, x{found.scale}, border {found.crop_border}; ^ higher is better, v lower"]
    if any(figure.endswith("*") for row in rows for figure in row):
        lines.append("* without the images that equal their reference, where psnr is infinite")
    lines += [f"skipped {item.id}: {item.reason}" for item in found.skipped]
    return lines + [f"{u.name} is not available: {u.reason}; {u.remedy}" for u in found.metrics.unavailable]


def _mean(row: "CandidateScores", metric: str) -> str:
    """A mean that one equal picture does not make infinite: `equal` where all are, `29.1234*` where some are."""
    mean = row.mean(metric)
    if mean is None:
        return "-"
    finite = [score.values[metric] for score in row.images if math.isfinite(score.values[metric])]
    if not finite:
        return "equal"
    return f"{mean:.4f}" if math.isfinite(mean) else f"{statistics.fmean(finite):.4f}*"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows with the first column to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    ]
