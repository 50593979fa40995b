"""Figures of an evaluation as plain text."""

from collections.abc import Mapping, Sequence

from student.evaluation.evaluate import Evaluation


def score_lines(found: Evaluation, labels: Mapping[str, str]) -> list[str]:
    """The lines to print: a table of means, then what could not be used or measured.

    Args:
        found: the figures.
        labels: what to call a candidate, where that is not its own name.
    """
    names = found.metric_names
    head = [
        "",
        *(f"{m.name} {'v' if m.lower_is_better else '^'}" for m in found.metrics.metrics),
        "parameters",
        "s/image",
    ]
    rows = [head]
    for row in found.candidates:
        means = [row.mean(name) for name in names]
        figures = ["-" if mean is None else f"{mean:.4f}" for mean in means]
        parameters = f"{row.parameters:,}" if row.parameters else "-"
        rows.append(
            [labels.get(row.name, row.name), *figures, parameters, f"{row.seconds:.3f}" if row.seconds else "-"]
        )
    images = len(found.candidates[0].images)
    lines = [*_table(rows), f"{images} images, x{found.scale}, border {found.crop_border}; ^ higher is better, v lower"]
    lines += found.remarks
    lines += [f"skipped {item.id}: {item.reason}" for item in found.skipped]
    return lines + [f"{u.name} is not available: {u.reason}; {u.remedy}" for u in found.metrics.unavailable]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows with the first column to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        ).rstrip()
        for row in rows
    ]
